"""The walk over a data set's framing: element by element, item by item, fragment by fragment (PS3.5 7.1-7.5, A.4)."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import NoReturn

IMPLICIT_LE = "1.2.840.10008.1.2"
EXPLICIT_LE = "1.2.840.10008.1.2.1"
DEFLATED_LE = "1.2.840.10008.1.2.1.99"
EXPLICIT_BE = "1.2.840.10008.1.2.2"


_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
SOP_CLASS, SOP, STUDY, SERIES = 0x00080016, 0x00080018, 0x0020000D, 0x0020000E
_PIXEL_GROUP = 0x7FE00000
_PIXEL_TAGS = frozenset((0x7FE00008, 0x7FE00009, 0x7FE00010))
SAMPLES, PHOTOMETRIC, FRAMES, ROWS, COLUMNS, BITS = (
    0x00280002,
    0x00280004,
    0x00280008,
    0x00280010,
    0x00280011,
    0x00280100,
)
_PIXEL_PROVIDER_URL = 0x00287FE0
_KEPT = frozenset((SOP_CLASS, SOP, STUDY, SERIES, SAMPLES, PHOTOMETRIC, FRAMES, ROWS, COLUMNS, BITS))
_KEPT_BYTES = 256

_LONG = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
_SHORT = frozenset(
    b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split()  # PS3.5 table 7.1-2
)
_BULK = frozenset((b"OB", b"OW", b"OF", b"OD", b"OL", b"OV"))
_BLANK_VR = frozenset((b"??", b"--", b"  ", b"\0\0"))  # written by old converters for "unknown", with a 16-bit length
PIECE = 1 << 20

# What a frame of the stack holds. *_OPEN ones end with their delimiter, the others where their length says.
_DATASET, _ITEM_OPEN, _SEQUENCE, _SEQUENCE_OPEN, _FRAGMENTS = range(5)


class CannotWalk(Exception):
    """The framing breaks; the text names tags and offsets only."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How far a walk goes: open sequences within each other, elements and items in all, and what a deflated data set may come to."""

    depth: int = 64
    elements: int = 2_000_000
    inflated_bytes: int = 512 << 20


LIMITS = Limits()

@dataclass(slots=True)
class Seen:
    """What a walk has met so far, also when it ends early."""

    kept: dict[int, bytes] = field(default_factory=dict)
    notes: set[str] = field(default_factory=set)
    pixel_offset: int | None = None
    pixel_bytes: int | None = None  # None: none, or in fragments
    provider: bool = False
    big: bool = False
    limits: Limits = LIMITS


def _name(tag: int) -> str:
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"


def _fail(what: str, position: int, tag: int | None = None) -> NoReturn:
    raise CannotWalk(f"{what} at offset {position}" if tag is None else f"{_name(tag)}: {what} at offset {position}")


def _is_explicit(view: memoryview, position: int, end: int, explicit: bool, big: bool) -> bool:
    """Whether the data set that begins here has VRs, told by its first element; `explicit` where that tells nothing."""
    if end - position < 8 or (view[position] in (0xFE, 0xFF) and view[position + 1] in (0xFE, 0xFF)):
        return explicit
    vr = bytes(view[position + 4 : position + 6])
    if explicit:
        return (0x41 <= vr[0] <= 0x5A and 0x41 <= vr[1] <= 0x5A) or vr in (b"??", b"--")
    length: int = _FORMATS[big][2](view, position + 4)[0]
    # Read as a length, two capitals are at least 16 KiB: only where that overruns can they be a VR.
    return (vr in _LONG or vr in _SHORT) and length != _UNDEFINED and length > end - position - 8


_FORMATS = {
    big: tuple(struct.Struct(order + fields).unpack_from for fields in ("HH", "H", "L"))
    for big, order in ((False, "<"), (True, ">"))
}
_HEADS = {big: struct.Struct(order + "HH2sH").unpack_from for big, order in ((False, "<"), (True, ">"))}


def walk(view: memoryview, position: int, transfer_syntax: str, seen: Seen) -> None:  # noqa: PLR0915
    """Walk all elements from `position` to the end of the view. Raises CannotWalk.

    One loop over local names, long as it is: every element of every image passes here, and a call each would cost more than its work.
    """
    size, big, notes, kept = len(view), seen.big, seen.notes, seen.kept
    if position >= size:
        raise CannotWalk("the data set is empty")
    most, deepest = seen.limits.elements, seen.limits.depth
    tags, shorts, longs = _FORMATS[big]
    declared = transfer_syntax != IMPLICIT_LE
    explicit = _is_explicit(view, position, size, declared, big)
    if explicit != declared and transfer_syntax in (IMPLICIT_LE, EXPLICIT_LE, EXPLICIT_BE):
        notes.add("vr-encoding")
    kind, end, last = _DATASET, size, -1
    # The frame at work lies in local names; the ones around it wait here.
    around: list[tuple[int, int, int, bool, bool]] = []
    headers = depth = 0
    odd_end = -1  # where the last element of odd length ended
    while True:
        if position == end and kind in (_DATASET, _SEQUENCE):
            if not around:
                return
            if kind == _SEQUENCE:
                depth -= 1
            kind, end, last, explicit, big = around.pop()
            tags, shorts, longs = _FORMATS[big]
            continue
        if explicit and kind < _SEQUENCE:  # a run of ordinary elements; the first one that is anything else ends it
            heads = _HEADS[big]
            while position + 8 <= end and headers < most:
                group, element, vr, length = heads(view, position)
                tag, after = group << 16 | element, position + 8 + length
                if vr not in _SHORT or not last < tag < _PIXEL_GROUP or after > end or length & 1:
                    break
                if not element or not group or tag == _PIXEL_PROVIDER_URL:
                    break
                if not around and tag in _KEPT:
                    kept.setdefault(tag, bytes(view[position + 8 : min(after, position + 8 + _KEPT_BYTES)]))
                headers += 1
                last, position = tag, after
            if position == end and kind == _DATASET:
                continue
        if position + 8 > end:
            if kind in (_ITEM_OPEN, _SEQUENCE_OPEN, _FRAGMENTS) and position == end:
                _fail("a sequence or item has no delimiter", position)
            if not around and _is_padding(view, position, odd_end):
                notes.add("trailing-padding")
                return
            _fail("an element header is cut", position)
        headers += 1
        if headers > most:
            _fail(f"more than {most} elements", position)
        group, element = tags(view, position)
        tag = group << 16 | element
        length = longs(view, position + 4)[0]

        if kind >= _SEQUENCE:
            position += 8
            if tag == _ITEM:
                if length == _UNDEFINED:
                    if kind == _FRAGMENTS:
                        _fail("a fragment has no length", position - 8)
                elif position + length > end:
                    _fail("an item or fragment overruns what holds it", position - 8)
                if kind == _FRAGMENTS:
                    if length & 1:
                        notes.add("odd-length")
                    position += length
                    continue
                around.append((kind, end, last, explicit, big))
                kind, last = (_ITEM_OPEN, -1) if length == _UNDEFINED else (_DATASET, -1)
                end = end if length == _UNDEFINED else position + length
                inner = _is_explicit(view, position, end, explicit, big)
                if inner != explicit:
                    notes.add("vr-encoding")
                    explicit = inner
                continue
            if tag != _SEQUENCE_END or kind == _SEQUENCE:
                _fail("something else where an item must begin", position - 8, tag)
        elif tag == _ITEM_END and kind == _ITEM_OPEN:
            position += 8
        elif group == 0xFFFE:
            _fail("a stray item or delimiter", position, tag)
        else:
            # -- an element
            if not around and group == 0 and _is_padding(view, position, odd_end):
                notes.add("trailing-padding")
                return
            if tag <= last:
                notes.add("duplicate" if tag == last else "order")
            last = tag
            start = position
            vr = None
            position += 8
            if explicit:
                vr = bytes(view[position - 4 : position - 2])
                if vr in _SHORT:
                    length = shorts(view, position - 2)[0]
                elif vr in _LONG:
                    if position + 4 > end:
                        _fail("the element header is cut", start, tag)
                    length = longs(view, position)[0]
                    position += 4
                else:
                    length, position = _unknown_vr(view, vr, position, end, tag, big)
                    notes.add("unknown-vr")
            if element == 0:
                notes.add("group-length")
            if tag == 0xFFFCFFFC:
                notes.add("trailing-padding")
            if not around:
                if tag in _PIXEL_TAGS and seen.pixel_offset is None:
                    seen.pixel_offset = start
                    seen.pixel_bytes = None if length == _UNDEFINED else length
                elif tag == _PIXEL_PROVIDER_URL:
                    seen.provider = True
            if length != _UNDEFINED:
                if position + length > end:
                    _fail("the value overruns what holds it", start, tag)
                if length & 1:
                    notes.add("odd-length")
                    odd_end = position + length
                if vr != b"SQ":
                    if not around and tag in _KEPT:
                        kept.setdefault(tag, bytes(view[position : position + min(length, _KEPT_BYTES)]))
                    position += length
                    continue
                around.append((kind, end, last, explicit, big))
                kind, end = _SEQUENCE, position + length
            else:
                around.append((kind, end, last, explicit, big))
                if vr in _BULK or tag == 0x7FE00010:
                    kind = _FRAGMENTS
                elif vr is None or vr == b"SQ":
                    kind = _SEQUENCE_OPEN
                elif vr == b"UN":  # its items are Implicit VR Little Endian, whatever stands around (PS3.5 6.2.2 note)
                    kind, explicit, big = _SEQUENCE_OPEN, False, False
                    tags, shorts, longs = _FORMATS[big]
                else:
                    _fail("this VR must have a length", start, tag)
            depth += 1
            if depth > deepest:
                _fail(f"sequences nested deeper than {deepest}", start, tag)
            continue

        # -- a delimiter closed the frame
        if length:
            notes.add("delimiter-length")
        if kind != _ITEM_OPEN:
            depth -= 1
        kind, end, last, explicit, big = around.pop()
        tags, shorts, longs = _FORMATS[big]


def _unknown_vr(view: memoryview, vr: bytes, position: int, end: int, tag: int, big: bool) -> tuple[int, int]:
    """(length, position of the value) of an element whose VR we do not know.

    VRs to come have a 32-bit length (PS3.5 7.1.2); old private ones a 16-bit length, which such a reading overruns.
    """
    _, shorts, longs = _FORMATS[big]
    if vr not in _BLANK_VR and not (0x41 <= vr[0] <= 0x5A and 0x41 <= vr[1] <= 0x5A):
        _fail("no VR", position - 8, tag)
    short: int = shorts(view, position - 2)[0]
    if short == 0 and vr not in _BLANK_VR and position + 4 <= end:
        long: int = longs(view, position)[0]
        if position + 4 + long <= end:
            return long, position + 4
    return short, position


def _is_padding(view: memoryview, position: int, odd_end: int) -> bool:
    """True for a tail of zero bytes: group 0 stands in no data set, so two of them can be no cut header."""
    if len(view) - position < 2 and position != odd_end:
        return False
    pieces = range(position, len(view), PIECE)
    return not any(bytes(view[start : start + PIECE]).strip(b"\0") for start in pieces)
