"""What an archive's database knows of studies, series and images (PS3.3 7.3): kinds, records, and how they come about."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from migrate.practice.encoding import EXPLICIT_LE, IMPLICIT_LE

JPEG_BASELINE, JPEG_LOSSLESS = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.70"
JPEG_2000 = "1.2.840.10008.1.2.4.90"

PRIVATE_ROOT = "2.25.91748260315564820017364528190.1"
"""SOP classes and a transfer syntax that are in no dictionary."""
_STORAGE = "1.2.840.10008.5.1.4.1.1."
CLASSES = {
    "CR": _STORAGE + "1",
    "CT": _STORAGE + "2",
    "MR": _STORAGE + "4",
    "US": _STORAGE + "3.1",
    "MG": _STORAGE + "1.2",
    "DBT": _STORAGE + "13.1.3",
    "SR": _STORAGE + "88.11",
    "PR": _STORAGE + "11.1",
    "KO": _STORAGE + "88.59",
    "PRIVATE": PRIVATE_ROOT + ".1",
    "VARIED": PRIVATE_ROOT + ".3",  # and one more number for each image
    "TINY": _STORAGE + "7.4",  # true colour secondary captures
    "HUGE": _STORAGE + "13.1.4",  # projection breast X-ray
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
    "PRIVATE": (PRIVATE_ROOT + ".2",),
    "VARIED": (EXPLICIT_LE,),
    "TINY": (EXPLICIT_LE,),
    "HUGE": (JPEG_LOSSLESS,),
}
_MODALITIES = {"DBT": "MG", "PRIVATE": "OT", "VARIED": "OT", "TINY": "OT", "HUGE": "MG"}
KINDS = ("CR", "CT", "MR", "US", "MG", "DBT")
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
    """An image as an archive's database knows it."""

    sop: str
    sop_class: str
    transfer_syntax: str
    number: int
    made_as: str = ""  # the SOP Instance UID that the archive knows it by, where it goes by another one


@dataclass(frozen=True, slots=True)
class SeriesRecord:
    """A series as an archive's database knows it."""

    uid: str
    modality: str
    instances: tuple[InstanceRecord, ...]


Shape = tuple[tuple[str, int], ...]
"""The kind and the number of images of each series."""


class Maker(Protocol):
    """What makes up studies: what a record asks of its archive."""

    seed: int
    root: str
    each: int

    def day_of(self, number: int) -> str: ...
    def shape_of(self, number: int) -> Shape: ...
    def birth_date(self, patient: int) -> str: ...
    def dice(self, number: int, what: str, below: int) -> int: ...
    def numbered(self, numbers: Iterable[int]) -> Iterator[StudyRecord]: ...
    def of_patient(self, start: str, whole: bool = False) -> range: ...


class StudyRecord:
    """A study as an archive's database knows it: everything is computed when it is first asked for.

    `date` is YYYYMMDD or "" (unknown), `charset` is (0008,0005), `shape` is (kind, number of images) of each series;
    `claimed_off_by` is by how much the database miscounts, None where it never counts. `known` says what differs from
    what the archive would make.
    """

    claimed_off_by: int | None = 0

    def __init__(self, archive: Maker, number: int, **known: object) -> None:
        self._archive, self.number = archive, number
        self.uid = f"{archive.root}.{number}"
        self.patient = number // archive.each
        self._known = known
        self.__dict__.update(known)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StudyRecord) and (self.uid, self._known) == (other.uid, other._known)

    def __hash__(self) -> int:
        return hash(self.uid)

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
    def shape(self) -> Shape:
        return self._archive.shape_of(self.number)

    @cached_property
    def series(self) -> tuple[SeriesRecord, ...]:
        return tuple(_series(self.uid, self.number, place, *one) for place, one in enumerate(self.shape, 1))

    @property
    def instance_count(self) -> int:
        return sum(count for _, count in self.shape)

    def claim(self, count: int) -> str:
        """What the database says where there are `count` series or images."""
        return "" if self.claimed_off_by is None else str(max(count + self.claimed_off_by, 0))

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(modality_of(kind) for kind, _ in self.shape))

    @property
    def accession(self) -> str:
        return f"A{self.number:07}"

    @cached_property
    def patient_id(self) -> str:
        return f"P{self._archive.seed:04}{self.patient:07}"

    @property
    def studies_of_patient(self) -> int:
        return sum(1 for _ in self._archive.numbered(self._archive.of_patient(self.patient_id, whole=True)))

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
        return KINDS[self.number % len(KINDS)]

    @property
    def sex(self) -> str:
        return "F" if self.kind in ("MG", "DBT") else "FMO"[self._archive.dice(self.patient, "sex", 20) % 3]

    @property
    def birth_date(self) -> str:
        return self._archive.birth_date(self.patient)


def modality_of(kind: str) -> str:
    """The Modality of a series of that kind."""
    return _MODALITIES.get(kind, kind)


def _series(study: str, number: int, place: int, kind: str, count: int) -> SeriesRecord:
    syntaxes = _SYNTAXES[kind]
    syntax = syntaxes[(number // len(KINDS) + place - 1) % len(syntaxes)]
    uid = f"{study}.{place}"
    classes = (f"{CLASSES[kind]}.{image}" if kind == "VARIED" else CLASSES[kind] for image in range(1, count + 1))
    images = (InstanceRecord(f"{uid}.{image}", sop_class, syntax, image) for image, sop_class in enumerate(classes, 1))
    return SeriesRecord(uid, modality_of(kind), tuple(images))
