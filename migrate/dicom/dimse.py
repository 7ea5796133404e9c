"""DIMSE messages (PS3.7): command sets, statuses, whole messages. Foreign bytes raise `BadCommand` and nothing else."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from migrate.dicom.identifier import EXPLICIT_LE as EXPLICIT_LE
from migrate.dicom.identifier import IMPLICIT_LE as IMPLICIT_LE
from migrate.dicom.identifier import BadIdentifier as BadIdentifier
from migrate.dicom.identifier import decode_identifier as decode_identifier
from migrate.dicom.identifier import encode_identifier as encode_identifier
from migrate.dicom.upper_layer import Association

VERIFICATION = "1.2.840.10008.1.1"
STUDY_ROOT_FIND, STUDY_ROOT_MOVE = "1.2.840.10008.5.1.4.1.2.2.1", "1.2.840.10008.5.1.4.1.2.2.2"
PATIENT_ROOT_FIND, PATIENT_ROOT_MOVE = "1.2.840.10008.5.1.4.1.2.1.1", "1.2.840.10008.5.1.4.1.2.1.2"

C_STORE, C_GET, C_FIND, C_MOVE, C_ECHO, C_CANCEL, RESPONSE = 0x0001, 0x0010, 0x0020, 0x0021, 0x0030, 0x0FFF, 0x8000

# Elements of group 0000 (PS3.7 E.1).
SOP_CLASS, REQUESTED_SOP_CLASS, COMMAND_FIELD, MESSAGE_ID, RESPONDED_TO = 0x0002, 0x0003, 0x0100, 0x0110, 0x0120
MOVE_DESTINATION, PRIORITY, DATASET_TYPE, STATUS, COMMENT = 0x0600, 0x0700, 0x0800, 0x0900, 0x0902
SOP_INSTANCE, REMAINING, COMPLETED, FAILED, WARNING = 0x1000, 0x1020, 0x1021, 0x1022, 0x1023
ORIGINATOR, ORIGINATOR_ID = 0x1030, 0x1031
NO_DATASET = 0x0101

SUCCESS, PENDING, PENDING_WARNING, CANCELLED, SUBOPERATIONS_FAILED = 0x0000, 0xFF00, 0xFF01, 0xFE00, 0xB000
PROCESSING_FAILURE, SOP_CLASS_NOT_SUPPORTED, UNRECOGNIZED_OPERATION = 0x0110, 0x0122, 0x0211
OUT_OF_RESOURCES, DESTINATION_UNKNOWN, IDENTIFIER_MISMATCH, UNABLE_TO_PROCESS = 0xA700, 0xA801, 0xA900, 0xC000

MAX_COMMAND_BYTES = 64 << 10
MAX_IDENTIFIER_BYTES = 16 << 20

# Elements of identifiers (PS3.4 C.6) that this package asks for.
QUERY_LEVEL, FAILED_SOPS = 0x00080052, 0x00080058
STUDY_UID, SERIES_UID, SOP_UID, PATIENT_ID = 0x0020000D, 0x0020000E, 0x00080018, 0x00100020

_TEXT = {SOP_CLASS, REQUESTED_SOP_CLASS, SOP_INSTANCE, MOVE_DESTINATION, ORIGINATOR, COMMENT}
_UIDS = {SOP_CLASS, REQUESTED_SOP_CLASS, SOP_INSTANCE}

_HEADER, _LENGTH, _NUMBERS = struct.Struct("<HHI"), struct.Struct("<HHII"), struct.Struct("<HHIHHHIHHHIHHHIH")


class BadCommand(ValueError):
    """A command set that cannot be decoded, or lacks what its kind must have."""


class Kind(Enum):
    """What a status means for the one who asked."""

    SUCCESS = "success"
    PENDING = "pending"
    WARNING = "warning"
    CANCELLED = "cancelled"
    REFUSED = "refused"
    FAILED = "failed"
    UNKNOWN_DESTINATION = "unknown destination"


def classify(status: int) -> Kind:
    """The kind of a status (PS3.7 C, PS3.4 B.2.3, C.4.1.1.4, C.4.2.1.5)."""
    if status == SUCCESS:
        return Kind.SUCCESS
    if status in (PENDING, PENDING_WARNING):
        return Kind.PENDING
    if status == CANCELLED:
        return Kind.CANCELLED
    if status == DESTINATION_UNKNOWN:
        return Kind.UNKNOWN_DESTINATION
    if status >> 12 == 0xB or status in (0x0001, 0x0107, 0x0116):
        return Kind.WARNING
    if status >> 8 == 0xA7 or status in (SOP_CLASS_NOT_SUPPORTED, 0x0124):
        return Kind.REFUSED
    return Kind.FAILED


_ANY = {
    0x0000: "success",
    0x0105: "no such attribute",
    0x0106: "invalid attribute value",
    0x0110: "processing failure",
    0x0111: "duplicate SOP instance",
    0x0117: "invalid SOP instance",
    0x0119: "class-instance conflict",
    0x0122: "SOP class not supported",
    0x0124: "not authorized",
    0x0210: "duplicate invocation",
    0x0211: "unrecognized operation",
    0x0212: "mistyped argument",
    0xFE00: "cancelled",
    0xFF00: "pending",
    0xFF01: "pending, optional keys not supported",
}
_FIND = {0xA700: "refused: out of resources", 0xA900: "identifier does not match SOP class"}
_MOVE = {
    0xA701: "refused: out of resources, cannot count matches",
    0xA702: "refused: out of resources, cannot send",
    0xA801: "refused: move destination unknown",
    0xA900: "identifier does not match SOP class",
    0xB000: "complete, some images failed or had warnings",
}
_STORE = {
    0xA700: "refused: out of resources",
    0xA900: "data set does not match SOP class",
    0xB000: "elements were coerced",
    0xB006: "elements were discarded",
    0xB007: "data set does not match SOP class (warning)",
}
_TABLES = {C_FIND: _FIND, C_MOVE: _MOVE, C_STORE: _STORE, C_GET: _MOVE}


def describe(service: int, status: int) -> str:
    """A status in hex and in the standard's words, for people; `service` is C_FIND, C_MOVE, C_STORE ..."""
    text = _TABLES.get(service, {}).get(status) or _ANY.get(status)
    if text is None:
        masked = _TABLES.get(service, {}).get(status & 0xFF00)
        text = masked or ("unable to process" if status >> 12 == 0xC else classify(status).value)
    return f"{status:04X} ({text})"


class Command:
    """A decoded command set: raw values by element number of group 0000, and as it came."""

    __slots__ = ("elements", "encoded")

    def __init__(self, elements: dict[int, bytes], encoded: bytes) -> None:
        self.elements, self.encoded = elements, encoded

    def number(self, element: int) -> int | None:
        """A 16-bit value, None where absent or empty. Raises BadCommand."""
        raw = self.elements.get(element)
        if not raw:
            return None
        if len(raw) != 2:
            raise BadCommand(f"(0000,{element:04X}) is not a 16-bit number")
        return raw[0] | raw[1] << 8

    def required(self, element: int) -> int:
        """A 16-bit value that must be there. Raises BadCommand."""
        value = self.number(element)
        if value is None:
            raise BadCommand(f"(0000,{element:04X}) is missing")
        return value

    def text(self, element: int) -> str:
        """A text or UID without padding, empty where absent; any bytes decode (as Latin-1)."""
        return self.elements.get(element, b"").decode("latin-1").strip("\0 ").replace("\0", "\ufffd")

    @property
    def field(self) -> int:
        return self.required(COMMAND_FIELD)

    @property
    def has_dataset(self) -> bool:
        return self.required(DATASET_TYPE) != NO_DATASET


def encode_command(fields: Mapping[int, int | str]) -> bytes:
    """A command set in Implicit VR Little Endian with its group length (PS3.7 6.3.1); no data set unless said."""
    body = bytearray()
    for element, value in sorted({DATASET_TYPE: NO_DATASET, **fields}.items()):
        if element not in _TEXT:
            raw = struct.pack("<H", value)
        else:
            raw = str(value).encode("latin-1", "replace")
            if len(raw) & 1:
                raw += b"\0" if element in _UIDS else b" "
        body += _HEADER.pack(0, element, len(raw)) + raw
    return _LENGTH.pack(0, 0, 4, len(body)) + body


def decode_command(data: bytes | bytearray | memoryview) -> Command:
    """A command set. Raises BadCommand when it is cut off, holds another group, or says something twice."""
    elements: dict[int, bytes] = {}
    raw = bytes(data)
    offset, end = 0, len(raw)
    while offset < end:
        if offset + 8 > end:
            raise BadCommand("a command set is cut off")
        group, element, length = _HEADER.unpack_from(raw, offset)
        offset += 8
        if group or offset + length > end:
            raise BadCommand("a command set holds another group or is cut off")
        if element in elements:
            raise BadCommand(f"(0000,{element:04X}) comes twice")
        elements[element] = raw[offset : offset + length]
        offset += length
    return Command(elements, raw)


def response(request: Command, status: int, fields: Mapping[int, int | str] | None = None) -> bytes:
    """The response to a request: its field with 8000, its message ID and UIDs, this status, and further `fields`."""
    if not fields:
        return _plain_response(request, status)
    answer: dict[int, int | str] = {
        COMMAND_FIELD: request.field | RESPONSE,
        RESPONDED_TO: request.required(MESSAGE_ID),
        STATUS: status,
    }
    for element in (SOP_CLASS, SOP_INSTANCE):
        if element in request.elements:
            answer[element] = request.text(element)
    return encode_command({**answer, **fields})


def _plain_response(request: Command, status: int) -> bytes:
    """The same without further fields, which is what every C-STORE is answered with: packed in one go."""
    sop_class, sop = (
        _uid(element, request.text(element)) if element in request.elements else b"" for element in (SOP_CLASS, SOP_INSTANCE)
    )
    field, message_id = request.field | RESPONSE, request.required(MESSAGE_ID)
    numbers = _NUMBERS.pack(
        0, COMMAND_FIELD, 2, field, 0, RESPONDED_TO, 2, message_id, 0, DATASET_TYPE, 2, NO_DATASET, 0, STATUS, 2, status
    )
    length = len(sop_class) + len(numbers) + len(sop)
    return _LENGTH.pack(0, 0, 4, length) + sop_class + numbers + sop


def _uid(element: int, text: str) -> bytes:
    raw = text.encode("latin-1", "replace")
    raw += b"\0" * (len(raw) & 1)
    return _HEADER.pack(0, element, len(raw)) + raw


@dataclass(frozen=True, slots=True)
class Message:
    """A whole message whose data set, if any, is small."""

    context_id: int
    command: Command
    dataset: bytes | None


def receive(association: Association, *, max_dataset_bytes: int = MAX_IDENTIFIER_BYTES) -> Message | None:
    """The next whole message, or None after the peer's release.

    Raises BadCommand (the association is aborted) and what `Association.read` raises.
    """
    command: Command | None = None
    context_id = 0
    collected = bytearray()
    try:
        while (fragment := association.read()) is not None:
            id_, is_command, last, view = fragment
            if is_command != (command is None) or (command is not None and id_ != context_id):
                raise BadCommand("command and data set are mixed up")
            context_id = id_
            collected += view
            if len(collected) > (MAX_COMMAND_BYTES if is_command else max_dataset_bytes):
                raise BadCommand("a message is too long")
            if not last:
                continue
            if command is not None:
                return Message(context_id, command, bytes(collected))
            command = decode_command(collected)
            if not command.has_dataset:
                return Message(context_id, command, None)
            collected = bytearray()
    except BadCommand:
        association.abort()
        raise
    return None
