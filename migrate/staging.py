"""The staging folder: received files on a local disk until their proof is committed.

`in/` holds files that are still being written or not yet durable (`*.part`), `ready/XX/` the durable ones, `quarantine/`
what cannot be walked. Names are made of hashes, never of what a peer said. What a crash leaves in `in/` was never
promised to anyone and is swept at the next start.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import shutil
import threading
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from awscrt.checksums import crc64nvme

from migrate.errors import DiskFailing, DiskFull, LocalError
from migrate.host import sync_folder
from migrate.model import Fixity, InstanceRef

_FULL = {errno.ENOSPC, errno.EDQUOT}
_HELPER_FROM_BYTES = 4 << 20  # below, a thread costs more than it saves
_BUFFER_BYTES = 512 << 10  # two for each large file that is coming


def local_error(error: OSError, doing: str) -> LocalError:
    """The error of ours that says what an OSError on our own disk means."""
    if error.errno in _FULL:
        return DiskFull(f"The disk is full while {doing}.")
    return DiskFailing(f"The disk failed while {doing}: {error.strerror or error}.")


class _Helper:
    """A digest in a thread of its own: what is fed is copied into one of two buffers while the other is hashed.

    One thread feeds. Memory is bounded: `feed` waits while both buffers are full.
    """

    def __init__(self, digest: hashlib._Hash) -> None:
        self._digest = digest
        self._failure: BaseException | None = None
        self._spare: SimpleQueue[bytearray] = SimpleQueue()
        self._full: SimpleQueue[tuple[bytearray, int] | None] = SimpleQueue()
        for _ in range(2):
            self._spare.put(bytearray(_BUFFER_BYTES))
        self._buffer, self._used = self._spare.get(), 0
        self._thread = threading.Thread(target=self._run, name="hash", daemon=True)
        self._thread.start()

    def feed(self, fragment: memoryview) -> None:
        """Take a copy, so that the caller may reuse its buffer."""
        while fragment:
            count = min(len(fragment), _BUFFER_BYTES - self._used)
            self._buffer[self._used : self._used + count] = fragment[:count]
            self._used += count
            fragment = fragment[count:]
            if self._used == _BUFFER_BYTES:
                self._full.put((self._buffer, self._used))
                self._buffer, self._used = self._spare.get(), 0

    def end(self) -> None:
        """Wait until everything fed is hashed and the thread is gone. Raises OSError if a piece could not be hashed."""
        if self._thread.is_alive():
            self._full.put((self._buffer, self._used))
            self._full.put(None)
            self._thread.join()
        if self._failure is not None:
            raise OSError(errno.EIO, "the checksum of a file could not be computed") from self._failure

    def _run(self) -> None:
        while piece := self._full.get():
            buffer, used = piece
            if self._failure is None:
                try:
                    self._digest.update(memoryview(buffer)[:used])
                except BaseException as error:  # told by `end`; the buffers must go on circulating
                    self._failure = error
            self._spare.put(buffer)


class Incoming:
    """A Part 10 file being written: hashes roll along, the bytes are never held.

    `header` is the preamble and file meta; everything after it is the data set. A large file's own digest is taken in a
    second thread, so that the receiving one hashes the data set only. Raises OSError as the disk does.
    """

    def __init__(self, path: Path, header: bytes) -> None:
        self.path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
        self._dataset = hashlib.sha256()
        self._file = hashlib.sha256(header)
        self._crc = crc64nvme(header)
        self._helper: _Helper | None = None
        self._helper_from_bytes: float = _HELPER_FROM_BYTES
        self.size_bytes = len(header)
        self.header_bytes = len(header)
        try:
            os.write(self._fd, header)
        except OSError:
            self.discard()
            raise

    def write(self, fragment: memoryview) -> None:
        """Append a fragment of the data set; its buffer may be reused afterwards."""
        if self._helper is None and self.size_bytes >= self._helper_from_bytes:
            self._start_helper()
        if self._helper is None:
            self._file.update(fragment)
        else:
            self._helper.feed(fragment)
        self._dataset.update(fragment)
        self._crc = crc64nvme(fragment, self._crc)
        self.size_bytes += len(fragment)
        while fragment:
            fragment = fragment[os.write(self._fd, fragment) :]

    def close(self) -> Fixity:
        """Close the file (not yet durable) and return what is known of it."""
        if self._helper is not None:
            self._helper.end()
        fd, self._fd = self._fd, -1
        os.close(fd)
        return Fixity(self.size_bytes, self._file.digest(), self._dataset.digest(), self._crc)

    def discard(self) -> None:
        """Close and remove the file."""
        if self._helper is not None:
            with contextlib.suppress(OSError):  # nobody wants the digest any more
                self._helper.end()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self.path.unlink(missing_ok=True)

    def _start_helper(self) -> None:
        try:
            self._helper = _Helper(self._file)
        except (RuntimeError, MemoryError):  # no more threads: slower, and right all the same
            self._helper_from_bytes = float("inf")


class Staging:
    """The folder, its budget and its order of steps: fsync(file), rename, fsync(folder)."""

    def __init__(self, root: Path, *, max_bytes: int | None = None, reserve_bytes: int = 1 << 30) -> None:
        self.root = root
        self.incoming, self.ready, self.quarantine = root / "in", root / "ready", root / "quarantine"
        for folder in (root, self.incoming, self.ready, self.quarantine):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._reserve = reserve_bytes
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._held_bytes = 0
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="sync")
        free = shutil.disk_usage(root).free
        self._reserve = min(reserve_bytes, free // 10)
        self.max_bytes = min(max_bytes or free - self._reserve, max(free - self._reserve, 0))

    # -- writing
    def create(self, header: bytes) -> Incoming:
        """A new file for one data set; `header` is written first. Raises OSError."""
        name = f"{os.getpid():x}-{next(self._numbers):x}.part"
        return Incoming(self.incoming / name, header)

    def has_room(self) -> bool:
        """False when the disk is down to the reserve: refuse what comes (A700)."""
        return shutil.disk_usage(self.root).free > self._reserve

    def above_high_water(self) -> bool:
        """True when so much lies here that nothing more should be asked for."""
        return self.held_bytes >= self.max_bytes * 3 // 4

    @property
    def held_bytes(self) -> int:
        return self._held_bytes

    def path_of(self, ref: InstanceRef, dataset_sha256: bytes) -> Path:
        """Where the durable file of these UIDs and bytes lies."""
        return self.path_below(self.root, ref, dataset_sha256)

    @staticmethod
    def path_below(root: Path, ref: InstanceRef, dataset_sha256: bytes) -> Path:
        """The same, below any root."""
        name = hashlib.sha256(f"{ref.study}/{ref.series}/{ref.sop}".encode()).hexdigest()[:32]
        return root / "ready" / name[:2] / f"{name}-{dataset_sha256.hex()[:24]}.dcm"

    def settle(self, files: Iterable[tuple[Path, Path, int]]) -> None:
        """Make files durable under their final names: (part, final, size_bytes) each.

        All files are synced, then renamed, then every folder concerned is synced once. Raises LocalError.
        """
        batch = list(files)
        try:
            list(self._pool.map(self._sync_file, [part for part, _, _ in batch]))
            folders: set[Path] = set()
            added = 0
            for part, final, size in batch:
                if not final.parent.is_dir():
                    final.parent.mkdir(mode=0o700, exist_ok=True)
                    folders.add(final.parent.parent)
                known = final.exists()  # the same bytes once more
                os.replace(part, final)
                folders.add(final.parent)
                added += 0 if known else size
            for folder in folders:
                sync_folder(folder)
        except OSError as error:
            raise local_error(error, "writing a received file into staging") from error
        with self._lock:
            self._held_bytes += added

    @staticmethod
    def _sync_file(path: Path) -> None:
        fd = os.open(path, os.O_RDWR)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    # -- leaving
    def release(self, path: Path, size_bytes: int) -> None:
        """Remove a file whose proof is committed."""
        try:
            path.unlink()
        except FileNotFoundError:
            return
        with self._lock:
            self._held_bytes -= size_bytes

    def sweep(self, needed: Collection[Path]) -> int:
        """At start: remove what was never promised, count what is kept. Returns the number of files removed."""
        removed = kept = 0
        for path in self.incoming.iterdir():
            path.unlink()
            removed += 1
        for path in self.ready.glob("*/*"):
            if path in needed:
                kept += path.stat().st_size
            else:
                path.unlink()
                removed += 1
        self._held_bytes = kept
        return removed

    def tidy(self) -> None:
        """Remove empty folders, so that a finished migration leaves nothing but the quarantine."""
        for folder in (*self.ready.glob("*"), self.ready, self.incoming):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def close(self) -> None:
        self._pool.shutdown(wait=False)


__all__ = ["Incoming", "Staging", "hash_file", "local_error", "sync_folder"]


def hash_file(path: Path) -> tuple[int, bytes]:
    """(size in bytes, SHA-256) of a file as it lies on the disk now. Raises OSError."""
    digest = hashlib.sha256()
    size = 0
    with path.open("rb", buffering=0) as file:
        buffer = memoryview(bytearray(1 << 20))
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            size += count
    return size, digest.digest()
