"""The practice PACS's faults: each, with real bytes over a real socket, does to DCMTK what its line says."""

from __future__ import annotations

import itertools
import re
import sys
from collections import Counter
from datetime import date
from pathlib import Path

import pydicom
import pytest

from migrate.dicom import dimse
from migrate.dicom.upper_layer import Association, ProposedContext, Rejected
from migrate.practice.faults import DEFAULTS, FAULTS
from migrate.practice.pacs import PracticePacs
from migrate.practice.records import StudyRecord
from tests.dicom_peers import HOST, PeerServer, run
from tests.practice_scu import ARCHIVE, STUDIES, find, move, moved, sops


def bad(receiver: PeerServer, *faults: str) -> PracticePacs:
    return PracticePacs(ARCHIVE, destinations={"DEST": (HOST, receiver.port)}, faults=faults)


def test_fault_names_and_values_are_checked() -> None:
    """What does not exist or takes no such value is refused in words; each fault has its line."""
    for fault, words in (
        ("silent-cab", "unknown fault: silent-cab; did you mean silent-cap"),
        ("null-dates=3", "takes no value"),
        ("silent-cap=0", "whole number above 0"),
        ("silent-cap=0.5", "whole number above 0"),
        ("silent-cap=", "whole number above 0"),
        ("slow-answers=-1", "a number above 0"),
        ("slow-answers=nan", "a number above 0"),
    ):
        with pytest.raises(ValueError, match=words):
            PracticePacs(ARCHIVE, faults=[fault])
    assert all(re.fullmatch(r"[a-z0-9-]+", name) and line for name, line in FAULTS.items())
    assert set(DEFAULTS) < set(FAULTS)


def test_every_fault_is_documented_and_others_are_refused() -> None:
    """`--help` and the manual have a line for each fault, with its default; a bad one ends with 2 and a hint."""
    manual = (Path(__file__).parents[2] / "docs" / "practice-pacs.md").read_text(encoding="utf-8")
    command = (sys.executable, "-m", "migrate", "practice-pacs")
    said = run(*command, "--help").stdout
    for name, line in FAULTS.items():
        assert f"| `{name}{f'={DEFAULTS[name]}' if name in DEFAULTS else ''}` | {line} |" in manual
        assert re.search(rf"^ +{name}(={DEFAULTS.get(name)})? +{re.escape(line)}$", said, re.MULTILINE)
    bad = run(*command, "--fault", "silent-cap=many", ok=False)
    assert bad.returncode == 2 and "silent-cap takes a whole number" in bad.stderr and "--help" in bad.stderr


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
    with bad(receiver, "silent-cap=7", "refuse-many=6", "nul-uids") as pacs:
        rows, said = find(pacs, tmp_path, "STUDY", "StudyInstanceUID")
        assert len(rows) == 6 and "Refused: OutOfResources" in said
        assert rows[0].get_item("StudyInstanceUID").value.endswith(b"\0\0")
        rows, said = find(pacs, tmp_path, "PATIENT", "PatientID=*", model="-P")
        assert len(rows) == 6 and "Refused: OutOfResources" in said
        rows, said = find(pacs, tmp_path, "STUDY", "PatientID=P00010000003", "StudyInstanceUID")
        assert len(rows) == 2 and "Success" in said
    with bad(receiver, "refuse-wide=3") as pacs:
        assert "Success" in find(pacs, tmp_path, "STUDY", "StudyDate=20100101-20100103", "StudyInstanceUID")[1]
        assert "Refused" in find(pacs, tmp_path, "STUDY", "StudyDate=20100101-20100104", "StudyInstanceUID")[1]
    with bad(receiver, "refuse-wide") as pacs:
        for key in ("StudyDate", "StudyDate=20100101-", "StudyDate=20100101-20110102", "StudyDate=20109999-20110102"):
            rows, said = find(pacs, tmp_path, "STUDY", key, "StudyInstanceUID")
            assert not rows and "Success" not in said
        assert "Success" in find(pacs, tmp_path, "STUDY", "StudyDate=20100101-20110101", "StudyInstanceUID")[1]
        assert len(find(pacs, tmp_path, "STUDY", f"StudyInstanceUID={STUDIES[0].uid}")[0]) == 1
    with bad(receiver, "refuse-open-ranges") as pacs:
        rows, said = find(pacs, tmp_path, "STUDY", "StudyDate=-20300101", "StudyInstanceUID")
        assert not rows and "DataSetDoesNotMatchSOPClass" in said
    with bad(receiver, "ignore-date") as pacs:
        assert len(find(pacs, tmp_path, "STUDY", "StudyDate=19980101", "StudyInstanceUID")[0]) == len(STUDIES)
    with bad(receiver, "abort-find") as pacs:
        answers = [find(pacs, tmp_path, "STUDY", "StudyInstanceUID") for _ in range(6)]
        assert [len(rows) for rows, _ in answers] == [20, 20, 1, 20, 20, 1]
        assert "Abort" in answers[2][1]


def uids(rows: list[pydicom.Dataset]) -> set[str]:
    return {row.StudyInstanceUID for row in rows}


@pytest.mark.parametrize(
    ("fault", "key", "all_of_them"),
    [
        ("ignore-time", "StudyTime=000000-000001", True),
        ("ignore-modality", "ModalitiesInStudy=XA", True),
        ("ignore-patient-id", "PatientID=9*", True),
        ("ignore-patient-id", "PatientID=9", False),
        ("ignore-open-ranges", "StudyDate=99990101-", True),
        ("open-range-as-day", "StudyDate=19000101-", False),
        ("no-day-range", "StudyDate=19980101-19980101", False),
    ],
)
def test_ignored_keys(tmp_path: Path, fault: str, key: str, all_of_them: bool) -> None:
    """A key that is ignored narrows nothing."""
    with PracticePacs(ARCHIVE, faults=[fault]) as pacs:
        rows, said = find(pacs, tmp_path, "STUDY", key, "StudyInstanceUID")
        assert (uids(rows) == {study.uid for study in STUDIES}) == all_of_them and "Success" in said
        assert all_of_them or not rows


def test_missing_dates_and_times(tmp_path: Path) -> None:
    """Studies without date or time match no range, and are hidden as told."""
    undated = {study.uid for study in STUDIES if study.number % 7 == 3 or not study.date}
    untimed = {study.uid for study in STUDIES if study.number % 5 == 3 or study.number % 7 == 3}
    everything = {study.uid for study in STUDIES}
    with PracticePacs(ARCHIVE, faults=["null-dates", "null-times", "hidden-undated"]) as pacs:
        assert everything - undated == uids(find(pacs, tmp_path, "STUDY", "StudyDate=18000101-", "StudyInstanceUID")[0])
        assert everything - undated == uids(find(pacs, tmp_path, "STUDY", "StudyInstanceUID")[0])
        timed = find(pacs, tmp_path, "STUDY", "AccessionNumber=A*", "StudyTime=000000-235959", "StudyInstanceUID")[0]
        assert everything - untimed == uids(timed)
        for key in ("PatientID=P*", "AccessionNumber=A*"):
            assert everything == uids(find(pacs, tmp_path, "STUDY", key, "StudyInstanceUID")[0])
        (row,) = find(pacs, tmp_path, "STUDY", f"StudyInstanceUID={STUDIES[3].uid}", "StudyDate", "StudyTime")[0]
        assert (row.StudyDate, row.StudyTime) == ("", "")


def test_patient_root_only(receiver: PeerServer, tmp_path: Path) -> None:
    """Study Root is not accepted; below PATIENT, C-FIND and C-MOVE need the one right Patient ID."""
    study = STUDIES[2]
    above = f"StudyInstanceUID={study.uid}"
    with bad(receiver, "patient-root-only") as pacs:
        assert "No Acceptable Presentation Contexts" in find(pacs, tmp_path, "STUDY", "StudyInstanceUID")[1]
        patients = {row.PatientID for row in find(pacs, tmp_path, "PATIENT", "PatientID=*", model="-P")[0]}
        assert {one.patient_id for one in STUDIES} == patients
        for keys in (("StudyInstanceUID",), ("PatientID=P*", "StudyInstanceUID"), (above,)):
            rows, said = find(pacs, tmp_path, "STUDY", *keys, model="-P")
            assert not rows and "DataSetDoesNotMatchSOPClass" in said
        mine, other = f"PatientID={study.patient_id}", "PatientID=P00010000009"
        assert {study.uid, STUDIES[3].uid} == uids(find(pacs, tmp_path, "STUDY", mine, "StudyInstanceUID", model="-P")[0])
        assert not find(pacs, tmp_path, "SERIES", above, "SeriesInstanceUID", model="-P")[0]
        assert not find(pacs, tmp_path, "SERIES", other, above, "SeriesInstanceUID", model="-P")[0]
        series = find(pacs, tmp_path, "SERIES", mine, above, "SeriesInstanceUID", model="-P")[0]
        assert {one.uid for one in study.series} == {row.SeriesInstanceUID for row in series}
        below = (mine, above, f"SeriesInstanceUID={study.series[0].uid}", "SOPInstanceUID")
        assert len(study.series[0].instances) == len(find(pacs, tmp_path, "IMAGE", *below, model="-P")[0])
        assert "0xa900" in move(pacs, receiver, "STUDY", above, model="-P").said
        assert set() == move(pacs, receiver, "STUDY", other, above, model="-P").got
        assert sops(study) == move(pacs, receiver, "STUDY", mine, above, model="-P").got
        assert sops(study) | sops(STUDIES[3]) == move(pacs, receiver, "PATIENT", mine, model="-P").got


def test_relational_queries(tmp_path: Path) -> None:
    """Without the UIDs above it an IMAGE query is answered from all studies, where the PACS is that kind."""
    with PracticePacs(ARCHIVE, faults=["relational"]) as pacs:
        rows, _ = find(pacs, tmp_path, "IMAGE", "SOPInstanceUID", "PatientID=P00010000001")
        assert sops(STUDIES[2]) | sops(STUDIES[3]) == {row.SOPInstanceUID for row in rows}
        rows, _ = find(pacs, tmp_path, "SERIES", "SeriesInstanceUID", "Modality=KO")
        assert {one.uid for s in STUDIES for one in s.series if one.modality == "KO"} == {row.SeriesInstanceUID for row in rows}


@pytest.mark.filterwarnings("ignore:Incorrect value", "ignore:Unknown encoding")
def test_what_the_database_says(tmp_path: Path) -> None:
    """Empty studies, wrong and absent counts, and names that do not decode come as their lines say."""
    counts = ("StudyInstanceUID", "NumberOfStudyRelatedInstances", "NumberOfStudyRelatedSeries", "PatientName")
    with PracticePacs(ARCHIVE, faults=["empty-studies", "wrong-counts", "odd-names"]) as pacs:
        rows, _ = find(pacs, tmp_path, "STUDY", *counts)
        assert len(rows) == len(STUDIES)
        for row in rows:
            study = ARCHIVE.find(row.StudyInstanceUID)
            assert study is not None
            images = 0 if study.number % 9 == 8 else study.instance_count
            wrong = 0 if study.number % 4 != 1 else 1 if study.number % 8 == 1 else -1
            assert images + wrong == int(row.NumberOfStudyRelatedInstances)
            raw = bytes(row.get_item("PatientName").value)
            with pytest.raises(UnicodeDecodeError):
                raw.decode("utf-8")
        declared = [row.get("SpecificCharacterSet") for row in rows]
        assert Counter(declared) == {None: 7, "ISO IR 192": 7, "Not Supplied": 6}
        row = find(pacs, tmp_path, "SERIES", f"StudyInstanceUID={STUDIES[5].uid}", "NumberOfSeriesRelatedInstances")[0][0]
        assert len(STUDIES[5].series[0].instances) - 1 == int(row.NumberOfSeriesRelatedInstances)
        above = f"StudyInstanceUID={STUDIES[8].uid}"
        assert not find(pacs, tmp_path, "SERIES", above, "SeriesInstanceUID")[0]
    with PracticePacs(ARCHIVE, faults=["no-counts"]) as pacs:
        rows, _ = find(pacs, tmp_path, "STUDY", *counts)
        assert {None} == {row.NumberOfStudyRelatedInstances for row in rows}
        assert {None} == {row.NumberOfStudyRelatedSeries for row in rows}
        rows, _ = find(pacs, tmp_path, "SERIES", f"StudyInstanceUID={STUDIES[1].uid}", "NumberOfSeriesRelatedInstances")
        assert {None} == {row.NumberOfSeriesRelatedInstances for row in rows}


def test_repeated_rows(tmp_path: Path) -> None:
    """Every third row comes twice, and every second of these says something else the second time."""
    with PracticePacs(ARCHIVE, faults=["repeat-rows"]) as pacs:
        rows, _ = find(pacs, tmp_path, "STUDY", "StudyInstanceUID", "StudyDate", "NumberOfStudyRelatedInstances")
        assert len(rows) == 26 and len(uids(rows)) == 20
        pairs = [(a, b) for a, b in itertools.pairwise(rows) if a.StudyInstanceUID == b.StudyInstanceUID]
        assert [a == b for a, b in pairs] == [True, False, True, False, True, False]
        assert all(a.NumberOfStudyRelatedInstances != b.NumberOfStudyRelatedInstances for a, b in pairs[1::2])


def images(pacs: PracticePacs, folder: Path, study: StudyRecord) -> set[str]:
    """The SOP UIDs that the IMAGE level has of the first series."""
    above = (f"StudyInstanceUID={study.uid}", f"SeriesInstanceUID={study.series[0].uid}")
    return {row.SOPInstanceUID for row in find(pacs, folder, "IMAGE", *above, "SOPInstanceUID")[0]}


def test_archives_that_change(receiver: PeerServer, tmp_path: Path) -> None:
    """Images come and go after they were listed, studies go after they were shown and come later; `holdings` knows."""
    with bad(receiver, "growing", "shrinking", "vanishing") as pacs:
        first = [images(pacs, tmp_path, STUDIES[number]) for number in (2, 1, 3)]
        again = [images(pacs, tmp_path, STUDIES[number]) for number in (2, 1, 3)]
        added, lost = again[0] - first[0], first[1] - again[1]
        assert (len(added), len(lost)) == (1, 1) and first[0] < again[0] and again[1] < first[1] and first[2] == again[2]
        assert added == pacs.holdings.added and lost == pacs.holdings.lost
        assert again == [images(pacs, tmp_path, STUDIES[number]) for number in (2, 1, 3)]
        result = moved(pacs, receiver, STUDIES[2], known={sop: h for _, _, sop, h in pacs.holdings.truth()})
        assert sops(STUDIES[2]) | added == result.got
        assert sops(STUDIES[1]) - lost == moved(pacs, receiver, STUDIES[1]).got
        assert set() == pacs.holdings.vanished
        assert len(find(pacs, tmp_path, "STUDY", "StudyInstanceUID")[0]) == 20
        gone = {STUDIES[6].uid, STUDIES[14].uid}
        assert gone == pacs.holdings.vanished == {s.uid for s in STUDIES} - {s.uid for s in pacs.holdings}
        for keys in (("StudyInstanceUID",), ("StudyDate=18000101-", "StudyInstanceUID"), (f"StudyInstanceUID={STUDIES[6].uid}",)):
            assert not gone & uids(find(pacs, tmp_path, "STUDY", *keys)[0])
        assert set() == moved(pacs, receiver, STUDIES[6]).got


def test_new_studies(receiver: PeerServer, tmp_path: Path) -> None:
    """After so many STUDY queries three studies of today are there, to be found by every way and moved."""
    with bad(receiver, "new-studies=2") as pacs:
        day = date.today().strftime("%Y%m%d")
        answers = [find(pacs, tmp_path, "STUDY", "StudyInstanceUID", "StudyDate")[0] for _ in range(3)]
        assert [len(rows) for rows in answers] == [20, 20, 23]
        new = uids(answers[2]) - uids(answers[1])
        rows, _ = find(pacs, tmp_path, "STUDY", f"StudyDate={day}-", "StudyInstanceUID")
        assert new == uids(rows) == {study.uid for study in pacs.holdings} - {study.uid for study in STUDIES}
        rows, _ = find(pacs, tmp_path, "STUDY", "PatientID=P0001000001*", "StudyInstanceUID")
        assert new == uids(rows)
        study = next(study for study in pacs.holdings if study.uid in new)
        result = moved(pacs, receiver, study, known={sop: h for _, _, sop, h in pacs.holdings.truth()})
        assert sops(study) == result.got


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("release-find", "Peer Requested Release"),
        ("cut-find", "network closed"),
        ("abort-find", "Peer Aborted Association"),
    ],
)
def test_answers_that_break_off(tmp_path: Path, fault: str, words: str) -> None:
    """Every second STUDY query ends with a row, or half of one, and without a final answer."""
    with PracticePacs(ARCHIVE, faults=[f"{fault}=2"]) as pacs:
        for turn in range(4):
            rows, said = find(pacs, tmp_path, "STUDY", "StudyInstanceUID")
            assert (len(rows) == 20) == (turn % 2 == 0)
            assert (words in said) == (turn % 2 == 1) != ("Success" in said)
        assert "Success" in find(pacs, tmp_path, "SERIES", f"StudyInstanceUID={STUDIES[1].uid}")[1]


@pytest.mark.parametrize("kind", ["undecodable-row", "truncated-row"])
def test_rows_that_do_not_decode(tmp_path: Path, kind: str) -> None:
    """Spoilt rows come so often as told to every third question, or always for every 11th study."""
    with PracticePacs(ARCHIVE, faults=[f"{kind}=2"]) as pacs:
        questions = ("StudyDate", "StudyDate=18000101-", "ModalitiesInStudy=CT", "PatientID=P*")
        for question, spoilt in zip(questions, (2, 0, 0, 2), strict=True):
            said = [find(pacs, tmp_path, "STUDY", question, "StudyInstanceUID")[1] for _ in range(3)]
            assert [True] * spoilt + [False] * (3 - spoilt) == ["Failed to receive message" in one for one in said]
            assert "Success" in said[2]
    with PracticePacs(ARCHIVE, faults=[f"{kind}-always"]) as pacs:
        for study in STUDIES[8:11] * 2:
            said_of_it = find(pacs, tmp_path, "STUDY", f"AccessionNumber={study.accession}", "StudyInstanceUID")[1]
            assert ("Failed to receive message" in said_of_it) == (study.number == 9)


def test_association_limit() -> None:
    """One more than the limit is rejected for now; a place that was given back is free."""
    contexts = [ProposedContext(dimse.VERIFICATION, (dimse.IMPLICIT_LE,))]
    with PracticePacs(ARCHIVE, faults=["association-limit=2"]) as pacs:
        for _ in range(3):
            held = [Association.request(HOST, pacs.port, calling="A", called="PRACTICE", contexts=contexts) for _ in range(2)]
            with pytest.raises(Rejected, match=r"for now.*local limit exceeded"):
                Association.request(HOST, pacs.port, calling="A", called="PRACTICE", contexts=contexts)
            for association in held:
                association.release()
            run("echoscu", "-aec", "PRACTICE", HOST, str(pacs.port))
        assert pacs.counts["association rejected"] == 3
