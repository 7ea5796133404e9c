"""C-FIND and C-MOVE keys against the synthetic archive (PS3.4 C.2.2.2, C.4.1, C.4.2)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import date
from typing import NamedTuple

from migrate.dicom import dimse
from migrate.practice.records import InstanceRecord, SeriesRecord, StudyRecord
from migrate.practice.studies import Archive

CHARSET, DATE, TIME, ACCESSION, RETRIEVE_AE = 0x00080005, 0x00080020, 0x00080030, 0x00080050, 0x00080054
SOP_CLASS, AVAILABILITY, MODALITY, MODALITIES, CLASSES = 0x00080016, 0x00080056, 0x00080060, 0x00080061, 0x00080062
DESCRIPTION, NAME, PATIENT_ID, BIRTH_DATE, SEX = 0x00081030, 0x00100010, 0x00100020, 0x00100030, 0x00100040
STUDY_ID, SERIES_NUMBER, INSTANCE_NUMBER = 0x00200010, 0x00200011, 0x00200013
STUDIES_OF_PATIENT = 0x00201200
SERIES_IN_STUDY, INSTANCES_IN_STUDY, INSTANCES_IN_SERIES = 0x00201206, 0x00201208, 0x00201209

LEVELS = ("PATIENT", "STUDY", "SERIES", "IMAGE")
UID_OF_LEVEL = {"STUDY": dimse.STUDY_UID, "SERIES": dimse.SERIES_UID, "IMAGE": dimse.SOP_UID}
UIDS = frozenset((dimse.STUDY_UID, dimse.SERIES_UID, dimse.SOP_UID, SOP_CLASS, CLASSES))
_COUNTS = frozenset((STUDIES_OF_PATIENT, SERIES_IN_STUDY, INSTANCES_IN_STUDY, INSTANCES_IN_SERIES))
_CODECS = {"ISO_IR 100": "latin-1", "ISO_IR 192": "utf-8"}


class BadQuery(ValueError):
    """The keys do not fit the level (A900)."""


class Match(NamedTuple):
    """What fits a query: a study, or one of its series or images."""

    study: StudyRecord
    series: SeriesRecord | None = None
    instance: InstanceRecord | None = None


Value = Callable[[Match], str]

_OF_PATIENT: dict[int, Value] = {
    NAME: lambda match: match.study.patient_name,
    PATIENT_ID: lambda match: match.study.patient_id,
    BIRTH_DATE: lambda match: match.study.birth_date,
    SEX: lambda match: match.study.sex,
    STUDIES_OF_PATIENT: lambda match: str(match.study.studies_of_patient),
}
_OF_STUDY: dict[int, Value] = {
    DATE: lambda match: match.study.date,
    TIME: lambda match: match.study.time,
    ACCESSION: lambda match: match.study.accession,
    MODALITIES: lambda match: "\\".join(match.study.modalities),
    CLASSES: lambda match: "\\".join(_classes(match.study)),
    DESCRIPTION: lambda match: match.study.description,
    dimse.STUDY_UID: lambda match: match.study.uid,
    STUDY_ID: lambda match: str(match.study.number),
    SERIES_IN_STUDY: lambda match: match.study.claim(len(match.study.shape)),
    INSTANCES_IN_STUDY: lambda match: match.study.claim(match.study.instance_count),
}
_OF_SERIES: dict[int, Value] = {
    MODALITY: lambda match: match.series.modality if match.series else "",
    dimse.SERIES_UID: lambda match: match.series.uid if match.series else "",
    SERIES_NUMBER: lambda match: match.series.uid.rsplit(".", 1)[1] if match.series else "",
    INSTANCES_IN_SERIES: lambda match: match.study.claim(len(match.series.instances)) if match.series else "",
}
_OF_IMAGE: dict[int, Value] = {
    dimse.SOP_UID: lambda match: match.instance.sop if match.instance else "",
    SOP_CLASS: lambda match: match.instance.sop_class if match.instance else "",
    INSTANCE_NUMBER: lambda match: str(match.instance.number) if match.instance else "",
}
VALUES: dict[str, dict[int, Value]] = {
    "PATIENT": _OF_PATIENT,
    "STUDY": _OF_PATIENT | _OF_STUDY,
    "SERIES": _OF_PATIENT | _OF_STUDY | _OF_SERIES,
    "IMAGE": _OF_PATIENT | _OF_STUDY | _OF_SERIES | _OF_IMAGE,
}
"""What can be asked for at each level: its own attributes and those above it."""
_OWN = {"PATIENT": _OF_PATIENT, "STUDY": VALUES["STUDY"], "SERIES": _OF_SERIES, "IMAGE": _OF_IMAGE}


def _classes(study: StudyRecord) -> Iterator[str]:
    yield from dict.fromkeys(image.sop_class for series in study.series for image in series.instances)


class Query:
    """The keys of one request, checked against its level.

    `patient_root` is the model; a `strict` one wants a single Patient ID below the level PATIENT. With `relational`,
    the UIDs above the level may be left out. Raises BadQuery.
    """

    def __init__(
        self,
        keys: dict[int, bytes],
        *,
        patient_root: bool = False,
        strict: bool = False,
        relational: bool = False,
    ) -> None:
        codec = _CODECS.get(keys.get(CHARSET, b"").decode("latin-1").strip("\0 "), "latin-1")
        self.keys = {tag: raw.decode(codec, "replace").strip("\0 ") for tag, raw in keys.items()}
        self.level = self.keys.pop(dimse.QUERY_LEVEL, "")
        self.keys.pop(CHARSET, None)
        self.relational = relational
        if self.level not in LEVELS or (self.level == "PATIENT" and not patient_root):
            raise BadQuery("this level is not answered")
        if strict and self.level != "PATIENT" and (not self.keys.get(PATIENT_ID) or self.has_pattern(PATIENT_ID)):
            raise BadQuery(f"a query at level {self.level} needs one Patient ID")
        for level, tag in UID_OF_LEVEL.items():
            if level == self.level or self.level == "PATIENT":
                break
            uid = self.keys.get(tag, "")
            if not (relational and not uid) and not re.fullmatch(r"[0-9.]+", uid):
                raise BadQuery(f"a query at level {self.level} needs one UID of the level {level}")

    def require_uids(self) -> None:
        """C-MOVE: the level's own UIDs, or its Patient ID, must be there too, and no wildcards. Raises BadQuery."""
        own = UID_OF_LEVEL.get(self.level, PATIENT_ID)
        if not self.keys.get(own) or any(sign in self.keys[own] for sign in "*?"):
            raise BadQuery(f"a retrieval at level {self.level} needs its UIDs")

    def ignore(self, tag: int) -> None:
        """Take the key for one that is only asked for, not matched."""
        if tag in self.keys:
            self.keys[tag] = ""

    def has_pattern(self, tag: int) -> bool:
        """True when the key is a list or has wildcards."""
        return any(sign in self.keys.get(tag, "") for sign in "*?\\")

    def is_asked(self, *tags: int) -> bool:
        """True when one of the keys says more than "all"."""
        return any(self.keys.get(tag, "").strip("*") for tag in tags)

    @property
    def question(self) -> str:
        """The same text for the same question: its level and all keys that are matched."""
        return f"{self.level} {sorted((tag, key) for tag, key in self.keys.items() if key)}"

    @property
    def day_range(self) -> tuple[str, str] | None:
        """The StudyDate key as (first, last), "" for an open end; None without such a key. Raises BadQuery."""
        key = self.keys.get(DATE, "")
        if not key.strip("*"):
            return None
        lo, dash, hi = key.partition("-")
        lo, hi = lo.strip(), hi.strip()
        if not all(part == "" or re.fullmatch(r"\d{8}", part) for part in (lo, hi)):
            raise BadQuery("StudyDate is neither a date nor a range")
        return (lo, hi) if dash else (lo, lo)

    def is_wider(self, days: int) -> bool:
        """True when neither a study's UID nor so few days are named. Raises BadQuery."""
        if self.keys.get(dimse.STUDY_UID):
            return False
        asked = self.day_range
        if asked is None or not all(asked):
            return True
        try:
            first, last = (date(int(day[:4]), int(day[4:6]), int(day[6:])) for day in asked)
        except ValueError as error:
            raise BadQuery("there is no such day") from error
        return (last - first).days + 1 > days

    # -- matching
    def matches(self, archive: Archive) -> Iterator[Match]:
        """Everything at the query's level that its keys match. Raises BadQuery."""
        values = VALUES[self.level] if self.relational else _OWN[self.level]
        if self.level != "PATIENT":
            values = values | {PATIENT_ID: _OF_PATIENT[PATIENT_ID]}
        asked = [tag for tag in values if tag not in _COUNTS and self.is_asked(tag)]
        tests = [(values[tag], _test(tag, self.keys[tag])) for tag in asked]
        for match in self._candidates(archive):
            for value, test in tests:
                if not test(value(match)):
                    break
            else:
                yield match

    def _candidates(self, archive: Archive) -> Iterator[Match]:
        studies = self._studies(archive)
        if self.level == "STUDY":
            yield from map(Match, studies)
        elif self.level == "PATIENT":
            patient = None
            for study in studies:  # in the order of patients
                if study.patient != patient:
                    yield Match(study)
                patient = study.patient
        else:
            wanted = self.keys.get(dimse.SERIES_UID)
            for study in studies:
                for series in study.series:
                    if self.level == "SERIES":
                        yield Match(study, series)
                    elif not wanted or series.uid == wanted:
                        yield from (Match(study, series, instance) for instance in series.instances)

    def _studies(self, archive: Archive) -> Iterator[StudyRecord]:
        """The narrowest run of studies that the keys allow without looking at each."""
        uids = self.keys.get(dimse.STUDY_UID, "")
        if uids.strip("*") and self.level != "PATIENT":
            for uid in dict.fromkeys(part.strip("\0 ") for part in uids.split("\\")):
                yield from (study for study in archive.named(uid) if study.uid == uid)
            return
        numbers = range(len(archive))
        for tag, narrow in ((PATIENT_ID, archive.of_patient), (ACCESSION, archive.of_accession)):
            key = self.keys.get(tag, "")
            if key and "\\" not in key and not (tag == ACCESSION and self.level == "PATIENT"):
                start = re.split(r"[*?]", key, maxsplit=1)[0]
                numbers = min(numbers, narrow(start, whole=start == key), key=len)
        days = self.day_range if self.level != "PATIENT" else None
        if days and len(archive.span(*days)) < len(numbers):
            yield from archive.between(*days)
        elif self.level == "STUDY" and len(numbers) == len(archive) and self.is_asked(MODALITIES) and not self.has_pattern(MODALITIES):
            yield from archive.numbered(archive.of_modality(self.keys[MODALITIES]))
        else:
            yield from archive.numbered(numbers)


def _test(tag: int, key: str) -> Callable[[str], bool]:
    """Whether a value matches a key (PS3.4 C.2.2.2.1 to .6); one of several matches if one of its parts does.

    Raises BadQuery.
    """
    if tag in (DATE, BIRTH_DATE, TIME):
        lo, dash, hi = (part.strip() for part in key.partition("-"))
        hi = hi if dash else lo
        if tag == TIME:  # of each day by itself, never over midnight (PS3.4 C.2.2.2.5.2)
            lo, hi = _time(lo, "0"), _time(hi or "24", "9")
            return lambda value: bool(value) and lo <= _time(value, "0") <= hi
        return lambda value: bool(value) and lo <= value and (not hi or value <= hi)
    keys = frozenset(part.strip("\0 ") for part in key.split("\\"))
    if tag in UIDS:
        return lambda value: any(part in keys for part in value.split("\\"))
    if tag != NAME and not any(sign in key for sign in "*?"):
        return lambda value: value in keys or ("\\" in value and any(part in keys for part in value.split("\\")))
    patterns = (re.escape(part).replace(r"\*", ".*").replace(r"\?", ".") for part in keys)
    pattern = re.compile("|".join(f"(?:{one})" for one in patterns), re.IGNORECASE if tag == NAME else 0)
    return lambda value: any(pattern.fullmatch(part) for part in value.split("\\"))


def _time(text: str, fill: str) -> str:
    """A time as HHMMSSFFFFFF, what is not said being `fill`; colons are taken (PS3.5 6.2, TM). Raises BadQuery."""
    clock, _, fraction = text.replace(":", "").partition(".")
    if not re.fullmatch(r"(?:\d{2}){0,3}", clock) or not re.fullmatch(r"\d{0,6}", fraction):
        raise BadQuery("StudyTime is neither a time nor a range")
    return clock.ljust(6, fill) + fraction.ljust(6, fill)
