"""From the receiver's hands to the row: what is durable becomes a fact, what the disk spoilt never does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from migrate.errors import DiskFailing, Interrupted, SourceUnreachable
from migrate.manifest import Manifest
from migrate.model import Fixity, InstanceRef, Noted, Outcome, Received, RetryPolicy, Rolled
from migrate.pipeline import Pipeline
from migrate.scheduling import Stage
from migrate.staging.area import Staging, hash_file
from tests.filled import IDENTITY
from tests.waiting import until

HEADER = b"\0" * 128 + b"DICM" + b"meta"


class Bench:
    """A pipeline without stages over a real manifest and a real staging folder."""

    def __init__(self, folder: Path) -> None:
        self.manifest = Manifest(folder / "m.db", identity=IDENTITY, policy=RetryPolicy())
        self.manifest.begin_run("run", "op", "")
        self.staging = Staging(folder / "staging", reserve_bytes=0)
        self.pipeline = Pipeline(
            self.manifest, settle=self.staging.settle, final_path=self._final, after_commit=lambda _: None, unreachable_s=1
        )

    def came(self, sop: str) -> Received:
        incoming = self.staging.create().begin(HEADER)
        incoming.write(memoryview(sop.encode() * 1000))
        incoming.close()
        return Received(incoming.path, InstanceRef("1.2", "1.2.1", sop), incoming.roll(), "1.3", "1.4")

    def rows(self) -> list[tuple[str, bytes]]:
        return [tuple(row) for row in self.manifest.execute("SELECT sop_uid, file_sha256 FROM instance")]

    def _final(self, received: Received) -> Path:
        assert received.ref is not None
        return self.staging.path_of(received.ref, received.rolled.dataset_sha256)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    opened = Bench(tmp_path)
    yield opened
    opened.staging.close()
    opened.manifest.close()


def test_a_durable_file_has_a_row_with_its_own_hash(bench: Bench) -> None:
    """Whoever waits is told after the commit; the row holds the SHA-256 of the file under its final name."""
    bench.pipeline.start()
    received = bench.came("1.2.1.1")
    promise = bench.pipeline.deliver(received, durable=True)
    assert promise is not None
    promise.result(10)
    assert bench.rows() == [("1.2.1.1", hash_file(bench._final(received))[1])]
    bench.pipeline.close()


def spoil(received: Received) -> Received:
    content = bytearray(received.path.read_bytes())
    content[500] ^= 1
    received.path.write_bytes(content)
    return received


def test_a_failing_disk_leaves_nobody_at_the_manifest(bench: Bench) -> None:
    """What is being committed when making a file durable fails is waited for: SQLite's connection bears one thread at a time."""
    busy, go_on = threading.Event(), threading.Event()
    bench.pipeline.start()

    def work() -> None:
        busy.set()
        go_on.wait(10)

    bench.pipeline.submit([], done=work)
    assert busy.wait(10)
    promise = bench.pipeline.deliver(spoil(bench.came("1.2.1.1")), durable=True)
    assert promise is not None
    with pytest.raises(DiskFailing):
        promise.result(10)
    with ThreadPoolExecutor(1) as pool:
        closed = pool.submit(bench.pipeline.close)
        with pytest.raises(TimeoutError):
            closed.result(0.3)
        go_on.set()
        with pytest.raises(DiskFailing):
            closed.result(10)
    assert [thread for thread in bench.pipeline._threads if thread.is_alive()] == []


def test_what_the_disk_spoilt_is_refused_and_ends_the_run(bench: Bench) -> None:
    """A byte flipped after the receipt: the waiting answers are told, no row is made, `run` raises DiskFailing."""
    spoilt, sound = spoil(bench.came("1.2.1.1")), bench.came("1.2.1.2")
    promises: list[Future[None] | None] = [bench.pipeline.deliver(one, durable=True) for one in (spoilt, sound)]
    bench.pipeline.start()
    for promise in promises:
        assert promise is not None
        with pytest.raises(DiskFailing, match="does not read back"):
            promise.result(10)
    with pytest.raises(DiskFailing):
        bench.pipeline.drain()
    assert bench.rows() == []
    assert list(bench.staging.ready.rglob("*.dcm")) == []


def test_what_ends_while_stages_are_asked_does_not_end_the_run(bench: Bench) -> None:
    """The first job is committed between two stages' turns of being asked, when nothing seems ready or under way: the second job is done all the same."""
    done: list[int] = []
    rounds: list[bool] = []
    asked = threading.Event()

    def ready(busy: set[Hashable], limit: int) -> Iterator[tuple[Hashable, int]]:
        if len(done) < 2 and not busy:
            yield len(done), len(done)

    def work(job: int) -> list[Outcome]:
        assert asked.wait(10)
        done.append(job)
        return []

    def asked_later(busy: set[Hashable], limit: int) -> Iterator[tuple[Hashable, int]]:
        rounds.append(bool(first.busy))
        if rounds[-2:] == [True, True]:
            asked.set()
        while asked.is_set() and first.busy:  # the first stage was passed over, being busy; when this ends, it no longer is
            bench.pipeline.commit_now([])
        yield from ()

    first = Stage("first", ready, work, 1)
    bench.pipeline.start()
    bench.pipeline.run([first, Stage("second", asked_later, work, 1)], next_due_s=lambda: None)
    bench.pipeline.close()
    assert done == [0, 1]


class Line:
    """A stage of one worker with two jobs in line, the first of which does something once they are there."""

    def __init__(self, first: Callable[[], None]) -> None:
        self.begun: list[tuple[int, float]] = []
        self._first = first
        self.stage = Stage("line", self._ready, self._work, 1, ahead=2)

    def _ready(self, busy: set[Hashable], limit: int) -> Iterator[tuple[Hashable, int]]:
        well = {job for job, _ in self.begun[1:]}
        yield from ((job, job) for job in range(3) if job not in well)

    def _work(self, job: int) -> Iterator[Outcome]:
        self.begun.append((job, time.monotonic()))
        if len(self.begun) == 1:
            until(lambda: len(self.stage.busy) == 3)
            self._first()
        yield from ()


def test_a_job_is_not_done_again_before_its_outcomes_are_on_record(bench: Bench) -> None:
    """Where they wait behind files that are not durable yet, the job seems ready still; nobody is given it a second time."""
    held, done, committed, rounds = threading.Event(), [], threading.Event(), []

    def settle(files: list[tuple[Path, Path, Rolled]]) -> list[Fixity]:
        assert held.wait(30)
        return bench.staging.settle(files)

    def ready(busy: set[Hashable], limit: int) -> Iterator[tuple[Hashable, int]]:
        if bench.pipeline.contacted("source"):  # the job has ended
            bench.pipeline.commit_now([])
            rounds.append(1)
        if len(rounds) > 5:
            held.set()
        if not committed.is_set():
            yield "job", 1

    def work(job: int) -> Iterator[Outcome]:
        done.append(job)
        yield Noted("done", "")

    bench.pipeline = Pipeline(
        bench.manifest, settle=settle, final_path=bench._final, after_commit=lambda _: None, unreachable_s=1,
        on_commit=lambda facts: committed.set() if Noted("done", "") in facts else None,
    )  # fmt: skip
    bench.pipeline.start()
    bench.pipeline.deliver(bench.came("1.2.1.1"))
    bench.pipeline.run([Stage("retrieve", ready, work, 1, ahead=1, ordered=True)], next_due_s=lambda: None)
    bench.pipeline.close()
    assert done == [1]


def test_what_is_in_line_is_not_begun_after_a_stop(bench: Bench) -> None:
    """A stop takes back what waits for a worker; only what is under way is waited for."""

    def stop() -> None:
        bench.pipeline.stop()
        until(lambda: len(line.stage.busy) == 1)

    line = Line(stop)
    bench.pipeline.start()
    with pytest.raises(Interrupted):
        bench.pipeline.run([line.stage], next_due_s=lambda: None)
    bench.pipeline.close()
    assert [job for job, _ in line.begun] == [0]


def test_what_is_in_line_behind_a_failure_waits_for_the_pause(bench: Bench) -> None:
    """Where a peer is away, the jobs in line are begun only after the pause, and none is forgotten."""

    def fail() -> None:
        raise SourceUnreachable("away")

    line = Line(fail)
    bench.pipeline.note_contact("source")
    bench.pipeline.start()
    bench.pipeline.run([line.stage], next_due_s=lambda: None)
    bench.pipeline.close()
    (_, failed_at), (_, next_at), *_ = line.begun
    assert next_at - failed_at >= 0.5
    assert [job for job, _ in line.begun] == [0, 0, 1, 2]


def test_what_is_in_line_waits_for_the_gate(bench: Bench) -> None:
    """Where no more may be begun, the jobs in line go back; once it may, none is forgotten."""
    shut = threading.Event()

    def shut_for_a_while() -> None:
        shut.set()
        until(lambda: len(line.stage.busy) == 1)
        shut.clear()

    line = Line(shut_for_a_while)
    line.stage.gate = lambda: not shut.is_set()
    bench.pipeline.start()
    bench.pipeline.run([line.stage], next_due_s=lambda: None)
    bench.pipeline.close()
    assert [job for job, _ in line.begun] == [0, 0, 1, 2]


def test_what_falls_due_while_it_is_looked_for_is_done(bench: Bench) -> None:
    """Nothing was ready, and nothing waits for a time any more: what fell due in between is not left behind."""
    due, done = threading.Event(), []

    def falls_due() -> None:
        due.set()

    def ready(busy: set[Hashable], limit: int) -> Iterator[tuple[Hashable, int]]:
        if due.is_set() and not done:
            yield "job", 1

    def work(job: int) -> list[Outcome]:
        done.append(job)
        return []

    bench.pipeline.start()
    bench.pipeline.run([Stage("late", ready, work, 1)], next_due_s=falls_due)
    bench.pipeline.close()
    assert done == [1]


def one_job(work: Callable[[int], list[Outcome]]) -> Stage:
    return Stage("one", lambda busy, limit: iter([("job", 1)]), work, 1)


def test_a_defect_in_a_worker_ends_the_run(bench: Bench) -> None:
    """An exception that nobody expects is raised, and not taken for a job that was done."""

    def work(job: int) -> list[Outcome]:
        raise ZeroDivisionError

    bench.pipeline.start()
    with pytest.raises(ZeroDivisionError):
        bench.pipeline.run([one_job(work)], next_due_s=lambda: None)
    bench.pipeline.close()


def test_nobody_waits_for_a_commit_that_broke(bench: Bench) -> None:
    """The end of a job that was still to be noted behind it is not, and the run ends at once all the same."""
    begun = threading.Event()

    def broken() -> None:
        begun.set()
        until(lambda: not bench.pipeline._facts._queue.empty())
        raise ZeroDivisionError

    def work(job: int) -> list[Outcome]:
        bench.pipeline.submit([], done=broken)
        assert begun.wait(10)
        return []

    bench.pipeline.start()
    with pytest.raises(ZeroDivisionError):
        bench.pipeline.run([one_job(work)], next_due_s=lambda: None, grace_s=600)
    with pytest.raises(ZeroDivisionError):
        bench.pipeline.close()
