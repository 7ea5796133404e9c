"""The synthetic archive: study i is computed from (seed, i) whenever it is asked for, and is the same every time.

Nothing here is or was a person. A UID says which study, series and image it names, so that finding one needs no index.
"""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from functools import lru_cache

from migrate.practice import codestreams
from migrate.practice.encoding import EXPLICIT_LE, IMPLICIT_LE, Element, encode, native_frame

UID_ROOT = "2.25.91748260315564820017364528190"
JPEG_BASELINE, JPEG_LOSSLESS = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.70"
JPEG_2000 = "1.2.840.10008.1.2.4.90"

EMPTY, UNDATED = 4, 7
"""The numbers of the study without images and of the one without a date (in archives of ten studies or more)."""

_FIRST_DAY, _LAST_DAY = date(1998, 1, 1), date(2026, 6, 30)
_STORAGE = "1.2.840.10008.5.1.4.1.1."
_CLASSES = {
    "CR": _STORAGE + "1",
    "CT": _STORAGE + "2",
    "MR": _STORAGE + "4",
    "US": _STORAGE + "3.1",
    "MG": _STORAGE + "1.2",
    "DBT": _STORAGE + "13.1.3",
    "SR": _STORAGE + "88.11",
    "PR": _STORAGE + "11.1",
    "KO": _STORAGE + "88.59",
}
_SYNTAXES = {
    "CR": (JPEG_LOSSLESS, IMPLICIT_LE, EXPLICIT_LE),
    "CT": (EXPLICIT_LE, IMPLICIT_LE, JPEG_LOSSLESS),
    "MR": (IMPLICIT_LE, JPEG_2000, EXPLICIT_LE),
    "US": (JPEG_BASELINE, EXPLICIT_LE),
    "MG": (JPEG_LOSSLESS, EXPLICIT_LE),
    "DBT": (JPEG_2000,),
    "SR": (EXPLICIT_LE, IMPLICIT_LE),
    "PR": (EXPLICIT_LE, IMPLICIT_LE),
    "KO": (EXPLICIT_LE, IMPLICIT_LE),
}
_FRAMES = {
    JPEG_BASELINE: codestreams.JPEG_BASELINE,
    JPEG_LOSSLESS: codestreams.JPEG_LOSSLESS,
    JPEG_2000: codestreams.JPEG_2000,
}
_KINDS = ("CR", "CT", "MR", "US", "MG", "DBT")
_FAMILY = (
    "NORDBERG",
    "VALDEZ",
    "OKONKWO",
    "LINDQVIST",
    "MÜLLER",
    "PETROVA",
    "HAAS",
    "TANAKA",
    "DUBOIS",
    "KAYA",
    "SÖRENSEN",
)
_GIVEN = ("ANNA", "JONAS", "MIRA", "PAUL", "LEILA", "TOM", "RENÉE", "OLE", "SARA", "IVAN", "EMMA", "NOAH", "ZOË")


@dataclass(frozen=True, slots=True)
class InstanceRecord:
    sop: str
    sop_class: str
    transfer_syntax: str
    number: int


@dataclass(frozen=True, slots=True)
class SeriesRecord:
    uid: str
    modality: str
    instances: tuple[InstanceRecord, ...]


@dataclass(frozen=True, slots=True)
class StudyRecord:
    """A study as an archive's database knows it; `date` is YYYYMMDD or "" (unknown), `charset` is (0008,0005)."""

    uid: str
    date: str
    time: str
    modalities: tuple[str, ...]
    accession: str
    patient_id: str
    patient_name: str
    series: tuple[SeriesRecord, ...]
    birth_date: str = ""
    sex: str = ""
    description: str = ""
    charset: str = ""
    number: int = 0

    @property
    def instance_count(self) -> int:
        return sum(len(series.instances) for series in self.series)


class Archive:
    """`studies` synthetic studies of a `seed`; only their dates are held, and these not before they are asked for.

    `pixels` is the edge of native images. Studies 4 (no images) and 7 (no date) are odd where there are ten or more.
    Raises ValueError for a seed outside of 0..9999 or more than ten million studies.
    """

    def __init__(self, studies: int = 20, seed: int = 1, *, pixels: int = 64) -> None:
        if not 0 <= seed <= 9999 or not 0 <= studies <= 10_000_000 or not 2 <= pixels <= 16384:
            raise ValueError("seed 0..9999, studies 0..10,000,000, pixels 2..16384")
        self.seed, self.pixels, self._count = seed, pixels, studies
        self._root = f"{UID_ROOT}.{seed}"
        self._days: array[int] | None = None  # sorted dates as YYYYMMDD, and the studies in the same order
        self._order: array[int] = array("L")
        self.study = lru_cache(512)(self._study)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[StudyRecord]:
        return map(self.study, range(self._count))

    # -- finding
    def find(self, uid: str) -> StudyRecord | None:
        """The study that a study, series or SOP instance UID belongs to, by the UID alone."""
        if not uid.startswith(self._root + "."):
            return None
        parts = uid[len(self._root) + 1 :].split(".")
        if not all(part.isascii() and part.isdigit() for part in parts) or len(parts[0]) > 8:
            return None
        number = int(parts[0])
        if number >= self._count:
            return None
        study = self.study(number)
        if len(parts) == 1:
            return study if study.uid == uid else None
        for series in study.series:
            if series.uid == uid or any(instance.sop == uid for instance in series.instances):
                return study
        return None

    def between(self, lo: str, hi: str) -> Iterator[StudyRecord]:
        """Studies of these days (YYYYMMDD, both included, "" for an open end) by date."""
        if self._days is None:
            dated = sorted((int(day), number) for number in range(self._count) if (day := self._date(number)))
            self._order = array("L", (number for _, number in dated))
            self._days = array("L", (day for day, _ in dated))
        first = bisect_left(self._days, int(lo or 0))
        last = bisect_right(self._days, int(hi or 99999999))
        return map(self.study, self._order[first:last])

    # -- making
    def dataset(self, instance: InstanceRecord) -> bytes:
        """The encoded data set in the instance's own transfer syntax: the same bytes every time."""
        study = self.find(instance.sop)
        if study is None:
            raise KeyError("the instance is not of this archive")
        place = int(instance.sop.split(".")[-2]) - 1
        return self._dataset(study, study.series[place], instance)

    def truth(self) -> Iterator[tuple[str, str, str, bytes]]:
        """(study, series, SOP, SHA-256 of the data set) of every instance."""
        for study in self:
            for series in study.series:
                for instance in series.instances:
                    digest = hashlib.sha256(self._dataset(study, series, instance)).digest()
                    yield study.uid, series.uid, instance.sop, digest

    def _dice(self, number: int, what: str, below: int) -> int:
        key = f"{self.seed}/{number}/{what}".encode()
        return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") % below

    def _date(self, number: int) -> str:
        if number == UNDATED and self._count >= 10:
            return ""
        days = (_LAST_DAY - _FIRST_DAY).days + 1
        # Archives grow: the later of two throws.
        later = max(self._dice(number, "day", days), self._dice(number, "day again", days))
        return (_FIRST_DAY + timedelta(later)).strftime("%Y%m%d")

    def _study(self, number: int) -> StudyRecord:
        patient = number // 2  # two studies each
        first = min((self._date(of) for of in (patient * 2, patient * 2 + 1)), key=lambda day: day or "9")
        minor = self._dice(patient, "minor", 5) == 0
        age_days = self._dice(patient, "age", 17 * 365) if minor else 18 * 365 + self._dice(patient, "age", 75 * 365)
        born = date(int(first[:4]), int(first[4:6]), int(first[6:])) - timedelta(age_days)
        name = f"{_FAMILY[self._dice(patient, 'f', len(_FAMILY))]}^{_GIVEN[self._dice(patient, 'g', len(_GIVEN))]}"
        charset = "" if name.isascii() else ("ISO_IR 100", "ISO_IR 192")[patient % 2]
        kind = _KINDS[number % len(_KINDS)]
        series = () if number == EMPTY and self._count >= 10 else self._series(number, kind)
        second = self._dice(number, "second", 14 * 3600) + 6 * 3600
        return StudyRecord(
            uid=f"{self._root}.{number}",
            date=self._date(number),
            time=f"{second // 3600:02}{second // 60 % 60:02}{second % 60:02}",
            modalities=tuple(dict.fromkeys(one.modality for one in series)),
            accession=f"A{number:07}",
            patient_id=f"P{self.seed:04}{patient:07}",
            patient_name=name,
            series=series,
            birth_date=born.strftime("%Y%m%d"),
            sex="FMO"[self._dice(patient, "sex", 20) % 3] if kind not in ("MG", "DBT") else "F",
            description=f"PRACTICE {kind}",
            charset=charset,
            number=number,
        )

    def _series(self, number: int, kind: str) -> tuple[SeriesRecord, ...]:
        counts = {
            "CR": (1 + self._dice(number, "n", 2),),
            "CT": tuple(5 + self._dice(number, f"n{s}", 16) for s in range(2 + self._dice(number, "s", 2))),
            "MR": tuple(4 + self._dice(number, f"n{s}", 9) for s in range(2 + self._dice(number, "s", 3))),
            "US": (1 + self._dice(number, "n", 3),),
            "MG": (2, 2),
            "DBT": (1, 1),
        }[kind]
        kinds = [(kind, count) for count in counts]
        kinds += [(extra, 1) for extra, every in (("SR", 4), ("PR", 5), ("KO", 7)) if number % every == 1]
        return tuple(
            SeriesRecord(
                f"{self._root}.{number}.{place}",
                "MG" if kind == "DBT" else kind,
                tuple(
                    InstanceRecord(
                        f"{self._root}.{number}.{place}.{image}",
                        _CLASSES[kind],
                        _SYNTAXES[kind][(number // len(_KINDS) + place - 1) % len(_SYNTAXES[kind])],
                        image,
                    )
                    for image in range(1, count + 1)
                ),
            )
            for place, (kind, count) in enumerate(kinds, 1)
        )

    def _dataset(self, study: StudyRecord, series: SeriesRecord, instance: InstanceRecord) -> bytes:
        place = series.uid.rsplit(".", 1)[1]
        name = study.patient_name.encode({"ISO_IR 100": "latin-1", "ISO_IR 192": "utf-8"}.get(study.charset, "ascii"))
        elements: dict[int, Element] = {
            0x00080008: ("CS", "ORIGINAL\\PRIMARY"),
            0x00080016: ("UI", instance.sop_class),
            0x00080018: ("UI", instance.sop),
            0x00080020: ("DA", study.date),
            0x00080023: ("DA", study.date),
            0x00080030: ("TM", study.time),
            0x00080033: ("TM", study.time),
            0x00080050: ("SH", study.accession),
            0x00080060: ("CS", series.modality),
            0x00080070: ("LO", "PRACTICE"),
            0x00080090: ("PN", ""),
            0x00081030: ("LO", study.description),
            0x00090010: ("LO", "PRACTICE ARCHIVE"),
            0x00091001: ("UN", f"{self.seed}/{study.number}/{place}/{instance.number}".encode()),
            0x00100010: ("PN", name),
            0x00100020: ("LO", study.patient_id),
            0x00100030: ("DA", study.birth_date),
            0x00100040: ("CS", study.sex),
            0x0020000D: ("UI", study.uid),
            0x0020000E: ("UI", series.uid),
            0x00200010: ("SH", str(study.number)),
            0x00200011: ("IS", place),
            0x00200013: ("IS", str(instance.number)),
        }
        if study.charset:
            elements[0x00080005] = ("CS", study.charset)
        if series.modality in ("SR", "PR", "KO"):
            return encode(elements | self._references(study, series.modality), instance.transfer_syntax)
        tomosynthesis = instance.sop_class == _CLASSES["DBT"]
        frames = 15 if tomosynthesis else 8 if series.modality == "US" else 1
        packed = _FRAMES.get(instance.transfer_syntax)
        elements |= _image(self.pixels if packed is None else codestreams.EDGE, frames, 16 if packed is None else 8)
        if tomosynthesis:
            measures: Element = ("SQ", ({0x00280030: ("DS", "0.1\\0.1"), 0x00180050: ("DS", "1")},))
            elements[0x52009229] = ("SQ", ({0x00289110: measures},))
        turn = instance.number * 3 + study.number
        pixels = (packed or native_frame(self.pixels, turn + frame) for frame in range(frames))
        return encode(elements, instance.transfer_syntax, pixels)

    def _references(self, study: StudyRecord, modality: str) -> dict[int, Element]:
        """What a report, presentation state or key object says of the study's first image."""
        first = study.series[0].instances[0]
        image: dict[int, Element] = {0x00081150: ("UI", first.sop_class), 0x00081155: ("UI", first.sop)}
        if modality == "PR":
            images: Element = ("SQ", (image,))
            return {
                0x00080008: ("CS", ""),
                0x00081115: ("SQ", ({0x0020000E: ("UI", study.series[0].uid), 0x00081140: images},)),
                0x00700080: ("CS", "PRACTICE"),
                0x20500020: ("CS", "IDENTITY"),
            }
        text = "Nothing of note in this practice study." if modality == "SR" else "Of interest"
        return {
            0x00080008: ("CS", ""),
            0x0040A040: ("CS", "CONTAINER"),
            0x0040A050: ("CS", "SEPARATE"),
            0x0040A730: (
                "SQ",
                (
                    {0x0040A010: ("CS", "CONTAINS"), 0x0040A040: ("CS", "TEXT"), 0x0040A160: ("UT", text)},
                    {0x0040A010: ("CS", "CONTAINS"), 0x0040A040: ("CS", "IMAGE"), 0x00081199: ("SQ", (image,))},
                ),
            ),
        }


def _image(edge: int, frames: int, bits: int) -> dict[int, Element]:
    stored = 12 if bits == 16 else 8
    elements: dict[int, Element] = {
        0x00280002: ("US", 1),
        0x00280004: ("CS", "MONOCHROME2"),
        0x00280010: ("US", edge),
        0x00280011: ("US", edge),
        0x00280100: ("US", bits),
        0x00280101: ("US", stored),
        0x00280102: ("US", stored - 1),
        0x00280103: ("US", 0),
    }
    if frames > 1:
        elements[0x00280008] = ("IS", str(frames))
    return elements
