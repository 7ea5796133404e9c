"""What an anchor at the destination says of the chain, snapshots to go with it, and whether a manifest still is what its anchors say."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from migrate.manifest.audit import Trouble, time_of
from migrate.manifest.file import open_reader, telling_disk
from migrate.manifest.roots import Root, migration_root
from migrate.manifest.sealed import literals, quoted

RESTORED = "manifest restored"
"""The kind of the event that a restored manifest begins with: seal, head, and the anchors of later seals, which were lost."""

_ROUTINE = ("run started", "run row", "run ended", "window row", "meta", "links", "staging opened", "staging left", "habit")
"""Events that every run has: by themselves they make no new snapshot."""


@dataclass(frozen=True, slots=True)
class Head:
    """A seal: its number, the time and the hash."""

    number: int
    at_ms: int
    sha256: bytes

    @property
    def name(self) -> str:
        """What an anchor and a snapshot of it are called."""
        return f"{self.number:012d}-{self.sha256.hex()[:12]}"


NO_HEAD = Head(0, 0, bytes(32))
"""Stands for a chain of which nothing is left."""


@dataclass(frozen=True, slots=True)
class Anchor:
    """An anchor's content; `root` is None where it was not computed, `snapshot` (name, SHA-256 in hex, size) where none was made."""

    migration: str
    head: Head
    root: Root | None = None
    snapshot: tuple[str, str, int] | None = None

    def document(self) -> bytes:
        """As it stands at the destination."""
        root = self.root
        document = {
            "migration": self.migration, "seal": self.head.number, "at": self.head.at_ms, "head": self.head.sha256.hex(),
            "root": root.sha256.hex() if root else None, "studies": root.studies if root else None, "instances": root.instances if root else None,
            "snapshot": dict(zip(("name", "sha256", "size_bytes"), self.snapshot, strict=True)) if self.snapshot else None,
        }  # fmt: skip
        return (json.dumps(document, indent=1) + "\n").encode("ascii")


def anchor_of(document: bytes) -> Anchor:
    """An anchor as it was read. Raises ValueError."""
    try:
        said: dict[str, Any] = json.loads(document)
        root = Root(bytes.fromhex(said["root"]), int(said["studies"]), int(said["instances"])) if said["root"] else None
        shot = said["snapshot"]
        snapshot = (str(shot["name"]), str(shot["sha256"]), int(shot["size_bytes"])) if shot else None
        return Anchor(str(said["migration"]), Head(int(said["seal"]), int(said["at"]), bytes.fromhex(said["head"])), root, snapshot)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("no anchor") from error


def head_of(connection: sqlite3.Connection) -> Head | None:
    """The last seal; None in a manifest that has none."""
    row = connection.execute("SELECT id, at, sha256 FROM seal ORDER BY id DESC LIMIT 1").fetchone()
    return Head(*row) if row else None


def head_and_root(connection: sqlite3.Connection, prefix: str, *, root: bool) -> tuple[Head | None, Root | None]:
    """Both of one moment."""
    connection.execute("BEGIN")
    try:
        return head_of(connection), migration_root(connection, prefix) if root else None
    finally:
        connection.execute("ROLLBACK")


def knows_a_study(connection: sqlite3.Connection) -> bool:
    """Whether anything stands in the manifest that its loss would lose."""
    return connection.execute("SELECT 1 FROM study LIMIT 1").fetchone() is not None


def holds(connection: sqlite3.Connection, name: str) -> bool:
    """Whether the manifest has the seal of which this is the name."""
    number = name.partition("-")[0]
    if not number.isdigit():
        return False
    row = connection.execute("SELECT id, at, sha256 FROM seal WHERE id = ?", (int(number),)).fetchone()
    return row is not None and Head(*row).name == name


def is_new_here(connection: sqlite3.Connection, names: Iterable[str]) -> bool:
    """Whether no run of this manifest has ended yet and it has the seal of none of these anchors, so that another manifest has left them."""
    ended = connection.execute("SELECT 1 FROM run WHERE verb IN ('run', 'demo') AND exit_code IN (0, 3) LIMIT 1").fetchone()
    return ended is None and not any(holds(connection, name) for name in names)


def changed_since(connection: sqlite3.Connection, seal: int) -> bool:
    """Whether anything but routine has been sealed after that seal."""
    if connection.execute("SELECT 1 FROM seal WHERE id > ? AND steps > 0 LIMIT 1", (seal,)).fetchone():
        return True
    marks = ",".join("?" * len(_ROUTINE))
    sql = f"SELECT 1 FROM event WHERE id > coalesce((SELECT last_event FROM seal WHERE id = ?), 0) AND kind NOT IN ({marks}) LIMIT 1"
    return connection.execute(sql, (seal, *_ROUTINE)).fetchone() is not None


def copy_whole(manifest: Path, into: Path) -> None:
    """A consistent copy of a manifest that others may be writing. Raises DiskFull, DiskFailing."""
    with telling_disk(into), contextlib.closing(open_reader(manifest)) as reader:
        reader.execute("VACUUM INTO ?", (str(into),))


def restored_detail(head: Head, lost: Iterable[str]) -> str:
    """The detail of the event of kind RESTORED."""
    return quoted(head.number, head.sha256.hex(), " ".join(sorted(lost)))


def compare(connection: sqlite3.Connection, anchors: Iterable[tuple[str, Anchor]], root: Root) -> tuple[list[Trouble], list[str]]:
    """(what is not as the anchors say, what a reader should know). `root`: as computed from the manifest."""
    troubles, notes = [], []
    last = head_of(connection)
    end = last.number if last else 0
    heads = {row[0]: Head(*row) for row in connection.execute("SELECT id, at, sha256 FROM seal")}
    last_step = connection.execute("SELECT coalesce(max(id), 0) FROM seal WHERE steps > 0").fetchone()[0]
    lost: dict[str, Any] = {}
    for number, at, detail in connection.execute("SELECT id, at, detail FROM event WHERE kind = ?", (RESTORED,)):
        with contextlib.suppress(ValueError, IndexError):
            seal, _, names = literals(detail)
            notes.append(f"Event {number}: the manifest was restored on {time_of(at)} to seal {seal}. Anchors of what was lost: {names or 'none'}.")
            lost |= dict.fromkeys(str(names).split(), seal)
    newest = 0
    for name, anchor in sorted(anchors, key=lambda each: each[1].head.number):
        head = anchor.head
        newest = max(newest, head.number)
        mine = heads.get(head.number)
        if mine is not None and mine.sha256 == head.sha256:
            if anchor.root is not None and head.number >= last_step and anchor.root != root:
                troubles.append(Trouble(f"anchor {name}", "has another Merkle root, or other counts, than the manifest, though no step came after it"))
            if mine.at_ms != head.at_ms:
                troubles.append(Trouble(f"anchor {name}", f"has another time than seal {head.number} of the manifest"))
        elif name in lost:
            continue
        elif head.number > end:
            troubles.append(Trouble(
                f"anchor {name}", f"tells of seal {head.number} of {time_of(head.at_ms)}, but the manifest ends with seal {end}: its end was cut "
                "off, or an older copy stands in its place"))  # fmt: skip
        else:
            troubles.append(Trouble(
                f"anchor {name}", f"has another hash than seal {head.number} of the manifest: the chain was written anew, or this is another manifest"
            ))  # fmt: skip
    if not newest:
        notes.append("There is no anchor at the destination: that the manifest's end was cut off could not be seen.")
    elif newest < end:
        notes.append(f"Seals {newest + 1} to {end} came after the newest anchor.")
    return troubles, notes
