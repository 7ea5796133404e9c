"""P-DATA-TF PDUs as bytes (PS3.8 9.3.5): how messages are cut into what a peer takes."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

from migrate.dicom.negotiation import DATA

HEADERS = struct.Struct(">BBIIBB")
"""Of a P-DATA PDU and of its first fragment."""
MAX_PDU_BYTES = 64 << 20
"""The longest PDU that is read."""
_SEND_BYTES = 1 << 18
_SMALLEST_PDU = 128  # a peer that announces less is not believed: one byte a PDU would never end


def command_pdu(context_id: int, command: bytes) -> bytes:
    """A command set as one PDU with one fragment."""
    return HEADERS.pack(DATA, 0, len(command) + 6, len(command) + 2, context_id, 3) + command


def framed(context_id: int, command: int, pieces: Iterable[bytes | memoryview], peer_max_pdu: int) -> Iterator[bytearray]:
    """A command set (`command` 1) or data set (0) as PDUs of one fragment each, many of them together; the last one ends it."""
    most = min(max(peer_max_pdu, _SMALLEST_PDU) - 6, _SEND_BYTES)
    out = bytearray()
    held: bytes | memoryview = b""
    for piece in pieces:
        for offset in range(0, len(piece), most):
            if held:
                out += HEADERS.pack(DATA, 0, len(held) + 6, len(held) + 2, context_id, command)
                out += held
                if len(out) >= _SEND_BYTES:
                    yield out
                    out = bytearray()
            held = piece[offset : offset + most]
    out += HEADERS.pack(DATA, 0, len(held) + 6, len(held) + 2, context_id, command | 2)
    out += held
    yield out
