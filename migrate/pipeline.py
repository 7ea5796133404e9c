"""Stages over the manifest as queue: the only module with threads besides the receiver.

The thread that calls `run` asks each stage what is ready and hands it to workers; one thread makes arrived files durable,
one thread commits. Workers yield outcomes; nothing is known here of DICOM or of stores.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import threading
import time
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import CancelledError, Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from migrate.errors import DiskFull, Interrupted, LocalError, PacsMigrateError
from migrate.failpoints import reach
from migrate.inbox import CHUNK, Inbox, Unhurried
from migrate.manifest import Effects, Manifest
from migrate.model import Fixity, InstanceStaged, Outcome, Received, Rolled
from migrate.scheduling import Stage, collect

log = logging.getLogger(__name__)

_POLL_S = 0.25
_BEAT_S = 0.05  # no more often than that is committed as long as more is on its way and nobody waits
STOP_GRACE_S = 25.0


@dataclass
class _Arrived:
    received: Received
    final: Path
    durable: Future[None] | None


class Pipeline:
    """Runs stages over one manifest until nothing is left, a stop is asked for, or an error of scope run ends it."""

    def __init__(
        self,
        manifest: Manifest,
        *,
        settle: Callable[[list[tuple[Path, Path, Rolled]]], list[Fixity]],
        final_path: Callable[[Received], Path],
        after_commit: Callable[[Effects], None],
        unreachable_s: float,
        on_commit: Callable[[list[Outcome]], None] = lambda _: None,
    ) -> None:
        self._manifest, self._settle, self._final_path, self._after_commit = manifest, settle, final_path, after_commit
        self._unreachable_s, self._on_commit = unreachable_s, on_commit
        self._arrivals, self._facts = Inbox(10_000), Inbox(20)
        self._wake = threading.Event()
        self.stopping = threading.Event()
        self._error: BaseException | None = None  # one of the two threads broke: nothing more can be committed
        self._contacted: set[str] = set()  # sides that have answered in this run: from then on their silence is waited out
        self._stages: list[Stage] = []
        self._ended_by: BaseException | None = None  # a worker's error of scope run: what was finished is still committed
        self._threads = [threading.Thread(target=self._guard, args=(loop,), name=name, daemon=True)
                         for name, loop in (("durable", self._durable_loop), ("commit", self._commit_loop))]  # fmt: skip

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Start nothing new; `run` raises Interrupted once what is under way has ended or was cut."""
        self.stopping.set()
        self._wake.set()

    def note_contact(self, side: str) -> None:
        """This side has answered outside the stages, too."""
        self._contacted.add(side)

    def contacted(self, side: str) -> bool:
        """Whether this side has answered since the start."""
        return side in self._contacted

    def forgive(self) -> None:
        """Let `run` be called again after an error of scope run."""
        self._ended_by = None

    # -- what comes in
    def deliver(self, received: Received, *, durable: bool = False) -> Future[None] | None:
        """Take a received file on its way to durability; with `durable` the future ends when its row is committed."""
        future: Future[None] | None = Future() if durable else None
        self._put(self._arrivals, _Arrived(received, self._final_path(received), future))
        return future

    def submit(self, outcomes: Iterable[Outcome], *, done: Callable[[], None] | None = None, ordered: bool = False) -> None:
        """Queue facts for the commit; `done` is called once they are in."""
        facts = list(outcomes)
        if facts:
            self._put(self._arrivals if ordered else self._facts, facts)
        if done is not None:
            self._put(self._arrivals if ordered else self._facts, done)

    def commit_now(self, outcomes: Iterable[Outcome]) -> None:
        """Queue facts and wait until they are committed. Raises what ended the commit thread."""
        self._await(outcomes)

    def call(self, work: Callable[[], None]) -> None:
        """Have the commit thread do `work`, after what was submitted so far, and wait for it."""
        self.submit([], done=work)
        self._await()

    def drain(self) -> None:
        """Wait until everything that was delivered or submitted so far is committed."""
        self._await(ordered=True)

    def close(self) -> None:
        """End both threads after what is queued, also where one broke: nobody else may use the manifest before. Raises what broke it."""
        for thread, source, limit_s in zip(self._threads, (self._arrivals, self._facts), (STOP_GRACE_S, None), strict=True):
            while thread.is_alive():
                if source.put(None, _POLL_S):
                    break
            thread.join(limit_s)
        self._raise_if_broken()

    def _await(self, outcomes: Iterable[Outcome] = (), *, ordered: bool = False) -> None:
        """Submit these, and wait until they and all before them are in."""
        done = threading.Event()
        self.submit(outcomes, done=done.set, ordered=ordered)
        while not done.wait(_POLL_S):
            self._raise_if_broken()

    def _put(self, where: Inbox, what: object) -> None:
        self._raise_if_broken()
        while not where.put(what, _POLL_S):
            self._raise_if_broken()

    def _raise_if_broken(self) -> None:
        if self._error is not None:
            raise self._error

    # -- the two threads
    def _guard(self, loop: Callable[[], None]) -> None:
        try:
            loop()
        except BaseException as error:
            self._error = error
            self._wake.set()

    def _under_way(self) -> bool:
        """Whether a worker is at a job, or one is in line."""
        return any(not future.done() for stage in self._stages for future in list(stage.busy.values()))

    def _durable_loop(self) -> None:
        while True:
            batch = self._arrivals.take()
            reach("stage-taken")
            fixities = iter(self._settled([entry for entry in batch if isinstance(entry, _Arrived)]))
            for entry in batch:
                if isinstance(entry, _Arrived):
                    received = dataclasses.replace(entry.received, path=entry.final)
                    self._put(self._facts, InstanceStaged(received, next(fixities)))
                    reach("stage-handed-on")
                    if entry.durable is not None:
                        self._put(self._facts, functools.partial(entry.durable.set_result, None))
                else:
                    self._put(self._facts, entry)
                    if entry is None:
                        return

    def _settled(self, arrived: list[_Arrived]) -> list[Fixity]:
        """Make files durable. Raises LocalError, which whoever waits for one of them is told, too."""
        try:
            return self._settle([(entry.received.path, entry.final, entry.received.rolled) for entry in arrived])
        except LocalError as error:
            for entry in arrived:
                if entry.durable is not None:
                    entry.durable.set_exception(error)
            raise

    def _commit_loop(self) -> None:
        beat = 0.0
        while True:
            batch = self._facts.take(beat, self._under_way)
            facts: list[Outcome] = []
            for entry in batch:
                if isinstance(entry, list):
                    facts += entry
                elif entry is not None and not callable(entry):
                    facts.append(entry)
            if facts:
                effects = self._manifest.commit(facts)
                self._after_commit(effects)
                reach("commit-effects")
                self._on_commit(facts)
            for entry in batch:
                if callable(entry):
                    entry()
            self._wake.set()
            if None in batch:
                return
            beat = time.monotonic() + _BEAT_S

    # -- the scheduler
    def run(self, stages: list[Stage], *, next_due_s: Callable[[], float | None], grace_s: float = STOP_GRACE_S,
            cut: Callable[[], None] = lambda: None) -> None:  # fmt: skip
        """Work until no stage has anything ready, in flight or due later.

        Raises Interrupted after a stop, or the error of scope run that ended it.
        """
        pools: dict[str, Executor] = {stage.name: stage.executor or ThreadPoolExecutor(stage.workers, stage.name) for stage in stages}
        self._stages = stages
        try:
            while True:
                self._raise_if_broken()
                if self._ended_by is not None:
                    raise self._ended_by
                if self.stopping.is_set():
                    raise Interrupted("Stopped; everything that was finished is on record.")
                self._wake.clear()
                if not self._offer_all(stages, pools):
                    pauses = [stage.paused_until - time.monotonic() for stage in stages]
                    waits = [wait for wait in (*pauses, next_due_s()) if wait is not None and wait > 0]
                    if self._offer_all(stages, pools):  # what was committed or fell due since; nobody can start anything else
                        continue
                    if not waits:
                        _expect_open(stages)
                        return
                    self._wake.wait(min(max(min(waits), 0.01), 5.0))
                else:
                    self._wake.wait(_POLL_S)
        finally:
            self._end(stages, pools, grace_s, cut)

    def _offer_all(self, stages: list[Stage], pools: dict[str, Executor]) -> bool:
        """Hand out what is ready; whether anything was, or has been under way until now."""
        under_way = any(stage.busy for stage in stages)  # looked at first: what ends while stages are asked may have made more ready
        return sum(self._offer(stage, pools[stage.name]) for stage in stages) > 0 or under_way

    def _offer(self, stage: Stage, pool: Executor) -> int:
        if time.monotonic() < stage.paused_until or not stage.gate():
            stage.take_back()
            return 0
        free = stage.workers + stage.ahead - len(stage.busy)
        if free <= 0:
            return 0
        started = 0
        for key, job in stage.ready(set(stage.busy), free):
            if key in stage.busy or started >= free:
                continue
            future = pool.submit(collect, stage.work, job) if stage.executor else pool.submit(self._streamed, stage, job)
            stage.busy[key] = future
            future.add_done_callback(functools.partial(self._finished, stage, key))
            started += 1
        return started

    def _streamed(self, stage: Stage, job: Any) -> tuple[list[Outcome], PacsMigrateError | None]:
        """Like `collect`, but hands on what comes while more is coming, so that a long answer is never held whole, and nothing for long."""
        held: list[Outcome] = []
        until = time.monotonic() + _BEAT_S
        try:
            for outcome in stage.work(job):
                held.append(outcome)
                if len(held) >= CHUNK or time.monotonic() > until:
                    self.submit(held, ordered=stage.ordered)
                    held, until = [], time.monotonic() + _BEAT_S
        except PacsMigrateError as error:
            return held, error
        return held, None

    def _finished(self, stage: Stage, key: Hashable, future: Future[Any]) -> None:
        """Called in a worker's thread: hand on the outcomes; the key stays busy until they are committed."""
        outcomes: list[Outcome] = []
        try:
            outcomes, error = future.result()
            if error is None:
                self._contacted.add(stage.side)
                stage.went_well()
            else:
                self._pause_or_end(stage, error)
        except CancelledError:  # it was still in line
            pass
        except BaseException as broken:
            self._ended_by = self._ended_by or broken
        forget = Unhurried(stage.busy.pop, key, None)
        try:
            self.submit(outcomes, done=forget, ordered=stage.ordered)
        except BaseException:  # the commit thread broke, which `run` raises itself
            forget()

    def _pause_or_end(self, stage: Stage, error: PacsMigrateError) -> None:
        """A peer that was there and is gone is tried again with back-off, and a full disk may get room by what is on its way out;
        any other error of scope run ends the run. What is in line would only fail, too."""
        stage.take_back()
        now = time.monotonic()
        if isinstance(error, DiskFull) and any(each.busy or each.failing_since for each in self._stages if each.side != stage.side):
            stage.pause(error.wait_factor)
            log.warning("%s: %s Waiting for room.", stage.name, error)
            return
        since = stage.failing_since or now
        lasting = not error.retryable or isinstance(error, LocalError)  # this machine is no peer that comes back
        if lasting or stage.side not in self._contacted or now - since > self._unreachable_s:
            self._ended_by = self._ended_by or error
            return
        hint = "" if stage.failing_since or not error.hint else f" {error.hint}"  # once is enough
        stage.failing_since = since
        stage.pause(error.wait_factor)
        log.warning("%s: %s Trying again, for up to %g s.%s", stage.name, error, self._unreachable_s, hint)

    def _end(self, stages: list[Stage], pools: dict[str, Executor], grace_s: float, cut: Callable[[], None]) -> None:
        """Take back what was still in line, let what is under way finish for a while, then cut it; commit what was finished."""
        for stage in stages:
            stage.take_back()
        until = time.monotonic() + (grace_s if any(stage.busy for stage in stages) else 0)
        cutting = False
        while any(stage.busy for stage in stages) and all(thread.is_alive() for thread in self._threads):
            left = until - time.monotonic()
            if left <= 0:
                if cutting:
                    break
                cut()
                cutting, until = True, time.monotonic() + 5
            self._wake.clear()
            self._wake.wait(min(max(left, 0.05), _POLL_S))
        for stage in stages:
            if stage.executor is None:  # else whoever gave it may use it for more
                pools[stage.name].shutdown(wait=False, cancel_futures=True)


def _expect_open(stages: list[Stage]) -> None:
    """Raises DiskFull where a stage has work left and its gate stays shut although nothing is under way."""
    for stage in stages:
        if not stage.gate() and any(True for _ in stage.ready(set(), 1)):
            raise DiskFull(f"Staging is full: there is no room to {stage.name} what is left.")
