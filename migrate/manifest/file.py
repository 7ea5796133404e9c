"""The manifest's file: its lock, its connections, its identity, its version."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from migrate import __version__
from migrate.errors import DiskFailing, DiskFull, IdentityMismatch, ManifestError, ManifestLocked, ManifestTooNew, NoManifest, UsageError
from migrate.failpoints import reach
from migrate.host import MOUNTS, network_file_system, sync_folder, try_lock
from migrate.manifest.upgrades import SCHEMA_VERSION, upgrade
from migrate.model import INSTANCE_TRANSITIONS, STUDY_TRANSITIONS
from migrate.staging.area import local_error

_ANOTHER = "Name the right file; or move this one away, and `pacs-migrate restore-manifest` brings the newest copy back."
_BESIDE = "SQLite needs files beside it (-wal, -shm), and this user may not write there: copy the manifest into a folder of your own, and name it under [migration] manifest."
_LOOK = "Check the folder's rights and the disk."
_LEAST_FREE_BYTES = 256 << 10  # SQLite's log and shared memory grow by less than that at once


def now_ms() -> int:
    """The wall clock in milliseconds since 1970, UTC."""
    return time.time_ns() // 1_000_000


class Lock:
    """One process a manifest: an advisory lock on `<manifest>.lock`, which names host and pid, and dies with the process.

    Raises ManifestLocked with who holds it, UsageError for a manifest on a network file system, LocalError.
    """

    def __init__(self, manifest: Path, mounts: Path = MOUNTS) -> None:
        """`mounts`: what is mounted where (`network_file_system`)."""
        self.path = manifest.with_name(manifest.name + ".lock")
        if kind := network_file_system(manifest, mounts):
            raise UsageError(f"The manifest {manifest} lies on a network file system ({kind}), where SQLite can lose what it has written.",
                             hint="Name a file on a disk of this machine under [migration] manifest; copy finished ones wherever you like.")  # fmt: skip
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise local_error(error, "opening the manifest's lock file") from error
        if not try_lock(self._fd):
            holder = os.read(self._fd, 200).decode("utf-8", "replace").strip() or "another process"
            os.close(self._fd)
            raise ManifestLocked(f"The manifest {manifest} is in use by {holder}.")
        try:
            os.ftruncate(self._fd, 0)
            os.write(self._fd, f"host {socket.gethostname()}, pid {os.getpid()}\n".encode())
        except OSError as error:
            os.close(self._fd)
            raise local_error(error, "writing the manifest's lock file") from error

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        os.ftruncate(self._fd, 0)
        os.close(self._fd)


def is_locked(manifest: Path) -> bool:
    """True while another process holds the manifest's lock; takes and drops it otherwise."""
    try:
        with Lock(manifest):
            return False
    except ManifestLocked:
        return True


def expect_manifest(path: Path) -> None:
    """Raises NoManifest where there is none, LocalError where this user may not look."""
    try:
        there = path.exists()
    except OSError as error:
        raise local_error(error, "looking for the manifest") from error
    if not there:
        raise NoManifest(f"There is no manifest {path}.")


def schema_version(connection: sqlite3.Connection, path: Path) -> int:
    """The file's schema version; 0 where its making was cut short, be it that only a writer can take back what was begun.

    Raises ManifestError if this is no manifest of ours, sqlite3.OperationalError if it cannot be read.
    """
    try:
        row = connection.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone()
        return int(row[0]) if row else 0
    except sqlite3.OperationalError as error:
        if error.sqlite_errorname in ("SQLITE_ERROR", "SQLITE_READONLY_ROLLBACK"):  # no such table; a journal of the time before the log
            return 0
        raise
    except (sqlite3.DatabaseError, ValueError) as error:  # ValueError: text that is no UTF-8, or no number
        raise ManifestError(f"{path} is not a manifest.", hint=_ANOTHER) from error


def open_writer(path: Path, *, create: bool) -> sqlite3.Connection:
    """The one connection that writes and checkpoints: WAL, synchronous=FULL.

    Raises NoManifest, ManifestTooNew (nothing is touched then), DiskFailing.
    """
    if not create:
        expect_manifest(path)
    if path.exists() and path.stat().st_size:
        _read_only(path)[0].close()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with contextlib.suppress(PermissionError):  # a folder of others, which we may pass through but not read
            sync_folder(path.parent.parent)  # SQLite syncs the file's own folder, whose name may be new, too
        path.touch(mode=0o600, exist_ok=True)
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30)
        if connection.execute("PRAGMA journal_mode=WAL").fetchone() != ("wal",):  # SQLite goes on without, and says so only here
            raise DiskFailing(f"The manifest {path} cannot be opened: its disk takes no write-ahead log.", hint=_LOOK)
        for pragma in ("synchronous=FULL", "foreign_keys=ON", "trusted_schema=OFF", "cell_size_check=ON",
                       "wal_autocheckpoint=0", "recursive_triggers=OFF", "cache_size=-16384"):  # fmt: skip
            connection.execute(f"PRAGMA {pragma}")
        reach("manifest-opened")
        if schema_version(connection, path) < SCHEMA_VERSION:
            reach("upgrade-begun")
            upgrade(connection)
            reach("upgrade-done")
        _write_law(connection)
    except sqlite3.OperationalError as error:
        raise disk_error(error, path, "opened", hint=_LOOK) from error
    except sqlite3.DatabaseError as error:
        raise ManifestError(f"{path} is not a manifest.", hint=_ANOTHER) from error
    except OSError as error:
        raise local_error(error, "opening the manifest") from error
    return connection


def disk_error(error: sqlite3.Error, path: Path, done: str = "written", *, hint: str | None = None) -> DiskFull | DiskFailing:
    """What SQLite's trouble with a manifest's disk means: full where it says so, or where next to nothing is free."""
    full = getattr(error, "sqlite_errorname", "").startswith("SQLITE_FULL")
    with contextlib.suppress(OSError):  # without room for its shared memory it only says "disk I/O error"
        full = full or shutil.disk_usage(path.parent).free < _LEAST_FREE_BYTES
    if full:
        return DiskFull(f"The disk is full: the manifest cannot be {done}.")
    return DiskFailing(f"The manifest {path} cannot be {done}: {error}.", hint=hint)


@contextlib.contextmanager
def telling_disk(path: Path) -> Iterator[None]:
    """Turns sqlite3.OperationalError inside into DiskFull or DiskFailing."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise disk_error(error, path) from error


def open_reader(path: Path) -> sqlite3.Connection:
    """A read-only connection that never locks out the writer. Raises NoManifest, ManifestTooNew, DiskFull, DiskFailing."""
    connection, version = _read_only(path)
    if not version:
        connection.close()
        raise NoManifest(f"{path} is no manifest yet: its making was cut short.")
    return connection


def _read_only(path: Path) -> tuple[sqlite3.Connection, int]:
    """(the connection, the schema's version, 0 where the manifest's making was cut short). Raises as `open_reader` does."""
    expect_manifest(path)
    try:
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, check_same_thread=False, timeout=30)
        version = schema_version(connection, path)
    except sqlite3.OperationalError as error:
        raise disk_error(error, path, "read", hint=_LOOK if os.access(path.parent, os.W_OK) else _BESIDE) from error
    if version > SCHEMA_VERSION:
        raise ManifestTooNew(f"The manifest {path} has schema {version}; this version knows {SCHEMA_VERSION}.")
    return connection, version


def _write_law(connection: sqlite3.Connection) -> None:
    """The transition table is made from the model's, so that there is one law. Looked at at every start: whoever made the tables
    may have been killed before this."""
    rows = {("study", int(a), int(b)) for a, b in STUDY_TRANSITIONS} | {("instance", int(a), int(b)) for a, b in INSTANCE_TRANSITIONS}
    if rows <= set(connection.execute("SELECT entity, from_state, to_state FROM transition")):
        return

    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.executemany("INSERT OR IGNORE INTO transition VALUES (?, ?, ?)", sorted(rows))
        connection.execute("INSERT OR IGNORE INTO meta VALUES ('created_at', ?), ('created_by', ?)",
                           (str(now_ms()), f"pacs-migrate {__version__}"))  # fmt: skip
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


_LEARNT = ("SELECT 1 FROM study", "SELECT 1 FROM habit", "SELECT 1 FROM quarantine", "SELECT 1 FROM window WHERE state <> 0 OR attempts > 0")


def claim_identity(connection: sqlite3.Connection, identity: dict[str, str]) -> None:
    """Write down which PACS and destination this manifest is for, or compare. Raises IdentityMismatch.

    As long as nothing was learnt of a PACS, an address or a bucket may be put right: whoever mistypes one finds out by the first run.
    """
    expect_identity(connection, identity)
    for key in ("source", "destination"):
        connection.execute("UPDATE meta SET value = ?1 WHERE key = ?2 AND value <> ?1", (identity[key], key))
    connection.executemany("INSERT OR IGNORE INTO meta VALUES (?, ?)", sorted(identity.items()))


def expect_identity(connection: sqlite3.Connection, identity: dict[str, str]) -> None:
    """Raises IdentityMismatch where source or destination is another one, and something was learnt of a PACS."""
    if any(connection.execute(f"{question} LIMIT 1").fetchone() for question in _LEARNT):
        for key in ("source", "destination"):
            compare_identity(connection, key, identity[key])


def identity_of(connection: sqlite3.Connection, key: str) -> str | None:
    """Which source, destination or migration a manifest is for; None where nothing has claimed it yet."""
    known = connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return str(known[0]) if known else None


def compare_identity(connection: sqlite3.Connection, key: str, value: str) -> None:
    """Raises IdentityMismatch where the manifest's source or destination is another one."""
    known = identity_of(connection, key)
    if known not in (None, value):
        hint = f"{IdentityMismatch.default_hint} The same PACS at another address: `pacs-migrate readdress`." if key == "source" else None
        raise IdentityMismatch(f"This manifest belongs to the {key} {known}, not to {value}.", hint=hint)
