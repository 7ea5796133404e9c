"""Any source, with an audit message for each question and each retrieval."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager

from migrate.audit_trail.delivery import AuditTrail
from migrate.audit_trail.messages import MINOR_FAILURE, Query
from migrate.dicom.identifier import encode_identifier
from migrate.errors import PacsMigrateError
from migrate.model import Finding, Received, RetrieveEnded, StudyFound, StudyPlanned, StudyRef, Wanted, Window
from migrate.sources.dimse import study_rows
from migrate.sources.dimse.move import DimseMove

STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
_IMPLICIT = "1.2.840.10008.1.2"
_LEVEL, _STUDY_UID = 0x00080052, 0x0020000D


class Counting:
    """Counts what comes, by study and SOP class, on its way to whom it is delivered to."""

    def __init__(self, deliver: Callable[[Received], Future[None] | None]) -> None:
        self._deliver = deliver
        self._lock = threading.Lock()
        self._counts: dict[str, Counter[str]] = {}

    def __call__(self, received: Received) -> Future[None] | None:
        if received.ref is not None:
            with self._lock:
                self._counts.setdefault(received.ref.study, Counter())[received.sop_class] += 1
        return self._deliver(received)

    def take(self, study: str) -> dict[str, int]:
        with self._lock:
            return dict(self._counts.pop(study, ()))


class Audited:
    """See `Source`: asks the source inside, and says so."""

    def __init__(self, inner: DimseMove, trail: AuditTrail, arrived: Counting) -> None:
        self._inner, self._trail, self._arrived = inner, trail, arrived
        self.habits = inner.habits

    def open(self) -> None:
        self._inner.open()

    def check(self) -> list[Finding]:
        return self._inner.check()

    def by_patient(self) -> bool:
        return self._inner.by_patient()

    def count_patients(self) -> tuple[int, str]:
        with self._asking({_LEVEL: "PATIENT"}):
            return self._inner.count_patients()

    @contextmanager
    def questions(self) -> Iterator[Callable[[Window], Iterator[StudyFound]]]:
        with self._inner.questions() as inner:

            def studies(window: Window) -> Iterator[StudyFound]:
                with self._asking({_LEVEL: "STUDY", **study_rows.keys(window)}):
                    yield from inner(window)

            yield studies

    def instances(self, study: StudyRef) -> StudyPlanned:
        with self.listing() as instances:
            return instances(study)

    @contextmanager
    def listing(self) -> Iterator[Callable[[StudyRef], StudyPlanned]]:
        with self._inner.listing() as inner:

            def instances(study: StudyRef) -> StudyPlanned:
                with self._asking({_LEVEL: "IMAGE", _STUDY_UID: study.study}):
                    return inner(study)

            yield instances

    def retrieve(self, study: StudyRef, wanted: Wanted) -> RetrieveEnded:
        self._trail.begins(study.study)
        try:
            ended = self._inner.retrieve(study, wanted)
        except PacsMigrateError as error:
            self._trail.transferred(study.study, self._arrived.take(study.study), MINOR_FAILURE, error.name)
            raise
        self._trail.transferred(study.study, self._arrived.take(study.study), MINOR_FAILURE if ended.error else 0, ended.error or "")
        return ended

    def quiet_in_s(self) -> float:
        return self._inner.quiet_in_s()

    def cut(self) -> None:
        self._inner.cut()

    def close(self) -> None:
        self._inner.close()

    @contextmanager
    def _asking(self, keys: dict[int, str]) -> Iterator[None]:
        query = Query(STUDY_ROOT_FIND, encode_identifier(keys, _IMPLICIT), _IMPLICIT)
        try:
            yield
        except PacsMigrateError as error:
            self._trail.queried(query, MINOR_FAILURE, error.name)
            raise
        self._trail.queried(query)
