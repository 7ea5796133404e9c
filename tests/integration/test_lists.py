"""Lists through the command line: added, compared, left out; and a selection by modality."""

from __future__ import annotations

import csv
import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from migrate.practice.studies import EMPTY, UNDATED, Archive
from tests.runs import changing, command, data_sets, document, practice, truth
from tests.waiting import until

UNKNOWN = "2.25.1234567890123"


def write(folder: Path, *lines: str) -> str:
    path = folder / "list.csv"
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


def events(folder: Path, kind: str) -> list[tuple[str, str]]:
    manifest = sqlite3.connect(folder / "manifests" / "test.db")
    try:
        return manifest.execute("SELECT study_uid, detail FROM event WHERE kind = ? ORDER BY id", (kind,)).fetchall()
    except sqlite3.OperationalError:  # the schema is being written
        return []
    finally:
        manifest.close()


def test_a_list_adds_what_no_sweep_shows(tmp_path: Path) -> None:
    """A study that only a question by its UID shows is added, migrated by the next run, and stays; what is not found is named."""
    archive = Archive(12)
    hidden = archive.study(UNDATED).uid
    with changing(tmp_path, archive, "refuse-wide"):
        first = document(tmp_path, "run", code=3)
        assert first["studies"]["migrated"] == 11
        blocking = [entry["window"] for entry in document(tmp_path, "report")["enumeration"]["suspicious"] if entry["blocks"]]
        listed = write(tmp_path, "StudyInstanceUID", hidden, archive.study(0).uid, UNKNOWN, hidden, "total: 3")
        added = document(tmp_path, "enumerate", "--list", listed, "--out", str(tmp_path / "new" / "out.csv"), code=3)
        again = document(tmp_path, "enumerate", "--list", listed, code=3)
        assert document(tmp_path, "status")["studies"]["found"] == 1
        accepted = [word for window in blocking for word in ("--window", window)]
        assert command(tmp_path, "accept", *accepted, "--reason", "seen in the database", "--by", "Dr. Test").returncode == 0
        second = document(tmp_path, "run")
        assert document(tmp_path, "enumerate", "--list", write(tmp_path, hidden))["found"] == 1
        assert document(tmp_path, "status")["complete"] is True  # a list that adds nothing takes nothing back
        odd = [entry["reason"] for entry in document(tmp_path, "report")["enumeration"]["suspicious"]]
    assert not any("was last shown" in reason for reason in odd)
    assert {name: added[name] for name in ("key", "lines", "values", "found", "studies", "added", "excluded")} == {
        "key": "StudyInstanceUID", "lines": 5, "values": 3, "found": 2, "studies": 2, "added": 1, "excluded": 0
    }  # fmt: skip
    assert [(line["line"], line["value"]) for line in added["not_found"]] == [(4, UNKNOWN)]
    assert [(line["line"], line["value"], line["detail"]) for line in added["invalid"]] == [(6, None, "not a UID")]
    assert again["added"] == 0 and again["not_found"] == added["not_found"]
    with (tmp_path / "new" / "out.csv").open(newline="") as file:
        rows = {row["line"]: (row["result"], row["study"]) for row in csv.DictReader(file)}
    assert rows == {"2": ("added", hidden), "3": ("known", archive.study(0).uid), "4": ("not found", ""), "6": ("invalid", "")}
    assert second["complete"] is True and second["studies"]["migrated"] == 12
    assert data_sets(tmp_path) == truth(archive)
    assert not events(tmp_path, "study vanished")


def test_a_list_before_the_first_sweep(tmp_path: Path) -> None:
    """The list makes a sweep of its own; the run after it sweeps as ever, and ends complete."""
    with practice(tmp_path) as archive:
        added = document(tmp_path, "enumerate", "--list", write(tmp_path, *(study.uid for study in archive if study.number < 5)))
        assert added["added"] == 5
        assert document(tmp_path, "status")["complete"] is False
        assert document(tmp_path, "run")["studies"]["migrated"] == 12
    assert data_sets(tmp_path) == truth(archive)


@pytest.mark.parametrize("fault", ["silent-cap=3", "padded-uids", "repeat-rows", "abort-find=2", "undecodable-row"])
def test_a_long_list_against_bad_manners(tmp_path: Path, fault: str) -> None:
    """More UIDs than one question holds, against a PACS that caps, pads, repeats, breaks off: all found, none twice."""
    archive = Archive(130)
    with changing(tmp_path, archive, fault):
        added = document(tmp_path, "enumerate", "--list", write(tmp_path, *(study.uid for study in archive)))
    assert (added["found"], added["studies"], added["added"]) == (130, 130, 130)


def test_an_answer_as_long_as_the_cap_is_not_called_whole(tmp_path: Path) -> None:
    """Once a sweep has learned the cap, a patient with as many studies is named as failed; what was shown is taken."""
    archive = Archive(12)
    with changing(tmp_path, archive, "silent-cap=2"):
        command(tmp_path, "enumerate")
        added = document(tmp_path, "enumerate", "--list", write(tmp_path, "PatientID", archive.study(0).patient_id), code=3)
    assert [(line["line"], line["error"]) for line in added["failed"]] == [(2, "QueryFailed"), (2, "QueryFailed")]
    assert {line["study"] for line in added["failed"]} == {archive.study(0).uid, archive.study(1).uid}
    assert "caps" in added["failed"][0]["detail"]


def test_a_list_that_is_stopped_goes_on(tmp_path: Path) -> None:
    """SIGTERM ends it with 130; what was found is on record, and the same command finds the rest."""
    archive = Archive(40)
    with changing(tmp_path, archive, "slow-answers=0.1"):
        listed = write(tmp_path, "AccessionNumber", *(study.accession for study in archive))
        words = [sys.executable, "-m", "migrate", "enumerate", "--list", listed, "--config", str(tmp_path / "migrate.toml")]
        child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        until(lambda: (tmp_path / "manifests" / "test.db").exists() and events(tmp_path, "studies found"), during=child)
        child.terminate()
        child.communicate(timeout=30)
        before = len(events(tmp_path, "studies found"))  # each value of a list is a commit of its own
        again = document(tmp_path, "enumerate", "--list", listed)
    assert child.returncode == 130
    assert 0 < before < 40
    assert (again["found"], again["added"]) == (40, 40 - before)


def test_a_question_that_fails_is_not_called_not_found(tmp_path: Path) -> None:
    """The rows of some studies can never be read: these lines are named as failed, with exit 3, and the others are found."""
    archive = Archive(24)
    broken = {number for number in range(24) if number % 11 == 9}
    with changing(tmp_path, archive, "undecodable-row-always"):
        added = document(tmp_path, "enumerate", "--list", write(tmp_path, *(study.uid for study in archive)), code=3)
    assert {line["line"] - 1 for line in added["failed"]} == broken
    assert all(line["error"] == "QueryFailed" for line in added["failed"])
    assert added["not_found"] == [] and added["found"] == 24 - len(broken)


@pytest.mark.parametrize("key", ["AccessionNumber", "PatientID"])
def test_numbers_of_a_ris(tmp_path: Path, key: str) -> None:
    """Accession numbers and patient IDs are asked for one by one, taken only where they fit exactly, and are nowhere written down."""
    archive = Archive(12)
    chosen = [archive.study(number) for number in (0, 3)]
    values = [study.accession if key == "AccessionNumber" else study.patient_id for study in chosen]
    shorter, missing = values[0][:-1], "ZZ-4711"
    expected = {study.uid for study in archive if (study.accession if key == "AccessionNumber" else study.patient_id) in values}
    with changing(tmp_path, archive):
        listed = write(tmp_path, f"Date;{key}", *(f"x;{value}" for value in (*values, missing, shorter)))
        done = command(tmp_path, "enumerate", "--list", listed, "--json", "--out", str(tmp_path / "out.csv"))
        plain = command(tmp_path, "enumerate", "--list", listed)
        compared = command(tmp_path, "reconcile", listed, "--json")
    added = json.loads(done.stdout)
    assert done.returncode == plain.returncode == 3
    assert (added["found"], added["studies"], added["added"]) == (2, len(expected), len(expected))
    assert [(line["line"], line["value"]) for line in added["not_found"]] == [(4, None), (5, None)]
    manifest = sqlite3.connect(tmp_path / "manifests" / "test.db")
    assert {uid for (uid,) in manifest.execute("SELECT uid FROM study")} == expected
    manifest.close()
    written = b"".join(path.read_bytes() for path in (tmp_path / "manifests").iterdir()) + (tmp_path / "out.csv").read_bytes()
    said = done.stdout + done.stderr + plain.stdout + plain.stderr + compared.stdout + compared.stderr
    for value in (*values, missing):
        assert value not in said and value.encode() not in written


def test_a_list_without_a_header_or_a_pacs(tmp_path: Path) -> None:
    """Numbers without a header end with 2, a PACS that is not there with 20; both with a hint."""
    with practice(tmp_path):
        bare = command(tmp_path, "enumerate", "--list", write(tmp_path, "12345"))
        alone = command(tmp_path, "enumerate", "--out", "x.csv")
        assert document(tmp_path, "enumerate")["studies"]["found"] == 12
    gone = command(tmp_path, "enumerate", "--list", write(tmp_path, UNKNOWN))
    numbers = command(tmp_path, "reconcile", write(tmp_path, "AccessionNumber", "A1"))
    assert [done.returncode for done in (bare, alone, gone, numbers)] == [2, 2, 20, 20]
    assert all("Hint" in done.stderr and "Traceback" not in done.stderr for done in (bare, alone, gone, numbers))


def test_reconcile_in_both_directions(tmp_path: Path) -> None:
    """Equal only if both name the same studies and all are settled; UIDs need neither the PACS nor the lock."""
    from migrate.manifest import Lock

    with practice(tmp_path) as archive:
        uids = [study.uid for study in archive]
        assert command(tmp_path, "reconcile", write(tmp_path, *uids)).returncode == 10
        assert command(tmp_path, "enumerate").returncode == 0
        before = document(tmp_path, "reconcile", write(tmp_path, *uids), code=3)
        assert before["equal"] is False and before["both"] == len(before["not_migrated"]) == 12
        assert command(tmp_path, "run").returncode == 0
        numbers = write(tmp_path, "Accession Number", *(study.accession for study in archive))
        assert document(tmp_path, "reconcile", numbers)["states"]["migrated"] == 12
        patients = write(tmp_path, "PatientID", *(study.patient_id for study in archive))
        assert document(tmp_path, "reconcile", patients)["values"] == 6
        fewer = write(tmp_path, "AccessionNumber", *(study.accession for study in archive if study.number < 11), "A9999999")
        different = document(tmp_path, "reconcile", fewer, code=3)
        assert [line["study"] for line in different["only_in_manifest"]] == [uids[11]]
        assert [(line["line"], line["value"]) for line in different["not_found"]] == [(13, None)]
    with Lock(tmp_path / "manifests" / "test.db"):
        equal = document(tmp_path, "reconcile", write(tmp_path, *uids))
        assert equal["equal"] is True and equal["states"]["migrated"] == 12
        other = document(tmp_path, "reconcile", write(tmp_path, *uids[1:], UNKNOWN), "--csv", str(tmp_path / "diff.csv"), code=3)
    assert [line["study"] for line in other["not_in_manifest"]] == [UNKNOWN]
    assert [line["study"] for line in other["only_in_manifest"]] == [uids[0]]
    assert other["not_migrated"] == []
    with (tmp_path / "diff.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 13 and sum(row["result"] == "both" and row["state"] == "migrated" for row in rows) == 11


def test_reconcile_adds_nothing(tmp_path: Path) -> None:
    """A study that the PACS shows by its number and the manifest lacks is named, and not added."""
    archive = Archive(12)
    hidden = archive.study(UNDATED)
    with changing(tmp_path, archive, "refuse-wide"):
        assert command(tmp_path, "enumerate").returncode == 3
        listed = write(tmp_path, "StudyInstanceUID", hidden.uid)
        compared = document(tmp_path, "reconcile", listed, code=3)
        assert [line["study"] for line in compared["not_in_manifest"]] == [hidden.uid]
        assert sum(document(tmp_path, "status")["studies"].values()) == 11


def test_studies_are_left_out_on_record(tmp_path: Path) -> None:
    """Excluded studies are not migrated, no sweep reopens them, the run is complete with them, and undoing brings them back."""
    with practice(tmp_path) as archive:
        uids = [study.uid for study in archive]
        assert command(tmp_path, "exclude", UNKNOWN, "--reason", "test", "--by", "Dr. Test").returncode == 10
        assert command(tmp_path, "enumerate").returncode == 0
        out = command(tmp_path, "exclude", uids[0], "--reason", "a test patient", "--by", "Dr. Test")
        assert out.returncode == 0 and "1 study excluded" in out.stdout
        listed = write(tmp_path, "AccessionNumber", archive.study(1).accession, archive.study(2).accession)
        assert command(tmp_path, "exclude", "--list", listed, "--reason", "old", "--by", "Dr. Test").returncode == 0
        for wrong in ((uids[3], UNKNOWN), ("no uid",)):
            refused = command(tmp_path, "exclude", *wrong, "--reason", "test", "--by", "Dr. Test")
            assert refused.returncode == 2 and "not known" in refused.stderr and "Hint" in refused.stderr
        assert "no uid" not in refused.stderr
        assert document(tmp_path, "run")["studies"] | {"excluded": 3, "migrated": 9} == document(tmp_path, "run")["studies"]
        status = document(tmp_path, "status")
        assert status["complete"] is True
        assert (status["studies"]["excluded"], status["studies"]["migrated"]) == (3, 9)
        reported = document(tmp_path, "report")
        named = [entry for entry in reported["exceptions"] if entry["state"] == "excluded"]
        assert reported["studies"]["excluded"] == 3
        assert (named[0]["study"], named[0]["error"], named[0]["detail"]) == (uids[0], "ExcludedByPerson", "a test patient (by Dr. Test)")
        assert events(tmp_path, "exclusion signed")[0] == (uids[0], "by Dr. Test: a test patient")
        late = command(tmp_path, "exclude", uids[3], "--reason", "test", "--by", "Dr. Test")
        assert late.returncode == 2 and "migrated already" in late.stderr
        compared = document(tmp_path, "reconcile", write(tmp_path, *uids))
        assert compared["states"]["excluded"] == 3
        assert command(tmp_path, "exclude", "--undo", uids[3], "--reason", "x", "--by", "y").returncode == 2
        assert command(tmp_path, "exclude", "--undo", *uids[:3], "--reason", "needed", "--by", "Dr. Test").returncode == 0
        assert events(tmp_path, "exclusion undone")[0] == (uids[0], "by Dr. Test: needed")
        assert document(tmp_path, "status")["complete"] is False
        assert document(tmp_path, "run")["studies"]["migrated"] == 12
    assert data_sets(tmp_path) == truth(archive)


def test_a_parked_study_is_left_out(tmp_path: Path) -> None:
    """What the PACS never sends whole is parked; excluding it completes the run."""
    with practice(tmp_path, "skip-one"):
        parked = [entry["study"] for entry in document(tmp_path, "run", code=3)["parked"]]
        assert parked
        assert command(tmp_path, "exclude", *parked, "--reason", "the images are lost", "--by", "Dr. Test").returncode == 0
        assert document(tmp_path, "run")["studies"]["excluded"] == len(parked)


def test_only_some_modalities(tmp_path: Path) -> None:
    """[source] modalities: the other studies are excluded with the reason, the run is complete; widening it brings them in."""
    archive = Archive(24)
    wanted = {study.uid for study in archive if {"CT", "MR"} & set(study.modalities) or not study.modalities}
    with changing(tmp_path, archive, source='modalities = ["CT", "MR"]'):
        done = document(tmp_path, "run")
        excluded = [entry for entry in document(tmp_path, "report")["exceptions"] if entry["state"] == "excluded"]
        assert archive.study(EMPTY).uid in wanted
        assert done["complete"] is True
        assert (done["studies"]["migrated"], done["studies"]["excluded"]) == (len(wanted), 24 - len(wanted))
        assert {(entry["error"], entry["detail"]) for entry in excluded} == {("OutsideSelection", "None of its modalities is to be migrated.")}
        assert {study for study, *_ in data_sets(tmp_path)} <= wanted
        refused = command(tmp_path, "exclude", "--undo", excluded[0]["study"], "--reason", "x", "--by", "y")
        assert refused.returncode == 2 and "modalities" in refused.stderr
        assert command(tmp_path, "exclude", excluded[0]["study"], "--reason", "never", "--by", "y").returncode == 0
        path = tmp_path / "migrate.toml"
        path.write_text(path.read_text().replace('modalities = ["CT", "MR"]', ""))
        assert document(tmp_path, "run")["studies"] | {"migrated": 23, "excluded": 1} == document(tmp_path, "status")["studies"]
    assert excluded[0]["study"] not in {study for study, *_ in data_sets(tmp_path)}
