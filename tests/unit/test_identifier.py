"""Identifiers: we read what pydicom reads, a cut one is refused, and foreign bytes raise nothing but BadIdentifier."""

from __future__ import annotations

import struct
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.tag import Tag

from migrate.dicom.identifier import EXPLICIT_LE, IMPLICIT_LE, BadIdentifier, decode_identifier, encode_identifier
from migrate.dicom.scu import clean_text

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")  # what is odd here is meant to be

SYNTAXES = st.sampled_from((IMPLICIT_LE, EXPLICIT_LE))
STUDY_UID, STUDY_COUNT, COMMENTS = 0x0020000D, 0x00201208, 0x00204000
CHARSET = 0x00080005
SEQUENCES = (0x00081110, 0x00400275)
DECODED = (CHARSET, *SEQUENCES)

UIDS = st.lists(st.integers(0, 10**9), min_size=1, max_size=6).map(lambda parts: ".".join(map(str, parts)))
CODES = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_ ", max_size=16)
# What is written in a charset that was never declared, or wrongly: any bytes but the backslash, which pydicom splits at.
TEXTS = st.binary(max_size=40).map(lambda raw: raw.replace(b"\\", b"/"))
VALUES: dict[int, st.SearchStrategy[object]] = {
    CHARSET: st.sampled_from(("", "ISO_IR 100", "ISO_IR 192", "\\ISO 2022 IR 87")),
    0x00080016: UIDS,
    0x00080018: UIDS,
    0x00080020: st.dates(date(1900, 1, 1)).map(lambda day: day.strftime("%Y%m%d")),
    0x00080030: st.times().map(lambda time: time.strftime("%H%M%S.%f")),
    0x00080050: CODES,
    0x00080052: st.sampled_from(("STUDY", "SERIES", "IMAGE")),
    0x00080054: CODES,
    0x00080061: st.lists(st.sampled_from(("CT", "MR", "SR", "KO")), max_size=4),
    0x00081190: st.just("http://pacs.example/studies"),  # UR: a 32-bit length
    0x00100020: CODES,
    STUDY_UID: UIDS,
    0x0020000E: UIDS,
    0x00200013: st.integers(-(2**31), 2**31 - 1).map(str),
    STUDY_COUNT: st.integers(0, 10**9).map(str),
    COMMENTS: st.text("abc ", max_size=40),
    0x00280010: st.integers(0, 65535),
}  # fmt: skip
RAW = {0x00081030: "LO", 0x00100010: "PN", 0x00091001: "UN", 0x7FE10010: "OB"}


@st.composite
def datasets(draw: st.DrawFn, depth: int = 2) -> Dataset:
    """Identifiers as a PACS may send them: the usual elements, undeclared bytes, private ones, sequences of both kinds."""
    dataset = Dataset()
    for tag in draw(st.sets(st.sampled_from(sorted(VALUES)), max_size=10)):
        dataset.add_new(tag, dictionary_VR(tag), draw(VALUES[tag]))
    for tag in draw(st.sets(st.sampled_from(sorted(RAW)))):
        raw = draw(TEXTS)
        raw += b" " * (len(raw) % 2)
        dataset[tag] = RawDataElement(Tag(tag), RAW[tag], len(raw), raw, 0, False, True)
    for tag in draw(st.sets(st.sampled_from(SEQUENCES))) if depth else ():
        items = draw(st.lists(datasets(depth - 1), max_size=2))
        for item in items:
            item.is_undefined_length_sequence_item = draw(st.booleans())
        element = DataElement(tag, "SQ", items)
        element.is_undefined_length = draw(st.booleans())
        dataset[tag] = element
    return dataset


def written(dataset: Dataset, syntax: str) -> bytes:
    file = DicomBytesIO()
    file.is_little_endian, file.is_implicit_VR = True, syntax == IMPLICIT_LE
    write_dataset(file, dataset)
    return file.getvalue()


def read_by_pydicom(raw: bytes, syntax: str) -> dict[int, bytes]:
    """The values as pydicom found them, but for sequences and the charset, which it decodes at once."""
    meta = struct.pack("<HH2sHI", 2, 0, b"UL", 4, 28) + struct.pack("<HH2sH20s", 2, 0x10, b"UI", 20, syntax.encode())
    dataset = dcmread(DicomBytesIO(bytes(128) + b"DICM" + meta + raw))
    elements = {int(tag): dataset.get_item(tag) for tag in dataset.keys()}  # noqa: SIM118 - iterating would decode
    return {tag: bytes(element.value or b"") for tag, element in elements.items() if tag not in DECODED}


@given(datasets(), SYNTAXES)
def test_we_read_what_pydicom_reads(dataset: Dataset, syntax: str) -> None:
    """Whatever pydicom wrote, in both syntaxes, we find the same values, and no sequence that can be told as one."""
    raw = written(dataset, syntax)
    values = decode_identifier(raw, syntax)
    assert read_by_pydicom(raw, syntax) == {tag: value for tag, value in values.items() if tag not in DECODED}
    assert syntax == IMPLICIT_LE or not values.keys() & set(SEQUENCES)


@given(datasets(), SYNTAXES)
def test_a_cut_identifier_is_refused(dataset: Dataset, syntax: str) -> None:
    """Cut between two elements it is one with fewer of them; cut anywhere else it is refused."""
    whole = written(dataset, syntax)
    values = decode_identifier(whole, syntax)
    tags = sorted(dataset.keys())
    ends: dict[int, set[int]] = {}
    for count in range(len(tags) + 1):
        fewer = Dataset()
        fewer.update({tag: dataset.get_item(tag) for tag in tags[:count]})
        ends[len(written(fewer, syntax))] = set(map(int, tags[:count]))
    for cut in range(len(whole) + 1):
        if cut in ends:
            assert {t: v for t, v in values.items() if t in ends[cut]} == decode_identifier(whole[:cut], syntax)
        else:
            with pytest.raises(BadIdentifier):
                decode_identifier(whole[:cut], syntax)


@given(datasets(), SYNTAXES, st.data())
def test_a_changed_identifier_raises_nothing_else(dataset: Dataset, syntax: str, data: st.DataObject) -> None:
    """With a byte changed, put in or taken out, an identifier is read or refused."""
    raw = bytearray(written(dataset, syntax))
    place = data.draw(st.integers(0, len(raw)))
    raw[place : place + data.draw(st.integers(0, 1))] = data.draw(st.binary(max_size=1))
    try:
        decode_identifier(bytes(raw), syntax)
    except BadIdentifier:
        return


@given(st.binary(max_size=120), st.sampled_from((IMPLICIT_LE, EXPLICIT_LE, "1.2")))
def test_any_bytes_as_identifier(raw: bytes, syntax: str) -> None:
    """Any bytes decode or raise BadIdentifier."""
    try:
        decode_identifier(raw, syntax)
    except BadIdentifier:
        return


@pytest.mark.parametrize("syntax", [IMPLICIT_LE, EXPLICIT_LE])
def test_what_is_too_long_for_its_vr_is_read(syntax: str) -> None:
    """Text of more than 65,534 bytes, for which an explicit VR has no room, is written as UN and read like any other."""
    dataset = Dataset()
    dataset.ImageComments = "x" * 70000  # LT
    dataset.StudyInstanceUID = "1.2"
    assert decode_identifier(written(dataset, syntax), syntax) == {COMMENTS: b"x" * 70000, STUDY_UID: b"1.2\0"}


@pytest.mark.parametrize("syntax", [IMPLICIT_LE, EXPLICIT_LE])
def test_what_comes_twice_or_out_of_place_is_refused(syntax: str) -> None:
    """An element that comes twice, and an item outside of a sequence, are no identifier; another order is one."""
    uid, day = (encode_identifier(keys, syntax) for keys in ({STUDY_UID: "1.2"}, {0x00080020: "20200101"}))
    assert decode_identifier(uid + day, syntax) == {STUDY_UID: b"1.2\0", 0x00080020: b"20200101"}
    for item in (b"", struct.pack("<HHI", 0xFFFE, 0xE000, 0), struct.pack("<HHI", 0xFFFE, 0xE000, 0x4955)):
        with pytest.raises(BadIdentifier):
            decode_identifier(uid + day + (item + bytes(0x4955) if item else uid), syntax)


KEYS = st.dictionaries(
    st.sampled_from((0x00080020, 0x00080052, STUDY_UID, COMMENTS, 0x00091001)), st.text("1.", max_size=9)
)


@given(KEYS, SYNTAXES)
def test_identifier_is_read_back(keys: dict[int, str], syntax: str) -> None:
    """What is asked is what we and pydicom read of it, by tag, but for the padding."""
    raw = encode_identifier(keys, syntax)
    values = decode_identifier(raw, syntax)
    assert {tag: value.decode().strip("\0 ") for tag, value in values.items()} == keys
    assert read_by_pydicom(raw, syntax) == values


def test_deep_nesting_is_refused() -> None:
    """Sequences nested a thousand deep raise BadIdentifier, not a stack overflow."""
    level = struct.pack("<HHI", 0x40, 0x275, 0xFFFFFFFF) + struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    with pytest.raises(BadIdentifier):
        decode_identifier(level * 1000, IMPLICIT_LE)


def test_a_nul_within_a_value_does_not_end_it() -> None:
    """Padding goes; a NUL in the middle, at which SQLite's quote() would cut the event that puts a row on record, is shown as U+FFFD."""
    assert clean_text(b"CT\0MR \0") == "CT\ufffdMR"
