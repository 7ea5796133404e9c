"""Sealing: what a commit changed is hashed onto the seal before, in the same transaction. docs/proof.md has the format."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable
from typing import Any

from migrate.model import Item, Proof

FIRST = bytes(32)
"""Stands for the seal before the first."""

_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})
_EVENTS = "SELECT id, at, run_id, kind, study_uid, series_uid, sop_uid, detail FROM event WHERE id > ? ORDER BY id"
PROOFS = {int(proof): proof.name.lower() for proof in Proof}


def text(value: object) -> str:
    r"""A value as it stands in a line: NULL is \N; backslash, tab, line feed and carriage return are escaped."""
    return "\\N" if value is None else str(value).translate(_ESCAPES)


def step_line(study: str, series: str, sop: str, copy: str, step: str, values: Iterable[object]) -> str:
    """A step's line from its values; `copy` is empty, or the data-set SHA-256 of a further content in hex."""
    return "\t".join((f"step\t{study}\t{series}\t{sop}\t{copy}\t{step}", *map(text, values)))


def event_line(row: Iterable[Any]) -> str:
    """An event's line: id, at, run, kind, study, series, sop, detail as compact JSON in ASCII."""
    return "event\t" + json.dumps(list(row), separators=(",", ":"))


def head_line(number: int, at_ms: int, run_id: int | None, operator: str | None, host: str | None, version: str | None) -> str:
    """The first line of a seal's text."""
    return "\t".join(("seal", *map(text, (number, at_ms, run_id, operator, host, version))))


def chained(before: bytes, lines: Iterable[str]) -> bytes:
    """The SHA-256 of a seal over the one before it and its lines."""
    return hashlib.sha256(before + ("\n".join(lines) + "\n").encode()).digest()


class Sealer:
    """The steps of the transaction that is under way, and its seal at the end."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._steps: list[str] = []
        self._before, self._last_event = FIRST, 0
        self.number = 1  # of the seal that this transaction will get
        self.run: tuple[int | None, str | None, str | None, str | None] = (None, None, None, None)  # id, operator, host, version

    def begin(self) -> None:
        """A transaction has begun."""
        self._steps.clear()
        row = self._connection.execute("SELECT id, last_event, sha256 FROM seal ORDER BY id DESC LIMIT 1").fetchone()
        last, self._last_event, self._before = row or (0, 0, FIRST)
        self.number = last + 1

    def staged(self, item: Item, at_ms: int, *, pixel_crc64: int | None, sop_class: str | None, syntax: str | None, notes: str | None) -> None:
        """A file is durable in staging."""
        ref, fixity = item.ref, item.fixity
        dataset = fixity.dataset_sha256.hex()
        pixels = "\\N" if pixel_crc64 is None else f"{pixel_crc64:016x}"
        self._steps.append(
            f"step\t{ref.study}\t{ref.series}\t{ref.sop}\t{dataset if item.copy else ''}\tstaged\t{fixity.size_bytes}\t{dataset}\t"
            f"{fixity.file_sha256.hex()}\t{fixity.crc64nvme:016x}\t{pixels}\t{text(sop_class)}\t{text(syntax)}\t{text(notes)}\t{at_ms}"
        )

    def stored(self, item: Item, at_ms: int, version: str | None, checksum: str | None) -> None:
        """An object was put."""
        ref = item.ref
        self._steps.append(
            f"step\t{ref.study}\t{ref.series}\t{ref.sop}\t{item.fixity.dataset_sha256.hex() if item.copy else ''}\tstored\t{at_ms}\t"
            f"{text(version)}\t{text(checksum)}\t{int(item.beside)}"
        )

    def verified(self, item: Item, at_ms: int, proof: int) -> None:
        """An object was proven, or proven better."""
        ref = item.ref
        self._steps.append(
            f"step\t{ref.study}\t{ref.series}\t{ref.sop}\t{item.fixity.dataset_sha256.hex() if item.copy else ''}\tverified\t"
            f"{PROOFS[proof]}\t{at_ms}"
        )

    def seal(self, at_ms: int) -> None:
        """Seal what has changed since the last seal, if anything has."""
        events = self._connection.execute(_EVENTS, (self._last_event,)).fetchall()
        if not events and not self._steps:
            return
        self._steps.sort()
        lines = [head_line(self.number, at_ms, *self.run), *map(event_line, events), *self._steps]
        self._connection.execute(
            "INSERT INTO seal(id, run_id, at, last_event, steps, sha256) VALUES (?, ?, ?, ?, ?, ?)",
            (self.number, self.run[0], at_ms, events[-1][0] if events else self._last_event, len(self._steps), chained(self._before, lines)),
        )
