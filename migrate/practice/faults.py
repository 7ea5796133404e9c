"""The bad manners that the practice PACS can be given: real habits of real PACSs, by name, free to combine.

Which study, row or query a habit strikes follows from the study's number and from what was asked before, never from
chance or the clock.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Collection

FAULTS: dict[str, str] = {
    # How many answers, and to which questions.
    "silent-cap": "answers at most ROWS PATIENT or STUDY rows and says Success",
    "image-cap": "answers at most ROWS SERIES or IMAGE rows and says Success",
    "no-image-rows": "answers every IMAGE query with no row and says Success",
    "refuse-many": "sends ROWS PATIENT or STUDY rows and, where there are more, refuses then (A700)",
    "refuse-wide": "refuses (A700) a STUDY query of more than DAYS days or without a date key",
    "ignore-date": "ignores the StudyDate key",
    "ignore-time": "ignores the StudyTime key",
    "ignore-modality": "ignores the ModalitiesInStudy key",
    "ignore-patient-id": "ignores a PatientID key with wildcards",
    "hidden-undated": "shows studies without a date only to queries by PatientID, AccessionNumber, modality or UID",
    "patient-root-only": "takes Patient Root only, and below PATIENT refuses (A900) what lacks a single PatientID",
    "relational": "answers SERIES and IMAGE queries without the UIDs above them",
    # What the database says.
    "null-dates": "knows no StudyDate and StudyTime of every 7th study",
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
    "vanishing": "loses every 8th study after its first STUDY row",
    "new-studies": "gets three new studies, dated today, with the STUDY query after QUERIES of them",
    # How answers come.
    "ff01": "says FF01 instead of FF00 with every row",
    "slow-answers": "waits SECONDS before each row and each image",
    "ignore-cancel": "ignores C-CANCEL",
    "abort-find": "aborts the association after the first row of every Nth STUDY query",
    "release-find": "releases the association after the first row of every Nth STUDY query, without a final answer",
    "cut-find": "closes the connection amid the first row of every Nth STUDY query",
    "undecodable-row": "sends garbage as a row, the first TIMES that every third of the STUDY questions is asked",
    "undecodable-row-always": "sends garbage as the STUDY row of every 11th study",
    "truncated-row": "cuts a row off amid an element, the first TIMES that every third of the STUDY questions is asked",
    "truncated-row-always": "cuts the STUDY row of every 11th study off amid an element",
    "association-limit": "takes at most COUNT associations at a time, rejecting more for now",
    # Retrieval.
    "move-unknown": "refuses every C-MOVE: destination unknown (A801)",
    "success-nothing-sent": "says Success to every C-MOVE and sends nothing",
    "skip-one": "never sends the last image of each third study, and says Success",
    "skip-first": "leaves the last image out the first time that a study is moved, and says Success",
    "abort-store": "aborts the sending association amid a data set, in the first C-MOVE of each second study",
    "twice": "sends every image twice",
    "early-success": "says Success first and sends the images afterwards",
    "null-counters": "leaves the counters out of its C-MOVE answers",
    "wrong-counters": "counts three images too many in its C-MOVE answers",
    "no-move-originator": "does not name the C-MOVE in its C-STOREs",
    "rewrites-headers": "writes another InstitutionName into an image each time that it is sent",
}

DEFAULTS: dict[str, int | float] = {
    "silent-cap": 5,
    "image-cap": 2,
    "refuse-many": 5,
    "refuse-wide": 366,
    "new-studies": 10,
    "slow-answers": 0.2,
    "abort-find": 3,
    "release-find": 3,
    "cut-find": 3,
    "undecodable-row": 1,
    "truncated-row": 1,
    "association-limit": 1,
}
"""The faults that take a value (`NAME=VALUE`) and what it is without one."""


def parse_fault(text: str) -> tuple[str, int | float | None]:
    """The name and value of `NAME` or `NAME=VALUE`. Raises ValueError with a sentence for people."""
    name, equals, value = text.partition("=")
    if name not in FAULTS:
        raise ValueError(f"unknown fault: {name} (known: {', '.join(sorted(FAULTS))})")
    default = DEFAULTS.get(name)
    if not equals:
        return name, default
    if default is None:
        raise ValueError(f"the fault {name} takes no value")
    try:
        number = type(default)(value)
    except ValueError:
        number = 0
    if not 0 < number <= 1_000_000_000:
        kind = "a whole number" if isinstance(default, int) else "a number"
        raise ValueError(f"the fault {name} takes {kind} above 0, not {value!r}")
    return name, number


class Conduct:
    """Which faults a PACS has, and what it has done so far. Raises ValueError for an unknown fault or a bad value."""

    def __init__(self, faults: Collection[str]) -> None:
        self.faults = dict(map(parse_fault, faults))
        self.counts: Counter[str] = Counter()
        self._tries: Counter[str] = Counter()
        self._places: dict[str, int] = {}
        self._lock = threading.Lock()

    def __contains__(self, fault: str) -> bool:
        return fault in self.faults

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

    def first_try(self, what: str) -> bool:
        """True the first time that it is asked of."""
        return self.tried(what) == 1
