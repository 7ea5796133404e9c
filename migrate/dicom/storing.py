"""One association's messages at the receiver: each C-STORE becomes a staging file, a `model.Received` and an answer.

The bytes go from the association's buffer straight into the file. What breaks off leaves nothing behind, what cannot be
walked is delivered as quarantined, what cannot be written is refused (A700) after it was taken off the wire.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from migrate.config import ReceiverSettings
from migrate.dicom import dimse, part10, scanner
from migrate.dicom.upper_layer import AcceptedContext, Association
from migrate.dicom.wire import Malformed
from migrate.errors import LocalError
from migrate.failpoints import reach
from migrate.model import InstanceRef, Received, is_uid
from migrate.staging.area import Staging
from migrate.staging.incoming import Incoming

log = logging.getLogger(__name__)

Deliver = Callable[[Received], "Future[Any] | None"]


@dataclass(frozen=True, slots=True)
class ReceiverLimits:
    """`idle_s` bounds the silence on an association, `dataset_s` the time that one data set takes, `negotiate_s` the time from the
    connection to the whole association request. Where no place is left, an association gives way to a new one that is silent for
    `silent_s` between two data sets, or for `stalled_s` within one.
    """

    idle_s: float = 600.0
    dataset_s: float = 21600.0
    negotiate_s: float = 10.0
    silent_s: float = 5.0
    stalled_s: float = 60.0
    max_associations: int = 64
    max_per_address: int = 48


class _Store:
    """One request whose data set is coming; without `incoming` it is only taken off the wire."""

    __slots__ = ("answer", "began", "command", "context", "incoming", "sop", "sop_class", "status")

    def __init__(self, command: dimse.Command, context: AcceptedContext) -> None:
        self.command, self.context = command, context
        self.incoming: Incoming | None = None
        self.began = time.monotonic()
        self.status, self.answer = dimse.SUCCESS, True
        self.sop_class, self.sop = command.text(dimse.SOP_CLASS), command.text(dimse.SOP_INSTANCE)


class Session:
    """The messages of one association, in its thread."""

    def __init__(
        self, settings: ReceiverSettings, limits: ReceiverLimits, staging: Staging, deliver: Deliver, association: Association
    ) -> None:
        self._settings, self._limits = settings, limits
        self._staging, self._deliver, self._association = staging, deliver, association
        self._store: _Store | None = None
        self._buffer = bytearray()  # made with the first data set
        self._next: Incoming | None = None
        self._hasher = ThreadPoolExecutor(1, thread_name_prefix="hash")  # its thread begins with the first large piece
        self.stored = 0
        self.stores: bool | None = None  # False once something was asked and nothing sent, None while neither
        self.move_id: int | None = None  # the message ID of the C-MOVE that the last C-STORE named

    @property
    def last_byte_at(self) -> float:
        """time.monotonic() of the last byte that came."""
        return self._association.last_byte_at

    @property
    def receiving(self) -> bool:
        """Whether a data set is on its way."""
        return self._store is not None

    def abort(self) -> None:
        """End the association; may be called from another thread."""
        self._association.abort()

    def run(self) -> None:
        """Serve until the peer releases. Raises UpperLayerError and BadCommand when it ends in another way."""
        command = bytearray()
        for context_id, is_command, last, view in self._association.fragments():
            if is_command:
                command += view
                if len(command) > dimse.MAX_COMMAND_BYTES:
                    raise dimse.BadCommand("a command set is too long")
                if last:
                    self._begin(context_id, dimse.decode_command(command))
                    command = bytearray()
                continue
            store = self._store
            if store is None or context_id != store.context.id:
                raise Malformed("a data set comes that no command announced")
            if store.incoming is not None and view:
                try:
                    store.incoming.write(view, more=self._association.read_ahead > 0)
                    reach("receive-fragment")
                except OSError as error:
                    self._refuse(store, error)
            if not last:
                if time.monotonic() - store.began > self._limits.dataset_s:
                    raise Malformed(f"a data set takes longer than {self._limits.dataset_s:g} s")
            else:
                self._store = None
                self._finish(store)
                self._next = self._prepared()

    def discard(self) -> None:
        """Remove the file of a data set that did not come whole, and the one prepared for the next. What the disk does not let
        go is swept at the next start."""
        self._hasher.shutdown()
        if self._store is not None and self._store.incoming is not None:
            with contextlib.suppress(OSError):
                self._store.incoming.discard()
            log.info("a data set broke off; nothing of it is kept")
        if self._next is not None:
            with contextlib.suppress(OSError):
                self._next.discard()
            self._next = None
        if self._buffer:
            self._staging.take_back(self._buffer)
            self._buffer = bytearray()

    def _begin(self, context_id: int, command: dimse.Command) -> None:
        context = self._association.contexts.get(context_id)
        if context is None:
            raise Malformed(f"presentation context {context_id} was not accepted")
        if self._store is not None and self._store.answer:
            raise Malformed("a command comes in the middle of a data set")
        self._store = None
        field = command.field
        if field & dimse.RESPONSE or field == dimse.C_CANCEL:
            return
        store = _Store(command, context)
        if field != dimse.C_STORE:
            self.stores = self.stores or False
            self._send(store, dimse.SUCCESS if field == dimse.C_ECHO else dimse.UNRECOGNIZED_OPERATION)
            if command.has_dataset:
                store.answer = False
                self._store = store
            return
        if not command.has_dataset:
            self._send(store, dimse.UNABLE_TO_PROCESS)
            return
        reach("receive-command")
        self.stores = True
        command.required(dimse.MESSAGE_ID)
        self.move_id = _originator(command)
        self._store = store
        try:
            if not self._staging.has_room():
                raise OSError(errno.ENOSPC, "the reserve is reached")
            header = part10.file_header(_safe(store.sop_class), _safe(store.sop), context.transfer_syntax)
            incoming, self._next = self._next or self._create(), None
            store.incoming = incoming.begin(header)
        except OSError as error:
            self._refuse(store, error)

    def _create(self) -> Incoming:
        self._buffer = self._buffer or self._staging.buffer()
        reach("receive-create")
        return self._staging.create(self._buffer, self._hasher)

    def _prepared(self) -> Incoming | None:
        """The next file, made while the peer makes ready what goes into it; None if that fails, which is told then."""
        with contextlib.suppress(OSError):
            return self._next or self._create()
        return None

    def _refuse(self, store: _Store, error: OSError) -> None:
        incoming, store.incoming = store.incoming, None
        store.status = dimse.OUT_OF_RESOURCES
        self._staging.turn_away(error)
        log.error("a data set is refused, it cannot be written: %s", error.strerror or error)
        if incoming is not None:
            with contextlib.suppress(OSError):
                incoming.discard()

    def _finish(self, store: _Store) -> None:
        """The whole data set is here: close, scan, deliver, answer."""
        incoming = store.incoming
        if incoming is not None:
            try:
                reach("receive-whole")
                crc = incoming.close()
                reach("receive-closed")
                syntax, whole = store.context.transfer_syntax, incoming.whole
                if whole is None:
                    scan = scanner.scan_file(incoming.path, incoming.header_bytes, syntax, crc)
                else:
                    scan = scanner.scan(whole, incoming.header_bytes, syntax, crc, scratch=incoming.path.parent)
                reach("receive-scanned")
                rolled = incoming.roll()
            except OSError as error:
                self._refuse(store, error)
            else:
                ref, reason = _identity(store, scan)
                notes = scan.notes
                if self._association.longest_pdu > self._settings.max_pdu:
                    notes = (*notes, "long-pdu")
                claimed = (scan.study, scan.series, scan.sop)
                received = Received(incoming.path, ref, rolled, store.sop_class, syntax, notes, reason, claimed,
                                    scan.pixel_crc64, _originator(store.command))  # fmt: skip
                store.status = self._hand_over(received, incoming)
        if store.answer:
            self._send(store, store.status)
            reach("receive-answered")

    def _hand_over(self, received: Received, incoming: Incoming) -> int:
        """Deliver, wait where the answer promises durability; returns the status to answer."""
        try:
            promise = self._deliver(received)
            reach("receive-delivered")
        except Exception as error:
            log.error("a data set is refused: %s", type(error).__name__)
            with contextlib.suppress(OSError):
                incoming.discard()
            return dimse.OUT_OF_RESOURCES if isinstance(error, LocalError) else dimse.PROCESSING_FAILURE
        if self._settings.ack == "durable" and promise is not None:
            try:
                promise.result(self._limits.idle_s)
            except Exception as error:
                log.error("a data set is refused, it did not become durable: %s", type(error).__name__)
                return dimse.OUT_OF_RESOURCES if isinstance(error, LocalError) else dimse.PROCESSING_FAILURE
        self.stored += 1
        return dimse.SUCCESS

    def _send(self, store: _Store, status: int) -> None:
        self._association.send_command(store.context.id, dimse.response(store.command, status))


def _identity(store: _Store, scan: scanner.Scan) -> tuple[InstanceRef | None, str | None]:
    """The reference, or why there is none."""
    if scan.error is not None:
        return None, f"the data set cannot be walked: {scan.error}"
    if scan.sop != store.sop:
        return None, "the SOP Instance UID is not the command's"
    if scan.sop_class != store.sop_class:
        return None, "the SOP Class UID is not the command's"
    try:
        return InstanceRef(scan.study, scan.series, scan.sop), None
    except ValueError:
        uids = (("Study", scan.study), ("Series", scan.series), ("SOP", scan.sop))
        name, uid = next(each for each in uids if not is_uid(each[1]))
        return None, f"the {name} Instance UID is {'not valid' if uid else 'missing'}"


def _originator(command: dimse.Command) -> int | None:
    """The message ID of the C-MOVE that a C-STORE says it belongs to."""
    raw = command.elements.get(dimse.ORIGINATOR_ID, b"")
    return int.from_bytes(raw, "little") if len(raw) == 2 else None


def _safe(text: str) -> str:
    return text if text.isascii() and len(text) <= 64 else ""
