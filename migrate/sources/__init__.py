"""Where images come from. A source never sees the manifest: it answers questions and delivers what arrives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import Protocol

from migrate.audit_trail.delivery import AuditTrail
from migrate.config import Config
from migrate.model import Finding, Received, RetrieveEnded, StudyFound, StudyPlanned, StudyRef, Wanted, Window
from migrate.sources.audited import Audited, Counting
from migrate.sources.dimse.move import DimseMove
from migrate.staging.area import Staging


class Source(Protocol):
    """The contract of every kind of source."""

    habits: dict[str, tuple[str, str]]
    """What was noticed of the PACS on the way: value and a sentence, by the habit's name."""

    def open(self) -> None:
        """Begin to listen. Raises PortInUse."""

    def check(self) -> list[Finding]:
        """Prove that it can be reached, asked, and made to send to us."""

    def by_patient(self) -> bool:
        """Whether it answers nothing below the level PATIENT without one PatientID, so that patients are asked for one by one. Raises as `questions`."""

    def count_patients(self) -> tuple[int, str]:
        """How many patients can be asked for, listed anew; and why there may be more, "" where that is all. Raises as `questions`."""

    def questions(self) -> AbstractContextManager[Callable[[Window], Iterable[StudyFound]]]:
        """Every study of a window, for one window after the other over one association, for one thread; one that raised does not spoil the
        next. Raises QueryRefused or QueryFailed unless the peer ended with Success."""

    def instances(self, study: StudyRef) -> StudyPlanned:
        """Every instance of the study. Raises as `questions` does."""

    def listing(self) -> AbstractContextManager[Callable[[StudyRef], StudyPlanned]]:
        """`instances` for one study after the other over one association, for one thread; one that raised does not spoil the next."""

    def retrieve(self, study: StudyRef, wanted: Wanted) -> RetrieveEnded:
        """One attempt at what is wanted; what arrives is delivered by its UIDs, whoever asked for it."""

    def quiet_in_s(self) -> float:
        """How long nothing more may come before `settle_s` have passed without a byte; 0 where they have, or nothing ever came."""

    def cut(self) -> None:
        """End what is under way at once; what was being sent is asked for again by the next run."""

    def close(self) -> None: ...


def open_source(
    config: Config, staging: Staging, deliver: Callable[[Received], Future[None] | None], habits: Mapping[str, str] | None = None,
    trail: AuditTrail | None = None,
) -> Source:  # fmt: skip
    """The source that the configuration names. Of its known `habits`, the number of associations that it allows is kept to.

    `trail` is told of every question and retrieval.
    """
    allowed = (habits or {}).get("associations", "")
    arrived = Counting(deliver)
    source = DimseMove(
        config.source, config.receiver, staging, deliver if trail is None else arrived, max(int(allowed), 1) if allowed.isdigit() else None
    )
    return source if trail is None else Audited(source, trail, arrived)
