"""Which studies are migrated: what `from`, `to`, `modalities` and the sweep's own end make of a row."""

from __future__ import annotations

import pytest

from migrate.config import SourceSettings
from migrate.model import StudyFound, StudyRef, Window, shares
from migrate.stages.selection import selection

YEARS = Window("20200101", "20201231")
EVERYTHING = Window(None, None, "all")


def source(first: str | None = None, last: str | None = None, *modalities: str) -> SourceSettings:
    return SourceSettings("127.0.0.1", 104, "PACS", first, last, modalities=modalities)


def row(date: str | None, *modalities: str, time: str | None = None) -> StudyFound:
    return StudyFound(StudyRef("1.2"), date, modalities, None, time=time)


@pytest.mark.parametrize(
    ("settings", "shown", "why"),
    [
        (source(), row(None), ""),
        (source("20200101"), row(None), "no StudyDate"),
        (source(None, "20201231"), row(None), "no StudyDate"),
        (source("20200101", "20201231"), row("20200101"), ""),
        (source("20200101", "20201231"), row("20201231"), ""),
        (source("20200101", "20201231"), row("20191231"), "outside the range"),
        (source("20200101", "20201231"), row("20210101"), "outside the range"),
        (source(None, None, "CT", "MR"), row("20200101", "SR", "MR"), ""),
        (source(None, None, "CT", "MR"), row("20200101", "US"), "None of its modalities"),
        (source(None, None, "CT"), row("20200101"), ""),
    ],
)
def test_what_is_left_out_says_why(settings: SourceSettings, shown: StudyFound, why: str) -> None:
    """A study without a date is in no range; one of which the PACS does not tell the modalities is migrated."""
    taken = selection(settings)(shown, YEARS, False)
    assert taken is not None
    assert why in (taken.excluded or "") and bool(taken.excluded) == bool(why)


def test_a_question_that_only_looks_puts_nothing_of_other_years_on_record() -> None:
    """Where only a range is migrated, the rest of the archive is shown by questions that look around, or by patient, and is no study of this migration."""
    assert selection(source("20200101"))(row("20190101"), EVERYTHING, True) is None
    assert selection(source("20200101"))(row("20190101"), shares(4)[0], False) is None


@pytest.mark.parametrize(("date", "time", "later"), [("20200101", "120000", False), ("20200101", "120001", True), ("20200102", None, True), ("20200101", None, False), (None, None, False)])
def test_what_is_dated_after_the_start_is_the_next_runs(date: str | None, time: str | None, later: bool) -> None:
    """To the second; what tells no time, or no date, is of this run."""
    taken = selection(source(), until=("20200101", "120000"))(row(date, time=time), EVERYTHING, True)
    assert taken is not None and taken.later is later
