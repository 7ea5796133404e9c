"""The facts (outcomes) that workers hand to the manifest, and what they are handed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from migrate.model.content import Fixity, Item, Receipt, Received
from migrate.model.references import StudyRef
from migrate.model.states import Proof
from migrate.model.windows import (
    HabitLearned,
    StudyFound,
    WindowAnswered,
    WindowAsked,
    WindowFailed,
    WindowJudged,
    WindowsDropped,
    WindowsPlanned,
)


@dataclass(frozen=True, slots=True)
class SeriesPlan:
    """The SOP Instance UIDs that IMAGE rows list of a series, and how many its SERIES row claims."""

    series: str
    modality: str
    sops: tuple[str, ...]
    claimed_instances: int | None = None


@dataclass(frozen=True, slots=True)
class StudyPlanned:
    """All IMAGE rows of a study, from answers that ended with Success. `unreadable`: what rows hold that name no valid UID, as JSON."""

    study: StudyRef
    series: tuple[SeriesPlan, ...]
    notes: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StudyConfirmed:
    """The IMAGE rows of a study, asked for once more right before it closes."""

    plan: StudyPlanned


@dataclass(frozen=True, slots=True)
class InstanceStaged:
    """The file is durable under its final name: read back, synced, renamed, folder synced. `received.path` is that name."""

    received: Received
    fixity: Fixity


@dataclass(frozen=True, slots=True)
class RetrieveEnded:
    """One attempt at a study ended; the manifest compares UID sets. `status` is the last C-MOVE status (PS3.4 C.4.2).

    `clean`: a C-MOVE of the whole study ended without a failure in it; `whole`: and no less came than it counts. The `error` Interrupted:
    we ended it ourselves, and it is no attempt of the study's.
    """

    study: StudyRef
    status: int | None = None
    error: str | None = None
    detail: str = ""
    clean: bool = True
    whole: bool = True


@dataclass(frozen=True, slots=True)
class InstanceStored:
    """The destination has acknowledged the object."""

    item: Item
    receipt: Receipt


@dataclass(frozen=True, slots=True)
class InstanceVerified:
    """The destination was asked for the object again, and this is what its answer proves."""

    item: Item
    proof: Proof


@dataclass(frozen=True, slots=True)
class StagedLost:
    """The staged file is gone or its bytes changed: the instance is expected again."""

    item: Item
    detail: str


@dataclass(frozen=True, slots=True)
class DestinationLost:
    """The object is missing at the destination, or (`differs`) other bytes stand under its key."""

    item: Item
    differs: bool
    detail: str
    file_kept: bool = False  # the staged file is still here, so that it can be put again


@dataclass(frozen=True, slots=True)
class Failed:
    """An attempt at a study's work failed in `stage`; counts against its attempts unless the scope is `run`."""

    study: StudyRef
    stage: str
    error: str
    detail: str
    retryable: bool = True


@dataclass(frozen=True, slots=True)
class Noted:
    """A line for the log that changes no state."""

    kind: str
    detail: str
    study: str | None = None
    series: str | None = None
    sop: str | None = None


Outcome = (
    StudyFound
    | WindowsPlanned
    | WindowsDropped
    | WindowAsked
    | WindowJudged
    | HabitLearned
    | Noted
    | WindowAnswered
    | WindowFailed
    | StudyPlanned
    | StudyConfirmed
    | InstanceStaged
    | RetrieveEnded
    | InstanceStored
    | InstanceVerified
    | StagedLost
    | DestinationLost
    | Failed
)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often a study is tried before it is parked, and how long between: the wait doubles each time. `unreachable_s`: see [retry]."""

    attempts: int = 5
    first_wait_s: float = 30.0
    max_wait_s: float = 3600.0
    unreachable_s: float = 7200.0

    def wait_s(self, attempts: int, factor: float) -> float:
        """How long to wait after so many attempts: doubles with each, `factor` times as long as usual, `max_wait_s` at most."""
        return min(self.first_wait_s * factor * 2.0 ** min(attempts - 1, 1000), self.max_wait_s)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is still missing of a study: SOP Instance UIDs by series; `whole` asks for the study, `begun` names series
    of which something is here already, so that the rest is asked for by instance. `claimed`: how many instances the study is said to
    have, 0 where nobody says it."""

    whole: bool = True
    series: dict[str, tuple[str, ...]] = field(default_factory=dict)
    begun: frozenset[str] = frozenset()
    claimed: int = 0


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of `check`: `level` is ok, warn or fail; `part` says which exit code a failure means."""

    name: str
    level: Literal["ok", "warn", "fail"]
    detail: str
    hint: str = ""
    part: Literal["config", "source", "destination", "local"] = "config"
