"""How fast it goes and how long it will take: what `status` says of a running run, without looking at every instance."""

from __future__ import annotations

import pytest

from migrate.manifest import Manifest
from migrate.manifest.file import open_reader
from migrate.model import Failed, InstanceState, Noted, StudyRef, Window
from migrate.reports import status, status_text
from migrate.reports.pace import throughput
from migrate.reports.status import duration
from tests.filled import asked, came, items, migrated, planned, proven, read, received, swept


def since_ten_minutes(manifest: Manifest) -> None:
    """Let the run have begun ten minutes ago."""
    manifest.execute("UPDATE run SET started_at = started_at - 600000")


def test_what_was_proven_of_late_gives_the_pace(manifest: Manifest) -> None:
    """Instances of finished studies and of those on their way count, by when they were proven; the rest gives the time left."""
    swept(manifest, "1.1", "1.2", "1.3", "1.4")
    migrated(manifest, "1.1", "1.1.1.1", "1.1.1.2", "1.1.1.3")
    planned(manifest, "1.2", "1.2.1.1", "1.2.1.2", "1.2.1.3")
    manifest.commit([came(received("1.2", "1.2.1.1"))])
    proven(manifest)
    migrated(manifest, "1.4", "1.4.1.1")
    manifest.commit([came(received("1.2", "1.2.1.2"))])
    manifest.execute("UPDATE instance SET verified_at = verified_at - 3600000 WHERE sop_uid = '1.4.1.1'")
    since_ten_minutes(manifest)
    document = read(manifest, status)
    pace = document["throughput"]
    assert pace["window_s"] == pytest.approx(600, abs=60)
    assert pace["instances_per_s"] == pytest.approx(4 / pace["window_s"], abs=0.0001)
    assert pace["bytes_per_s"] == pytest.approx(400 / pace["window_s"], abs=0.06)
    # two instances of 1.2 are left, and 1.3 is not listed yet: as many as the three others have on average
    assert document["eta_s"] == pytest.approx((2 + 7 / 3) / pace["instances_per_s"], rel=0.01)
    assert "MB proven a second" in status_text(document) and "left for what is known" in status_text(document)


def test_a_long_run_is_judged_by_its_last_quarter_of_an_hour(manifest: Manifest) -> None:
    """What was proven earlier does not count; neither does what cannot move any more."""
    swept(manifest, "1.1", "1.2")
    migrated(manifest, "1.1", "1.1.1.1")
    planned(manifest, "1.2", "1.2.1.1", "1.2.1.2")
    manifest.commit([Failed(StudyRef("1.2"), "retrieve", "SourceIncomplete", "", retryable=False)])
    manifest.execute("UPDATE run SET started_at = started_at - 36000000")
    document = read(manifest, status)
    assert document["throughput"]["window_s"] == 900
    assert (document["instances"]["expected"], document["eta_s"]) == (2, None)
    manifest.execute("UPDATE instance SET verified_at = verified_at - 1000000")
    assert read(manifest, status)["throughput"]["instances_per_s"] == 0


def test_the_time_left_is_unknown_while_the_pacs_is_asked_or_nothing_moves(manifest: Manifest) -> None:
    """A sweep that goes on, a run that has ended and a run that has proven nothing yet have no time left to tell."""
    swept(manifest, "1.1", "1.2")
    planned(manifest, "1.2", "1.2.1.1")
    assert read(manifest, status)["eta_s"] is None
    migrated(manifest, "1.1", "1.1.1.1")
    assert read(manifest, status)["eta_s"] > 0
    asked(manifest, 2, Window("20200101", "20201231"))
    assert read(manifest, status)["eta_s"] is None
    manifest.end_run(3)
    document = read(manifest, status)
    assert document["throughput"] == {"instances_per_s": 0.0, "bytes_per_s": 0.0, "window_s": 0.0}
    assert "a second" not in status_text(document)


def test_the_pace_asks_by_index(manifest: Manifest) -> None:
    """No question of it walks all instances, studies or events, and what is read of the log is found by halving."""
    swept(manifest, *(f"1.{number}" for number in range(100, 400)))
    manifest.commit([Noted("some kind", f"{number}") for number in range(300)])
    migrated(manifest, "1.100", "1.100.1.1")
    assert items(manifest, InstanceState.STAGED) == []
    reader = open_reader(manifest.path)
    questions: list[str] = []
    reader.set_trace_callback(questions.append)
    assert throughput(reader)["instances_per_s"] > 0
    reader.set_trace_callback(None)
    plans = [row[3] for question in questions for row in reader.execute(f"EXPLAIN QUERY PLAN {question}")]
    assert [plan for plan in plans if plan.startswith("SCAN") and plan.split()[1] in ("instance", "study", "event") and "INDEX" not in plan] == []
    assert 5 < sum("FROM event WHERE id >= " in question for question in questions) < 20
    reader.close()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (45, "45 s"), (60, "1 min"), (200, "3 min 20 s"), (18_720, "5 h 12 min"), (187_200, "2 d 4 h"), (86_400, "1 d")],
)
def test_durations_are_told_in_two_units(seconds: float, words: str) -> None:
    """Nobody reads seconds of a run of days."""
    assert duration(seconds) == words
