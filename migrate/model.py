"""The words of the house: references, states, proofs, and the facts (outcomes) that workers hand to the manifest.

Standard library only. Everything is frozen and picklable, so that a worker may live in another process or host.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Literal

_UID = re.compile(r"[0-9]+(\.[0-9]+)*\Z")


def is_uid(text: str) -> bool:
    """True for 1 to 64 characters of digits and single dots (PS3.5 9.1, leading zeros forgiven: old archives have them)."""
    return len(text) <= 64 and _UID.match(text) is not None


def _require_uid(*texts: str) -> None:
    for text in texts:
        if not is_uid(text):
            raise ValueError(f"not a UID: {text!a}")


@dataclass(frozen=True, slots=True)
class StudyRef:
    study: str

    def __post_init__(self) -> None:
        _require_uid(self.study)


@dataclass(frozen=True, slots=True, order=True)
class InstanceRef:
    """An instance's identity is the triple: after a bad merge one SOP Instance UID can stand under two studies."""

    study: str
    series: str
    sop: str

    def __post_init__(self) -> None:
        _require_uid(self.study, self.series, self.sop)


class StudyState(IntEnum):
    FOUND = 0
    PLANNED = 1
    RETRIEVED = 2
    MIGRATED = 3
    EXCLUDED = 4
    PARKED = 5
    ACCEPTED = 6


class InstanceState(IntEnum):
    EXPECTED = 0
    STAGED = 1
    STORED = 2
    VERIFIED = 3


class WindowState(IntEnum):
    PLANNED = 0
    ANSWERED = 1
    FAILED = 2
    SPLIT = 3
    DROPPED = 4  # not asked: the PACS ignores its key


class Proof(IntEnum):
    """How an instance's presence at the destination is known; a higher one proves more."""

    ACKNOWLEDGED = 1
    LISTED = 2
    ATTESTED = 3  # the store reported the checksum of what it holds, read after the upload
    READ_BACK = 4  # fetched and hashed again


_S, _I = StudyState, InstanceState
STUDY_TRANSITIONS: frozenset[tuple[StudyState, StudyState]] = frozenset(
    {
        (_S.FOUND, _S.PLANNED),
        (_S.FOUND, _S.EXCLUDED),
        (_S.FOUND, _S.PARKED),
        (_S.PLANNED, _S.RETRIEVED),
        (_S.PLANNED, _S.PARKED),
        (_S.PLANNED, _S.EXCLUDED),
        (_S.PLANNED, _S.FOUND),  # a later sweep saw it change: it is planned anew
        (_S.RETRIEVED, _S.MIGRATED),
        (_S.RETRIEVED, _S.PARKED),
        (_S.RETRIEVED, _S.PLANNED),  # heal: an instance fell back to expected
        (_S.RETRIEVED, _S.FOUND),
        (_S.MIGRATED, _S.PLANNED),  # heal: an object was lost at the destination
        (_S.MIGRATED, _S.FOUND),
        (_S.MIGRATED, _S.RETRIEVED),  # something unlisted came late and is to be proven, too
        (_S.PARKED, _S.FOUND),
        (_S.PARKED, _S.ACCEPTED),
        (_S.PARKED, _S.EXCLUDED),
        (_S.ACCEPTED, _S.FOUND),  # something new that the acceptance does not cover
        (_S.EXCLUDED, _S.FOUND),
    }
)
INSTANCE_TRANSITIONS: frozenset[tuple[InstanceState, InstanceState]] = frozenset(
    {
        (_I.EXPECTED, _I.STAGED),
        (_I.STAGED, _I.STORED),
        (_I.STORED, _I.VERIFIED),
        (_I.STAGED, _I.EXPECTED),  # staged file lost or corrupt
        (_I.STORED, _I.STAGED),  # the destination lost or spoilt it and the staged file is still here
        (_I.STORED, _I.EXPECTED),
        (_I.VERIFIED, _I.EXPECTED),  # a later audit found it lost or spoilt
    }
)


@dataclass(frozen=True, slots=True)
class Rolled:
    """What was taken of a Part 10 file while it came, from the bytes in memory.

    The data-set hash covers only the bytes that the PACS sent, the CRC the whole file.
    """

    size_bytes: int
    dataset_sha256: bytes
    crc64nvme: int


@dataclass(frozen=True, slots=True)
class Fixity:
    """All that is known of a durable Part 10 file: what was rolled at its receipt, and the SHA-256 of the file.

    The latter was taken of the file as it lay in staging, whose size and CRC were those rolled at its receipt.
    """

    size_bytes: int
    file_sha256: bytes
    dataset_sha256: bytes
    crc64nvme: int

    @property
    def rolled(self) -> Rolled:
        """The part that is known at the receipt."""
        return Rolled(self.size_bytes, self.dataset_sha256, self.crc64nvme)


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a destination said of an object it stored; checksums only as the store itself reported them."""

    key: str
    version: str | None = None
    etag: str | None = None
    checksum: str | None = None


def object_key(ref: InstanceRef, prefix: str = "", *, beside: bytes | None = None) -> str:
    """The object's key; `beside` (a data-set SHA-256) names a second content under the same three UIDs."""
    suffix = f"~{beside.hex()[:12]}" if beside else ""
    return f"{prefix}studies/{ref.study}/series/{ref.series}/instances/{ref.sop}{suffix}.dcm"


@dataclass(frozen=True, slots=True)
class Received:
    """One data set that came whole: closed, hashed and scanned, not yet read back and synced.

    `ref` is None where the data set could not be walked or its UIDs are not the command's; `quarantine` says why.
    `notes` are the scanner's deviations (ordinary in old archives). `pixel_crc64` covers everything from PixelData on, so
    that a header rewritten by the PACS can be told from other pixels. `move`: the message ID of the C-MOVE that the C-STORE
    named as its origin, if it named one.
    """

    path: Path
    ref: InstanceRef | None
    rolled: Rolled
    sop_class: str
    transfer_syntax: str
    notes: tuple[str, ...] = ()
    quarantine: str | None = None
    claimed: tuple[str, str, str] = ("", "", "")  # study, series, SOP UIDs as said, unchecked: for the report's detail only
    pixel_crc64: int | None = None
    move: int | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of `check`: `level` is ok, warn or fail; `part` says which exit code a failure means."""

    name: str
    level: Literal["ok", "warn", "fail"]
    detail: str
    hint: str = ""
    part: Literal["config", "source", "destination", "local"] = "config"


# ---- facts ------------------------------------------------------------------------------------------------------------


Axis = Literal["date", "all", "patient", "accession", "modality", "list"]
"""How a sweep walks through the PACS: by StudyDate, without a key, by PatientID or AccessionNumber prefix, by modality, by a list."""

EXACT = "="
"""Ends a prefix that stands for itself alone: `12=` asks for the value 12, `12` for all that begin with 12."""

PartBy = Literal["date", "time", "modality", "patient", "accession"]
"""The key by which a window is cut into parts."""


@dataclass(frozen=True, slots=True)
class Window:
    """A question to the PACS. `lo` and `hi`: StudyDate (YYYYMMDD, both included); `time_lo` and `time_hi`: StudyTime within one
    day (PS3.4 C.2.2.2.5 matches it by itself, so that no window crosses midnight); `patient`, `accession`: prefixes."""

    lo: str | None
    hi: str | None
    axis: Axis = "date"
    time_lo: str | None = None
    time_hi: str | None = None
    modality: str | None = None
    patient: str | None = None
    accession: str | None = None

    def __str__(self) -> str:
        """For people; prefixes of IDs are not shown, only how long they are."""
        parts = [f"{self.lo or ''}-{self.hi or ''}"] if self.lo or self.hi else []
        parts += [f"{self.time_lo}-{self.time_hi}"] if self.time_lo else []
        parts += [self.modality] if self.modality else []
        for name, prefix in (("PatientID", self.patient), ("AccessionNumber", self.accession)):
            parts += [f"{name} by {len(prefix.rstrip(EXACT))} first characters"] if prefix else []
        return ", ".join(parts) or ("a list" if self.axis == "list" else "without any key")


@dataclass(frozen=True, slots=True)
class StudyFound:
    """A STUDY row. `claimed_instances` is the PACS's own number, a claim; None where it gives none.

    `outside`: its values do not fit the question, so that the PACS seems to ignore a key. `excluded`: why the selection
    leaves it out. `later`: dated after the run's first sweep began; unless it is known already, it belongs to the next run. `query`:
    which C-FIND showed it, where a question takes several.
    """

    study: StudyRef
    date: str | None = None
    modalities: tuple[str, ...] = ()
    claimed_instances: int | None = None
    window_id: int | None = None
    time: str | None = None
    outside: bool = False
    excluded: str | None = None
    later: bool = False
    query: int | None = None


@dataclass(frozen=True, slots=True)
class WindowsPlanned:
    """Questions to ask, in parts of `parent` where it is given.

    `purpose`: cover; check and again are only compared with the parent; look never blocks. `replaces`: the parent is split.
    """

    sweep: int
    windows: tuple[Window, ...]
    parent: int | None = None
    by: PartBy | None = None
    purpose: Literal["cover", "check", "again", "look"] = "cover"
    replaces: bool = False


@dataclass(frozen=True, slots=True)
class WindowsDropped:
    """Questions by date that are planned but not asked: the PACS ignores the date, and has answered them already."""

    sweep: int


@dataclass(frozen=True, slots=True)
class WindowAsked:
    """The question goes out: what an earlier, broken answer to it showed no longer counts as this window's."""

    window_id: int


@dataclass(frozen=True, slots=True)
class WindowAnswered:
    """The answer ended with Success and every row of it was decoded.

    Where it took several C-FINDs, `rows` and `studies` are those of the largest: a PACS caps each by itself.
    """

    window_id: int
    rows: int
    studies: int | None = None


@dataclass(frozen=True, slots=True)
class WindowFailed:
    """No whole answer: it is asked again later, or else blocks until it is asked in parts."""

    window_id: int
    error: str
    detail: str
    retryable: bool = True


@dataclass(frozen=True, slots=True)
class WindowJudged:
    """What is odd about a window; `blocks` if its completeness cannot be shown."""

    window_id: int
    suspicion: str
    blocks: bool = False


@dataclass(frozen=True, slots=True)
class HabitLearned:
    """A habit of this PACS, by a stable name; what is asked later takes it into account."""

    name: str
    value: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class SeriesPlan:
    series: str
    modality: str
    sops: tuple[str, ...]
    claimed_instances: int | None = None


@dataclass(frozen=True, slots=True)
class StudyPlanned:
    """All IMAGE rows of a study, from answers that ended with Success."""

    study: StudyRef
    series: tuple[SeriesPlan, ...]
    notes: tuple[str, ...] = ()


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

    `whole`: a C-MOVE of the whole study ended without a failure in it, and no less came than it counts.
    """

    study: StudyRef
    status: int | None = None
    error: str | None = None
    detail: str = ""
    whole: bool = True


@dataclass(frozen=True, slots=True)
class Item:
    """An instance (or one of its copies) on its way to or at the destination."""

    ref: InstanceRef
    fixity: Fixity
    beside: bool = False  # lies under its ~ name
    copy: bool = False  # a row of `copy`: a further content under the same three UIDs
    receipt: Receipt | None = None


@dataclass(frozen=True, slots=True)
class InstanceStored:
    item: Item
    receipt: Receipt


@dataclass(frozen=True, slots=True)
class InstanceVerified:
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
    attempts: int = 5
    first_wait_s: float = 30.0
    max_wait_s: float = 3600.0
    unreachable_s: float = 7200.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is still missing of a study: SOP Instance UIDs by series; `whole` asks for the study, `begun` names series
    of which something is here already, so that the rest is asked for by instance."""

    whole: bool = True
    series: dict[str, tuple[str, ...]] = field(default_factory=dict)
    begun: frozenset[str] = frozenset()
