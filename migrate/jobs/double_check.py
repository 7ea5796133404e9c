"""Double check: a sample of the proven images is retrieved from the PACS once more and compared with what came first.

What comes is removed again, but for another content of an image: that is kept beside the first, as `run` would have kept it, and a person
has to decide. The destination is only read, to name what differs; the next `run` puts what is kept.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from migrate.counted import counted
from migrate.destinations import shared_destination
from migrate.errors import DestinationError, PacsMigrateError
from migrate.evidence.sampling import Stratum
from migrate.host import stop_signals
from migrate.jobs.migration import Migration
from migrate.jobs.verification import Choice, Looked, drawn
from migrate.manifest import Effects
from migrate.manifest.population import Population
from migrate.model import InstanceRef, Item, Noted, Outcome, Received, StudyRef, Wanted
from migrate.pipeline import Pipeline
from migrate.scheduling import Stage
from migrate.sources import open_source
from migrate.sources.probe.sample import differing_tags
from migrate.stages.checking import Handout
from migrate.staging.area import Staging, hash_file

COMPARED = "source compared"
"""The kind of the events that hold results."""
ALARM = "other content at source"
CHANGED = "changed at source"
_MOST_NAMED = 50
_IDENTIFICATION = {"0008", "0010", "0012", "0020", "0032", "0038"}
"""Groups whose elements say whose and which an object is, not what it shows (PS3.6 6)."""


class Found(Enum):
    """What an image that was retrieved again turned out to be."""

    SAME = "same"
    HEADER = "header"  # other elements, the same bytes from PixelData on
    TRANSCODED = "transcoded"  # another transfer syntax: the bytes of the pixels cannot be compared
    CONTENT = "content"  # other pixel data; of an object that has none, anything beyond its identification
    NOT_SENT = "not_sent"


@dataclass(frozen=True, slots=True)
class Original:
    """An image as it came first."""

    item: Item
    stratum: Stratum
    transfer_syntax: str
    pixel_crc64: int | None


@dataclass
class Comparison(Looked):
    """What came of it, so far. `tags`: how many images differ in which element, as (gggg,eeee); never a value."""

    found: Counter[Found] = field(default_factory=Counter)
    tags: Counter[str] = field(default_factory=Counter)
    syntaxes: Counter[str] = field(default_factory=Counter)
    content: list[str] = field(default_factory=list)
    not_sent: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not (self.found[Found.CONTENT] or self.found[Found.NOT_SENT])

    def document(self) -> dict[str, Any]:
        """For `double-check --json`: the numbers, and SOP Instance UIDs of what is an alarm or did not come."""
        return self.numbers() | {"other_content": sorted(self.content), "missing": sorted(self.not_sent)}

    def numbers(self) -> dict[str, Any]:
        """What is on record; it names no image."""
        return {
            "population": self.population, "sample": self.sample, "seed": self.choice.seed, "ended": self.ended,
            **{kind.value: self.found[kind] for kind in Found}, "tags": dict(self.tags.most_common(_MOST_NAMED)),
            "transfer_syntaxes": dict(self.syntaxes.most_common(_MOST_NAMED)), "statement": self.statement(),
        }  # fmt: skip

    def statement(self) -> str:
        """What may be concluded of this PACS; nothing of a sample that was cut short."""
        came = self.found.total() - self.found[Found.NOT_SENT]
        if not self.ended:
            return f"Cut short after {self.found.total():,} of {counted(self.sample, 'image')}."
        if not self.found.total():
            return "There is nothing to compare."
        said = [f"{came - self.found[Found.SAME]:,} of {counted(came, 'image')} came with other bytes the second time"]
        for kind, words in (
            (Found.HEADER, "with other headers and the same pixels"), (Found.TRANSCODED, "in another transfer syntax"),
            (Found.CONTENT, "with OTHER PIXELS OR CONTENT"),
        ):  # fmt: skip
            if self.found[kind]:
                said.append(f"{self.found[kind]:,} {words}")
        text = ", ".join(said)
        if came and not self.found[Found.NOT_SENT] and self.sample < self.population:
            text += f": with 95 % confidence this PACS changes fewer than {self.limit(came - self.found[Found.SAME])} of its images"
        gone = f" {self.found[Found.NOT_SENT]:,} did not come again." if self.found[Found.NOT_SENT] else ""
        return f"{text}.{gone}"


class _Retrieval:
    """What comes from the PACS, by image, and the jobs that ask for it, a study each."""

    def __init__(self, migration: Migration, population: Population, comparison: Comparison, staging: Staging, pipeline: Pipeline) -> None:
        self._migration, self._population, self._comparison, self._pipeline = migration, population, comparison, pipeline
        self._lock = threading.Lock()
        self._awaited: dict[InstanceRef, list[Received]] = {}
        self.source = open_source(migration.config, staging, self._received, migration.queue.habits(), migration.trail)
        self.jobs = Handout(self._studies())

    def _studies(self) -> Iterator[list[Original]]:
        comparison = self._comparison
        series = drawn(self._population, comparison.strata, comparison.wanted, comparison.choice.seed, self._pipeline.stopping.is_set)
        for _, parts in itertools.groupby(series, lambda part: part[1][0].ref.study):
            originals = [Original(item, stratum, *self._population.origin(item)) for stratum, items in parts for item in items]
            with self._lock:
                self._awaited |= {original.item.ref: [] for original in originals}
            yield originals

    def _received(self, received: Received) -> None:
        """From the receiver's threads: keep what is awaited; a PACS that sends more than it was asked for is nothing new."""
        with self._lock:
            if received.ref in self._awaited and received.ref is not None:
                self._awaited[received.ref].append(received)
                return
        received.path.unlink(missing_ok=True)

    def work(self, job: tuple[Hashable, list[Original]]) -> list[Outcome]:
        """In a worker's thread: retrieve a study's images and compare them."""
        key, originals = job
        wanted: dict[str, tuple[str, ...]] = {}
        for original in originals:
            ref = original.item.ref
            wanted[ref.series] = (*wanted.get(ref.series, ()), ref.sop)
        self.source.retrieve(StudyRef(originals[0].item.ref.study), Wanted(False, wanted, frozenset(wanted)))
        facts: list[Outcome] = []
        for original in originals:
            with self._lock:
                came = self._awaited.pop(original.item.ref)
            try:
                facts += self._compare(original, came)
            finally:
                for received in came:  # what is kept is no longer among it
                    received.path.unlink(missing_ok=True)
        self.jobs.done(key)
        return facts

    def _compare(self, original: Original, came: list[Received]) -> Iterator[Outcome]:
        """Count what came of one image, and tell what is worth an event of its own."""
        comparison, ref = self._comparison, original.item.ref
        found = [(*self._judged(original, received), received) for received in came]
        for _, _, other in (each for each in found if each[0] is Found.CONTENT):
            came.remove(other)
            self._pipeline.deliver(other)  # on record before the alarm is
        kind, tags, received = max(found, key=lambda each: list(Found).index(each[0]), default=(Found.NOT_SENT, [], None))  # the worst
        with self._lock:
            comparison.found[kind] += 1
            comparison.tags.update(tags)
            if kind is Found.NOT_SENT:
                comparison.not_sent.append(ref.sop)
            if received is not None and kind is Found.TRANSCODED:
                comparison.syntaxes[f"{original.transfer_syntax} to {received.transfer_syntax}"] += 1
            if kind is Found.CONTENT:
                comparison.content.append(ref.sop)
        if received is not None and kind is not Found.SAME:
            where = ", ".join(tags[:_MOST_NAMED]) or "no element of the header"
            detail = f"{kind.value}: data set {received.rolled.dataset_sha256.hex()} came; differs in {where}"
            yield Noted(ALARM if kind is Found.CONTENT else CHANGED, detail, ref.study, ref.series, ref.sop)

    def _judged(self, original: Original, received: Received) -> tuple[Found, list[str]]:
        if received.rolled.dataset_sha256 == original.item.fixity.dataset_sha256:
            return Found.SAME, []
        tags = self._tags(original.item, received.path)
        return judge(original, received, tags), tags

    def _tags(self, item: Item, file: Path) -> list[str]:
        """In which elements a file differs from the object that was stored first; none where that cannot be had any more."""
        stored = file.with_suffix(".stored")
        try:
            shared_destination(self._migration.config.destination).fetch(item, stored)
            sound = hash_file(stored) == (item.fixity.size_bytes, item.fixity.file_sha256)
            return differing_tags(stored, file) if sound else []
        except DestinationError:
            return []
        finally:
            stored.unlink(missing_ok=True)


def judge(original: Original, received: Received, tags: list[str]) -> Found:
    """What an image with another data set is, by the hash of its pixels, and where it has none by the elements that differ."""
    if received.transfer_syntax != original.transfer_syntax:
        return Found.TRANSCODED
    if received.pixel_crc64 is None and original.pixel_crc64 is None:
        return Found.HEADER if tags and all(tag[1:5] in _IDENTIFICATION for tag in tags) else Found.CONTENT
    return Found.HEADER if received.pixel_crc64 == original.pixel_crc64 else Found.CONTENT


def double_check(migration: Migration, choice: Choice, progress: Callable[[int, int], None] = lambda done, total: None) -> Comparison:
    """Retrieve a sample again and compare it; the result is put on record, also if this is cut short.

    A study of which another content came is open again. Raises Interrupted, SourceUnreachable, SourceRefused, PortInUse, LocalError.
    """
    config = migration.config
    population = Population(migration.queue.connection, prefix=migration.prefix, copies=False)
    strata = population.strata()
    comparison = Comparison(choice, strata, choice.wanted(strata))
    staging = Staging(config.staging)

    def final_path(received: Received) -> Path:
        assert received.ref is not None  # only what was asked for is kept
        return staging.path_of(received.ref, received.rolled.dataset_sha256)

    def after_commit(effects: Effects) -> None:
        for path, size in effects.drop:  # this content lies at the destination already
            staging.release(path, size)

    pipeline = Pipeline(
        migration.manifest, settle=staging.settle, final_path=final_path, after_commit=after_commit,
        unreachable_s=config.retry.unreachable_s, on_commit=lambda _: progress(comparison.found.total(), comparison.sample),
    )  # fmt: skip
    retrieval = _Retrieval(migration, population, comparison, staging, pipeline)
    stage = Stage("double-check", retrieval.jobs.ready, retrieval.work, config.source.associations, ordered=True)
    try:
        retrieval.source.open()
        pipeline.start()
        with stop_signals(pipeline.stop):
            try:
                pipeline.run([stage], next_due_s=lambda: None, cut=retrieval.source.cut)
                pipeline.drain()
                comparison.ended = True
            finally:
                retrieval.source.close()
                with contextlib.suppress(PacsMigrateError):
                    pipeline.drain()
                    pipeline.commit_now([Noted(COMPARED, json.dumps(comparison.numbers())), Noted("staging left", json.dumps(staging.holding()))])
                pipeline.close()
    finally:
        staging.close()
        staging.clear_incoming()
        staging.tidy()
    return comparison
