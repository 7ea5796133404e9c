"""What a PACS with faults has on its shelves: the archive as its database knows it, which may change as it is asked."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import date
from functools import lru_cache
from typing import Any

from migrate.practice.encoding import Element
from migrate.practice.faults import Conduct
from migrate.practice.objects import huge_dataset
from migrate.practice.records import CLASSES, InstanceRecord, SeriesRecord, StudyRecord
from migrate.practice.studies import Archive

NEW_STUDIES = 3
PATH = "../../../../tmp/escaped"
"""What a hostile PACS has for a UID."""
_SERIES = {"private-class": "PRIVATE", "many-classes": "VARIED", "many-images": "TINY", "huge-image": "HUGE"}
"""The kind of the series that a fault adds."""
_NAMES = ((b"", b"\xfc\xff^\xfe"), (b"ISO IR 192", b"\x83\x8a^\x81"), (b"Not Supplied", b"\xcf\xe5\xf2^\xf0"))


class Holdings(Archive):
    """An archive seen through a PACS's faults; the images that are the archive's too have the archive's bytes.

    Everything is as of now: `added` and `lost` are the SOP Instance UIDs, `vanished` the Study Instance UIDs, that have
    come and gone since the start.
    """

    def __init__(self, archive: Archive, conduct: Conduct) -> None:
        super().__init__(len(archive), archive.seed, pixels=archive.pixels, shapes=archive.shapes, more=archive.more, each=archive.each)
        self._conduct = conduct
        self._lock = threading.Lock()
        self._seen = lru_cache(512)(self._as_known)  # what is computed of a study is computed once
        self._new_day = ""
        self._twins = bool({"two-patients", "changing-patients"} & conduct.names)
        self._given: set[int] = set()  # studies that another patient has now
        self._grown: set[int] = set()
        self._shrunk: set[int] = set()
        self._gone: set[int] = set()
        self._honest = not {"odd-patient-ids", "two-patients", "changing-patients", "null-dates", "invalid-dates", "null-times", "empty-studies", "wrong-counts", "no-counts", "growing", "shrinking", "vanishing",
                            "vanishing-later", "path-rows", "shared-sop", *_SERIES} & conduct.names  # fmt: skip

    def __len__(self) -> int:
        return self._count + (NEW_STUDIES if self._new_day else 0)

    def day_of(self, number: int) -> str:
        return super().day_of(number) if number < self._count else self._new_day

    def study(self, number: int) -> StudyRecord:
        return self._plain(number) if self._honest else self._seen(number, number in self._grown, number in self._shrunk)

    def _as_known(self, number: int, grown: bool, shrunk: bool) -> StudyRecord:
        plain = self._plain(number)
        known: dict[str, Any] = {}
        if "null-dates" in self._conduct and number % 7 == 3:
            known |= {"date": "", "time": ""}
        if "invalid-dates" in self._conduct and number % 7 == 1 and plain.date:
            known["date"] = f"{plain.date[:4]}0230"
        if "null-times" in self._conduct and number % 5 == 3:
            known["time"] = ""
        if "odd-patient-ids" in self._conduct and plain.patient % 5 == 4:
            known["patient_id"] = ("", f"{plain.patient_id}*", f"{plain.patient_id}Ü")[plain.patient // 5 % 3]
        if "empty-studies" in self._conduct and number % 9 == 8:
            known["shape"] = ()
        elif grown or shrunk:
            (kind, count), *others = plain.shape
            known["shape"] = ((kind, count + grown - shrunk), *others)
        added = tuple(
            (kind, 1 if fault == "huge-image" else 3 if fault == "private-class" else int(value))
            for fault, kind in _SERIES.items()
            if (value := self._conduct.of(fault, number))
        )
        if added:
            known["shape"] = (*known.get("shape", plain.shape), *added)
        study = plain.but(**known) if known else plain
        for fault, sop in (("path-rows", PATH), ("shared-sop", f"{self.root}.{number - 1}.1.1")):
            if self._conduct.of(fault, number):
                study = study.but(series=_renamed(study, sop))
        if self._conduct.of("two-patients", number) and study.series:
            study = _without_last(study)
        if "no-counts" in self._conduct:
            return study.but(claimed_off_by=None)
        if "wrong-counts" in self._conduct and number % 4 == 1:
            return study.but(claimed_off_by=1 if number % 8 == 1 or not study.shape else -1)
        return study

    def of_modality(self, modality: str) -> Iterable[int]:
        return super().of_modality(modality) if self._honest and not self._new_day else range(len(self))

    def numbered(self, numbers: Iterable[int]) -> Iterator[StudyRecord]:
        for number in numbers:
            if number not in self._gone and number not in self._given:
                yield self.study(number)
            yield from (self._twin(twin) for twin in (number - self.each, number + self.each) if self._partner(twin) == number and twin not in self._gone)

    def named(self, uid: str) -> Iterator[StudyRecord]:
        study = self.find(uid)
        if study is not None and study.number not in self._gone:
            yield from self._as_held(study)

    def between(self, lo: str, hi: str) -> Iterator[StudyRecord]:
        yield from super().between(lo, hi)
        if self._new_day and lo <= self._new_day and (not hi or self._new_day <= hi):
            yield from self.numbered(range(self._count, len(self)))

    def ranked(self, span: range) -> Iterator[StudyRecord]:
        for study in super().ranked(span):
            if study.number not in self._gone:
                yield from self._as_held(study)

    # -- studies of two patients
    def _as_held(self, study: StudyRecord) -> Iterator[StudyRecord]:
        """The study under each patient who has it."""
        if study.number not in self._given:
            yield study
        if self._partner(study.number) is not None:
            yield self._twin(study.number)

    def _partner(self, number: int) -> int | None:
        """The first study of the other patient under whom this study stands, too, before whose own it is shown; None where there is none."""
        if not self._twins or not 0 <= number < self._count:
            return None
        if number not in self._given and not (self._conduct.of("two-patients", number) and self._plain(number).series):
            return None
        partner = number + self.each if number + self.each < self._count else number - self.each
        return partner if partner >= 0 else None

    def _twin(self, number: int) -> StudyRecord:
        """The same study as the other patient has it: its last image alone, or all of it."""
        partner, study = self._partner(number), self._plain(number)
        assert partner is not None
        if number in self._given:
            return self.study(number).but(patient=self._plain(partner).patient)
        last = study.series[-1]
        shape = ((study.shape[-1][0], 1),)
        return self.study(number).but(patient=self._plain(partner).patient, shape=shape, series=(replace(last, instances=last.instances[-1:]),))

    # -- what its images are
    def pieces(self, instance: InstanceRecord, more: Mapping[int, Element] | None = None) -> Iterable[bytes | memoryview]:
        """The data set as it is sent, in pieces, so that a huge one is never held."""
        if instance.sop_class != CLASSES["HUGE"]:
            return (self.dataset(instance, more),)
        number, series = self._numbers(instance.sop)[:2]
        study = self.study(number)
        mib = int(self._conduct.of("huge-image", number))
        return huge_dataset(study, study.series[series - 1], instance, seed=self.seed, mib=mib, more=more or {})

    def series_of(self, study: int, place: int) -> tuple[StudyRecord, SeriesRecord]:
        plain = self._plain(study)
        return plain, (plain if place <= len(plain.series) else self.study(study)).series[place - 1]

    def truth(self) -> Iterator[tuple[str, str, str, bytes]]:
        for study in self:
            for series in study.series:
                for instance in series.instances:
                    digest = hashlib.sha256()
                    for piece in self.pieces(instance):
                        digest.update(piece)
                    yield study.uid, series.uid, instance.sop, digest.digest()

    # -- what changes
    def asked_for_studies(self, asked: int) -> None:
        """A STUDY query comes, the `asked`th."""
        after = self._conduct.number("new-studies")
        if after is not None and asked > after and not self._new_day:
            self._new_day = date.today().strftime("%Y%m%d")

    def showed_study(self, study: StudyRecord) -> None:
        """A STUDY row has been sent."""
        if self._conduct.of("vanishing", study.number):
            with self._lock:
                self._gone.add(study.number)

    def showed_images(self, study: StudyRecord) -> None:
        """An IMAGE query has been answered."""
        with self._lock:
            if self._conduct.of("growing", study.number) and study.shape:
                self._grown.add(study.number)
            if self._conduct.of("changing-patients", study.number):
                self._given.add(study.number)
            if self._conduct.of("shrinking", study.number) and study.instance_count > 1:
                self._shrunk.add(study.number)
            later = self._conduct.of("vanishing-later", study.number)
            if later and self._conduct.tried(f"listed {study.uid}") >= len(study.shape):
                self._gone.add(study.number)

    # -- what is known of it
    @property
    def added(self) -> set[str]:
        """Images that came to studies that were there."""
        return {f"{self.root}.{number}.1.{self._plain(number).shape[0][1] + 1}" for number in self._grown - self._shrunk}

    @property
    def lost(self) -> set[str]:
        return {f"{self.root}.{number}.1.{self._plain(number).shape[0][1]}" for number in self._shrunk - self._grown}

    @property
    def vanished(self) -> set[str]:
        return {f"{self.root}.{number}" for number in self._gone}


def _renamed(study: StudyRecord, sop: str) -> tuple[SeriesRecord, ...]:
    """The series of a study whose last image goes by another SOP Instance UID."""
    *others, last = study.series
    *images, image = last.instances
    return (*others, replace(last, instances=(*images, replace(image, sop=sop, made_as=image.sop))))


def _without_last(study: StudyRecord) -> StudyRecord:
    """The study but for its last image."""
    *others, last = study.series
    *shape, (kind, count) = study.shape
    if count == 1:
        return study.but(series=tuple(others), shape=tuple(shape))
    return study.but(series=(*others, replace(last, instances=last.instances[:-1])), shape=(*shape, (kind, count - 1)))


def is_broken(study: StudyRecord) -> bool:
    """The studies whose rows are never sound, of a PACS with such a fault."""
    return study.number % 11 == 9


def odd_text(study: StudyRecord) -> tuple[bytes, bytes]:
    """(the character set that is declared, a text that does not fit to it) for "odd-names"."""
    return _NAMES[study.number % 3]
