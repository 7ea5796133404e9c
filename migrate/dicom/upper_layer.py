"""Associations as bytes (PS3.8), both roles, on a plain blocking socket: no threads, no queues, nothing collected.

Data flow from the socket into one reusable buffer, and out of it as views. Every length has a limit and every wait a
time-out. An `Association` belongs to one thread; only `abort` and `close` may be called from another.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator

from migrate.config import TlsSettings
from migrate.dicom import negotiation as pdus
from migrate.dicom import pdata
from migrate.dicom import tls as transport
from migrate.dicom.negotiation import AcceptedContext, AssociateRequest, ProposedContext, Rejected
from migrate.dicom.wire import Aborted, Lost, Malformed, NoConnection, TimedOut, UpperLayerError, Wire

__all__ = [
    "Aborted",
    "AcceptedContext",
    "AssociateRequest",
    "Association",
    "Fragment",
    "Lost",
    "Malformed",
    "NoConnection",
    "ProposedContext",
    "Rejected",
    "TimedOut",
    "UpperLayerError",
]

MAX_NEGOTIATION_BYTES = 1 << 18  # 128 contexts with 40 transfer syntaxes each need no more
_DEFAULT_PDU = 131072

Fragment = tuple[int, bool, bool, memoryview]
"""(context ID, is it a command, does it end the command or data set, the bytes: valid until the next read)."""
Choose = Callable[[ProposedContext], str | None]
Admit = Callable[[AssociateRequest], Rejected | None]


class Association(Wire):
    """An open association: made by `request` or `accept`, then `read` and `send_*`, ended by `release` or `abort`."""

    def __init__(self, sock: socket.socket, *, max_pdu: int, timeout_s: float | None) -> None:
        super().__init__(sock, timeout_s)
        self.max_pdu = max_pdu
        self.contexts: dict[int, AcceptedContext] = {}
        self.calling = self.called = ""
        self.peer_max_pdu = 0
        self.longest_pdu = 0
        self._pdu_left = self._pdv_left = 0  # of the P-DATA PDU and of the fragment being read
        self._context = self._control = 0

    # -- both roles' beginnings
    @classmethod
    def request(
        cls,
        host: str,
        port: int,
        *,
        calling: str,
        called: str,
        contexts: Iterable[ProposedContext],
        max_pdu: int = _DEFAULT_PDU,
        connect_s: float = 15.0,
        timeout_s: float | None = 600.0,
        tls: TlsSettings | None = None,
    ) -> Association:
        """Connect and associate. Raises HandshakeFailed with `tls`, NoConnection, Rejected, Aborted, Lost, TimedOut, Malformed."""
        proposed = pdus.numbered(tuple(contexts))
        secure = transport.context(tls, server=False) if tls else None
        try:
            sock = socket.create_connection((host, port), timeout=connect_s)
        except OSError as error:
            raise NoConnection(str(error.strerror or error)) from error
        if tls and secure:
            sock = transport.wrap(sock, secure, host=host)
            try:
                transport.shake_hands(sock, tls.pin, connect_s)
            except BaseException:
                sock.close()
                raise
        self = cls(sock, max_pdu=max_pdu, timeout_s=timeout_s)
        self.calling, self.called = calling, called
        with self._negotiating(connect_s):
            self._send(pdus.encode_request(calling, called, proposed, max_pdu))
            kind, body = self._whole_pdu()
            if kind == pdus.RJ:
                raise pdus.decode_reject(body)
            if kind != pdus.AC:
                raise Malformed(f"a PDU of type {kind} answers the association request")
            answer = pdus.decode_accept(body)
        offers = {context.id: context for context in reversed(proposed)}  # of those that share an ID the first one counts
        for id_, result, syntax in answer.results:
            offer = offers.pop(id_, None)
            if result == 0 and offer is not None and syntax in offer.transfer_syntaxes:
                self.contexts[id_] = AcceptedContext(id_, offer.abstract_syntax, syntax)
        self.peer_max_pdu = answer.max_pdu
        return self

    @classmethod
    def accept(
        cls,
        sock: socket.socket,
        *,
        choose: Choose,
        admit: Admit | None = None,
        max_pdu: int = _DEFAULT_PDU,
        negotiate_s: float = 30.0,
        timeout_s: float | None = 600.0,
    ) -> Association:
        """Answer the association request that comes on a connected socket, which is ours from now on.

        `choose` names the transfer syntax of a proposed context, or None to refuse it (abstract syntax not supported);
        `admit` may turn the whole request down. Of contexts that share an ID the first one counts.
        Raises Rejected (what we sent), Aborted, Lost, TimedOut, Malformed.
        """
        self = cls(sock, max_pdu=max_pdu, timeout_s=timeout_s)
        with self._negotiating(negotiate_s):
            kind, body = self._whole_pdu()
            if kind != pdus.RQ:
                raise Malformed(f"a PDU of type {kind} comes before any association")
            request = pdus.decode_request(body)
            self.calling, self.called = request.calling, request.called
            rejection = admit(request) if admit else None
            if rejection is not None:
                self._send(pdus.pdu(pdus.RJ, bytes((0, rejection.result, rejection.source, rejection.reason))))
                raise rejection
            results = []
            for number, offer in enumerate(request.contexts):
                syntax = choose(offer) if number < pdus.MAX_CONTEXTS else None
                chosen = AcceptedContext(offer.id, offer.abstract_syntax, syntax or "")
                agreed = syntax is not None and self.contexts.setdefault(offer.id, chosen) == chosen
                fallback = offer.transfer_syntaxes[0] if offer.transfer_syntaxes else ""
                results.append((offer.id, 0 if agreed else 3, syntax if agreed and syntax else fallback))
            self.peer_max_pdu = request.max_pdu
            self._send(pdus.encode_accept(request, tuple(results), max_pdu))
        return self

    @contextlib.contextmanager
    def _negotiating(self, limit_s: float) -> Iterator[None]:
        """One deadline for all of it, so that a byte now and then keeps nobody waiting."""
        self._deadline = time.monotonic() + limit_s
        try:
            yield
        except Malformed:
            self.abort(provider=True)
            raise
        except BaseException:
            self.close()
            raise
        self._deadline = None

    def context_for(self, *abstract_syntaxes: str) -> AcceptedContext | None:
        """The accepted context of the first of these abstract syntaxes that has one."""
        for wanted in abstract_syntaxes:
            for context in self.contexts.values():
                if context.abstract_syntax == wanted:
                    return context
        return None

    # -- reading
    def fragments(self) -> Iterator[Fragment]:
        """All fragments until the peer releases (answered here). Raises as `read` does."""
        while (fragment := self.read()) is not None:
            yield fragment

    def read(self) -> Fragment | None:
        """The next piece of a command or data set as it comes, or None after the peer's release.

        A fragment longer than what has arrived comes in pieces; `is_last` is true on the last piece only. The view is
        valid until the next call. Raises Aborted, Lost, TimedOut, Malformed (then the association is over).
        """
        try:
            while not self._pdv_left:
                if not self._pdu_left and not self._next_pdu():
                    return None
                if not self._pdu_left:
                    continue
                start = self._need(6)
                length, self._context, self._control = struct.unpack_from(">IBB", self._buffer, start)
                self._start = start + 6
                if not 2 <= length <= self._pdu_left - 4:
                    raise Malformed("a fragment's length does not fit its PDU")
                self._pdu_left -= length + 4
                self._pdv_left = length - 2
                if length == 2:
                    return self._context, bool(self._control & 1), bool(self._control & 2), self._view[:0]
            if self._start == self._end:
                self._fill()
            start = self._start
            count = min(self._end - start, self._pdv_left)
            self._start = start + count
            self._pdv_left -= count
            last = not self._pdv_left and self._control & 2 == 2
            return self._context, bool(self._control & 1), last, self._view[start : start + count]
        except Malformed:
            self.abort(provider=True)
            raise
        except UpperLayerError:
            self.close()
            raise

    def dataset_after(self, command_pdu: bytes) -> bytes | None:
        """The data set of the next message if that begins with just this PDU, whose command says that one follows.

        None, with nothing taken, for any other message, and for a data set that is not a PDU of its own or is long:
        those are for `read`. Waits and raises as `read` does. This is for the rows of a query, whose commands are all
        the same: nothing of them needs decoding again.
        """
        if self._pdu_left or self._pdv_left:
            return None
        size = len(command_pdu)
        try:
            while True:
                start, have = self._start, self._end - self._start
                if not self._buffer.startswith(command_pdu if have >= size else command_pdu[:have], start):
                    return None
                if have >= size + pdata.HEADERS.size:
                    kind, _, length, count, context_id, control = pdata.HEADERS.unpack_from(self._buffer, start + size)
                    whole = size + 6 + length
                    if (kind, control, context_id, count) != (pdus.DATA, 2, command_pdu[10], length - 4):
                        return None
                    if count < 2 or whole > len(self._buffer):
                        return None
                    if have >= whole:
                        self._start = start + whole
                        return bytes(self._view[start + size + pdata.HEADERS.size : start + whole])
                self._need(have + 1)
        except UpperLayerError:
            self.close()
            raise

    def wait(self, seconds: float) -> bool:
        """True as soon as there is something to read (or the end of it), False after `seconds`."""
        if self._start < self._end or self._pdv_left:
            return True
        self._start = self._end = 0
        try:
            self._receive(seconds)
        except (TimeoutError, BlockingIOError):
            return False
        except Lost:
            pass  # the next read says so
        return True

    def _next_pdu(self) -> bool:
        """Read a PDU header; False after a release. Sets `_pdu_left` for P-DATA, raises for an abort."""
        start = self._need(6)
        kind, length = self._buffer[start], int.from_bytes(self._buffer[start + 2 : start + 6], "big")
        if kind == pdus.DATA:
            if length > pdata.MAX_PDU_BYTES:
                raise Malformed(f"a P-DATA PDU of {length} bytes is beyond any reason")
            if 0 < length < 6:
                raise Malformed("a P-DATA PDU is too short for a fragment")
            self._start = start + 6
            self._pdu_left = length
            self.longest_pdu = max(self.longest_pdu, length)
            if self._end == len(self._buffer) or length > len(self._buffer):
                self._grow()
            return True
        kind, _ = self._whole_pdu()
        if kind == pdus.RELEASE_RQ:
            with contextlib.suppress(UpperLayerError):
                self._send(pdus.pdu(pdus.RELEASE_RP, bytes(4)))
            self.close()
            return False
        raise Malformed(f"a PDU of type {kind} comes in an association")

    def _whole_pdu(self) -> tuple[int, bytes]:
        """A short PDU, collected. Raises Aborted when it is an A-ABORT."""
        start = self._need(6)
        kind, length = self._buffer[start], int.from_bytes(self._buffer[start + 2 : start + 6], "big")
        if kind > pdus.ABORT and (like := pdus.speaks(bytes(self._view[start : start + 6]))):
            raise Malformed(f"what came is not DICOM: it looks like {like}")
        if length > MAX_NEGOTIATION_BYTES:
            raise Malformed(f"a PDU of type {kind} claims {length} bytes")
        self._start = start + 6
        body = bytearray()
        while len(body) < length:
            if self._start == self._end:
                self._fill()
            count = min(self._end - self._start, length - len(body))
            body += self._view[self._start : self._start + count]
            self._start += count
        if kind == pdus.ABORT:
            raise Aborted(*(body[2:4] if length >= 4 else (0, 0)))
        return kind, bytes(body)

    # -- sending
    def send_command(self, context_id: int, command: bytes) -> None:
        """Send a command set. Raises Lost, TimedOut."""
        self._send_fragments(context_id, 1, (command,))

    def send_dataset(self, context_id: int, dataset: bytes | memoryview | Iterable[bytes | memoryview]) -> None:
        """Send a data set, whole or in pieces that are cut to the peer's maximum. Raises Lost, TimedOut."""
        self._send_fragments(
            context_id, 0, (dataset,) if isinstance(dataset, bytes | bytearray | memoryview) else dataset
        )

    def _send_fragments(self, context_id: int, command: int, pieces: Iterable[bytes | memoryview]) -> None:
        for part in pdata.framed(context_id, command, pieces, self.peer_max_pdu or _DEFAULT_PDU):
            self._send(part)

    # -- endings
    def release(self, wait_s: float = 10.0) -> None:
        """Ask for release, wait at most `wait_s` for the answer, close. Raises nothing: what counted came before."""
        if not self.open:
            return
        self._deadline = time.monotonic() + wait_s
        self.idle = None
        with contextlib.suppress(UpperLayerError):
            self._send(pdus.pdu(pdus.RELEASE_RQ, bytes(4)))
            while self._pdv_left or self._pdu_left or self._buffer[self._need(6)] == pdus.DATA:
                if self.read() is None:
                    break
            else:
                if self.open and self._whole_pdu()[0] == pdus.RELEASE_RQ:  # both asked at once (PS3.8 7.2.2)
                    self._send(pdus.pdu(pdus.RELEASE_RP, bytes(4)))
        self.close()

    def abort(self, *, provider: bool = False) -> None:
        """Send A-ABORT if that is possible at once, and close. `provider` blames a broken protocol (PS3.8 9.3.8)."""
        if self.open:
            with contextlib.suppress(OSError):
                self._sock.settimeout(1.0)
                self._sock.sendall(pdus.pdu(pdus.ABORT, bytes((0, 0, 2 if provider else 0, 0))))
        self.close()
