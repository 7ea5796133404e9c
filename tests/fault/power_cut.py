"""A disk that loses power: an APSW VFS on which only what was synced is sure to survive.

Every write lands in the file at once, so that SQLite reads what it wrote, and waits in a list until the file's next xSync.
At the cut each 512-byte sector of what waits survives or not by chance, independently of the others: writes are torn and
reordered, and files grow with holes. A file deleted without a sync of its folder may come back, and one that was made may be gone;
the folder is synced with the first sync of a new journal or log, as SQLite's VFS for Unix does. As SQLite assumes of disks
(SQLITE_IOCAP_POWERSAFE_OVERWRITE), a sector survives as a whole and writing it harms no other.

What is replayed on it are the very statements, with their values, that real `Manifest` calls gave to sqlite3, from the
pragmas of `open_writer` to the last checkpoint; what SQLite writes follows from these alone. Two things differ. APSW
brings a build of SQLite of its own. And locking_mode=EXCLUSIVE keeps the index of the write-ahead log in memory instead of
in the -shm file, which is no part of durability: it is built anew from the log after every crash. What survived is opened
by the sqlite3 module that the tool itself uses.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import random
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apsw

SECTOR_BYTES = 512
_FORBIDDEN = ("DELETE FROM event", "INSERT INTO study(uid, state, found_event, found_at, changed_at) VALUES ('9', 3, 0, 0, 0)")
_SURVIVAL = (0.0, 0.05, 0.5, 0.5, 0.95, 1.0)  # the share of unsynced sectors that reached the disk; one is drawn for each cut


class PowerCut(Exception):
    """The power is gone: no later operation has any effect."""


@dataclass
class _File:
    durable: bytearray
    waiting: list[tuple[int, bytes | None]] = field(default_factory=list)  # (offset, bytes), or (size, None): truncated to it

    def sync(self) -> None:
        for offset, data in self.waiting:
            _write(self.durable, offset, data)
        self.waiting.clear()

    def after_cut(self, chance: random.Random, survival: float) -> bytes:
        content = bytearray(self.durable)
        for offset, data in self.waiting:
            if data is None:
                if chance.random() < survival:
                    _write(content, offset, None)
                continue
            at = 0
            while at < len(data):
                end = min(len(data), at + SECTOR_BYTES - (offset + at) % SECTOR_BYTES)
                if chance.random() < survival:
                    _write(content, offset + at, data[at:end])
                at = end
        return bytes(content)


def _write(content: bytearray, offset: int, data: bytes | None) -> None:
    if data is None:
        del content[offset:]
        return
    content.extend(bytes(max(0, offset - len(content))))
    content[offset : offset + len(data)] = data


class Disk(apsw.VFS):
    """A VFS that counts its writes, truncations, deletions and syncs, and dies at number `cut_at`."""

    NAME = "power-cut"

    def __init__(self) -> None:
        super().__init__(self.NAME, "unix")
        self.start()

    def start(self, cut_at: int | None = None) -> None:
        """Power on: all files of now are durable as they are."""
        self.files: dict[str, _File] = {}
        self.deleted: list[tuple[str, _File]] = []  # without a sync of the folder, as were
        self.made: set[str] = set()
        self.operations, self.cut_at, self.dead = 0, cut_at, False

    def count(self) -> None:
        """One more operation; raises PowerCut at the last."""
        self.operations += 1
        if self.operations == self.cut_at:
            self.dead = True
            raise PowerCut

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:
        return _Open(self, name, flags)

    def xDelete(self, name: str, sync: bool) -> None:
        if self.dead:
            return
        file = self.files.pop(name, None)
        if file is not None and name not in self.made:
            self.deleted.append((name, file))
        self.made.discard(name)
        super().xDelete(name, sync)
        self.count()
        if sync:
            self.sync_folder()

    def sync_folder(self) -> None:
        self.deleted.clear()
        self.made.clear()

    def survivors(self, chance: random.Random) -> dict[str, bytes]:
        """What lies on the disk when the power is back, by path."""
        survival = chance.choice(_SURVIVAL)
        left = {name: file.after_cut(chance, survival) for name, file in self.deleted if chance.random() < 0.5}
        there = [(name, file) for name, file in self.files.items() if name not in self.made or chance.random() < 0.5]
        return left | {name: file.after_cut(chance, survival) for name, file in there}


class _Open(apsw.VFSFile):
    def __init__(self, disk: Disk, name: Any, flags: list[int]) -> None:
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        if path and not Path(path).exists():
            disk.made.add(path)
        self._new = bool(path) and path in disk.made
        super().__init__("unix", name, flags)
        self._disk = disk
        if path and path not in disk.files:
            disk.files[path] = _File(bytearray(Path(path).read_bytes()))
        self._file = disk.files[path] if path else None  # None: SQLite's own scratch file

    def xWrite(self, data: bytes, offset: int) -> None:
        self._change(offset, bytes(data))
        if not self._disk.dead:
            super().xWrite(data, offset)

    def xTruncate(self, size: int) -> None:
        self._change(size, None)
        if not self._disk.dead:
            super().xTruncate(size)

    def xSync(self, flags: int) -> None:
        if not self._disk.dead and self._file is not None:
            self._disk.count()
            self._file.sync()
            if self._new:
                self._disk.sync_folder()
                self._new = False

    def _change(self, offset: int, data: bytes | None) -> None:
        if not self._disk.dead and self._file is not None:
            self._file.waiting.append((offset, data))
            self._disk.count()


# ---- what is replayed -----------------------------------------------------------------------------------------------------


class Recorder(sqlite3.Connection):
    """A connection that writes down what it is asked to do: (SQL, rows of values); after each commit, what then stands there."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.statements: list[tuple[str, list[Any]]] = []
        self.states: dict[int, str] = {}  # by number of statements done
        self._silent = False

    def execute(self, sql: str, values: Any = ()) -> sqlite3.Cursor:
        return self._noted(super().execute, sql, values, [values])

    def executemany(self, sql: str, rows: Any) -> sqlite3.Cursor:
        rows = list(rows)
        return self._noted(super().executemany, sql, rows, rows)

    def _noted(self, do: Callable[..., sqlite3.Cursor], sql: str, values: Any, rows: list[Any]) -> sqlite3.Cursor:
        cursor = do(sql, values)
        if not self._silent and not sql.lstrip().startswith("SELECT"):
            self.statements.append((sql, rows))
            if not self.in_transaction and not sql.startswith("PRAGMA"):
                self._silent = True
                self.states[len(self.statements)] = content_of(self)
                self._silent = False
        return cursor


@contextlib.contextmanager
def recording() -> Iterator[None]:
    """Every sqlite3 connection that is opened inside is a Recorder."""
    connect = sqlite3.connect
    sqlite3.connect = functools.partial(connect, factory=Recorder)  # type: ignore[assignment]
    try:
        yield
    finally:
        sqlite3.connect = connect


def content_of(connection: sqlite3.Connection) -> str:
    """A digest of schema and rows; the log's clock times are left out, which are taken anew at each replay."""
    digest = hashlib.sha256()
    schema = connection.execute("SELECT type, name, sql FROM sqlite_master ORDER BY type, name").fetchall()
    digest.update(repr(schema).encode())
    for name in (name for kind, name, _ in schema if kind == "table"):
        columns = "id, run_id, kind, study_uid, series_uid, sop_uid, detail" if name == "event" else "*"
        digest.update(repr((name, connection.execute(f"SELECT {columns} FROM {name} ORDER BY 1, 2").fetchall())).encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class Work:
    """A manifest as it was before, the statements then given to it, and its content after each commit."""

    before: bytes
    statements: list[tuple[str, list[Any]]]
    states: dict[int, str]


@dataclass(frozen=True)
class Verdict:
    """What is wrong after one cut: nothing, where both are empty."""

    lost: str = ""
    broken: str = ""


class Replay:
    """Replays work on a disk that dies, and looks at what is left."""

    def __init__(self, work: Work, folder: Path, *, synchronous: str | None = None, start: Callable[[Path], None] = lambda _: None) -> None:
        """`synchronous` overrides what the work itself asks for; `start` is what a command does first with what is left."""
        self._work, self._folder, self._synchronous, self._start = work, folder, synchronous, start
        self._disk = Disk()
        self._order = sorted(work.states)
        self._before = content_of_file(folder, work.before)
        self.operations = self._run(None)[1]

    def close(self) -> None:
        self._disk.unregister()

    def cut(self, seed: int) -> Verdict:
        """Cut the power at an operation and with a fate of the sectors that follow from `seed`."""
        chance = random.Random(seed)
        done, _ = self._run(chance.randrange(1, self.operations + 1))
        left = self._disk.survivors(chance)
        path = self._folder / "survivor.db"
        for suffix in ("", "-wal", "-journal", "-shm"):
            content = left.get(str(self._folder / "m.db") + suffix)
            target = path.with_name(path.name + suffix)
            target.unlink(missing_ok=True)
            if content is not None:
                target.write_bytes(content)
        return self._judge(path, done)

    def _run(self, cut_at: int | None) -> tuple[int, int]:
        """(statements that returned, disk operations)."""
        path = self._folder / "m.db"
        for leftover in self._folder.glob("m.db*"):
            leftover.unlink()
        path.write_bytes(self._work.before)
        self._disk.start(cut_at)
        done = 0
        connection = apsw.Connection(str(path), vfs=Disk.NAME)
        with contextlib.suppress(PowerCut):
            connection.execute("PRAGMA locking_mode=EXCLUSIVE")
            for sql, rows in self._work.statements:
                if self._synchronous and sql.startswith("PRAGMA synchronous"):
                    sql = f"PRAGMA synchronous={self._synchronous}"
                for values in rows:
                    connection.execute(sql, values).fetchall()
                done += 1
            connection.close()
        with contextlib.suppress(PowerCut, apsw.Error):
            connection.close(True)
        return done, self._disk.operations

    def _judge(self, path: Path, done: int) -> Verdict:
        acknowledged = [number for number in self._order if number <= done]
        under_way = [number for number in self._order if number > done][:1]
        allowed = {self._work.states[number] for number in (*acknowledged[-1:], *under_way)}
        if not acknowledged:
            allowed.add(self._before)
        older = {self._before, *(self._work.states[number] for number in acknowledged)}
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
            try:
                found = connection.execute("PRAGMA integrity_check").fetchone()[0]
                if found != "ok" or connection.execute("PRAGMA foreign_key_check").fetchall():
                    return Verdict(broken=f"integrity: {found}")
                content = content_of(connection)
                if content not in allowed:
                    return Verdict(lost="an acknowledged transaction") if content in older else Verdict(broken="a state that never was")
                self._start(path)
                for statement in _FORBIDDEN:
                    try:
                        connection.execute(statement)
                    except sqlite3.IntegrityError:
                        continue
                    return Verdict(broken=f"the law allows {statement}")
            except sqlite3.DatabaseError as error:
                return Verdict(broken=str(error))
        return Verdict()


def content_of_file(folder: Path, image: bytes) -> str:
    path = folder / "before.db"
    path.write_bytes(image)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return content_of(connection)
