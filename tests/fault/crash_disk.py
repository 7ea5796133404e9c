"""The simulated twin of the file operations: does each for real and knows what a power cut right after it might leave.

Only what was synced is sure to survive. Of everything else each effect survives or not by itself:
- the bytes of a file written since its last sync: none, the first half, or all of them;
- a name made, taken over or removed in a folder since that folder's last sync: for each name the state after any of its
  changes. A rename is never half undone so that the file has neither name;
- a folder whose name does not survive takes everything below with it.
"""

from __future__ import annotations

import copy
import itertools
import math
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from migrate.staging.disk import Disk

Tree = frozenset[tuple[str, bytes | None]]
"""What lies on the disk: files with their bytes, folders with None, by path below the simulated root."""


@dataclass(eq=False)
class _File:
    synced: bytes = b""
    written: list[bytes] = field(default_factory=list)

    def now(self) -> bytes:
        return b"".join((self.synced, *self.written))

    def fates(self) -> list[bytes]:
        more = b"".join(self.written)
        return list(dict.fromkeys((self.synced, self.synced + more[: len(more) // 2], self.synced + more)))


@dataclass(eq=False)
class _Folder:
    synced: dict[str, _Node] = field(default_factory=dict)
    changed: dict[str, list[_Node | None]] = field(default_factory=dict)  # by name, in order; None: removed

    def fates(self, name: str) -> list[_Node | None]:
        return [self.synced.get(name), *self.changed.get(name, ())]

    def now(self, name: str) -> _Node | None:
        return self.fates(name)[-1]

    def set(self, name: str, node: _Node | None) -> int:
        """Returns which of the name's fates this is."""
        self.changed.setdefault(name, []).append(node)
        return len(self.changed[name])

    def names(self) -> list[str]:
        return sorted({*self.synced, *self.changed})

    def sync(self) -> None:
        for name in self.changed:
            node = self.now(name)
            if node is None:
                self.synced.pop(name, None)
            else:
                self.synced[name] = node
        self.changed.clear()


_Node = _File | _Folder
_Key = tuple[_Node, str]  # a file's bytes (with an empty name), or a name in a folder
_Pick = dict[_Key, int]  # which of its fates each undecided thing has


@dataclass(frozen=True)
class _Rename:
    source: _Folder
    old: str
    removed: int  # from this fate on the old name is gone
    target: _Folder
    new: str
    added: int  # from this fate on the new name is there

    def torn(self, pick: _Pick) -> bool:
        gone = pick.get((self.source, self.old), 0) >= self.removed
        return gone and (self.target, self.new) in pick and pick[self.target, self.new] < self.added


@dataclass(frozen=True)
class Cache:
    """What the system holds of a disk, durable or not: it outlives a process."""

    top: _Folder
    renames: list[_Rename]


class RecordingDisk(Disk):
    """A disk below one folder. `at` is called after each operation that changes anything."""

    def __init__(self, root: Path, at: Callable[[], None], cache: Cache | None = None) -> None:
        """Without a cache, all that lies there is durable."""
        self.root, self._at = root, at
        self._top, self._renames = (_scanned(root), []) if cache is None else (cache.top, cache.renames)
        self._open: dict[int, _File] = {}
        self._lock = threading.RLock()
        self.operations: list[str] = []

    # -- the operations
    def create(self, path: Path, mode: int = 0o600) -> int:
        with self._lock:
            fd = super().create(path, mode)
            folder, name = self._place(path)
            self._open[fd] = made = _File()
            folder.set(name, made)
            self._did("create", path)
            return fd

    def open(self, path: Path, *, write: bool = False, flags: int = 0) -> int:
        with self._lock:
            fd = super().open(path, write=write, flags=flags)
            folder, name = self._place(path)
            file = folder.now(name)
            assert isinstance(file, _File)
            self._open[fd] = file
            return fd

    def write(self, fd: int, data: bytes | memoryview) -> None:
        with self._lock:
            super().write(fd, data)
            self._open[fd].written.append(bytes(data))
            self._did("write")

    def sync(self, fd: int) -> None:
        with self._lock:
            super().sync(fd)
            file = self._open[fd]
            if file.written:
                file.synced, file.written = file.now(), []
                self._did("sync")

    def close(self, fd: int) -> None:
        with self._lock:
            super().close(fd)
            self._open.pop(fd, None)

    def rename(self, old: Path, new: Path) -> None:
        with self._lock:
            super().rename(old, new)
            (source, old_name), (target, new_name) = self._place(old), self._place(new)
            file = source.now(old_name)
            self._renames.append(_Rename(source, old_name, source.set(old_name, None), target, new_name, target.set(new_name, file)))
            self._did("rename", new)

    def link(self, old: Path, new: Path) -> None:
        with self._lock:
            super().link(old, new)
            (source, old_name), (target, new_name) = self._place(old), self._place(new)
            target.set(new_name, source.now(old_name))
            self._did("link", new)

    def unlink(self, path: Path) -> None:
        with self._lock:
            super().unlink(path)
            folder, name = self._place(path)
            folder.set(name, None)
            self._did("unlink", path)

    def make_folder(self, path: Path, mode: int = 0o777) -> None:
        with self._lock:
            super().make_folder(path, mode)
            folder, name = self._place(path)
            folder.set(name, _Folder())
            self._did("make_folder", path)

    def remove_folder(self, path: Path) -> None:
        with self._lock:
            super().remove_folder(path)
            folder, name = self._place(path)
            folder.set(name, None)
            self._did("remove_folder", path)

    def sync_folder(self, path: Path) -> None:
        with self._lock:
            super().sync_folder(path)
            if self.root in (path, *path.parents):
                folder = self._folder(path)
                folder.sync()
                self._renames = [each for each in self._renames if folder not in (each.source, each.target)]
                self._did("sync_folder", path)

    def _did(self, what: str, path: Path | None = None) -> None:
        self.operations.append(f"{what} {path.relative_to(self.root) if path else ''}".strip())
        self._at()

    def spoil(self, path: Path) -> None:
        """A byte of a file flips on the disk, as it may at any time."""
        with self._lock:
            folder, name = self._place(path)
            file = folder.now(name)
            assert isinstance(file, _File)
            content = bytearray(file.now())
            content[-1] ^= 1
            file.synced, file.written = bytes(content), []
            path.write_bytes(content)

    # -- what a cut leaves
    def survivors(self, most: int | None = None) -> set[Tree]:
        """Every tree that a power cut now might leave; with `most`, where there are more, these: nothing survives, all does, one
        thing more or less than that, and a random rest (the same each time)."""
        with self._lock:
            counts = {key: len(fates) for key, fates in self._undecided()}
            picks = [pick for pick in _picks(counts, most, len(self.operations)) if not any(each.torn(pick) for each in self._renames)]
            return {self._tree(pick) for pick in picks}

    def now(self) -> Tree:
        """What lies there when only the process dies."""
        with self._lock:
            return self._tree({key: len(fates) - 1 for key, fates in self._undecided()})

    def cache(self) -> Cache:
        """A copy of what the system holds now, for a process that comes after this one."""
        with self._lock:
            return copy.deepcopy(Cache(self._top, self._renames))

    def _undecided(self) -> Iterator[tuple[_Key, Sequence[object]]]:
        """Everything with more than one fate, once."""
        seen: set[_Node] = set()
        waiting: list[_Node] = [self._top]
        while waiting:
            node = waiting.pop()
            if node in seen:
                continue
            seen.add(node)
            if isinstance(node, _File):
                if len(node.fates()) > 1:
                    yield (node, ""), node.fates()
                continue
            for name in node.names():
                if len(node.fates(name)) > 1:
                    yield (node, name), node.fates(name)
                waiting += [each for each in node.fates(name) if each is not None]

    def _tree(self, pick: _Pick) -> Tree:
        found: list[tuple[str, bytes | None]] = []
        waiting: list[tuple[str, _Folder]] = [("", self._top)]
        while waiting:
            path, folder = waiting.pop()
            for name in folder.names():
                node = folder.fates(name)[pick.get((folder, name), 0)]
                if isinstance(node, _Folder):
                    found.append((path + name, None))
                    waiting.append((f"{path}{name}/", node))
                elif node is not None:
                    found.append((path + name, node.fates()[pick.get((node, ""), 0)]))
        return frozenset(found)

    def _place(self, path: Path) -> tuple[_Folder, str]:
        return self._folder(path.parent), path.name

    def _folder(self, path: Path) -> _Folder:
        node: _Node | None = self._top
        for part in path.relative_to(self.root).parts:
            assert isinstance(node, _Folder)
            node = node.now(part)
        assert isinstance(node, _Folder), path
        return node


def _picks(counts: dict[_Key, int], most: int | None, seed: int) -> Iterator[_Pick]:
    total = math.prod(counts.values())
    if most is None or total <= most:
        yield from (dict(zip(counts, each, strict=True)) for each in itertools.product(*map(range, counts.values())))
        return
    nothing, everything = dict.fromkeys(counts, 0), {key: count - 1 for key, count in counts.items()}
    yield nothing
    yield everything
    for key, count in counts.items():
        yield nothing | {key: count - 1}
        yield everything | {key: 0}
    dice = random.Random(seed)
    for _ in range(most - 2 - 2 * len(counts)):
        yield {key: dice.randrange(count) for key, count in counts.items()}


def _scanned(path: Path) -> _Folder:
    folder = _Folder()
    for each in path.iterdir():
        folder.synced[each.name] = _scanned(each) if each.is_dir() else _File(each.read_bytes())
    return folder


def materialised(tree: Tree, root: Path) -> None:
    """Make a fresh folder that holds a tree."""
    root.mkdir(parents=True)
    for name, content in sorted(tree, key=lambda each: each[0]):
        if content is None:
            (root / name).mkdir(parents=True, exist_ok=True)
        else:
            (root / name).write_bytes(content)
