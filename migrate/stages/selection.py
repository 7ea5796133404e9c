"""Which studies a migration takes; what it leaves out stays on record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from migrate.config import SourceSettings
from migrate.model import StudyFound, Window

Selection = Callable[[StudyFound, Window, bool], StudyFound | None]
"""What becomes of a row that this question showed, which may only look around: the same, excluded with a reason, or None."""


def selection(settings: SourceSettings, until: tuple[str, str] | None = None) -> Selection:
    """What `from`, `to` and `modalities` make of a row. `until` (date, time): what is dated later is left to the next run.

    A question that only `looks` shows the whole archive: what lies outside the range of dates is not recorded for it.
    """
    lo, hi = settings.date_from or "", settings.date_to or "99999999"
    wanted = frozenset(settings.modalities)

    def select(study: StudyFound, window: Window, looks: bool) -> StudyFound | None:
        excluded = None
        if settings.bounded and study.date is None:
            excluded = "It has no StudyDate, and the migration is limited to a range of dates."
        elif settings.bounded and not lo <= (study.date or "") <= hi:
            if looks or window.share:
                return None
            excluded = "Its StudyDate lies outside the range of dates to migrate."
        elif wanted and study.modalities and wanted.isdisjoint(study.modalities):
            excluded = "None of its modalities is to be migrated."
        later = until is not None and study.date is not None and (study.date, study.time or "") > until
        return replace(study, excluded=excluded, later=later) if excluded or later else study

    return select
