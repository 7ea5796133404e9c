"""The trace that found studies leave in the log: an event for some hundreds of them, which says what their rows say.

An event each cost as much as the studies themselves. The schema lets no study in that names no such event, and `audit` finds the
one that its event does not name.
"""

from __future__ import annotations

import functools
import sqlite3
from collections.abc import Iterable, Iterator
from typing import Any

from migrate.manifest.sealed import literals, quoted

KIND = "studies found"
AT_ONCE = 250
"""Studies an event: its line in a CSV stays well below the 131,072 characters that Python's reader takes."""
AsFound = tuple[str, str | None, str | None, str, int | None]
"""UID, date, time, modalities, claimed instances."""

_often = functools.lru_cache(2000)(quoted)  # dates, modalities and counts repeat


def announce(connection: sqlite3.Connection, run_id: int, studies: Iterable[AsFound], at_ms: int) -> int:
    """Log that these are found, `AT_ONCE` at most; the event's number, which is to stand in their rows, added in this transaction."""
    row = (at_ms, run_id, KIND, ",".join(map(_quoted, studies)))
    cursor = connection.execute("INSERT INTO event(at, run_id, kind, detail) VALUES (?, ?, ?, ?)", row)
    return int(cursor.lastrowid or 0)


def _quoted(study: AsFound) -> str:
    """Its five literals; UIDs and times are known to be digits and dots."""
    uid, date, time, modalities, claimed = study
    at = "NULL" if time is None else f"'{time}'"
    return f"'{uid}',{_often(date)},{at},{_often(modalities)},{_often(claimed)}"


def announced(detail: str) -> Iterator[tuple[Any, str]]:
    """(UID, the other four literals) of each study that such an event tells of. Raises ValueError."""
    values = literals(detail)
    for uid, *row in zip(*[iter(values)] * 5, strict=True):
        yield uid, quoted(*row)
