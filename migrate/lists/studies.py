"""Lists of studies that somebody else made: a vendor's database export, a RIS or billing system's list of exams.

A list names studies by Study Instance UID, AccessionNumber or PatientID. The latter two are patient data: they live in memory
while they are asked for, and nothing that this package writes or prints holds them; a line number stands for them.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from migrate.errors import UsageError
from migrate.model import is_uid


class Key(Enum):
    """What a list names its studies by: the DICOM keyword."""

    STUDY = "StudyInstanceUID"
    ACCESSION = "AccessionNumber"
    PATIENT = "PatientID"


_NAMES: dict[Key, frozenset[str]] = {
    Key.STUDY: frozenset(("studyinstanceuid", "studyinstanceuids", "studyuid", "studyinsuid", "studyinstuid", "studyiuid", "siuid", "suid",
                          "0020000d")),
    Key.ACCESSION: frozenset(("accessionnumber", "accessionnumbers", "accessionno", "accessionnr", "accessionnummer", "accession",
                              "accessionid", "accnumber", "accno", "accnr", "accnum", "acc", "00080050")),
    Key.PATIENT: frozenset(("patientid", "patientids", "patid", "pid", "patientsid", "patientidentifier", "patientnumber", "patientno",
                            "patientnr", "patientenid", "patientennummer", "patientennr", "mrn", "00100020")),
}  # fmt: skip
"""Headers, without blanks, punctuation and case."""
_DELIMITERS = ",;\t"
_LONGEST = 64  # characters of a UID or LO, the longest of the three (PS3.5 6.2)
_HINT = "Let the first line name a column StudyInstanceUID, AccessionNumber or PatientID."


@dataclass(frozen=True, slots=True)
class Entry:
    """One value of a list, with the first line that holds it."""

    line: int
    value: str


@dataclass(frozen=True, slots=True)
class Invalid:
    """A line that names no study, and why not."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class StudyList:
    """A list as read: every value once, in its order. `lines`: how many lines name a value, repeated ones included."""

    key: Key
    entries: tuple[Entry, ...]
    invalid: tuple[Invalid, ...]
    lines: int

    def shown(self, entry: Entry) -> str | None:
        """The value where it may be printed: a UID; None for what is patient data."""
        return entry.value if self.key is Key.STUDY else None


def read_list(path: Path) -> StudyList:
    """Read CSV (comma, semicolon or tab) or one value a line; UTF-8, UTF-16 with its mark, or else Latin-1.

    Raises UsageError for a file that cannot be read, or that does not say what its values are.
    """
    text, first = read_text(path)
    if not first:
        raise UsageError(f"The list {path} is empty.", hint=_HINT)
    delimiter, key, column, has_header = _layout(first, path)
    entries: dict[str, Entry] = {}
    invalid: list[Invalid] = []
    lines = 0
    waits_for_header = has_header
    for line, cells in rows(text, delimiter, path):
        if waits_for_header:
            waits_for_header = False
            continue
        value = plain(cells[column]) if column < len(cells) else ""
        if reason := _fault(key, value):
            invalid.append(Invalid(line, reason))
            continue
        lines += 1
        entries.setdefault(value, Entry(line, value))
    return StudyList(key, tuple(entries.values()), tuple(invalid), lines)


def read_text(path: Path) -> tuple[str, str]:
    """(text, its first line that says anything) of a list. Raises UsageError for a file that cannot be read."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UsageError(f"The list {path} cannot be read: {error.strerror}.", hint="Name a readable file.") from error
    text = _decoded(raw).replace("\0", "")
    return text, next((line for line in text.splitlines() if line.strip() and not _names_delimiter(line)), "")


def _decoded(raw: bytes) -> str:
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return raw.decode("utf-16", "replace")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _names_delimiter(line: str) -> bool:
    """The line `sep=;` by which Excel is told the delimiter."""
    return re.fullmatch(r'"?sep=.?"?', line.strip(), re.IGNORECASE) is not None


def _layout(first: str, path: Path) -> tuple[str, Key, int, bool]:
    """(delimiter, key, column, whether the first line is a header), from the first line that is not empty."""
    rows = [(delimiter, next(csv.reader([first], delimiter=delimiter), [])) for delimiter in _DELIMITERS]
    for key, names in _NAMES.items():  # a UID says more than an accession number, and that more than a patient
        for delimiter, cells in rows:
            for column, cell in enumerate(cells):
                if re.sub(r"[^a-z0-9]", "", plain(cell).casefold()) in names:
                    return delimiter, key, column, True
    for delimiter, cells in rows:
        columns = [column for column, cell in enumerate(cells) if _can_only_be_uid(plain(cell))]
        if len(columns) == 1:
            return delimiter, Key.STUDY, columns[0], False
        if len(columns) > 1:
            raise UsageError(f"The list {path} has several columns of UIDs and no header.", hint=_HINT)
    raise UsageError(f"The list {path} does not say what its values are: its first line is neither a known header nor a UID.", hint=_HINT)


def _can_only_be_uid(text: str) -> bool:
    """A UID, and neither a number nor a date with dots."""
    return is_uid(text) and re.match(r"[012]\.\d+\.", text) is not None and len(text) > 10


def rows(text: str, delimiter: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    """(number of the first line, cells) of every row that is not empty."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    before = 0
    try:
        for cells in reader:
            line, before = before + 1, reader.line_num
            if any(cell.strip() for cell in cells) and not _names_delimiter(delimiter.join(cells)):
                yield line, cells
    except csv.Error as error:
        raise UsageError(f"The list {path} is no CSV from line {before + 1} on: {error}.", hint="Look for a quote that is not closed.") from error


def plain(cell: str) -> str:
    """Without padding, and without the wrapping by which spreadsheets keep zeros in front (="0012")."""
    text = cell.strip().strip("\ufeff").strip()
    wrapped = re.fullmatch(r'="?(.*?)"?', text)
    return (wrapped.group(1) if wrapped else text).strip().strip('"').strip()


def _fault(key: Key, value: str) -> str | None:
    """What keeps a value from naming a study; None if nothing does."""
    if not value:
        return f"no {key.value}"
    if key is Key.STUDY:
        return None if is_uid(value) else "not a UID"
    if len(value) > _LONGEST:
        return f"longer than any {key.value}"
    if not value.isascii() or not value.isprintable() or "\\" in value:
        return "holds characters that no question to a PACS can hold"
    return "holds a * or ?, which a PACS takes for a wildcard" if set("*?") & set(value) else None
