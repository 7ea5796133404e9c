"""A socket with a buffer: reads as much as there is, waits no longer than told, and says what went wrong in four words.

Needs nothing of DICOM; `Association` builds on it.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Callable

_BUFFER_BYTES = 1 << 20
_QUICKACK = getattr(socket, "TCP_QUICKACK", None)  # Linux


class UpperLayerError(Exception):
    """An association could not be had or did not end by release."""


class Malformed(UpperLayerError):
    """The peer broke the rules of PS3.8; the association is aborted."""


class NoConnection(UpperLayerError):
    """Nobody took the TCP connection."""


class Lost(UpperLayerError):
    """The connection ended without release or abort."""


class TimedOut(UpperLayerError):
    """Nothing came, or nothing could be sent, for as long as we wait."""


class Aborted(UpperLayerError):
    """A-ABORT from the peer (PS3.8 9.3.8)."""

    def __init__(self, source: int, reason: int) -> None:
        self.source, self.reason = source, reason
        super().__init__(f"the peer aborted the association (source {source}, reason {reason})")


def tune(sock: socket.socket) -> None:
    """Send small PDUs at once and notice a peer that lost its power; what a platform lacks is left out."""
    for level, name, value in (
        (socket.IPPROTO_TCP, "TCP_NODELAY", 1),
        (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
        (socket.IPPROTO_TCP, "TCP_KEEPIDLE", 60),
        (socket.IPPROTO_TCP, "TCP_KEEPINTVL", 15),
        (socket.IPPROTO_TCP, "TCP_KEEPCNT", 8),
    ):
        if hasattr(socket, name):
            with contextlib.suppress(OSError):
                sock.setsockopt(level, getattr(socket, name), value)


class Wire:
    """One connected socket, used by one thread; only `close` may be called from another."""

    def __init__(self, sock: socket.socket, timeout_s: float | None) -> None:
        tune(sock)
        self._sock = sock
        self.timeout_s = timeout_s
        self.idle: Callable[[], None] | None = None
        """Called about every `poll_s` while a read waits; may raise to end the wait."""
        self.poll_s = 0.5
        self.peer_address = self._address()
        self.last_byte_at = time.monotonic()
        self.open = True
        self._buffer = bytearray(1 << 14)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0
        self._deadline: float | None = None
        self._limit: float | None = -1.0  # the socket's own time-out: to set it again is a call of the system

    @property
    def read_ahead(self) -> int:
        """So many bytes came that nobody has asked for yet."""
        return self._end - self._start

    def _grow(self) -> None:
        """A big buffer only for a peer that fills the small one: those that say little cost little."""
        if len(self._buffer) == _BUFFER_BYTES:
            return
        rest = bytes(self._view[self._start : self._end])
        self._buffer = bytearray(_BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._buffer[: len(rest)] = rest
        self._start, self._end = 0, len(rest)

    def _need(self, count: int) -> int:
        """Have at least `count` (few) bytes in one piece; returns where they start."""
        while self._end - self._start < count:
            if self._start:
                rest = bytes(self._view[self._start : self._end])
                self._buffer[: len(rest)] = rest
                self._start, self._end = 0, len(rest)
            self._fill()
        return self._start

    def _fill(self) -> None:
        if self._start == self._end:
            self._start = self._end = 0
        limit = self.timeout_s
        if self._deadline is not None:
            limit = max(self._deadline - time.monotonic(), 0.001)
        try:
            if self.idle is None:
                self._receive(limit)
                return
            give_up = None if limit is None else time.monotonic() + limit
            while True:
                try:
                    self._receive(self.poll_s)
                    return
                except TimeoutError:
                    if give_up is not None and time.monotonic() > give_up:
                        raise
                self.idle()
        except TimeoutError as error:
            raise TimedOut("the peer sent nothing for too long") from error

    def _receive(self, wait_s: float | None) -> None:
        """One read of as much as there is. Acknowledge at once: a sender with Nagle's algorithm waits for it."""
        try:
            self._wait_at_most(wait_s)
            if _QUICKACK is not None:
                self._sock.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)
            count = self._sock.recv_into(self._view[self._end :])
        except (TimeoutError, BlockingIOError):
            raise
        except ssl.SSLWantReadError as error:
            raise BlockingIOError from error
        except OSError as error:
            raise Lost(f"the connection broke: {error.strerror or error}") from error
        if not count:
            raise Lost("the peer closed the connection")
        self.last_byte_at = time.monotonic()
        self._end += count

    def _send(self, data: bytes | bytearray) -> None:
        try:
            self._wait_at_most(self.timeout_s or 600.0)
            self._sock.sendall(data)
        except TimeoutError as error:
            raise TimedOut("the peer takes nothing") from error
        except OSError as error:
            raise Lost(f"the connection broke: {error.strerror or error}") from error

    def _wait_at_most(self, seconds: float | None) -> None:
        if seconds != self._limit:
            self._sock.settimeout(seconds)
            self._limit = seconds

    def close(self) -> None:
        """Close the connection; a read in another thread ends with Lost."""
        self.open = False
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)  # not TLS's own, which another thread may be using
        self._sock.close()

    def _address(self) -> str:
        with contextlib.suppress(OSError):
            return str(self._sock.getpeername()[0])
        return ""
