"""A PACS that knows only Patient Root and insists on a PatientID is migrated whole, or says what may hide."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from migrate.practice import records, studies
from migrate.practice.studies import Archive
from tests.integration.test_migration import command, data_sets, practice, truth
from tests.sweeps import sweep_with


def give_each_patient(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Patients of the practice archive have so many studies each, instead of two."""
    plain = records.StudyRecord.__init__

    def init(self: records.StudyRecord, archive: Archive, number: int, **known: object) -> None:
        plain(self, archive, number, **known)
        self.patient = number // count

    def of_patient(self: Archive, start: str, whole: bool = False) -> range:
        found = studies._with_prefix(f"P{self.seed:04}", start, whole)
        return range(min(found.start * count, len(self)), min(found.stop * count, len(self)))

    monkeypatch.setattr(records.StudyRecord, "__init__", init)
    monkeypatch.setattr(studies.Archive, "of_patient", of_patient)


@pytest.mark.parametrize("faults", [(), ("silent-cap",), ("silent-cap=2",), ("refuse-many",)])
def test_every_data_set_arrives_and_no_patient_is_named(tmp_path: Path, faults: tuple[str, ...]) -> None:
    """Capped lists of patients are cut by prefixes; the manifest holds no PatientID, and neither do messages."""
    with practice(tmp_path, "patient-root-only", *faults, studies=14) as archive:
        done = command(tmp_path, "run", "--json", "-vv")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["complete"] is True
    assert data_sets(tmp_path) == truth(archive)
    dump = "\n".join(sqlite3.connect(tmp_path / "manifests" / "test.db").iterdump())
    assert not [study.patient_id for study in archive if study.patient_id in dump + done.stdout + done.stderr]
    assert ("may be hidden" in dump) == bool(faults)


@pytest.mark.parametrize("cap", [2, 3, 5])
def test_a_cap_on_the_studies_of_one_patient_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cap: int) -> None:
    """Of patients with more studies than one answer shows, all are found, and the cap is the one of a single C-FIND."""
    give_each_patient(monkeypatch, 7)
    archive = Archive(42)
    swept, _ = sweep_with(tmp_path, archive, ["patient-root-only", f"silent-cap={cap}"])
    assert swept.found == {study.uid for study in archive}
    assert not swept.blocked
    assert swept.habits.get("cap") == str(cap)


@pytest.mark.parametrize("faults", [("ignore-patient-id",), ("ignore-patient-id", "silent-cap")])
def test_a_list_of_patients_that_cannot_be_proven_is_never_whole(tmp_path: Path, faults: tuple[str, ...]) -> None:
    """Where PatientID is not matched with wildcards, every question is named and blocks; what was found is migrated."""
    with practice(tmp_path, "patient-root-only", *faults, studies=14) as archive:
        done = command(tmp_path, "run", "--json")
        report = json.loads(command(tmp_path, "report", "--json").stdout)
    assert done.returncode == 3, done.stderr
    assert report["complete"] is False
    assert any("PatientID" in one["reason"] and one["blocks"] for one in report["enumeration"]["suspicious"])
    assert data_sets(tmp_path).items() <= truth(archive).items()
    assert data_sets(tmp_path)


def test_a_run_that_goes_on_looks_the_patients_up_again(tmp_path: Path) -> None:
    """What an earlier process enumerated is planned and retrieved by another, which has to ask whose studies they are."""
    with practice(tmp_path, "patient-root-only", "skip-first", studies=12) as archive:
        assert command(tmp_path, "enumerate").returncode == 0
        done = command(tmp_path, "run")
        checked = command(tmp_path, "check", "--json")
    assert done.returncode == 0, done.stderr
    assert checked.returncode == 0, checked.stdout
    assert data_sets(tmp_path) == truth(archive)
