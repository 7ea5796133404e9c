"""What a run says of itself while it goes: done, total, rates and time left by stage, as a line or as bars."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from migrate.cli.progress import Progress
from migrate.manifest import Manifest
from migrate.model import (
    InstanceState,
    InstanceStored,
    InstanceVerified,
    Proof,
    Receipt,
    RetrieveEnded,
    SeriesPlan,
    StudyConfirmed,
    StudyFound,
    StudyPlanned,
    StudyRef,
)
from migrate.reports import status
from tests.filled import came, items, planned, read, received, swept
from tests.runs import practice


class Clock:
    """Seconds, as a test has them."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def plan(study: str, images: int) -> StudyPlanned:
    return StudyPlanned(StudyRef(study), (SeriesPlan(f"{study}.1", "CT", tuple(f"{study}.1.{number}" for number in range(images))),))


def test_a_line_has_done_total_rate_and_time_left(manifest: Manifest, capsys: pytest.CaptureFixture[str]) -> None:
    """Totals are what is planned, the time left counts what is found and not planned yet, the rates are those of late."""
    clock = Clock()
    progress = Progress(clock=clock)
    progress.known = lambda: 4
    progress([StudyFound(StudyRef(f"1.{number}")) for number in range(4)])
    progress([plan("1.1", 10), plan("1.2", 10)])
    clock.now_s = 10
    progress([came(received("1.1", f"1.1.1.{number}")) for number in range(10)])
    clock.now_s = 20
    progress([came(received("1.2", f"1.2.1.{number}")) for number in range(5)])
    assert (progress.total("plan"), progress.total("retrieve"), progress.total("confirm")) == (4, 20, 2)
    assert (progress.rate("retrieve"), progress.rate_bytes("retrieve")) == (0.75, 75)
    assert progress.eta_s("retrieve") == pytest.approx(25 / 0.75)
    assert (progress.eta_s("verify"), progress.eta_s("enumerate")) == (None, None)
    clock.now_s = 30
    progress([])
    line = capsys.readouterr().err
    assert line == (
        "enumerate 4 rows (0.1/s), plan 2/4 (0.1/s), retrieve 15/20 (0.5/s, 0.0 MB/s), upload 0/20, verify 0/20, confirm 0/2; ETA 50 s\n"
    )


def test_rates_forget_what_is_long_ago() -> None:
    """After a stall of an hour the rate is that of the last two minutes."""
    clock = Clock()
    progress = Progress(clock=clock)
    progress([plan("1.1", 2000)])
    progress([came(received("1.1", f"1.1.1.{number}")) for number in range(1000)])
    for second in range(3600, 3900):
        clock.now_s = second
        progress([came(received("1.1", f"1.1.1.{second}"))])
    assert progress.rate("retrieve") == pytest.approx(1, abs=0.02)


def test_the_last_look_is_a_stage(manifest: Manifest) -> None:
    """Each planned study is asked for once more before it closes; one that grew is asked for again, and no total is told then."""
    progress = Progress()
    progress([plan("1.1", 1)])
    assert (progress.done["confirm"], progress.total("confirm")) == (0, 1)
    progress([StudyConfirmed(plan("1.1", 1))])
    assert (progress.done["confirm"], progress.total("confirm")) == (1, 1)
    progress([StudyConfirmed(plan("1.1", 1))])
    assert progress.total("confirm") is None


def test_a_resumed_run_counts_what_was_left(manifest: Manifest) -> None:
    """What earlier runs found, listed, staged and stored belongs to the totals of the stages that it has before it."""
    swept(manifest, "1.1", "1.2", "1.3")
    for study in ("1.1", "1.2"):
        planned(manifest, study, f"{study}.1.1", f"{study}.1.2")
    manifest.commit([came(received("1.1", "1.1.1.1")), came(received("1.2", "1.2.1.1"))])
    (first, _) = items(manifest, InstanceState.STAGED)
    manifest.commit([InstanceStored(first, Receipt("k"))])
    progress = Progress(read(manifest, status))
    totals = {stage: progress.total(stage) for stage in ("plan", "retrieve", "upload", "verify", "confirm")}
    assert totals == {"plan": 1, "retrieve": 2, "upload": 3, "verify": 4, "confirm": 2}
    progress([InstanceVerified(first, Proof.READ_BACK), RetrieveEnded(StudyRef("1.1"), 0)])
    assert (progress.done["verify"], progress.total("verify")) == (1, 4)


def test_without_knowing_what_was_left_no_wrong_total_is_told(manifest: Manifest) -> None:
    """More done than is known to be planned: the total is not known, and neither is the time left."""
    progress = Progress()
    progress([came(received("1.1", "1.1.1.1"))])
    assert (progress.total("retrieve"), progress.eta_s("retrieve")) == (None, None)


def test_bars_on_a_terminal(tmp_path: Path) -> None:
    """A demo in a terminal ends with a bar for each stage, the last look among them."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 110, 0, 0))
    arguments = [sys.executable, "-m", "migrate", "demo", "--studies", "3", "--keep", str(tmp_path / "demo")]
    with subprocess.Popen(arguments, stderr=theirs, stdout=subprocess.DEVNULL) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                more = os.read(ours, 65536)
            except OSError:  # the other side is closed
                break
            if not more:
                break
            shown += more
    os.close(ours)
    assert process.returncode == 0
    lines = shown.decode().replace("\r", "\n").split("\n")
    for stage in ("plan", "retrieve", "upload", "verify", "confirm"):
        assert any(stage in line and "100%" in line for line in lines), stage
    assert any("retrieve" in line and "MB/s" in line for line in lines)


def test_a_terminal_that_is_gone_does_not_end_the_work(tmp_path: Path) -> None:
    """A shell that left its run behind and was closed: the exit code is still the run's own."""
    ours, theirs = pty.openpty()
    with practice(tmp_path):
        words = [sys.executable, "-m", "migrate", "run", "--config", str(tmp_path / "migrate.toml")]
        left_behind = {"start_new_session": True, "preexec_fn": lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)}
        with subprocess.Popen(words, stdout=theirs, stderr=theirs, **left_behind) as process:  # type: ignore[call-overload]
            os.close(theirs)
            assert os.read(ours, 1)
            os.close(ours)
        assert process.returncode == 0
