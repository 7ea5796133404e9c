"""Part 10 files around untouched data-set bytes: preamble and file meta information (PS3.10 7.1)."""

from __future__ import annotations

import functools
import struct
from io import BytesIO
from typing import BinaryIO

IMPLEMENTATION_CLASS_UID = "2.25.168270613318527431975262813930472806713"
"""Ours, for good: it stands in every file we write, so a release must not change it."""

_LONG = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
_MAX_META_BYTES = 1 << 20
_MAX_UID_BYTES = 1024


def file_header(sop_class: str, sop_instance: str, transfer_syntax: str) -> bytes:
    """The bytes that make a received data set a file: the same three UIDs give the same bytes in every release.

    128 zero bytes, "DICM", then group 2 in Explicit VR Little Endian with its length (PS3.10 7.1). The UIDs are written
    as the peer said them, without trailing padding, also where they are no valid UIDs.
    Raises ValueError if one is longer than 1,024 characters or not ASCII.
    """
    before, after = _around(sop_class, transfer_syntax)
    meta = before + _uid(0x0003, sop_instance) + after
    return bytes(128) + b"DICM" + struct.pack("<HH2sHL", 2, 0, b"UL", 4, len(meta)) + meta


@functools.lru_cache(256)
def _around(sop_class: str, transfer_syntax: str) -> tuple[bytes, bytes]:
    """What stands before and after the one element that every instance has of its own."""
    version = struct.pack("<HH2s2xL2s", 2, 1, b"OB", 2, b"\x00\x01")
    writer = _uid(0x0012, IMPLEMENTATION_CLASS_UID)
    return version + _uid(0x0002, sop_class), _uid(0x0010, transfer_syntax) + writer


def _uid(element: int, text: str) -> bytes:
    value = text.rstrip("\0 ").encode("ascii")
    if len(value) > _MAX_UID_BYTES:
        raise ValueError(f"the UID for (0002,{element:04X}) is {len(value)} bytes long")
    value += b"\0" * (len(value) & 1)
    return struct.pack("<HH2sH", 2, element, b"UI", len(value)) + value


def read_header(file: BinaryIO | bytes) -> tuple[str, str, str, int]:
    """(SOP class, SOP instance, transfer syntax, offset of the data set) of a Part 10 file, read from its beginning.

    Strict: the preamble, the prefix, the group length and the three UIDs must be there, and the elements must fill the
    group exactly. Raises ValueError where they do not, OSError as the file does.
    """
    source = BytesIO(file) if isinstance(file, bytes) else file
    start = source.read(144)
    if len(start) < 144 or start[128:132] != b"DICM":
        raise ValueError("not a Part 10 file: no DICM prefix")
    group, element, vr, size, length = struct.unpack_from("<HH2sHL", start, 132)
    if (group, element, vr, size) != (2, 0, b"UL", 4):
        raise ValueError("the file meta information does not begin with its length")
    if length > _MAX_META_BYTES:
        raise ValueError(f"the file meta information claims {length} bytes")
    meta = source.read(length)
    if len(meta) != length:
        raise ValueError("the file meta information is cut")
    uids: dict[int, str] = {}
    position = 0
    while position < length:
        if position + 8 > length:
            raise ValueError("an element header of the file meta information is cut")
        group, element, vr, size = struct.unpack_from("<HH2sH", meta, position)
        position += 8
        if vr in _LONG:
            if position + 4 > length:
                raise ValueError("an element header of the file meta information is cut")
            (size,) = struct.unpack_from("<L", meta, position)
            position += 4
        if group != 2 or position + size > length:
            raise ValueError(f"({group:04X},{element:04X}) does not fit into the file meta information")
        if element in (0x0002, 0x0003, 0x0010):
            uids[element] = meta[position : position + size].decode("ascii").rstrip("\0 ")
        position += size
    for element in (0x0002, 0x0003, 0x0010):
        if not uids.get(element):
            raise ValueError(f"the file meta information has no (0002,{element:04X})")
    return uids[0x0002], uids[0x0003], uids[0x0010], 144 + length
