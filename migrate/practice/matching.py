"""C-FIND and C-MOVE keys against the synthetic archive (PS3.4 C.2.2.2, C.4.1, C.4.2)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from migrate.dicom import dimse
from migrate.practice.studies import Archive, InstanceRecord, SeriesRecord, StudyRecord

CHARSET, DATE, TIME, ACCESSION, RETRIEVE_AE = 0x00080005, 0x00080020, 0x00080030, 0x00080050, 0x00080054
SOP_CLASS, AVAILABILITY, MODALITY, MODALITIES, CLASSES = 0x00080016, 0x00080056, 0x00080060, 0x00080061, 0x00080062
DESCRIPTION, NAME, PATIENT_ID, BIRTH_DATE, SEX = 0x00081030, 0x00100010, 0x00100020, 0x00100030, 0x00100040
STUDY_ID, SERIES_NUMBER, INSTANCE_NUMBER = 0x00200010, 0x00200011, 0x00200013
SERIES_IN_STUDY, INSTANCES_IN_STUDY, INSTANCES_IN_SERIES = 0x00201206, 0x00201208, 0x00201209

UID_OF_LEVEL = {"STUDY": dimse.STUDY_UID, "SERIES": dimse.SERIES_UID, "IMAGE": dimse.SOP_UID}
_UIDS = frozenset((dimse.STUDY_UID, dimse.SERIES_UID, dimse.SOP_UID, SOP_CLASS, CLASSES))
_RANGES = frozenset((DATE, TIME, BIRTH_DATE))
_CODECS = {"ISO_IR 100": "latin-1", "ISO_IR 192": "utf-8"}


class BadQuery(ValueError):
    """The keys do not fit the level (A900)."""


@dataclass(frozen=True, slots=True)
class Match:
    study: StudyRecord
    series: SeriesRecord | None = None
    instance: InstanceRecord | None = None


class Query:
    """The keys of one request, checked against its level. Raises BadQuery."""

    def __init__(self, keys: dict[int, bytes]) -> None:
        codec = _CODECS.get(keys.get(CHARSET, b"").decode("latin-1").strip("\0 "), "latin-1")
        self.keys = {tag: raw.decode(codec, "replace").strip("\0 ") for tag, raw in keys.items()}
        self.level = self.keys.pop(dimse.QUERY_LEVEL, "")
        self.keys.pop(CHARSET, None)
        if self.level not in UID_OF_LEVEL:
            raise BadQuery("only the levels STUDY, SERIES and IMAGE are answered")
        for level, tag in UID_OF_LEVEL.items():
            if level == self.level:
                break
            uid = self.keys.get(tag, "")
            if not uid or not re.fullmatch(r"[0-9.]+", uid):
                raise BadQuery(f"a query at level {self.level} needs one UID of the level {level}")

    def require_uids(self) -> None:
        """C-MOVE: the level's own UIDs must be there too. Raises BadQuery."""
        if not self.keys.get(UID_OF_LEVEL[self.level]):
            raise BadQuery(f"a retrieval at level {self.level} needs its UIDs")

    @property
    def day_range(self) -> tuple[str, str] | None:
        """The StudyDate key as (first, last), "" for an open end; None without such a key."""
        key = self.keys.get(DATE, "")
        if not key.strip("*"):
            return None
        lo, dash, hi = key.partition("-")
        lo, hi = lo.strip(), hi.strip()
        if not all(part == "" or re.fullmatch(r"\d{8}", part) for part in (lo, hi)):
            raise BadQuery("StudyDate is neither a date nor a range")
        return (lo, hi) if dash else (lo, lo)

    def matches(self, archive: Archive) -> Iterator[Match]:
        """Everything at the query's level that its keys match."""
        for study in self._candidates(archive):
            if self.level == "STUDY":
                if self._fits(study_values(study)):
                    yield Match(study)
                continue
            for series in study.series:
                if self.level == "SERIES":
                    if self._fits(series_values(series)):
                        yield Match(study, series)
                elif series.uid == self.keys[dimse.SERIES_UID]:
                    for instance in series.instances:
                        if self._fits(instance_values(instance)):
                            yield Match(study, series, instance)

    def _candidates(self, archive: Archive) -> Iterator[StudyRecord]:
        uids = self.keys.get(dimse.STUDY_UID)
        if uids and "*" not in uids:
            for uid in dict.fromkeys(part.strip("\0 ") for part in uids.split("\\")):
                study = archive.find(uid)
                if study is not None and study.uid == uid:
                    yield study
        elif days := self.day_range:
            yield from archive.between(*days)
        else:
            yield from archive

    def _fits(self, values: dict[int, str]) -> bool:
        return all(_fits(tag, self.keys[tag], value) for tag, value in values.items() if self.keys.get(tag))

    def answer(self, match: Match, ae_title: str, pad: str = "") -> dict[int, str | bytes]:
        """The identifier for a match: the keys that were asked for, and what every answer has (PS3.4 C.4.1.1.3.2)."""
        values = study_values(match.study)
        if match.series:
            values |= series_values(match.series)
        if match.instance:
            values |= instance_values(match.instance)
        wanted = set(self.keys) | {tag for tag in UID_OF_LEVEL.values() if tag in values}
        codec = _CODECS.get(match.study.charset, "ascii")
        answer: dict[int, str | bytes] = {tag: values.get(tag, "").encode(codec, "replace") for tag in wanted}
        if pad:
            answer |= {tag: values[tag] + pad for tag in _UIDS & wanted & set(values)}
        answer |= {dimse.QUERY_LEVEL: self.level, RETRIEVE_AE: ae_title, AVAILABILITY: "ONLINE"}
        return answer | ({CHARSET: match.study.charset} if match.study.charset else {})


def study_values(study: StudyRecord) -> dict[int, str]:
    return {
        DATE: study.date,
        TIME: study.time,
        ACCESSION: study.accession,
        MODALITIES: "\\".join(study.modalities),
        CLASSES: "\\".join(dict.fromkeys(image.sop_class for series in study.series for image in series.instances)),
        DESCRIPTION: study.description,
        NAME: study.patient_name,
        PATIENT_ID: study.patient_id,
        BIRTH_DATE: study.birth_date,
        SEX: study.sex,
        dimse.STUDY_UID: study.uid,
        STUDY_ID: str(study.number),
        SERIES_IN_STUDY: str(len(study.series)),
        INSTANCES_IN_STUDY: str(study.instance_count),
    }


def series_values(series: SeriesRecord) -> dict[int, str]:
    return {
        MODALITY: series.modality,
        dimse.SERIES_UID: series.uid,
        SERIES_NUMBER: series.uid.rsplit(".", 1)[1],
        INSTANCES_IN_SERIES: str(len(series.instances)),
    }


def instance_values(instance: InstanceRecord) -> dict[int, str]:
    return {
        dimse.SOP_UID: instance.sop,
        SOP_CLASS: instance.sop_class,
        INSTANCE_NUMBER: str(instance.number),
    }


def _fits(tag: int, key: str, value: str) -> bool:
    """One key against one value (PS3.4 C.2.2.2.1 to .6); a value of several matches if one of its parts does."""
    if tag in (SERIES_IN_STUDY, INSTANCES_IN_STUDY, INSTANCES_IN_SERIES) or not key.strip("*"):
        return True
    if tag in _RANGES:
        lo, dash, hi = (part.strip() for part in key.partition("-"))
        if not value:
            return False
        if not dash:
            return value.startswith(lo) if tag == TIME else value == lo
        return value[: len(lo)] >= lo and (not hi or value[: len(hi)] <= hi)
    keys = [part.strip("\0 ") for part in key.split("\\")]
    values = value.split("\\")
    if tag in _UIDS:
        return any(part in values for part in keys)
    flags = re.IGNORECASE if tag == NAME else 0
    patterns = [re.escape(part).replace(r"\*", ".*").replace(r"\?", ".") for part in keys]
    return any(re.fullmatch(pattern, part, flags) for pattern in patterns for part in values)
