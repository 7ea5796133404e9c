"""The whole job through the command line, against the practice PACS, Orthanc, and real kills."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from migrate.practice.studies import Archive
from tests.ports import free_port
from tests.runs import command, configure, data_sets, document, left_over, practice, practice_process, truth
from tests.waiting import until


@pytest.mark.parametrize("fault", ["", "skip-first", "abort-find", "abort-store", "twice", "early-success", "ff01", "padded-uids", "null-counters", "silent-cap"])
def test_every_data_set_arrives_as_it_was_sent(tmp_path: Path, fault: str) -> None:
    """With good manners or bad ones that a PACS recovers from, the bucket holds exactly what the archive holds."""
    with practice(tmp_path, *([fault] if fault else [])) as archive:
        done = command(tmp_path, "run", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["complete"] is True
    assert data_sets(tmp_path) == truth(archive)
    assert left_over(tmp_path) == []


@pytest.mark.parametrize("faults", [("skip-one",), ("refuse-wide",), ("silent-cap", "refuse-wide")])
def test_what_cannot_be_shown_is_never_called_complete(tmp_path: Path, faults: tuple[str, ...]) -> None:
    """Images that are never sent and answers that are capped end as named, with exit 3."""
    with practice(tmp_path, *faults):
        done = command(tmp_path, "run", "--json")
        report = command(tmp_path, "report", "--json")
    assert done.returncode == 3, done.stderr
    document = json.loads(report.stdout)
    assert document["complete"] is False
    named = [entry for entry in document["exceptions"] if entry["missing"]] + [entry for entry in document["enumeration"]["suspicious"] if entry["blocks"]]
    assert named


def test_enumerate_and_run_agree_on_what_is_open(tmp_path: Path) -> None:
    """A question that the PACS refused, and that others have answered instead, ends neither of them with 3."""
    with practice(tmp_path, "refuse-many"):
        swept = document(tmp_path, "enumerate")
        assert swept["open_windows"] == []
        with contextlib.closing(sqlite3.connect(tmp_path / "manifests" / "test.db")) as manifest:
            assert manifest.execute("SELECT count(*) FROM window WHERE state = 2").fetchone()[0] > 0
        assert command(tmp_path, "run").returncode == 0


@pytest.mark.parametrize(("fault", "code"), [("move-unknown", 20), ("success-nothing-sent", 20), ("move-status=C000", 20)])
def test_a_pacs_that_may_not_send_to_us_ends_the_run_and_parks_nothing(tmp_path: Path, fault: str, code: int) -> None:
    """A801, and Success or a failure with nothing sent, have scope run: Orthanc says C000 where it does not know our title."""
    with practice(tmp_path, fault):
        done = command(tmp_path, "run")
        status = json.loads(command(tmp_path, "status", "--json").stdout)
    assert code == done.returncode, done.stderr
    assert "Hint" in done.stderr and "Traceback" not in done.stderr
    assert status["studies"]["parked"] == 0


def test_objects_lost_or_spoilt_are_named_and_healed(tmp_path: Path) -> None:
    """Verify names a flipped, a truncated and a removed object; run puts the lost one again and sound copies beside the others."""
    with practice(tmp_path):
        assert command(tmp_path, "run").returncode == 0
        objects = sorted((tmp_path / "bucket").glob("studies/*/series/*/instances/*.dcm"))
        flipped, cut, gone = objects[0], objects[10], objects[20]
        raw = bytearray(flipped.read_bytes())
        raw[-3] ^= 1
        flipped.chmod(0o600)
        flipped.write_bytes(raw)
        cut.chmod(0o600)
        cut.write_bytes(cut.read_bytes()[:-10])
        gone_bytes = gone.read_bytes()
        gone.unlink()
        found = command(tmp_path, "verify", "--json")
        assert found.returncode == 3
        document = json.loads(found.stdout)
        assert document["missing"] == [str(gone.relative_to(tmp_path / "bucket"))]
        assert sorted(document["differs"]) == sorted(str(path.relative_to(tmp_path / "bucket")) for path in (flipped, cut))
        assert json.loads(command(tmp_path, "status", "--json").stdout)["complete"] is False
        again = command(tmp_path, "run", "--json")
        assert again.returncode == 3, again.stderr
        assert gone.read_bytes() == gone_bytes
        assert bytes(raw) == flipped.read_bytes()
        assert len(list(flipped.parent.glob(flipped.stem + "~*.dcm"))) == 1
        parked = [entry["study"] for entry in json.loads(again.stdout)["parked"]]
        assert command(tmp_path, "accept", "--reason", "seen", "--by", "Dr. Test", *parked).returncode == 0
        assert command(tmp_path, "run").returncode == 0


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    """SIGKILL at random moments, 20 times in a row: the end is complete, every object equals its manifest hash, nothing is left over."""
    dice = random.Random(7)
    with practice(tmp_path, studies=300) as archive:
        words = [sys.executable, "-m", "migrate", "run", "--config", str(tmp_path / "migrate.toml")]
        kills = 0
        while kills < 20:
            child = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(dice.uniform(0.5, 1.1))
            child.kill()
            kills += child.wait() == -signal.SIGKILL
        done = command(tmp_path, "run", "--json")
    assert done.returncode == 0, done.stderr
    assert data_sets(tmp_path) == truth(archive)
    assert left_over(tmp_path) == []
    manifest = sqlite3.connect(tmp_path / "manifests" / "test.db")
    assert manifest.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    hashes = {(a, b, c): bytes.fromhex(digest) for a, b, c, digest in manifest.execute("SELECT study, series, sop, dataset_sha256 FROM instances")}
    assert data_sets(tmp_path) == hashes


def test_two_runs_on_one_manifest(tmp_path: Path) -> None:
    """The second process ends with 11 and says who holds the lock; status works meanwhile."""
    from migrate.manifest import Lock

    with practice(tmp_path), Lock(tmp_path / "manifests" / "test.db"):
        done = command(tmp_path, "run")
    assert done.returncode == 11
    assert f"pid {os.getpid()}" in done.stderr


def test_a_stopped_run_says_so_and_goes_on(tmp_path: Path) -> None:
    """SIGTERM ends a run with 130 and the next one completes it."""
    with practice(tmp_path, studies=60) as archive:
        child = subprocess.Popen([sys.executable, "-m", "migrate", "run", "--config", str(tmp_path / "migrate.toml")], stderr=subprocess.PIPE)
        until(lambda: list((tmp_path / "bucket").glob("studies/*")), during=child)
        child.terminate()
        child.communicate(timeout=40)
        assert child.returncode == 130
        assert command(tmp_path, "run").returncode == 0
    assert data_sets(tmp_path) == truth(archive)


def test_a_manifest_belongs_to_one_pacs(tmp_path: Path) -> None:
    """The same manifest against another PACS is refused with 2, and `check` says so before."""
    with practice(tmp_path):
        assert command(tmp_path, "run").returncode == 0
        text = (tmp_path / "migrate.toml").read_text()
        (tmp_path / "migrate.toml").write_text(text.replace('ae_title = "PRACTICE"', 'ae_title = "OTHER"'))
        done, checked = command(tmp_path, "run"), command(tmp_path, "check", "--json")
    assert (done.returncode, checked.returncode) == (2, 2)
    assert "belongs to the source" in done.stderr and "belongs to the source" in checked.stdout


def test_a_pacs_that_dies_and_comes_back(tmp_path: Path) -> None:
    """A PACS killed in the middle of a run is tried again until it is back, and the run ends complete."""
    port, receiver = free_port(), free_port()
    configure(tmp_path, port, receiver, retry="attempts = 6\nfirst_wait_s = 0.05\nmax_wait_s = 0.1\nunreachable_s = 60")
    with practice_process(tmp_path, port, receiver) as pacs:
        words = [sys.executable, "-m", "migrate", "run", "--json", "--config", str(tmp_path / "migrate.toml")]
        run = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        until(lambda: list((tmp_path / "bucket").glob("studies/*")), during=run)
        pacs.kill()
        pacs.wait()
    assert run.stderr is not None
    assert any("Trying again, for up to 60 s. Check that the PACS is up" in line for line in iter(run.stderr.readline, ""))
    with practice_process(tmp_path, port, receiver):
        out, err = run.communicate(timeout=90)
    assert run.returncode == 0, err
    assert json.loads(out)["complete"] is True
    assert data_sets(tmp_path) == truth(Archive(60))


def test_a_pacs_that_never_was_there(tmp_path: Path) -> None:
    """At the first contact nobody waits: exit 20 with a hint, nothing is parked."""
    configure(tmp_path, free_port(), free_port())
    done = command(tmp_path, "run")
    assert done.returncode == 20
    assert "Hint" in done.stderr and "Traceback" not in done.stderr
