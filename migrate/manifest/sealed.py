"""What stands under the seals, read for checking: studies in the order of their UIDs, with the lines and leaves of their rows."""

from __future__ import annotations

import re
import sqlite3
from dataclasses import dataclass

from migrate.evidence.merkle import instance_entry
from migrate.manifest.seals import PROOFS, step_line
from migrate.model import InstanceRef, object_key

_INSTANCES = """
SELECT series.uid, modality, sop_uid, NULL, state, listed, conflict, beside, coalesce(class.uid, sop_class_id),
  coalesce(syntax.uid, transfer_syntax_id), size_bytes, dataset_sha256, file_sha256, crc64nvme, pixel_crc64, notes,
  staged_at, stored_at, verified_at, proof, version, checksum, staged_seal, stored_seal, verified_seal
FROM series CROSS JOIN instance ON series_id = series.id
LEFT JOIN uid_name AS class ON class.id = sop_class_id LEFT JOIN uid_name AS syntax ON syntax.id = transfer_syntax_id
WHERE study_id = ? ORDER BY series.uid, sop_uid
"""
_COPIES = """
SELECT series.uid, modality, sop_uid, dataset_sha256, state, 0, 0, 1, NULL, NULL, size_bytes, dataset_sha256, file_sha256, crc64nvme,
  NULL, NULL, staged_at, stored_at, verified_at, proof, version, checksum, staged_seal, stored_seal, verified_seal
FROM series CROSS JOIN copy ON series_id = series.id WHERE study_id = ? ORDER BY series.uid, sop_uid, dataset_sha256
"""
_LITERAL = re.compile(r"(?:NULL|-?\d+|'(?:[^']|'')*')(?:,|\Z)")
_STAGED_FIELDS, _STORED_FIELDS, _VERIFIED_FIELDS = 9, 4, 2


@dataclass(slots=True)
class Row:
    """An instance, or one of its copies."""

    series: str
    modality: str
    sop: str
    copy: bytes | None
    state: int
    listed: int
    conflict: int
    beside: int
    sop_class: str | None
    transfer_syntax: str | None
    size_bytes: int | None
    dataset_sha256: bytes | None
    file_sha256: bytes | None
    crc64nvme: int | None
    pixel_crc64: int | None
    notes: str | None
    staged_at: int | None
    stored_at: int | None
    verified_at: int | None
    proof: int | None
    version: str | None
    checksum: str | None
    staged_seal: int | None
    stored_seal: int | None
    verified_seal: int | None

    def lines(self, study: str) -> list[tuple[int, str]]:
        """(seal, line) of each step that the row holds."""
        copy = _hex(self.copy) or ""
        found = []
        if self.staged_seal is not None:
            values = (self.size_bytes, _hex(self.dataset_sha256), _hex(self.file_sha256), _crc(self.crc64nvme), _crc(self.pixel_crc64),
                      self.sop_class, self.transfer_syntax, self.notes, self.staged_at)  # fmt: skip
            found.append((self.staged_seal, step_line(study, self.series, self.sop, copy, "staged", values)))
        if self.stored_seal is not None:
            stored = (self.stored_at, self.version, self.checksum, self.beside)
            found.append((self.stored_seal, step_line(study, self.series, self.sop, copy, "stored", stored)))
        if self.verified_seal is not None:
            proof = PROOFS.get(self.proof or 0, self.proof)
            found.append((self.verified_seal, step_line(study, self.series, self.sop, copy, "verified", (proof, self.verified_at))))
        return found

    def entry(self, study: str, prefix: str) -> tuple[tuple[str, str, str], bytes]:
        """What it is sorted by, and its entry in the study's Merkle tree."""
        beside = self.dataset_sha256 if self.beside else None
        key = object_key(InstanceRef(study, self.series, self.sop), prefix, beside=beside)
        values = (self.size_bytes or 0, _hex(self.dataset_sha256) or "", _hex(self.file_sha256) or "", key, self.version)
        return (self.series, self.sop, key), instance_entry(study, self.series, self.sop, *values, PROOFS.get(self.proof or 0, ""))


def rows_of(connection: sqlite3.Connection, study_id: int) -> list[Row]:
    """The instances and copies of a study, instances first, each in the order of their UIDs."""
    return [Row(*row) for query in (_INSTANCES, _COPIES) for row in connection.execute(query, (study_id,))]


def lines_taken_back(study: str, series: str, sop: str, detail: str) -> list[tuple[int, str]]:
    """(seal, line) of each step that an event of a step back holds. Raises ValueError where its detail is none."""
    values = literals(detail)
    if len(values) != 3 + 3 + _STAGED_FIELDS + _STORED_FIELDS + _VERIFIED_FIELDS:
        raise ValueError("not the detail of a step back")
    copy, at, found = str(values[2] or ""), 3, []
    for step, fields in (("staged", _STAGED_FIELDS), ("stored", _STORED_FIELDS), ("verified", _VERIFIED_FIELDS)):
        seal = values[at]
        if isinstance(seal, int):
            found.append((seal, step_line(study, series, sop, copy, step, values[at + 1 : at + 1 + fields])))
        at += 1 + fields
    return found


def literals(detail: str) -> list[int | str | None]:
    """The values of SQL literals joined by commas. Raises ValueError."""
    found: list[int | str | None] = []
    at = 0
    while at < len(detail):
        match = _LITERAL.match(detail, at)
        if match is None:
            raise ValueError("no list of literals")
        word = match[0].removesuffix(",")
        found.append(None if word == "NULL" else word[1:-1].replace("''", "'") if word[0] == "'" else int(word))
        at = match.end()
    return found


def quoted(*values: object) -> str:
    """Values as SQLite's quote() writes them, joined by commas."""
    return ",".join("NULL" if value is None else str(value) if isinstance(value, int) else "'" + str(value).replace("'", "''") + "'"
                    for value in values)  # fmt: skip


def _hex(digest: bytes | None) -> str | None:
    return None if digest is None else digest.hex()


def _crc(number: int | None) -> str | None:
    return None if number is None else f"{number & 0xFFFFFFFFFFFFFFFF:016x}"
