"""The bad manners that the practice PACS can be given: real habits of real PACSs, by name, free to combine.

Which study, row or query a habit strikes follows from the study's number and from what was asked before, never from
chance or the clock. Those of retrieval can be aimed at single studies, so that one archive can hold many of them.
"""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Collection
from difflib import get_close_matches

FAULTS: dict[str, str] = {
    # How many answers, and to which questions.
    "silent-cap": "answers at most ROWS PATIENT or STUDY rows and says Success",
    "image-cap": "answers at most ROWS SERIES or IMAGE rows and says Success",
    "no-image-rows": "answers every IMAGE query with no row and says Success",
    "refuse-many": "sends ROWS PATIENT or STUDY rows and, where there are more, refuses then (A700)",
    "refuse-wide": "refuses (A700) a STUDY query of more than DAYS days or without a date key",
    "ignore-date": "ignores the StudyDate key",
    "refuse-open-ranges": "refuses (A900) a StudyDate range without a first or a last day",
    "ignore-open-ranges": "ignores a StudyDate range without a first or a last day",
    "open-range-as-day": "takes a StudyDate range without a first or a last day for the one day that it names",
    "no-ranges": "finds nothing for a StudyDate range",
    "no-day-range": "finds nothing for a StudyDate range of a single day",
    "ignore-time": "ignores the StudyTime key",
    "ignore-modality": "ignores the ModalitiesInStudy key",
    "ignore-patient-id": "ignores a PatientID key with wildcards",
    "hidden-undated": "shows studies without a date only to queries by PatientID, AccessionNumber, modality or UID",
    "patient-root-only": "takes Patient Root only, and below PATIENT refuses (A900) what lacks a single PatientID",
    "odd-patient-ids": "has no PatientID, one with a wildcard or one beyond ASCII for every fifth patient",
    "two-patients": "has the last image of each 7th study, and the study, under the next patient, too",
    "relational": "answers SERIES and IMAGE queries without the UIDs above them",
    # What the database says.
    "null-dates": "knows no StudyDate and StudyTime of every 7th study",
    "invalid-dates": "has 30 February of the year for a StudyDate of every 7th study",
    "null-times": "knows no StudyTime of every 5th study",
    "empty-studies": "lists every 9th study with 0 images, and has none",
    "wrong-counts": "counts one image (of the study, of each series) and one series too many or too few in every 4th study",
    "no-counts": "never tells how many images and series there are",
    "odd-names": "sends names and descriptions whose bytes do not fit the character set that is declared, if any",
    "padded-uids": "pads UIDs in its answers with spaces",
    "nul-uids": "pads UIDs in its answers with NULs",
    "repeat-rows": "sends every third STUDY row twice, every second time with another date and count",
    # What changes meanwhile.
    "growing": "adds an image to every 5th study after its first IMAGE query",
    "shrinking": "loses an image of every 6th study after its first IMAGE query",
    "changing-patients": "gives every 7th study to the next patient after its first IMAGE query",
    "vanishing": "loses every 8th study after its first STUDY row",
    "vanishing-later": "loses every 8th study once its images have been listed",
    "new-studies": "gets three new studies, dated today, with the STUDY query after QUERIES of them",
    # How answers come.
    "ff01": "says FF01 instead of FF00 with every row",
    "slow-answers": "waits SECONDS before each row and each image",
    "ignore-cancel": "ignores C-CANCEL",
    "hang-find": "says nothing at all to every Nth STUDY query, and keeps the association",
    "abort-find": "aborts the association after the first row of every Nth STUDY query",
    "release-find": "releases the association after the first row of every Nth STUDY query, without a final answer",
    "cut-find": "closes the connection amid the first row of every Nth STUDY query",
    "endless-find": "sends the first row of every Nth STUDY query without end",
    "undecodable-row": "sends garbage as a row, the first TIMES that every third of the STUDY questions is asked",
    "undecodable-row-always": "sends garbage as the STUDY row of every 11th study",
    "truncated-row": "cuts a row off amid an element, the first TIMES that every third of the STUDY questions is asked",
    "truncated-row-always": "cuts the STUDY row of every 11th study off amid an element",
    "association-limit": "takes at most COUNT associations at a time, rejecting more for now",
    "few-questions": "closes each association, without a word, after COUNT questions",
    "busy": "after its tenth association rejects COUNT associations for now",
    "stops-sending": "says Success to every C-MOVE after the first COUNT, and sends nothing",
    # What is said of a retrieval.
    "move-unknown": "refuses every C-MOVE: destination unknown (A801)",
    "move-status": "ends every C-MOVE at once with STATUS, and sends nothing",
    "move-busy": "refuses the first TIMES that a study is moved: out of resources (A702)",
    "success-nothing-sent": "says Success to every C-MOVE and sends nothing",
    "early-success": "says Success first and sends the images afterwards",
    "late-stores": "says Success first and sends the images SECONDS later",
    "never-answers": "takes a C-MOVE, and neither answers nor sends anything",
    "never-final": "sends everything and never gives the final answer",
    "null-counters": "leaves the counters out of its C-MOVE answers",
    "zero-counters": "has zeros for counters in its C-MOVE answers",
    "wrong-counters": "counts three images too many in its C-MOVE answers",
    "wrapped-counters": "counts as if 65,530 images had come before, and begins anew after 65,535",
    "failed-image": "never sends the last image, and names it as failed (B000)",
    "failed-unnamed": "never sends the last image, and says that one failed (B000) without naming it",
    "failed-misnamed": "never sends the last image, and names the first one as failed (B000)",
    # Which images come, and how.
    "skip-one": "never sends the last image of each third study, and says Success",
    "skip-first": "leaves the last image out the first TIMES that a study is moved, and says Success",
    "twice": "sends every image twice",
    "whole-study": "sends the whole study, whatever part of it is asked for",
    "abort-store": "aborts the sending association amid a data set, the first TIMES that each second study is moved",
    "abort-store-always": "aborts the sending association amid the study's middle image, always",
    "reset-store": "resets the sending connection amid a data set, the first TIMES that a study is moved",
    "half-pdu": "falls silent amid a PDU of a data set, the first TIMES that a study is moved",
    "drip": "sends the study's middle image one byte every SECONDS",
    "even-contexts": "proposes presentation contexts with even IDs, one of them twice",
    "no-move-originator": "does not name the C-MOVE in its C-STOREs",
    # What is in them.
    "rewrites-headers": "writes another InstitutionName into an image each time that it is sent",
    "other-bytes": "sends the last image a second time with other pixels",
    "truncated": "sends the last image cut off amid an element, as if that were all of it",
    "path-uids": "sends the last image under a path instead of its SOP Instance UID",
    "other-command-uid": "names another SOP Instance UID in the command than in the data set of the last image",
    "other-command-class": "names another SOP class in the command than in the data set of the last image",
    # What the archive has.
    "nameless-rows": "lists the last image without its SOP Instance UID",
    "path-rows": "lists a path instead of the last image's SOP Instance UID",
    "shared-sop": "has the last image under the SOP Instance UID of the study before's first image",
    "private-class": "has a series of three images of a private SOP class in a private transfer syntax",
    "many-classes": "has a series of COUNT images, each of a SOP class of its own",
    "many-images": "has a series of COUNT images",
    "huge-image": "has a series of one multi-frame image of MIB MiB",
}


class Status(int):
    """A DIMSE status, written in hexadecimal."""

    def __new__(cls, text: str | int) -> Status:
        return super().__new__(cls, text if isinstance(text, int) else int(text, 16))

    def __str__(self) -> str:
        return f"{int(self):04X}"


DEFAULTS: dict[str, int | float] = {
    "silent-cap": 5,
    "image-cap": 2,
    "refuse-many": 5,
    "refuse-wide": 366,
    "new-studies": 10,
    "slow-answers": 0.2,
    "hang-find": 3,
    "abort-find": 3,
    "release-find": 3,
    "cut-find": 3,
    "endless-find": 3,
    "undecodable-row": 1,
    "truncated-row": 1,
    "association-limit": 1,
    "few-questions": 3,
    "busy": 5,
    "stops-sending": 10,
    "move-status": Status(0xC000),
    "move-busy": 1,
    "late-stores": 1.0,
    "skip-first": 1,
    "abort-store": 1,
    "reset-store": 1,
    "half-pdu": 1,
    "drip": 1.0,
    "many-classes": 200,
    "many-images": 70_000,
    "huge-image": 64,
}
"""The faults that take a value (`NAME=VALUE`) and what it is without one."""

SELECTED = {"skip-one": (3, 0), "two-patients": (7, 5), "changing-patients": (7, 5), "abort-store": (2, 0), "growing": (5, 2), "shrinking": (6, 1), "vanishing": (8, 6), "vanishing-later": (8, 6)}
"""(n, r) of the faults that strike only every nth study, beginning with study r, where no study is named."""

_RETRIEVAL = list(FAULTS)[list(FAULTS).index("move-unknown") :]
OF_STUDIES = frozenset([*_RETRIEVAL, *SELECTED])
"""The faults that can be told to strike one study alone (`NAME@STUDY`)."""


def parse_fault(text: str) -> tuple[str, int | float | None, int | None]:
    """The name, value and study of `NAME`, `NAME=VALUE`, `NAME@STUDY` or `NAME=VALUE@STUDY`. Raises ValueError with a sentence for people."""
    rest, at, study = text.partition("@")
    name, equals, value = rest.partition("=")
    if name not in FAULTS:
        near = get_close_matches(name, FAULTS, 1)
        raise ValueError(f"unknown fault: {name}" + (f"; did you mean {near[0]}?" if near else ""))
    if at and (name not in OF_STUDIES or not re.fullmatch("[0-9]{1,8}", study)):
        raise ValueError(f"the fault {name} takes {'the number of a study' if name in OF_STUDIES else 'no study'} after @, not {study!r}")
    number = int(study) if at else None
    default = DEFAULTS.get(name)
    if not equals:
        return name, default, number
    if default is None:
        raise ValueError(f"the fault {name} takes no value")
    try:
        taken = type(default)(value)
    except ValueError:
        taken = 0
    if not 0 < taken <= 1_000_000_000:
        kind = "a status in hexadecimal" if isinstance(default, Status) else "a whole number" if isinstance(default, int) else "a number"
        raise ValueError(f"the fault {name} takes {kind} above 0, not {value!r}")
    return name, taken, number


class Conduct:
    """Which faults a PACS has, and what it has done so far. Raises ValueError for an unknown fault or a bad value."""

    def __init__(self, faults: Collection[str]) -> None:
        self.faults: dict[str, int | float | None] = {}
        self._of_study: dict[tuple[str, int], int | float | None] = {}
        for name, value, study in map(parse_fault, faults):
            if study is None:
                self.faults[name] = value
            else:
                self._of_study[name, study] = value
        self.names = frozenset(self.faults) | {name for name, _ in self._of_study}
        self.counts: Counter[str] = Counter()
        self._tries: Counter[str] = Counter()
        self._places: dict[str, int] = {}
        self._lock = threading.Lock()

    def __contains__(self, fault: str) -> bool:
        return fault in self.faults

    def of(self, fault: str, study: int) -> int | float:
        """The value of a fault where it strikes this study (1 for a fault without one), else 0."""
        if fault not in self.names:
            return 0
        if (fault, study) in self._of_study:
            value = self._of_study[fault, study]
        elif fault in self.faults and _strikes(fault, study):
            value = self.faults[fault]
        else:
            return 0
        return 1 if value is None else value

    def number(self, fault: str) -> int | None:
        """The whole number of a fault; None without the fault."""
        value = self.faults.get(fault)
        return None if value is None else int(value)

    def seconds(self, fault: str) -> float:
        """The seconds of a fault; 0 without the fault."""
        return self.faults.get(fault) or 0.0

    def strikes(self, fault: str, count: int) -> bool:
        """True when a fault of every Nth is there and this is the one."""
        every = self.number(fault)
        return every is not None and count % every == 0

    def count(self, what: str) -> int:
        """Count one more; returns how many there are."""
        with self._lock:
            self.counts[what] += 1
            return self.counts[what]

    def tried(self, what: str) -> int:
        """How often it has been asked of, this time included; not shown in `counts`."""
        with self._lock:
            self._tries[what] += 1
            return self._tries[what]

    def place(self, what: str) -> int:
        """Which one this is of all that have been asked for, from 1, in the order of the first time."""
        with self._lock:
            return self._places.setdefault(what, len(self._places) + 1)


def _strikes(fault: str, study: int) -> bool:
    every, first = SELECTED.get(fault, (1, 0))
    return study % every == first
