"""The manifest after power cuts: nothing acknowledged is lost, nothing is broken, and the simulator would notice if it were."""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from migrate.manifest import Manifest
from migrate.model import (
    Failed,
    Fixity,
    InstanceRef,
    InstanceStaged,
    InstanceStored,
    InstanceVerified,
    Item,
    Outcome,
    Proof,
    Receipt,
    Received,
    RetrieveEnded,
    RetryPolicy,
    SeriesPlan,
    StudyFound,
    StudyPlanned,
    StudyRef,
    Window,
    WindowAnswered,
    WindowsPlanned,
)
from tests.fault.power_cut import Recorder, Replay, Work, recording
from tests.filled import IDENTITY

CUTS = int(os.environ.get("POWER_CUTS", "1000"))
FIRST = int(os.environ.get("POWER_CUT_SEED", "0"))


def opened(path: Path) -> Manifest:
    return Manifest(path, identity=IDENTITY, policy=RetryPolicy())


def batches() -> Iterator[list[Outcome]]:
    """A small migration, a batch for each commit: swept, planned, received, stored, verified, one study failing once."""
    yield [WindowsPlanned(1, (Window("20200101", "20201231"),))]
    studies = [StudyRef(f"1.2.{number}") for number in range(3)]
    yield [*(StudyFound(study, "20200505", ("CT",), 3, 1) for study in studies), WindowAnswered(1, 3)]
    for study in studies:
        sops = [f"{study.study}.1.{number}" for number in range(3)]
        items, came = [], []
        for sop in sops:
            ref = InstanceRef(study.study, f"{study.study}.1", sop)
            digest = random.Random(sop).randbytes(32)
            fixity = Fixity(1000, digest, digest, 2**63 + len(items))
            items.append(Item(ref, fixity))
            came.append(InstanceStaged(Received(Path(f"/x/{sop}"), ref, fixity.rolled, "1.2.840.1", "1.2.840.2"), fixity))
        yield [StudyPlanned(study, (SeriesPlan(f"{study.study}.1", "CT", tuple(sops)),))]
        yield [*came[:2], RetrieveEnded(study, 0xB000)]
        yield [came[2], RetrieveEnded(study, 0)]
        yield [Failed(study, "upload", "PutFailed", "no answer")]
        yield [InstanceStored(item, Receipt("k")) for item in items]
        yield [InstanceVerified(item, Proof.READ_BACK) for item in items]


def recorded(path: Path, before: bytes) -> Work:
    """Real manifest calls, recorded; every fourth commit is followed by a checkpoint."""
    with recording():
        manifest = opened(path)
    recorder = manifest.connection
    assert isinstance(recorder, Recorder)
    manifest.begin_run("run", "op", "")
    for number, batch in enumerate(batches()):
        manifest.commit(batch)
        if number % 4 == 3:
            manifest.checkpoint()
    manifest.end_run(0)
    states = [state for (state,) in manifest.execute("SELECT state FROM study")]
    manifest.close()
    assert states == [3, 3, 3]
    return Work(before, recorder.statements, recorder.states)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    """The second run on a manifest."""
    path = tmp_path_factory.mktemp("recorded") / "m.db"
    fresh = opened(path)
    fresh.begin_run("check", "op", "")
    fresh.close()
    return recorded(path, path.read_bytes())


@pytest.fixture(scope="module")
def first_work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    """The first one, which makes the manifest."""
    return recorded(tmp_path_factory.mktemp("recorded") / "m.db", b"")


@contextlib.contextmanager
def replayed(work: Work, folder: Path, synchronous: str | None = None, **more: Any) -> Iterator[Replay]:
    replay = Replay(work, folder, synchronous=synchronous, **more)
    yield replay
    replay.close()


def test_the_work_asks_for_full_syncs(work: Work) -> None:
    """What is replayed begins with the writer's own pragmas and changes something in at least twenty transactions."""
    assert ("PRAGMA synchronous=FULL", [()]) in work.statements
    assert len(set(work.states.values())) >= 20


@pytest.mark.timeout(0)
def test_no_acknowledged_transaction_is_lost(work: Work, tmp_path: Path) -> None:
    """After each of POWER_CUTS cuts (1,000 unless told) the manifest is sound and holds all that was committed."""
    with replayed(work, tmp_path) as replay:
        bad = {seed: verdict for seed in range(FIRST, FIRST + CUTS) if (verdict := replay.cut(seed)) and (verdict.lost or verdict.broken)}
        print(f"{CUTS} power cuts at {replay.operations} places: {len(bad)} bad; SQLite {sqlite3.sqlite_version}")
    assert bad == {}


@pytest.mark.timeout(0)
def test_a_manifest_that_is_being_made_is_whole_or_made_again(first_work: Work, tmp_path: Path) -> None:
    """After a cut amid the making of a manifest nothing acknowledged is lost, and the next start ends what was begun: its law is in force."""
    cuts = max(CUTS // 10, 100)
    with replayed(first_work, tmp_path, start=lambda path: opened(path).close()) as replay:
        bad = {seed: verdict for seed in range(FIRST, FIRST + cuts) if (verdict := replay.cut(seed)) and (verdict.lost or verdict.broken)}
        print(f"{cuts} power cuts at {replay.operations} places: {len(bad)} bad")
    assert bad == {}


def test_the_simulator_sees_a_manifest_that_is_not_synced(work: Work, tmp_path: Path) -> None:
    """With synchronous=NORMAL, and more so with OFF, the same cuts lose acknowledged work: the simulator can see it."""
    seen: dict[str, Counter[str]] = {}
    for number, synchronous in enumerate(("NORMAL", "OFF")):
        folder = tmp_path / str(number)
        folder.mkdir()
        with replayed(work, folder, synchronous) as replay:
            verdicts = [replay.cut(seed) for seed in range(150)]
        seen[synchronous] = Counter("lost" if verdict.lost else "broken" if verdict.broken else "sound" for verdict in verdicts)
    print(seen)
    assert seen["NORMAL"]["lost"] >= 15
    assert seen["NORMAL"]["broken"] == 0
    assert seen["OFF"]["broken"] >= 1
