"""What all who write rows of the manifest share: one connection, one kind of transaction, and the numbers of rows that were met before."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from migrate.manifest.announcements import announce
from migrate.manifest.file import now_ms, open_writer
from migrate.manifest.seals import Sealer
from migrate.model import InstanceRef, Item, RetryPolicy, StudyRef, StudyState

_Key = TypeVar("_Key")
_REMEMBERED = 1_000
"""UIDs of studies, and of series, whose row numbers are kept in memory, below 1 MB."""


@dataclass
class Effects:
    """What may be done on the disk once the batch is committed."""

    release: list[Item] = field(default_factory=list)  # proven: the staged file may go
    drop: list[tuple[Path, int]] = field(default_factory=list)  # repeats that no row needs


class Writer:
    """The open manifest, as those see it who turn facts into rows. Not thread-safe: one thread writes.

    Raises what `open_writer` raises.
    """

    def __init__(self, path: Path, policy: RetryPolicy, *, create: bool) -> None:
        self.path, self.policy = path, policy
        self.connection = open_writer(path, create=create)
        self.sealer = Sealer(self.connection)
        self.run_id = 0
        self.own_sweep: int | None = None  # the first one that this run has begun itself: its rows are of now
        self.asks_again = False  # whether a study closes only after a last look at IMAGE level
        self.studies_found = 0  # new ones that are not left out, since the file was opened
        self.repeats = False  # whether the last rows of a sweep showed nothing that it had not shown already
        self.arrived: dict[str, dict[tuple[str, str, int | None], bytes]] = {}  # by study, since its last RetrieveEnded: first contents
        self.touched: set[int] = set()  # studies whose rows the batch has changed
        self.effects = Effects()
        self._studies: dict[str, int] = {}
        self._series: dict[tuple[str, str], int] = {}
        self._names: dict[str, int] = {}

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """The one way to write: what is done inside is committed and sealed as a whole, or not at all."""
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            self.sealer.begin()
            yield
            self.sealer.seal(now_ms())
            self.connection.execute("COMMIT")
        except BaseException:
            self._forget()
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            raise

    def _forget(self) -> None:
        """After a rollback the caches may name rows that are not there."""
        self._studies.clear()
        self._series.clear()
        self._names.clear()

    def set_state(self, study_id: int, state: StudyState) -> None:
        """Move a study; entering FOUND or RETRIEVED starts its attempts anew."""
        fresh = ", attempts = 0, not_before = 0, stage = NULL" if state in (StudyState.FOUND, StudyState.RETRIEVED) else ""
        fresh += ", confirmed = 0" if state in (StudyState.FOUND, StudyState.PLANNED) else ""
        self.execute(f"UPDATE study SET changed_at = CASE WHEN state = ? THEN changed_at ELSE ? END, state = ?{fresh} WHERE id = ?",
                     int(state), now_ms(), int(state), study_id)  # fmt: skip
        self.touched.add(study_id)

    def execute(self, sql: str, *values: object) -> sqlite3.Cursor:
        return self.connection.execute(sql, values)

    def one(self, sql: str, *values: object) -> Any:
        """The first row of the answer, or None."""
        return self.connection.execute(sql, values).fetchone()

    def log(self, kind: str, detail: str, ref: InstanceRef | None = None, *, study: str | None = None) -> None:
        """Add an event; never with names, IDs or birth dates."""
        uids = (ref.study, ref.series, ref.sop) if ref else (study, None, None)
        with contextlib.nullcontext() if self.connection.in_transaction else self.transaction():
            self.execute("INSERT INTO event(run_id, kind, study_uid, series_uid, sop_uid, detail) VALUES (?,?,?,?,?,?)",
                         self.run_id, kind, *uids, detail)  # fmt: skip

    def study_id(self, uid: str) -> int:
        """The study's row, made if it came without ever being listed."""
        if uid not in self._studies:
            row = self.one("SELECT id FROM study WHERE uid = ?", uid)
            if row is None:
                now = now_ms()
                StudyRef(uid)
                event = announce(self.connection, self.run_id, [(uid, None, None, "", None)], now)
                self.execute("INSERT INTO study(uid, found_event, found_at, changed_at) VALUES (?, ?, ?, ?)", uid, event, now, now)
                row = self.one("SELECT id FROM study WHERE uid = ?", uid)
            _remember(self._studies, uid, row[0])
        return self._studies[uid]

    def series_id(self, study: str, series: str, modality: str = "") -> int:
        """The series' row, made if it is new; a modality fills in what was not known."""
        key = (study, series)
        if key not in self._series or modality:
            study_id = self.study_id(study)
            self.execute(
                "INSERT INTO series(study_id, uid, modality) VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET modality = excluded.modality "
                "WHERE modality = '' AND excluded.modality <> ''", study_id, series, modality,
            )  # fmt: skip
            _remember(self._series, key, self.one("SELECT id FROM series WHERE study_id = ? AND uid = ?", study_id, series)[0])
        return self._series[key]

    def name_id(self, uid: str) -> int:
        """The number that stands for a SOP class or transfer syntax."""
        if uid not in self._names:
            self.execute("INSERT OR IGNORE INTO uid_name(uid) VALUES (?)", uid)
            self._names[uid] = self.one("SELECT id FROM uid_name WHERE uid = ?", uid)[0]
        return self._names[uid]


def _remember(cache: dict[_Key, int], key: _Key, number: int) -> None:
    if len(cache) > _REMEMBERED:
        cache.clear()
    cache[key] = number
