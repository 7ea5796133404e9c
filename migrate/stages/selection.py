"""Which studies a migration takes; what it leaves out stays on record."""

from __future__ import annotations

from dataclasses import replace

from migrate.config import SourceSettings
from migrate.model import StudyFound, Window
from migrate.stages.census import Select


def selection(settings: SourceSettings, until: tuple[str, str] | None = None) -> Select:
    """What `from`, `to` and `modalities` make of a row. `until` (date, time): what is dated later is left to the next run."""
    lo, hi = settings.date_from or "", settings.date_to or "99999999"
    wanted = frozenset(settings.modalities)

    def select(study: StudyFound, window: Window) -> StudyFound | None:
        excluded = None
        if settings.bounded and study.date is None:
            excluded = "It has no StudyDate, and the migration is limited to a range of dates."
        elif settings.bounded and not lo <= (study.date or "") <= hi:
            if window.axis == "all" or window.share:
                return None
            excluded = "Its StudyDate lies outside the range of dates to migrate."
        elif wanted and study.modalities and wanted.isdisjoint(study.modalities):
            excluded = "None of its modalities is to be migrated."
        later = until is not None and study.date is not None and (study.date, study.time or "") > until
        return replace(study, excluded=excluded, later=later) if excluded or later else study

    return select
