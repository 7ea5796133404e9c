"""The synthetic archive: study i is computed from (seed, i) whenever it is asked for, and is the same every time.

Nothing here is or was a person. A UID says which study, series and image it names, so that finding one needs no index.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cached_property, lru_cache

from migrate.practice import codestreams
from migrate.practice.days import Days
from migrate.practice.encoding import EXPLICIT_LE, IMPLICIT_LE, Element, encode, native_frame

UID_ROOT = "2.25.91748260315564820017364528190"
JPEG_BASELINE, JPEG_LOSSLESS = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.70"
JPEG_2000 = "1.2.840.10008.1.2.4.90"

EMPTY, UNDATED = 4, 7
"""The numbers of the study without images and of the one without a date (in archives of ten studies or more)."""

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


class StudyRecord:
    """A study as an archive's database knows it: everything is computed when it is first asked for.

    `date` is YYYYMMDD or "" (unknown), `charset` is (0008,0005), `shape` is (kind, number of images) of each series;
    `claimed_series` and `claimed_images` are what the database says in answers. `known` says what differs from
    what the archive would make.
    """

    def __init__(self, archive: Archive, number: int, **known: object) -> None:
        self._archive, self.number = archive, number
        self.uid = f"{archive.root}.{number}"
        self.patient = number // 2  # two studies each
        self._known = known
        self.__dict__.update(known)

    def but(self, **known: object) -> StudyRecord:
        """The same study with something else said of it."""
        return StudyRecord(self._archive, self.number, **(self._known | known))

    @cached_property
    def date(self) -> str:
        return self._archive.day_of(self.number)

    @cached_property
    def time(self) -> str:
        second = self._archive.dice(self.number, "second", 14 * 3600) + 6 * 3600
        return f"{second // 3600:02}{second // 60 % 60:02}{second % 60:02}"

    @cached_property
    def shape(self) -> tuple[tuple[str, int], ...]:
        return self._archive.shape_of(self.number)

    @cached_property
    def series(self) -> tuple[SeriesRecord, ...]:
        return tuple(_series(self.uid, self.number, place, *one) for place, one in enumerate(self.shape, 1))

    @property
    def instance_count(self) -> int:
        return sum(count for _, count in self.shape)

    @cached_property
    def claimed_series(self) -> str:
        return str(len(self.shape))

    @cached_property
    def claimed_images(self) -> str:
        return str(self.instance_count)

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(_modality(kind) for kind, _ in self.shape))

    @property
    def accession(self) -> str:
        return f"A{self.number:07}"

    @property
    def patient_id(self) -> str:
        return f"P{self._archive.seed:04}{self.patient:07}"

    @cached_property
    def patient_name(self) -> str:
        dice = self._archive.dice
        return f"{_FAMILY[dice(self.patient, 'f', len(_FAMILY))]}^{_GIVEN[dice(self.patient, 'g', len(_GIVEN))]}"

    @cached_property
    def charset(self) -> str:
        return "" if self.patient_name.isascii() else ("ISO_IR 100", "ISO_IR 192")[self.patient % 2]

    @property
    def description(self) -> str:
        return f"PRACTICE {self.kind}"

    @property
    def kind(self) -> str:
        return _KINDS[self.number % len(_KINDS)]

    @property
    def sex(self) -> str:
        return "F" if self.kind in ("MG", "DBT") else "FMO"[self._archive.dice(self.patient, "sex", 20) % 3]

    @property
    def birth_date(self) -> str:
        return self._archive.birth_date(self.patient)


class Archive:
    """`studies` synthetic studies of a `seed`, none of which is held: all is arithmetic, by number, date or patient.

    `pixels` is the edge of native images. Studies 4 (no images) and 7 (no date) are odd where there are ten or more.
    Raises ValueError for a seed outside of 0..9999 or more than ten million studies.
    """

    def __init__(self, studies: int = 20, seed: int = 1, *, pixels: int = 64) -> None:
        if not 0 <= seed <= 9999 or not 0 <= studies <= 10_000_000 or not 2 <= pixels <= 16384:
            raise ValueError("seed 0..9999, studies 0..10,000,000, pixels 2..16384")
        self.seed, self.pixels, self._count = seed, pixels, studies
        self.root = f"{UID_ROOT}.{seed}"
        self._days = Days(studies, seed)
        self._plain = lru_cache(512)(lambda number: StudyRecord(self, number))

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[StudyRecord]:
        return self.numbered(range(len(self)))

    def study(self, number: int) -> StudyRecord:
        return self._plain(number)

    # -- finding
    def numbered(self, numbers: range) -> Iterator[StudyRecord]:
        """The studies of these numbers."""
        return map(self.study, numbers)

    def find(self, uid: str) -> StudyRecord | None:
        """The study that a study, series or SOP instance UID belongs to, by the UID alone."""
        parts = self._numbers(uid)
        if not parts or parts[0] >= len(self) or len(parts) > 3:
            return None
        study = self.study(parts[0])
        if len(parts) > 1 and not 1 <= parts[1] <= len(study.shape):
            return None
        if len(parts) > 2 and not 1 <= parts[2] <= study.shape[parts[1] - 1][1]:
            return None
        return study if uid == ".".join([self.root, *map(str, parts)]) else None

    def _numbers(self, uid: str) -> list[int]:
        """(study, series, image) of a UID of this archive, as far as it names them; nothing for others."""
        if not uid.startswith(self.root + "."):
            return []
        parts = uid[len(self.root) + 1 :].split(".")
        return [int(part) for part in parts] if all(re.fullmatch("[0-9]{1,8}", part) for part in parts) else []

    def span(self, lo: str, hi: str) -> range:
        """The ranks by date of the studies of these days (YYYYMMDD, both included, "" for an open end)."""
        return self._days.span(lo, hi)

    def ranked(self, span: range) -> Iterator[StudyRecord]:
        """The studies of these ranks that have a date, by date."""
        return (study for rank in span if (study := self.study(self._days.number(rank))).date)

    def between(self, lo: str, hi: str) -> Iterator[StudyRecord]:
        """Studies of these days (YYYYMMDD, both included, "" for an open end) by date."""
        return self.ranked(self.span(lo, hi))

    def of_patient(self, start: str, whole: bool = False) -> range:
        """The numbers of the studies whose Patient ID begins with (or, if `whole`, is) `start`."""
        found = _with_prefix(f"P{self.seed:04}", start, whole)
        return range(min(found.start * 2, len(self)), min(found.stop * 2, len(self)))

    def of_accession(self, start: str, whole: bool = False) -> range:
        """The numbers of the studies whose Accession Number begins with (or, if `whole`, is) `start`."""
        found = _with_prefix("A", start, whole)
        return range(min(found.start, len(self)), min(found.stop, len(self)))

    # -- making
    def dataset(self, instance: InstanceRecord, more: Mapping[int, Element] | None = None) -> bytes:
        """The encoded data set in the instance's own transfer syntax: the same bytes every time; `more` is put in."""
        numbers = self._numbers(instance.sop)
        if len(numbers) != 3:
            raise KeyError("the instance is not of this archive")
        study = self._plain(numbers[0])
        return self._dataset(study, study.series[numbers[1] - 1], instance, more or {})

    def truth(self) -> Iterator[tuple[str, str, str, bytes]]:
        """(study, series, SOP, SHA-256 of the data set) of every instance."""
        for study in self:
            for series in study.series:
                for instance in series.instances:
                    yield study.uid, series.uid, instance.sop, hashlib.sha256(self.dataset(instance)).digest()

    def dice(self, number: int, what: str, below: int) -> int:
        key = f"{self.seed}/{number}/{what}".encode()
        return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") % below

    def day_of(self, number: int) -> str:
        return "" if number == UNDATED and self._count >= 10 else self._days.day(number)

    def birth_date(self, patient: int) -> str:
        pair = (patient * 2, patient * 2 + 1)
        first = min((day for of in pair if of < self._count and (day := self.day_of(of))), default="20260101")
        minor = self.dice(patient, "minor", 5) == 0
        age_days = self.dice(patient, "age", 17 * 365) if minor else 18 * 365 + self.dice(patient, "age", 75 * 365)
        return (date(int(first[:4]), int(first[4:6]), int(first[6:])) - timedelta(age_days)).strftime("%Y%m%d")

    def shape_of(self, number: int) -> tuple[tuple[str, int], ...]:
        if number == EMPTY and self._count >= 10:
            return ()
        kind, dice = _KINDS[number % len(_KINDS)], self.dice
        counts: tuple[int, ...]
        if kind == "CT":
            counts = tuple(5 + dice(number, f"n{s}", 16) for s in range(2 + dice(number, "s", 2)))
        elif kind == "MR":
            counts = tuple(4 + dice(number, f"n{s}", 9) for s in range(2 + dice(number, "s", 3)))
        elif kind in ("CR", "US"):
            counts = (1 + dice(number, "n", 2 if kind == "CR" else 3),)
        else:
            counts = (2, 2) if kind == "MG" else (1, 1)
        kinds = [(kind, count) for count in counts]
        kinds += [(extra, 1) for extra, every in (("SR", 4), ("PR", 5), ("KO", 7)) if number % every == 1]
        return tuple(kinds)

    def _dataset(self, study: StudyRecord, series: SeriesRecord, instance: InstanceRecord, more: Mapping[int, Element]) -> bytes:
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
        elements |= more
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


def _modality(kind: str) -> str:
    return "MG" if kind == "DBT" else kind


def _series(study: str, number: int, place: int, kind: str, count: int) -> SeriesRecord:
    syntaxes = _SYNTAXES[kind]
    syntax = syntaxes[(number // len(_KINDS) + place - 1) % len(syntaxes)]
    uid = f"{study}.{place}"
    images = (InstanceRecord(f"{uid}.{image}", _CLASSES[kind], syntax, image) for image in range(1, count + 1))
    return SeriesRecord(uid, _modality(kind), tuple(images))


def _with_prefix(fixed: str, start: str, whole: bool) -> range:
    """Which seven-digit numbers, written after `fixed`, begin with (or are) `start`."""
    digits = start[len(fixed) :]
    if not (start.startswith(fixed) if digits or whole else fixed.startswith(start)):
        return range(0)
    if (digits and not re.fullmatch("[0-9]{1,7}", digits)) or (whole and len(digits) < 7):
        return range(0)
    return range(int(digits.ljust(7, "0")), int(digits.ljust(7, "9")) + 1)


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
