"""The dossier's tables: rows in the order of their UIDs, streamed, so that memory does not grow with the archive."""

from __future__ import annotations

import csv
import gzip
import heapq
import io
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from migrate.model import InstanceState, Proof

INSTANCE_COLUMNS = (
    "study", "series", "sop", "copy", "modality", "state", "listed", "conflict", "beside", "sop_class", "transfer_syntax", "size_bytes",
    "dataset_sha256", "file_sha256", "crc64nvme", "pixel_crc64", "key", "version", "checksum", "proof", "notes", "staged_at", "stored_at",
    "verified_at", "staged_seal", "stored_seal", "verified_seal",
)  # fmt: skip
SEAL_COLUMNS = ("id", "at", "run", "operator", "host", "version", "last_event", "steps", "sha256")
EVENT_COLUMNS = ("id", "at", "run", "kind", "study", "series", "sop", "detail")

# CROSS JOIN keeps the order of the loops, in which each index gives its rows sorted: nothing is sorted, nothing is held.
_INSTANCES = """
SELECT study.uid, series.uid, sop_uid, NULL, series.modality, instance.state, listed, conflict, beside, class.uid, syntax.uid, size_bytes,
  dataset_sha256, file_sha256, crc64nvme, pixel_crc64, NULL, version, checksum, proof, notes, staged_at, stored_at, verified_at,
  staged_seal, stored_seal, verified_seal
FROM study CROSS JOIN series ON series.study_id = study.id CROSS JOIN instance ON instance.series_id = series.id
LEFT JOIN uid_name AS class ON class.id = sop_class_id LEFT JOIN uid_name AS syntax ON syntax.id = transfer_syntax_id
ORDER BY study.uid, series.uid, sop_uid
"""
_COPIES = """
SELECT study.uid, series.uid, sop_uid, dataset_sha256, series.modality, copy.state, NULL, NULL, 1, NULL, NULL, size_bytes,
  dataset_sha256, file_sha256, crc64nvme, NULL, NULL, version, checksum, proof, NULL, staged_at, stored_at, verified_at,
  staged_seal, stored_seal, verified_seal
FROM study CROSS JOIN series ON series.study_id = study.id CROSS JOIN copy ON copy.series_id = series.id
ORDER BY study.uid, series.uid, sop_uid, dataset_sha256
"""
# The view `studies` in the order of UIDs, which it would have to sort for.
_STUDIES = """
SELECT study.uid AS study, state_name.name AS state, study.date, study.modalities, study.claimed_instances, study.listed_instances,
  coalesce(sum(series.expected), 0) AS expected, coalesce(sum(series.staged), 0) AS staged, coalesce(sum(series.stored), 0) AS stored,
  coalesce(sum(series.verified), 0) AS verified, study.attempts, study.error, study.detail,
  strftime('%Y-%m-%dT%H:%M:%SZ', study.found_at / 1000, 'unixepoch') AS found_at,
  strftime('%Y-%m-%dT%H:%M:%SZ', study.changed_at / 1000, 'unixepoch') AS changed_at
FROM study JOIN state_name ON state_name.entity = 'study' AND state_name.state = study.state
LEFT JOIN series ON series.study_id = study.id GROUP BY study.uid ORDER BY study.uid
"""
_EVENTS = "SELECT id, at, run_id, kind, study_uid, series_uid, sop_uid, detail FROM event ORDER BY id"
_SEALS = """
SELECT seal.id, seal.at, seal.run_id, operator, host, version, last_event, steps, lower(hex(sha256))
FROM seal LEFT JOIN run ON run.id = seal.run_id ORDER BY seal.id
"""
_STATES = tuple(state.name.lower() for state in InstanceState)
_PROOFS = {None: None} | {int(proof): proof.name.lower() for proof in Proof}
_CALCULATED = ("=", "+", "-", "@", "\t", "\r", "'")


def instances(connection: sqlite3.Connection, prefix: str) -> Iterator[tuple[Any, ...]]:
    """Every instance and every copy, by INSTANCE_COLUMNS, in the order of study, series, SOP Instance UID, copy.

    `copy` is empty, or the data-set SHA-256 in hex of a further content; `key` is given once the object is stored.
    """
    merged = heapq.merge(connection.execute(_INSTANCES), connection.execute(_COPIES), key=lambda row: (*row[:3], row[3] or b""))
    for study, series, sop, copy, modality, state, listed, conflict, beside, *more in merged:
        sop_class, syntax, size, dataset, file, crc, pixels, _, version, checksum, proof, notes, *rest = more
        key = None
        if state >= InstanceState.STORED:
            shown = f"~{dataset.hex()[:12]}" if beside else ""
            key = f"{prefix}studies/{study}/series/{series}/instances/{sop}{shown}.dcm"
        yield (
            study, series, sop, copy and copy.hex(), modality, _STATES[state], listed, conflict, beside, sop_class, syntax, size,
            dataset and dataset.hex(), file and file.hex(), _crc(crc), _crc(pixels), key, version, checksum, _PROOFS[proof], notes, *rest,
        )  # fmt: skip


def _crc(number: int | None) -> str | None:
    return None if number is None else f"{number & 0xFFFFFFFFFFFFFFFF:016x}"


def seals(connection: sqlite3.Connection) -> Iterator[tuple[Any, ...]]:
    """The chain by SEAL_COLUMNS, with what the first line of each seal's text says of its run."""
    return connection.execute(_SEALS)


def studies(connection: sqlite3.Connection) -> tuple[list[str], Iterator[tuple[Any, ...]]]:
    """The columns of the view `studies`, and its rows in the order of their UIDs."""
    cursor = connection.execute(_STUDIES)
    return [column[0] for column in cursor.description], cursor


def events(connection: sqlite3.Connection) -> Iterator[tuple[Any, ...]]:
    """The log by EVENT_COLUMNS."""
    return connection.execute(_EVENTS)


def cell(value: Any) -> Any:
    """What stands in a CSV cell, so that no spreadsheet calculates it and every value can be told from every other.

    NULL is an empty cell; a text that is empty or begins like a formula or with an apostrophe gets an apostrophe in front.
    """
    if isinstance(value, str) and (not value or value[0] in _CALCULATED):
        return f"'{value}"
    return value


class Table:
    """A CSV file (RFC 4180, UTF-8) being written, compressed if its name ends with .gz; equal rows give equal bytes."""

    def __init__(self, path: Path, columns: Iterable[str]) -> None:
        self._file = path.open("xb")
        self._out: Any = self._file
        if path.suffix == ".gz":
            self._out = gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=self._file, mtime=0)
        self._text = io.TextIOWrapper(io.BufferedWriter(self._out, 1 << 20), encoding="utf-8", newline="")
        self._writer = csv.writer(self._text, lineterminator="\n")
        self._writer.writerow(columns)

    def row(self, values: Iterable[Any]) -> None:
        self._writer.writerow([cell(value) for value in values])

    def __enter__(self) -> Table:
        return self

    def __exit__(self, *_: object) -> None:
        self._text.close()
        self._file.close()
