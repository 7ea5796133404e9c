"""The staging folder: received files on a local disk until their proof is committed.

`in/` holds files that are still being written or not yet durable (`*.part`), `ready/XX/` the durable ones, `quarantine/`
what cannot be walked. Two checksums roll along while a file comes; the SHA-256 of the whole file is taken when it is made
durable, from what then lies on the disk, if that still has the size and CRC that came. Names are made of hashes, never of
what a peer said. What a crash leaves in `in/` was never promised to anyone and is swept at the next start.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from pathlib import Path

from awscrt.checksums import crc64nvme

from migrate.errors import DiskFailing, DiskFull, LocalError
from migrate.failpoints import reach
from migrate.host import is_open_to_others
from migrate.model import Fixity, InstanceRef, Rolled
from migrate.staging.disk import DISK, Disk, DurableFolders
from migrate.staging.incoming import BUFFER_BYTES, Incoming

_FULL = {errno.ENOSPC, errno.EDQUOT}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_MISPLACED = {errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG}
_READ_BYTES = 256 << 10
_SETTLERS = 4
_ROOM_S = 0.05  # for so long an answer about the room on the disk is good


def local_error(error: OSError, doing: str) -> LocalError:
    """The error of ours that says what an OSError on our own disk means."""
    if error.errno in _FULL:
        return DiskFull(f"The disk is full while {doing}.")
    if error.errno in _FORBIDDEN:
        where = f" {error.filename}" if error.filename else ""
        return DiskFailing(f"This user may not use{where} while {doing}: {error.strerror}.", hint="Check who owns it and what its rights are, or name another place.")
    if error.errno in _MISPLACED and error.filename:
        return DiskFailing(f"{error.filename} cannot be used while {doing}: {error.strerror}.", hint="Something else lies on this path, or it cannot be one: name another place.")
    return DiskFailing(f"The disk failed while {doing}: {error.strerror or error}.")


@contextlib.contextmanager
def _telling(doing: str) -> Iterator[None]:
    """Turns OSError inside into LocalError."""
    try:
        yield
    except OSError as error:
        raise local_error(error, doing) from error


class Staging:
    """The folder, its budget and its order of steps: fsync(file), rename, fsync(folder)."""

    def __init__(self, root: Path, *, max_bytes: int | None = None, reserve_bytes: int = 1 << 30, disk: Disk = DISK) -> None:
        self.root, self._disk = root, disk
        self.incoming, self.ready, self.quarantine = root / "in", root / "ready", root / "quarantine"
        there = next((folder for folder in root.parents if folder.exists()), root)
        self._folders = DurableFolders(disk, there, 0o700)
        with _telling("making the staging folder"):
            for folder in (self.incoming, self.ready, self.quarantine):
                self._folders.make(folder)
                if is_open_to_others(folder):  # made by somebody else, or by a careless copy: patients' images come in here
                    folder.chmod(0o700)
        self._process, self._numbers = os.getpid(), itertools.count()
        self._lock = threading.Lock()
        self._held_bytes = 0
        self.turned_away = 0
        self.trouble: OSError | None = None
        self._pool = ThreadPoolExecutor(_SETTLERS, thread_name_prefix="settle")
        self._buffers: deque[bytearray] = deque(maxlen=4)
        self._room_until = 0.0
        free = shutil.disk_usage(root).free
        self._reserve = min(reserve_bytes, free // 10)
        self._most = max_bytes
        self._grant(free)

    def _grant(self, free: int) -> None:
        """The budget: what is asked for, and no more than is free, less a reserve for manifest and log."""
        here = max(free + self._held_bytes - self._reserve, 0)
        self.max_bytes = min(self._most or here, here)

    # -- writing
    def buffer(self) -> bytearray:
        """For an association's data sets, one after the other, until `take_back`: to make one costs more than to receive a small image."""
        try:
            return self._buffers.pop()
        except IndexError:
            return bytearray(BUFFER_BYTES)

    def take_back(self, buffer: bytearray) -> None:
        """Nobody writes to this buffer any more; it is for the next association."""
        self._buffers.append(buffer)

    def create(self, buffer: bytearray | None = None, hasher: Executor | None = None) -> Incoming:
        """A new, empty file for one data set; see `Incoming` for the buffer and the hasher. Raises OSError."""
        name = f"{self._process:x}-{next(self._numbers):x}.part"
        return Incoming(self.incoming / name, bytearray(BUFFER_BYTES) if buffer is None else buffer, self._disk, hasher)

    def has_room(self) -> bool:
        """False when the disk is down to the reserve: refuse what comes (A700)."""
        now = time.monotonic()
        if now >= self._room_until:
            if shutil.disk_usage(self.root).free <= self._reserve:
                return False
            self._room_until = now + _ROOM_S
        return True

    def takes_more(self) -> bool:
        """False when so little is left that only associations that are open already should go on."""
        if self.held_bytes >= self.max_bytes * 9 // 10:
            return False
        return shutil.disk_usage(self.root).free > self._reserve * 2

    def turn_away(self, error: OSError) -> None:
        """Note that a data set could not be taken, and why: who asked for it must know that it was not the peer."""
        with self._lock:
            self.turned_away += 1
            self.trouble = error

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
        return root.joinpath("ready", name[:2], f"{name}-{dataset_sha256.hex()[:24]}.dcm")

    def settle(self, files: Iterable[tuple[Path, Path, Rolled]]) -> list[Fixity]:
        """Make files durable under their final names: (part, final, what was rolled at the receipt) each, in order.

        All files are read back, hashed, compared and synced, then renamed, then every folder concerned is synced once.
        Raises LocalError, and DiskFailing where a file is not what came: then nothing was renamed.
        """
        batch = list(files)
        folders = {final.parent for _, final, _ in batch}
        added = 0
        try:
            with _telling("writing a received file into staging"):
                fixities = self._sealed([(part, rolled) for part, _, rolled in batch])
                for folder in folders:
                    self._folders.make(folder)
                for part, final, rolled in batch:
                    known = final.exists()  # the same bytes once more
                    reach("stage-rename")
                    self._disk.rename(part, final)
                    added += 0 if known else rolled.size_bytes
                    reach("stage-renamed")
                for folder in folders:
                    self._disk.sync_folder(folder)
                reach("stage-folders-synced")
        finally:
            with self._lock:  # what was renamed lies there, whatever failed after it
                self._held_bytes += added
        return fixities

    def _sealed(self, files: list[tuple[Path, Rolled]]) -> list[Fixity]:
        """`_seal` for each file, in a few threads."""
        fixities: dict[int, Fixity] = {}
        left = deque(enumerate(files))

        def work() -> None:
            buffer = bytearray(_READ_BYTES)
            try:
                while left:
                    with contextlib.suppress(IndexError):  # another thread took the last one
                        at, (path, rolled) = left.popleft()
                        fixities[at] = _seal(path, rolled, buffer, self._disk)
            except BaseException:
                left.clear()
                raise

        workers = [self._pool.submit(work) for _ in range(min(_SETTLERS, len(files)))]
        wait(workers)
        for worker in workers:
            worker.result()
        return [fixities[at] for at in range(len(files))]

    # -- leaving
    def release(self, path: Path, size_bytes: int) -> None:
        """Remove a file whose proof is committed."""
        with _telling("removing a staged file"):
            reach("release-begun")
            try:
                self._disk.unlink(path)
            except FileNotFoundError:
                return
            reach("release-done")
        with self._lock:
            self._held_bytes -= size_bytes

    def clear_incoming(self) -> int:
        """While nothing comes: remove what broke off and what the disk did not let go then. Returns the number of files removed."""
        with _telling("clearing staging"):
            left = list(self.incoming.iterdir())
            for path in left:
                self._disk.unlink(path)
        return len(left)

    def sweep(self, needed: Collection[Path]) -> int:
        """At start: remove what was never promised, count what is kept. Returns the number of files removed."""
        removed, kept = self.clear_incoming(), 0
        with _telling("clearing staging"):
            for path in self.ready.glob("*/*"):
                if path in needed:
                    kept += path.stat().st_size
                else:
                    self._disk.unlink(path)
                    removed += 1
        self._held_bytes = kept
        self._grant(shutil.disk_usage(self.root).free)
        return removed

    def holding(self) -> dict[str, int]:
        """What lies here now: durable files with their bytes, and files in quarantine. Raises LocalError."""
        with _telling("looking into staging"):
            sizes = [path.stat().st_size for path in self.ready.glob("*/*")]
            kept = sum(1 for path in self.quarantine.iterdir() if path.is_file())
        return {"files": len(sizes), "bytes": sum(sizes), "quarantined": kept}

    def tidy(self) -> None:
        """Remove empty folders, so that a finished migration leaves nothing but the quarantine."""
        with _telling("tidying staging"):
            for folder in (*self.ready.glob("*"), self.ready, self.incoming):
                if folder.is_dir() and not any(folder.iterdir()):
                    self._disk.remove_folder(folder)

    def close(self) -> None:
        self._pool.shutdown(wait=False)


def _seal(path: Path, rolled: Rolled, buffer: bytearray, disk: Disk) -> Fixity:
    """Read a received file back, compare it with what came, sync it. Raises DiskFailing where it differs, OSError."""
    digest, size, crc = hashlib.sha256(), 0, 0
    view = memoryview(buffer)
    fd = disk.open(path, write=True)
    try:
        while count := disk.read(fd, view):
            piece = view[:count]
            digest.update(piece)
            crc = crc64nvme(piece, crc)
            size += count
        if (size, crc) != (rolled.size_bytes, rolled.crc64nvme):
            raise DiskFailing("A received file does not read back from staging as it was written.")
        reach("stage-read")
        disk.sync(fd)
    finally:
        disk.close(fd)
    reach("stage-synced")
    return Fixity(size, digest.digest(), rolled.dataset_sha256, crc)


def copy_into(pieces: Iterable[bytes], file: Path) -> None:
    """Write pieces into a new file that nothing is promised of. What the pieces raise comes through; raises LocalError for the file's disk."""
    try:
        out = file.open("xb", buffering=0)
    except OSError as error:
        raise local_error(error, "making a scratch file") from error
    with out:
        for piece in pieces:
            try:
                out.write(piece)
            except OSError as error:
                raise local_error(error, "writing a scratch file") from error


def hash_file(path: Path) -> tuple[int, bytes]:
    """(size in bytes, SHA-256) of a file as it lies on the disk now. Raises OSError."""
    digest = hashlib.sha256()
    size = 0
    with path.open("rb", buffering=0) as file:
        buffer = memoryview(bytearray(_READ_BYTES))
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            size += count
    return size, digest.digest()


def measured(path: Path) -> Fixity:
    """What a file of ours holds, as `Destination.keep` needs it. Raises LocalError."""
    sha256, crc, size = hashlib.sha256(), 0, 0
    try:
        with path.open("rb") as file:
            while piece := file.read(_READ_BYTES):
                sha256.update(piece)
                crc, size = crc64nvme(piece, crc), size + len(piece)
    except OSError as error:
        raise local_error(error, "reading a file to be kept") from error
    return Fixity(size, sha256.digest(), sha256.digest(), crc)
