"""The practice PACS against DCMTK's echoscu, findscu, movescu and storescp: honest by default, bad as told."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from migrate.dicom import dimse
from migrate.dicom.scu import FindSession, Peer
from migrate.dicom.upper_layer import Association, ProposedContext
from migrate.practice.pacs import PracticePacs
from migrate.practice.studies import Archive
from tests.dicom_peers import HOST, PeerServer, run
from tests.practice_scu import ARCHIVE, STUDIES, TITLE, find, modalities, move, moved, sops


@pytest.fixture(scope="module")
def honest(receiver: PeerServer) -> Iterator[PracticePacs]:
    with PracticePacs(ARCHIVE, destinations={"DEST": (HOST, receiver.port)}) as pacs:
        yield pacs


# -- honest
def test_echo_and_titles(honest: PracticePacs) -> None:
    """C-ECHO is answered under our title, and another title is refused for good."""
    run("echoscu", "-aec", TITLE, HOST, str(honest.port))
    refused = run("echoscu", "-aec", "OTHER", HOST, str(honest.port), ok=False)
    assert refused.returncode and "Called AE Title Not Recognized" in refused.stderr


@pytest.mark.parametrize("model", ["-S", "-P"])
@pytest.mark.parametrize("syntax", ["-xe", "-xi"])
def test_every_study_is_listed_with_honest_numbers(honest: PracticePacs, tmp_path: Path, model: str, syntax: str) -> None:
    """Both models, both little-endian syntaxes: a universal query lists all studies with honest counts."""
    wanted = ("StudyInstanceUID", "StudyDate", "ModalitiesInStudy", "NumberOfStudyRelatedInstances", "PatientName")
    rows, _ = find(honest, tmp_path, "STUDY", *wanted, model=model, options=(syntax,))
    assert {(s.uid, s.date, s.instance_count, s.modalities, s.patient_name) for s in STUDIES} == {
        (
            row.StudyInstanceUID,
            row.StudyDate,
            int(row.NumberOfStudyRelatedInstances),
            modalities(row),
            str(row.PatientName),
        )
        for row in rows
    }


@pytest.mark.parametrize(
    ("key", "fits"),
    [
        ("StudyDate=20150101-20201231", lambda s: "20150101" <= s.date <= "20201231"),
        ("StudyDate=-20150101", lambda s: s.date and s.date <= "20150101"),
        ("StudyDate=20150101-", lambda s: s.date >= "20150101"),
        (f"StudyDate={STUDIES[1].date}", lambda s: s.date == STUDIES[1].date),
        ("StudyTime=080000-115959", lambda s: "080000" <= s.time <= "115959"),
        ("StudyTime=08-1159", lambda s: "080000" <= s.time <= "115959"),
        ("StudyTime=-115959.999", lambda s: s.time <= "115959"),
        ("StudyTime=12:00-", lambda s: s.time >= "120000"),
        ("StudyTime=09", lambda s: s.time[:2] == "09"),
        ("StudyTime=180000-100000", lambda s: False),
        ("ModalitiesInStudy=C?", lambda s: {"CR", "CT"} & set(s.modalities)),
        ("PatientID=P000100000*", lambda s: True),
        ("PatientID=P0001000000[1-3]", lambda s: False),
        ("AccessionNumber=A*1", lambda s: s.accession.endswith("1")),
        ("PatientID=P00010000003", lambda s: s.patient_id == "P00010000003"),
        ("PatientID=*3", lambda s: s.patient_id.endswith("3")),
        ("AccessionNumber=A000000?", lambda s: s.accession[:-1] == "A000000"),
        ("PatientName=haas*", lambda s: s.patient_name.startswith("HAAS")),
        ("ModalitiesInStudy=SR", lambda s: "SR" in s.modalities),
        (f"StudyInstanceUID={STUDIES[3].uid}\\{STUDIES[5].uid}\\1.2.3", lambda s: s.number in (3, 5)),
        ("PatientID=nobody", lambda s: False),
    ],
)
def test_matching(honest: PracticePacs, tmp_path: Path, key: str, fits) -> None:  # type: ignore[no-untyped-def]
    """Single value, list, range and wildcard match exactly what a walk over the archive matches."""
    keys = [key] if key.startswith("StudyInstanceUID") else [key, "StudyInstanceUID"]
    rows, said = find(honest, tmp_path, "STUDY", *keys)
    assert {study.uid for study in STUDIES if fits(study)} == {row.StudyInstanceUID for row in rows}
    assert "Success" in said


def test_dates_and_times_are_matched_apart(honest: PracticePacs, tmp_path: Path) -> None:
    """Ranges of StudyDate and StudyTime are no range of moments (PS3.4 C.2.2.2.5): each must hold by itself."""
    rows, _ = find(honest, tmp_path, "STUDY", "StudyDate=20050101-20221231", "StudyTime=090000-130000", "StudyInstanceUID")
    expected = {s.uid for s in STUDIES if "20050101" <= s.date <= "20221231" and "090000" <= s.time <= "130000"}
    assert expected == {row.StudyInstanceUID for row in rows}
    assert 0 < len(expected) < sum("20050101" <= study.date <= "20221231" for study in STUDIES)
    assert "Identifier" in find(honest, tmp_path, "STUDY", "StudyTime=noon")[1]


@pytest.mark.parametrize(
    ("key", "fits"),
    [
        ("PatientID", lambda s: True),
        ("PatientID=*", lambda s: True),
        ("PatientID=P0001000000*", lambda s: True),
        ("PatientID=P00010000003", lambda s: s.patient_id == "P00010000003"),
        ("PatientID=P????0000003", lambda s: s.patient_id.endswith("3")),
        ("PatientID=9*", lambda s: False),
        ("PatientSex=F", lambda s: s.sex == "F"),
    ],
)
def test_patients(honest: PracticePacs, tmp_path: Path, key: str, fits) -> None:  # type: ignore[no-untyped-def]
    """The level PATIENT of Patient Root lists each patient once, with the number of studies."""
    keys = (key, "PatientName", "NumberOfPatientRelatedStudies", *(() if "PatientID" in key else ("PatientID",)))
    rows, said = find(honest, tmp_path, "PATIENT", *keys, model="-P")
    expected = {study.patient_id for study in STUDIES if study.number % 2 == 0 and fits(study)}
    assert sorted(expected) == [row.PatientID for row in rows]
    assert all(row.NumberOfPatientRelatedStudies == 2 for row in rows)
    assert "Success" in said


def test_hierarchy(honest: PracticePacs, tmp_path: Path) -> None:
    """SERIES needs the study, IMAGE study and series; then they list what is there, and otherwise refuse (A900)."""
    study = STUDIES[1]
    rows, _ = find(honest, tmp_path, "SERIES", f"StudyInstanceUID={study.uid}", "SeriesInstanceUID", "Modality")
    assert {(one.uid, one.modality) for one in study.series} == {(row.SeriesInstanceUID, row.Modality) for row in rows}
    series = study.series[0]
    above = (f"StudyInstanceUID={study.uid}", f"SeriesInstanceUID={series.uid}")
    rows, _ = find(honest, tmp_path, "IMAGE", *above, "SOPInstanceUID", "SOPClassUID")
    assert {image.sop for image in series.instances} == {row.SOPInstanceUID for row in rows}
    rows, _ = find(honest, tmp_path, "IMAGE", *above, f"SOPInstanceUID={series.instances[1].sop}")
    assert [series.instances[1].sop] == [row.SOPInstanceUID for row in rows]
    for level, keys in (("IMAGE", above[:1]), ("IMAGE", above[1:]), ("SERIES", ("Modality",)), ("PATIENT", ())):
        rows, said = find(honest, tmp_path, level, *keys)
        assert not rows and "Identifier" in said
    rows, said = find(honest, tmp_path, "STUDY", "StudyDate=yesterday")
    assert not rows and "Identifier" in said


def test_every_study_moves_with_its_own_bytes(honest: PracticePacs, receiver: PeerServer) -> None:
    """A C-MOVE of each study brings all its images, byte for byte, in their own transfer syntaxes."""
    for study in STUDIES:
        result = moved(honest, receiver, study)
        assert sops(study) == result.got
        assert "Received Final Move Response" in result.said and "Success" in result.said


def test_move_of_series_and_images(honest: PracticePacs, receiver: PeerServer) -> None:
    """SERIES and IMAGE levels send what they name, and no more; what is unknown moves nothing with Success."""
    study = STUDIES[1]
    series, above = study.series[1], f"StudyInstanceUID={study.uid}"
    result = move(honest, receiver, "SERIES", above, f"SeriesInstanceUID={series.uid}")
    assert {image.sop for image in series.instances} == result.got
    pair = {series.instances[0].sop, series.instances[2].sop}
    keys = (above, f"SeriesInstanceUID={series.uid}", "SOPInstanceUID=" + "\\".join(sorted(pair)))
    assert pair == move(honest, receiver, "IMAGE", *keys).got
    nothing = move(honest, receiver, "STUDY", "StudyInstanceUID=1.2.3")
    assert set() == nothing.got and "0x0000" in nothing.said
    assert "0xa900" in move(honest, receiver, "STUDY").said
    assert "0xa900" in move(honest, receiver, "PATIENT", "PatientID=P*", model="-P").said


def test_move_refusals_and_counters(honest: PracticePacs, receiver: PeerServer) -> None:
    """An unknown destination is A801, one that is down A702 with every UID named; the counters add up."""
    study = STUDIES[1]
    assert "0xa801" in moved(honest, receiver, study, to="NOBODY").said
    with socket.create_server((HOST, 0)) as closed:
        honest.destinations["DOWN"] = closed.getsockname()[:2]
    down = moved(honest, receiver, study, to="DOWN").said
    assert "0xa702" in down and study.series[0].instances[0].sop in down
    said = moved(honest, receiver, study).said
    completed = [int(number) for number in re.findall(r"Completed Suboperations\s*: (\d+)", said)]
    remaining = [int(number) for number in re.findall(r"Remaining Suboperations\s*: (\d+)", said)]
    assert completed == [*range(1, study.instance_count + 1), study.instance_count]
    assert remaining[: study.instance_count] == list(range(study.instance_count - 1, -1, -1))


@pytest.mark.parametrize(("faults", "honoured"), [((), True), (("ignore-cancel",), False)])
def test_cancel(receiver: PeerServer, tmp_path: Path, faults: tuple[str, ...], honoured: bool) -> None:
    """C-CANCEL ends a C-MOVE and a C-FIND early with FE00; with "ignore-cancel" both go on to the end."""
    destinations = {"DEST": (HOST, receiver.port)}
    with PracticePacs(ARCHIVE, destinations=destinations, faults=("slow-answers=0.05", *faults)) as pacs:
        result = moved(pacs, receiver, STUDIES[1], options=("--cancel", "2"))
        assert honoured == ("0xfe00" in result.said) == (len(result.got) < STUDIES[1].instance_count)
        rows, said = find(pacs, tmp_path, "STUDY", "StudyInstanceUID", options=("--cancel", "2"))
        assert honoured == ("Cancel" in said.rsplit("Final Find Response", 1)[1]) == (len(rows) < len(STUDIES))
        assert len(rows) >= 2


def test_many_rows_and_small_pdus(tmp_path: Path) -> None:
    """Tens of thousands of rows come whole, each once, over one association; to a peer of small PDUs they come in pieces."""
    archive = Archive(30_000)
    with PracticePacs(archive) as pacs, FindSession(Peer(HOST, pacs.port, TITLE, "TEST")) as session:
        rows = [row[dimse.STUDY_UID] for row in session.find("STUDY", {}, [dimse.STUDY_UID])]
        assert len(rows) == 30_000 == len(set(rows))
        command = {dimse.COMMAND_FIELD: dimse.C_FIND, dimse.SOP_CLASS: dimse.STUDY_ROOT_FIND, dimse.MESSAGE_ID: 1}
        asked = dict.fromkeys((0x00080061, 0x00080062, 0x00081030, 0x00100010, 0x00100020), "")
        keys = {dimse.QUERY_LEVEL: "STUDY", dimse.STUDY_UID: archive.study(9).uid, **asked}
        answers = []
        for max_pdu in (1 << 17, 130):
            contexts = [ProposedContext(dimse.STUDY_ROOT_FIND, (dimse.EXPLICIT_LE,))]
            peer = Association.request(HOST, pacs.port, calling="A", called=TITLE, contexts=contexts, max_pdu=max_pdu)
            peer.send_command(1, dimse.encode_command({**command, dimse.DATASET_TYPE: 1}))
            peer.send_dataset(1, dimse.encode_identifier(keys, dimse.EXPLICIT_LE))
            answer = dimse.receive(peer)
            assert answer is not None and answer.dataset is not None
            answers.append(answer.dataset)
            assert (peer.longest_pdu <= 130) == (max_pdu == 130)
            peer.release()
        assert answers[0] == answers[1] and len(answers[0]) > 150


def test_garbage_does_not_harm(honest: PracticePacs) -> None:
    """Noise, silence and broken PDUs on the port leave the PACS answering others."""
    for noise in (b"", b"GET / HTTP/1.0\r\n\r\n", struct.pack(">BBL", 1, 0, 1 << 31), struct.pack(">BBL", 4, 0, 8) * 9):
        with socket.create_connection((HOST, honest.port)) as sock:
            sock.sendall(noise)
    run("echoscu", "-aec", TITLE, HOST, str(honest.port))


def test_close_frees_the_port_and_ends_idle_associations() -> None:
    """A PACS that is closed with a silent peer connected returns soon, and its port can be taken again."""
    pacs = PracticePacs(ARCHIVE).start()
    with socket.create_connection((HOST, pacs.port)) as silent:
        run("echoscu", "-aec", TITLE, HOST, str(pacs.port))
        pacs.close()
        silent.settimeout(5)
        with contextlib.suppress(ConnectionResetError):
            assert silent.recv(1) == b""
    with PracticePacs(ARCHIVE, port=pacs.port) as again:
        run("echoscu", "-aec", TITLE, HOST, str(again.port))
