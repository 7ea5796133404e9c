"""The only writer of the manifest: `commit` turns facts into rows, one transaction a batch."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from migrate import __version__
from migrate.errors import LawBroken
from migrate.failpoints import reach
from migrate.manifest import arrivals, settlement, studies, windows
from migrate.manifest.announcements import announce
from migrate.manifest.file import claim_identity, disk_error, now_ms, open_writer, telling_disk
from migrate.manifest.seals import Sealer
from migrate.model import (
    DestinationLost,
    Failed,
    HabitLearned,
    InstanceRef,
    InstanceStaged,
    InstanceState,
    InstanceStored,
    InstanceVerified,
    Item,
    Noted,
    Outcome,
    RetrieveEnded,
    RetryPolicy,
    StagedLost,
    StudyConfirmed,
    StudyFound,
    StudyPlanned,
    StudyRef,
    StudyState,
    WindowAnswered,
    WindowAsked,
    WindowFailed,
    WindowJudged,
    WindowsDropped,
    WindowsPlanned,
)

_CHECKPOINT_BYTES = 16 << 20
_NOT_STORED = (
    "proof = NULL, verified_at = NULL, stored_at = NULL, version = NULL, checksum = NULL, stored_seal = NULL, verified_seal = NULL"
)
_NOT_STAGED = f"{_NOT_STORED}, staged_at = NULL, staged_seal = NULL"
_NOTHING = (
    f"{_NOT_STAGED}, size_bytes = NULL, dataset_sha256 = NULL, file_sha256 = NULL, crc64nvme = NULL, pixel_crc64 = NULL, notes = NULL, "
    "sop_class_id = NULL, transfer_syntax_id = NULL"
)


@dataclass
class Effects:
    """What may be done on the disk once the batch is committed."""

    release: list[Item] = field(default_factory=list)  # proven: the staged file may go
    drop: list[tuple[Path, int]] = field(default_factory=list)  # repeats that no row needs


class Manifest:
    """The open manifest of a running command. Not thread-safe: one thread commits.

    Raises what `open_writer` and `claim_identity` raise.
    """

    def __init__(self, path: Path, *, identity: dict[str, str], policy: RetryPolicy, create: bool = True) -> None:
        self.path, self.policy = path, policy
        self.connection = open_writer(path, create=create)
        self.sealer = Sealer(self.connection)
        self.run_id = 0
        self.first_sweep: int | None = None
        self.asks_again = False  # whether a study closes only after a last look at IMAGE level
        self.studies_found = 0  # new ones, since the file was opened
        self.repeats = False  # whether the last rows of a sweep showed nothing that it had not shown already
        self.arrived: dict[str, dict[tuple[str, str, int | None], bytes]] = {}  # by study, since its last RetrieveEnded: first contents
        self._studies: dict[str, int] = {}
        self._series: dict[tuple[str, str], int] = {}
        self._names: dict[str, int] = {}
        self.touched: set[int] = set()
        self.effects = Effects()
        with telling_disk(path), self.transaction():
            claim_identity(self.connection, identity)
        reach("identity-claimed")

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

    # -- runs
    def begin_run(self, verb: str, operator: str, config_sha256: str) -> int:
        """Record that a command has begun; its number stands in every event."""
        host = socket.gethostname()
        with telling_disk(self.path), self.transaction():
            cursor = self.execute(
                "INSERT INTO run(verb, operator, host, pid, version, sqlite_version, config_sha256, started_at) VALUES (?,?,?,?,?,?,?,?)",
                verb, operator, host, os.getpid(), __version__, sqlite3.sqlite_version, config_sha256, now_ms(),
            )  # fmt: skip
            self.run_id = int(cursor.lastrowid or 0)
            self.sealer.run = (self.run_id, operator, host, __version__)
        return self.run_id

    def end_run(self, exit_code: int) -> None:
        """Record how the command ended."""
        with self.transaction():
            self.execute("UPDATE run SET ended_at = ?, exit_code = ? WHERE id = ?", now_ms(), exit_code, self.run_id)

    def has_moved(self) -> bool:
        """Whether an instance has taken a step in this run."""
        return self.execute("SELECT 1 FROM seal WHERE run_id = ? AND steps > 0 LIMIT 1", self.run_id).fetchone() is not None

    def set_meta(self, key: str, value: str) -> None:
        """Write down one fact about the manifest as a whole."""
        with telling_disk(self.path), self.transaction():
            self.execute("INSERT INTO meta VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value", key, value)

    def close(self) -> None:
        """Checkpoint and close; the file alone is whole then."""
        try:
            reach("checkpoint-begun")
            self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            reach("checkpoint-done")
        except sqlite3.OperationalError:
            pass  # a reader is looking at an older state: the log stays beside the file, nothing is lost
        finally:
            self.connection.close()

    # -- facts
    def commit(self, outcomes: Iterable[Outcome]) -> Effects:
        """Write a batch of facts in one durable transaction: all of them or none.

        Replaying a fact about an instance or a window changes nothing; a replayed failure counts as one more attempt. Raises LawBroken, DiskFull, DiskFailing.
        """
        self.touched, self.effects = set(), Effects()
        try:
            with self.transaction():
                reach("commit-begun")
                for shown, group in itertools.groupby(outcomes, lambda outcome: isinstance(outcome, StudyFound)):
                    if shown:
                        studies.found(self, list(cast(Iterable[StudyFound], group)))
                    else:
                        for outcome in group:
                            self._apply(outcome)
                reach("commit-applied")
                for study_id in sorted(self.touched):
                    settlement.settle(self, study_id)
                reach("commit-settled")
            reach("commit-done")
        except sqlite3.IntegrityError as error:
            raise LawBroken(f"The manifest refused a step: {error}.") from error
        except sqlite3.Error as error:
            raise disk_error(error, self.path) from error
        self.checkpoint(_CHECKPOINT_BYTES)
        return self.effects

    def checkpoint(self, over_bytes: int = 0) -> None:
        """Move the write-ahead log into the file when it is larger than that; by the writer alone."""
        wal = self.path.with_name(self.path.name + "-wal")
        if wal.exists() and wal.stat().st_size > over_bytes:
            reach("checkpoint-begun")
            with telling_disk(self.path):
                self.connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
            reach("checkpoint-done")

    def _forget(self) -> None:
        """After a rollback the caches may name rows that are not there."""
        self._studies.clear()
        self._series.clear()
        self._names.clear()

    def _apply(self, outcome: Outcome) -> None:
        match outcome:
            case StudyFound():
                studies.found(self, [outcome])
            case WindowsPlanned() | WindowsDropped() | WindowAsked() | WindowAnswered() | WindowFailed() | WindowJudged() | HabitLearned():
                windows.apply(self.connection, outcome, self.policy)
            case StudyPlanned():
                studies.planned(self, outcome)
            case StudyConfirmed(plan):
                studies.confirmed(self, plan)
            case InstanceStaged(received, fixity):
                arrivals.staged(self, received, fixity)
            case RetrieveEnded():
                studies.retrieve_ended(self, outcome)
            case InstanceStored(item, receipt):
                now = now_ms()
                if self._move(item, InstanceState.STAGED, InstanceState.STORED,
                              "stored_at = :now, version = :version, checksum = :checksum, stored_seal = :seal", now=now,
                              version=receipt.version, checksum=receipt.checksum):  # fmt: skip
                    self.sealer.stored(item, now, receipt.version, receipt.checksum)
            case InstanceVerified(item, proof):
                self._verified(item, int(proof))
            case StagedLost(item, detail):
                self._move(item, InstanceState.STAGED, InstanceState.EXPECTED, _gone(item))
                self.log("staged file lost", detail, item.ref)
            case DestinationLost():
                self._destination_lost(outcome)
            case Failed():
                studies.failed(self, outcome)
            case Noted():
                self.execute("INSERT INTO event(run_id, kind, study_uid, series_uid, sop_uid, detail) VALUES (?,?,?,?,?,?)",
                             self.run_id, outcome.kind, outcome.study, outcome.series, outcome.sop, outcome.detail)  # fmt: skip

    # -- studies
    def set_state(self, study_id: int, state: StudyState) -> None:
        """Move a study; entering FOUND or RETRIEVED starts its attempts anew."""
        fresh = ", attempts = 0, not_before = 0, stage = NULL" if state in (StudyState.FOUND, StudyState.RETRIEVED) else ""
        fresh += ", confirmed = 0" if state in (StudyState.FOUND, StudyState.PLANNED) else ""
        self.execute(f"UPDATE study SET changed_at = CASE WHEN state = ?1 THEN changed_at ELSE ?2 END, state = ?1{fresh} WHERE id = ?3",
                     int(state), now_ms(), study_id)  # fmt: skip
        self.touched.add(study_id)

    # -- instances
    def _move(self, item: Item, old: InstanceState, new: InstanceState, also: str, **values: object) -> bool:
        """Take one step if the row stands where the step begins; a replay finds it elsewhere and changes nothing."""
        series_id = self.series_id(item.ref.study, item.ref.series)
        table, more = ("copy", " AND dataset_sha256 = :sha") if item.copy else ("instance", "")
        cursor = self.connection.execute(
            f"UPDATE {table} SET state = :new, {also} WHERE series_id = :series AND sop_uid = :sop AND state = :old{more}",
            {"new": int(new), "old": int(old), "series": series_id, "sop": item.ref.sop, "sha": item.fixity.dataset_sha256,
             "seal": self.sealer.number, **values},
        )  # fmt: skip
        self.touched.add(self.study_id(item.ref.study))
        return cursor.rowcount > 0

    def _verified(self, item: Item, proof: int) -> None:
        now = now_ms()
        if self._move(item, InstanceState.STORED, InstanceState.VERIFIED, "proof = :proof, verified_at = :now, verified_seal = :seal",
                      proof=proof, now=now):  # fmt: skip
            self.sealer.verified(item, now, proof)
            self.effects.release.append(item)
        elif not item.copy:
            raised = self.execute(
                "UPDATE instance SET proof = ?1, verified_seal = ?2 WHERE series_id = ?3 AND sop_uid = ?4 AND state = 3 AND proof < ?1 "
                "RETURNING verified_at",
                proof, self.sealer.number, self.series_id(item.ref.study, item.ref.series), item.ref.sop,
            ).fetchall()  # fmt: skip
            for (verified_at,) in raised:
                self.sealer.verified(item, verified_at, proof)

    def _destination_lost(self, lost: DestinationLost) -> None:
        item = lost.item
        back = InstanceState.STAGED if lost.file_kept else InstanceState.EXPECTED
        odd = ", conflict = 1, beside = 1" if lost.differs and not item.copy else ""
        moved = (
            self._move(item, InstanceState.VERIFIED, InstanceState.EXPECTED, _gone(item) + odd)
            or self._move(item, InstanceState.STORED, back, (_NOT_STORED if lost.file_kept else _gone(item)) + odd)
            or (lost.differs and self._move(item, InstanceState.STAGED, InstanceState.STAGED, _NOT_STORED + odd))
        )
        if moved:
            self.log("object differs" if lost.differs else "object missing", lost.detail, item.ref)

    # -- rows
    def execute(self, sql: str, *values: object) -> sqlite3.Cursor:
        return self.connection.execute(sql, values)

    def one(self, sql: str, *values: object) -> tuple[int, ...]:
        return self.connection.execute(sql, values).fetchone()  # type: ignore[no-any-return]

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
                event = announce(self, [(uid, None, None, "", None)], now)
                self.execute("INSERT INTO study(uid, found_event, found_at, changed_at) VALUES (?, ?, ?, ?)", uid, event, now, now)
                row = self.one("SELECT id FROM study WHERE uid = ?", uid)
            self._remember(self._studies, uid, row[0])
        return self._studies[uid]

    def series_id(self, study: str, series: str, modality: str = "") -> int:
        key = (study, series)
        if key not in self._series or modality:
            study_id = self.study_id(study)
            self.execute(
                "INSERT INTO series(study_id, uid, modality) VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET modality = excluded.modality "
                "WHERE modality = '' AND excluded.modality <> ''", study_id, series, modality,
            )  # fmt: skip
            self._remember(self._series, key, self.one("SELECT id FROM series WHERE study_id = ? AND uid = ?", study_id, series)[0])
        return self._series[key]

    def name_id(self, uid: str) -> int:
        """The number that stands for a SOP class or transfer syntax."""
        if uid not in self._names:
            self.execute("INSERT OR IGNORE INTO uid_name(uid) VALUES (?)", uid)
            self._names[uid] = self.one("SELECT id FROM uid_name WHERE uid = ?", uid)[0]
        return self._names[uid]

    @staticmethod
    def _remember(cache: dict, key: object, value: int) -> None:  # type: ignore[type-arg]
        if len(cache) > 50_000:
            cache.clear()
        cache[key] = value


def _gone(item: Item) -> str:
    """What falling back to expected clears; its event keeps all of it. A copy is known by its bytes, and keeps those."""
    return _NOT_STAGED if item.copy else _NOTHING
