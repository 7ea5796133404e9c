"""File headers: the same UIDs give the same bytes, and what is no header is refused."""

from __future__ import annotations

import hashlib
import io

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_file_meta_info

from migrate.dicom.part10 import IMPLEMENTATION_CLASS_UID, file_header, read_header

CT, SOP, EXPLICIT_LE = "1.2.840.10008.5.1.4.1.1.2", "2.25.12345", "1.2.840.10008.1.2.1"
uids = st.from_regex(r"[0-9]{1,20}(\.[0-9]{1,20}){0,2}", fullmatch=True)


def test_header_is_the_same_in_every_release() -> None:
    """The bytes are fixed for good: object hashes depend on them."""
    header = file_header(CT, SOP, EXPLICIT_LE)
    assert header[:132] == bytes(128) + b"DICM"
    assert hashlib.sha256(header).hexdigest() == "5a49ada21109cdfa36d64d2b6e1cd805a40a3b404ed011bd7ee9be3d37f774ba"


def test_pydicom_reads_the_header(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Another reader finds our five elements and nothing else."""
    path = tmp_path / "a.dcm"
    path.write_bytes(file_header(CT, SOP, EXPLICIT_LE))
    meta = read_file_meta_info(path)
    assert [element.tag for element in meta] == [0x00020000, 0x00020001, 0x00020002, 0x00020003, 0x00020010, 0x00020012]
    assert (meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID) == (CT, SOP)
    assert (meta.TransferSyntaxUID, meta.ImplementationClassUID) == (EXPLICIT_LE, IMPLEMENTATION_CLASS_UID)
    assert pydicom.dcmread(DicomBytesIO(path.read_bytes())).file_meta == meta


@given(uids, uids, uids)
def test_round_trip(sop_class: str, sop: str, syntax: str) -> None:
    """What was written is read again, with the offset at which the data set begins."""
    header = file_header(sop_class, sop, syntax)
    assert read_header(header + b"rest") == (sop_class, sop, syntax, len(header))
    assert read_header(io.BytesIO(header)) == (sop_class, sop, syntax, len(header))


@given(st.data())
def test_cut_or_spoilt_headers_raise_value_error_only(data: st.DataObject) -> None:
    """Every truncation is refused, and changed bytes raise nothing but ValueError."""
    header = file_header(CT, SOP, EXPLICIT_LE)
    with pytest.raises(ValueError):
        read_header(header[: data.draw(st.integers(0, len(header) - 1))])
    spoilt = bytearray(header)
    for _ in range(3):
        spoilt[data.draw(st.integers(128, len(header) - 1))] = data.draw(st.integers(0, 255))
    try:
        read_header(bytes(spoilt))
    except ValueError as error:
        assert SOP not in str(error)


def test_impossible_uids_are_refused() -> None:
    """A UID beyond any reason cannot make a header."""
    with pytest.raises(ValueError):
        file_header(CT, "1" * 1025, EXPLICIT_LE)
    with pytest.raises(ValueError):
        file_header(CT, "1.2.é", EXPLICIT_LE)
