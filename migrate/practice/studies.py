"""The synthetic archive: study i is computed from (seed, i) whenever it is asked for, and is the same every time.

Nothing here is or was a person. A UID says which study, series and image it names, so that finding one needs no index.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, timedelta
from functools import lru_cache

from migrate.practice.days import Days
from migrate.practice.encoding import Element
from migrate.practice.objects import make_dataset
from migrate.practice.records import KINDS, InstanceRecord, SeriesRecord, Shape, StudyRecord, modality_of

UID_ROOT = "2.25.91748260315564820017364528190"

_EXTRAS = (("SR", 4), ("PR", 5), ("KO", 7))
"""What one study of so many has beside its images."""
EMPTY, UNDATED = 4, 7
"""The numbers of the study without images and of the one without a date (in archives of ten studies or more)."""


class Archive:
    """`studies` synthetic studies of a `seed`, none of which is held: all is arithmetic, by number, date or patient.

    `pixels` is the edge of native images; `shapes` says of some studies what they hold; `more` is put into every
    data set; `each` patient has so many studies, one after the other. Studies 4 (no images) and 7 (no date) are odd where there are ten or more.
    Raises ValueError for a seed outside of 0..9999 or more than ten million studies.
    """

    def __init__(self, studies: int = 20, seed: int = 1, *, pixels: int = 64, shapes: Mapping[int, Shape] | None = None,
                 more: Mapping[int, Element] | None = None, each: int = 2) -> None:  # fmt: skip
        if not 0 <= seed <= 9999 or not 0 <= studies <= 10_000_000 or not 2 <= pixels <= 16384:
            raise ValueError("seed 0..9999, studies 0..10,000,000, pixels 2..16384")
        self.seed, self.pixels, self._count = seed, pixels, studies
        self.shapes, self.more, self.each = shapes or {}, more or {}, each
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
    def numbered(self, numbers: Iterable[int]) -> Iterator[StudyRecord]:
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

    def named(self, uid: str) -> Iterator[StudyRecord]:
        """The records of the study of that UID."""
        study = self.find(uid)
        if study is not None:
            yield study

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
        return range(min(found.start * self.each, len(self)), min(found.stop * self.each, len(self)))

    def of_accession(self, start: str, whole: bool = False) -> range:
        """The numbers of the studies whose Accession Number begins with (or, if `whole`, is) `start`."""
        found = _with_prefix("A", start, whole)
        return range(min(found.start, len(self)), min(found.stop, len(self)))

    def of_modality(self, modality: str) -> Iterable[int]:
        """The numbers, in order, of all studies that may have a series of that modality, and of few others."""
        steps = [(place, len(KINDS)) for place, kind in enumerate(KINDS) if modality_of(kind) == modality]
        steps += [(1, every) for extra, every in _EXTRAS if extra == modality]
        shaped = (number for number, shape in self.shapes.items() if any(modality_of(kind) == modality for kind, _ in shape) and number < len(self))
        merged = heapq.merge(*(range(first, len(self), every) for first, every in steps), sorted(shaped))
        return (number for number, _ in itertools.groupby(merged))

    # -- making
    def dataset(self, instance: InstanceRecord, more: Mapping[int, Element] | None = None) -> bytes:
        """The encoded data set in the instance's own transfer syntax: the same bytes every time; `more` is put in."""
        numbers = self._numbers(instance.made_as or instance.sop)
        if len(numbers) != 3:
            raise KeyError("the instance is not of this archive")
        study, series = self.series_of(*numbers[:2])
        return make_dataset(study, series, instance, seed=self.seed, pixels=self.pixels, more={**self.more, **(more or {})})

    def series_of(self, study: int, place: int) -> tuple[StudyRecord, SeriesRecord]:
        """A study and its series of that place, from 1, as their images were made."""
        record = self._plain(study)
        return record, record.series[place - 1]

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
        studies = range(patient * self.each, min((patient + 1) * self.each, self._count))
        first = min(filter(None, map(self.day_of, studies)), default="20260101")
        minor = self.dice(patient, "minor", 5) == 0
        age_days = self.dice(patient, "age", 17 * 365) if minor else 18 * 365 + self.dice(patient, "age", 75 * 365)
        return (date(int(first[:4]), int(first[4:6]), int(first[6:])) - timedelta(age_days)).strftime("%Y%m%d")

    def shape_of(self, number: int) -> Shape:
        if number in self.shapes:
            return self.shapes[number]
        if number == EMPTY and self._count >= 10:
            return ()
        kind, dice = KINDS[number % len(KINDS)], self.dice
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
        kinds += [(extra, 1) for extra, every in _EXTRAS if number % every == 1]
        return tuple(kinds)


def _with_prefix(fixed: str, start: str, whole: bool) -> range:
    """Which seven-digit numbers, written after `fixed`, begin with (or are) `start`."""
    digits = start[len(fixed) :]
    if not (start.startswith(fixed) if digits or whole else fixed.startswith(start)):
        return range(0)
    if (digits and not re.fullmatch("[0-9]{1,7}", digits)) or (whole and len(digits) < 7):
        return range(0)
    return range(int(digits.ljust(7, "0")), int(digits.ljust(7, "9")) + 1)
