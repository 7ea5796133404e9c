"""What workers do with one job. Upload and verify take and return plain values, so that they may run anywhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from migrate.config import DestinationSettings
from migrate.destinations import shared_destination
from migrate.errors import DestinationBusy, DestinationError, ObjectDiffers, ObjectMissing, ObjectRefused, PacsMigrateError, StagedFileLost
from migrate.failpoints import reach
from migrate.model import (
    DestinationLost,
    Failed,
    InstanceStored,
    InstanceVerified,
    Item,
    Outcome,
    StagedLost,
    StudyConfirmed,
    StudyPlanned,
    StudyRef,
    Wanted,
)
from migrate.sources import Source

Instances = Callable[[StudyRef], StudyPlanned]
_LISTING_S = 1.0


@dataclass(frozen=True, slots=True)
class Batch:
    """Items of one series with their staged files (None where none is needed).

    `refused_before`: the store has failed for an object of this study while it served others. `last`: these and two or three more
    are all that is left, so that nothing else would show whether it serves others.
    """

    destination: DestinationSettings
    items: tuple[tuple[Item, Path | None], ...]
    deep: bool = False
    refused_before: bool = False
    last: bool = False


def plan(source: Source, studies: Iterable[StudyRef]) -> Iterator[Outcome]:
    """All IMAGE rows of each study."""

    def ask(instances: Instances, study: StudyRef) -> Outcome:
        reach("plan-asked")
        plan = instances(study)
        reach("plan-answered")
        return plan

    return _each_study(source, studies, "plan", ask)


def confirm(source: Source, studies: Iterable[StudyRef]) -> Iterator[Outcome]:
    """The last look at each study before it closes."""

    def ask(instances: Instances, study: StudyRef) -> Outcome:
        plan = instances(study)
        reach("confirm-answered")
        return StudyConfirmed(plan)

    return _each_study(source, studies, "confirm", ask)


def _each_study(source: Source, studies: Iterable[StudyRef], stage: str, ask: Callable[[Instances, StudyRef], Outcome]) -> Iterator[Outcome]:
    """One study after the other over one association, until `_LISTING_S` are over: nobody works with an answer before it is on record,
    and the studies that are left are ready still."""
    until = time.monotonic() + _LISTING_S
    with source.listing() as instances:
        for study in studies:
            try:
                yield ask(instances, study)
            except PacsMigrateError as error:
                if error.scope == "run":
                    raise
                yield Failed(study, stage, error.name, str(error))
            if time.monotonic() > until:
                return


def retrieve(source: Source, study: StudyRef, wanted: Wanted) -> Iterator[Outcome]:
    """One attempt at one study."""
    ended = source.retrieve(study, wanted)
    reach("retrieve-ended")
    yield ended


Done = tuple[Outcome, DestinationError | None]  # what came of one item, and the error that costs its study an attempt, if one does


def upload(batch: Batch) -> Iterator[Outcome]:
    """Put each file, create-only. Bytes that changed in staging are never stored; a taken key gets a neighbour."""
    destination = shared_destination(batch.destination)

    def put(item: Item, file: Path | None) -> Done:
        try:
            if file is None or not file.exists():
                raise StagedFileLost("The staged file is gone.")
            reach("put-begun")
            receipt = destination.put(item, file)
            reach("put-done")
            return InstanceStored(item, receipt), None
        except StagedFileLost as error:
            return StagedLost(item, str(error)), None
        except ObjectDiffers as error:
            return DestinationLost(item, True, str(error), file_kept=True), error if item.beside else None

    return _each(batch, "upload", put)


def verify(batch: Batch) -> Iterator[Outcome]:
    """Ask the destination for its proof of each stored item."""
    destination = shared_destination(batch.destination)

    def prove(item: Item, file: Path | None) -> Done:
        try:
            reach("attest-begun")
            proof = destination.verify(item, deep=batch.deep)
            reach("attest-done")
            return InstanceVerified(item, proof), None
        except (ObjectMissing, ObjectDiffers) as error:
            kept = file is not None and file.exists()
            lost = DestinationLost(item, isinstance(error, ObjectDiffers), str(error), file_kept=kept)
            return lost, None if file is None else error

    return _each(batch, "verify", prove)


_served_at: dict[tuple[str, DestinationSettings], float] = {}
"""When this process was last served by a store, by stage."""


def _each(batch: Batch, stage: str, do: Callable[[Item, Path | None], Done]) -> Iterator[Outcome]:
    """Do it with each item. However many objects of the study fail, it is one attempt.

    An error of scope run may be that of one object only: it is set aside, and raised as soon as a second object fails with
    none served in between. If others were served, or the study has such an object on record, it is tried once more
    at the end: failing again, it is the object that is to blame, and not the store. Where hardly anything else is left,
    an object of our own has to be served instead.
    """
    here, study = (stage, batch.destination), StudyRef(batch.items[0][0].ref.study)
    failure: Failed | None = None
    aside: list[tuple[Item, Path | None, DestinationError, float]] = []
    for item, file in batch.items:
        try:
            outcome, error = do(item, file)
        except DestinationError as trouble:
            if trouble.scope != "run":
                failure = failure or Failed(study, stage, trouble.name, str(trouble), trouble.retryable)
                continue
            if not trouble.retryable or isinstance(trouble, DestinationBusy) or (
                aside and not batch.last and _served_at.get(here, 0.0) < aside[-1][3]
            ):
                raise
            aside.append((item, file, trouble, time.monotonic()))
        else:
            if not isinstance(outcome, StagedLost):
                _served_at[here] = time.monotonic()
            yield outcome
            if error is not None:
                failure = failure or Failed(study, stage, error.name, str(error))
    if aside:
        item, file, first, at = aside[0]
        if _served_at.get(here, 0.0) < at and not batch.refused_before and not (batch.last and shared_destination(batch.destination).serves()):
            raise first
        try:
            outcome, _ = do(item, file)
            yield outcome
        except DestinationError as trouble:
            if not trouble.retryable or isinstance(trouble, DestinationBusy):
                raise
            failure = failure or Failed(study, stage, ObjectRefused.__name__, f"The store serves other objects. {trouble}")
    if failure is not None:
        yield failure
