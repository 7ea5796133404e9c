"""A DICOM Inventory (PS3.3 A.88, C.38; PS3.17 YYYY.7.1) of what is proven at the destination, written as a stream.

It holds what the manifest knows. What the standard lets be empty where it is unknown (Type 2) is empty: names, IDs, birth dates and sexes
of patients, accession numbers, study IDs and descriptions, series and instance numbers. A series whose modality the PACS never told says
OT. Further contents under the same UIDs are left out: an Inventory has one item an instance.
"""

from __future__ import annotations

import re
import sqlite3
import struct
import urllib.parse
import uuid
import zlib
from pathlib import Path
from types import TracebackType

from migrate import __version__
from migrate.dicom.part10 import file_header
from migrate.reports.coverage import as_date
from migrate.reports.moment import utc

SOP_CLASS = "1.2.840.10008.5.1.4.1.1.201.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
_LONG = ("OB", "SQ", "UR", "UV")
_ITEM = struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)
_ITEM_END = struct.pack("<HHL", 0xFFFE, 0xE00D, 0)
_SEQUENCE_END = struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
_TIME = re.compile(r"([01]\d|2[0-3])([0-5]\d([0-5]\d(\.\d{1,6})?)?)?")
_MODALITY = re.compile(r"[A-Z0-9_ ]{1,16}")
_PURPOSE = "What a migration has proven to be at its destination."
_DESCRIPTION = (
    "Every instance whose object was read back or attested by the store after the upload. Attributes that the migration does not keep are "
    "empty. The rest of the dossier, in which this file lies, says what is missing, and why."
)


def element(tag: int, vr: str, value: str | bytes = b"") -> bytes:
    """One element in Explicit VR Little Endian (PS3.5 7.1.2), padded to an even length."""
    raw = value.encode() if isinstance(value, str) else value
    if len(raw) & 1:
        raw += b"\0" if vr in ("UI", "OB") else b" "
    head = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr.encode())
    return head + (struct.pack("<HL", 0, len(raw)) if vr in _LONG else struct.pack("<H", len(raw))) + raw


def _sequence(tag: int) -> bytes:
    """The beginning of a sequence of undefined length."""
    return struct.pack("<HH2sHL", tag >> 16, tag & 0xFFFF, b"SQ", 0, 0xFFFFFFFF)


class Inventory:
    """The file being written: instances in the order of their UIDs; memory does not grow with them.

    `base_uri`: where the object keys begin. `complete`: whether the report says complete. The same content gives the same bytes.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, *, at_ms: int, base_uri: str, complete: bool) -> None:
        self._connection, self._base, self._complete = connection, base_uri, complete
        self._at = utc(at_ms)
        self._deflate = zlib.compressobj(6, zlib.DEFLATED, -15)
        self._study = self._series = ""
        self._studies = self._series_count = self._count = 0
        created = connection.execute("SELECT group_concat(value, char(10)) FROM (SELECT value FROM meta ORDER BY key)").fetchone()[0]
        uid = f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, f'{SOP_CLASS} {at_ms} {created}').int}"  # PS3.5 B.2
        self._file = path.open("xb")
        self._file.write(file_header(SOP_CLASS, uid, DEFLATED))
        self._write(
            element(0x00080005, "CS", "ISO_IR 192") + element(0x00080016, "UI", SOP_CLASS) + element(0x00080018, "UI", uid)
            + element(0x00080023, "DA", f"{self._at:%Y%m%d}") + element(0x00080033, "TM", f"{self._at:%H%M%S}")
            + element(0x00080070, "LO", "pacs-migrate") + element(0x00080201, "SH", "+0000") + element(0x00080400, "SQ")
            + element(0x00080401, "LT", _PURPOSE) + element(0x00080402, "LT", _DESCRIPTION) + element(0x00080403, "CS", "INSTANCE")
            + element(0x00080422, "SQ") + _sequence(0x00080423)
        )  # fmt: skip

    def add(self, study: str, series: str, sop: str, modality: str, sop_class: str, syntax: str, key: str, file_sha256: str) -> None:
        """One proven instance."""
        if study != self._study:
            self._end_study()
            self._begin_study(study)
        if series != self._series:
            self._end_series()
            self._series = series
            self._series_count += 1
            kind = modality if _MODALITY.fullmatch(modality) else "OT"
            self._write(_ITEM + element(0x00080060, "CS", kind) + _sequence(0x00080425))
        self._count += 1
        uri = self._base + urllib.parse.quote(key, safe="/~")
        access = (element(0x00080409, "UR", uri) + element(0x0008040E, "UI", syntax)
                  + element(0x04000015, "CS", "SHA256") + element(0x04000404, "OB", bytes.fromhex(file_sha256)))  # fmt: skip
        self._write(
            _ITEM + element(0x00080016, "UI", sop_class) + element(0x00080018, "UI", sop) + _sequence(0x0008041A) + _ITEM + access + _ITEM_END
            + _SEQUENCE_END + element(0x00200013, "IS") + _ITEM_END
        )  # fmt: skip

    def __enter__(self) -> Inventory:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self._end_study()
            self._write(
                _SEQUENCE_END + element(0x00080426, "CS", "COMPLETE" if self._complete else "PARTIAL")
                + element(0x00080427, "UL", struct.pack("<L", self._studies)) + element(0x00080428, "UV", struct.pack("<Q", self._studies))
                + element(0x00181020, "LO", __version__)
            )  # fmt: skip
            rest = self._deflate.flush()
            self._file.write(rest + (b"\0" if self._file.tell() + len(rest) & 1 else b""))  # PS3.5 A.5: an even number of bytes
        self._file.close()

    def _write(self, raw: bytes) -> None:
        self._file.write(self._deflate.compress(raw))

    def _begin_study(self, study: str) -> None:
        self._study = study
        self._studies += 1
        self._series_count = self._count = 0
        date, time, changed = self._connection.execute("SELECT date, time, changed_at FROM study WHERE uid = ?", (study,)).fetchone()
        named = self._connection.execute(
            "SELECT DISTINCT modality FROM series JOIN study ON study.id = study_id WHERE study.uid = ? AND verified > 0 ORDER BY modality", (study,)
        )
        modalities = "\\".join(name for (name,) in named if _MODALITY.fullmatch(name))
        day = date if as_date(date) else ""
        self._write(
            _ITEM + element(0x00080020, "DA", day) + element(0x00080030, "TM", time if time and _TIME.fullmatch(time) else "")
            + element(0x00080050, "SH") + element(0x00080061, "CS", modalities)
            + element(0x00080404, "DT", f"{self._at:%Y%m%d%H%M%S}") + element(0x0008041F, "DT", f"{utc(changed):%Y%m%d%H%M%S}")
            + _sequence(0x00080424)
        )  # fmt: skip

    def _end_series(self) -> None:
        if self._series:
            self._write(_SEQUENCE_END + element(0x0020000E, "UI", self._series) + element(0x00200011, "IS") + _ITEM_END)
            self._series = ""

    def _end_study(self) -> None:
        self._end_series()
        if not self._study:
            return
        self._write(
            _SEQUENCE_END + element(0x00081030, "LO") + element(0x00100010, "PN") + element(0x00100020, "LO") + element(0x00100030, "DA")
            + element(0x00100040, "CS") + element(0x0020000D, "UI", self._study) + element(0x00200010, "SH")
            + element(0x00201206, "IS", str(self._series_count)) + element(0x00201208, "IS", str(self._count)) + _ITEM_END
        )  # fmt: skip
        self._study = ""


def base_uri(connection: sqlite3.Connection, prefix: str) -> str:
    """Where the object keys begin, after what the manifest says of its destination; empty where that tells no place."""
    row = connection.execute("SELECT value FROM meta WHERE key = 'destination'").fetchone()
    identity = str(row[0]) if row else ""
    if identity.startswith("folder:"):
        return f"file://{urllib.parse.quote(identity.removeprefix('folder:').removesuffix(f' prefix {prefix}'))}/"
    if identity.startswith("s3://"):
        return f"s3://{identity.removeprefix('s3://').partition('/')[0]}/"
    return ""
