"""Which windows a sweep asks, how a refused one is split, and what the finished ones prove."""

from __future__ import annotations

import datetime
import sqlite3
from collections.abc import Iterator, Sequence

from migrate.errors import PacsMigrateError, QueryRefused
from migrate.model import (
    Outcome,
    StudyFound,
    Window,
    WindowAnswered,
    WindowFailed,
    WindowJudged,
    WindowsPlanned,
    WindowState,
)
from migrate.sources import Source

_FIRST_YEAR = 1970


def first_windows(date_from: str | None, date_to: str | None, today: datetime.date) -> tuple[Window, ...]:
    """A window a year between the bounds; where both are open, all before and after, and once without a date key."""
    last = date_to or f"{today.year + 1}1231"
    first = date_from or f"{_FIRST_YEAR}0101"
    windows = [] if date_from else [Window(None, f"{_FIRST_YEAR - 1}1231")]
    for year in range(int(first[:4]), int(last[:4]) + 1):
        windows.append(Window(max(first, f"{year}0101"), min(last, f"{year}1231")))
    if not date_to:
        windows.append(Window(f"{today.year + 2}0101", None))
    if not date_from and not date_to:
        windows.append(Window(None, None, "all"))
    return tuple(windows)


def halves(window: Window) -> tuple[Window, ...]:
    """The window in two parts that touch; none where it is a single day, or has no date."""
    if window.axis != "date" or window.lo is None or window.hi is None:
        if window.axis == "date" and window.hi is not None:
            return (Window(None, "19491231"), Window("19500101", window.hi)) if window.hi > "19500101" else ()
        return ()
    first, last = _day(window.lo), _day(window.hi)
    if first >= last:
        return ()
    middle = first + (last - first) // 2
    return (Window(window.lo, f"{middle:%Y%m%d}"), Window(f"{middle + datetime.timedelta(1):%Y%m%d}", window.hi))


def _day(text: str) -> datetime.date:
    return datetime.date(int(text[:4]), int(text[4:6]), int(text[6:8]))


def ask(source: Source, window_id: int, window: Window) -> Iterator[Outcome]:
    """One question: its studies, then how it ended. Errors of scope run are raised."""
    rows, outside = 0, set()
    studies: set[str] = set()
    found: list[Outcome] = []
    try:
        for study in source.studies(window):
            rows += 1
            studies.add(study.study.study)
            if window.axis == "date" and not _inside(study.date, window):
                outside.add(study.study.study)
            found.append(StudyFound(study.study, study.date, study.modalities, study.claimed_instances, window_id))
    except QueryRefused as error:
        yield from found
        yield WindowFailed(window_id, error.name, str(error), halves(window), retryable=False)
    except PacsMigrateError as error:
        if error.scope == "run":
            raise
        yield from found
        yield WindowFailed(window_id, error.name, str(error))
    else:
        yield from found
        yield WindowAnswered(window_id, rows, len(studies), len(outside))


def _inside(date: str | None, window: Window) -> bool:
    return date is not None and (window.lo or "") <= date <= (window.hi or "99999999")


def judge(sweep: int, rows: Sequence[sqlite3.Row]) -> list[Outcome]:
    """What to ask next once every window so far is answered: the largest window is checked against its halves.

    If the halves hold more, the PACS caps its answers at what the whole showed: every window with that count or more
    is split. What cannot be split blocks. Nothing comes back when the sweep has nothing left to prove.
    """
    if any(row["state"] == WindowState.PLANNED for row in rows):
        return []
    by_parent: dict[int, list[sqlite3.Row]] = {}
    for row in rows:
        if row["parent"] is not None:
            by_parent.setdefault(row["parent"], []).append(row)
    answered = [row for row in rows if row["state"] == WindowState.ANSWERED]
    caps = [row["row_count"] for row in rows if row["suspicion"] and "caps its answers" in row["suspicion"]]
    for row in answered:
        parts = by_parent.get(row["id"], [])
        if parts and row["suspicion"] is None and all(part["state"] == WindowState.ANSWERED for part in parts):
            held = sum(part["study_count"] - part["outside_count"] for part in parts)
            if held > row["study_count"] - row["outside_count"]:
                said = f"The PACS caps its answers: {row['row_count']} rows for the whole, {held} for its halves."
                return [WindowJudged(row["id"], said, split=halves(_window(row)))]
    cover = [row for row in answered if row["purpose"] == "cover"]
    doubts = _doubt_undated(cover, caps)
    if doubts:
        return doubts
    if caps:
        capped = [row for row in cover if row["row_count"] >= min(caps) and not row["blocks"]]
        judged: list[Outcome] = []
        for row in capped:
            parts_of = (
                () if row["outside_count"] else halves(_window(row))
            )  # a PACS that ignores dates cannot be split by them
            said = f"The PACS caps its answers at {min(caps)} rows; this window shows {row['row_count']}"
            if parts_of:
                judged.append(WindowJudged(row["id"], f"{said} and is asked in parts.", split=parts_of))
            else:
                judged.append(WindowJudged(row["id"], f"{said} and cannot be split further.", blocks=True))
        return judged
    dated = [row for row in answered if row["axis"] == "date" and row["study_count"] > 1 and row["outside_count"] == 0]
    if not dated or any(row["purpose"] == "check" for row in rows):
        return []
    largest = max(dated, key=lambda row: row["row_count"])
    parts_of = halves(_window(largest))
    if not parts_of:
        return []
    return [WindowsPlanned(sweep, parts_of, parent=largest["id"], check=True)]


def _doubt_undated(cover: Sequence[sqlite3.Row], caps: Sequence[int]) -> list[Outcome]:
    """The question without a date key must show at least what the dated ones showed, or nobody knows what it hides."""
    undated = [row for row in cover if row["axis"] == "all" and not row["blocks"]]
    dated = sum(row["study_count"] - row["outside_count"] for row in cover if row["axis"] == "date")
    for row in undated:
        if row["study_count"] < dated:
            said = f"The PACS caps its answers: {row['row_count']} rows without a date key, {dated} studies by date"
            return [WindowJudged(row["id"], f"{said}; studies without a date may hide.", blocks=True)]
        if caps and row["row_count"] >= min(caps):
            return [
                WindowJudged(
                    row["id"], f"The PACS caps its answers at {min(caps)} rows; studies without a date may hide.", True
                )
            ]
        if any(one["outside_count"] for one in cover):
            said = "The PACS ignores the date key, so that no narrower question can show whether it caps its answers."
            return [WindowJudged(row["id"], said, blocks=True)]
    return []


def _window(row: sqlite3.Row) -> Window:
    return Window(row["lo"], row["hi"], row["axis"])
