"""One received file on its way into staging: written and hashed piece by piece while more is coming."""

from __future__ import annotations

import contextlib
import hashlib
from concurrent.futures import Executor, Future
from pathlib import Path

from awscrt.checksums import crc64nvme

from migrate.disk import DISK, Disk
from migrate.model import Rolled

HELD_BYTES = 1 << 20
BUFFER_BYTES = 2 * HELD_BYTES
_PIECE_BYTES, _LARGE_PIECE_BYTES = 128 << 10, 512 << 10
_ASIDE_BYTES = 64 << 10  # to wake another thread for less costs about as much as to hash it


class Incoming:
    """A Part 10 file being written: its checksums roll along, of the bytes as they came.

    They are hashed and written in pieces while more are on their way, and kept as long as they are no more than
    `HELD_BYTES`, so that an ordinary instance need not be read back to be scanned. `begin` it with the preamble and file
    meta; everything after that is the data set. Raises OSError as the disk does.
    """

    def __init__(
        self, path: Path, buffer: bytearray, disk: Disk = DISK, hasher: Executor | None = None, after: Incoming | None = None
    ) -> None:
        """`buffer` has `BUFFER_BYTES` and may serve one file `after` the other.

        A `hasher` of one thread takes the SHA-256 of large pieces beside the caller, who fills one half of the buffer
        while the other is hashed, also when that is the next file's half. One that gives no thread raises RuntimeError.
        """
        self.path, self._disk, self._hasher = path, disk, hasher
        self._fd = disk.create(path)
        self._view, self._other = memoryview(buffer)[:HELD_BYTES], memoryview(buffer)[HELD_BYTES:]
        self._hashing: Future[None] | None = None  # the last piece of ours that was handed over
        self._hashing_other: Future[None] | None = None  # the last that lies in the other half
        if after is not None:
            self._view, self._other = after._other, after._view
            if after._hashing_other is not None:
                after._hashing_other.result()
            self._hashing_other = after._hashing
        self._held = self._hashed = self._taken = self._written = 0  # bytes in this half, those hashed, written; all written
        self._kept = True  # this half still holds all there is
        self._dataset = hashlib.sha256()
        self._crc = 0
        self.header_bytes = 0

    def begin(self, header: bytes) -> Incoming:
        """The first bytes, once; they are no part of the data set."""
        self._hold(header)
        self._hashed = self.header_bytes = len(header)
        return self

    def write(self, fragment: memoryview) -> None:
        """Append a fragment of the data set; its buffer may be reused afterwards."""
        while len(fragment) > HELD_BYTES - self._held:
            room = HELD_BYTES - self._held
            self._hold(fragment[:room])
            self._empty()
            fragment = fragment[room:]
        self._hold(fragment)
        if self._held - self._taken >= (_PIECE_BYTES if self._kept else _LARGE_PIECE_BYTES):
            self._take()

    def close(self) -> Rolled:
        """Write what is left and close the file (not yet durable); returns what is known of it."""
        self._hash()
        self._take()
        fd, self._fd = self._fd, -1
        self._disk.close(fd)
        return Rolled(self._written, self._dataset.digest() if self._hashing is None else self._digest, self._crc)

    @property
    def whole(self) -> memoryview | None:
        """After `close`: all bytes of the file if they are still in the buffer, which they are if it is small."""
        return self._view[: self._held] if self._kept else None

    def discard(self) -> None:
        """Close and remove the file."""
        if self._fd >= 0:
            self._disk.close(self._fd)
            self._fd = -1
        with contextlib.suppress(FileNotFoundError):
            self._disk.unlink(self.path)

    def _hold(self, data: bytes | memoryview) -> None:
        end = self._held + len(data)
        self._view[self._held : end] = data
        self._held = end

    def _take(self) -> None:
        """Write what came since."""
        if self._taken < self._held:
            piece = self._view[self._taken : self._held]
            self._crc = crc64nvme(piece, self._crc)
            self._written += len(piece)
            self._taken = self._held
            self._disk.write(self._fd, piece)

    def _hash(self) -> None:
        """Hash what this half holds, now or soon."""
        piece, self._hashed = self._view[self._hashed : self._held], self._held
        if self._hasher is not None and len(piece) >= _ASIDE_BYTES:
            self._hashing = self._hasher.submit(self._dataset.update, piece)
        else:
            if self._hashing is not None:
                self._hashing.result()
            self._dataset.update(piece)

    def _empty(self) -> None:
        """Go on in the other half."""
        self._hash()
        self._take()
        self._kept = False
        if self._hashing_other is not None:
            self._hashing_other.result()
        self._view, self._other, self._hashing_other = self._other, self._view, self._hashing
        self._held = self._hashed = self._taken = 0

    def _digest(self) -> bytes:
        if self._hashing is not None:
            self._hashing.result()
        return self._dataset.digest()
