"""Everything that is proven at the destination, in the order of its UIDs: what later checks are drawn from."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from migrate.evidence.sampling import Slice, Stratum
from migrate.model import Fixity, InstanceRef, InstanceState, Item, Receipt, StudyState, object_key

_PAGE = 200
_FIXITY = "size_bytes, file_sha256, dataset_sha256, crc64nvme"
_TALLIES = """
SELECT study.uid, study.date, modality, verified FROM series JOIN study ON study.id = study_id WHERE verified > 0
"""
_COPIES = """
SELECT study.uid, study.date, modality, 1 FROM copy JOIN series ON series.id = series_id JOIN study ON study.id = study_id WHERE copy.state = 3
"""
_OPEN = f"""
SELECT DISTINCT study.uid, series.uid, instance.sop_uid FROM event CROSS JOIN study ON study.uid = study_uid JOIN series ON study_id = study.id AND series.uid = series_uid
  JOIN instance ON series_id = series.id AND instance.sop_uid = event.sop_uid
WHERE event.kind = 'instance fell back' AND event.detail LIKE '''verified'',%' AND instance.state < {int(InstanceState.VERIFIED)} AND study.state <> {int(StudyState.ACCEPTED)}
ORDER BY 1, 2, 3
"""


class Population:
    """All verified objects, or those of a slice; `copies`: second contents, too.

    Read in pages of studies, so that no old state of the file is held on to while others write. `prefix`: of the object keys.
    """

    def __init__(self, connection: sqlite3.Connection, *, prefix: str = "", part: Slice | None = None, copies: bool = True) -> None:
        self._connection, self._prefix, self._part, self._copies = connection, prefix, part, copies

    def strata(self) -> dict[Stratum, int]:
        """How many objects there are of each year and modality."""
        counts: Counter[Stratum] = Counter()
        for query in (_TALLIES, _COPIES)[: 1 + self._copies]:
            for study, date, modality, count in self._connection.execute(query):
                if self._part is None or self._part.holds(study):
                    counts[_stratum(date, modality)] += count
        return dict(sorted(counts.items()))

    def open(self) -> list[str]:
        """The keys of what was proven once, was lost since, is not proven again, and was signed for by nobody."""
        rows = self._connection.execute(_OPEN).fetchall()
        return [object_key(InstanceRef(*uids), self._prefix) for uids in rows if self._part is None or self._part.holds(uids[0])]

    def series(self, takes: Callable[[Stratum], bool] = lambda _: True) -> Iterator[tuple[Stratum, list[Item]]]:
        """The objects that `takes` picks, a series at a time; it is asked once for each of the population.

        In the order of study, series, SOP Instance UID and copy, as `instances.csv.gz` has them. A series without any is left out.
        """
        last = ""
        while studies := self._connection.execute(
            "SELECT id, uid, date FROM study WHERE uid > ? ORDER BY uid LIMIT ?", (last, _PAGE)
        ).fetchall():
            for study_id, study, date in studies:
                if self._part is not None and not self._part.holds(study):
                    continue
                for series_id, series, modality in self._connection.execute(
                    "SELECT id, uid, modality FROM series WHERE study_id = ? ORDER BY uid", (study_id,)
                ).fetchall():
                    stratum = _stratum(date, modality)
                    rows = [row for row in self._rows(series_id) if takes(stratum)]
                    if rows:
                        yield stratum, [self._item(study, series, row) for row in rows]
            last = studies[-1][1]

    def origin(self, item: Item) -> tuple[str, int | None]:
        """(transfer syntax UID as it came, CRC-64/NVME from PixelData on or None) of an object that is no second content."""
        syntax, crc = self._connection.execute(
            "SELECT coalesce(uid_name.uid, ''), pixel_crc64 FROM study JOIN series ON series.study_id = study.id JOIN instance ON series_id = series.id "
            "LEFT JOIN uid_name ON uid_name.id = transfer_syntax_id WHERE study.uid = ? AND series.uid = ? AND sop_uid = ?",
            (item.ref.study, item.ref.series, item.ref.sop),
        ).fetchone()
        return syntax, None if crc is None else crc & (1 << 64) - 1

    def _rows(self, series_id: int) -> list[tuple[Any, ...]]:
        rows = self._connection.execute(
            f"SELECT sop_uid, 0, beside, version, {_FIXITY} FROM instance WHERE series_id = ? AND state = 3 ORDER BY sop_uid", (series_id,)
        ).fetchall()
        copies = self._connection.execute(
            f"SELECT sop_uid, 1, 1, version, {_FIXITY} FROM copy WHERE series_id = ? AND state = 3 ORDER BY sop_uid, dataset_sha256", (series_id,)
        ).fetchall() if self._copies else []  # fmt: skip
        return sorted(rows + copies, key=lambda row: row[:2]) if copies else rows

    def _item(self, study: str, series: str, row: tuple[Any, ...]) -> Item:
        sop, copy, beside, version, size, file_sha, dataset_sha, crc = row
        ref = InstanceRef(study, series, sop)
        key = object_key(ref, self._prefix, beside=dataset_sha if beside else None)
        return Item(ref, Fixity(size, file_sha, dataset_sha, crc & (1 << 64) - 1), bool(beside), bool(copy), Receipt(key, version))


def _stratum(date: str | None, modality: str) -> Stratum:
    year = (date or "")[:4]
    return Stratum(year if len(year) == 4 and year.isascii() and year.isdigit() else "undated", modality or "none")
