"""C-FIND at STUDY level: the keys of a question, and what its rows say (PS3.4 C.2.2.2, C.6.2.1)."""

from __future__ import annotations

import datetime
import functools
import json

from migrate.errors import QueryFailed
from migrate.model import EXACT, SHARE, StudyFound, StudyRef, Window, is_uid

STUDY_UID, STUDY_DATE, STUDY_TIME, MODALITIES, STUDY_COUNT = 0x0020000D, 0x00080020, 0x00080030, 0x00080061, 0x00201208
PATIENT_ID, ACCESSION = 0x00100020, 0x00080050
WANTED = (STUDY_UID, STUDY_DATE, STUDY_TIME, MODALITIES, STUDY_COUNT)
"""What every question asks for; names of patients are never among it."""


def study_found(row: dict[int, str]) -> StudyFound:
    """The study of a row. Raises QueryFailed if it has no valid UID."""
    return StudyFound(
        StudyRef(uid(row, STUDY_UID)),
        _date(row.get(STUDY_DATE, "")),
        tuple(part for part in row.get(MODALITIES, "").split("\\") if part),
        number(row.get(STUDY_COUNT, "")),
        time=_time(row.get(STUDY_TIME, "")),
    )


def uid(row: dict[int, str], tag: int) -> str:
    """The UID under that tag. Raises QueryFailed if there is none."""
    text = row.get(tag, "")
    if not is_uid(text):
        raise QueryFailed(f"The PACS answered with a row that has no valid UID: {json.dumps(text[:64])}.")
    return text


def number(text: str) -> int | None:
    """A count, None where there is none."""
    return int(text) if text.strip().isdigit() else None


def keys(window: Window) -> dict[int, str]:
    """The matching keys of a question (PS3.4 C.2.2.2)."""
    asked: dict[int, str] = {}
    if window.lo or window.hi:
        asked[STUDY_DATE] = f"{window.lo}" if window.lo == window.hi else f"{window.lo or ''}-{window.hi or ''}"
    if window.time_lo:
        asked[STUDY_TIME] = f"{window.time_lo}-{window.time_hi}"
    if window.modality:
        asked[MODALITIES] = window.modality
    if window.patient and not window.patient.startswith(SHARE):
        asked[PATIENT_ID] = _wildcard(window.patient)
    if window.accession:
        asked[ACCESSION] = _wildcard(window.accession)
    return asked


def _wildcard(prefix: str) -> str:
    return prefix.removesuffix(EXACT) if prefix.endswith(EXACT) else f"{prefix}*"


def fits(window: Window, row: dict[int, str], study: StudyFound) -> bool:
    """Whether a row is what was asked for; a PACS that ignores a key shows others too."""
    date, time_ = study.date, study.time
    if (window.lo or window.hi) and (date is None or not (window.lo or "") <= date <= (window.hi or "99999999")):
        return False
    if window.time_lo and window.time_hi and (time_ is None or not window.time_lo[:6] <= time_ <= window.time_hi[:6]):
        return False
    if window.modality and window.modality not in (part.strip() for part in row.get(MODALITIES, "").split("\\")):
        return False
    for tag, prefix in ((PATIENT_ID, window.patient), (ACCESSION, window.accession)):
        if prefix and not prefix.startswith(SHARE) and not begins(row.get(tag, ""), prefix):
            return False
    return True


def begins(value: str, prefix: str) -> bool:
    """Whether an ID begins with what a window says of it, or is just that; in capitals or not."""
    value = value.casefold()
    return (value + EXACT if prefix.endswith(EXACT) else value).startswith(prefix.casefold())


def _time(text: str) -> str | None:
    """HHMMSS, fractions cut off; hours alone and colons are taken (PS3.5 6.2, and what was allowed before)."""
    digits = text.strip().replace(":", "").partition(".")[0]
    return digits.ljust(6, "0")[:6] if digits.isdigit() else None


@functools.lru_cache(1 << 15)
def _date(text: str) -> str | None:
    """YYYYMMDD; None for what is in no calendar, since no range of days is sure to show it."""
    digits = text.strip().replace(".", "")
    try:
        return f"{datetime.date(int(digits[:4]), int(digits[4:6]), int(digits[6:])):%Y%m%d}".rjust(8, "0") if len(digits) == 8 and digits.isdigit() else None
    except ValueError:
        return None
