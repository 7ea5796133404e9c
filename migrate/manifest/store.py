"""The only writer of the manifest: `commit` turns facts into rows, one transaction a batch; `writer` has the means."""

from __future__ import annotations

import itertools
import os
import socket
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import cast

from migrate import __version__
from migrate.errors import LawBroken
from migrate.failpoints import reach
from migrate.manifest import arrivals, settlement, studies, windows
from migrate.manifest.file import claim_identity, disk_error, now_ms, telling_disk
from migrate.manifest.writer import Effects, Writer
from migrate.model import (
    DestinationLost,
    Failed,
    HabitLearned,
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


class Manifest(Writer):
    """The open manifest of a running command. Not thread-safe: one thread commits.

    Raises what `open_writer` and `claim_identity` raise.
    """

    def __init__(self, path: Path, *, identity: dict[str, str], policy: RetryPolicy, create: bool = True) -> None:
        super().__init__(path, policy, create=create)
        with telling_disk(path), self.transaction():
            claim_identity(self.connection, identity)
        reach("identity-claimed")

    # -- runs
    def begin_run(self, verb: str, operator: str, config_sha256: str, *, host: str | None = None) -> int:
        """Record that a command has begun, on this machine unless another is named; its number stands in every event."""
        host = host or socket.gethostname()
        with telling_disk(self.path), self.transaction():
            cursor = self.execute(
                "INSERT INTO run(verb, operator, host, pid, version, sqlite_version, config_sha256, started_at) VALUES (?,?,?,?,?,?,?,?)",
                verb, operator, host, os.getpid(), __version__, sqlite3.sqlite_version, config_sha256, now_ms(),
            )  # fmt: skip
            self.run_id = int(cursor.lastrowid or 0)
            self.sealer.run = (self.run_id, operator, host, __version__)
        return self.run_id

    def shorten_waits(self) -> None:
        """What is put off for longer than anything is ever put off is due: the clock was set back meanwhile."""
        farthest = now_ms() + round(self.policy.max_wait_s * 2000)
        with telling_disk(self.path), self.transaction():
            for table in ("study", "window"):
                self.execute(f"UPDATE {table} SET not_before = 1 WHERE not_before > ?", farthest)

    def end_run(self, exit_code: int) -> None:
        """Record how the command ended. Raises DiskFull, DiskFailing."""
        with telling_disk(self.path), self.transaction():
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
            self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
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
                self._apply_all(outcomes)
                reach("commit-applied")
                for study_id in sorted(self.touched):
                    settlement.settle(self, study_id)
                reach("commit-settled")
            reach("commit-done")
        except sqlite3.IntegrityError as error:
            raise LawBroken(f"The manifest refused a step: {error}.") from error
        except sqlite3.Error as error:
            raise disk_error(error, self.path) from error
        self.checkpoint()
        return self.effects

    def checkpoint(self, over_bytes: int = _CHECKPOINT_BYTES) -> None:
        """Move the write-ahead log into the file when it is larger than that; by the writer alone."""
        wal = self.path.with_name(self.path.name + "-wal")
        if wal.exists() and wal.stat().st_size > over_bytes:
            reach("checkpoint-begun")
            with telling_disk(self.path):
                self.connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            reach("checkpoint-done")

    def _apply_all(self, outcomes: Iterable[Outcome]) -> None:
        """In their order; studies that were found one after the other go in together."""
        for shown, group in itertools.groupby(outcomes, lambda outcome: isinstance(outcome, StudyFound)):
            if shown:
                studies.found(self, list(cast(Iterable[StudyFound], group)))
            else:
                for outcome in group:
                    self._apply(outcome)

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
                if self._move(item, InstanceState.STAGED, InstanceState.EXPECTED, _gone(item)):
                    self.log("staged file lost", detail, item.ref)
                    arrivals.lost(self, item.ref, detail)
            case DestinationLost():
                self._destination_lost(outcome)
            case Failed():
                studies.failed(self, outcome)
            case Noted():
                self.execute("INSERT INTO event(run_id, kind, study_uid, series_uid, sop_uid, detail) VALUES (?,?,?,?,?,?)",
                             self.run_id, outcome.kind, outcome.study, outcome.series, outcome.sop, outcome.detail)  # fmt: skip

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
                "UPDATE instance SET proof = ?, verified_seal = ? WHERE series_id = ? AND sop_uid = ? AND state = 3 AND proof < ? "
                "RETURNING verified_at",
                proof, self.sealer.number, self.series_id(item.ref.study, item.ref.series), item.ref.sop, proof,
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


def _gone(item: Item) -> str:
    """What falling back to expected clears; its event keeps all of it. A copy is known by its bytes, and keeps those."""
    return _NOT_STAGED if item.copy else _NOTHING
