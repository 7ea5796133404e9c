"""One attempt at a study: its C-MOVEs, their time limits, and what came meanwhile."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from migrate.dicom.dimse import SUBOPERATIONS_FAILED, SUCCESS
from migrate.dicom.move import MAX_SOPS, MoveResult, move
from migrate.failpoints import reach
from migrate.model import Received, StudyRef, Wanted

if TYPE_CHECKING:
    from migrate.sources.dimse_move import DimseMove

_WAITS = 0.05


class Arrivals:
    """What has come of the studies being retrieved, by UID."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.by_study: dict[str, set[tuple[str, str]]] = {}
        self.total = 0
        self.last_at = time.monotonic()

    def add(self, received: Received) -> None:
        with self.lock:
            self.total += 1
            self.last_at = time.monotonic()
            ref = received.ref
            if ref is not None and ref.study in self.by_study:
                self.by_study[ref.study].add((ref.series, ref.sop))


class Attempt:
    """One attempt at a study: its C-MOVEs, their time limits, and what came meanwhile."""

    def __init__(self, source: DimseMove, study: StudyRef, wanted: Wanted) -> None:
        self._source, self.study, self._wanted = source, study, wanted
        self._began = time.monotonic()
        self._asked = self._began
        self._turned_away = source.staging.turned_away
        self.status: int | None = None
        self._results: list[MoveResult] = []
        self._whole: MoveResult | None = None

    def __enter__(self) -> Attempt:
        with self._source.arrivals.lock:
            self._source.arrivals.by_study[self.study.study] = set()
        return self

    def __exit__(self, *_: object) -> None:
        with self._source.arrivals.lock:
            self._source.arrivals.by_study.pop(self.study.study, None)

    def arrived(self) -> set[tuple[str, str]]:
        with self._source.arrivals.lock:
            return set(self._source.arrivals.by_study.get(self.study.study, ()))

    def missing(self) -> dict[str, tuple[str, ...]]:
        """What of the wanted has not come in this attempt."""
        arrived = self.arrived()
        left = {series: tuple(sop for sop in sops if (series, sop) not in arrived) for series, sops in self._wanted.series.items()}
        return {series: sops for series, sops in left.items() if sops}

    def whole(self) -> bool:
        """Whether the study was asked for as a whole, and the PACS's answer leaves no doubt that all of it came."""
        result = self._whole
        if result is None or result.failed or not (result.status == SUCCESS or (result.status == SUBOPERATIONS_FAILED and result.failed == 0)):
            return False
        return (result.completed or 0) + (result.warning or 0) <= len(self.arrived())

    def was_turned_away(self) -> bool:
        """True if something is missing and our disk has turned data sets away since this was asked last."""
        before, self._turned_away = self._turned_away, self._source.staging.turned_away
        return self._turned_away > before and bool(self.missing()) and not self._too_long()

    def ask_missing(self) -> None:
        """By series where nothing of it is here, else by instance."""
        arrived = {series for series, _ in self.arrived()} | self._wanted.begun
        for series, sops in self.missing().items():
            if series not in arrived:
                self.ask(series)
                continue
            for first in range(0, len(sops), MAX_SOPS):
                self.ask(series, sops[first : first + MAX_SOPS])

    def ask(self, series: str | None = None, sops: tuple[str, ...] = ()) -> None:
        """One C-MOVE and its late stores. Raises SourceError."""
        patient = self._source.patient_of(self.study)
        with self._source.place():
            self._asked = time.monotonic()
            reach("move-asked")
            result = move(
                self._source.peer,
                self._source.title,
                study=self.study.study,
                series=series,
                sops=sops,
                patient=patient,
                should_stop=self._too_long,
            )
        reach("move-answered")
        self.status = result.status
        self._results.append(result)
        if series is None:
            self._whole = result
        self.settle()

    def settle(self) -> None:
        """Wait for late C-STOREs until `settle_s` passes without a byte, or all that is wanted is here."""
        settle_s = self._source.settings.settle_s
        result = self._results[-1] if self._results else None
        if result is not None and result.status == 0 and result.completed is not None and result.completed <= len(self.arrived()):
            return
        while self.missing() and not self._source.stopped.wait(_WAITS):
            if time.monotonic() - max(self._last_sign(), self._asked) >= settle_s or self._too_long():
                return

    def _last_sign(self) -> float:
        return max(self._source.receiver.last_byte_at or 0.0, self._source.arrivals.last_at)

    def _too_long(self) -> str | None:
        now = time.monotonic()
        if self._source.stopped.is_set():
            return "The run is being stopped."
        if now - self._began > self._source.settings.attempt_s:
            return f"The attempt took longer than {self._source.settings.attempt_s:g} s."
        if now - max(self._last_sign(), self._asked) > self._source.settings.stall_s:
            return f"Nothing came from the PACS for {self._source.settings.stall_s:g} s."
        return None

    def said(self) -> str:
        """What the PACS's last answer said, in numbers only."""
        if not self._results:
            return "No answer."
        result = self._results[-1]
        return f"C-MOVE ended with status {result.status:04X}, {result.completed} completed, {result.failed} failed."
