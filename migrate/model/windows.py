"""Questions to the PACS, and what its answers to them say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from migrate.model.references import StudyRef

Axis = Literal["date", "all", "patient", "accession", "modality", "list"]
"""How a sweep walks through the PACS: by StudyDate, without a key, by PatientID or AccessionNumber prefix, by modality, by a list."""

EXACT = "="
"""Ends a prefix that stands for itself alone: `12=` asks for the value 12, `12` for all that begin with 12."""

SHARE = "%"
"""Begins what stands for patients that are asked for one by one: `%` for the list of them all, `%3/16` for the third of 16 shares."""

PartBy = Literal["date", "time", "modality", "patient", "accession"]
"""The key by which a window is cut into parts."""


@dataclass(frozen=True, slots=True)
class Window:
    """A question to the PACS. `lo` and `hi`: StudyDate (YYYYMMDD, both included); `time_lo` and `time_hi`: StudyTime within one
    day (PS3.4 C.2.2.2.5 matches it by itself, so that no window crosses midnight); `patient`, `accession`: prefixes, or for `patient`
    patients one by one (see `SHARE`)."""

    lo: str | None
    hi: str | None
    axis: Axis = "date"
    time_lo: str | None = None
    time_hi: str | None = None
    modality: str | None = None
    patient: str | None = None
    accession: str | None = None

    @property
    def lists_patients(self) -> bool:
        """Whether it asks who all the patients are."""
        return self.patient == SHARE

    @property
    def share(self) -> tuple[int, int] | None:
        """(which one, of how many) shares of all patients it asks for, one by one; None where it does not."""
        if self.patient is None or not self.patient.startswith(SHARE) or self.lists_patients:
            return None
        number, _, count = self.patient[1:].partition("/")
        return int(number), int(count)

    def __str__(self) -> str:
        """For people; prefixes of IDs are not shown, only how long they are."""
        if self.lists_patients:
            return "all patients"
        if self.share:
            return "patients one by one, share {} of {}".format(*self.share)
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
    which C-FIND showed it, where a question takes several. `shared`: a patient has it who was not known to, besides others or in place of
    one: its images are to be listed anew.
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
    shared: bool = False


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


def shares(count: int) -> tuple[Window, ...]:
    """The questions that ask for all patients one by one, in so many shares."""
    return tuple(Window(None, None, "patient", patient=f"{SHARE}{number}/{count}") for number in range(1, count + 1))


LISTS_PATIENTS = Window(None, None, "patient", patient=SHARE)
"""Who all the patients are."""
