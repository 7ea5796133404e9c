"""Single requests on an object, over kept connections: what small objects are put and proven with.

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
from http.client import HTTPException
from pathlib import Path

from migrate.destinations.s3.access import Access
from migrate.destinations.s3.answers import Headers, NoAnswer, StoreSaid, error_code
from migrate.destinations.s3.http import Answer, Connection, Road
from migrate.destinations.s3.signature import sign

_PIECE_BYTES = 256 << 10
_IDLE_S = 20.0  # firewalls forget what is silent for longer, and tell nobody
_EMPTY_SHA256 = hashlib.sha256().digest()
_TICK_S = 0.25  # how often limits are looked at
_PASSING = {408, 429, 500, 502, 503, 504}
_PASSING_CODES = {"RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests"}


class Direct:
    """Puts and looks on objects of one bucket. Threads may share it: each request has a connection to itself."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._lock = threading.Lock()
        self._road: Road | None = None
        self._idle: list[tuple[Connection, float]] = []  # and since when
        self._busy: dict[Connection, float] = {}  # and until when, on the clock of `time.monotonic`
        self._watcher: threading.Thread | None = None
        self._closed = threading.Event()

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
            self._closed.set()
            for connection in self._busy:
                connection.cut()
            idle, self._idle = self._idle, []
        for connection, _ in idle:
            connection.close()

    def _ask(self, method: str, key: str, headers: Headers, sha256: bytes, body: Callable[[], Iterable[bytes]], limit_s: float) -> Headers:
        until, retries = time.monotonic() + limit_s, 0
        while True:
            try:
                answer = self._once(method, self._access.path(key), headers, sha256, body, until)
                if 200 <= answer.status < 300:
                    return answer.headers
                trouble: StoreSaid | NoAnswer = StoreSaid(answer.status, error_code(answer.content), answer.headers)
            except (OSError, HTTPException) as error:
                trouble = NoAnswer(_reason(error) if time.monotonic() < until else f"nothing was finished within {limit_s:.0f} s")
                trouble.__cause__ = error
            wait_s = random.uniform(0, self._access.settings.first_wait_s * 2**retries)
            if retries >= self._access.settings.retries or not _passes(trouble) or time.monotonic() + wait_s >= until or self._closed.wait(wait_s):
                raise trouble
            retries += 1

    def _once(
        self, method: str, path: str, headers: Headers, sha256: bytes, body: Callable[[], Iterable[bytes]], until: float
    ) -> Answer:
        access = self._access
        whole = {"host": access.host, **headers, **access.owner}
        signed = sign(method, path, whole, sha256, access.credentials(), access.region)
        connection = self._waiting()
        if connection is not None:
            with suppress(ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError):  # it ended meanwhile: no failure of the store
                return self._through(connection, method, path, signed, body, until)
        return self._through(self._there.connection(), method, path, signed, body, until)

    def _through(
        self, connection: Connection, method: str, path: str, signed: Headers, body: Callable[[], Iterable[bytes]], until: float
    ) -> Answer:
        self._begin(connection, until)
        try:
            if connection.sock is None:
                connection.connect(max(until - time.monotonic(), _TICK_S))
            return connection.ask(method, path, signed, body())
        finally:
            with self._lock:
                del self._busy[connection]
                kept = connection.kept and not self._closed.is_set()
                if kept:
                    self._idle.append((connection, time.monotonic()))
            if not kept:
                connection.close()

    def _begin(self, connection: Connection, until: float) -> None:
        with self._lock:
            if self._closed.is_set() or time.monotonic() >= until:
                connection.close()
                raise ConnectionAbortedError
            if self._watcher is None:
                watcher = threading.Thread(target=self._watch, name="s3-limits", daemon=True)
                watcher.start()
                self._watcher = watcher
            self._busy[connection] = until

    def _watch(self) -> None:
        """Cut whatever is past its limit: time-outs of a socket begin anew with each byte. Ends when nothing is on its way."""
        while True:
            time.sleep(_TICK_S)
            with self._lock:
                if not self._busy:
                    self._watcher = None
                    return
                now = time.monotonic()
                for connection, until in self._busy.items():
                    if now >= until:
                        connection.cut()

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
                if not self._idle:
                    return None
                connection, since = self._idle.pop()
            if time.monotonic() - since < _IDLE_S and connection.is_idle():
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
    if isinstance(error, HTTPException) and not isinstance(error, OSError):
        return f"the answer is not what an S3 store says ({type(error).__name__})"
    if type(error) is OSError and not error.errno:
        return " ".join(str(error).split()[:4])  # of a proxy: "Tunnel connection failed: 407"
    told = getattr(error, "strerror", None)
    if isinstance(error, TimeoutError) and not told:
        return "connecting took too long"
    return f"{type(error).__name__} ({told})" if told else type(error).__name__
