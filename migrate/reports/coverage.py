"""How the newest sweep covered the days: studies found, in how many ways each day was asked for, and gaps that stand out."""

from __future__ import annotations

import datetime
import itertools
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from migrate.counted import counted
from migrate.reports.oddities import asked_by_patient


class Swept(IntEnum):
    """How a day was asked for; of several that apply, the highest counts."""

    SEVERAL_AXES = 0
    """All its studies were shown by two kinds of questions or more; of a day without studies: it was asked for so."""
    ONE_AXIS = 1
    """One kind of question covered it, and nothing has confirmed that."""
    SPLIT = 2
    """It was asked for as a part of a bigger window that was refused or capped, or was itself cut by other keys."""
    SUSPICIOUS = 3
    """Its answer is odd, or cannot be shown to be whole, or another kind of question shows what it should have shown."""
    NOT_SWEPT = 4
    """No answered window covers it."""


@dataclass(frozen=True, slots=True)
class Day:
    """`confirmed`: each of its studies, or that it has none, was shown by two kinds of questions or more, whatever it was cut into."""

    studies: int
    swept: Swept
    confirmed: bool = False


@dataclass(frozen=True, slots=True)
class Gap:
    """Weekdays without any study amid busy ones; `swept` is the worst of its days."""

    first: datetime.date
    last: datetime.date
    weekdays: int
    swept: Swept


@dataclass(frozen=True, slots=True)
class Coverage:
    """Every day of each year in which anything was found, and of the `empty` years between those.

    `undated` counts studies without a StudyDate that can be one.
    """

    years: dict[int, list[Day]]
    empty: dict[int, list[Day]]
    undated: int

    def days(self, *, between: bool = False) -> Iterator[tuple[datetime.date, Day]]:
        """The days of the years in which anything was found; with `between` those of the others, too, at the end."""
        for year, days in (*self.years.items(), *(self.empty.items() if between else ())):
            first = datetime.date(year, 1, 1)
            for number, day in enumerate(days):
                yield first + datetime.timedelta(number), day


BUSY = 5
"""Studies on a day, from which on it counts as busy."""
SHORTEST_RUN = 3
_FOUND = """
SELECT date, count(*), sum(axes & 1 = 0 AND axes <> 0 AND state <> 4), min(axes & (axes - 1) <> 0) FROM study GROUP BY date
"""
# Windows by date that cover the sweep, as `migrate.stages.sweep.Sweep.roots` has them. Parts by another key answer for their root.
_ROOTS = """
SELECT lo, hi, state, parent IS NOT NULL, suspicion IS NOT NULL, blocks,
  EXISTS (SELECT 1 FROM window AS part WHERE part.parent = root.id AND part.part_by <> 'date' AND part.purpose <> 'again'
          AND (part.purpose = 'cover' OR root.row_count >= (SELECT CAST(value AS INTEGER) FROM habit WHERE name = 'cap'))),
  EXISTS (SELECT 1 FROM window AS part WHERE part.parent = root.id AND part.part_by <> 'date' AND part.state IN (1, 3))
FROM window AS root WHERE sweep = ? AND axis = 'date' AND purpose = 'cover' AND (part_by IS NULL OR part_by = 'date') AND state IN (0, 1, 2)
  AND coalesce(hi >= '1895', 1) AND coalesce(lo < '2101', 1)
"""
# A question without a key that was not answered whole, and does not block, was replaced by questions by other keys.
_OTHER_AXIS = "SELECT 1 FROM window WHERE sweep = ? AND axis = 'all' AND purpose = 'cover' AND part_by IS NULL AND state IN (1, 2) AND blocks = 0"

# Patients one by one: the list and every share of it answered, and nothing of it blocks. Questions by date then ask for a few patients only.
_NO_PATIENT_LEFT = """
SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM window WHERE sweep = :sweep AND axis = 'patient' AND parent IS NULL AND (state <> 1 OR blocks = 1))
"""


def coverage(connection: sqlite3.Connection) -> Coverage:
    """The newest sweep, day by day. Memory grows with the years in which anything was found, not with the studies."""
    sweep = connection.execute("SELECT coalesce(max(sweep), 0) FROM window").fetchone()[0]
    found: dict[datetime.date, tuple[int, int, int]] = {}
    undated = 0
    for text, count, hidden, several in connection.execute(_FOUND):
        date = as_date(text)
        if date is None:
            undated += count
        else:
            found[date] = (count, hidden, several)
    by_patient = asked_by_patient(connection, sweep)
    other_axis = connection.execute(*((_NO_PATIENT_LEFT, {"sweep": sweep}) if by_patient else (_OTHER_AXIS, (sweep,)))).fetchone() is not None
    years: dict[int, list[Day]] = {}
    empty: dict[int, list[Day]] = {}
    of_found = {date.year for date in found}
    all_years = range(min(of_found), max(of_found) + 1) if found else range(0)
    by_date = _by_date(connection, 0 if by_patient else sweep, all_years, other_axis)
    for year in all_years:
        first = datetime.date(year, 1, 1)
        days = (years if year in of_found else empty)[year] = []
        for number, swept in enumerate(by_date[year]):
            count, hidden, several = found.get(first + datetime.timedelta(number), (0, 0, 0))
            confirmed = bool(several) if count else other_axis and swept is not None
            days.append(Day(count, _judged(swept, bool(hidden), confirmed, other_axis), confirmed))
    return Coverage(years, empty, undated)


def _by_date(connection: sqlite3.Connection, sweep: int, years: Iterable[int], other_axis: bool) -> dict[int, list[Swept | None]]:
    """What the questions by date say of each day; None where there was none."""
    by_date: dict[int, list[Swept | None]] = {
        year: [None] * (datetime.date(year, 12, 31) - datetime.date(year, 1, 1) + datetime.timedelta(1)).days for year in years
    }
    for lo, hi, *row in connection.execute(_ROOTS, (sweep,)):
        swept = _of_window(*row, other_axis=other_axis)
        for year, days in by_date.items():
            first = datetime.date(year, 1, 1)
            begin = max(((as_date(lo) or first) - first).days, 0)
            end = min(((as_date(hi) or first + datetime.timedelta(len(days) - 1)) - first).days + 1, len(days))
            for number in range(begin, end):
                before = days[number]
                days[number] = swept if before is None else max(before, swept)
    return by_date


def _of_window(state: int, is_part: int, odd: int, blocks: int, cut: int, answered_in_parts: int, *, other_axis: bool) -> Swept:
    if state == 0 or (state == 2 and not answered_in_parts and not (other_axis and not blocks)):
        return Swept.NOT_SWEPT
    if blocks or (odd and not cut):
        return Swept.SUSPICIOUS
    return Swept.SPLIT if cut or is_part else Swept.ONE_AXIS


def _judged(swept: Swept | None, hidden: bool, confirmed: bool, other_axis: bool) -> Swept:
    if swept is None and not other_axis:
        return Swept.NOT_SWEPT
    if hidden and swept is not None and swept != Swept.NOT_SWEPT:
        return Swept.SUSPICIOUS
    if swept in (None, Swept.ONE_AXIS):
        return Swept.SEVERAL_AXES if confirmed else Swept.ONE_AXIS
    return swept


def as_date(text: str | None) -> datetime.date | None:
    """A DICOM date (PS3.5 6.2, DA); None where it is no date, or one at which nobody can have made an image."""
    if text is None or len(text) != 8 or not (text.isascii() and text.isdigit()) or not 1895 <= int(text[:4]) <= 2100:
        return None
    try:
        return datetime.date(int(text[:4]), int(text[4:6]), int(text[6:8]))
    except ValueError:
        return None


def gaps(covered: Coverage) -> list[Gap]:
    """Weekdays (Monday to Friday) without any study that stand out.

    One day: the same weekday of the two weeks before and of the two weeks after had BUSY studies or more, each of the four.
    SHORTEST_RUN weekdays in a row or more: the ten weekdays before and the ten after had BUSY studies a day or more on average.
    """
    found = {date: day for date, day in covered.days() if day.studies}
    if not found:
        return []
    first, last = min(found), max(found)
    weekdays = [date for date in (first + datetime.timedelta(number) for number in range((last - first).days + 1)) if date.weekday() < 5]
    counts = [found[date].studies if date in found else 0 for date in weekdays]
    swept = {date: day.swept for date, day in covered.days(between=True)}
    gaps: list[Gap] = []
    begin = 0
    for empty, group in itertools.groupby(counts, lambda count: count == 0):
        end = begin + len(list(group))
        if empty:
            for a, b in _standing_out(counts, begin, end):
                gaps.append(Gap(weekdays[a], weekdays[b - 1], b - a, max(swept[date] for date in weekdays[a:b])))
        begin = end
    return gaps


def _standing_out(counts: list[int], begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Which parts of a run of empty weekdays stand out, as (begin, end)."""
    if end - begin >= SHORTEST_RUN and begin >= 10 and sum(counts[begin - 10 : begin]) >= 10 * BUSY <= sum(counts[end : end + 10]):
        yield begin, end
        return
    for day in range(max(begin, 10), min(end, len(counts) - 10)):
        if all(counts[day + weeks * 5] >= BUSY for weeks in (-2, -1, 1, 2)):
            yield day, day + 1


_TOTAL = 9
_SIGNS = {Swept.SEVERAL_AXES: " ", Swept.ONE_AXIS: " ", Swept.SPLIT: "/", Swept.SUSPICIOUS: "!", Swept.NOT_SWEPT: "x"}


def coverage_text(covered: Coverage, width: int = 100) -> str:
    """A line a year with its months, or quarters where months do not fit into `width`: studies found, and a sign for the worst of its days."""
    if not covered.years:
        return "No study with a date has been found yet."
    parts = 12 if width >= _widths(covered, 12)[1] else 4
    column = _widths(covered, parts)[0]
    heads = [f"{datetime.date(2000, month, 1):%b}" for month in range(1, 13)] if parts == 12 else ["Q1", "Q2", "Q3", "Q4"]
    lines = [f"Studies found by {'month' if parts == 12 else 'quarter'}; / asked in smaller parts,", "! an answer is odd, x not answered.",
             "year" + "".join(head.rjust(column - 1) + " " for head in heads) + "total".rjust(_TOTAL)]  # fmt: skip
    before = min(covered.years) - 1
    for year, days in covered.years.items():
        if year - before > 1:
            lines.append(f"{before + 1}{f'-{year - 1}' if year - before > 2 else ''} no studies")
        before = year
        lines.append(f"{year:<4}" + "".join(cell.rjust(column) for cell in _cells(year, days, parts)) + f"{sum(day.studies for day in days):>{_TOTAL},}")
    if covered.undated:
        lines.append(f"{counted(covered.undated, 'study')} without a usable date.")
    found = gaps(covered)
    if found:
        more = f" and {len(found) - 10} more, see the report" if len(found) > 10 else ""
        lines.append(f"Weekdays without any study amid busy ones: {', '.join(span(gap) for gap in found[:10])}{more}.")
    return "\n".join(lines)


def _widths(covered: Coverage, parts: int) -> tuple[int, int]:
    """(of a column, of the whole) where a year has so many parts."""
    column = 1 + max(4, *(len(cell) for year, days in covered.years.items() for cell in _cells(year, days, parts)))
    return column, 4 + parts * column + _TOTAL


def _cells(year: int, days: list[Day], parts: int) -> list[str]:
    """Of each part of the year the studies, and the sign of its worst day."""
    first = datetime.date(year, 1, 1)
    groups = itertools.groupby(enumerate(days), lambda pair: ((first + datetime.timedelta(pair[0])).month - 1) * parts // 12)
    these = [[day for _, day in group] for _, group in groups]
    return [_short(sum(day.studies for day in group)) + _SIGNS[max(day.swept for day in group)] for group in these]


def _short(count: int) -> str:
    return "." if count == 0 else str(count) if count < 100_000 else f"{count // 1000}k"


def span(gap: Gap) -> str:
    """The days of a gap: 2020-05-05, or 2020-05-05 to 2020-05-08."""
    return f"{gap.first}" if gap.first == gap.last else f"{gap.first} to {gap.last}"


def coverage_document(covered: Coverage) -> dict[str, Any]:
    """The `coverage` part of report.json: days by class, studies by year, gaps."""
    days = {swept.name.lower(): 0 for swept in Swept}
    for _, day in covered.days():
        days[day.swept.name.lower()] += 1
    return {
        "days": days,
        "years": {str(year): sum(day.studies for day in of_year) for year, of_year in covered.years.items()},
        "undated": covered.undated,
        "gaps": [{"from": str(gap.first), "to": str(gap.last), "weekdays": gap.weekdays, "swept": gap.swept.name.lower()} for gap in gaps(covered)],
    }  # fmt: skip
