"""What the page draws: the calendar, the table of years and modalities, the bars."""

from __future__ import annotations

import datetime
import sqlite3
from dataclasses import dataclass
from typing import Any

from migrate.counted import counted
from migrate.reports.coverage import Coverage, Day, Gap, Swept, gaps, span

WORDS = {
    Swept.SEVERAL_AXES: "asked in two ways",
    Swept.ONE_AXIS: "asked in one way",
    Swept.SPLIT: "asked in parts",
    Swept.SUSPICIOUS: "odd answer",
    Swept.NOT_SWEPT: "not answered",
}
_LETTERS = {Swept.SEVERAL_AXES: "t", Swept.ONE_AXIS: "o", Swept.SPLIT: "p", Swept.SUSPICIOUS: "s", Swept.NOT_SWEPT: "n"}
_MODALITIES = 8
"""So many columns of the table; the others are added up."""


def calendar(covered: Coverage) -> dict[str, Any]:
    """The years as lists of cells; years without studies between them as one row of words."""
    missing = {date for gap in gaps(covered) for date in _days(gap)}
    limits = _limits(sorted(day.studies for _, day in covered.days() if day.studies))
    rows: list[dict[str, Any]] = []
    for year in covered.years:
        if rows and (without := year - rows[-1]["first"] - 1):
            rows.append({"first": year - 1, "empty": f"{year - without}" + (f" to {year - 1}" if without > 1 else "")})
        first = datetime.date(year, 1, 1)
        days = covered.years[year]
        cells = [_cell(first + datetime.timedelta(number), day, limits, missing) for number, day in enumerate(days)]
        rows.append({
            "first": year, "cells": cells, "studies": sum(day.studies for day in days), "begins": first.weekday() + 1,
            "months": [(datetime.date(year, month, 1).strftime("%b"), (first.weekday() + (datetime.date(year, month, 1) - first).days) // 7 + 1)
                       for month in range(1, 13)],
        })  # fmt: skip
    used = {day.swept for _, day in covered.days()}
    return {
        "rows": rows, "levels": _ranges(limits), "undated": covered.undated, "any_gap": bool(missing),
        "kinds": [(_LETTERS[swept], WORDS[swept], sum(day.swept == swept for _, day in covered.days())) for swept in Swept if swept in used],
    }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cell:
    """`mark` is the CSS class: how it was swept, and how many studies there are, from 0 to 4."""

    mark: str
    title: str


def _cell(date: datetime.date, day: Day, limits: list[int], missing: set[datetime.date]) -> Cell:
    level = sum(day.studies > limit for limit in limits) + 1 if day.studies else 0
    studies = counted(day.studies, 'study') if day.studies else "no studies"
    ways = " and in two ways" if day.swept == Swept.SPLIT and day.confirmed else ""
    gap = ", gap" if date in missing else ""
    return Cell(f"{_LETTERS[day.swept]}{level}" + (" g" if gap else ""), f"{date:%a} {date}: {studies}, {WORDS[day.swept]}{ways}{gap}")


def _days(gap: Gap) -> list[datetime.date]:
    days = (gap.first + datetime.timedelta(number) for number in range((gap.last - gap.first).days + 1))
    return [date for date in days if date.weekday() < 5]


def _limits(counts: list[int]) -> list[int]:
    """Where the first three of four shades end: a quarter of the days with studies has each, if the numbers allow it."""
    limits = {counts[len(counts) * quarter // 4] for quarter in (1, 2, 3)} if counts else set()
    return sorted(limits - {counts[-1]} if counts else limits)


def _ranges(limits: list[int]) -> list[str]:
    begins = [1, *(limit + 1 for limit in limits)]
    return [f"{a:,}" if a == b else f"{a:,} to {b:,}" for a, b in zip(begins, limits, strict=False)] + [f"{begins[-1]:,} or more"]


def gaps_in_words(covered: Coverage) -> list[str]:
    """Each gap with its weekdays and how its days were asked for."""
    return [
        f"{gap.first:%a} {span(gap)}" + (f", {gap.weekdays} weekdays" if gap.weekdays > 1 else "") + f" ({WORDS[gap.swept]})"
        for gap in gaps(covered)
    ]


def by_year_and_modality(connection: sqlite3.Connection) -> dict[str, Any]:
    """Studies by year and modality as a table, and bars for both. A study with two modalities counts under each of them.

    The modalities are those of the series that are listed; of a study that is not listed yet, what its row says.
    """
    years = connection.execute(
        "SELECT coalesce(substr(date, 1, 4), 'no date'), count(*), sum(state = 3) FROM study WHERE state <> 4 GROUP BY 1 ORDER BY 1"
    ).fetchall()
    cells: dict[tuple[str, str], int] = {}
    modalities: dict[str, list[int]] = {}
    listed = connection.execute(
        "SELECT coalesce(substr(date, 1, 4), 'no date'), coalesce(nullif(modality, ''), 'unknown'), count(*), sum(state = 3) "
        "FROM (SELECT DISTINCT study_id, modality FROM series) JOIN study ON study.id = study_id WHERE state <> 4 GROUP BY 1, 2"
    ).fetchall()
    said = connection.execute(
        "SELECT coalesce(substr(date, 1, 4), 'no date'), coalesce(nullif(modalities, ''), 'unknown'), count(*), sum(state = 3) "
        "FROM study WHERE state <> 4 AND NOT EXISTS (SELECT 1 FROM series WHERE study_id = study.id) GROUP BY 1, 2"
    )
    for year, names, count, done in (*listed, *said):
        for modality in set(names.split("\\")):
            cells[year, modality] = cells.get((year, modality), 0) + count
            tally = modalities.setdefault(modality, [0, 0])
            tally[0], tally[1] = tally[0] + count, tally[1] + done
    columns = sorted(modalities, key=lambda name: (-modalities[name][0], name))
    shown, others = columns[:_MODALITIES], columns[_MODALITIES:]
    rows = [
        (year, count, [cells.get((year, name), 0) for name in shown] + ([sum(cells.get((year, name), 0) for name in others)] if others else []))
        for year, count, _ in years
    ]
    return {
        "heads": shown + (["others"] if others else []), "rows": rows, "years": _scaled(years),
        "modalities": _scaled([(name, *modalities[name]) for name in sorted(modalities)]),
    }  # fmt: skip


def _scaled(rows: list[Any]) -> list[dict[str, Any]]:
    most = max((count for _, count, _ in rows), default=1)
    return [
        {"label": label, "count": count, "done": done or 0, "width": 400 * count / most, "done_width": 400 * (done or 0) / most}
        for label, count, done in rows
    ]
