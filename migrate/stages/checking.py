"""Looking again at what was proven before: jobs as they are handed out, and what workers do with objects."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from migrate.config import DestinationSettings
from migrate.destinations import shared_destination
from migrate.errors import DestinationError, ObjectDiffers, ObjectMissing
from migrate.model import DestinationLost, InstanceVerified, Item, Outcome, Proof

Job = TypeVar("Job")


class Handout(Generic[Job]):
    """Jobs that no queue in the manifest holds: each is handed out as a worker gets free, and again until it is done.

    `ready` is for one thread, and iterates over the jobs in it; `done` is for workers.
    """

    def __init__(self, jobs: Iterable[Job]) -> None:
        self._jobs = enumerate(jobs)
        self._lock = threading.Lock()
        self._open: dict[Hashable, Job] = {}

    def ready(self, busy: set[Hashable], limit: int) -> Iterator[tuple[Hashable, tuple[Hashable, Job]]]:
        with self._lock:
            again = [(key, (key, job)) for key, job in self._open.items() if key not in busy][:limit]
        yield from again
        for key, job in itertools.islice(self._jobs, limit - len(again)):
            with self._lock:
                self._open[key] = job
            yield key, (key, job)

    def done(self, key: Hashable) -> None:
        with self._lock:
            del self._open[key]


@dataclass(frozen=True, slots=True)
class Check:
    """Proven items, each with its receipt; of one series if `listed`."""

    destination: DestinationSettings
    items: tuple[Item, ...]
    listed: bool = False
    deep: bool = False


def check(job: Check) -> tuple[list[Outcome], list[Item]]:
    """(facts, items of which nothing could be found out). Raises DestinationError of scope run."""
    destination = shared_destination(job.destination)
    facts: list[Outcome] = []
    unchecked: list[Item] = []
    sizes = dict(destination.listed(_folder(job.items[0]))) if job.listed else {}
    for item in job.items:
        try:
            facts.append(InstanceVerified(item, _listed(item, sizes) if job.listed else destination.verify(item, deep=job.deep)))
        except (ObjectMissing, ObjectDiffers) as error:
            facts.append(DestinationLost(item, isinstance(error, ObjectDiffers), str(error)))
        except DestinationError as error:
            if error.scope == "run":
                raise
            unchecked.append(item)
    return facts, unchecked


def _key(item: Item) -> str:
    assert item.receipt is not None
    return item.receipt.key


def _folder(item: Item) -> str:
    return _key(item).rpartition("/")[0] + "/"


def _listed(item: Item, sizes: dict[str, int]) -> Proof:
    key = _key(item)
    if key not in sizes:
        raise ObjectMissing(f"Nothing is listed at {key}.")
    if sizes[key] != item.fixity.size_bytes:
        raise ObjectDiffers(f"{key} has {sizes[key]} bytes instead of {item.fixity.size_bytes}.")
    return Proof.LISTED
