"""Verify again: what was proven once is asked for once more, all of it, a slice or a sample; the result goes on record."""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from fractions import Fraction
from pathlib import Path
from typing import Any

from migrate.counted import counted
from migrate.destinations import shared_destination
from migrate.errors import Interrupted, PacsMigrateError
from migrate.evidence import sampling
from migrate.evidence.sampling import Draw, Slice, Stratum
from migrate.host import stop_signals
from migrate.jobs.migration import Migration
from migrate.manifest.population import Population
from migrate.model import DestinationLost, InstanceVerified, Item, Noted, Outcome, Proof
from migrate.pipeline import Pipeline
from migrate.scheduling import Stage
from migrate.stages import checking

VERIFIED = "destination verified"
"""The kind of the events that hold results."""
_ITEMS_A_JOB = 16


class Level(Enum):
    """How closely the destination is looked at. Each proves what the one before proves, and more."""

    LISTED = "listed"
    ATTESTED = "attested"
    READ_BACK = "read-back"


@dataclass(frozen=True, slots=True)
class Choice:
    """What to look at, and how closely: everything, a slice of it, or a sample (a share of it, or a size)."""

    level: Level = Level.ATTESTED
    seed: int = 0
    share: Fraction | None = None
    size: int | None = None
    part: Slice | None = None

    @property
    def is_sample(self) -> bool:
        return self.share is not None or self.size is not None

    def wanted(self, strata: dict[Stratum, int]) -> dict[Stratum, int]:
        """How many objects to take of each stratum."""
        population = sum(strata.values())
        share = Fraction(1) if self.share is None else self.share
        if self.size is not None and population:
            share = min(Fraction(self.size, population), Fraction(1))
        return sampling.allocate(strata, share)


@dataclass
class Looked:
    """What was to be looked at again: so many (`wanted`) of what there is (`strata`); `ended`: and not cut short."""

    choice: Choice
    strata: dict[Stratum, int]
    wanted: dict[Stratum, int]
    ended: bool = False

    @property
    def population(self) -> int:
        return sum(self.strata.values())

    @property
    def sample(self) -> int:
        return sum(self.wanted.values())

    def limit(self, bad: int) -> str:
        """Of fewer than how many, in per cent, what was found in `bad` of the sample is true."""
        if not bad:
            return sampling.percent(min((sampling.most_unseen(self.strata, self.wanted) + 1) / self.population, 1.0))
        return sampling.percent(sampling.upper_limit(bad, max(sampling.effective(self.strata, self.wanted), bad)))


@dataclass
class Result(Looked):
    """What came of it, so far. `open`: what was lost before, and is not proven again."""

    open: list[str] = field(default_factory=list)
    checked: Counter[Stratum] = field(default_factory=Counter)
    bad: Counter[Stratum] = field(default_factory=Counter)
    proofs: Counter[Proof] = field(default_factory=Counter)
    missing: list[str] = field(default_factory=list)
    differs: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not (self.missing or self.differs or self.unchecked or self.open)

    def document(self) -> dict[str, Any]:
        """For `verify --json`: lists of object keys, and the numbers."""
        return {"checked": self.checked.total(), "missing": self.missing, "differs": self.differs, "unchecked": self.unchecked, "open": self.open} | self.numbers()

    def numbers(self) -> dict[str, Any]:
        """What needs no key: this is on record, and may be published."""
        choice = self.choice
        return {
            "level": choice.level.value, "population": self.population, "sample": self.sample if choice.is_sample else None,
            "seed": choice.seed if choice.is_sample else None, "slice": str(choice.part) if choice.part else None, "ended": self.ended,
            "proof": {proof.name.lower(): count for proof, count in sorted(self.proofs.items())}, "statement": self.statement(),
        }  # fmt: skip

    def event(self) -> dict[str, Any]:
        """The detail of its event. `strata`: year, modality, how many there are, how many were checked, how many of them are bad."""
        counts = {"checked": self.checked.total(), "missing": len(self.missing), "differs": len(self.differs), "unchecked": len(self.unchecked), "open": len(self.open)}
        strata = [[*stratum, count, self.checked[stratum], self.bad[stratum]] for stratum, count in self.strata.items()]
        return counts | self.numbers() | {"strata": strata}

    def statement(self) -> str:
        """What may be concluded, in a sentence or two; nothing of a sample that was cut short."""
        before = f" {counted(len(self.open), 'object was', 'objects were')} missing or different before, and not proven again since." if self.open else ""
        return self._concluded() + before

    def _concluded(self) -> str:
        checked = self.checked.total()
        deep = self.choice.level is Level.READ_BACK or set(self.proofs) == {Proof.READ_BACK}  # a folder attests nothing: it is read
        word = "re-read" if deep else self.choice.level.value
        lost = len(self.missing) + len(self.differs)
        of = f" of slice {self.choice.part}" if self.choice.part else ""
        left = f" {len(self.unchecked):,} could not be checked: nothing is known of them." if self.unchecked else ""
        if not self.ended:
            return f"Cut short after {checked:,} of {counted(self.sample, 'object')}{of}: {lost:,} missing or different.{left}"
        if not checked and not self.unchecked:
            return f"There is nothing{of} to check."
        if not self.choice.is_sample or self.sample == self.population:
            every = "All " if self.population > 1 else ""
            return f"{every}{counted(self.population, 'object')}{of}, {word}: {len(self.missing):,} missing, {len(self.differs):,} different.{left}"
        limit = self.limit(lost + len(self.unchecked))
        said = f"{lost:,} of {checked:,} {word} objects are missing or differ" if lost else f"0 of {checked:,} {word} objects differ"
        caution = " (those not checked counted as different)" if self.unchecked else ""
        return f"{said}: with 95 % confidence fewer than {limit} do{caution}.{left}"


class _Walk:
    """What is drawn, as jobs, and what came of them."""

    def __init__(self, migration: Migration, population: Population, result: Result, stopping: Callable[[], bool]) -> None:
        self._settings, self._result, self._stopping = migration.config.destination, result, stopping
        self._lock = threading.Lock()
        self._strata: dict[Item, Stratum] = {}  # of what is being checked
        self.jobs = checking.Handout(self._drawn(population))

    def _drawn(self, population: Population) -> Iterator[checking.Check]:
        result, level = self._result, self._result.choice.level
        series = drawn(population, result.strata, result.wanted, result.choice.seed, self._stopping)
        whole = (dict.fromkeys(items, stratum) for stratum, items in series)
        for part in whole if level is Level.LISTED else _pieces(whole):  # a series is listed once
            with self._lock:
                self._strata |= part
            yield checking.Check(self._settings, tuple(part), listed=level is Level.LISTED, deep=level is Level.READ_BACK)

    def work(self, job: tuple[Hashable, checking.Check]) -> list[Outcome]:
        """In a worker's thread."""
        key, check = job
        facts, unchecked = checking.check(check)
        self.jobs.done(key)
        with self._lock:
            for item in unchecked:
                del self._strata[item]
                self._result.unchecked.append(key_of(item))
        return facts

    def committed(self, facts: list[Outcome]) -> None:
        """In the commit thread: only what is on record counts."""
        result = self._result
        for fact in facts:
            if not isinstance(fact, (InstanceVerified, DestinationLost)):
                continue
            with self._lock:
                stratum = self._strata.pop(fact.item)
            result.checked[stratum] += 1
            if isinstance(fact, InstanceVerified):
                result.proofs[fact.proof] += 1
            else:
                result.bad[stratum] += 1
                (result.differs if fact.differs else result.missing).append(key_of(fact.item))


def drawn(
    population: Population, strata: dict[Stratum, int], wanted: dict[Stratum, int], seed: int, stopping: Callable[[], bool]
) -> Iterator[tuple[Stratum, list[Item]]]:
    """What is drawn, a series at a time. Raises Interrupted when it is to stop."""
    draw = Draw(strata, wanted, seed)

    def takes(stratum: Stratum) -> bool:
        if stopping():  # it may be a long way to the next one that is drawn
            raise Interrupted("Stopped; what was checked is on record.")
        return draw.takes(stratum)

    return population.series(takes)


def _pieces(parts: Iterable[dict[Item, Stratum]]) -> Iterator[dict[Item, Stratum]]:
    """The same in pieces of one size: small series together, large ones apart."""
    every = (pair for part in parts for pair in part.items())
    while piece := dict(itertools.islice(every, _ITEMS_A_JOB)):
        yield piece


def key_of(item: Item) -> str:
    """The object's key of a proven item."""
    assert item.receipt is not None  # the population's items have one
    return item.receipt.key


def verify(migration: Migration, choice: Choice, progress: Callable[[int, int], None] = lambda done, total: None) -> Result:
    """Ask the destination again for what `choice` takes, by all of its workers; what is lost or differs falls back and opens its study.

    The result is put on record, also if this is cut short. Raises Interrupted, DestinationUnreachable, DestinationRefused.
    """
    destination = shared_destination(migration.config.destination)
    for _ in destination.listed(f"{migration.prefix}_pacs-migrate/probe"):  # before anything is made there: is it there at all?
        break
    destination.prepare()
    population = Population(migration.queue.connection, prefix=migration.prefix, part=choice.part)
    strata = population.strata()
    result = Result(choice, strata, choice.wanted(strata), open=population.open())

    def committed(facts: list[Outcome]) -> None:
        walk.committed(facts)
        progress(result.checked.total(), result.sample)

    pipeline = Pipeline(
        migration.manifest, settle=lambda files: [], final_path=lambda _: Path(), after_commit=lambda _: None,
        unreachable_s=migration.config.retry.unreachable_s, on_commit=committed,
    )  # fmt: skip
    pipeline.note_contact("destination")
    walk = _Walk(migration, population, result, pipeline.stopping.is_set)
    stage = Stage("verify", walk.jobs.ready, walk.work, migration.config.workers, side="destination")
    pipeline.start()
    with stop_signals(pipeline.stop):
        try:
            pipeline.run([stage], next_due_s=lambda: None)
            pipeline.drain()
            result.ended = True
        finally:
            with contextlib.suppress(PacsMigrateError):
                pipeline.drain()
                pipeline.commit_now([Noted(VERIFIED, json.dumps(result.event()))])
            pipeline.close()
    return result
