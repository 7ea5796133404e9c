"""Every file that staging and the folder destination open, write, sync, rename or remove: one small layer of operations.

What survives a power cut is decided by these calls and their order alone, so that tests put a recording or a failing disk
in the place of `DISK` and everything above runs as it is.
"""

from __future__ import annotations

import os
import stat
import threading
from contextlib import suppress
from errno import ENOTDIR
from pathlib import Path

from migrate.failpoints import reach
from migrate.host import sync_folder

_BINARY = getattr(os, "O_BINARY", 0)


class Disk:
    """The real one. Every method raises OSError as the system does."""

    def create(self, path: Path, mode: int = 0o600) -> int:
        """A new file to write; raises FileExistsError where the name is taken."""
        reach("disk")
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, mode)

    def open(self, path: Path, *, write: bool = False, flags: int = 0) -> int:
        """An existing file to read; with `write` one that may be synced everywhere (Windows syncs no read-only file)."""
        reach("disk")
        return os.open(path, (os.O_RDWR if write else os.O_RDONLY) | _BINARY | flags)

    def write(self, fd: int, data: bytes | memoryview) -> None:
        """All of it."""
        reach("disk")
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(fd, rest) :]

    def read(self, fd: int, buffer: memoryview) -> int:
        """Fill the buffer, perhaps not to its end; 0 at the end of the file."""
        reach("disk")
        return os.readv(fd, [buffer]) if hasattr(os, "readv") else _read(fd, buffer)

    def sync(self, fd: int) -> None:
        """Returns when the file's bytes are durable."""
        reach("disk")
        os.fsync(fd)

    def close(self, fd: int) -> None:
        os.close(fd)

    def rename(self, old: Path, new: Path) -> None:
        """Give a file another name, in the place of what has it."""
        reach("disk")
        os.replace(old, new)

    def link(self, old: Path, new: Path) -> None:
        """Give a file a further name; raises FileExistsError where it is taken."""
        reach("disk")
        os.link(old, new, follow_symlinks=False)

    def unlink(self, path: Path) -> None:
        reach("disk")
        path.unlink()

    def make_folder(self, path: Path, mode: int = 0o777) -> None:
        """Raises FileExistsError where something has that name."""
        reach("disk")
        path.mkdir(mode)

    def remove_folder(self, path: Path) -> None:
        reach("disk")
        path.rmdir()

    def sync_folder(self, path: Path) -> None:
        """Returns when the names in the folder are durable."""
        reach("disk")
        sync_folder(path)


DISK = Disk()


class DurableFolders:
    """Makes folders whose own names are synced, once in this process even if they were there before: the process that made
    them may have been killed before its sync. Safe for threads."""

    def __init__(self, disk: Disk, root: Path, mode: int = 0o777) -> None:
        """Everything down to `root` itself is taken as it is."""
        self._disk, self._root, self._mode = disk, root, mode
        self._known: set[Path] = set()
        self._lock = threading.Lock()

    def make(self, folder: Path) -> None:
        """A folder below the root with its parents. Raises NotADirectoryError where something else has the name, OSError."""
        if folder == self._root or (folder in self._known and folder.is_dir()):
            return  # somebody may have removed what this process once made
        self.make(folder.parent)
        with suppress(FileExistsError):
            self._disk.make_folder(folder, self._mode)
        if not stat.S_ISDIR(folder.lstat().st_mode):
            raise NotADirectoryError(ENOTDIR, os.strerror(ENOTDIR), str(folder))
        try:
            self._disk.sync_folder(folder.parent)
        except PermissionError:  # a folder of others, which we may pass through but not read
            if folder.parent != self._root:
                raise
        with self._lock:
            self._known.add(folder)


def _read(fd: int, buffer: memoryview) -> int:
    data = os.read(fd, len(buffer))
    buffer[: len(data)] = data
    return len(data)
