"""Lists against Orthanc and dcmqrscp: what they show under UIDs, accession numbers and patient IDs is what the practice PACS shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from migrate.dicom.part10 import file_header
from migrate.practice.studies import Archive
from tests.dicom_peers import dcmqrscp, orthanc
from tests.ports import free_port
from tests.runs import command, configure

PEERS = {"orthanc": orthanc, "dcmqrscp": dcmqrscp}
LISTS = {
    "StudyInstanceUID": (lambda study: study.uid, "2.25.1234567890123"),
    "AccessionNumber": (lambda study: study.accession, "A999"),
    "PatientID": (lambda study: study.patient_id, "P999"),
}


def one_image_each(folder: Path, archive: Archive) -> list[Path]:
    """The first image of every study that has some, as Part 10 files."""
    folder.mkdir()
    files = []
    for study in archive:
        for instance in [series.instances[0] for series in study.series][:1]:
            path = folder / f"{study.number}.dcm"
            path.write_bytes(file_header(instance.sop_class, instance.sop, instance.transfer_syntax) + archive.dataset(instance))
            files.append(path)
    return files


@pytest.mark.parametrize("peer", PEERS)
def test_lists_against_a_real_peer(tmp_path: Path, peer: str) -> None:
    """All values of a list are found and compared, what is missing is named by its line; whoever matches no lists of UIDs is asked one by one."""
    archive = Archive(60)
    files = one_image_each(tmp_path / "files", archive)
    there = [study for study in archive if study.series]
    with PEERS[peer](tmp_path / "pacs", files=files) as pacs:
        configure(tmp_path, pacs.port, free_port(), ae_title=pacs.ae_title)
        path = tmp_path / "list.csv"
        for key, (value_of, missing) in LISTS.items():
            path.write_text("\n".join([key, missing, *(value_of(study) for study in there)]))
            done = command(tmp_path, "enumerate", "--list", str(path), "--json")
            assert done.returncode == 3, done.stderr
            added = json.loads(done.stdout)
            assert (added["studies"], added["found"], added["failed"]) == (len(there), len({value_of(study) for study in there}), [])
            assert [line["line"] for line in added["not_found"]] == [2]
            compared = json.loads(command(tmp_path, "reconcile", str(path), "--json").stdout)
            assert (compared["both"], compared["only_in_manifest"]) == (len(there), [])
            assert [line["line"] for line in compared["not_in_manifest"] + compared["not_found"]] == [2]
