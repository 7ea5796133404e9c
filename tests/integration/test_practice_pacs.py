"""The practice PACS against DCMTK's echoscu, findscu, movescu and storescp: honest by default, bad as told."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import re
import socket
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pydicom
import pytest

from migrate.dicom.part10 import read_header
from migrate.practice.faults import FAULTS
from migrate.practice.pacs import PracticePacs
from migrate.practice.studies import Archive, StudyRecord
from tests.dicom_peers import HOST, PeerServer, run, storescp

ARCHIVE = Archive(20)
STUDIES = list(ARCHIVE)
TRUTH = {sop: sha256 for _, _, sop, sha256 in ARCHIVE.truth()}
TITLE = "PRACTICE"


@pytest.fixture(scope="module")
def receiver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PeerServer]:
    with storescp(tmp_path_factory.mktemp("storescp"), ae_title="DEST") as server:
        yield server


@pytest.fixture(scope="module")
def honest(receiver: PeerServer) -> Iterator[PracticePacs]:
    with PracticePacs(ARCHIVE, destinations={"DEST": (HOST, receiver.port)}) as pacs:
        yield pacs


_numbers = itertools.count()


def find(
    pacs: PracticePacs, folder: Path, level: str, *keys: str, model: str = "-S", options: tuple[str, ...] = ()
) -> tuple[list[pydicom.Dataset], str]:
    """(the rows that DCMTK's findscu got, what it said)."""
    rows = folder / f"rows{next(_numbers)}"
    rows.mkdir()
    arguments = [part for key in (f"QueryRetrieveLevel={level}", *keys) for part in ("-k", key)]
    command = ["findscu", "-v", model, "-X", "-od", rows, *options, "-aec", TITLE, *arguments, HOST, pacs.port]
    done = run(*(str(part) for part in command), ok=False)
    answers = [pydicom.dcmread(path, force=True) for path in sorted(rows.glob("rsp*.dcm"))]
    return answers, done.stdout + done.stderr


@dataclass
class Moved:
    """What came of a movescu: what it said, and the SOP UIDs that storescp has got meanwhile."""

    said: str
    got: set[str] = field(default_factory=set)


def move(
    pacs: PracticePacs, receiver: PeerServer, level: str, *keys: str, to: str = "DEST", options: tuple[str, ...] = ()
) -> Moved:
    for path in receiver.folder.iterdir():
        path.unlink()
    arguments = [part for key in (f"QueryRetrieveLevel={level}", *keys) for part in ("-k", key)]
    command = ["movescu", "-d", "-S", *options, "-aec", TITLE, "-aem", to, *arguments, HOST, str(pacs.port)]
    done = run(*command, ok=False)
    pacs.drain()
    return Moved(done.stdout + done.stderr, arrived(receiver))


def arrived(receiver: PeerServer) -> set[str]:
    """SOP UIDs of the files at the receiver, each checked to hold exactly the archive's bytes."""
    found = set()
    for path in receiver.folder.iterdir():
        data = path.read_bytes()
        _, sop, _, offset = read_header(data)
        assert TRUTH[sop] == hashlib.sha256(data[offset:]).digest()
        found.add(sop)
    return found


def sops(study: StudyRecord) -> set[str]:
    return {image.sop for series in study.series for image in series.instances}


def moved(pacs: PracticePacs, receiver: PeerServer, study: StudyRecord, **more: str) -> Moved:
    return move(pacs, receiver, "STUDY", f"StudyInstanceUID={study.uid}", **more)


def modalities(row: pydicom.Dataset) -> tuple[str, ...]:
    value = row.ModalitiesInStudy or ()
    return (value,) if isinstance(value, str) else tuple(value)


# -- honest
def test_echo_and_titles(honest: PracticePacs) -> None:
    """C-ECHO is answered under our title, and another title is refused for good."""
    run("echoscu", "-aec", TITLE, HOST, str(honest.port))
    refused = run("echoscu", "-aec", "OTHER", HOST, str(honest.port), ok=False)
    assert refused.returncode and "Called AE Title Not Recognized" in refused.stderr


@pytest.mark.parametrize("model", ["-S", "-P"])
@pytest.mark.parametrize("syntax", ["-xe", "-xi"])
def test_every_study_is_listed_with_honest_numbers(
    honest: PracticePacs, tmp_path: Path, model: str, syntax: str
) -> None:
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


def test_cancel(honest: PracticePacs, receiver: PeerServer, tmp_path: Path) -> None:
    """C-CANCEL ends a C-MOVE early with FE00, and never breaks a C-FIND."""
    said = moved(honest, receiver, STUDIES[1], options=("--cancel", "2")).said
    assert "0xfe00" in said
    rows, said = find(honest, tmp_path, "STUDY", "StudyInstanceUID", options=("--cancel", "2"))
    assert 2 <= len(rows) <= len(STUDIES)
    assert re.search("Cancel|Success", said.rsplit("Final Find Response", 1)[1])


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


# -- faults
def bad(receiver: PeerServer, *faults: str) -> PracticePacs:
    return PracticePacs(ARCHIVE, destinations={"DEST": (HOST, receiver.port)}, faults=faults)


def test_fault_names_are_checked() -> None:
    """A fault that does not exist is refused with the list of those that do; each has its line."""
    with pytest.raises(ValueError, match="silent-cap"):
        PracticePacs(ARCHIVE, faults=["no-such-fault"])
    assert all(re.fullmatch(r"[a-z0-9-]+", name) and line for name, line in FAULTS.items())


def test_find_faults(receiver: PeerServer, tmp_path: Path) -> None:
    """Capped, refused, unfiltered, FF01 and padded answers look to findscu as their lines say."""
    with bad(receiver, "silent-cap", "ff01", "padded-uids") as pacs:
        rows, said = find(pacs, tmp_path, "STUDY", "StudyInstanceUID")
        assert len(rows) == 5 and "Success" in said and "Pending: WarningUnsupportedOptionalKeys" in said
        raw = rows[0].get_item("StudyInstanceUID").value
        assert raw.endswith(b"  ")
        uid = STUDIES[1].uid
        rows, _ = find(pacs, tmp_path, "SERIES", f"StudyInstanceUID={uid}", "SeriesInstanceUID")
        assert len(rows) == len(STUDIES[1].series)
    with bad(receiver, "refuse-wide") as pacs:
        for key in ("StudyDate", "StudyDate=20100101-", "StudyDate=20100101-20110102", "StudyDate=20109999-20110102"):
            rows, said = find(pacs, tmp_path, "STUDY", key, "StudyInstanceUID")
            assert not rows and "Success" not in said
        assert "Success" in find(pacs, tmp_path, "STUDY", "StudyDate=20100101-20110101", "StudyInstanceUID")[1]
        assert len(find(pacs, tmp_path, "STUDY", f"StudyInstanceUID={STUDIES[0].uid}")[0]) == 1
    with bad(receiver, "ignore-date") as pacs:
        assert len(find(pacs, tmp_path, "STUDY", "StudyDate=19980101", "StudyInstanceUID")[0]) == len(STUDIES)
    with bad(receiver, "abort-find") as pacs:
        answers = [find(pacs, tmp_path, "STUDY", "StudyInstanceUID") for _ in range(6)]
        assert [len(rows) for rows, _ in answers] == [20, 20, 1, 20, 20, 1]
        assert "Abort" in answers[2][1]


@pytest.mark.parametrize(
    ("fault", "number", "missing", "status"),
    [
        ("move-unknown", 1, 32, "0xa801"),
        ("success-nothing-sent", 1, 32, "0x0000"),
        ("skip-one", 3, 1, "0x0000"),
        ("skip-one", 1, 0, "0x0000"),
        ("skip-first", 1, 1, "0x0000"),
        ("null-counters", 1, 0, "0x0000"),
        ("wrong-counters", 1, 0, "0x0000"),
    ],
)
def test_move_faults(receiver: PeerServer, fault: str, number: int, missing: int, status: str) -> None:
    """Each fault leaves out what its line says, under the status that it says."""
    study = STUDIES[number]
    with bad(receiver, fault) as pacs:
        result = moved(pacs, receiver, study)
        assert missing == len(sops(study) - result.got)
        assert status in result.said.rsplit("Final Move Response", 1)[1]
        final = result.said.rsplit("Final Move Response", 1)[1]
        counters = re.findall(r"Completed Suboperations\s*: (\w+)", final)
        expected = {"null-counters": "none", "wrong-counters": str(study.instance_count + 3), "move-unknown": "0"}
        assert counters == [expected.get(fault, str(study.instance_count))]
        if fault == "skip-first":
            assert sops(study) == moved(pacs, receiver, study).got
        if fault == "skip-one":
            assert missing == len(sops(study) - moved(pacs, receiver, study).got)


def test_abort_amid_a_data_set(receiver: PeerServer) -> None:
    """The first C-MOVE of an even study breaks off with failures counted and named, the second one is whole."""
    study = STUDIES[2]
    with bad(receiver, "abort-store") as pacs:
        first = moved(pacs, receiver, study)
        assert 0 < len(first.got) < study.instance_count
        assert "0xb000" in first.said
        assert all(sop in first.said for sop in sops(study) - first.got)
        assert sops(study) == moved(pacs, receiver, study).got
        assert sops(STUDIES[1]) == moved(pacs, receiver, STUDIES[1]).got


def test_twice_and_early(receiver: PeerServer) -> None:
    """Images that come twice or after the final answer do come, all of them."""
    study = STUDIES[2]
    with bad(receiver, "twice") as pacs:
        assert sops(study) == moved(pacs, receiver, study).got
        assert 2 * study.instance_count == pacs.counts["store"]
    with bad(receiver, "early-success", "skip-first") as pacs:
        result = moved(pacs, receiver, study)
        assert "0x0000" in result.said.rsplit("Final Move Response", 1)[1]
        assert "(Pending)" not in result.said
        assert study.instance_count - 1 == pacs.counts["store"] == len(result.got)
        assert isinstance(pacs.counts, Counter)
