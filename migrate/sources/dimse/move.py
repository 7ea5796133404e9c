"""A PACS that answers C-FIND and sends by C-MOVE to the Storage SCP in this process."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace

from migrate.config import ReceiverSettings, SourceSettings
from migrate.dicom import dimse
from migrate.errors import Interrupted, MoveDestinationUnknown, MoveFailed, SourceError, VanishedAtSource
from migrate.model import Finding, Received, RetrieveEnded, StudyRef, Wanted
from migrate.sources.dimse import check
from migrate.sources.dimse.attempt import Attempt
from migrate.sources.dimse.breaker import Breaker
from migrate.sources.dimse.pacs import DimsePacs
from migrate.staging.area import Staging, local_error

_WAITS = 0.05  # seconds between two looks at what has come
_UNKNOWN_HERE = "For this study the PACS does not know us as a destination (A801), though it sends others."


class DimseMove(DimsePacs):
    """C-FIND and C-MOVE against one PACS, with the receiver that it sends to. Takes what `DimsePacs` takes."""

    def __init__(
        self,
        settings: SourceSettings,
        receiver: ReceiverSettings,
        staging: Staging,
        deliver: Callable[[Received], Future[None] | None],
        associations: int | None = None,
    ) -> None:
        super().__init__(settings, receiver, staging, deliver, associations)
        self._breaker = Breaker(self)

    def retrieve(self, study: StudyRef, wanted: Wanted) -> RetrieveEnded:
        """Ask for the whole study, then for what is still missing by series and by instance, within one attempt.

        What our own disk turned away is asked for again, within the same attempt, as uploads make room. Raises LocalError
        where they do not: a full disk is no failure of the study. Raises also NothingSent and SendingStopped.
        """
        with Attempt(self, study, wanted) as attempt:
            try:
                attempt.ask_all(whole=wanted.whole)
                taken, since = self.arrivals.total, time.monotonic()
                while attempt.was_turned_away():
                    seen = self.staging.turned_away
                    self._await_room()
                    attempt.ask_all(whole=False)
                    if self.arrivals.total > taken:
                        taken, since = self.arrivals.total, time.monotonic()
                    elif self.staging.turned_away > seen and self.staging.trouble and time.monotonic() - since > self.settings.full_s:
                        raise local_error(self.staging.trouble, "receiving images") from self.staging.trouble
                    self.stopped.wait(_WAITS)
            except MoveDestinationUnknown:
                if not self._breaker.sends(study):
                    raise
                return RetrieveEnded(study, dimse.DESTINATION_UNKNOWN, MoveFailed.__name__, _UNKNOWN_HERE, clean=False, whole=False)
            ended = attempt.ended()
            if self.stopped.is_set():
                return replace(ended, error=Interrupted.__name__, detail="")
            if not attempt.missing() or attempt.arrived():
                return ended
            if attempt.status is not None and self._has_vanished(study):
                return replace(ended, error=VanishedAtSource.__name__, detail="The PACS lists no image of it any more.")
        self._breaker.nothing_came(study, attempt.status)
        return ended

    def _has_vanished(self, study: StudyRef) -> bool:
        """Whether the PACS lists no image of it any more. Raises errors of scope run."""
        try:
            return not any(series.sops for series in self.instances(study).series)
        except SourceError as error:
            if error.scope == "run":
                raise
            return False

    def _await_room(self) -> None:
        """Wait while uploads release staged files, until nothing is staged any more."""
        held, since = self.staging.held_bytes, time.monotonic()
        while held > 0 and time.monotonic() - since < self.settings.room_s and not self.stopped.wait(_WAITS):
            if self.staging.held_bytes < held:
                since = time.monotonic()
            held = self.staging.held_bytes

    def check(self) -> list[Finding]:
        """C-ECHO, C-FIND, and a C-MOVE of one instance to ourselves."""
        return check.check(self)
