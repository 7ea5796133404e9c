"""A small encoder for synthetic data sets: the same elements give the same bytes for ever (PS3.5 7.1)."""

from __future__ import annotations

import functools
import math
import struct
from array import array
from collections.abc import Iterable, Mapping

IMPLICIT_LE, EXPLICIT_LE = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"

Items = tuple[Mapping[int, "Element"], ...]
Element = tuple[str, "str | int | bytes | Items"]
"""(VR, value): an ASCII text, a number for US and UL, bytes, or the items of a sequence."""

_LONG = frozenset(("OB", "OW", "SQ", "UN", "UT"))


def encode(elements: Mapping[int, Element], transfer_syntax: str, pixels: Iterable[bytes] | None = None) -> bytes:
    """A data set in Implicit VR Little Endian or, for every other transfer syntax, Explicit VR Little Endian.

    `pixels` are the frames: joined for the two native syntaxes, a fragment each with an empty offset table otherwise.
    """
    explicit = transfer_syntax != IMPLICIT_LE
    body = b"".join(_element(tag, *elements[tag], explicit) for tag in sorted(elements))
    if pixels is None:
        return body
    if transfer_syntax in (IMPLICIT_LE, EXPLICIT_LE):
        return body + _element(0x7FE00010, "OW", b"".join(pixels), explicit)
    fragments = b"".join(struct.pack("<HHL", 0xFFFE, 0xE000, len(frame)) + frame for frame in pixels)
    start = struct.pack("<HH2s2xL", 0x7FE0, 0x0010, b"OB", 0xFFFFFFFF) + struct.pack("<HHL", 0xFFFE, 0xE000, 0)
    return body + start + fragments + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)


def _element(tag: int, vr: str, value: str | int | bytes | Items, explicit: bool) -> bytes:
    length = None
    if isinstance(value, int):
        raw = struct.pack("<H" if vr == "US" else "<L", value)
    elif isinstance(value, str):
        raw = value.encode("ascii")
    elif isinstance(value, bytes):
        raw = value
    else:
        raw = b"".join(_item(item, explicit) for item in value) + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
        length = 0xFFFFFFFF
    if len(raw) & 1:
        raw += b"\0" if vr in ("UI", "OB", "UN") else b" "
    length = len(raw) if length is None else length
    group, element = tag >> 16, tag & 0xFFFF
    if not explicit:
        return struct.pack("<HHL", group, element, length) + raw
    if vr in _LONG:
        return struct.pack("<HH2s2xL", group, element, vr.encode(), length) + raw
    return struct.pack("<HH2sH", group, element, vr.encode(), length) + raw


def _item(elements: Mapping[int, Element], explicit: bool) -> bytes:
    body = b"".join(_element(tag, *elements[tag], explicit) for tag in sorted(elements))
    return struct.pack("<HHL", 0xFFFE, 0xE000, len(body)) + body


def native_frame(edge: int, turn: int) -> bytes:
    """A square of `edge` x `edge` 16-bit pixels (12 of them used): a disc, moved down by `turn` rows."""
    rows = _disc(edge)
    cut = (turn % edge) * edge * 2
    return rows[cut:] + rows[:cut]


@functools.lru_cache(4)
def _disc(edge: int) -> bytes:
    middle, values = (edge - 1) / 2, array("H")
    for y in range(edge):
        for x in range(edge):
            away = math.hypot(x - middle, y - middle) / middle
            values.append(int(3000 - 2400 * away) if away < 0.9 else 40)
    return struct.pack(f"<{len(values)}H", *values)
