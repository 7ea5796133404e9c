"""The dossier of a real migration: tools that everybody has read it, and equal manifests give equal bytes."""

from __future__ import annotations

import csv
import gzip
import hashlib
import importlib.resources
import io
import json
import shutil
import subprocess
import sys
import urllib.parse
import zlib
from collections import Counter
from pathlib import Path

import pyarrow.parquet
import pydicom
import pytest

from migrate.dicom.part10 import read_header
from migrate.practice.studies import Archive
from migrate.reports import parquet
from migrate.reports.tables import INSTANCE_COLUMNS
from tests import damaged, second_verifier
from tests.runs import called, command, data_sets, here, practice


@pytest.fixture(scope="module")
def migration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a migration that ended with studies parked, one of them accepted, and its dossier under `dossier`."""
    folder = tmp_path_factory.mktemp("migration")
    with practice(folder, "skip-one", studies=6):
        assert command(folder, "run").returncode == 3
    parked = json.loads(command(folder, "status", "--json").stdout)["parked"]
    assert command(folder, "accept", parked[0]["study"], "--reason", "the tape is lost", "--by", "J. Doe").returncode == 0
    done = command(folder, "report", "--dossier", str(folder / "dossier"))
    assert done.returncode == 0, done.stderr
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text(encoding="utf-8")
    return list(csv.DictReader(io.StringIO(text, newline="")))


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_sha256sum_reads_the_dossier_and_the_destination(migration: Path) -> None:
    """`sha256sum -c` finds every file of the dossier and every object in the folder destination as listed."""
    dossier = migration / "dossier"
    for folder, sums in ((dossier, "contents.sha256"), (migration / "bucket", dossier / "SHA256SUMS")):
        done = subprocess.run(["sha256sum", "--strict", "-c", str(sums)], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert {line.rpartition(": ")[2] for line in done.stdout.splitlines()} == {"OK"}
    listed = {line.split("  ")[1] for line in (dossier / "contents.sha256").read_text().splitlines()}
    assert listed == set(files(dossier)) - {"contents.sha256"}
    keys = {line.split("  ")[1] for line in (dossier / "SHA256SUMS").read_text().splitlines()}
    assert keys == {path.relative_to(migration / "bucket").as_posix() for path in (migration / "bucket").rglob("*.dcm")}


def test_bagit_reads_the_bag(migration: Path, tmp_path: Path) -> None:
    """bagit.py calls the bag valid once the objects are linked under data/, and no longer when one is spoilt."""
    bag = tmp_path / "bag"
    shutil.copytree(migration / "dossier" / "bag", bag)
    shutil.copytree(migration / "bucket" / "studies", bag / "data" / "studies", copy_function=lambda a, b: Path(b).hardlink_to(a))
    bagit = [sys.executable, "-m", "bagit", "--validate", str(bag)]
    done = subprocess.run(bagit, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    victim = next(bag.rglob("*.dcm"))
    content = victim.read_bytes()
    victim.unlink()  # the link, not the object
    victim.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    done = subprocess.run(bagit, capture_output=True, text=True)
    assert done.returncode == 1 and victim.name in done.stderr


def test_a_list_by_rclone_is_compared(migration: Path, tmp_path: Path) -> None:
    """What `rclone lsf` tells of the destination, with the options that the documentation names, is a list from the bucket that holds."""
    rclone = [Path(sys.executable).with_name("rclone"), "lsf", "-R", "--files-only", "--format", "psh", "--hash", "SHA256", "--separator", "\t"]
    told = subprocess.run([*rclone, str(migration / "bucket")], capture_output=True, text=True, check=True).stdout
    (tmp_path / "list").write_text(told)
    verifier = [sys.executable, str(migration / "dossier" / "verify_dossier.py"), str(migration / "dossier"), "--list", str(tmp_path / "list")]
    done = subprocess.run(verifier, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    key = next(line for line in told.splitlines() if ".dcm\t" in line).partition("\t")[0]
    (tmp_path / "list").write_text("".join(line + "\n" for line in told.splitlines() if not line.startswith(key)))
    done = subprocess.run(verifier, capture_output=True, text=True)
    assert (done.returncode, f"WRONG {key}: is not in the list" in done.stdout) == (1, True)


def test_keys_with_an_odd_prefix_are_read_by_the_same_tools(tmp_path: Path) -> None:
    """With a prefix that holds spaces, sha256sum, bagit.py, the verifiers and the Inventory's addresses find the objects."""
    dossier = damaged.build(tmp_path, "images of 1999/")
    sums = subprocess.run(["sha256sum", "--strict", "-c", str(dossier / "SHA256SUMS")], cwd=tmp_path / "bucket", capture_output=True, text=True)
    assert sums.returncode == 0, sums.stderr
    for key in (line.partition("  ")[2] for line in (dossier / "SHA256SUMS").read_text().splitlines()):  # another object there is foreign
        (dossier / "bag" / "data" / key).parent.mkdir(parents=True, exist_ok=True)
        (dossier / "bag" / "data" / key).hardlink_to(tmp_path / "bucket" / key)
    bag = subprocess.run([sys.executable, "-m", "bagit", "--validate", str(dossier / "bag")], capture_output=True, text=True)
    assert bag.returncode == 0, bag.stderr
    verifier = [sys.executable, str(dossier / "verify_dossier.py"), str(dossier), "--objects", str(tmp_path / "bucket")]
    done = subprocess.run(verifier, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert second_verifier.holds(dossier, tmp_path / "bucket")
    study = pydicom.dcmread(dossier / "inventory.dcm").InventoriedStudiesSequence[0]
    address = study.InventoriedSeriesSequence[0].InventoriedInstancesSequence[0].FileAccessSequence[0].FileAccessURI
    assert Path(urllib.parse.unquote(address.removeprefix("file://"))).is_file()


def test_the_tables_say_what_the_bucket_holds(migration: Path) -> None:
    """instances.csv.gz names each object with its size and both hashes; the counts of report.json follow from the tables."""
    table = rows(migration / "dossier" / "instances.csv.gz")
    document = json.loads((migration / "dossier" / "report.json").read_text())
    held = data_sets(migration)
    proven = {(row["study"], row["series"], row["sop"]): row for row in table if row["proof"]}
    assert {uids: bytes.fromhex(row["dataset_sha256"]) for uids, row in proven.items()} == held
    for row in proven.values():
        content = (migration / "bucket" / row["key"]).read_bytes()
        assert (int(row["size_bytes"]), row["file_sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    states = Counter(row["state"] for row in table)
    assert states == {name: count for name, count in document["instances"].items() if count}
    assert document["bytes"]["verified"] == sum(int(row["size_bytes"]) for row in proven.values())
    assert states["expected"] and document["complete"] is False
    assert sum(row["proven"] for row in document["reconciliation"]["rows"]) == states["verified"]
    assert "questions in clear text, images in clear text" in (migration / "dossier" / "report.html").read_text(encoding="utf-8")
    assert [(row["study"], row["series"], row["sop"]) for row in table] == sorted((row["study"], row["series"], row["sop"]) for row in table)


def test_its_own_verifier_finds_that_all_of_it_holds(migration: Path) -> None:
    """verify_dossier.py, with Python's library alone, agrees with the dossier of a real migration and with its objects; so does the second one."""
    program = [sys.executable, "-I", str(migration / "dossier" / "verify_dossier.py"), str(migration / "dossier")]
    done = subprocess.run([*program, "--objects", str(migration / "bucket")], capture_output=True, text=True, env={})
    assert done.returncode == 0, done.stdout + done.stderr
    assert second_verifier.holds(migration / "dossier", migration / "bucket")
    merkle = json.loads((migration / "dossier" / "merkle.json").read_text())
    for name in ("report.html", "report-anonymous.html"):
        page = (migration / "dossier" / name).read_text(encoding="utf-8")
        assert merkle["root"] in page and merkle["head"] in page


def test_no_patient_is_named_anywhere(migration: Path) -> None:
    """No file of the dossier holds a name, an ID or an accession number of a patient of the practice PACS, be it compressed or not."""
    archive = Archive(6)
    known = {word.encode() for study in archive for word in (study.patient_name, study.patient_name.partition("^")[0], study.patient_id, study.accession) if word}
    for name, raw in files(migration / "dossier").items():
        plain = gzip.decompress(raw) if name.endswith(".gz") else raw
        if name == "inventory.dcm":
            plain = zlib.decompress(raw[read_header(raw)[3] :], -15)
        assert not [word for word in known if word in plain], name
    assert len(known) > 12


def test_equal_manifests_give_equal_bytes(migration: Path, tmp_path: Path) -> None:
    """A second dossier of the same manifest, written a while later over a first one, is the same, byte for byte."""
    for _ in range(2):
        assert command(migration, "report", "--dossier", str(tmp_path / "again")).returncode == 0
        assert files(tmp_path / "again") == files(migration / "dossier")


def test_parquet_has_the_same_rows(migration: Path, tmp_path: Path) -> None:
    """With --parquet, instances.parquet says what instances.csv.gz says, as equal bytes each time; a later dossier without it has none."""
    folder = tmp_path / "dossier"
    assert here(migration, "report", "--dossier", str(folder), "--parquet")[0] == 0
    first = (folder / parquet.INSTANCES).read_bytes()
    table = pyarrow.parquet.read_table(folder / parquet.INSTANCES)
    texts = [{name: "" if value is None else str(value) for name, value in row.items()} for row in table.to_pylist()]
    assert texts == rows(folder / "instances.csv.gz")
    assert {str(table.schema.field(name).type) for name in ("size_bytes", "staged_at", "verified_seal")} == {"int64"}
    assert subprocess.run([sys.executable, str(folder / "verify_dossier.py"), str(folder)], capture_output=True).returncode == 0
    assert here(migration, "report", "--dossier", str(folder), "--parquet")[0] == 0
    assert (folder / parquet.INSTANCES).read_bytes() == first
    assert here(migration, "report", "--dossier", str(folder))[0] == 0
    assert files(folder) == files(migration / "dossier")


def test_parquet_comes_in_groups(tmp_path: Path) -> None:
    """What is held in memory is a group of rows; groups that are full, and the rest, are all there."""
    written = [tuple(number if name == "size_bytes" else None for name in INSTANCE_COLUMNS) for number in range(50)]
    with parquet.ParquetTable(tmp_path / "t.parquet", group_rows=20) as table:
        for row in written:
            table.row(row)
    file = pyarrow.parquet.ParquetFile(tmp_path / "t.parquet")
    assert [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)] == [20, 20, 10]
    assert [row["size_bytes"] for row in file.read().to_pylist()] == list(range(50))


def test_parquet_without_pyarrow_is_refused(migration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sentence, what to install, and nothing written; without a dossier the option is no use."""
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    code, _, said = called(migration, "report", "--dossier", str(tmp_path / "new"), "--parquet")
    assert (code, "pyarrow, which is not installed" in said, "pacs-migrate[parquet]" in said, (tmp_path / "new").exists()) == (2, True, True, False)
    assert called(migration, "report", "--parquet")[0] == 2


def test_other_files_are_left_alone(migration: Path, tmp_path: Path) -> None:
    """A dossier is written into an empty folder or over an unsigned dossier, never among other files or over a signature."""
    for name in ("notes.txt", "dossier.sig"):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / name).write_text("mine")
        done = command(migration, "report", "--dossier", str(folder))
        assert (done.returncode, [path.name for path in folder.iterdir()]) == (2, [name])
        assert "Hint" in done.stderr


def test_the_dicom_inventory_lists_what_is_proven(migration: Path) -> None:
    """pydicom and DCMTK read the Inventory; it names each proven object with its SHA-256, and nobody's name."""
    path = migration / "dossier" / "inventory.dcm"
    assert subprocess.run(["dcmdump", "-q", str(path)], capture_output=True).returncode == 0
    data_set = pydicom.dcmread(path)
    found = {
        (study.StudyInstanceUID, series.SeriesInstanceUID, instance.SOPInstanceUID): instance.FileAccessSequence[0]
        for study in data_set.InventoriedStudiesSequence for series in study.InventoriedSeriesSequence for instance in series.InventoriedInstancesSequence
    }  # fmt: skip
    assert set(found) == set(data_sets(migration))
    for access in found.values():
        assert hashlib.sha256(Path(access.FileAccessURI.removeprefix("file://")).read_bytes()).digest() == access.MAC
    studies = data_set.InventoriedStudiesSequence
    assert data_set.InventoryCompletionStatus == "PARTIAL" and data_set.TotalNumberOfStudyRecords == len(studies)
    assert sum(study.NumberOfStudyRelatedInstances for study in studies) == len(found)
    assert {str(study.PatientName) + study.PatientID + study.AccessionNumber for study in studies} == {""}


def test_the_dicom_inventory_has_what_the_standard_requires(migration: Path) -> None:
    """Each attribute of Type 1 and 2 of PS3.3 C.38.1, as highdicom's tables have them, is there; those of Type 1 have values."""
    tables = json.loads((importlib.resources.files("highdicom") / "_standard" / "module_attribute_map.json").read_text())
    required = [entry for name in ("inventory", "general-equipment", "sop-common") for entry in tables[name] if entry["type"] in ("1", "2")]
    levels: list[tuple[list[str], list[pydicom.Dataset]]] = [([], [pydicom.dcmread(migration / "dossier" / "inventory.dcm")])]
    for name in ("InventoriedStudiesSequence", "InventoriedSeriesSequence", "InventoriedInstancesSequence"):
        path, above = levels[-1]
        levels.append(([*path, name], [item for data_set in above for item in data_set[name].value]))
    checked = 0
    for path, data_sets_there in levels:
        for entry in (entry for entry in required if entry["path"] == path):
            checked += 1
            for data_set in data_sets_there:
                assert entry["keyword"] in data_set, entry
                assert entry["type"] == "2" or data_set[entry["keyword"]].value not in (None, "", []), entry
    assert checked > 30


def test_dciodvfy_finds_only_that_it_knows_no_inventories(migration: Path, tmp_path: Path) -> None:
    """dicom3tools' validator has no table of this IOD and stops at the VR UV; encoding and values of all the rest are sound to it."""
    data_set = pydicom.dcmread(migration / "dossier" / "inventory.dcm")
    data_set.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian  # it reads no deflated ones
    del data_set.TotalNumberOfStudyRecords
    data_set.save_as(tmp_path / "inventory.dcm")
    checked = subprocess.run([Path(sys.executable).with_name("dciodvfy"), str(tmp_path / "inventory.dcm")], capture_output=True, text=True)
    said = [line for line in checked.stderr.splitlines() if "needed to build DICOMDIR" not in line]
    assert said == ["Error - Information Object Not found"]
