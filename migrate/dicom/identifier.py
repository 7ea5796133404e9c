"""Identifiers: the small data sets that queries and answers are made of (PS3.4 C.4, PS3.5 7.1).

Decoded strictly: what is cut off or does not fill its buffer to the last byte is no answer. Foreign bytes raise
`BadIdentifier` and nothing else.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

IMPLICIT_LE, EXPLICIT_LE = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_MAX_DEPTH = 32
_HEAD, _EXPLICIT_HEAD = struct.Struct("<HHI").unpack_from, struct.Struct("<HH2sH").unpack_from
_LONG = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_SHORT = frozenset(b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())
_VRS = {
    0x00080005: b"CS", 0x00080016: b"UI", 0x00080018: b"UI", 0x00080020: b"DA", 0x00080021: b"DA", 0x00080030: b"TM",
    0x00080050: b"SH", 0x00080052: b"CS", 0x00080054: b"AE", 0x00080056: b"CS", 0x00080058: b"UI", 0x00080060: b"CS",
    0x00080061: b"CS", 0x00080062: b"UI", 0x00080090: b"PN", 0x00081030: b"LO", 0x0008103E: b"LO", 0x00100010: b"PN",
    0x00100020: b"LO", 0x00100030: b"DA", 0x00100040: b"CS", 0x0020000D: b"UI", 0x0020000E: b"UI", 0x00200010: b"SH",
    0x00200011: b"IS", 0x00200013: b"IS", 0x00201200: b"IS", 0x00201202: b"IS", 0x00201204: b"IS", 0x00201206: b"IS",
    0x00201208: b"IS", 0x00201209: b"IS",
}  # fmt: skip


class BadIdentifier(ValueError):
    """A data set that cannot be decoded to its last byte."""


def encode_identifier(keys: Mapping[int, str | bytes], transfer_syntax: str) -> bytes:
    """Keys as a data set in Implicit or Explicit VR Little Endian, by ascending tag.

    Raises ValueError for another transfer syntax, a key that is not ASCII (give bytes to send others), or one too long
    for an explicit VR (65,534 bytes: some 1,000 UIDs).
    """
    explicit = _is_explicit(transfer_syntax)
    out = bytearray()
    for tag, value in sorted(keys.items()):
        vr = _VRS.get(tag) or _looked_up(tag)
        raw = value.encode("ascii") if isinstance(value, str) else value
        if len(raw) & 1:
            raw += b"\0" if vr in (b"UI", b"UN", b"OB") else b" "
        out += struct.pack("<HH", tag >> 16, tag & 0xFFFF)
        if not explicit:
            out += struct.pack("<I", len(raw))
        elif vr in _LONG:
            out += struct.pack("<2s2xI", vr, len(raw))
        elif len(raw) > 0xFFFE:
            raise ValueError(f"the key {tag:08X} is too long for an explicit VR")
        else:
            out += struct.pack("<2sH", vr, len(raw))
        out += raw
    return bytes(out)


def decode_identifier(data: bytes, transfer_syntax: str) -> dict[int, bytes]:
    """Values by tag, as sent, padding included; sequences are left out where they can be told.

    Raises BadIdentifier unless the elements fill `data` exactly, and when one comes twice. Elements may come in any
    order. A sequence of undefined length is walked to its end; what stands in values of known length is not looked at.
    """
    try:
        explicit = _is_explicit(transfer_syntax)
    except ValueError as error:
        raise BadIdentifier(str(error)) from error
    values = _plain_explicit(data) if explicit else _plain_implicit(data)
    return _walked(data, explicit) if values is None else values


def _plain_explicit(data: bytes) -> dict[int, bytes] | None:
    """The values of a data set that has only elements with a 16-bit length and fills `data` exactly; else None."""
    values: dict[int, bytes] = {}
    offset = count = 0
    end = len(data)
    while offset + 8 <= end:
        group, element, vr, length = _EXPLICIT_HEAD(data, offset)
        if group == 0xFFFE or vr not in _SHORT:
            return None
        start = offset + 8
        offset = start + length
        values[group << 16 | element] = data[start:offset]
        count += 1
    return values if offset == end and len(values) == count else None


def _plain_implicit(data: bytes) -> dict[int, bytes] | None:
    """The values of a data set whose lengths are all defined and which fills `data` exactly; else None."""
    values: dict[int, bytes] = {}
    offset = count = 0
    end = len(data)
    while offset + 8 <= end:
        group, element, length = _HEAD(data, offset)
        if group == 0xFFFE:
            return None
        start = offset + 8
        offset = start + length
        values[group << 16 | element] = data[start:offset]
        count += 1
    return values if offset == end and len(values) == count else None


def _walked(data: bytes, explicit: bool) -> dict[int, bytes]:
    """The same for any data set, or what is wrong with it: about three times as slow."""
    values: dict[int, bytes] = {}
    offset = 0
    while offset < len(data):
        tag, vr, length, offset = _head(data, offset, len(data), explicit)
        if tag >> 16 == 0xFFFE:
            raise BadIdentifier("an item stands outside of a sequence")
        if tag in values:
            raise BadIdentifier(f"element {tag:08X} comes twice")
        if length == _UNDEFINED:
            offset = _skip_sequence(data, offset, explicit and vr != b"UN", 1)
            continue
        if vr != b"SQ":
            values[tag] = data[offset : offset + length]
        offset += length
    return values


def _is_explicit(transfer_syntax: str) -> bool:
    if transfer_syntax not in (IMPLICIT_LE, EXPLICIT_LE):
        raise ValueError(f"identifiers are not read in transfer syntax {transfer_syntax!a}")
    return transfer_syntax == EXPLICIT_LE


def _looked_up(tag: int) -> bytes:
    from pydicom.datadict import dictionary_VR  # only for rare keys: the import is slow

    try:
        return str(dictionary_VR(tag)).encode("ascii")[:2]
    except KeyError:
        return b"UN"


def _head(data: bytes, offset: int, end: int, explicit: bool) -> tuple[int, bytes, int, int]:
    """(tag, VR or nothing, length, offset of the value) of the element at `offset`; a defined length fits in `end`."""
    if offset + 8 > end:
        raise BadIdentifier("an element is cut off")
    group, element, length = struct.unpack_from("<HHI", data, offset)
    vr = b""
    offset += 8
    if explicit and group != 0xFFFE:
        vr = data[offset - 4 : offset - 2]
        if vr in _SHORT:
            length >>= 16
        elif vr in _LONG:
            if offset + 4 > end:
                raise BadIdentifier("an element is cut off")
            (length,) = struct.unpack_from("<I", data, offset)
            offset += 4
        else:
            raise BadIdentifier(f"element {group:04X}{element:04X} has no known VR")
    if length == _UNDEFINED:
        if vr not in (b"", b"SQ", b"UN"):
            raise BadIdentifier(f"element {group:04X}{element:04X} has no length")
    elif offset + length > end:
        raise BadIdentifier(f"the value of {group:04X}{element:04X} is cut off")
    return group << 16 | element, vr, length, offset


def _skip_sequence(data: bytes, offset: int, explicit: bool, depth: int) -> int:
    """The offset after a sequence of undefined length that starts at `offset`."""
    if depth > _MAX_DEPTH:
        raise BadIdentifier("sequences are nested too deep")
    while True:
        tag, _, length, offset = _head(data, offset, len(data), explicit)
        if tag == _SEQUENCE_END:
            return offset
        if tag != _ITEM:
            raise BadIdentifier("something else than an item stands in a sequence")
        if length != _UNDEFINED:
            offset += length
            continue
        while True:
            tag, vr, length, offset = _head(data, offset, len(data), explicit)
            if tag == _ITEM_END:
                break
            if tag >> 16 == 0xFFFE:
                raise BadIdentifier("an item ends without its delimiter")
            if length == _UNDEFINED:
                offset = _skip_sequence(data, offset, explicit and vr != b"UN", depth + 1)
            else:
                offset += length
