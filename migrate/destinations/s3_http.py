"""One kept HTTP/1.1 connection to a store: no wait without an end, nothing read without a limit.

Python's own client takes twice the processor time for a small put, most of it for reading some eight header lines; with
eight threads at it that is the pace of the whole.
"""

from __future__ import annotations

import re
import socket
import ssl
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn
from urllib.parse import urlsplit

from migrate.destinations.s3_answers import Headers

CONNECT_S = 10
_HEAD_BYTES = 64 << 10  # the most that an answer's head may be
_BODY_BYTES = 1 << 20  # and its body: errors are small
_STATUS = re.compile(r"HTTP/1\.([01]) ([1-5]\d\d)(?: .*)?\Z")


class NotHttp(Exception):
    """What came is no answer in HTTP/1.1, or one without end."""


@dataclass(frozen=True)
class Road:
    """The way to `host`, as in a URL's: in TLS or not, through an HTTP `proxy` (its URL) or not."""

    host: str
    tls: ssl.SSLContext | None
    proxy: str | None
    proxy_headers: Headers

    @property
    def target(self) -> str:
        """What stands before the path in a request's first line."""
        return f"http://{self.host}" if self.proxy and self.tls is None else ""


@dataclass(frozen=True)
class Answer:
    """What a store answered; names of headers are in lower case."""

    status: int
    headers: Headers
    content: bytes


class Connection:
    """Opened at once; for one thread at a time, but for `cut`. `until` is on the clock of `time.monotonic`.

    Raises OSError (TimeoutError at `until`) and NotHttp, after which it is of no use any more; nor is it where `kept` is False.
    """

    def __init__(self, road: Road, until: float) -> None:
        self.kept = True
        self._held = b""
        self._until = until
        url = urlsplit(road.proxy or f"//{road.host}")
        port = url.port or (443 if road.tls and not road.proxy else 80)
        self._socket: socket.socket = socket.create_connection((url.hostname or "", port), min(self._left_s(), CONNECT_S))
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if road.tls is not None:
                if road.proxy:
                    self._tunnel(road)
                self._socket.settimeout(min(self._left_s(), CONNECT_S))
                name = urlsplit(f"//{road.host}").hostname
                self._socket = road.tls.wrap_socket(self._socket, server_hostname=name)
        except BaseException:
            self._socket.close()
            raise

    def _tunnel(self, road: Road) -> None:
        there = road.host if urlsplit(f"//{road.host}").port else f"{road.host}:443"
        self._send(_head("CONNECT", there, {"host": there, **road.proxy_headers}))
        status, _ = self._answer_head()
        if status != 200:
            raise ConnectionRefusedError(f"the proxy lets nobody through (HTTP {status})")

    def ask(self, method: str, target: str, headers: Headers, body: Iterable[bytes], until: float) -> Answer:
        """Send one request and read its answer. The caller says how long the body is, in `headers`."""
        self._until = until
        pieces = iter(body)
        try:
            self._send(_head(method, target, headers) + next(pieces, b""))
            for piece in pieces:
                self._send(piece)
        except (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
            pass  # a store may say why before it hears us out
        return self._read_answer(method)

    def is_idle(self) -> bool:
        """Whether nothing has come since the last answer: neither the connection's end nor a word about how long it has waited."""
        self._socket.settimeout(0)
        try:
            self._socket.recv(1)
        except (BlockingIOError, ssl.SSLWantReadError):
            return not self._held
        except OSError:
            pass
        return False

    def cut(self) -> None:
        """From any thread: whoever waits here gets an error."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()

    def _left_s(self) -> float:
        left_s = self._until - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        return left_s

    def _send(self, piece: bytes) -> None:
        self._socket.settimeout(self._left_s())
        self._socket.sendall(piece)

    def _more(self) -> None:
        self._socket.settimeout(self._left_s())
        came = self._socket.recv(64 << 10)
        if not came:
            raise ConnectionResetError("the connection was closed")
        self._held += came

    def _read_answer(self, method: str) -> Answer:
        status, headers = self._answer_head()
        while status < 200:  # 100: go on
            status, headers = self._answer_head()
        return Answer(status, headers, b"" if method == "HEAD" or status in (204, 304) else self._body(headers))

    def _answer_head(self) -> tuple[int, dict[str, str]]:
        while (end := self._held.find(b"\r\n\r\n")) < 0:
            if len(self._held) > _HEAD_BYTES:
                _not_http("its head has no end")
            self._more()
        lines = self._held[:end].decode("latin-1").split("\r\n")
        self._held = self._held[end + 4 :]
        known = _STATUS.match(lines[0])
        if known is None:
            _not_http("it has no status")
        headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        said = headers.get("connection", "").lower()
        self.kept = "close" not in said and (known[1] == "1" or "keep-alive" in said)
        return int(known[2]), headers

    def _body(self, headers: Headers) -> bytes:
        if "chunked" in headers.get("transfer-encoding", "").lower():
            return self._chunks()
        length = headers.get("content-length")
        if length is None:
            self.kept = False
            return self._rest()
        if not (length.isascii() and length.isdigit()):
            _not_http("its length is no number")
        return self._take(int(length))

    def _take(self, count: int) -> bytes:
        if count > _BODY_BYTES:
            _not_http("it is too long")
        while len(self._held) < count:
            self._more()
        taken, self._held = self._held[:count], self._held[count:]
        return taken

    def _line(self) -> bytes:
        while (end := self._held.find(b"\r\n")) < 0:
            if len(self._held) > _HEAD_BYTES:
                _not_http("a line of it has no end")
            self._more()
        return self._take(end + 2)[:-2]

    def _chunks(self) -> bytes:
        content = b""
        while True:
            size = self._line().partition(b";")[0].strip()
            if not re.fullmatch(rb"[0-9A-Fa-f]{1,8}", size):
                _not_http("a chunk's length is no number")
            if not (count := int(size, 16)):
                break
            content += self._take(count)
            if self._line() or len(content) > _BODY_BYTES:
                _not_http("its chunks do not fit")
        while self._line():  # trailers
            pass
        return content

    def _rest(self) -> bytes:
        try:
            while len(self._held) <= _BODY_BYTES:
                self._more()
        except ConnectionResetError:
            return self._take(len(self._held))
        _not_http("it is too long")


def _head(method: str, target: str, headers: Headers) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    return "\r\n".join(lines).encode("latin-1")


def _not_http(why: str) -> NoReturn:
    raise NotHttp(f"the answer is not what an S3 store says: {why}")
