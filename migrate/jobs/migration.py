"""The job as a whole: opens everything, wires the stages to the manifest, sweeps, closes."""

from __future__ import annotations

import contextlib
import datetime
import functools
import hashlib
import json
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from migrate.audit_trail.delivery import AuditTrail, open_trail
from migrate.config import Config, clear_text
from migrate.destinations import close_shared, open_destination, shared_destination
from migrate.errors import DestinationError, Interrupted, LocalError, PacsMigrateError, SourceError, UsageError
from migrate.failpoints import reach
from migrate.host import stop_signals
from migrate.jobs import anchors, reconcile
from migrate.lists.studies import StudyList
from migrate.manifest import Effects, Lock, Manifest, Queue
from migrate.manifest.file import now_ms
from migrate.manifest.listed import count_listed, list_window, standings
from migrate.manifest.roots import KeptRoots
from migrate.model import (
    InstanceState,
    Noted,
    Outcome,
    Received,
    StudyRef,
    Wanted,
    Window,
    WindowsDropped,
    WindowsPlanned,
    WindowState,
)
from migrate.pipeline import Pipeline
from migrate.scheduling import Stage
from migrate.sources import open_source
from migrate.stages import census, work
from migrate.stages.questions import first_windows
from migrate.stages.selection import selection
from migrate.stages.sweep import Sweep
from migrate.staging.area import Staging

_CLOSING_SWEEPS = 3
_MOVING = ("run", "demo", "verify", "double-check", "restore-manifest", "rebuild")
_ANCHORED = (*_MOVING, "accept", "revoke", "exclude")
_ITEMS_A_JOB = 64


@dataclass(frozen=True)
class Watch:
    """Sweep again `every_s` seconds after a round has ended. `after_round` is told by which error it ended, if by one, and
    returns the round's exit code."""

    every_s: float
    after_round: Callable[[PacsMigrateError | None], int]


class Migration:
    """A command that writes: holds the lock, the manifest and what the stages need. Use as a context manager.

    Raises ManifestLocked, ManifestTooNew, IdentityMismatch, DiskFailing.
    """

    def __init__(self, config: Config, verb: str, *, create: bool = True) -> None:
        self.config, self.verb, self._create = config, verb, create
        self.prefix = config.destination.prefix
        self._stack = contextlib.ExitStack()
        self.exit_code = 1
        self.progress: Callable[[list[Outcome]], None] = lambda _: None
        self.trail: AuditTrail | None = None
        self._begun_sweep = 0  # the sweep that this process began itself
        self._judged = 0  # the sweep that has nothing left to ask or to say
        self._copied_at = time.monotonic()

    def __enter__(self) -> Migration:
        config = self.config
        key = config.proof.signing_key
        if key is not None and self.verb in _ANCHORED and not key.is_file():  # whoever only reads does not need it
            raise UsageError(f"There is no key {key}.", hint="Set signing_key under [proof] to an SSH key's file, or leave it out.")
        with contextlib.ExitStack() as stack:
            stack.enter_context(Lock(config.manifest))
            anchors.sweep(config.manifest)
            stack.callback(close_shared)
            destination = open_destination(config.destination)
            identity = {"source": config.source_identity, "destination": destination.identity, "migration": config.name}
            self.manifest = Manifest(config.manifest, identity=identity, policy=config.retry, create=self._create)
            stack.callback(self._close_manifest)
            self.manifest.begin_run(self.verb, config.operator, config.sha256)
            reach("run-begun")
            self.trail = open_trail(config)
            if self.trail is not None:
                self.trail.application(started=True)
            self.queue = Queue(config.manifest, prefix=self.prefix)
            stack.callback(self.queue.close)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, PacsMigrateError):
            self.exit_code = error.exit_code
        self._stack.close()

    def _close_manifest(self) -> None:
        with contextlib.suppress(PacsMigrateError):
            if self.trail is not None and (lost := self.trail.end(self.exit_code)):
                self.manifest.commit([Noted("audit messages lost", f"{lost} never reached the syslog server")])
        with contextlib.suppress(Exception):
            self.manifest.end_run(self.exit_code)
            self._anchor()
        self.manifest.close()

    def _anchor(self) -> None:
        """The end of a run that moved or decided something goes to the destination, where nobody who changes the manifest can take it back."""
        if self.verb not in _ANCHORED or not self.manifest.run_id or self.exit_code in (DestinationError.exit_code, LocalError.exit_code):
            return
        destination = shared_destination(self.config.destination)
        if self.exit_code == Interrupted.exit_code:  # whoever stops a run does not want to wait for a copy
            anchors.drop_or_warn(self.config, destination, root=False, snapshot=False)
        elif self.verb in _MOVING:
            moved = self.manifest.has_moved()
            roots = KeptRoots(self.manifest, self.prefix)
            while moved and not roots.done:
                roots.some()
            anchors.drop_or_warn(self.config, destination, root=moved, snapshot=True)
        else:
            anchors.drop_or_warn(self.config, destination, root=False, snapshot=None)
        self._copied_at = time.monotonic()

    # -- the verbs that move something
    def run(self, *, only_enumerate: bool = False, watch: Watch | None = None) -> None:
        """Sweep, and unless only that is asked for, bring every study to its end; then the closing sweeps. With `watch`, again and again.

        Raises Interrupted, or the error of scope run that ended it; with `watch` always one of them.
        """
        self._staging = Staging(self.config.staging, max_bytes=self.config.staging_max_bytes)
        self._staging.sweep({self._path(item) for item in self.queue.in_staging()})
        reach("staging-swept")
        if not only_enumerate:
            self._note_staging("staging opened")
        self._destination = shared_destination(self.config.destination)
        pipeline = Pipeline(
            self.manifest,
            settle=self._staging.settle,
            final_path=self._final_path,
            after_commit=self._after_commit,
            unreachable_s=self.config.retry.unreachable_s,
            on_commit=lambda outcomes: self.progress(outcomes),
        )
        pipeline.start()
        with stop_signals(pipeline.stop):
            self._note_links(pipeline)
            if not only_enumerate:
                self._destination.prepare()
                pipeline.note_contact("destination")
                reach("destination-prepared")
            try:
                self._round(pipeline, only_enumerate, watch)
                while watch is not None:
                    if pipeline.stopping.wait(watch.every_s):
                        raise Interrupted("Stopped; everything that was finished is on record.")
                    pipeline.call(self._begin_round)
                    self._round(pipeline, only_enumerate, watch)
            finally:
                with contextlib.suppress(PacsMigrateError):
                    pipeline.close()
                    if not only_enumerate:
                        self._note_staging("staging left")
        self._staging.close()
        self._staging.clear_incoming()
        self._staging.tidy()
        reach("run-ended")

    def _note_staging(self, kind: str) -> None:
        """What lies in this machine's staging folder goes on record: the report tells which machine held what until when."""
        self.manifest.commit([Noted(kind, json.dumps(self._staging.holding()))])

    def _note_links(self, pipeline: Pipeline) -> None:
        """Which links to the PACS are encrypted goes on record when it changes: the report has to tell it."""
        bare = clear_text(self.config.source, self.config.receiver)
        words = ", ".join(f"{what} {'in clear text' if what in bare else 'over TLS'}" for what in ("questions", "images"))
        row = self.queue.connection.execute("SELECT detail FROM event WHERE kind = 'links' ORDER BY id DESC LIMIT 1").fetchone()
        if row is None or row[0] != words:
            pipeline.commit_now([Noted("links", words)])

    def _round(self, pipeline: Pipeline, only_enumerate: bool, watch: Watch | None) -> None:
        """Sweeps until nothing new is found. While watching, a PACS or store that was there and is gone only ends the round."""
        durable = self.config.receiver.ack == "durable"
        self._source = open_source(
            self.config, self._staging, lambda received: pipeline.deliver(received, durable=durable), self.queue.habits(), self.trail
        )
        ended_by: PacsMigrateError | None = None
        if not only_enumerate:
            self._source.open()
        try:
            self._sweeps(pipeline, only_enumerate)
        except (SourceError, DestinationError) as error:
            side = "source" if isinstance(error, SourceError) else "destination"
            if watch is None or not error.retryable or not pipeline.contacted(side):
                raise
            ended_by = error
        finally:
            self._source.close()
            with contextlib.suppress(PacsMigrateError):
                pipeline.drain()
        if watch is not None:
            pipeline.forgive()
            self.exit_code = watch.after_round(ended_by)
            why = f" ({ended_by.name}: {ended_by})" if ended_by else ""
            pipeline.commit_now([Noted("round ended", f"exit {self.exit_code}{why}; the next one in {watch.every_s / 60:g} minutes")])

    def _begin_round(self) -> None:
        """Each round of a watch is a run of its own on record."""
        self.manifest.end_run(self.exit_code)
        self._anchor()
        self.exit_code = 1
        self.manifest.begin_run(self.verb, self.config.operator, self.config.sha256)
        self.manifest.first_sweep = None

    def _sweeps(self, pipeline: Pipeline, only_enumerate: bool) -> None:
        sweep = self.queue.last_sweep()
        rows = self.queue.windows(sweep) if sweep else []
        if not any(row["state"] == WindowState.PLANNED for row in rows) and not self._judgement(sweep, rows):
            sweep = self._new_sweep(pipeline, sweep)  # else the last one was cut off, be it between two rounds of questions
        self.manifest.first_sweep = sweep
        self.manifest.asks_again = not only_enumerate
        until: tuple[str, str] | None = None
        begun = datetime.datetime.now()
        for _ in range(_CLOSING_SWEEPS + 1):
            stages = [self._enumerate_stage(sweep, selection(self.config.source, until))]
            stay = only_enumerate or (sweep != self._begun_sweep and self.queue.lists_patients(sweep))
            if not stay:
                stages += self._moving_stages(pipeline, sweep)
            pipeline.run(stages, next_due_s=lambda: self._next_due_s(stay), cut=self._source.cut)  # noqa: B023
            pipeline.drain()
            if only_enumerate:
                return
            found = self.queue.found_in(sweep)
            closing = sweep > (self.manifest.first_sweep or 0)
            if closing and not found:
                reach("sweep-closed")
                pipeline.call(functools.partial(self.manifest.set_meta, "closed_sweep", str(sweep)))
                return
            sweep = self._new_sweep(pipeline, sweep)
            until = (f"{begun:%Y%m%d}", f"{begun:%H%M%S}")

    def _new_sweep(self, pipeline: Pipeline, last: int) -> int:
        today = datetime.date.today()
        source = self.config.source
        open_ranges = self.queue.habits().get("open_range") not in ("no", "refused")
        planned = [WindowsPlanned(last + 1, first_windows(source.date_from, source.date_to, today, open_ranges=open_ranges))]
        if source.bounded and self.manifest.first_sweep is None:  # names studies without a date, which no range can show
            planned.append(WindowsPlanned(last + 1, (Window(None, None, "all"),), purpose="look"))
        pipeline.commit_now(planned)
        reach("sweep-planned")
        self._judged, self._begun_sweep = 0, last + 1
        return last + 1

    def _next_due_s(self, only_enumerate: bool) -> float | None:
        due = self.queue.next_due_ms(windows_only=only_enumerate)
        return None if due is None else max((due - now_ms()) / 1000, 0.0)

    # -- stages
    def _enumerate_stage(self, sweep: int, select: census.Select) -> Stage:
        def ready(busy: set[Hashable], limit: int) -> Iterator[tuple[Hashable, Any]]:
            windows = self.queue.windows_to_ask(sweep, limit + len(busy))
            if any(window.axis == "date" for _, window, _ in windows) and not busy and self.queue.ignores_date(sweep):
                yield "drop", ("judge", [WindowsDropped(sweep)])
                return
            begun = self.queue.lists_patients(sweep)
            for window_id, window, attempts in windows:
                yield window_id, ("ask", window_id, window, attempts, begun)
            if windows or busy or self._judged == sweep:
                return
            rows = self.queue.windows(sweep)
            if any(row["state"] == WindowState.PLANNED for row in rows):
                return  # put off
            if judged := self._judgement(sweep, rows):
                yield "judge", ("judge", judged)
            else:
                self._judged = sweep

        def do(job: Any) -> Iterable[Outcome]:
            if job[0] == "judge":
                return job[1]  # type: ignore[no-any-return]
            _, window_id, window, attempts, begun = job
            return census.ask(self._source, sweep, window_id, window, attempts, select, begun=begun)

        return Stage("enumerate", ready, do, 1)

    def _judgement(self, sweep: int, rows: list[Any]) -> list[Outcome]:
        """What the windows of a sweep call for; nothing where it has come to its end."""
        return census.judge(Sweep(sweep, rows, self.queue.habits(), self.queue.shown_only_by))

    def _moving_stages(self, pipeline: Pipeline, sweep: int) -> list[Stage]:
        config = self.config

        def is_known_whose() -> bool:
            """Whose a study is, where the PACS wants a PatientID with everything, only a whole sweep of this process has shown."""
            by_patient = self.queue.lists_patients(sweep) or self.queue.habits().get("insists_on_patient_id") == "yes"
            return self._judged == sweep or not by_patient

        def to_plan(busy: set[Hashable], limit: int) -> Iterator[tuple[Hashable, StudyRef]]:
            return ((ref, ref) for ref in self.queue.studies_to_plan(limit + len(busy)))

        def to_confirm(busy: set[Hashable], limit: int) -> Iterator[tuple[Hashable, StudyRef]]:
            return ((ref, ref) for ref in self.queue.studies_to_confirm(limit + len(busy)))

        def to_retrieve(busy: set[Hashable], limit: int) -> Iterator[tuple[Hashable, tuple[StudyRef, Wanted]]]:
            return ((ref, (ref, wanted)) for ref, wanted in self.queue.studies_to_retrieve(limit + len(busy)))

        return [
            Stage("plan", to_plan, lambda ref: work.plan(self._source, ref), 1, gate=is_known_whose),
            Stage("confirm", to_confirm, lambda ref: work.confirm(self._source, ref), 1, gate=is_known_whose),
            Stage(
                "retrieve", to_retrieve, lambda job: work.retrieve(self._source, *job), config.source.associations, ordered=True,
                gate=lambda: is_known_whose() and not self._staging.above_high_water() and self._staging.has_room(),
            ),
            Stage("upload", self._batches(InstanceState.STAGED), work.upload, config.workers, side="destination"),
            Stage("verify", self._batches(InstanceState.STORED), work.verify, config.workers, side="destination"),
            Stage("copy of the manifest", self._copy_due, lambda _: self._copy_manifest(pipeline), 1, side="destination"),
        ]  # fmt: skip

    def _copy_due(self, busy: set[Hashable], limit: int) -> Iterator[tuple[Hashable, None]]:
        if not busy and time.monotonic() - self._copied_at >= self.config.proof.snapshot_hours * 3600:
            yield "copy", None

    def _copy_manifest(self, pipeline: Pipeline) -> Iterable[Outcome]:
        """A long run copies its manifest to the destination every day; it does not fail for that."""
        roots = KeptRoots(self.manifest, self.prefix)
        while not (roots.done or pipeline.stopping.is_set()):
            pipeline.call(roots.some)
        anchors.drop_or_warn(self.config, self._destination, root=True, snapshot=True)
        self._copied_at = time.monotonic()
        return ()

    def _batches(self, state: InstanceState) -> Callable[[set[Hashable], int], Iterator[tuple[Hashable, work.Batch]]]:
        def ready(busy: set[Hashable], limit: int) -> Iterator[tuple[Hashable, work.Batch]]:
            taken = {key[0] for key in busy if isinstance(key, tuple)}
            for series_id, items in (
                *self.queue.items(state, skip_series=taken, limit=limit),
                *self.queue.copies(state, skip_series=taken),
            ):
                refused = self.queue.refused_before(items[0].ref.study)
                for first in range(0, len(items), _ITEMS_A_JOB):
                    part = tuple((item, self._path(item)) for item in items[first : first + _ITEMS_A_JOB])
                    yield (series_id, first), work.Batch(self.config.destination, part, refused_before=refused)

        return ready

    # -- staging and manifest meet here
    def _path(self, item: Any) -> Path:
        return Staging.path_below(self.config.staging, item.ref, item.fixity.dataset_sha256)

    def _final_path(self, received: Received) -> Path:
        if received.ref is None:
            name = hashlib.sha256("/".join(received.claimed).encode("utf-8", "replace")).hexdigest()[:16]
            return self._staging.quarantine / f"{name}-{received.rolled.dataset_sha256.hex()[:24]}.dcm"
        return self._staging.path_of(received.ref, received.rolled.dataset_sha256)

    def _after_commit(self, effects: Effects) -> None:
        for item in effects.release:
            self._staging.release(self._path(item), item.fixity.size_bytes)
        for path, size in effects.drop:
            self._staging.release(path, size)

    # -- lists
    def add_listed(self, listed: StudyList) -> reconcile.Addition:
        """Ask the PACS for what a list names and add what it shows; nothing is ever taken off, and repeating it is resuming it.

        Raises Interrupted, SourceUnreachable, SourceRefused; what was found until then is on record.
        """
        select = selection(self.config.source)
        window_id = list_window(self.manifest)
        connection = self.manifest.connection
        addition = reconcile.Addition(listed, reconcile.invalid(listed))
        stop = threading.Event()
        with stop_signals(stop.set):
            for answers in reconcile.ask(self.config, listed, connection):
                if stop.is_set():
                    raise Interrupted("Stopped; what was found is on record.")
                shown = [study for answer in answers for study in answer.studies]
                uids = [study.study.study for study in shown]
                before = standings(connection, uids)
                chosen = [select(study, Window(None, None, "list")) for study in shown]
                found: list[Outcome] = [replace(study, window_id=window_id) for study in chosen if study is not None]
                self.manifest.commit(found)
                self.progress(found)
                addition.lines += reconcile.added(listed, answers, before, standings(connection, uids))
        count_listed(self.manifest, window_id)
        self.manifest.log("list added", "{found} of {values} values found, {added} studies added".format_map(addition.document()))
        return addition
