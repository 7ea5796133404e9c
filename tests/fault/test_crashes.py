"""One study's life, cut off at every moment: whatever of the unsynced survives, no promise is broken and a restart reaches the
end. The order of the steps matters: each mutant of it is caught.

`CRASH_SURVIVORS=N` looks at N survivors at each moment of a second crash instead of 8; of the first crash all are looked at.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from awscrt.checksums import crc64nvme

from migrate import inbox, pipeline
from migrate.destinations import shared_destination
from migrate.destinations.folder import Folder
from migrate.errors import StagedFileLost
from migrate.jobs.migration import Migration
from migrate.manifest import Manifest, studies
from migrate.manifest.queue import Queue
from migrate.model import Fixity, InstanceStaged, InstanceState, InstanceStored, InstanceVerified, Proof, Receipt, RetrieveEnded
from migrate.pipeline import Pipeline
from migrate.stages import work
from migrate.staging import area as staging
from migrate.staging.area import Staging, hash_file
from migrate.staging.disk import DurableFolders
from tests.fault.crash_life import UNLISTED, broken


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: how long a sync takes is not what is looked at."""
    if not Path("/dev/shm").is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


TWICE = int(os.environ.get("CRASH_SURVIVORS", "8"))


@pytest.mark.timeout(0)
@pytest.mark.parametrize("durable", [False, True])
def test_no_crash_breaks_a_promise(memory: Path, durable: bool) -> None:
    """A power cut at any moment, with any survivors, and a power cut at any moment of the run after any kill."""
    assert broken(memory / "life", durable=durable, most_twice=TWICE) is None


@pytest.mark.parametrize("spoil", ["part", "staged", "object"])
def test_a_flipped_byte_is_never_proven(memory: Path, spoil: str) -> None:
    """Before it is durable, in staging, or at the destination: no row is wrong at any moment."""
    assert broken(memory / "life", spoil=spoil, most=8, most_twice=2) is None


# ---- mutants of the order -------------------------------------------------------------------------------------------------


class Skipping:
    """A disk that does some operations not at all."""

    def __init__(self, whole: Any, *operations: str) -> None:
        self._whole, self._operations = whole, operations

    def __getattr__(self, name: str) -> Any:
        return (lambda *_: None) if name in self._operations else getattr(self._whole, name)


def without(kind: type, method: str, *operations: str) -> Any:
    """While that method runs, its disk skips those operations."""
    original = getattr(kind, method)

    def mutant(self: Any, *words: Any, **options: Any) -> Any:
        whole, self._disk = self._disk, Skipping(self._disk, *operations)
        try:
            return original(self, *words, **options)
        finally:
            self._disk = whole

    return patch.object(kind, method, mutant)


def received_file_not_synced() -> Any:
    seal = staging._seal
    return patch.object(staging, "_seal", lambda path, rolled, buffer, where: seal(path, rolled, buffer, Skipping(where, "sync")))


def made_folders_synced_by_their_maker_only() -> Any:
    def make(self: Any, folder: Path) -> None:
        if folder == self._root or folder.is_dir():
            return
        self.make(folder.parent)
        self._disk.make_folder(folder, self._mode)
        self._disk.sync_folder(folder.parent)

    return patch.object(DurableFolders, "make", make)


def renamed_before_synced() -> Any:
    settle = Staging.settle

    def mutant(self: Any, files: Any) -> list[Fixity]:
        batch = list(files)
        for _, final, _ in batch:
            self._folders.make(final.parent)
        for part, final, _ in batch:
            self._disk.rename(part, final)
        for _, final, _ in batch:
            self._disk.sync_folder(final.parent)
        return settle(self, [(final, final, rolled) for _, final, rolled in batch])

    return patch.object(Staging, "settle", mutant)


def fixity_of(path: Path, rolled: Any) -> Fixity:
    return Fixity(rolled.size_bytes, hash_file(path)[1], rolled.dataset_sha256, rolled.crc64nvme)


def committed(self: Any) -> None:
    done = threading.Event()
    self._put(self._facts, done.set)
    assert done.wait(5)


def row_before_all_else() -> Any:
    settled = Pipeline._settled

    def mutant(self: Any, arrived: list[Any]) -> list[Fixity]:
        fixities = [fixity_of(entry.received.path, entry.received.rolled) for entry in arrived]
        for entry, fixity in zip(arrived, fixities, strict=True):
            self._put(self._facts, InstanceStaged(pipeline.dataclasses.replace(entry.received, path=entry.final), fixity))
        committed(self)
        return settled(self, arrived)

    return patch.object(Pipeline, "_settled", mutant)


def row_before_the_folder_is_synced() -> Any:
    settle, effects = Staging.settle, Migration._after_commit

    def unsynced(self: Any, files: Any) -> list[Fixity]:
        batch = list(files)
        self.late = {final.parent for _, final, _ in batch}
        whole, self._disk = self._disk, Skipping(self._disk, "sync_folder")
        try:
            return settle(self, batch)
        finally:
            self._disk = whole

    def late(self: Any, what: Any) -> None:
        for folder in getattr(self._staging, "late", ()):
            self._staging._disk.sync_folder(folder)
        self._staging.late = ()
        effects(self, what)

    return both(patch.object(Staging, "settle", unsynced), patch.object(Migration, "_after_commit", late))


def row_before_the_rename() -> Any:
    settle, effects = Staging.settle, Migration._after_commit

    def sealed(self: Any, files: Any) -> list[Fixity]:
        self.late = list(files)
        return self._sealed([(part, rolled) for part, _, rolled in self.late])

    def late(self: Any, what: Any) -> None:
        batch, self._staging.late = getattr(self._staging, "late", []), []
        if batch:
            settle(self._staging, batch)
        effects(self, what)

    return both(patch.object(Staging, "settle", sealed), patch.object(Migration, "_after_commit", late))


def acknowledged_on_arrival() -> Any:
    deliver = Pipeline.deliver

    def mutant(self: Any, received: Any, *, durable: bool = False) -> Any:
        answer = deliver(self, received)
        if durable:
            answer = pipeline.Future()
            answer.set_result(None)
        return answer

    return patch.object(Pipeline, "deliver", mutant)


def acknowledged_before_the_row() -> Any:
    settled = Pipeline._settled

    def mutant(self: Any, arrived: list[Any]) -> list[Fixity]:
        fixities = settled(self, arrived)
        for entry in arrived:
            if entry.durable is not None:
                entry.durable.set_result(None)
                entry.durable = None
        return fixities

    return patch.object(Pipeline, "_settled", mutant)


def released_when(fact: type) -> Any:
    """The staged file goes with a commit that proves nothing."""
    apply = Manifest._apply

    def mutant(self: Any, outcome: Any) -> None:
        apply(self, outcome)
        if isinstance(outcome, fact):
            self.effects.release.append(outcome.item)  # type: ignore[attr-defined]

    return patch.object(Manifest, "_apply", mutant)


def released_by_the_worker(name: str) -> Any:
    """The staged file goes before the commit that says why it may."""
    original = getattr(work, name)

    def mutant(batch: Any) -> Any:
        outcomes = list(original(batch))
        for _, file in batch.items:
            if file.exists():
                shared_destination(batch.destination)._disk.unlink(file)  # type: ignore[attr-defined]
        return outcomes

    return patch.object(work, name, mutant)


def object_named_before_it_is_synced() -> Any:
    publish = Folder._publish

    def late(self: Any, temporary: Path, final: Path) -> None:
        publish(self, temporary, final)
        fd = self._disk.open(final)
        self._disk.sync(fd)
        self._disk.close(fd)

    return both(without(Folder, "_copy", "sync"), patch.object(Folder, "_publish", late))


def object_written_under_its_own_name() -> Any:
    def put(self: Any, item: Any, file: Path) -> Receipt:
        key = self._key(item)
        final = self.root / key
        if final.exists():
            return self._existing(key, final, item.fixity)  # type: ignore[no-any-return]
        self._make_folder(final.parent)
        self._copy(file, final, item.fixity)
        self._disk.sync_folder(final.parent)
        return Receipt(key)

    return patch.object(Folder, "put", put)


def leftovers_kept() -> Any:
    return without(Staging, "sweep", "unlink")


def leftovers_adopted() -> Any:
    """What lies in `in/` is taken for whole and durable."""
    sweep = Staging.sweep

    def mutant(self: Any, needed: Any) -> int:
        for path in list(self.incoming.iterdir()):
            (self.ready / "00").mkdir(exist_ok=True)
            path.rename(self.ready / "00" / path.name)
        return sweep(self, {*needed, *self.ready.glob("00/*")})

    return patch.object(Staging, "sweep", mutant)


def stored_files_swept() -> Any:
    rows = Queue._rows
    return patch.object(Queue, "_rows", lambda self, series, state: [] if state == InstanceState.STORED and in_sweep() else rows(self, series, state))


def in_sweep() -> bool:
    import inspect

    return any(frame.function == "in_staging" for frame in inspect.stack()[:6])


def nothing_counted() -> Any:
    sweep = Staging.sweep

    def mutant(self: Any, needed: Any) -> int:
        removed = sweep(self, needed)
        self._held_bytes = 0
        return removed

    return patch.object(Staging, "sweep", mutant)


def proof_never_asked_for() -> Any:
    return patch.object(Folder, "verify", lambda self, item, deep=False: Proof.READ_BACK)


def proof_of_a_name_only() -> Any:
    return patch.object(Folder, "_read_back", lambda self, final, key, fixity: final.stat())


def verified_when_put() -> Any:
    upload = work.upload

    def mutant(batch: Any) -> Any:
        outcomes = list(upload(batch))
        return outcomes + [InstanceVerified(one.item, Proof.READ_BACK) for one in outcomes if isinstance(one, InstanceStored)]

    return patch.object(work, "upload", mutant)


def received_file_not_compared() -> Any:
    def seal(path: Path, rolled: Any, buffer: bytearray, where: Any) -> Fixity:
        fd = where.open(path, write=True)
        where.sync(fd)
        where.close(fd)
        content = path.read_bytes()
        return Fixity(len(content), hash_file(path)[1], rolled.dataset_sha256, crc64nvme(content))

    return patch.object(staging, "_seal", seal)


def staged_file_not_compared() -> Any:
    copy = Folder._copy

    def mutant(self: Any, *words: Any) -> None:
        with contextlib.suppress(StagedFileLost):
            copy(self, *words)

    return patch.object(Folder, "_copy", mutant)


def end_of_retrieve_not_behind_the_files() -> Any:
    """It is committed although files that came before it are not durable yet."""
    stages, settled, apply = Migration._moving_stages, Pipeline._settled, Manifest._apply
    on_record = threading.Event()

    def unordered(self: Any, *where: Any) -> Any:
        made = stages(self, *where)
        for stage in made:
            stage.ordered = False
        return made

    def slow(self: Any, arrived: list[Any]) -> list[Fixity]:
        if any(entry.received.ref == UNLISTED for entry in arrived):
            on_record.wait(5)
        return settled(self, arrived)

    def applied(self: Any, outcome: Any) -> None:
        apply(self, outcome)
        if isinstance(outcome, RetrieveEnded):
            on_record.set()

    return both(patch.object(Migration, "_moving_stages", unordered), patch.object(Pipeline, "_settled", slow),
                patch.object(Manifest, "_apply", applied), patch.object(inbox, "_ENTRIES", 1))  # fmt: skip


def retrieve_ended_when_planned() -> Any:
    planned = studies.planned

    def mutant(manifest: Any, plan: Any) -> None:
        planned(manifest, plan)
        manifest.execute("UPDATE study SET retrieve_ended = 1")

    return patch.object(studies, "planned", mutant)


@contextlib.contextmanager
def both(*patches: Any) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for each in patches:
            stack.enter_context(each)
        yield


MUTANTS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "a received file is not synced": (received_file_not_synced, {}),
    "its folder is not synced": (lambda: without(Staging, "settle", "sync_folder"), {}),
    "folders are not synced when made": (lambda: without(DurableFolders, "make", "sync_folder"), {}),
    "folders are synced by their maker only": (made_folders_synced_by_their_maker_only, {}),
    "renamed before synced": (renamed_before_synced, {}),
    "the row comes before all else": (row_before_all_else, {}),
    "the row comes before the folder is synced": (row_before_the_folder_is_synced, {}),
    "the row comes before the rename": (row_before_the_rename, {}),
    "acknowledged on arrival": (acknowledged_on_arrival, {"durable": True}),
    "acknowledged before the row": (acknowledged_before_the_row, {"durable": True}),
    "released when staged": (lambda: released_when(InstanceStored), {}),
    "released by the upload": (lambda: released_by_the_worker("upload"), {}),
    "released before the proof is on record": (lambda: released_by_the_worker("verify"), {}),
    "never released": (lambda: without(Staging, "release", "unlink"), {}),
    "the object is not synced": (lambda: without(Folder, "_copy", "sync"), {}),
    "the object's folder is not synced": (lambda: without(Folder, "put", "sync_folder"), {}),
    "the object has its name before it is synced": (object_named_before_it_is_synced, {}),
    "the object is written under its own name": (object_written_under_its_own_name, {}),
    "an object that is there already is not synced": (lambda: without(Folder, "_existing", "sync_folder"), {}),
    "temporary objects are kept": (lambda: without(Folder, "prepare", "unlink"), {}),
    "leftovers are kept": (leftovers_kept, {}),
    "leftovers are adopted": (leftovers_adopted, {}),
    "files of stored rows are swept": (stored_files_swept, {}),
    "what is kept is not counted": (nothing_counted, {}),
    "the proof is never asked for": (proof_never_asked_for, {"spoil": "object"}),
    "the proof is that of a name": (proof_of_a_name_only, {"spoil": "object"}),
    "verified when put": (verified_when_put, {"spoil": "object"}),
    "a received file is not compared": (received_file_not_compared, {"spoil": "part"}),
    "a staged file is not compared": (staged_file_not_compared, {"spoil": "staged"}),
    "the end of a retrieve is not behind its files": (end_of_retrieve_not_behind_the_files, {}),
    "a retrieve has ended when it is planned": (retrieve_ended_when_planned, {}),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_of_the_order_is_caught(memory: Path, name: str) -> None:
    """With one step left out or moved, some crash breaks a promise."""
    mutant, options = MUTANTS[name]
    with mutant():
        said = broken(memory / "life", most=24, most_twice=8, **options)
    print(f"{name}: {said}")
    assert said is not None


