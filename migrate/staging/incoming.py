"""One received file on its way into staging: written and hashed piece by piece while more is coming."""

from __future__ import annotations

import contextlib
import hashlib
from concurrent.futures import Executor, Future
from pathlib import Path

from awscrt.checksums import crc64nvme

from migrate.model import Rolled
from migrate.staging.disk import DISK, Disk

HELD_BYTES = 1 << 20
BUFFER_BYTES = 2 * HELD_BYTES
_PIECE_BYTES, _LARGE_PIECE_BYTES = 128 << 10, 512 << 10
_ASIDE_BYTES = 64 << 10


class Incoming:
    """A Part 10 file being written: its checksums roll along, of the bytes as they came.

    They are hashed and written in pieces while more are on their way, and kept as long as they are no more than
    `HELD_BYTES`, so that an ordinary instance need not be read back to be scanned. `begin` it with the preamble and file
    meta; everything after that is the data set. Raises OSError as the disk does.
    """

    def __init__(self, path: Path, buffer: bytearray, disk: Disk = DISK, hasher: Executor | None = None) -> None:
        """`buffer` has `BUFFER_BYTES`, is written to until `roll` or `discard`, and may then serve the next file.

        A `hasher` of one thread takes the SHA-256 of what is beyond the first `HELD_BYTES` beside the caller, who fills one half
        of the buffer while the other is hashed; one that gives no thread raises RuntimeError. To wake it for less costs more
        than to hash.
        """
        self.path, self._disk, self._hasher = path, disk, hasher
        self._fd = disk.create(path)
        self._view, self._other = memoryview(buffer)[:HELD_BYTES], memoryview(buffer)[HELD_BYTES:]
        self._held = self._taken = self._written = 0  # bytes in this half, those of them that are written, all written
        self._kept = True  # this half still holds all there is
        self._dataset = hashlib.sha256()
        self._hashing: Future[None] | None = None  # the last piece that was handed over
        self._hashing_other: Future[None] | None = None  # the last one in the other half
        self._crc = 0
        self.header_bytes = 0

    def begin(self, header: bytes) -> Incoming:
        """The first bytes, once; they are no part of the data set."""
        self._hold(header)
        self.header_bytes = len(header)
        return self

    def write(self, fragment: memoryview, *, more: bool = False) -> None:
        """Append a fragment of the data set; its buffer may be reused afterwards. With `more` at hand, what is hashed and written
        at once gets larger: to be early gains nothing then."""
        while len(fragment) > HELD_BYTES - self._held:
            room = HELD_BYTES - self._held
            self._hold(fragment[:room])
            self._empty()
            fragment = fragment[room:]
        self._hold(fragment)
        if self._held - self._taken >= (_PIECE_BYTES if self._kept and not more else _LARGE_PIECE_BYTES):
            self._take()

    def close(self) -> int:
        """Write what is left and close the file (not yet durable); returns its CRC64NVME."""
        self._take()
        fd, self._fd = self._fd, -1
        self._disk.close(fd)
        return self._crc

    def roll(self) -> Rolled:
        """After `close`: what is known of the file."""
        self._catch_up()
        return Rolled(self._written, self._dataset.digest(), self._crc)

    @property
    def whole(self) -> memoryview | None:
        """After `close`: all bytes of the file if they are still in the buffer, which they are if it is small."""
        return self._view[: self._held] if self._kept else None

    def discard(self) -> None:
        """Close and remove the file."""
        self._catch_up()
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
        """Hash and write what came since."""
        if self._taken < self._held:
            self._put(self._view[self._taken : self._held])
            self._taken = self._held

    def _empty(self) -> None:
        """Go on in the other half."""
        self._take()
        self._kept = False
        if self._hashing_other is not None:
            self._hashing_other.result()
        self._view, self._other, self._hashing_other = self._other, self._view, self._hashing
        self._held = self._taken = 0

    def _put(self, data: memoryview) -> None:
        self._hash(data if self._written else data[self.header_bytes :])
        self._crc = crc64nvme(data, self._crc)
        self._written += len(data)
        self._disk.write(self._fd, data)

    def _hash(self, data: memoryview) -> None:
        if self._hasher is not None and not self._kept:
            self._hashing = self._hasher.submit(self._dataset.update, data)
        else:
            self._catch_up()
            self._dataset.update(data)

    def _catch_up(self) -> None:
        """Wait until all that was handed over is hashed."""
        if self._hashing is not None:
            self._hashing.result()
            self._hashing = self._hashing_other = None
