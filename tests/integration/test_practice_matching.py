"""The practice PACS matches as Orthanc and dcmqrscp, which hold the same studies, do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from migrate.dicom.part10 import file_header
from migrate.practice.pacs import PracticePacs
from migrate.practice.studies import UNDATED
from tests.dicom_peers import PeerServer, dcmqrscp, orthanc
from tests.practice_scu import ARCHIVE, STUDIES, TITLE, find

HELD = [study for study in STUDIES if study.instance_count]
KEYS = (
    "StudyDate=",
    f"StudyDate={STUDIES[1].date}",
    f"StudyDate={STUDIES[1].date}-",
    f"StudyDate=-{STUDIES[1].date}",
    "StudyDate=20100101-20221231",
    "StudyDate=20221231-20100101",
    "StudyTime=090000-133000",
    "StudyTime=-120000",
    "StudyTime=120000-",
    f"StudyTime={STUDIES[2].time}",
    "PatientID=P0001000000*",
    "PatientID=*2",
    "PatientID=P000100000??",
    "PatientID=P00010000003",
    "PatientID=p00010000003",
    "PatientID=*",
    "AccessionNumber=A000000?",
    "AccessionNumber=*1*",
    "PatientSex=F",
    f"StudyInstanceUID={STUDIES[3].uid}\\{STUDIES[5].uid}",
)
ONLY_ORTHANC = ("ModalitiesInStudy=CT", "ModalitiesInStudy=SR", "ModalitiesInStudy=XA", "StudyDescription=PRACTICE M*")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The first image of each series, as Part 10 files."""
    folder, files = tmp_path_factory.mktemp("files"), []
    for series in (series for study in HELD for series in study.series):
        image = series.instances[0]
        files.append(folder / f"{image.sop}.dcm")
        header = file_header(image.sop_class, image.sop, image.transfer_syntax)
        files[-1].write_bytes(header + ARCHIVE.dataset(image))
    return files


@pytest.fixture(scope="module", params=[orthanc, dcmqrscp], ids=["orthanc", "dcmqrscp"])
def peer(request: pytest.FixtureRequest, files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[PeerServer, bool]]:
    with request.param(tmp_path_factory.mktemp("peer"), ae_title=TITLE, files=files) as server:
        yield server, request.param is orthanc


def test_the_same_studies_match(peer: tuple[PeerServer, bool], tmp_path: Path) -> None:
    """Dates, times, wildcards and lists bring the same studies from both."""
    server, is_orthanc = peer
    counts = set()
    with PracticePacs(ARCHIVE) as pacs:
        for key in KEYS + (ONLY_ORTHANC if is_orthanc else ()):
            keys = [key] if key.startswith("StudyInstanceUID") else [key, "StudyInstanceUID"]
            theirs, ours = ({str(row.StudyInstanceUID) for row in find(one, tmp_path, "STUDY", *keys)[0]} for one in (server, pacs))
            if key.startswith("StudyDate=-") and is_orthanc:
                theirs.discard(STUDIES[UNDATED].uid)  # takes no date for one before all others
            assert theirs == ours & {study.uid for study in HELD}, key
            counts.add(len(theirs))
    assert len(counts) > 6
