"""What differs between operating systems, each with a fallback: file locks, folder syncs, rights, file systems, terminating signals."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment,unused-ignore]

_NETWORK = {
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "lustre", "beegfs", "glusterfs", "gpfs", "davfs", "ncpfs", "virtiofs",
    "fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.davfs2", "fuse.s3fs", "fuse.rclone", "fuse.gcsfuse", "fuse.mount-s3",
}  # fmt: skip
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h
STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM") if hasattr(signal, name))


def sync_folder(path: Path) -> None:
    """Make renames in `path` durable; a no-op where folders cannot be opened (Windows syncs them itself)."""
    if os.name == "nt":
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def bound_heaps() -> None:
    """Keep a process of many short threads from growing for hours. To be called before there are any; does nothing where the C library is not glibc.

    Up to eight heaps a core serve threads in turn, and each keeps about the most that any of them has needed: two are enough for
    threads that wait for each other and for peers. The large buffers that every association brings stay outside of the heaps:
    glibc takes them in once one was freed, and what small things come to lie above their place keeps it from being given back. Whoever
    reads piece by piece takes less than that at once, for a block outside is made anew by the system each time.
    """
    if os.name == "posix":
        with contextlib.suppress(AttributeError):
            adjust = ctypes.CDLL(None).mallopt
            for what, value in ((_M_ARENA_MAX, 2), (_M_MMAP_THRESHOLD, 512 << 10), (_M_TRIM_THRESHOLD, 1 << 20)):
                adjust(what, value)


def give_back_memory() -> None:
    """Before a long wait: what is free goes back to the system, the holes in the heaps, too, where the C library is glibc."""
    gc.collect()
    if os.name == "posix":
        with contextlib.suppress(AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def reason(error: OSError) -> str:
    """What the system says of its refusal, without the address that Python adds to it while binding a socket."""
    return (error.strerror or str(error)).partition(" (while attempting")[0]


def try_lock(fd: int) -> bool:
    """Take an exclusive lock on an open file that dies with the process; False if another process holds it."""
    if fcntl is not None:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True
    import msvcrt  # pragma: no cover - Windows

    try:  # pragma: no cover
        os.lseek(fd, 4096, os.SEEK_SET)  # beyond the text, so that others may read it
        msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
    except OSError:  # pragma: no cover
        return False
    return True  # pragma: no cover


def is_open_to_others(path: Path) -> bool:
    """Whether anybody but its owner may read or write it; False where rights are told in another way (Windows)."""
    return os.name == "posix" and path.stat().st_mode & 0o077 != 0


MOUNTS = Path("/proc/self/mountinfo")
"""The table of what is mounted, as in proc(5)."""


def network_file_system(path: Path, mounts: Path = MOUNTS) -> str | None:
    """The kind of network file system that a path, perhaps not made yet, lies on; None for a local one, or where the system
    does not tell."""
    try:
        lines = mounts.read_text(errors="replace").splitlines()
    except OSError:
        return None
    place, best = path.resolve(), (-1, "")
    for line in lines:
        words, _, rest = line.partition(" - ")
        point = Path(re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), words.split(" ")[4]))
        if (place == point or point in place.parents) and len(point.parts) >= best[0]:  # of two on one point the later one is seen
            best = (len(point.parts), rest.split(" ")[0])
    return best[1] if best[1] in _NETWORK else None


@contextlib.contextmanager
def stop_signals(stop: Callable[[], None]) -> Iterator[None]:
    """While inside, the first SIGINT or SIGTERM calls `stop`; the second ends the process at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    seen: list[int] = []

    def handle(number: int, _: object) -> None:
        if seen:
            os._exit(130)  # every promise is already on the disk
        seen.append(number)
        stop()

    before = {number: signal.signal(number, handle) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
