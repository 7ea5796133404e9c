"""The scanner: whole data sets are walked, cut ones never, and nothing makes it raise."""

from __future__ import annotations

import mmap
import random
import re
import struct
import tempfile
import zlib
from pathlib import Path

import pydicom
import pydicom.data
import pytest
from awscrt.checksums import crc64nvme
from hypothesis import given, settings
from hypothesis import strategies as st

from migrate.dicom.framing import DEFLATED_LE, EXPLICIT_BE, EXPLICIT_LE, IMPLICIT_LE, LIMITS, Limits
from migrate.dicom.part10 import read_header
from migrate.dicom.scanner import Scan, scan, scan_file

JPEG = "1.2.840.10008.1.2.4.50"
LONG = {"OB", "OW", "SQ", "UN", "UT"}
UNDEFINED = 0xFFFFFFFF


def element(tag: int, vr: str, value: bytes, syntax: str = EXPLICIT_LE, length: int | None = None) -> bytes:
    order = ">" if syntax == EXPLICIT_BE else "<"
    length = len(value) if length is None else length
    head = struct.pack(order + "HH", tag >> 16, tag & 0xFFFF)
    if syntax == IMPLICIT_LE:
        return head + struct.pack("<L", length) + value
    if vr in LONG:
        return head + vr.encode() + b"\0\0" + struct.pack(order + "L", length) + value
    return head + vr.encode() + struct.pack(order + "H", length) + value


def mark(tag: int, length: int = 0, order: str = "<") -> bytes:
    return struct.pack(order + "HHL", tag >> 16, tag & 0xFFFF, length)


ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
UIDS = ((0x00080016, b"1.2.3\0"), (0x00080018, b"1.2.4 "), (0x0020000D, b"1.2.50"), (0x0020000E, b"1.2.6\0\0\0"))


def head(syntax: str = EXPLICIT_LE) -> bytes:
    return b"".join(element(tag, "UI", value, syntax) for tag, value in UIDS)


def image(pixel_bytes: int, syntax: str = EXPLICIT_LE) -> bytes:
    """Four rows of four 16-bit pixels, if `pixel_bytes` is 32."""
    order = ">" if syntax == EXPLICIT_BE else "<"
    numbers = ((0x00280002, 1), (0x00280010, 4), (0x00280011, 4), (0x00280100, 16))
    body = b"".join(element(tag, "US", struct.pack(order + "H", value), syntax) for tag, value in numbers)
    return head(syntax) + body + element(0x7FE00010, "OW", bytes(range(pixel_bytes)), syntax)


def nested(depth: int) -> bytes:
    inner = b""
    for _ in range(depth):
        inner = mark(ITEM, UNDEFINED) + inner + mark(ITEM_END)
        inner = element(0x00081140, "SQ", inner + mark(SEQUENCE_END), length=UNDEFINED)
    return inner


@pytest.mark.parametrize("syntax", [EXPLICIT_LE, IMPLICIT_LE, EXPLICIT_BE])
def test_uids_and_pixels_of_the_top_level(syntax: str) -> None:
    """Trailing padding goes, and the checksum covers everything from the pixel data element on."""
    data = image(32, syntax)
    start = data.rindex(bytes(range(32))) - (8 if syntax == IMPLICIT_LE else 12)
    expected = Scan("1.2.3", "1.2.4", "1.2.50", "1.2.6", (), None, start, crc64nvme(data[start:]))
    assert expected == scan(data, 0, syntax)
    assert expected == scan(memoryview(data), 0, syntax)


def test_nested_uids_do_not_count() -> None:
    """A UID inside of a sequence is another object's."""
    inner = mark(ITEM, UNDEFINED) + head() + mark(ITEM_END) + mark(SEQUENCE_END)
    result = scan(element(0x00081140, "SQ", inner, length=UNDEFINED), 0, EXPLICIT_LE)
    assert (result.error, result.sop, result.study) == (None, "", "")


FRAGMENTS = mark(ITEM) + mark(ITEM, 4) + b"abcd" + mark(SEQUENCE_END)
UN_ITEMS = mark(ITEM, UNDEFINED) + element(0x00091001, "", b"ab", IMPLICIT_LE) + mark(ITEM_END) + mark(SEQUENCE_END)
WALKABLE = [
    ("plain", head(), EXPLICIT_LE, ()),
    ("fragments", head() + element(0x7FE00010, "OB", FRAGMENTS, length=UNDEFINED), JPEG, ()),
    ("implicit in UN", head() + element(0x00290010, "UN", UN_ITEMS, length=UNDEFINED), EXPLICIT_LE, ()),
    ("implicit in UN, big endian", head(EXPLICIT_BE) + element(0x00290010, "UN", UN_ITEMS, EXPLICIT_BE, UNDEFINED),
     EXPLICIT_BE, ()),
    ("order", head() + element(0x00100020, "LO", b"P1"), EXPLICIT_LE, ("order",)),
    ("duplicate", head() + element(0x0020000E, "UI", b"9\0"), EXPLICIT_LE, ("duplicate",)),
    ("odd length", head() + element(0x00400001, "LO", b"abc"), EXPLICIT_LE, ("odd-length",)),
    ("unknown VR, 16 bit", head() + element(0x00400001, "ZZ", b"abcd"), EXPLICIT_LE, ("unknown-vr",)),
    ("unknown VR, 32 bit", head() + b"\x40\0\x01\0ZZ\0\0\x04\0\0\0abcd", EXPLICIT_LE, ("unknown-vr",)),
    ("blank VR", head() + element(0x00400001, "??", b"abcd"), EXPLICIT_LE, ("unknown-vr",)),
    ("group length", element(0x00080000, "UL", b"\0\0\0\0") + head(), EXPLICIT_LE, ("group-length",)),
    ("padding element", head() + element(0xFFFCFFFC, "OB", bytes(8)), EXPLICIT_LE, ("trailing-padding",)),
    ("zero bytes", head() + bytes(300), EXPLICIT_LE, ("trailing-padding",)),
    ("pad after odd", head() + element(0x7FE00010, "OB", b"abc") + b"\0", EXPLICIT_LE,
     ("odd-length", "trailing-padding")),
    ("no pixels", image(32)[:-44], EXPLICIT_LE, ("no-pixels",)),
    ("short pixels", image(30), EXPLICIT_LE, ("short-pixels",)),
    ("other encoding than said", head(IMPLICIT_LE), EXPLICIT_LE, ("vr-encoding",)),
    ("other encoding than said, the other way", head(), IMPLICIT_LE, ("vr-encoding",)),
    ("private syntax, implicit", head(IMPLICIT_LE), "1.2.840.113619.5.2", ()),
    ("as deep as allowed", head() + nested(LIMITS.depth), EXPLICIT_LE, ("order",)),
]  # fmt: skip


@pytest.mark.parametrize(("data", "syntax", "notes"), [case[1:] for case in WALKABLE], ids=[c[0] for c in WALKABLE])
def test_deviations_are_noted_and_no_more(data: bytes, syntax: str, notes: tuple[str, ...]) -> None:
    """What old archives are full of is walked, and named."""
    result = scan(data, 0, syntax)
    assert (None, notes) == (result.error, result.notes)
    assert (result.sop_class, result.sop) == ("1.2.3", "1.2.4")


BROKEN = [
    ("empty", b"", "empty"),
    ("half a header", head() + b"\x40\0\x01", "header is cut"),
    ("one zero byte", head() + b"\0", "header is cut"),
    ("value overruns", head() + element(0x7FE00010, "OB", b"abc", length=0xFFFFFFFE), r"\(7FE0,0010\).*overruns"),
    ("long header cut", head() + element(0x7FE00010, "OB", b"")[:10], "header is cut"),
    ("fragments without end", head() + element(0x7FE00010, "OB", FRAGMENTS[:-8], length=UNDEFINED), "no delimiter"),
    ("fragment overruns", element(0x7FE00010, "OB", mark(ITEM, 50) + b"abc", length=UNDEFINED), "overruns"),
    ("fragment without length", element(0x7FE00010, "OB", mark(ITEM, UNDEFINED), length=UNDEFINED), "no length"),
    ("sequence without end", element(0x00081140, "SQ", b"", length=UNDEFINED), "no delimiter"),
    ("item overruns its sequence", element(0x00081140, "SQ", mark(ITEM, 8) + b"ab") + bytes(9), "overruns"),
    ("stray item", head() + mark(ITEM), "stray"),
    ("stray delimiter", head() + mark(SEQUENCE_END), "stray"),
    ("text without length", head() + element(0x00400001, "LO", b"", length=0)[:6] + b"\xff\xff", "overruns"),
    ("UT without length", head() + element(0x00400001, "UT", b"", length=UNDEFINED), "must have a length"),
    ("no VR", head() + element(0x00400001, "\x01\x02", b""), "no VR"),
    ("too deep", nested(LIMITS.depth + 1), "deeper"),
    ("absurdly deep", nested(3000), "deeper"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "error"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_what_cannot_be_walked_is_named(data: bytes, error: str) -> None:
    """Overruns, cuts, missing and stray delimiters and hostile nesting are errors, without a checksum."""
    result = scan(data, 0, EXPLICIT_LE)
    assert result.error is not None
    assert re.search(error, result.error), result.error
    assert result.pixel_crc64 is None


def test_too_many_elements_end_the_walk() -> None:
    """A flood of tiny elements is not walked for ever."""
    flood = element(0x00400001, "LO", b"") * 2000
    assert "more than 1000 elements" in (scan(flood, 0, EXPLICIT_LE, limits=Limits(elements=1000)).error or "")


def deflated(data: bytes) -> bytes:
    stream = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return stream.compress(data) + stream.flush()


def test_deflated_data_sets_are_inflated_within_a_limit() -> None:
    """A deflated data set is walked like a plain one, cut or damaged ones are not, and a bomb ends at the cap."""
    packed = deflated(image(32))
    result = scan(packed, 0, DEFLATED_LE)
    plain = scan(image(32), 0, EXPLICIT_LE)
    assert (None, plain.sop, plain.pixel_crc64, None) == (
        result.error, result.sop, result.pixel_crc64, result.pixel_offset
    )  # fmt: skip
    assert all(scan(packed[:cut], 0, DEFLATED_LE).error for cut in range(len(packed)))
    assert scan(packed + b"\0", 0, DEFLATED_LE).notes == ()
    assert scan(packed + bytes(8), 0, DEFLATED_LE).notes == ("trailing-padding",)
    assert "follow" in (scan(packed + bytes(9), 0, DEFLATED_LE).error or "")
    bomb = deflated(head() + element(0x7FE00010, "OB", bytes(8 << 20)))
    assert "inflates to more" in (scan(bomb, 0, DEFLATED_LE, limits=Limits(inflated_bytes=1 << 20)).error or "")


@pytest.mark.parametrize("size", [32, 1 << 20])
def test_what_is_inflated_stands_beside_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """An image of a patient is inflated in staging, not in TMPDIR, and no file of it stays."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    path = tmp_path / "a.dcm"
    path.write_bytes(deflated(head() + element(0x7FE00010, "OB", random.Random(1).randbytes(size))))
    assert scan_file(path, 0, DEFLATED_LE).error is None
    assert list(tmp_path.iterdir()) == [path]


def test_files_small_and_mapped_give_the_same(tmp_path: Path) -> None:
    """A file is walked like its bytes, at an offset, read whole or mapped, and an empty one is an error."""
    for size in (32, 1 << 20):
        data = head() + element(0x7FE00010, "OB", bytes(size))
        path = tmp_path / "a.dcm"
        path.write_bytes(b"x" * 100 + data)
        expected = scan(b"x" * 100 + data, 100, EXPLICIT_LE)
        assert expected == scan_file(path, 100, EXPLICIT_LE)
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            assert expected == scan(mapped, 100, EXPLICIT_LE)
    path.write_bytes(b"")
    assert scan_file(path, 0, EXPLICIT_LE).error == scan_file(path, 352, EXPLICIT_LE).error == "the data set is empty"


# -- invariants
WHOLE = {
    "native": (image(32), EXPLICIT_LE),
    "implicit": (image(32, IMPLICIT_LE), IMPLICIT_LE),
    "big endian": (image(32, EXPLICIT_BE), EXPLICIT_BE),
    "fragments": (head() + element(0x7FE00010, "OB", FRAGMENTS, length=UNDEFINED), JPEG),
    "sequences": (element(0x00080005, "CS", b"") + nested(4) + element(0x00100020, "LO", b"ab"), EXPLICIT_LE),
}


def boundaries(data: bytes, syntax: str) -> set[int]:
    """Where pydicom, reading on its own, sees top-level elements begin."""
    from pydicom.filebase import DicomBytesIO
    from pydicom.filereader import data_element_generator

    little, implicit = syntax != EXPLICIT_BE, syntax == IMPLICIT_LE
    stream = DicomBytesIO(data)
    ends = {0}
    for _ in data_element_generator(stream, implicit, little):
        ends.add(stream.tell())
    return ends


@pytest.mark.parametrize("name", list(WHOLE))
def test_every_cut_inside_an_element_is_an_error(name: str) -> None:
    """A data set cut anywhere but between two top-level elements never passes."""
    data, syntax = WHOLE[name]
    assert scan(data, 0, syntax).error is None
    passed = {cut for cut in range(len(data) + 1) if scan(data[:cut], 0, syntax).error is None}
    assert passed == boundaries(data, syntax) - {0}


@settings(max_examples=400)
@given(st.sampled_from(sorted(WHOLE)), st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=8))
def test_changed_bytes_never_raise(name: str, changes: list[tuple[int, int]]) -> None:
    """Whatever stands in a data set, the answer is a Scan."""
    data, syntax = WHOLE[name]
    spoilt = bytearray(data)
    for position, value in changes:
        spoilt[position % len(spoilt)] = value
    assert isinstance(scan(spoilt, 0, syntax), Scan)


@settings(max_examples=400)
@given(
    st.binary(max_size=300),
    st.integers(0, 320),
    st.sampled_from([EXPLICIT_LE, IMPLICIT_LE, EXPLICIT_BE, DEFLATED_LE, "x"]),
)
def test_any_bytes_never_raise(data: bytes, offset: int, syntax: str) -> None:
    """Noise in any transfer syntax, at any offset, is an answer too."""
    assert isinstance(scan(data, offset, syntax), Scan)


# -- against pydicom
ROOT = Path(pydicom.data.__file__).parent
CANNOT_BE_WALKED = {
    "MR_truncated.dcm",  # cut on purpose
    "rtplan_truncated.dcm",
    "DICOMDIR-nooffset",  # a sequence item that is longer than its sequence
}
WITHOUT_STRICT_META = {
    "empty_charset_LEI.dcm",
    "meta_missing_tsyntax.dcm",
    "nested_priv_SQ.dcm",
    "no_meta_group_length.dcm",
}


@pytest.mark.filterwarnings("ignore")
def test_all_files_that_pydicom_ships_are_walked_with_the_same_uids() -> None:
    """Another reader sees the same four UIDs in its own odd files; what cannot be walked is listed here."""
    walked, broken, headless = 0, set(), set()
    for path in sorted(ROOT.rglob("*")):
        if not path.is_file():
            continue
        try:
            dataset = pydicom.dcmread(path)
        except Exception:
            continue  # no DICOM file at all
        try:
            with path.open("rb") as file:
                _, _, syntax, offset = read_header(file)
        except ValueError:
            headless.add(path.name)
            continue
        result = scan_file(path, offset, syntax)
        if result.error:
            broken.add(path.name)
            continue
        names = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
        expected = tuple(str(dataset.get(name) or "") for name in names)
        assert expected == (result.sop_class, result.sop, result.study, result.series), path.name
        has_pixels = any(name in dataset for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"))
        assert has_pixels == (result.pixel_crc64 is not None), path.name
        walked += 1
    assert broken == CANNOT_BE_WALKED
    assert {name for name in headless if name.endswith(".dcm")} >= WITHOUT_STRICT_META
    assert walked > 50
