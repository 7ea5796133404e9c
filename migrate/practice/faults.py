"""The bad manners that the practice PACS can be given: real habits of real PACSs, by name, free to combine."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Collection

FAULTS: dict[str, str] = {
    "silent-cap": "answers at most 5 STUDY rows and says Success",
    "refuse-wide": "refuses (A700) a STUDY query of more than 366 days or without a date key",
    "ignore-date": "ignores the StudyDate key and answers every study",
    "abort-find": "aborts the association after the first row of every third STUDY query",
    "ff01": "says FF01 instead of FF00 with every row",
    "padded-uids": "pads UIDs in its answers with spaces",
    "move-unknown": "refuses every C-MOVE: destination unknown (A801)",
    "success-nothing-sent": "says Success to every C-MOVE and sends nothing",
    "skip-one": "never sends the last image of each third study, and says Success",
    "skip-first": "leaves the last image out the first time that a study is moved, and says Success",
    "abort-store": "aborts the sending association amid a data set, in the first C-MOVE of each second study",
    "twice": "sends every image twice",
    "early-success": "says Success first and sends the images afterwards",
    "null-counters": "leaves the counters out of its C-MOVE answers",
    "wrong-counters": "counts three images too many in its C-MOVE answers",
}

SILENT_CAP_ROWS = 5
WIDEST_DAYS = 366


class Conduct:
    """Which faults a PACS has, and what it has done so far. Raises ValueError for an unknown fault."""

    def __init__(self, faults: Collection[str]) -> None:
        if unknown := sorted(set(faults) - set(FAULTS)):
            raise ValueError(f"unknown faults: {', '.join(unknown)} (known: {', '.join(sorted(FAULTS))})")
        self.faults = frozenset(faults)
        self.counts: Counter[str] = Counter()
        self._tries: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __contains__(self, fault: str) -> bool:
        return fault in self.faults

    def count(self, what: str) -> int:
        """Count one more; returns how many there are."""
        with self._lock:
            self.counts[what] += 1
            return self.counts[what]

    def first_try(self, what: str) -> bool:
        """True the first time that it is asked of."""
        with self._lock:
            self._tries[what] += 1
            return self._tries[what] == 1
