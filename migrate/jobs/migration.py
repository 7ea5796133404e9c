"""The job as a whole: opens everything, wires the stages to the manifest, sweeps, closes."""

from __future__ import annotations

import contextlib
import datetime
import functools
import hashlib
import json
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from migrate.config import Config, clear_text
from migrate.destinations import shared_destination
from migrate.errors import DestinationError, Interrupted, LocalError, PacsMigrateError, SourceError
from migrate.failpoints import reach
from migrate.host import give_back_memory, stop_signals
from migrate.jobs import anchors
from migrate.jobs.command import Command, at_the_end
from migrate.jobs.glance import glance
from migrate.manifest import Effects
from migrate.manifest.file import now_ms
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
from migrate.stages import asking, census, work
from migrate.stages.questions import first_windows
from migrate.stages.selection import Selection, selection
from migrate.stages.sweep import Sweep
from migrate.staging.area import Staging

_CLOSING_SWEEPS = 3
_ITEMS_A_JOB, _AT_ONCE = 64, 20
_REST_S = 0.25  # nobody waits for the last look at a study


@dataclass(frozen=True)
class Watch:
    """Sweep again `every_s` seconds after a round has ended. `after_round` is told by which error it ended, if by one, and
    returns the round's exit code."""

    every_s: float
    after_round: Callable[[PacsMigrateError | None], int]


class Migration(Command):
    """The job: sweeps, stages, and how a run ends. Takes what `Command` takes."""

    def __init__(self, config: Config, verb: str, *, create: bool = True) -> None:
        super().__init__(config, verb, create=create)
        self._begun_sweep = 0  # the sweep that this process began itself
        self._judged = 0  # the sweep that has nothing left to ask or to say

    # -- the whole of it
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
                pipeline.commit_now(glance(self))
                self._destination.prepare()
                with contextlib.suppress(DestinationError, LocalError):  # a warning that cannot be had keeps no run from its work
                    anchors.warn_of_others(self.config, self._destination, self.queue.connection)
                pipeline.note_contact("destination")
                reach("destination-prepared")
            with at_the_end(functools.partial(self._leave, pipeline, only_enumerate)):
                self._round(pipeline, only_enumerate, watch)
                while watch is not None:
                    give_back_memory()
                    if pipeline.stopping.wait(watch.every_s):
                        raise Interrupted("Stopped; everything that was finished is on record.")
                    pipeline.call(self._begin_round)
                    self._round(pipeline, only_enumerate, watch)
        self._staging.close()
        self._staging.clear_incoming()
        self._staging.tidy()
        reach("run-ended")

    def _leave(self, pipeline: Pipeline, only_enumerate: bool) -> None:
        pipeline.close()
        if not only_enumerate:
            with contextlib.suppress(PacsMigrateError):
                self._note_staging("staging left")

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
        with at_the_end(pipeline.drain), contextlib.closing(self._source):
            try:
                self._sweeps(pipeline, only_enumerate)
            except (SourceError, DestinationError) as error:
                side = "source" if isinstance(error, SourceError) else "destination"
                if watch is None or not error.retryable or not pipeline.contacted(side):
                    raise
                ended_by = error
        if watch is not None:
            pipeline.forgive()
            self.exit_code = watch.after_round(ended_by)
            why = f" ({ended_by.name}: {ended_by})" if ended_by else ""
            pipeline.commit_now([Noted("round ended", f"exit {self.exit_code}{why}; the next one in {watch.every_s / 60:g} minutes")])

    def _begin_round(self) -> None:
        """Each round of a watch is a run of its own on record."""
        self.manifest.end_run(self.exit_code)
        self.anchor()
        self.exit_code = 1
        self.manifest.begin_run(self.verb, self.config.operator, self.config.sha256)

    def _sweeps(self, pipeline: Pipeline, only_enumerate: bool) -> None:
        sweep = self.queue.last_sweep()
        rows = self.queue.windows(sweep) if sweep else []
        cut_off = any(row["state"] == WindowState.PLANNED for row in rows) or bool(self._judgement(sweep, rows))  # perhaps between two rounds of questions
        if not cut_off:
            sweep = self._new_sweep(pipeline, sweep)
        first = sweep
        self.manifest.own_sweep = first + cut_off
        self.manifest.asks_again = not only_enumerate
        until: tuple[str, str] | None = None
        begun = datetime.datetime.now()
        for _ in range(_CLOSING_SWEEPS + 1):
            stages = [self._enumerate_stage(sweep, selection(self.config.source, until))]
            stay = only_enumerate or (sweep != self._begun_sweep and self.queue.lists_patients(sweep))
            if not stay:
                stages += self._moving_stages(pipeline, sweep)
            self._work(pipeline, stages, stay)
            if only_enumerate:
                return
            if sweep > first and not self.queue.found_in(sweep):
                self._await_silence(pipeline)
                self._work(pipeline, stages, only_enumerate)
                reach("sweep-closed")
                pipeline.call(functools.partial(self.manifest.set_meta, "closed_sweep", str(sweep)))
                return
            sweep = self._new_sweep(pipeline, sweep)
            until = (f"{begun:%Y%m%d}", f"{begun:%H%M%S}")

    def _work(self, pipeline: Pipeline, stages: list[Stage], only_enumerate: bool) -> None:
        """Until no stage has anything left, and all that came until then is on record."""
        pipeline.run(stages, next_due_s=lambda: self._next_due_s(pipeline, only_enumerate), cut=self._source.cut)
        pipeline.drain()

    def _await_silence(self, pipeline: Pipeline) -> None:
        """Where a PACS answers before it sends, what nobody lists or counts may still be coming; for one that never falls silent
        that takes as long as an attempt may. Raises Interrupted."""
        until = time.monotonic() + self.config.source.attempt_s
        while (left_s := self._source.quiet_in_s()) > 0 and time.monotonic() < until:
            if pipeline.stopping.wait(min(left_s, 0.25)):
                raise Interrupted("Stopped; everything that was finished is on record.")
        pipeline.drain()

    def _new_sweep(self, pipeline: Pipeline, last: int) -> int:
        today = datetime.date.today()
        source = self.config.source
        open_ranges = self.queue.habits().get("open_range") not in ("no", "refused")
        planned = [WindowsPlanned(last + 1, first_windows(source.date_from, source.date_to, today, open_ranges=open_ranges))]
        if source.bounded:  # names studies without a date, which no range can show; and those with one, if ranges show nothing
            planned.append(WindowsPlanned(last + 1, (Window(None, None, "all"),), purpose="look"))
        pipeline.commit_now(planned)
        reach("sweep-planned")
        self._judged, self._begun_sweep = 0, last + 1
        return last + 1

    def _next_due_s(self, pipeline: Pipeline, only_enumerate: bool) -> float | None:
        due = self.queue.next_due_ms(windows_only=only_enumerate)
        if due is None:
            return None
        left_s = (due - now_ms()) / 1000
        if left_s > 2 * self.config.retry.max_wait_s:
            pipeline.call(self.manifest.shorten_waits)
            left_s = 0.01
        return max(left_s, 0.0)

    # -- stages
    def _enumerate_stage(self, sweep: int, select: Selection) -> Stage:
        def question(window_id: int, window: Window, attempts: int, looks: bool) -> asking.Question:
            return asking.Question(window_id, window, attempts, lambda study, window: select(study, window, looks))

        at_once = 1  # more and more, for the first answers may show that the others are not worth asking for

        def ready(busy: set[Hashable], limit: int) -> Iterator[tuple[Hashable, Any]]:
            nonlocal at_once
            if busy:
                return
            windows = self.queue.windows_to_ask(sweep, at_once)
            if any(window.axis == "date" for _, window, *_ in windows) and self.queue.ignores_date(sweep):
                yield "drop", ("judge", [WindowsDropped(sweep)])
                return
            if windows:
                at_once = min(2 * at_once, _AT_ONCE)
                yield "ask", ("ask", [question(*each) for each in windows], self.queue.lists_patients(sweep))
            if windows or self._judged == sweep:
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
            return asking.ask_each(self._source, sweep, job[1], begun=job[2])

        return Stage("enumerate", ready, do, 1)

    def _judgement(self, sweep: int, rows: list[Any]) -> list[Outcome]:
        """What the windows of a sweep call for; nothing where it has come to its end."""
        return census.judge(Sweep(sweep, rows, self.queue.habits(), self.queue.shown_only_by))

    def _moving_stages(self, pipeline: Pipeline, sweep: int) -> list[Stage]:
        config = self.config

        def is_known_whose() -> bool:
            """Whose a study is, where the PACS wants a PatientID with everything, only a whole sweep of this process has shown."""
            if self._judged == sweep:
                return True
            return not (self.queue.lists_patients(sweep) or self.queue.habits().get("insists_on_patient_id") == "yes")

        def to_list(due: Callable[[int], list[StudyRef]]) -> Callable[[set[Hashable], int], Iterator[tuple[Hashable, list[StudyRef]]]]:
            def ready(busy: set[Hashable], limit: int) -> Iterator[tuple[Hashable, list[StudyRef]]]:
                if not busy and (studies := due(_AT_ONCE)):
                    yield "listing", studies

            return ready

        def to_retrieve(busy: set[Hashable], limit: int) -> Iterator[tuple[Hashable, tuple[StudyRef, Wanted]]]:
            return ((ref, (ref, wanted)) for ref, wanted in self.queue.studies_to_retrieve(limit + len(busy), skip=busy))

        def has_room() -> bool:
            return not self._staging.above_high_water() and self._staging.has_room()

        def retrieve(job: tuple[StudyRef, Wanted]) -> Iterable[Outcome]:
            return work.retrieve(self._source, *job) if has_room() else ()  # there may be less than when it was put in line

        return [
            Stage("plan", to_list(self.queue.studies_to_plan), lambda refs: work.plan(self._source, refs), 1, gate=is_known_whose),
            Stage("confirm", to_list(self.queue.studies_to_confirm), lambda refs: work.confirm(self._source, refs), 1, rest_s=_REST_S, gate=is_known_whose),
            Stage(
                "retrieve", to_retrieve, retrieve, config.source.associations, 2 * config.source.associations, ordered=True,
                gate=lambda: is_known_whose() and has_room(),
            ),
            Stage("upload", self._batches(InstanceState.STAGED), work.upload, config.workers, config.workers, side="destination"),
            Stage("verify", self._batches(InstanceState.STORED), work.verify, config.workers, config.workers, side="destination"),
            Stage("copy of the manifest", self._copy_due, lambda _: self._copy_manifest(pipeline), 1, side="destination"),
        ]  # fmt: skip

    def _copy_due(self, busy: set[Hashable], limit: int) -> Iterator[tuple[Hashable, None]]:
        if not busy and time.monotonic() - self.copied_at >= self.config.proof.snapshot_hours * 3600:
            yield "copy", None

    def _copy_manifest(self, pipeline: Pipeline) -> Iterable[Outcome]:
        """A long run copies its manifest to the destination every day; it does not fail for that."""
        roots = KeptRoots(self.manifest, self.prefix)
        while not (roots.done or pipeline.stopping.is_set()):
            pipeline.call(roots.some)
        anchors.drop_or_warn(self.config, self._destination, root=True, snapshot=True)
        self.copied_at = time.monotonic()
        return ()

    def _batches(self, state: InstanceState) -> Callable[[set[Hashable], int], Iterator[tuple[Hashable, work.Batch]]]:
        def ready(busy: set[Hashable], limit: int) -> Iterator[tuple[Hashable, work.Batch]]:
            taken = {key[0] for key in busy if isinstance(key, tuple)}
            for series_id, items in (
                *self.queue.items(state, skip_series=taken, limit=limit),
                *self.queue.copies(state, skip_series=taken),
            ):
                refused, last = self.queue.refused_before(items[0].ref.study), self.queue.nearly_done(state)
                for first in range(0, len(items), _ITEMS_A_JOB):
                    part = tuple((item, self._path(item)) for item in items[first : first + _ITEMS_A_JOB])
                    yield (series_id, first), work.Batch(self.config.destination, part, refused_before=refused, last=last)

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
