"""Single requests on an object, signed and sent by ourselves: what small objects are put and proven with.

The AWS client's hand-over between threads costs more than the rest of a small put, and boto's preparation four times as much
(docs/benchmarks.md has the numbers). The signature covers the SHA-256 that is known since the receipt, so nothing is hashed again.
"""

from __future__ import annotations

import hashlib
import random
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from migrate.destinations.s3_access import Access
from migrate.destinations.s3_answers import Headers, NoAnswer, StoreSaid, error_code
from migrate.destinations.s3_http import Answer, Connection, NotHttp, Road
from migrate.destinations.s3_signature import sign

_PIECE_BYTES = 256 << 10
_EMPTY_SHA256 = hashlib.sha256().digest()
_PASSING = {429, 500, 502, 503, 504}
_PASSING_CODES = {"RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests"}


class Direct:
    """Puts and looks on objects of one bucket. Threads may share it: each request has a connection to itself."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._lock = threading.Lock()
        self._road: Road | None = None
        self._idle: list[Connection] = []
        self._busy: set[Connection] = set()
        self._closed = False

    def put(self, key: str, file: Path, size_bytes: int, sha256: bytes, headers: Headers, limit_s: float) -> Headers:
        """PutObject, create-only. Raises StoreSaid, NoAnswer; no later than after `limit_s`, retries included."""
        whole = {"content-length": str(size_bytes), "if-none-match": "*", **headers}
        return self._ask("PUT", key, whole, sha256, lambda: _pieces(file, size_bytes), limit_s)

    def head(self, key: str, limit_s: float) -> Headers:
        """HeadObject with checksums, of the newest version. Raises as `put` does."""
        return self._ask("HEAD", key, {"x-amz-checksum-mode": "ENABLED"}, _EMPTY_SHA256, tuple, limit_s)

    def close(self) -> None:
        """End all connections; whoever waits for an answer gets none."""
        with self._lock:
            self._closed = True
            for connection in self._busy:
                connection.cut()
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _ask(self, method: str, key: str, headers: Headers, sha256: bytes, body: Callable[[], Iterable[bytes]], limit_s: float) -> Headers:
        until, retries = time.monotonic() + limit_s, 0
        while True:
            try:
                answer = self._once(method, self._access.path(key), headers, sha256, body, until)
                if 200 <= answer.status < 300:
                    return answer.headers
                trouble: StoreSaid | NoAnswer = StoreSaid(answer.status, error_code(answer.content), answer.headers)
            except TimeoutError as error:
                trouble = NoAnswer(f"nothing was finished within {limit_s:.0f} s" if time.monotonic() >= until else "connecting took too long")
                trouble.__cause__ = error
            except (OSError, NotHttp) as error:
                trouble = NoAnswer(_reason(error))
                trouble.__cause__ = error
            wait_s = random.uniform(0, self._access.first_wait_s * 2**retries)
            if retries >= self._access.retries or self._closed or not _passes(trouble) or time.monotonic() + wait_s >= until:
                raise trouble
            retries += 1
            time.sleep(wait_s)

    def _once(
        self, method: str, path: str, headers: Headers, sha256: bytes, body: Callable[[], Iterable[bytes]], until: float
    ) -> Answer:
        access = self._access
        whole = {"host": access.host, **headers, **access.owner}
        signed = sign(method, path, whole, sha256, access.credentials(), access.region, time.time())
        connection = self._waiting()
        if connection is not None:
            with suppress(ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError):  # it ended meanwhile: no failure of the store
                return self._through(connection, method, path, signed, body, until)
        return self._through(Connection(self._there, until), method, path, signed, body, until)

    def _through(
        self, connection: Connection, method: str, path: str, signed: Headers, body: Callable[[], Iterable[bytes]], until: float
    ) -> Answer:
        kept = False
        try:
            with self._lock:
                self._busy.add(connection)
                if self._closed:
                    raise ConnectionAbortedError
            answer = connection.ask(method, self._there.target + path, signed, body(), until)
            kept = connection.kept
            return answer
        finally:
            with self._lock:
                self._busy.discard(connection)
                kept = kept and not self._closed
                if kept:
                    self._idle.append(connection)
            if not kept:
                connection.close()

    @property
    def _there(self) -> Road:
        with self._lock:
            if self._road is None:
                self._road = self._access.road()
            return self._road

    def _waiting(self) -> Connection | None:
        """A connection that served before and is still there."""
        while True:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            if connection is None or connection.is_idle():
                return connection
            connection.close()


def _pieces(file: Path, size_bytes: int) -> Iterator[bytes]:
    """Exactly so many bytes of a file. Raises NoAnswer where they cannot be read."""
    left = size_bytes
    try:
        with file.open("rb", buffering=0) as opened:
            while left:
                piece = opened.read(min(left, _PIECE_BYTES))
                if not piece:
                    raise NoAnswer("the file is shorter than it was", "file")
                left -= len(piece)
                yield piece
    except OSError as error:
        raise NoAnswer(type(error).__name__, "file") from error


def _passes(trouble: StoreSaid | NoAnswer) -> bool:
    if isinstance(trouble, StoreSaid):
        return trouble.status in _PASSING or trouble.code in _PASSING_CODES
    return not isinstance(trouble.__cause__, ssl.SSLCertVerificationError)


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return f"SSL {error.reason or 'error'}"
    if isinstance(error, NotHttp):
        return str(error)
    told = getattr(error, "strerror", None)
    return f"{type(error).__name__} ({told})" if told else type(error).__name__
