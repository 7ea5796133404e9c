"""Three sides that must agree: what the PACS said it has, what came, what is proven at the destination. By year and modality."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Any

from migrate.reports.coverage import as_date
from migrate.reports.modalities import in_words

_TALLIES = """
SELECT study.date, series.modality, sum(expected + staged + stored + verified), sum(staged + stored + verified), sum(verified)
FROM study CROSS JOIN series ON series.study_id = study.id GROUP BY study.date, series.modality
"""
_ODD = """
SELECT study.date, series.modality, instance.listed, instance.state > 0, instance.state = 3, count(*)
FROM instance INDEXED BY instance_odd CROSS JOIN series ON series.id = instance.series_id CROSS JOIN study ON study.id = series.study_id
WHERE instance.listed = 0 OR instance.conflict = 1 GROUP BY 1, 2, 3, 4, 5
"""
_UNLISTED_STUDIES = "SELECT count(*), coalesce(sum(claimed_instances), 0) FROM study WHERE listed_instances IS NULL AND state <> 4"


@dataclass(slots=True)
class Sides:
    """Instances: `said` by the PACS (its IMAGE answers), `received` and `proven` of those; `unlisted` came without being said.

    An instance in conflict was received but is not proven: other bytes exist under its UIDs.
    """

    said: int = 0
    received: int = 0
    proven: int = 0
    unlisted: int = 0

    def add(self, other: Sides) -> None:
        self.said += other.said
        self.received += other.received
        self.proven += other.proven
        self.unlisted += other.unlisted

    @property
    def agree(self) -> bool:
        """Asked by the page: nothing is missing."""
        return self.said == self.received == self.proven


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """`cells` by (year, modality); `unasked` studies have not been asked for their images, for which the PACS claims `claimed` images."""

    cells: dict[tuple[str, str], Sides]
    unasked: int
    claimed: int

    def by(self, part: int) -> list[tuple[str, Sides]]:
        """Sums by year (0) or modality (1)."""
        sums: dict[str, Sides] = {}
        for key, sides in self.cells.items():
            sums.setdefault(key[part], Sides()).add(sides)
        return sorted(sums.items())

    @property
    def total(self) -> Sides:
        total = Sides()
        for sides in self.cells.values():
            total.add(sides)
        return total

    def document(self) -> dict[str, Any]:
        """The part of report.json."""
        rows = [
            {"year": year, "modality": modality, "said": sides.said, "received": sides.received, "proven": sides.proven, "unlisted": sides.unlisted}
            for (year, modality), sides in sorted(self.cells.items())
        ]
        return {"rows": rows, "unasked_studies": self.unasked, "claimed_by_unasked": self.claimed}


def reconciliation(connection: sqlite3.Connection) -> Reconciliation:
    """Of all studies. Memory grows with years and modalities, not with studies."""
    cells: dict[tuple[str, str], Sides] = {}

    def cell(date: str | None, modality: str) -> Sides:
        year = str(day.year) if (day := as_date(date)) else "no date"
        return cells.setdefault((year, modality or "unknown"), Sides())

    for date, modality, all_of_them, came, verified in connection.execute(_TALLIES):
        cell(date, modality).add(Sides(all_of_them, came, verified))
    for date, modality, listed, came, verified, count in connection.execute(_ODD):
        sides = cell(date, modality)
        sides.proven -= count if verified else 0
        if not listed:
            sides.said -= count
            sides.received -= count if came else 0
            sides.unlisted += count if came else 0
    return Reconciliation(cells, *connection.execute(_UNLISTED_STUDIES).fetchone())


_COLUMNS = 8


def for_the_page(reconciled: Reconciliation) -> dict[str, Any]:
    """Tables and pictures by year, by modality, and by both; of many modalities the rarest share a column."""
    years, modalities = reconciled.by(0), reconciled.by(1)
    often = [name for name, _ in sorted(modalities, key=lambda row: (-row[1].said, row[0]))]
    columns, others = often[:_COLUMNS], set(often[_COLUMNS:])
    grid: list[tuple[str, list[Sides | None]]] = []
    for year, _ in years:
        row: list[Sides | None] = [reconciled.cells.get((year, name)) for name in columns]
        if others:
            rest = Sides()
            for (when, name), sides in reconciled.cells.items():
                if when == year and name in others:
                    rest.add(sides)
            row.append(rest if rest != Sides() else None)
        grid.append((year, row))
    return {
        "cells": reconciled.cells, "unasked": reconciled.unasked, "claimed": reconciled.claimed, "total": reconciled.total, "grid": grid,
        "by_year": years, "by_modality": modalities, "years": _picture(years), "modalities": _picture(modalities),
        "words": in_words(name for name, _ in modalities), "columns": columns + (["others"] if others else []),
    }  # fmt: skip


def _picture(rows: list[tuple[str, Sides]]) -> list[dict[str, Any]]:
    """What the page draws: three bars a row, widths in pixels."""
    most = max((max(sides.said, sides.received, sides.proven) for _, sides in rows), default=0) or 1
    return [
        {"label": label, "sides": sides, "bars": [(400 * count / most, name) for count, name in
                                                  ((sides.said, "said"), (sides.received, "received"), (sides.proven, "proven"))]}
        for label, sides in rows
    ]  # fmt: skip
