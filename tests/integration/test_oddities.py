"""What the report calls odd: windows, and studies that are shown in one way only, that vanished, changed or are claimed wrongly."""

from __future__ import annotations

import re
from pathlib import Path

from migrate.manifest import Manifest
from migrate.manifest.decisions import accept
from migrate.model import (
    HabitLearned,
    RetrieveEnded,
    SeriesPlan,
    StudyConfirmed,
    StudyFound,
    StudyPlanned,
    StudyRef,
    Window,
    WindowFailed,
    WindowJudged,
)
from tests.filled import answered, asked, came, in_browser, migrated, planned, proven, read, received, swept, written

YEAR = Window("20200101", "20201231")
NO_KEY = Window(None, None, "all")


def odd(manifest: Manifest) -> list[str]:
    """The reasons; entries about studies name no window and block nothing."""
    entries = read(manifest)["enumeration"]["suspicious"]
    for entry in entries:
        if entry["window"] is None:
            assert entry == {"window": None, "reason": entry["reason"], "blocks": False, "accepted_by": None}
    return [entry["reason"] for entry in entries]


def test_a_study_that_no_question_by_date_shows_is_named(manifest: Manifest) -> None:
    """It is named with the ways in which it is shown; what lies outside of the selection is not."""
    year, no_key, patient = asked(manifest, 1, YEAR, NO_KEY, Window(None, None, "patient", patient="1"))
    answered(manifest, year, ("1.1", "20200505"))
    answered(manifest, no_key, ("1.1", "20200505"), ("1.2", "20200505"), ("1.3", "20200505"))
    manifest.commit([StudyFound(StudyRef("1.9"), "20200506", ("CT",), 1, no_key, excluded="None of its modalities is to be migrated.")])
    answered(manifest, patient, ("1.1", "20200505"), ("1.3", "20200505"), ("1.4", "20200505"))
    assert odd(manifest) == [
        "study 1.2 is shown by no question by date, only without a key",
        "study 1.3 is shown by no question by date, only without a key and by PatientID",
        "study 1.4 is shown by no question by date, only by PatientID",
    ]


def test_a_study_without_a_date_is_odd_only_if_no_key_does_not_show_it(manifest: Manifest) -> None:
    """Without a date a study is expected to be shown without a key; one that only another key shows is named."""
    year, no_key, patient = asked(manifest, 1, YEAR, NO_KEY, Window(None, None, "patient", patient="1"))
    answered(manifest, year)
    answered(manifest, no_key, ("1.1", None))
    answered(manifest, patient, ("1.2", None))
    assert odd(manifest) == ["study 1.2 has no StudyDate, and is shown only by PatientID"]


def test_a_study_without_a_date_is_named_where_a_range_is_migrated(manifest: Manifest) -> None:
    """No range can show it, so that it is left out, and named."""
    (year,) = asked(manifest, 1, YEAR)
    (look,) = asked(manifest, 1, NO_KEY, purpose="look")
    answered(manifest, year)
    said = "It has no StudyDate, and the migration is limited to a range of dates."
    manifest.commit([StudyFound(StudyRef("1.1"), None, ("CT",), 1, look, excluded=said)])
    answered(manifest, look)
    assert odd(manifest) == [f"study 1.1: {said}"]


def test_where_no_date_is_answered_no_study_is_blamed(manifest: Manifest) -> None:
    """A PACS that refuses every date is odd once, not once for each study."""
    year, no_key = asked(manifest, 1, YEAR, NO_KEY)
    manifest.commit([WindowFailed(year, "QueryRefused", "0xA700", retryable=False)])
    answered(manifest, no_key, ("1.1", "20200505"), ("1.2", "20200505"))
    assert odd(manifest) == ["No whole answer: 0xA700"]


def test_a_study_that_the_newest_finished_sweep_does_not_show_has_vanished(manifest: Manifest) -> None:
    """It is named with when it was last shown; what is left out, came from a list or was not asked for is not."""
    year, no_key, listed = asked(manifest, 1, YEAR, NO_KEY, Window(None, None, "list"))
    answered(manifest, year, ("1.1", "20200505"), ("1.2", "20200505"), ("1.3", "20201231"))
    manifest.commit([StudyFound(StudyRef("1.9"), "20200506", ("CT",), 1, year, excluded="None of its modalities is to be migrated.")])
    answered(manifest, no_key)
    answered(manifest, listed, ("1.8", "20200505"))
    first, last = asked(manifest, 2, Window("20200101", "20200630"), Window("20200701", "20201130"))
    answered(manifest, first, ("1.1", "20200505"))
    assert [reason for reason in odd(manifest) if "last shown" in reason] == []  # the sweep is not finished
    answered(manifest, last)
    (gone,) = (reason for reason in odd(manifest) if "last shown" in reason)
    assert re.fullmatch(r"study 1\.2 was last shown by sweep 1, at the latest on \d{4}-\d\d-\d\d \d\d:\d\d UTC, and by no question of sweep 2", gone)


def test_what_could_not_be_asked_has_not_vanished(manifest: Manifest) -> None:
    """A window without an answer says nothing about its studies; it is odd itself."""
    swept(manifest, "1.1")
    (window,) = asked(manifest, 2, YEAR)
    manifest.commit([WindowFailed(window, "QueryFailed", "0xC001", retryable=False)])
    assert odd(manifest) == ["No whole answer: 0xC001"]


def test_studies_that_changed_are_named_once_each(manifest: Manifest) -> None:
    """Of each kind of change the last word of the log counts: grown and shrunk between two looks, or other values in one sweep."""
    window = swept(manifest, "1.1", "1.2")
    manifest.asks_again = True
    for study in ("1.1", "1.2"):
        migrated(manifest, study, f"{study}.1.1", f"{study}.1.2")

    def look(*sops: str) -> None:
        manifest.commit([StudyConfirmed(StudyPlanned(StudyRef("1.1"), (SeriesPlan("1.1.1", "CT", sops),)))])

    for number in (3, 4):
        look(*(f"1.1.1.{one}" for one in range(1, number + 1)))
        manifest.commit([came(received("1.1", f"1.1.1.{number}")), RetrieveEnded(StudyRef("1.1"), 0)])
        proven(manifest)
    look("1.1.1.1")
    manifest.commit([StudyConfirmed(StudyPlanned(StudyRef("1.2"), ()))])
    manifest.commit([StudyFound(StudyRef("1.2"), "20200506", ("CT",), None, window)])
    manifest.commit([StudyFound(StudyRef("1.2"), "20200507", ("CT",), None, window)])
    found = odd(manifest)
    assert [reason for reason in found if reason.startswith("study 1.1:")] == [
        "study 1.1: grew: 3 instances were listed before, 4 now",
        "study 1.1: shrank: 4 instances were listed before, 1 now; all of them are proven",
    ]
    assert [reason for reason in found if reason.startswith("study 1.2:")] == [
        "study 1.2: vanished: no image is listed any more",
        "study 1.2: attributes differ: StudyDate 20200505 in one row, 20200507 in another",
    ]


def test_parts_and_comparisons_do_not_clutter_the_list(manifest: Manifest) -> None:
    """A split window and parts by other keys are judged with what they belong to, comparisons only if nothing else says it."""
    year, other = asked(manifest, 1, YEAR, Window("20210101", "20211231"))
    answered(manifest, other)
    manifest.commit([WindowFailed(year, "QueryRefused", "0xA700", retryable=False)])
    first, second = asked(manifest, 1, Window("20200101", "20200630"), Window("20200701", "20201231"), parent=year, by="date", replaces=True)
    answered(manifest, first)
    answered(manifest, second)
    (part,) = asked(manifest, 1, Window("20200701", "20201231", modality="CT"), parent=second, by="modality")
    (again,) = asked(manifest, 1, Window("20210101", "20211231"), parent=other, purpose="again")
    for window in (part, again):
        answered(manifest, window)
        manifest.commit([WindowJudged(window, "odd")])
    assert odd(manifest) == []
    (check,) = asked(manifest, 1, Window("20210101", "20210630"), parent=other, by="date", purpose="check")
    manifest.commit([StudyFound(StudyRef("1.1"), "20200505", ("CT",), None, check, outside=True)])
    answered(manifest, check)
    assert len(odd(manifest)) == 1 and "1 study that does not fit" in odd(manifest)[0]
    manifest.commit([WindowJudged(other, "The PACS ignores the date.", blocks=True)])
    assert odd(manifest) == ["The PACS ignores the date."]


def test_acceptances_and_habits_are_told(manifest: Manifest, tmp_path: Path) -> None:
    """Who accepted a window and why, and what was learned of the PACS, stand in the document; the page has what follows of a habit."""
    window = swept(manifest)
    manifest.commit([WindowJudged(window, "capped", blocks=True), HabitLearned("cap", "500", "The PACS caps its answers."),
                     HabitLearned("counters", "right", "Nothing odd.")])  # fmt: skip
    accept(manifest, [f"w{window}"], "the vendor says so", "J. Doe")
    document = read(manifest)
    (entry,) = document["enumeration"]["suspicious"]
    assert (entry["accepted_by"], entry["accepted_reason"]) == ("J. Doe", "the vendor says so")
    assert document["coverage"]["habits"] == [
        {"name": "cap", "value": "500", "detail": "The PACS caps its answers."}, {"name": "counters", "value": "right", "detail": "Nothing odd."}
    ]  # fmt: skip
    page = in_browser(written(manifest, tmp_path / "out"), tmp_path / "profile")
    assert "by J. Doe: the vendor says so" in page
    assert "The PACS caps its answers." in page and "cut into parts until each has fewer" in page and "Nothing odd." not in page


def test_the_page_shows_the_first_two_hundred(manifest: Manifest, tmp_path: Path) -> None:
    """All are in report.json; the page says how many more there are."""
    (window,) = asked(manifest, 1, YEAR)
    manifest.commit([StudyFound(StudyRef(f"1.{number}"), "20200505", ("CT",), 5, window) for number in range(1000, 1203)])
    answered(manifest, window)
    for number in range(1000, 1203):
        planned(manifest, f"1.{number}", f"1.{number}.1")
    assert len(odd(manifest)) == 203
    page = written(manifest, tmp_path / "out").read_text()
    assert page.count("5 instances claimed, 1 listed") == 200 and "And 3 more, all of them in" in page
