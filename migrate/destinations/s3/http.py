"""Python's own HTTP/1.1 client as a store needs it: through proxies, in one send, and with an end that comes from outside."""

from __future__ import annotations

import io
import select
import socket
import ssl
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection, IncompleteRead
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from migrate.destinations.s3.answers import Headers

CONNECT_S = 10
_BODY_BYTES = 64 << 10  # the most that is read of an answer's body: an error's code stands at its beginning


@dataclass(frozen=True)
class Answer:
    """What a store answered; names of headers are in lower case."""

    status: int
    headers: Headers
    content: bytes


class _WholeLines(io.BufferedReader):
    def readline(self, size: int | None = -1, /) -> bytes:
        line = super().readline(size)
        if not line.endswith(b"\n") and len(line) != size:
            raise ConnectionResetError("the connection was closed")
        return line


class _Response(HTTPResponse):
    """Python's takes the end of a connection for the end of an answer's head: half a head, half a checksum would be believed."""

    def __init__(self, sock: socket.socket, *arguments: Any, **named: Any) -> None:
        super().__init__(sock, *arguments, **named)
        self.fp = _WholeLines(self.fp.detach())


class Connection(HTTPConnection):
    """For one thread at a time, but for `cut`. Raises OSError and HTTPException, after which it is to be closed, as where `kept` is False.

    Waits for as long as it takes, once it is connected: whoever uses it cuts it in time.
    """

    response_class = _Response
    auto_open = 0  # a cut connection is not to come back
    kept = False
    before_path = ""  # what a proxy that passes requests on wants to have there
    proxy_headers: Headers = MappingProxyType({})
    _wire: socket.socket | None = None  # stays while an answer is read, when `sock` may be gone already
    _is_cut = False
    _held: bytes | None = None

    def connect(self, limit_s: float = CONNECT_S) -> None:
        self.timeout = min(limit_s, CONNECT_S)
        super().connect()
        self._wire = self.sock
        self.sock.settimeout(None)
        if self._is_cut:
            raise ConnectionAbortedError

    def ask(self, method: str, path: str, headers: Headers, body: Iterable[bytes]) -> Answer:
        """Send one request and read its answer. The caller says how long the body is, in `headers`."""
        self.kept = False
        self.putrequest(method, self.before_path + path, skip_host=True, skip_accept_encoding=True)
        for name, value in (*headers.items(), *self.proxy_headers.items()):
            self.putheader(name, value)
        with suppress(BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):  # a store may say why before it hears us out
            self.endheaders(body)
        with self.getresponse() as response:
            if response.status < 200:
                raise HTTPException("an answer that is not the last one")
            try:
                content = response.read(_BODY_BYTES)
            except ValueError as error:  # so Python reads a chunk with a negative length
                raise HTTPException("a chunk has no length") from error
            if self._is_cut:
                raise ConnectionAbortedError
            if response.length and len(content) < _BODY_BYTES:
                raise IncompleteRead(content, response.length)
            self.kept = response.isclosed() and not response.will_close
            return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, content)

    def endheaders(self, message_body: Any = None, *, encode_chunked: bool = False) -> None:
        """As Python's, but the head goes out together with the body's first piece: two sends cost a small put a tenth."""
        self._held = b""
        super().endheaders(message_body, encode_chunked=encode_chunked)
        held, self._held = self._held, None
        if held:
            super().send(held)

    def send(self, data: Any) -> None:
        if self._held == b"":
            self._held = data
        else:
            held, self._held = self._held, None
            super().send(held + data if held else data)

    def is_idle(self) -> bool:
        """Whether nothing has come since the last answer: neither the connection's end nor a word about how long it has waited."""
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return not poll.poll(0)

    def cut(self) -> None:
        """From any thread and for good: whoever waits here gets an error."""
        self._is_cut = True
        wire = self._wire or self.sock
        if wire is not None:
            with suppress(OSError):
                socket.socket.shutdown(wire, socket.SHUT_RDWR)  # TLS's own would let a send that runs meanwhile go on without TLS


class _TlsConnection(Connection, HTTPSConnection):
    pass


@dataclass(frozen=True)
class Road:
    """The way to `host`, as in a URL's: in TLS or not, through an HTTP `proxy` (its URL) or not."""

    host: str
    tls: ssl.SSLContext | None
    proxy: str | None
    proxy_headers: Headers

    def connection(self) -> Connection:
        """Not connected yet."""
        there = urlsplit(f"//{self.host}")
        first = urlsplit(self.proxy) if self.proxy else there
        port = first.port or (443 if self.tls and not self.proxy else 80)
        if self.tls is not None:
            connection: Connection = _TlsConnection(first.hostname or "", port, context=self.tls)
            if self.proxy:
                connection.set_tunnel(there.hostname or "", there.port or 443, dict(self.proxy_headers))
            return connection
        connection = Connection(first.hostname or "", port)
        if self.proxy:
            connection.before_path, connection.proxy_headers = f"http://{self.host}", self.proxy_headers
        return connection
