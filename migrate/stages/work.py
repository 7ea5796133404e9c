"""What workers do with one job. Upload and verify take and return plain values, so that they may run anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from migrate.config import DestinationSettings
from migrate.destinations import shared_destination
from migrate.errors import DestinationError, ObjectDiffers, ObjectMissing, PacsMigrateError, StagedFileLost
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
    StudyRef,
    Wanted,
)
from migrate.sources import Source


@dataclass(frozen=True, slots=True)
class Batch:
    """Items of one series with their staged files (None where none is needed)."""

    destination: DestinationSettings
    items: tuple[tuple[Item, Path | None], ...]
    deep: bool = False


def plan(source: Source, study: StudyRef) -> Iterator[Outcome]:
    """All IMAGE rows of one study."""
    try:
        reach("plan-asked")
        plan = source.instances(study)
        reach("plan-answered")
        yield plan
    except PacsMigrateError as error:
        if error.scope == "run":
            raise
        yield Failed(study, "plan", error.name, str(error))


def confirm(source: Source, study: StudyRef) -> Iterator[Outcome]:
    """The last look at a study before it closes."""
    try:
        plan = source.instances(study)
        reach("confirm-answered")
        yield StudyConfirmed(plan)
    except PacsMigrateError as error:
        if error.scope == "run":
            raise
        yield Failed(study, "confirm", error.name, str(error))


def retrieve(source: Source, study: StudyRef, wanted: Wanted) -> Iterator[Outcome]:
    """One attempt at one study."""
    ended = source.retrieve(study, wanted)
    reach("retrieve-ended")
    yield ended


def upload(batch: Batch) -> Iterator[Outcome]:
    """Put each file, create-only. Bytes that changed in staging are never stored; a taken key gets a neighbour."""
    destination = shared_destination(batch.destination)
    failure: Failed | None = None
    for item, file in batch.items:
        study = StudyRef(item.ref.study)
        try:
            if file is None or not file.exists():
                raise StagedFileLost("The staged file is gone.")
            reach("put-begun")
            receipt = destination.put(item, file)
            reach("put-done")
            yield InstanceStored(item, receipt)
        except StagedFileLost as error:
            yield StagedLost(item, str(error))
        except ObjectDiffers as error:
            yield DestinationLost(item, True, str(error), file_kept=True)
            if item.beside:
                failure = failure or Failed(study, "upload", error.name, str(error))
        except DestinationError as error:
            if error.scope == "run":
                raise
            failure = failure or Failed(study, "upload", error.name, str(error), error.retryable)
    if failure is not None:  # however many objects of the study failed, it was one attempt
        yield failure


def verify(batch: Batch) -> Iterator[Outcome]:
    """Ask the destination for its proof of each stored item."""
    destination = shared_destination(batch.destination)
    failure: Failed | None = None
    for item, file in batch.items:
        study = StudyRef(item.ref.study)
        try:
            reach("attest-begun")
            proof = destination.verify(item, deep=batch.deep)
            reach("attest-done")
            yield InstanceVerified(item, proof)
        except (ObjectMissing, ObjectDiffers) as error:
            kept = file is not None and file.exists()
            yield DestinationLost(item, isinstance(error, ObjectDiffers), str(error), file_kept=kept)
            if file is not None:
                failure = failure or Failed(study, "verify", error.name, str(error))
        except DestinationError as error:
            if error.scope == "run":
                raise
            failure = failure or Failed(study, "verify", error.name, str(error), error.retryable)
    if failure is not None:  # however many objects of the study failed, it was one attempt
        yield failure
