"""The synthetic archive: always the same, whole by scanner and by pydicom, and of every kind that it promises."""

from __future__ import annotations

import hashlib
import io
import time
import tracemalloc
from collections import Counter
from datetime import date

import pydicom
import pytest

from migrate.dicom import dimse
from migrate.dicom.part10 import file_header
from migrate.dicom.scanner import scan
from migrate.practice.faults import Conduct
from migrate.practice.holdings import Holdings
from migrate.practice.matching import MODALITIES, Query
from migrate.practice.records import JPEG_LOSSLESS
from migrate.practice.studies import EMPTY, UNDATED, Archive

FIXED = "98afef9318b9b9baf770e4c42ed0c855c077e67e9c557251acd7a99638f958e0"


def test_truth_is_fixed() -> None:
    """Twenty studies of seed 1 have the same bytes in every process and every release."""
    digest = hashlib.sha256()
    for study, series, sop, sha256 in Archive().truth():
        digest.update(f"{study}/{series}/{sop}/{sha256.hex()}\n".encode())
    assert digest.hexdigest() == FIXED


def test_every_data_set_is_whole_and_says_what_its_record_says() -> None:
    """Scanner and pydicom find the record's UIDs, and no deviation, in each data set; they differ and stay small."""
    archive, total, seen = Archive(), 0, set()
    for study in archive:
        for series in study.series:
            for instance in series.instances:
                data = archive.dataset(instance)
                total += len(data)
                seen.add(hashlib.sha256(data).digest())
                result = scan(data, 0, instance.transfer_syntax)
                assert (result.error, result.notes) == (None, ())
                assert (instance.sop_class, instance.sop) == (result.sop_class, result.sop)
                assert (study.uid, series.uid) == (result.study, result.series)
                header = file_header(instance.sop_class, instance.sop, instance.transfer_syntax)
                dataset = pydicom.dcmread(io.BytesIO(header + data))
                assert study.patient_name == str(dataset.PatientName)
                assert (study.date, series.modality) == (dataset.StudyDate, dataset.Modality)
                if "Rows" in dataset and instance.number == 1 and instance.transfer_syntax != JPEG_LOSSLESS:
                    assert dataset.pixel_array.max() > dataset.pixel_array.min()
    assert len(seen) == sum(study.instance_count for study in archive)
    assert total < 40 << 20


def test_kinds_syntaxes_and_odd_studies_are_all_there() -> None:
    """Twenty studies hold every modality, syntax, multi-frame class, a minor, an undated and an empty study."""
    studies = list(Archive())
    images = [image for study in studies for series in study.series for image in series.instances]
    assert {"CR", "CT", "MR", "US", "MG", "SR", "PR", "KO"} == {one for study in studies for one in study.modalities}
    assert any(image.sop_class.endswith(".13.1.3") for image in images)
    syntaxes = {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1"} | {f"1.2.840.10008.1.2.4.{n}" for n in (50, 70, 90)}
    assert syntaxes == {image.transfer_syntax for image in images}
    assert [study.number for study in studies if not study.instance_count] == [EMPTY]
    assert [study.number for study in studies if not study.date] == [UNDATED]
    ages = [int(study.date[:4]) - int(study.birth_date[:4]) for study in studies if study.date]
    assert min(ages) < 18 and max(ages) >= 18 and min(ages) >= 0
    assert any(not study.patient_name.isascii() for study in studies)


def test_a_uid_alone_finds_its_study() -> None:
    """Study, series and SOP UIDs lead to their study; others, also of another seed, lead nowhere."""
    archive = Archive(30, 5)
    study = archive.study(13)
    series = study.series[0]
    for uid in (study.uid, series.uid, series.instances[0].sop):
        assert archive.find(uid) == study
    for uid in ("", "1.2.3", study.uid + ".99", study.uid + ".1.999", study.uid + "x", Archive(30, 6).study(13).uid):
        assert archive.find(uid) is None
    assert archive.find(Archive(31, 5).study(30).uid) is None


def test_between_agrees_with_looking_at_every_study() -> None:
    """The date index answers what a plain walk over all studies answers, in order of dates."""
    archive = Archive(500, 3)
    for lo, hi in (("20100101", "20151231"), ("", "20050101"), ("20200101", ""), ("", ""), ("20200101", "20190101")):
        expected = {s.uid for s in archive if s.date and (lo or "0") <= s.date <= (hi or "9")}
        answer = list(archive.between(lo, hi))
        assert expected == {study.uid for study in answer}
        assert sorted(study.date for study in answer) == [study.date for study in answer]


def test_prefixes_agree_with_looking_at_every_study() -> None:
    """Patient IDs and accession numbers by prefix, or whole, are the numbers that a plain walk finds."""
    archive = Archive(321, 42)
    for start in ("", "P", "P0042", "P00420", "P0042000001", "P00420000160", "P00420000161", "P0043", "Q", "P0042x", "P" * 20):
        expected = [study.number for study in archive if study.patient_id.startswith(start)]
        assert expected == list(archive.of_patient(start))
        expected = [study.number for study in archive if study.patient_id == start]
        assert expected == list(archive.of_patient(start, whole=True))
    for start in ("", "A", "A000", "A00003", "A0000320", "A0000321", "B", "A00000001"):
        expected = [study.number for study in archive if study.accession.startswith(start)]
        assert expected == list(archive.of_accession(start))
        expected = [study.number for study in archive if study.accession == start]
        assert expected == list(archive.of_accession(start, whole=True))


@pytest.mark.parametrize("faults", [(), ("two-patients",), ("private-class",), ("empty-studies",)])
def test_a_modality_finds_the_studies_that_have_it(faults: tuple[str, ...]) -> None:
    """Asking for a modality without looking at each study shows the same studies as looking at each of them, in the same order."""
    holdings = Holdings(Archive(200, shapes={11: (("CT", 1), ("SM", 1))}), Conduct(faults))
    for modality in ("CT", "MG", "SR", "KO", "OT", "SM", "XA"):
        query = Query({dimse.QUERY_LEVEL: b"STUDY", MODALITIES: modality.encode()})
        assert [match.study for match in query.matches(holdings)] == [study for study in holdings if modality in study.modalities]


def test_days_are_busy_and_quiet_and_times_spread() -> None:
    """Years grow, weekends are quiet, times are spread over the day, and every patient has two studies."""
    studies = [study for study in Archive(20_000) if study.date]
    by_year = Counter(study.date[:4] for study in studies)
    assert by_year["2025"] > 2 * by_year["1998"] > 200
    weekend = sum(date.fromisoformat(study.date).weekday() >= 5 for study in studies)
    assert 0.02 < weekend / len(studies) < 0.1
    hours = Counter(study.time[:2] for study in studies)
    assert len(hours) == 14 and min(hours.values()) > 1000
    assert {2} <= set(Counter(study.patient_id for study in studies).values()) <= {1, 2}


def test_ten_million_studies_cost_neither_time_nor_memory() -> None:
    """A day of the biggest archive is found without making the others, and without an index of them."""
    tracemalloc.start()
    started = time.perf_counter()
    archive = Archive(10_000_000)
    found = list(archive.between("20200108", "20200108"))
    seconds, (_, peak_bytes) = time.perf_counter() - started, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 500 < len(found) < 5000
    assert {"20200108"} == {study.date for study in found}
    assert archive.find(found[0].uid) == found[0]
    assert seconds < 5 and peak_bytes < 16 << 20


def test_pixels_set_the_size_and_limits_are_kept() -> None:
    """`pixels` is the edge of native images; impossible archives are refused."""
    archive = Archive(2, pixels=512)
    native = next(i for s in archive for e in s.series for i in e.instances if i.transfer_syntax.endswith("10008.1.2.1"))
    assert 512 * 512 * 2 < len(archive.dataset(native)) < 512 * 512 * 2 + 2000
    for bad in ({"seed": 10_000}, {"studies": -1}, {"pixels": 1}):
        with pytest.raises(ValueError):
            Archive(**bad)
