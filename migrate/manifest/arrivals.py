"""What happens to the manifest when a file has arrived and is durable: first content, repeat, rewrite, second content."""

from __future__ import annotations

import json
from typing import Any

from migrate.manifest import studies
from migrate.manifest.file import now_ms
from migrate.manifest.writer import Writer
from migrate.model import Failed, Fixity, InstanceRef, InstanceState, Item, Received, StudyRef, is_uid


def staged(manifest: Writer, received: Received, fixity: Fixity) -> None:
    """Attribute a durable file by its UIDs, whoever asked for it."""
    ref = received.ref
    if ref is None:
        _quarantined(manifest, received, fixity)
        return
    series_id = manifest.series_id(ref.study, ref.series)
    manifest.touched.add(manifest.study_id(ref.study))
    row: tuple[Any, ...] | None = manifest.one(
        "SELECT state, dataset_sha256, pixel_crc64 FROM instance WHERE series_id = ? AND sop_uid = ?",
        series_id,
        ref.sop,
    )
    arrived = manifest.arrived.setdefault(ref.study, {})
    digest = fixity.dataset_sha256
    key = (ref.series, ref.sop, received.move)  # another content within this C-MOVE or, where that is not named, this attempt
    again = arrived.setdefault(key, digest) != digest
    if row is None or row[0] == InstanceState.EXPECTED:
        _first(manifest, received, fixity, ref, series_id)
    elif row[1] == digest:
        if row[0] == InstanceState.VERIFIED:
            manifest.effects.drop.append((received.path, fixity.size_bytes))
    elif (
        not again
        and received.pixel_crc64 is not None
        and row[2] == _signed(received.pixel_crc64)
        and not _is_kept(manifest, series_id, ref.sop, digest)  # its row promises this very file
    ):
        manifest.log("header rewritten at source", f"data set {fixity.dataset_sha256.hex()} came, same pixels", ref)
        manifest.effects.drop.append((received.path, fixity.size_bytes))
    else:
        _second(manifest, received, fixity, ref, series_id)


def _is_kept(manifest: Writer, series_id: int, sop: str, digest: bytes) -> bool:
    sql = "SELECT 1 FROM copy WHERE series_id = ? AND sop_uid = ? AND dataset_sha256 = ?"
    return manifest.execute(sql, series_id, sop, digest).fetchone() is not None


def _first(manifest: Writer, received: Received, fixity: Fixity, ref: InstanceRef, series_id: int) -> None:
    now, notes = now_ms(), ",".join(received.notes) or None
    columns = {
        "state": int(InstanceState.STAGED), "sop_class_id": manifest.name_id(received.sop_class),
        "transfer_syntax_id": manifest.name_id(received.transfer_syntax), "size_bytes": fixity.size_bytes,
        "dataset_sha256": fixity.dataset_sha256, "file_sha256": fixity.file_sha256, "crc64nvme": _signed(fixity.crc64nvme),
        "pixel_crc64": None if received.pixel_crc64 is None else _signed(received.pixel_crc64),
        "notes": notes, "staged_at": now, "staged_seal": manifest.sealer.number,
    }  # fmt: skip
    names = ", ".join(columns)
    sets = ", ".join(f"{name} = excluded.{name}" for name in columns)
    manifest.execute(
        f"INSERT INTO instance(series_id, sop_uid, listed, {names}) VALUES (?, ?, 0, {', '.join('?' * len(columns))}) "
        f"ON CONFLICT DO UPDATE SET {sets}",
        series_id, ref.sop, *columns.values(),
    )  # fmt: skip
    manifest.sealer.staged(Item(ref, fixity), now, pixel_crc64=received.pixel_crc64, sop_class=received.sop_class,
                           syntax=received.transfer_syntax, notes=notes)  # fmt: skip


def _second(manifest: Writer, received: Received, fixity: Fixity, ref: InstanceRef, series_id: int) -> None:
    row = manifest.one(
        "SELECT state FROM copy WHERE series_id = ? AND sop_uid = ? AND dataset_sha256 = ?",
        series_id,
        ref.sop,
        fixity.dataset_sha256,
    )
    if row is not None and row[0] == InstanceState.VERIFIED:
        manifest.effects.drop.append((received.path, fixity.size_bytes))
        return
    now = now_ms()
    staged = manifest.execute(
        "INSERT INTO copy(series_id, sop_uid, dataset_sha256, size_bytes, file_sha256, crc64nvme, staged_at, staged_seal) "
        "VALUES (?,?,?,?,?,?,?,?) ON CONFLICT DO UPDATE SET state = 1, size_bytes = excluded.size_bytes, file_sha256 = excluded.file_sha256, "
        "crc64nvme = excluded.crc64nvme, staged_at = excluded.staged_at, staged_seal = excluded.staged_seal WHERE state = 0",
        series_id, ref.sop, fixity.dataset_sha256, fixity.size_bytes, fixity.file_sha256, _signed(fixity.crc64nvme), now,
        manifest.sealer.number,
    )  # fmt: skip
    if staged.rowcount > 0:
        manifest.sealer.staged(Item(ref, fixity, beside=True, copy=True), now, pixel_crc64=None, sop_class=None, syntax=None, notes=None)
    manifest.execute("UPDATE instance SET conflict = 1 WHERE series_id = ? AND sop_uid = ?", series_id, ref.sop)


def _quarantined(manifest: Writer, received: Received, fixity: Fixity) -> None:
    study, series, sop = (uid if is_uid(uid) else None for uid in received.claimed)
    manifest.execute(
        "INSERT OR IGNORE INTO quarantine(study_uid, series_uid, sop_uid, file, reason, claimed, size_bytes, file_sha256, received_at) "
        "VALUES (?,?,?,?,?,?,?,?,?)",
        study, series, sop, received.path.name, received.quarantine or "not a data set", json.dumps(received.claimed),
        fixity.size_bytes, fixity.file_sha256, now_ms(),
    )  # fmt: skip
    if study:
        manifest.touched.add(manifest.study_id(study))


def lost(manifest: Writer, ref: InstanceRef, detail: str) -> None:
    """A disk that spoils every file would have an instance asked for without end: after as many times in a run as there are attempts, no more."""
    (times,) = manifest.one(
        "SELECT count(*) FROM event WHERE study_uid = ? AND sop_uid = ? AND kind = 'staged file lost' AND run_id = ?", ref.study, ref.sop, manifest.run_id
    )
    if times >= manifest.policy.attempts:
        studies.failed(manifest, Failed(StudyRef(ref.study), "retrieve", "StagedFileLost", f"{times} times in this run: {detail}", retryable=False))


def _signed(number: int) -> int:
    """SQLite's integers are signed 64-bit; a CRC-64 is not."""
    return number - (1 << 64) if number >= 1 << 63 else number
