"""One attempt at a study: its C-MOVEs, their time limits, and what came meanwhile.

What the PACS says of a C-MOVE decides nothing; what has come does. Its answer only tells what to ask next: nothing more
from a PACS that is out of resources, the rest in halves where a C-MOVE broke, so that one image that breaks every
association is alone in the end.
"""

from __future__ import annotations

import time
from collections import deque

from migrate.dicom import dimse
from migrate.dicom.dimse import Kind
from migrate.dicom.move import MAX_SOPS, MoveResult, move
from migrate.errors import MoveFailed, MoveRefused, SourceBusy, SourceError, SourceStalled
from migrate.failpoints import reach
from migrate.model import RetrieveEnded, StudyRef, Wanted
from migrate.sources.dimse.pacs import DimsePacs

_WAITS = 0.05  # seconds between two looks at what has come
_FRUITLESS = 20  # C-MOVEs in a row that broke or failed and brought nothing: halving 900 images down to one takes 11
_STALLS = 3  # the same of those that stalled; one, where nothing has come of the study yet
_AFTER_ALL = 6  # settle_s of silence once all that is wanted is here: no final answer comes any more


class Attempt:
    """One attempt at a study. Use as a context manager; `ask_all` asks, `ended` tells what came of it."""

    def __init__(self, source: DimsePacs, study: StudyRef, wanted: Wanted) -> None:
        self._source, self.study, self._wanted = source, study, wanted
        self._began = self._asked = self._heard = time.monotonic()
        self._turned_away = source.staging.turned_away
        self._results: list[MoveResult] = []
        self._wholes: list[MoveResult | None] = []  # of the study from each patient who has it; None where it broke
        self._trouble: SourceError | None = None  # how the last C-MOVE that left something out ended, if not with Success
        self._fruitless = self._stalls = self._count_before = 0
        self._full = False  # our disk turned away all that the last C-MOVE brought
        self._alone = False  # what is asked for is the only image that is still missing
        self._move_id = 0

    def __enter__(self) -> Attempt:
        self._source.arrivals.begin(self.study.study)
        return self

    def __exit__(self, *_: object) -> None:
        self._source.arrivals.end(self.study.study)

    # -- what came
    def arrived(self) -> set[tuple[str, str]]:
        with self._source.arrivals.lock:
            return set(self._source.arrivals.by_study.get(self.study.study, ()))

    def missing(self) -> dict[str, tuple[str, ...]]:
        """What of the wanted has not come in this attempt."""
        arrived = self.arrived()
        left = {series: tuple(sop for sop in sops if (series, sop) not in arrived) for series, sops in self._wanted.series.items()}
        return {series: sops for series, sops in left.items() if sops}

    def _clean(self) -> bool:
        """Whether the study was asked for as a whole, from everybody who has it, and no answer of the PACS tells of a failure."""
        return bool(self._wholes) and all(
            result is not None and not result.failed
            and (result.status == dimse.SUCCESS or (result.status == dimse.SUBOPERATIONS_FAILED and result.failed == 0))
            for result in self._wholes
        )  # fmt: skip

    def _whole_came(self) -> bool:
        """The same, and no less came than it counts."""
        counted = sum((result.completed or 0) + (result.warning or 0) for result in self._wholes if result is not None)
        return self._clean() and counted <= len(self.arrived())

    def ended(self) -> RetrieveEnded:
        """What the manifest is told."""
        return RetrieveEnded(self.study, self.status, *self._said(), self._clean(), self._whole_came())

    def was_turned_away(self) -> bool:
        """True if something is missing and our disk has turned data sets away since this was asked last."""
        before, self._turned_away = self._turned_away, self._source.staging.turned_away
        return self._turned_away > before and bool(self.missing()) and not self._too_long()

    @property
    def status(self) -> int | None:
        """The last C-MOVE status."""
        return self._results[-1].status if self._results else None

    def _said(self) -> tuple[str | None, str]:
        """(error, detail): how the C-MOVE ended that left something out, in numbers only; no error where it was with Success or B000."""
        if self._trouble is not None:
            return self._trouble.name, str(self._trouble)
        if not self._results:
            return None, "No answer."
        result = self._results[-1]
        return None, f"C-MOVE ended with {dimse.describe(dimse.C_MOVE, result.status)}: {result.completed} completed, {result.failed} failed."

    # -- asking
    def ask_all(self, *, whole: bool) -> None:
        """Ask for the study, then for what has not come of it. Raises errors of scope run; the others are `ended`'s."""
        self._trouble, self._fruitless, self._stalls, self._full = None, 0, 0, False
        if whole:
            self._wholes = []
            self._piece(None, ())
        arrived = {series for series, _ in self.arrived()} | self._wanted.begun
        pieces: deque[tuple[str, tuple[str, ...]]] = deque()  # series, and instances of it where it is not the whole series
        for series, sops in self.missing().items():
            pieces += _cut(series, sops, MAX_SOPS) if series in arrived else [(series, ())]
        while pieces and not self._is_over():
            series, sops = pieces.popleft()
            if not self._left(series, sops):
                continue
            self._piece(series, sops)
            left = self._left(series, sops)
            if left and len(sops) != 1 and self._is_worth_halving():
                # Behind the pieces of which nothing bad is known, and the first half last: what breaks comes first of what is left.
                pieces += reversed(_cut(series, left, min((len(left) + 1) // 2, MAX_SOPS)))

    def _left(self, series: str, sops: tuple[str, ...]) -> tuple[str, ...]:
        """What is missing of these instances of a series; of no instances: of the series."""
        missing, asked = self.missing().get(series, ()), set(sops)
        return tuple(sop for sop in missing if sop in asked) if sops else missing

    def _is_worth_halving(self) -> bool:
        """True where the last C-MOVE broke, or failed of more than one image; an honest "that one failed" needs no second asking."""
        result = self._results[-1] if self._results else None
        return self._trouble is not None or (result is not None and result.status == dimse.SUBOPERATIONS_FAILED and result.failed != 1)

    def _is_over(self) -> bool:
        """True where more asking would be in vain: too much was, the PACS is out of resources, our disk takes no more, or time is up."""
        if self._full or (self._trouble is not None and _is_refused(self._results)):
            return True
        stalls = 1 if self._wanted.whole and not self.arrived() else _STALLS
        return self._stalls >= stalls or self._fruitless >= _FRUITLESS or bool(self._no_time())

    def _piece(self, series: str | None, sops: tuple[str, ...]) -> None:
        """A C-MOVE of it from each patient who has the study, mostly one, and what they came to. Raises errors of scope run."""
        troubles: list[SourceError] = []
        left = list(self._source.patients_of(self.study))
        while left:
            self._piece_of(left.pop(0), series, sops)
            troubles += [self._trouble] if self._trouble is not None else []
            if self._is_over() or (series is not None and not self._left(series, sops)):
                break
        if left and series is None:
            self._wholes.append(None)  # not everybody was asked
        self._trouble = troubles[0] if troubles else None

    def _piece_of(self, patient: str | None, series: str | None, sops: tuple[str, ...]) -> None:
        self._alone = sum(map(len, self.missing().values())) == 1
        before, turned_away = len(self.arrived()), self._source.staging.turned_away
        try:
            self.ask(patient, series, sops)
            self._trouble = _trouble(self._results[-1], self.study)
        except SourceError as error:
            if error.scope == "run":
                raise
            self._trouble = error
            if series is None:
                self._wholes.append(None)
            if isinstance(error, SourceStalled):
                self._stalls += 1
            else:
                self._settle(None)
            self._source.receiver.drop(self._move_id)
        if len(self.arrived()) > before:
            self._fruitless = self._stalls = 0
        elif self._source.staging.turned_away > turned_away:
            self._full = True
        elif self._is_worth_halving():
            self._fruitless += 1

    def ask(self, patient: str | None, series: str | None = None, sops: tuple[str, ...] = ()) -> None:
        """One C-MOVE and its late stores. Raises SourceError."""
        source = self._source
        with source.places.one():
            self._asked = self._heard = time.monotonic()
            self._count_before = self._count()
            self._move_id = source.next_move_id()
            reach("move-asked")
            result = move(
                source.peer, source.title, study=self.study.study, series=series, sops=sops, patient=patient,
                message_id=self._move_id, should_stop=self._too_long, heard=self._note,
            )  # fmt: skip
        reach("move-answered")
        self._results.append(result)
        if series is None:
            self._wholes.append(result)
        self._settle(result)

    def _note(self) -> None:
        self._heard = time.monotonic()

    def _count(self) -> int:
        with self._source.arrivals.lock:
            return self._source.arrivals.counts.get(self.study.study, 0)

    def _settle(self, result: MoveResult | None) -> None:
        """Wait for late C-STOREs until `settle_s` passes without a byte, or all that is wanted is here.

        None are late where so many have come as the PACS says that it has sent, or where it refused.
        """
        if result is not None:
            came = self._count() - self._count_before
            if _trouble(result, self.study) and not result.completed and not came:
                return
            if result.completed is not None and (0 < result.completed <= came or (result.failed and not result.completed)):
                return
        whole = result is not None and any(result is each for each in self._wholes)
        claimed = self._wanted.claimed if whole else 0  # the list may be cut short
        while (self.missing() or len(self.arrived()) < claimed) and not self._source.stopped.wait(_WAITS):
            if time.monotonic() - self._last_sign() >= self._source.settings.settle_s or self._no_time():
                return

    # -- time
    def _last_sign(self) -> float:
        """When a byte came last that may serve this study."""
        with self._source.arrivals.lock:
            arrived_at = self._source.arrivals.last_at.get(self.study.study, 0.0)
        return max(arrived_at, self._asked, self._heard, self._source.receiver.last_byte_at(self._move_id))

    def _no_time(self) -> str | None:
        if self._source.stopped.is_set():
            return "The run is being stopped."
        if time.monotonic() - self._began > self._source.settings.attempt_s:
            return f"The attempt took longer than {self._source.settings.attempt_s:g} s."
        return None

    def _too_long(self) -> str | None:
        """Why the C-MOVE under way is waited for no longer."""
        if reason := self._no_time():
            return reason
        now, settings = time.monotonic(), self._source.settings
        silent_s = now - self._last_sign()
        if silent_s > settings.stall_s:
            return f"Nothing came from the PACS for {settings.stall_s:g} s."
        wanted = bool(self._wanted.series)
        if wanted and silent_s > _AFTER_ALL * settings.settle_s and not self.missing():
            return "All images that are listed have come, but no final answer."
        with self._source.arrivals.lock:
            since = max(self._source.arrivals.last_at.get(self.study.study, 0.0), self._asked)
        left_s = self._began + settings.attempt_s - since
        if not self._alone and now - since > left_s / 2:  # the other half is for the images behind the one that does not end
            return f"Bytes came from the PACS, but no whole image for {now - since:.0f} s."
        return None


def _cut(series: str, sops: tuple[str, ...], size: int) -> list[tuple[str, tuple[str, ...]]]:
    return [(series, sops[first : first + size]) for first in range(0, len(sops), size)]


def _trouble(result: MoveResult, study: StudyRef) -> MoveFailed | None:
    """The error that a final answer stands for; None for Success and for B000, which says that some did not go."""
    if dimse.classify(result.status) in (Kind.SUCCESS, Kind.WARNING):
        return None
    said = dimse.describe(dimse.C_MOVE, result.status)
    kind = SourceBusy if dimse.classify(result.status) is Kind.REFUSED else MoveRefused
    return kind(f"C-MOVE of study {study.study} ended with {said}, {result.completed} completed, {result.failed} failed.")


def _is_refused(results: list[MoveResult]) -> bool:
    """True where the PACS said last that it is out of resources (A7xx): asking for more would not help it."""
    return bool(results) and dimse.classify(results[-1].status) is Kind.REFUSED
