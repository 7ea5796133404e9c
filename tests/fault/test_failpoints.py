"""Real runs that die, fail or wait at every named point of an instance's life, and whose disk fails at every operation: nothing
false is on record at any time, and the next run goes on to the end.

`CRASH_LOOP=all` takes all actions at all points and all file operations instead of kills at all points and a few operations.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from migrate.failpoints import ACTIONS, POINTS
from migrate.practice.pacs import PracticePacs
from migrate.practice.studies import Archive
from tests.fault.forked import Ended, Forks
from tests.fault.invariants import Truth, unkept_in
from tests.ports import free_port
from tests.runs import configure, data_sets, left_over, truth

ALL = os.environ.get("CRASH_LOOP") == "all"
NAMES = [name for name in POINTS if name != "disk"]
SOURCE = Path(__file__).parents[2] / "migrate"
LATER = {"commit-begun": 3, "commit-applied": 3, "commit-settled": 3, "commit-done": 3, "commit-effects": 3, "receive-fragment": 5, "release-begun": 3}
"""At which time a point strikes where the first is not the one that matters."""


@dataclass
class Rig:
    """Migrations of some years of a practice PACS, each in a folder of its own."""

    forks: Forks
    pacs: PracticePacs
    receiver: int
    truth: Truth
    span: str
    folder: Path
    begun: int = 0

    def begin(self) -> Path:
        """A new migration that knows nothing of the others."""
        self.begun += 1
        folder = self.folder / f"{self.begun}"
        folder.mkdir()
        configure(folder, self.pacs.port, self.receiver, source=f"settle_s = 0.2\nassociations = 1\n{self.span}",
                  retry="attempts = 6\nfirst_wait_s = 0.05\nmax_wait_s = 0.1\nunreachable_s = 1")  # fmt: skip
        return folder

    def struck(self, folder: Path, failpoint: str = "", *, below_sqlite: str = "") -> Ended:
        """A run that a failpoint strikes, or a fault below SQLite; whatever it does, the promises are kept."""
        ended = self.forks.run(folder, "run", "--json", failpoint=failpoint, below_sqlite=below_sqlite)
        at = failpoint or below_sqlite
        assert ended.code is not None, f"{at}: the run hangs: {ended.err}"
        assert unkept_in(folder, self.truth) == [], at
        if ended.code == 0:
            self.assert_complete(folder, at)
        return ended

    def finish(self, folder: Path, after: str) -> None:
        """A run without any failpoint reaches the end."""
        ended = self.forks.run(folder, "run", "--json")
        assert ended.code == 0, f"after {after}: exit {ended.code}, {ended.err}"
        assert json.loads(ended.out)["complete"] is True
        self.assert_complete(folder, after)
        assert list((folder / "bucket" / "_pacs-migrate" / "tmp").iterdir()) == [], after

    def assert_complete(self, folder: Path, after: str) -> None:
        assert data_sets(folder) == self.truth, after
        assert left_over(folder) == [], after


@contextlib.contextmanager
def rig_for(first: int, last: int) -> Iterator[Rig]:
    """A rig for the studies of these years."""
    archive = Archive(60)
    studies = {study.uid for study in map(archive.study, range(60)) if f"{first}" <= study.date[:4] <= f"{last}"}
    known = {uids: digest for uids, digest in truth(archive).items() if uids[0] in studies}
    receiver = free_port()
    where = "/dev/shm" if Path("/dev/shm").is_dir() else None  # how long a sync takes is not what is looked at
    with (
        tempfile.TemporaryDirectory(dir=where) as folder, Forks() as forks,
        PracticePacs(archive, destinations={"PACSMIGRATE": ("127.0.0.1", receiver)}) as pacs,
    ):  # fmt: skip
        yield Rig(forks, pacs, receiver, known, f"from = {first}-01-01\nto = {last}-12-31", Path(folder))


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with rig_for(2016, 2019) as made:  # nine studies
        yield made


@pytest.fixture(scope="module")
def small() -> Iterator[Rig]:
    """One image: its life has few file operations."""
    with rig_for(1998, 1998) as made:
        assert len(made.truth) == 1
        yield made


def test_the_names_are_those_in_the_code() -> None:
    """Every name stands somewhere, and none stands there that is not listed."""
    there = {name for path in SOURCE.rglob("*.py") for name in re.findall(r'reach\("([a-z-]+)"\)', path.read_text())}
    assert there == set(POINTS)
    assert len(POINTS) >= 40


@pytest.mark.timeout(0)
def test_killed_at_each_point_one_after_the_other(rig: Rig) -> None:
    """One migration whose every run is killed at another point ends complete, byte for byte, with little work done twice."""
    folder, before = rig.begin(), rig.pacs.counts["store"]
    for name in NAMES:
        ended = rig.struck(folder, f"{name}:kill")
        assert ended.killed, f"{name}: exit {ended.code}, {ended.err}"
    rig.finish(folder, "all points")
    sent = rig.pacs.counts["store"] - before
    in_flight = max(Counter(study for study, _, _ in rig.truth).values())  # the study that is being retrieved
    print(f"{len(NAMES)} kills; {sent} images sent for {len(rig.truth)}")
    assert sent <= len(rig.truth) + len(NAMES) * in_flight


@pytest.mark.timeout(0)
@pytest.mark.parametrize("action", ACTIONS[1:] if ALL else ["eio"])
def test_failing_at_each_point(rig: Rig, action: str) -> None:
    """An exception, a failing disk or a delay at a point: a sentence or success, never something false, and the next run ends it."""
    codes: dict[int | None, int] = {}
    for name in NAMES if ALL else ("receive-create", "stage-synced", "commit-effects", "put-copied", "release-begun", "checkpoint-begun"):
        folder = rig.begin()
        ended = rig.struck(folder, f"{name}:{action}:{LATER.get(name, 1)}")
        codes[ended.code] = codes.get(ended.code, 0) + 1
        assert f"failpoint {name}:{action}" in ended.err, name
        assert ended.code in ((0, 22, 21) if action != "raise" else (0, 1, 3, 22, 21)), f"{name}: exit {ended.code}, {ended.err}"
        assert action == "raise" or "Traceback" not in ended.err, f"{name}: {ended.err}"
        rig.finish(folder, f"{name}:{action}")
    print(f"{action}: exit codes {codes}")


@pytest.mark.timeout(0)
@pytest.mark.parametrize("action", ["enospc", "eio", "emfile", "erofs", "edquot", "kill"] if ALL else ["enospc"])
@pytest.mark.parametrize("lasting", ["", "+"] if ALL else ["+"])
def test_each_file_operation_fails(small: Rig, action: str, lasting: str) -> None:
    """The nth operation on a file fails, or it and all that follow, for all n of one study's life: a clear error, then an end."""
    codes: dict[int | None, int] = {}
    number = 1
    while True:
        folder = small.begin()
        ended = small.struck(folder, f"disk:{action}:{number}{lasting}")
        if "failpoint disk" not in ended.err:
            break
        codes[ended.code] = codes.get(ended.code, 0) + 1
        assert ended.code in (0, 21, 22, -9), f"operation {number}: exit {ended.code}, {ended.err}"
        assert "Traceback" not in ended.err, f"operation {number}: {ended.err}"
        assert ended.code in (0, -9) or "Error: " in ended.err, f"operation {number}: {ended.err}"
        small.finish(folder, f"operation {number}")
        number += 1 if ALL else 9
    print(f"{action}{lasting}: {number - 1} operations, exit codes {codes}")
    assert number > 30
