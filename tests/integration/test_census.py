"""Sweeps of a PACS with bad manners end with every study that it can be made to show, or say which question hides some."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from migrate.jobs.migration import Migration
from migrate.model import HabitLearned
from migrate.practice.faults import FAULTS
from migrate.practice.pacs import PracticePacs
from migrate.practice.studies import Archive
from migrate.sources.probe.habits import DimseProbe
from tests import runs
from tests.fault.growing import Growing
from tests.sweeps import Swept, configure, sweep, sweep_with

# Those that come late in the list are about retrieval; answers that are slow or never come cost time, and have tests of their own.
HABITS = [name for name in list(FAULTS)[: list(FAULTS).index("move-unknown")] if name not in ("slow-answers", "hang-find", "endless-find")]
HIDING = {"refuse-wide", "undecodable-row-always", "truncated-row-always"}


def uids(archive: Archive) -> set[str]:
    return {study.uid for study in archive}


def never_falsely_whole(swept: Swept, archive: Archive) -> None:
    """Everything is found, or a question blocks."""
    missing = uids(archive) - swept.found
    assert not missing or swept.blocked, f"{len(missing)} of {len(archive)} studies are missing, and nothing says so"


@pytest.mark.parametrize("habit", HABITS)
def test_every_habit_ends_with_all_studies_or_a_named_question(tmp_path: Path, habit: str) -> None:
    """Where a habit leaves a way to see all studies, they are all found and nothing blocks; else it is said what may hide."""
    archive = Archive(24)
    swept, pacs = sweep_with(tmp_path, archive, [habit])
    never_falsely_whole(swept, archive)
    assert swept.found <= uids(archive) | uids(pacs.holdings)
    if habit not in HIDING:
        assert (swept.found, swept.blocked) == (uids(archive) | (swept.found & uids(pacs.holdings)), False)


@settings(max_examples=12, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.sets(st.sampled_from([name for name in HABITS if name != "busy"]), min_size=3, max_size=3))  # which waits
def test_three_habits_at_once_never_make_a_false_whole(habits: set[str]) -> None:
    """Any three together: all studies, or a question that blocks."""
    archive = Archive(16)
    with tempfile.TemporaryDirectory() as folder:
        swept, _ = sweep_with(Path(folder), archive, sorted(habits))
    never_falsely_whole(swept, archive)


@pytest.mark.parametrize(("cap", "studies"), [(7, 40), (30, 200)])
def test_a_cap_of_any_size_is_found_and_written_down(tmp_path: Path, cap: int, studies: int) -> None:
    """The habit learned is the cap itself."""
    archive = Archive(studies)
    swept, _ = sweep_with(tmp_path, archive, [f"silent-cap={cap}"])
    assert (swept.found, swept.blocked, swept.habits["cap"]) == (uids(archive), False, str(cap))


@pytest.mark.parametrize("studies", [46, 151])
def test_a_cap_that_hides_only_a_study_without_a_date_is_seen(tmp_path: Path, studies: int) -> None:
    """A cap between the number of studies with a date and that of all studies shows in no question by date: another key is asked."""
    archive = Archive(studies)  # the last one has no date
    swept, _ = sweep_with(tmp_path, archive, ["null-dates", f"silent-cap={studies - 1}"])
    assert (swept.found, swept.blocked, swept.habits["cap"]) == (uids(archive), False, str(studies - 1))


def test_a_study_that_comes_amid_the_questions_is_not_taken_for_a_hidden_one(tmp_path: Path) -> None:
    """What only the last questions show was not there before: no cap is learned, and no second key asked."""
    archive = Archive(24)  # number 7 has no date
    with PracticePacs(archive) as pacs:
        pacs.holdings = Growing(archive, lambda study: study.number != 7 or pacs.counts["find STUDY"] > 61)
        swept = sweep(configure(tmp_path, pacs))
        asked = pacs.counts["find STUDY"]
    assert (swept.found, swept.blocked, swept.habits, swept.suspicions) == (uids(archive), False, {}, ())
    assert asked < 150


def test_a_single_day_behind_a_cap_is_cut_by_other_keys(tmp_path: Path) -> None:
    """Where every question of a range shows as much as the cap, that is not taken for the truth: the day is cut by time and more."""
    archive = Archive(100_000)
    day = archive.study(60_000).date
    there = {study.uid for study in archive.between(day, day)}
    assert len(there) > 4
    with PracticePacs(archive, faults=("silent-cap=2",)) as pacs:
        bound = f"{day[:4]}-{day[4:6]}-{day[6:]}"
        swept = sweep(configure(tmp_path, pacs, more=f"from = {bound}\nto = {bound}"))
    assert (swept.found, swept.blocked) == (there, False)


def test_answers_as_large_as_a_whole_one_may_be_capped_all_the_same(tmp_path: Path) -> None:
    """A year with exactly as many studies as the cap is whole, and proves nothing of other years that show as many."""
    archive = Archive(100, seed=4074)
    there = {study.uid for study in archive if study.date >= "20120304"}
    with PracticePacs(archive, faults=("silent-cap=3",)) as pacs:
        swept = sweep(configure(tmp_path, pacs, more="from = 2012-03-04"))
    assert (swept.found, swept.blocked, swept.habits["cap"]) == (there, False, "3")


@pytest.mark.parametrize("faults", [("refuse-open-ranges",), ("ignore-open-ranges",), ("ignore-date",), ("ignore-date", "silent-cap=5")])
def test_a_range_without_an_end_needs_no_signature(tmp_path: Path, faults: tuple[str, ...]) -> None:
    """Where open ranges or all dates are not matched, a closed range or other keys show that nothing hides."""
    archive = Archive(24)
    with PracticePacs(archive, faults=faults) as pacs:
        swept = sweep(configure(tmp_path, pacs, more="from = 2012-03-04"))
    assert (swept.found, swept.blocked) == ({study.uid for study in archive if study.date >= "20120304"}, False)


@pytest.mark.parametrize("number", [12, 5])
def test_of_rows_that_contradict_each_other_one_that_is_selected_is_enough(tmp_path: Path, number: int) -> None:
    """A study whose rows name different modalities is migrated, whichever row comes first."""
    kinds = (("CT", 2), ("SR", 1)) if number == 12 else (("SR", 2), ("CT", 1))  # the last image is shown by a row of its own
    archive = Archive(24, shapes={number: kinds})
    with PracticePacs(archive, faults=(f"two-patients@{number}",)) as pacs:
        swept = sweep(configure(tmp_path, pacs, more='modalities = ["CT"]'))
    assert archive.study(number).uid in swept.found


@pytest.mark.parametrize("cap", ["", "12"])
def test_answers_that_break_off_again_and_again_hide_nothing_and_block_nothing(tmp_path: Path, cap: str) -> None:
    """Whichever questions every third abort strikes, they are asked again after the others; also where the cap is on record, and too high."""
    archive = Archive(25, seed=77)
    with PracticePacs(archive, faults=("silent-cap", "abort-find")) as pacs:
        settings = configure(tmp_path, pacs)
        if cap:
            with Migration(settings, "probe") as migration:
                migration.manifest.commit([HabitLearned("cap", cap)])
        swept = sweep(settings)
    assert (swept.found, swept.blocked, swept.habits["cap"]) == (uids(archive), False, "5")


@pytest.mark.parametrize("bounds", ["", "from = 2010-01-01"])
def test_ranges_that_find_nothing_are_no_proof_of_anything(tmp_path: Path, bounds: str) -> None:
    """Where other questions show more dated studies than all questions by date, dates do not count: a capped answer is not taken for all because no date shows more."""
    archive = Archive(60)
    with PracticePacs(archive, faults=("no-ranges", "silent-cap=17")) as pacs:
        swept = sweep(configure(tmp_path, pacs, more=bounds))
    assert (swept.found, swept.blocked) == ({study.uid for study in archive if not bounds or study.date >= "20100101"}, False)


@pytest.mark.parametrize(("faults", "blocked"), [(("no-ranges",), False), (("no-ranges", "silent-cap=7"), False), (("no-ranges", "refuse-wide=100"), True)])
def test_a_range_that_shows_nothing_at_all_is_compared_with_other_keys(tmp_path: Path, faults: tuple[str, ...], blocked: bool) -> None:
    """What all questions of a limited sweep show as empty need not be: other keys show what is in it, and block where they are refused."""
    archive = Archive(20)
    there = {study.uid for study in archive if "20050101" <= study.date <= "20201231"}
    with PracticePacs(archive, faults=faults) as pacs:
        swept = sweep(configure(tmp_path, pacs, more="from = 2005-01-01\nto = 2020-12-31"))
    assert swept.blocked == blocked and there
    assert swept.found == (set() if blocked else there)


@pytest.mark.parametrize("faults", [(), ("silent-cap=7",)])
def test_a_range_without_any_study_is_shown_to_be_empty(tmp_path: Path, faults: tuple[str, ...]) -> None:
    """A limited sweep that finds nothing, since there is nothing, ends without a question that blocks, and says by which key it was seen."""
    with PracticePacs(Archive(20), faults=faults) as pacs:
        swept = sweep(configure(tmp_path, pacs, more="from = 1980-01-01\nto = 1980-12-31"))
    assert not swept.blocked
    assert any("asked by AccessionNumber instead" in each for each in swept.suspicions)


def test_a_run_within_bounds_knows_its_studies_again_where_ranges_find_nothing(tmp_path: Path) -> None:
    """The closing sweeps look beyond the ranges as the first does: nothing has vanished, and the run is complete."""
    with runs.changing(tmp_path, Archive(12), "no-ranges", source="from = 2005-01-01") as pacs:
        there = sum(study.date >= "20050101" for study in pacs.holdings)
        runs.document(tmp_path, "run")
    report = runs.document(tmp_path, "report")
    assert (report["complete"], report["studies"]["migrated"]) == (True, there)
    assert not [each for each in report["enumeration"]["suspicious"] if "was last shown by" in each["reason"]]


def test_a_range_names_what_it_leaves_out(tmp_path: Path) -> None:
    """With from and to, studies without a date are on record as excluded, and those outside the range are not taken."""
    archive = Archive(24)
    days = sorted(study.date for study in archive if study.date)
    day = days[len(days) // 2]
    with PracticePacs(archive) as pacs:
        swept = sweep(configure(tmp_path, pacs, more=f"from = {day[:4]}-{day[4:6]}-{day[6:]}"))
    assert swept.found == {study.uid for study in archive if study.date and study.date >= day}
    assert not swept.blocked
    excluded = sqlite3.connect(tmp_path / "manifests" / "test.db").execute("SELECT uid, error FROM study WHERE state = 4").fetchall()
    assert excluded == [(study.uid, "OutsideSelection") for study in archive if not study.date]


@pytest.mark.parametrize("bounds", ["", "from = 2005-01-01\nto = 2024-12-31"])
@pytest.mark.parametrize("faults", [("invalid-dates",), ("invalid-dates", "null-dates", "silent-cap=3")])
def test_studies_whose_date_is_none_belong_to_the_open_range(tmp_path: Path, faults: tuple[str, ...], bounds: str) -> None:
    """30 February is as good as no date: without bounds the study is migrated, within bounds it is named, or it is said that not all such may be named."""
    archive = Archive(40)
    with PracticePacs(archive, faults=faults) as pacs:
        swept = sweep(configure(tmp_path, pacs, more=bounds))
        dates = {study.uid: "" if study.date.endswith("0230") else study.date for study in pacs.holdings}
    there = {uid for uid, date in dates.items() if not bounds or "20050101" <= date <= "20241231"}
    assert (swept.found, swept.blocked) == (there, False)
    left_out = sqlite3.connect(tmp_path / "manifests" / "test.db").execute("SELECT uid FROM study WHERE state = 4 AND date IS NULL")
    unnamed = {uid for uid, date in dates.items() if bounds and not date} - {uid for (uid,) in left_out}
    assert bool(unnamed) == any("may be named" in said for said in swept.suspicions) == (bool(bounds) and len(faults) > 1)


def test_a_capped_pacs_of_which_some_modalities_are_wanted(tmp_path: Path) -> None:
    """What is left out counts when answers are compared: those that are wanted are all found."""
    archive = Archive(60)
    with PracticePacs(archive, faults=("silent-cap=4", "null-dates")) as pacs:
        swept = sweep(configure(tmp_path, pacs, more='modalities = ["MG", "US"]'))
    wanted = {study.uid for study in archive if not study.modalities or {"MG", "US"} & set(study.modalities)}
    assert (swept.found, swept.blocked) == (wanted, False)


def test_claims_and_contradictions_are_kept(tmp_path: Path) -> None:
    """Repeated rows are one study; where they contradict each other, the log says so."""
    archive = Archive(24)
    sweep_with(tmp_path, archive, ["repeat-rows"])
    database = sqlite3.connect(tmp_path / "manifests" / "test.db")
    assert database.execute("SELECT count(*) FROM study").fetchone()[0] == len(archive)
    assert database.execute("SELECT count(*) FROM event WHERE kind = 'attributes differ'").fetchone()[0] > 0


def test_kills_at_any_point_of_a_sweep_change_nothing_in_its_result(tmp_path: Path) -> None:
    """A sweep that is killed again and again goes on where it was, asks no finished window twice, and finds the same."""
    archive = Archive(60)
    with PracticePacs(archive, faults=("silent-cap=9",)) as pacs:
        settings = configure(tmp_path, pacs)
        command = [sys.executable, "-m", "migrate", "enumerate", "--config", str(settings.path)]
        for goal in (5, 50, 90, 150, sys.maxsize):
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            while process.poll() is None and pacs.counts["find STUDY"] < goal:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.005)
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
            said = process.communicate()[1]
            if process.returncode != -signal.SIGKILL:  # the last one, or one that was quicker than the eye
                break
        assert process.returncode == 0, said
        asked = pacs.counts["find STUDY"]
    database = sqlite3.connect(tmp_path / "manifests" / "test.db")
    assert {uid for (uid,) in database.execute("SELECT uid FROM study")} == uids(archive)
    assert database.execute("SELECT max(sweep) FROM window").fetchone() == (1,)
    under_way = 4 * 20  # at four kills, of up to twenty questions that are asked one after the other
    assert asked <= database.execute("SELECT count(*) FROM window").fetchone()[0] + under_way
    assert database.execute("SELECT value FROM habit WHERE name = 'cap'").fetchone() == ("9",)


@pytest.mark.parametrize(("every", "blocked"), [(3, False), (1, True)])
def test_a_question_that_hangs_is_asked_again_or_named(tmp_path: Path, every: int, blocked: bool) -> None:
    """Silence ends with `stall_s`: some questions answered late are whole all the same, a PACS that answers none is named."""
    archive = Archive(12)
    with PracticePacs(archive, faults=(f"hang-find={every}",)) as pacs:
        swept = sweep(configure(tmp_path, pacs, more="from = 2020-01-01\nto = 2020-01-01" if blocked else "", stall_s=0.4))
    never_falsely_whole(swept, archive)
    assert swept.blocked is blocked
    assert swept.found == (set() if blocked else uids(archive))


def test_an_answer_that_repeats_a_row_without_end_is_broken_off(tmp_path: Path) -> None:
    """Bytes that keep coming are no silence: what says the same again and again is no whole answer, and is asked for again."""
    archive = Archive(12)
    swept, _ = sweep_with(tmp_path, archive, ["endless-find=3"])
    assert not swept.blocked
    assert swept.found == uids(archive)


@pytest.mark.parametrize("faults", [("ignore-date",), ("ignore-modality", "silent-cap=7"), ("refuse-open-ranges",)])
def test_what_a_probe_has_found_spares_questions(tmp_path: Path, faults: tuple[str, ...]) -> None:
    """Probed or not, a sweep finds the same; probed, it asks less."""
    archive = Archive(40)
    asked: list[int] = []
    results: list[tuple[frozenset[str], bool]] = []
    for folder in (tmp_path / "unprobed", tmp_path / "probed"):
        folder.mkdir()
        with PracticePacs(archive, faults=faults) as pacs:
            settings = configure(folder, pacs)
            if folder.name == "probed":
                habits = DimseProbe(settings.source, settings.receiver).run(None)
                with Migration(settings, "probe") as migration:
                    migration.manifest.commit([habit for habit in habits if habit.value not in ("unknown", "none")])
            before = pacs.counts["find STUDY"]
            swept = sweep(settings)
            asked.append(pacs.counts["find STUDY"] - before)
            results.append((swept.found, swept.blocked))
    assert results[0] == results[1] == (uids(archive), False)
    assert asked[1] < asked[0]


WRONG = {"open_range": "no", "undated": "ModalitiesInStudy", "splits_by": "modality", "ignores_patient_id": "yes", "ignores_time": "yes",
         "insists_on_patient_id": "yes", "ignores_date": "yes", "cap": "3", "day_range": "no"}  # fmt: skip


@pytest.mark.parametrize("faults", [("null-dates", "silent-cap=9"), ("hidden-undated", "null-dates", "ignore-modality")])
def test_habits_that_are_wrong_weaken_no_proof(tmp_path: Path, faults: tuple[str, ...]) -> None:
    """With every habit on record that the PACS does not have, a sweep still finds everything or says what may hide."""
    archive = Archive(24)
    with PracticePacs(archive, faults=faults) as pacs:
        settings = configure(tmp_path, pacs)
        with Migration(settings, "probe") as migration:
            migration.manifest.commit([HabitLearned(name, value) for name, value in WRONG.items()])
        swept = sweep(settings)
    assert (swept.found, swept.blocked) == (uids(archive), False)


def test_the_key_that_has_shown_everything_is_tried_first(tmp_path: Path) -> None:
    """What a sweep learns of keys spares the next one questions, and changes nothing in what it finds."""
    archive = Archive(24)
    asked = []
    with PracticePacs(archive, faults=("silent-cap=9", "ignore-patient-id")) as pacs:
        settings = configure(tmp_path, pacs)
        for _ in range(2):
            before = pacs.counts["find STUDY"]
            swept = sweep(settings)
            asked.append(pacs.counts["find STUDY"] - before)
            assert (swept.found, swept.blocked) == (uids(archive), False)
    assert swept.habits["splits_by"] == "accession"
    assert asked[1] < asked[0]
