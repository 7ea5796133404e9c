"""Upload and verify jobs run in another process: they, their outcomes and their errors are plain values that can be pickled."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from migrate.config import DestinationSettings, FolderSettings, S3Settings
from migrate.destinations import shared_destination
from migrate.errors import DestinationRefused
from migrate.manifest import Manifest, Queue
from migrate.model import InstanceRef, InstanceState, Proof, Received, RetryPolicy
from migrate.pipeline import Pipeline
from migrate.scheduling import Stage
from migrate.stages import work
from migrate.staging.area import Staging
from tests.s3_server import S3Server

SOPS = [f"1.2.1.{number}" for number in range(1, 6)]


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Executor]:
    """Another process, started anew: it has nothing of this one but what it is given."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield pool


class Bench:
    """A manifest with five staged instances, and a pipeline over it that uploads and verifies them elsewhere."""

    def __init__(self, folder: Path, destination: DestinationSettings, executor: Executor) -> None:
        identity = {"source": "A@b:1", "destination": "there", "migration": "m"}
        self.destination, self.executor = destination, executor
        self.manifest = Manifest(folder / "m.db", identity=identity, policy=RetryPolicy())
        self.manifest.begin_run("run", "op", "")
        self.staging = Staging(folder / "staging", reserve_bytes=0)
        self.pipeline = Pipeline(
            self.manifest, settle=self.staging.settle, final_path=self._final, after_commit=lambda _: None, unreachable_s=1
        )
        self.pipeline.start()
        for sop in SOPS:
            self.pipeline.deliver(self._came(sop))
        self.pipeline.drain()
        self.queue = Queue(folder / "m.db")

    def run(self) -> None:
        states = {"upload": (InstanceState.STAGED, work.upload), "verify": (InstanceState.STORED, work.verify)}
        stages = [Stage(name, self._batches(state), do, 1, side="destination", executor=self.executor) for name, (state, do) in states.items()]
        try:
            self.pipeline.run(stages, next_due_s=lambda: None)
        finally:
            self.pipeline.close()
            self.queue.close()
            self.staging.close()

    def _batches(self, state: InstanceState) -> Callable[[set[Hashable], int], Iterator[tuple[Hashable, work.Batch]]]:
        def ready(busy: set[Hashable], limit: int) -> Iterator[tuple[Hashable, work.Batch]]:
            for series, items in self.queue.items(state, skip_series=set(), limit=limit):
                files = [self.staging.path_of(item.ref, item.fixity.dataset_sha256) for item in items]
                yield series, work.Batch(self.destination, tuple(zip(items, files, strict=True)))

        return ready

    def _came(self, sop: str) -> Received:
        incoming = self.staging.create().begin(b"\0" * 128 + b"DICM" + b"meta")
        incoming.write(memoryview(sop.encode() * 1000))
        incoming.close()
        return Received(incoming.path, InstanceRef("1.2", "1.2.1", sop), incoming.roll(), "1.3", "1.4")

    def _final(self, received: Received) -> Path:
        assert received.ref is not None
        return self.staging.path_of(received.ref, received.rolled.dataset_sha256)


@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_jobs_and_outcomes_travel(kind: str, tmp_path: Path, server: S3Server, elsewhere: Executor) -> None:
    """What another process put and proved is on record here, and really stands in the store."""
    place: DestinationSettings = FolderSettings(tmp_path / "bucket")
    if kind == "s3":
        place = S3Settings(server.new_bucket(), endpoint_url=server.endpoint_url)
    shared_destination(place).prepare()
    bench = Bench(tmp_path, place, elsewhere)
    bench.run()
    rows = bench.manifest.execute("SELECT sop_uid, state, proof FROM instance ORDER BY sop_uid").fetchall()
    proof = Proof.ATTESTED if kind == "s3" else Proof.READ_BACK
    assert [tuple(row) for row in rows] == [(sop, InstanceState.VERIFIED, proof) for sop in SOPS]
    stored = {key.rpartition("/")[2] for key, _ in shared_destination(place).listed("studies/")}
    assert stored == {f"{sop}.dcm" for sop in SOPS}
    bench.manifest.close()


def test_an_error_travels_with_its_hint(tmp_path: Path, server: S3Server, elsewhere: Executor) -> None:
    """A bucket that is not there ends the run here with the sentence and the hint that were found there."""
    place = S3Settings(server.new_bucket(), endpoint_url=server.endpoint_url)
    bench = Bench(tmp_path, replace(place, bucket="nobody-has-made-it"), elsewhere)
    with pytest.raises(DestinationRefused, match="NoSuchBucket") as raised:
        bench.run()
    assert "bucket" in raised.value.hint
    assert bench.manifest.one("SELECT count(*) FROM instance WHERE state = ?", InstanceState.STAGED)[0] == len(SOPS)
    bench.manifest.close()
