"""The A-ASSOCIATE PDUs as bytes (PS3.8 9.3.2 to 9.3.4): a small codec that is lenient in what it takes.

Repeated and even presentation context IDs, unknown items and odd AE titles are read as they are; a length that points
beyond its PDU is a `Malformed`, and nothing else is ever raised on foreign bytes.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from migrate.dicom.part10 import IMPLEMENTATION_CLASS_UID
from migrate.dicom.wire import Malformed, UpperLayerError

RQ, AC, RJ, DATA, RELEASE_RQ, RELEASE_RP, ABORT = range(1, 8)
MAX_CONTEXTS = 128

_APPLICATION_CONTEXT = b"1.2.840.10008.3.1.1.1"
_IMPLEMENTATION_CLASS = IMPLEMENTATION_CLASS_UID.encode("ascii")
_IMPLEMENTATION_VERSION = b"PACS-MIGRATE"
UNKNOWN_CALLED = "called AE title not recognized"
_REJECTIONS = {
    (1, 1): "no reason given",
    (1, 2): "application context not supported",
    (1, 3): "calling AE title not recognized",
    (1, 7): UNKNOWN_CALLED,
    (2, 1): "no reason given",
    (2, 2): "protocol version not supported",
    (3, 1): "temporary congestion",
    (3, 2): "local limit exceeded",
}


class Rejected(UpperLayerError):
    """A-ASSOCIATE-RJ (PS3.8 9.3.4), received or sent."""

    def __init__(self, result: int, source: int, reason: int) -> None:
        self.result, self.source, self.reason = result, source, reason
        self.text = _REJECTIONS.get((source, reason), f"source {source}, reason {reason}")
        super().__init__(f"association rejected ({'for now' if self.transient else 'for good'}): {self.text}")

    @property
    def transient(self) -> bool:
        """True when the peer says that trying again later may help."""
        return self.result == 2


@dataclass(frozen=True, slots=True)
class ProposedContext:
    """What a requestor offers; `id` 0 lets `numbered` choose one."""

    abstract_syntax: str
    transfer_syntaxes: tuple[str, ...]
    id: int = 0


@dataclass(frozen=True, slots=True)
class AcceptedContext:
    """A presentation context that both sides agreed on, with its one transfer syntax (PS3.8 9.3.3.2)."""

    id: int
    abstract_syntax: str
    transfer_syntax: str


@dataclass(frozen=True, slots=True)
class AssociateRequest:
    """An A-ASSOCIATE-RQ: the AE titles, what is proposed, and the largest P-DATA-TF that its sender takes, in bytes."""

    called: str
    calling: str
    contexts: tuple[ProposedContext, ...]
    max_pdu: int


@dataclass(frozen=True, slots=True)
class AssociateAccept:
    """`results` are (context ID, result, transfer syntax), as answered; result 0 is acceptance."""

    results: tuple[tuple[int, int, str], ...]
    max_pdu: int


def numbered(contexts: tuple[ProposedContext, ...]) -> tuple[ProposedContext, ...]:
    """The contexts, those without an ID with the odd ones 1, 3, 5 ... Raises ValueError for more than 128."""
    if not 0 < len(contexts) <= MAX_CONTEXTS:
        raise ValueError(f"between 1 and {MAX_CONTEXTS} presentation contexts, not {len(contexts)}")
    return tuple(
        ProposedContext(c.abstract_syntax, c.transfer_syntaxes, c.id or 2 * number + 1) for number, c in enumerate(contexts)
    )


def encode_request(calling: str, called: str, contexts: tuple[ProposedContext, ...], max_pdu: int) -> bytes:
    """An A-ASSOCIATE-RQ for numbered contexts."""
    items = b"".join(
        _item(
            0x20,
            bytes((c.id, 0, 0, 0)),
            _item(0x30, c.abstract_syntax.encode("ascii")),
            *(_item(0x40, syntax.encode("ascii")) for syntax in c.transfer_syntaxes),
        )
        for c in contexts
    )
    return _associate(RQ, _title(called), _title(calling), items, max_pdu)


def encode_accept(request: AssociateRequest, results: tuple[tuple[int, int, str], ...], max_pdu: int) -> bytes:
    """An A-ASSOCIATE-AC that answers `request` with (context ID, result, transfer syntax) each."""
    items = b"".join(
        _item(0x21, bytes((id_, 0, result, 0)), _item(0x40, syntax.encode("latin-1")))
        for id_, result, syntax in results
    )
    return _associate(AC, _title(request.called), _title(request.calling), items, max_pdu)


def pdu(kind: int, body: bytes) -> bytes:
    """A whole PDU around its body."""
    return struct.pack(">BBI", kind, 0, len(body)) + body


def speaks(begin: bytes) -> str | None:
    """What else than DICOM a peer speaks whose first bytes these are, None where that is not known."""
    if begin[:2] in (b"\x15\x03", b"\x16\x03"):  # an alert or a handshake
        return "TLS"
    if begin[:4] == b"SSH-":
        return "SSH"
    return "HTTP" if begin.startswith((b"HTTP/", b"GET /", b"POST /", b"HEAD /", b"PUT /", b"OPTION", b"PRI * ")) else None


@functools.lru_cache(maxsize=8)  # a PACS proposes the same hundred contexts with each study: a twentieth of the work for a small one
def decode_request(body: bytes) -> AssociateRequest:
    """The A-ASSOCIATE-RQ in a PDU body (without its 6 bytes of header). Raises Malformed."""
    contexts = []
    for kind, value in _items(body, 68):
        if kind == 0x20:
            parts = list(_items(value, 4))
            abstract = next((_text(v) for k, v in parts if k == 0x30), "")
            contexts.append(ProposedContext(abstract, tuple(_text(v) for k, v in parts if k == 0x40), value[0]))
    return AssociateRequest(_text(body[4:20]), _text(body[20:36]), tuple(contexts), _max_pdu(body))


def decode_accept(body: bytes) -> AssociateAccept:
    """The A-ASSOCIATE-AC in a PDU body. Raises Malformed."""
    results = []
    for kind, value in _items(body, 68):
        if kind == 0x21:
            syntax = next((_text(v) for k, v in _items(value, 4) if k == 0x40), "") if value[2:3] == b"\0" else ""
            if len(value) < 4:
                raise Malformed("a presentation context item is too short")
            results.append((value[0], value[2], syntax))
    return AssociateAccept(tuple(results), _max_pdu(body))


def decode_reject(body: bytes) -> Rejected:
    """The A-ASSOCIATE-RJ in a PDU body. Raises Malformed."""
    if len(body) < 4:
        raise Malformed("an A-ASSOCIATE-RJ is too short")
    return Rejected(body[1], body[2], body[3])


def _associate(kind: int, called: bytes, calling: bytes, items: bytes, max_pdu: int) -> bytes:
    user = _item(
        0x50,
        _item(0x51, struct.pack(">I", max_pdu)),
        _item(0x52, _IMPLEMENTATION_CLASS),
        _item(0x55, _IMPLEMENTATION_VERSION),
    )
    fixed = struct.pack(">HH16s16s32x", 1, 0, called, calling)
    return pdu(kind, fixed + _item(0x10, _APPLICATION_CONTEXT) + items + user)


def _item(kind: int, *parts: bytes) -> bytes:
    value = b"".join(parts)
    return struct.pack(">BBH", kind, 0, len(value)) + value


def _items(data: bytes, offset: int) -> Iterator[tuple[int, bytes]]:
    if len(data) < offset:
        raise Malformed("an item of the association request is too short")
    while offset < len(data):
        if offset + 4 > len(data):
            raise Malformed("bytes are left over after the last item")
        kind, length = data[offset], int.from_bytes(data[offset + 2 : offset + 4], "big")
        offset += 4
        if offset + length > len(data):
            raise Malformed(f"item {kind:02X} is longer than what holds it")
        yield kind, data[offset : offset + length]
        offset += length


def _max_pdu(body: bytes) -> int:
    for kind, value in _items(body, 68):
        if kind == 0x50:
            for sub, number in _items(value, 0):
                if sub == 0x51 and len(number) == 4:
                    return int.from_bytes(number, "big")
    return 0


def _text(raw: bytes) -> str:
    return raw.decode("latin-1").strip("\0 ")


def _title(text: str) -> bytes:
    return text.encode("latin-1", "replace")[:16].ljust(16)
