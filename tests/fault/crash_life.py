"""One study's life on the simulated disk: the real job (`Migration.run`, pipeline, staging, manifest, folder destination) with a
scripted source, and what must hold after a crash at any moment of it.

The study has one listed instance and one that the source sends without listing it. With `ack = "durable"` the source deletes
what was acknowledged.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

from migrate import destinations
from migrate.config import Config, FolderSettings, load
from migrate.destinations.folder import Folder
from migrate.errors import PacsMigrateError
from migrate.jobs import migration
from migrate.manifest import Effects, Manifest
from migrate.model import (
    InstanceRef,
    InstanceStaged,
    InstanceStored,
    Outcome,
    Received,
    RetrieveEnded,
    SeriesPlan,
    StudyFound,
    StudyPlanned,
    StudyRef,
    Wanted,
    Window,
    object_key,
)
from migrate.staging.area import Staging
from migrate.staging.disk import DISK, Disk
from tests.fault.crash_disk import Cache, RecordingDisk, Tree, materialised
from tests.runs import configure

HEADER = b"\0" * 128 + b"DICM" + b"meta"
STUDY, SERIES = StudyRef("1.2"), "1.2.1"
LISTED, UNLISTED = InstanceRef("1.2", SERIES, "1.2.1.1"), InstanceRef("1.2", SERIES, "1.2.1.2")
CONTENT = {LISTED: b"listed" * 5, UNLISTED: b"unlisted" * 5}
KEYS = {object_key(ref, ""): HEADER + content for ref, content in CONTENT.items()}

Deliver = Callable[[Received], "Future[None] | None"]


@dataclass
class Pacs:
    """What the source still has; it outlives every crash of ours."""

    deletes: bool = False
    gone: frozenset[InstanceRef] = frozenset()
    staged: threading.Event = field(default_factory=threading.Event)  # a row knows the listed instance
    on_gone: Callable[[], None] = lambda: None
    on_closed: Callable[[Path], None] = lambda _: None


@dataclass
class ScriptedSource:
    """A source that sends through real staging files, as the receiver does."""

    pacs: Pacs
    staging: Staging
    deliver: Deliver
    habits: dict[str, tuple[str, str]] = field(default_factory=dict)

    def open(self) -> None: ...
    def close(self) -> None: ...
    def cut(self) -> None: ...

    def quiet_in_s(self) -> float:
        return 0.0

    def by_patient(self) -> bool:
        return False

    @contextlib.contextmanager
    def questions(self) -> Iterator[Callable[[Window], Iterator[StudyFound]]]:
        yield lambda window: iter((StudyFound(STUDY, "20200505", ("CT",), 1),))

    def instances(self, study: StudyRef) -> StudyPlanned:
        return StudyPlanned(STUDY, (SeriesPlan(SERIES, "CT", (LISTED.sop,)),))

    @contextlib.contextmanager
    def listing(self) -> Iterator[Callable[[StudyRef], StudyPlanned]]:
        yield self.instances

    def retrieve(self, study: StudyRef, wanted: Wanted) -> RetrieveEnded:
        asked = [ref for ref in (LISTED, UNLISTED, LISTED) if wanted.whole or ref.sop in wanted.series.get(ref.series, ())]
        for number, ref in enumerate(asked):
            if ref in self.pacs.gone:
                continue
            if number == 2:
                self.pacs.staged.wait(10)  # what comes again takes the place of a file that a row needs
            incoming = self.staging.create().begin(HEADER)
            incoming.write(memoryview(CONTENT[ref]))
            incoming.close()
            rolled = incoming.roll()
            self.pacs.on_closed(incoming.path)
            answer = self.deliver(Received(incoming.path, ref, rolled, "1.3", "1.4"))
            if self.pacs.deletes and answer is not None:
                answer.result(10)
                self.pacs.gone |= {ref}
                self.pacs.on_gone()
        return RetrieveEnded(STUDY, 0)


def configured(folder: Path, *, durable: bool = False) -> Config:
    folder.mkdir()
    path = configure(folder, 1, 2, source="from = 2020-05-05\nto = 2020-05-05\nassociations = 1", destination='kind = "folder"\npath = "disk/bucket"\nworkers = 1',
                     migration='staging = "disk/staging"', retry="attempts = 3\nfirst_wait_s = 0.001\nmax_wait_s = 0.001")  # fmt: skip
    path.write_text(path.read_text().replace("[destination]", f'ack = "{"durable" if durable else "received"}"\n[destination]'))
    (folder / "disk" / "bucket").mkdir(parents=True)
    return load(path)


OnCommit = Callable[[Manifest, list[Outcome]], None]


def lived(config: Config, pacs: Pacs, disk: Disk = DISK, on_commit: OnCommit = lambda *_: None) -> None:
    """A run from start to end; `on_commit` is called after each commit, before what it allows is done."""
    settings = cast(FolderSettings, config.destination)

    class OnDisk(Staging):
        def __init__(self, root: Path, **options: Any) -> None:
            super().__init__(root, disk=disk, reserve_bytes=0, **options)

    commit = Manifest.commit

    def committed(manifest: Manifest, outcomes: Any) -> Effects:
        facts = list(outcomes)
        effects = commit(manifest, facts)
        if any(isinstance(fact, InstanceStaged) and fact.received.ref == LISTED for fact in facts):
            pacs.staged.set()
        on_commit(manifest, facts)
        return effects

    with contextlib.ExitStack() as stack:
        stack.enter_context(patch.object(migration, "Staging", OnDisk))
        stack.enter_context(patch.object(migration, "open_source", lambda _, staging, deliver, *__: ScriptedSource(pacs, staging, deliver)))
        stack.enter_context(patch.dict(destinations._shared, {(os.getpid(), settings): Folder(settings, disk=disk)}))
        stack.enter_context(patch.object(Manifest, "commit", committed))
        with migration.Migration(config, "run") as running:
            running.run()


@dataclass(frozen=True)
class Rows:
    """What a manifest promises: staged files with their bytes' hash, proven objects with theirs, whether the retrieve ended."""

    staged: dict[str, bytes]
    verified: dict[str, bytes]
    here: frozenset[str]  # SOP Instance UIDs that came
    named: frozenset[str]  # those that will be asked for again, too
    unheard: bool  # the study is not asked for as a whole any more
    migrated: bool

    @staticmethod
    def of(connection: sqlite3.Connection) -> Rows:
        """Read by SQL of its own, not by the code that is on trial here."""
        rows = connection.execute(
            "SELECT sop_uid, state, beside, dataset_sha256, file_sha256 FROM instance "
            "UNION ALL SELECT sop_uid, state, 1, dataset_sha256, file_sha256 FROM copy"
        ).fetchall()
        study = connection.execute("SELECT state, retrieve_ended FROM study").fetchone() or (0, 0)
        staged, proven = {}, {}
        for sop, state, beside, dataset_sha256, file_sha256 in rows:
            ref = InstanceRef(STUDY.study, SERIES, sop)
            if state == 3:
                proven[object_key(ref, "", beside=dataset_sha256 if beside else None)] = file_sha256
            elif state:
                staged[Staging.path_below(Path("staging"), ref, dataset_sha256).as_posix()] = file_sha256
        here = frozenset(sop for sop, state, *_ in rows if state)
        return Rows(staged, proven, here, frozenset(row[0] for row in rows), bool(study[1]), study[0] == 3)

    @staticmethod
    def in_file(path: Path) -> Rows:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            return Rows.of(connection)

    def wrong(self, tree: dict[str, bytes | None], acknowledged: frozenset[InstanceRef], *, staging: bool = True) -> str | None:
        """Which promise the disk does not keep; None where it keeps all. Without `staging` its files may be spoilt."""
        for name, sha256 in self.staged.items():
            if staging and hashlib.sha256(tree.get(name) or b"").digest() != sha256:
                return "a staged row without its file"
        for key, sha256 in self.verified.items():
            content = tree.get(f"bucket/{key}") or b""
            if hashlib.sha256(content).digest() != sha256 or content not in KEYS.values():
                return "a verified row without a good object"
        if not {ref.sop for ref in acknowledged} <= self.here:
            return "an acknowledged instance that no row knows"
        if self.unheard and UNLISTED.sop not in self.named:
            return "an unlisted instance that the source is never asked for again"
        if self.migrated and (self.here != {ref.sop for ref in CONTENT} or len(self.verified) < len(CONTENT)):
            return "a study called migrated that is not proven"
        return None


@dataclass(frozen=True)
class State:
    """All that a crash leaves: the manifest's rows, the disk, and what the source has deleted."""

    rows: int
    tree: Tree
    gone: frozenset[InstanceRef]


class Recorded:
    """A life with everything that a crash at each of its moments might leave."""

    def __init__(self, config: Config, pacs: Pacs, *, most: int | None, kills: bool = False, spoil: str = "", cache: Cache | None = None) -> None:
        """`most` survivors at each moment; with `kills` also what is there when only the process dies. `spoil`: a byte flips in a
        file that just came ("part"), whose row was just committed ("staged"), or in an object that was just stored ("object")."""
        self.config, self.states, self.kills = config, dict[State, str](), list[tuple[State, str, Cache]]()
        self.rows = [Rows.in_file(config.manifest) if config.manifest.exists() else Rows({}, {}, frozenset(), frozenset(), False, False)]
        self.images = [b""]
        self._pacs, self._most, self._wants_kills = pacs, most, kills
        self.disk = RecordingDisk(config.staging.parent, self._at, cache)
        pacs.on_gone = self._at
        if spoil == "part":
            pacs.on_closed = self.disk.spoil
        self._spoil, self._trusts_staging = spoil, spoil != "staged"
        self.ended_by: PacsMigrateError | None = None
        try:
            lived(config, pacs, self.disk, self._committed)
        except PacsMigrateError as error:
            self.ended_by = error
        self._at()

    def _committed(self, manifest: Manifest, facts: list[Outcome]) -> None:
        for fact in facts:
            if self._spoil == "staged" and isinstance(fact, InstanceStaged) and fact.received.ref == UNLISTED:
                self.disk.spoil(fact.received.path)
                self._spoil = ""
            if self._spoil == "object" and isinstance(fact, InstanceStored):
                self.disk.spoil(self.config.staging.parent / "bucket" / fact.receipt.key)
                self._spoil = ""
        self.rows.append(Rows.of(manifest.connection))
        self.images.append(manifest.connection.serialize() if self._wants_kills else b"")
        self._at()

    def _at(self) -> None:
        where = f"after operation {len(self.disk.operations)} ({self.disk.operations[-1]})" if self.disk.operations else "at the beginning"
        for tree in self.disk.survivors(self._most):
            self.states.setdefault(State(len(self.rows) - 1, tree, self._pacs.gone), where)
        if self._wants_kills:
            self.kills.append((State(len(self.rows) - 1, self.disk.now(), self._pacs.gone), where, self.disk.cache()))

    def wrong(self) -> str | None:
        """The first promise that some crash breaks."""
        for state, where in self.states.items():
            if said := self.rows[state.rows].wrong(dict(state.tree), state.gone, staging=self._trusts_staging):
                return f"{said}, {where}"
        return None


class Restart:
    """Starts again, at the same place, on what a crash left."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._swept = config.staging.parent.with_name("swept")

    def prepare(self, image: bytes, tree: Tree) -> None:
        """Manifest and disk as they were left."""
        shutil.rmtree(self.config.staging.parent)
        shutil.rmtree(self.config.manifest.parent, ignore_errors=True)
        materialised(tree, self.config.staging.parent)
        if image:
            self.config.manifest.parent.mkdir()
            self.config.manifest.write_bytes(image)

    def swept(self, rows: Rows, tree: Tree) -> tuple[str | None, Tree]:
        """(what is wrong after staging is swept and the destination prepared, what then lies there)."""
        root = self._swept
        shutil.rmtree(root, ignore_errors=True)
        materialised(tree, root)
        staging = Staging(root / "staging", reserve_bytes=0)
        staging.sweep({root / name for name in rows.staged})
        staging.close()
        Folder(FolderSettings(root / "bucket", "")).prepare()
        after = frozenset((path.relative_to(root).as_posix(), None if path.is_dir() else path.read_bytes()) for path in root.rglob("*"))
        files = {name: content for name, content in after if content is not None}
        ready = {name for name in files if name.startswith("staging/ready/")}
        if left := [name for name in files if name.startswith("staging/in/") or "_pacs-migrate/tmp/" in name]:
            return f"a temporary file is left: {left[0]}", after
        if ready != set(rows.staged):
            return "staging holds what no row needs, or lacks what one needs", after
        if staging.held_bytes != sum(len(files[name]) for name in ready):
            return "staging's count is not what lies there", after
        return None, after

    def ended(self) -> str | None:
        """What is wrong when a run is over: nothing, where all is proven and nothing is left over."""
        rows = Rows.in_file(self.config.manifest)
        root = self.config.staging.parent
        files = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        files = {name: content for name, content in files.items() if "/_pacs-migrate/" not in name or "/tmp/" in name}  # anchors stay
        if not rows.migrated or rows.here != {ref.sop for ref in CONTENT}:
            return "the run does not reach the end"
        if files != {f"bucket/{key}": content for key, content in KEYS.items()}:
            return f"not exactly the objects are left: {sorted(files)}"
        return rows.wrong(dict(files), frozenset())


def broken(folder: Path, *, durable: bool = False, spoil: str = "", most: int | None = None, most_twice: int = 16) -> str | None:
    """The first promise that a crash at any moment of a life breaks, at once, after a restart, or by a second crash in the run
    after a kill; None where none is broken. `most` bounds the survivors at each moment (see `RecordingDisk.survivors`)."""
    config = configured(folder, durable=durable)
    life = Recorded(config, Pacs(durable), most=most, kills=True, spoil=spoil)
    restart = Restart(config)
    if said := life.wrong():
        return said
    if spoil in ("part", "object"):  # the run rightly does not reach its end
        return None
    if said := restart.ended():
        return f"{said}, without any crash"
    if spoil == "staged":  # between the flip and its discovery the row is wrong, which no crash makes better or worse
        return None
    after: dict[State, str] = {}
    for state, where in life.states.items():
        said, left = restart.swept(life.rows[state.rows], state.tree)
        if said:
            return f"{said}, {where}"
        after.setdefault(State(state.rows, left, state.gone), where)
    for state, where in after.items():
        restart.prepare(life.images[state.rows], state.tree)
        lived(config, Pacs(durable, state.gone))
        if said := restart.ended():
            return f"{said}, {where}"
    twice = 0
    for state, where, cache in life.kills:
        if "(sync" in where:
            continue  # a kill just before it leaves all of this and more in doubt
        restart.prepare(life.images[state.rows], state.tree)
        again = Recorded(config, Pacs(durable, state.gone), most=most_twice, cache=cache)
        if said := again.wrong() or restart.ended():
            return f"{said}, in the run after a kill {where}"
        twice += len(again.states)
    print(f"{len(life.disk.operations)} operations, {len(life.states)} states after one crash, {len(after)} kinds of restart, "
          f"{twice} states after a kill and a crash")  # fmt: skip
    return None
