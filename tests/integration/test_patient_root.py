"""A PACS that knows only Patient Root and insists on a PatientID is migrated whole, or says what may hide."""

from __future__ import annotations

import json
import signal
import sqlite3
from pathlib import Path

import pytest

from migrate.practice.studies import Archive
from tests.runs import changing, command, data_sets, free_port, practice, truth
from tests.sweeps import sweep_with


def patient_ids_in(folder: Path, archive: Archive, *said: str) -> list[str]:
    """The PatientIDs that stand in the manifest or in what was said."""
    text = "\n".join([*sqlite3.connect(folder / "manifests" / "test.db").iterdump(), *said])
    return [study.patient_id for study in archive if study.patient_id in text]


def test_every_data_set_arrives_and_no_patient_is_named(tmp_path: Path) -> None:
    """Each patient is asked once in a sweep; the manifest holds no PatientID, and neither do messages."""
    archive = Archive(14)
    with changing(tmp_path, archive, "patient-root-only") as pacs:
        done = command(tmp_path, "enumerate", "-vv")
        asked = pacs.counts["find STUDY"]
        done = command(tmp_path, "run", "--json", "-vv")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["complete"] is True
    assert data_sets(tmp_path) == truth(archive)
    assert not patient_ids_in(tmp_path, archive, done.stdout, done.stderr)
    windows = sqlite3.connect(tmp_path / "manifests" / "test.db").execute("SELECT count(*) FROM window WHERE sweep = 1").fetchone()[0]
    assert asked < 20 + 8 * windows  # 7 patients, all with as many studies


@pytest.mark.parametrize("faults", [("refuse-many",), ("odd-patient-ids", "silent-cap=4")])
def test_who_may_hide_in_a_list_of_patients_blocks_until_it_is_accepted(tmp_path: Path, faults: tuple[str, ...]) -> None:
    """A capped list, or one of patients who cannot be asked for, is one window that blocks; all others are migrated whole, and a signature settles it."""
    with practice(tmp_path, "patient-root-only", *faults, studies=12) as archive:  # six patients: one more than either shows
        done = command(tmp_path, "run", "--json")
        blocking = [one for one in json.loads(command(tmp_path, "report", "--json").stdout)["enumeration"]["suspicious"] if one["blocks"]]
        accepted = command(tmp_path, "accept", "--window", blocking[0]["window"], "--reason", "the vendor counts as many", "--by", "J. Doe")
        again = command(tmp_path, "run", "--json")
    assert (done.returncode, json.loads(done.stdout)["complete"]) == (3, False), done.stderr
    assert len(blocking) == 1
    assert "PatientID" in blocking[0]["reason"]
    assert (accepted.returncode, again.returncode, json.loads(again.stdout)["complete"]) == (0, 0, True), again.stderr
    odd = {study.uid for study in archive if "odd-patient-ids" in faults and study.patient % 5 == 4}
    assert data_sets(tmp_path) == {key: digest for key, digest in truth(archive).items() if key[0] not in odd}
    assert not patient_ids_in(tmp_path, archive, done.stderr, again.stderr)


def test_who_hides_behind_a_cap_as_large_as_all_others_is_seen_by_name(tmp_path: Path) -> None:
    """A list that shows all who can be asked for, and no more, is not whole: the fifth patient, whose PatientID is none, is among those whose names begin alike."""
    archive = Archive(10)
    swept, _ = sweep_with(tmp_path, archive, ["patient-root-only", "odd-patient-ids", "silent-cap=4"])
    assert swept.found == {study.uid for study in archive if study.patient != 4}
    assert swept.blocked
    assert swept.habits["cap_patients"] == "4"


def test_a_cap_on_the_studies_of_one_patient_is_found(tmp_path: Path) -> None:
    """Of patients with more studies than one answer shows, all are found, and the cap is the one of a single C-FIND."""
    archive = Archive(14, each=7)
    swept, _ = sweep_with(tmp_path, archive, ["patient-root-only", "silent-cap=3"])
    assert swept.found == {study.uid for study in archive}
    assert [said for said in swept.suspicions if "lists of patients" not in said and "may hide" in said] == []
    assert swept.habits.get("cap") == "3"


@pytest.mark.parametrize("faults", [("ignore-patient-id",), ("ignore-patient-id", "silent-cap")])
def test_a_list_of_patients_that_cannot_be_proven_is_never_whole(tmp_path: Path, faults: tuple[str, ...]) -> None:
    """Where PatientID is not matched with wildcards, the list is named and blocks; what was found is migrated."""
    with practice(tmp_path, "patient-root-only", *faults, studies=14) as archive:
        done = command(tmp_path, "run", "--json")
        report = json.loads(command(tmp_path, "report", "--json").stdout)
    assert done.returncode == 3, done.stderr
    assert report["complete"] is False
    assert any("PatientID" in one["reason"] and one["blocks"] for one in report["enumeration"]["suspicious"])
    assert data_sets(tmp_path).items() <= truth(archive).items()
    assert data_sets(tmp_path)


def test_an_answer_that_breaks_off_is_asked_for_again(tmp_path: Path) -> None:
    """Every third answer is aborted: the patients concerned are asked again, within the same question."""
    archive = Archive(24)
    swept, _ = sweep_with(tmp_path, archive, ["patient-root-only", "abort-find"])
    assert swept.found == {study.uid for study in archive}


@pytest.mark.parametrize("failpoint", ["", "enumerate-answered:kill:3", "move-asked:kill:2"])
def test_a_study_under_two_patients_comes_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failpoint: str) -> None:
    """The images that each of them shows, asked for from each; also when the process dies in between, and when one of the two comes later."""
    with practice(tmp_path, "patient-root-only", "two-patients@5", "two-patients@9", studies=14) as archive:
        monkeypatch.setenv("PACS_MIGRATE_FAILPOINT", failpoint)
        killed = command(tmp_path, "run")
        monkeypatch.delenv("PACS_MIGRATE_FAILPOINT")
        done = command(tmp_path, "run")
        report = json.loads(command(tmp_path, "report", "--json").stdout)
    assert killed.returncode == (-signal.SIGKILL if failpoint else 0), killed.stderr
    assert done.returncode == 0, done.stderr
    assert data_sets(tmp_path) == truth(archive)
    assert sum("more than one patient" in one["reason"] for one in report["enumeration"]["suspicious"]) == 2


def test_a_second_patient_who_comes_later_is_noticed(tmp_path: Path) -> None:
    """What a study gains by standing under another patient, too, is migrated by the next run, though no number that is claimed tells of it."""
    archive = Archive(14)
    port = free_port()
    with changing(tmp_path, archive, "patient-root-only", "no-counts", port=port):
        assert command(tmp_path, "run").returncode == 0
    with changing(tmp_path, Archive(14, shapes={5: (*archive.study(5).shape, ("US", 1))}), "patient-root-only", "no-counts", "two-patients@5", port=port) as pacs:
        done = command(tmp_path, "run")
        assert data_sets(tmp_path) == truth(pacs.archive)
    assert done.returncode == 0, done.stderr


def test_a_run_that_goes_on_looks_the_patients_up_again(tmp_path: Path) -> None:
    """What an earlier process enumerated is planned and retrieved by another, which has to ask whose studies they are."""
    with practice(tmp_path, "patient-root-only", "skip-first", studies=12) as archive:
        assert command(tmp_path, "enumerate").returncode == 0
        done = command(tmp_path, "run")
        checked = command(tmp_path, "check", "--json")
    assert done.returncode == 0, done.stderr
    assert checked.returncode == 0, checked.stdout
    assert data_sets(tmp_path) == truth(archive)


@pytest.mark.parametrize("numbers", [(5, 9), (0, 6, 12)])  # of several series, so that it goes amid their listing, and of one
def test_a_study_that_goes_to_another_patient_meanwhile_comes_whole(tmp_path: Path, numbers: tuple[int, ...]) -> None:
    """A PACS that gives studies away once their images are listed sends nothing of them for the patient they were listed under: all patients are asked again."""
    archive = Archive(14)
    with changing(tmp_path, archive, "patient-root-only", *(f"changing-patients@{number}" for number in numbers)) as pacs:
        done = command(tmp_path, "run", "--json")
        assert {study.number for study in pacs.holdings if study.patient != study.number // 2} == set(numbers)
    assert (done.returncode, json.loads(done.stdout)["complete"]) == (0, True), done.stderr
    assert data_sets(tmp_path) == truth(archive)
