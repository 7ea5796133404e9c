"""Tells a PACS that sends nothing any more from studies that it does not send.

One study of which nothing comes is that study's failure. Many in a row may be the PACS's: before the next one is blamed, an
image that is known to come is asked for. If that comes, the studies are to blame; if not, the run is told, and no study
is parked for it.
"""

from __future__ import annotations

import itertools
import threading

from migrate.dicom import dimse
from migrate.errors import NothingSent, SendingStopped, SourceError, SourceStalled
from migrate.model import InstanceRef, StudyRef, Wanted
from migrate.sources.dimse import check
from migrate.sources.dimse.attempt import Attempt
from migrate.sources.dimse.pacs import DimsePacs

_IN_A_ROW = 3  # different studies
_SAMPLES = 5
_BUSY = 0xA7


class Breaker:
    """Counts studies in a row of which nothing came; thread-safe."""

    def __init__(self, source: DimsePacs) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._studies: set[str] = set()
        self._total = 0  # arrivals, when the first of them failed

    def nothing_came(self, study: StudyRef, status: int | None) -> None:
        """A study of which nothing came, though the PACS answered; `status` ended its C-MOVE. Raises NothingSent, SendingStopped and what asking once more raises."""
        with self._lock:
            if self._source.arrivals.total != self._total:
                self._studies, self._total = set(), self._source.arrivals.total
            self._studies.add(study.study)
            if len(self._studies) < _IN_A_ROW:
                return
            if self.sends(study):
                self._studies = set()
                return
            count = len(self._studies)
            if not self._total and status is not None and status >> 8 != _BUSY:  # waiting would not mend it
                raise NothingSent(f"The PACS has not sent a single image, of {count} studies: C-MOVE ends with {dimse.describe(dimse.C_MOVE, status)}.")
            raise SendingStopped(f"The PACS has sent nothing of the last {count} studies, nor an image that it should be able to send.")

    def sends(self, other_than: StudyRef) -> bool:
        """Whether any of a few images comes that came before or, where none did, that other studies have. Raises errors of scope run."""
        arrivals = self._source.arrivals
        with arrivals.lock:
            before, known = arrivals.total, [ref for ref in arrivals.recent.values() if ref.study != other_than.study]
        for ref in known or self._samples(other_than):
            try:
                # Not entered: another worker may be at this study, and keeps account of what comes of it.
                study, patient = StudyRef(ref.study), self._source.one_patient_of(StudyRef(ref.study))
                Attempt(self._source, study, Wanted(False, {ref.series: (ref.sop,)})).ask(patient, ref.series, (ref.sop,))
            except SourceStalled:
                return False  # silence costs `stall_s` each time
            except SourceError as error:
                if error.scope == "run":
                    raise
            if arrivals.total > before:
                return True
        return False

    def _samples(self, other_than: StudyRef) -> list[InstanceRef]:
        plans = itertools.islice(check.samples(self._source, {*self._studies, other_than.study}), _SAMPLES)
        return [next(InstanceRef(plan.study.study, series.series, series.sops[0]) for series in plan.series if series.sops) for plan in plans]
