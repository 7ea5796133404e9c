"""What is special about folders: links, leftovers, file systems that cannot do everything."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from migrate.config import FolderSettings
from migrate.destinations import open_destination
from migrate.destinations.folder import Folder
from migrate.errors import DestinationRefused, DestinationUnreachable, KeyTaken, ObjectDiffers, PutFailed
from migrate.model import Proof
from migrate.staging.disk import Disk
from tests.places import FolderPlace, key_of, new_number, staged

BYTES = bytes(range(256)) * 96


@pytest.fixture
def place(tmp_path: Path) -> FolderPlace:
    return FolderPlace(FolderSettings(tmp_path / "new" / "objects"))


@pytest.fixture
def folder(place: FolderPlace) -> Iterator[Folder]:
    opened = Folder(place.settings)
    opened.prepare()
    yield opened
    opened.close()


@pytest.mark.parametrize("kind", ["link to the same bytes", "dangling link", "folder"])
def test_only_a_regular_file_is_an_object(place: FolderPlace, folder: Folder, tmp_path: Path, kind: str) -> None:
    """A link or a folder under a key is foreign, even a link to our own bytes: it stays and proves nothing."""
    item, file = staged(tmp_path, BYTES)
    path = place.settings.path / key_of(place, item)
    path.parent.mkdir(parents=True)
    if kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(file if kind.endswith("bytes") else tmp_path / "nowhere")
    with pytest.raises(KeyTaken):
        folder.put(item, file)
    with pytest.raises(ObjectDiffers):
        folder.verify(item)
    assert path.is_symlink() or path.is_dir()


def test_a_linked_study_folder_is_not_followed(place: FolderPlace, folder: Folder, tmp_path: Path) -> None:
    """A study's folder that is a link leads out of the destination: nothing is written through it, nothing proven."""
    item, file = staged(tmp_path, BYTES)
    study = place.settings.path / "studies" / item.ref.study
    study.parent.mkdir()
    (tmp_path / "outside").mkdir()
    study.symlink_to(tmp_path / "outside")
    with pytest.raises(DestinationRefused):
        folder.put(item, file)
    assert not any((tmp_path / "outside").iterdir())
    (tmp_path / "outside" / "series" / item.ref.series / "instances").mkdir(parents=True)
    (place.settings.path / key_of(place, item)).write_bytes(BYTES)
    with pytest.raises(ObjectDiffers):
        folder.verify(item)


def test_leftovers_are_swept_and_nothing_else(place: FolderPlace, folder: Folder, tmp_path: Path) -> None:
    """Temporary files of a killed run go at the next start; objects stay, and a put leaves no temporary file."""
    item, file = staged(tmp_path, BYTES)
    folder.put(item, file)
    own = place.settings.path / "_pacs-migrate" / "tmp"
    assert not any(own.iterdir())
    (own / "123-0.part").write_bytes(BYTES[:100])
    (own / "abc.claim").write_bytes(b"")
    folder.prepare()
    assert not any(own.iterdir())
    assert place.stored() == {key_of(place, item)}


def test_without_hard_links_nothing_is_overwritten_either(place: FolderPlace, folder: Folder, tmp_path: Path) -> None:
    """On a file system without hard links: one content wins a race, foreign bytes stay, and proofs are the same."""
    linkless = Folder(place.settings, links=False)
    assert {finding.level for finding in linkless.check()} <= {"ok", "warn"}  # a second probe does not replace the first
    number = new_number()
    racers = [staged(tmp_path, bytes([index]) * 30_000, number=number) for index in range(8)]

    def put(index: int) -> bool:
        try:
            linkless.put(*racers[index])
        except (KeyTaken, PutFailed):
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(put, range(8)))
    assert won.count(True) == 1
    winner = racers[won.index(True)][0]
    assert folder.verify(winner) is Proof.READ_BACK
    assert place.read(key_of(place, winner)) == bytes([won.index(True)]) * 30_000
    assert not any((place.settings.path / "_pacs-migrate" / "tmp").iterdir())


def test_a_vanished_folder_is_not_made_anew(place: FolderPlace, folder: Folder, tmp_path: Path) -> None:
    """An unmounted disk in the middle of a run: unreachable, and no local folder takes its place."""
    item, file = staged(tmp_path, BYTES)
    folder.put(item, file)
    place.settings.path.rename(tmp_path / "unmounted")
    other, other_file = staged(tmp_path, BYTES)
    for each in (folder, Folder(place.settings)):  # one that has made folders there, and one that has made none yet
        with pytest.raises(DestinationUnreachable, match="is gone"):
            each.put(other, other_file)
        with pytest.raises(DestinationUnreachable, match="is gone"):
            each.verify(item)
        with pytest.raises(DestinationUnreachable, match="is gone"):
            list(each.listed("studies/"))
    assert not place.settings.path.exists()


def test_only_regular_files_are_listed_and_what_cannot_be_listed_is_told(place: FolderPlace, folder: Folder, tmp_path: Path) -> None:
    """Links and pipes are no objects; a folder that is not there holds nothing, one that cannot be read is an error and not an empty one."""
    item, file = staged(tmp_path, BYTES)
    key = folder.put(item, file).key
    beside = (place.settings.path / key).parent
    (beside / "link.dcm").symlink_to(file)
    os.mkfifo(beside / "pipe.dcm")
    assert list(folder.listed("studies/")) == [(key, len(BYTES))]
    assert list(folder.listed("elsewhere/")) == []
    with pytest.raises(DestinationRefused):
        list(folder.listed("x" * 300))


class Overwriting(Disk):
    """A file system that lets a new name replace a file."""

    def link(self, old: Path, new: Path) -> None:
        os.replace(old, new)


def test_a_file_system_that_overwrites_is_refused(place: FolderPlace) -> None:
    """Two probes under one name tell it before the first object is written."""
    (finding,) = Folder(place.settings, disk=Overwriting()).check()
    assert (finding.level, "overwrites" in finding.detail) == ("fail", True)


class Noting(Disk):
    """Notes which folders were synced."""

    def __init__(self) -> None:
        self.synced: list[Path] = []

    def sync_folder(self, path: Path) -> None:
        super().sync_folder(path)
        self.synced.append(path)


def test_every_new_folder_has_a_durable_name(place: FolderPlace, tmp_path: Path) -> None:
    """Also those above the destination: with one of them all objects would be gone. One that was there is synced once more, for its maker may have died."""
    root = place.settings.path
    for new in (True, False):
        disk = Noting()
        Folder(place.settings, disk=disk).prepare()
        assert disk.synced[:-2] == ([root.parent, tmp_path] if new else [root.parent])
        assert disk.synced[-2:] == [root, root / "_pacs-migrate"]


class Forbidding(Disk):
    """A folder that this user may pass through, and not read."""

    def __init__(self, folder: Path) -> None:
        self._folder, self.asked = folder, False

    def sync_folder(self, path: Path) -> None:
        if path == self._folder:
            self.asked = True
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        super().sync_folder(path)


def test_a_destination_may_be_a_link_in_a_folder_that_others_keep_to_themselves(place: FolderPlace, tmp_path: Path) -> None:
    """A link to a folder is a folder; where the one above may not be read, its owner has to see to its names."""
    (tmp_path / "disk").mkdir()
    above = place.settings.path.parent
    above.mkdir()
    place.settings.path.symlink_to(tmp_path / "disk")
    disk = Forbidding(above)
    Folder(place.settings, disk=disk).prepare()
    assert disk.asked and (tmp_path / "disk" / "_pacs-migrate").is_dir()


def test_a_removed_study_can_be_put_again(place: FolderPlace, folder: Folder, tmp_path: Path) -> None:
    """Somebody removes a study's folder while a run goes on: the next put makes it again."""
    item, file = staged(tmp_path, BYTES)
    receipt = folder.put(item, file)
    place.remove(receipt.key)
    for parent in list((place.settings.path / receipt.key).parents)[:4]:
        parent.rmdir()
    assert folder.put(item, file) == receipt
    assert folder.verify(replace(item, receipt=receipt)) is Proof.READ_BACK


@pytest.mark.parametrize("prefix", ["../out/", "a/../../out/", "/abs/", "./"])
def test_no_prefix_leads_out(place: FolderPlace, prefix: str) -> None:
    """A prefix that would leave the folder is refused when the destination is opened."""
    with pytest.raises(DestinationRefused):
        open_destination(replace(place.settings, prefix=prefix))


def test_a_name_too_long_for_the_file_system_is_told(place: FolderPlace) -> None:
    """What the file system cannot hold is refused with a hint, not a traceback."""
    with pytest.raises(DestinationRefused, match="too long") as raised:
        open_destination(replace(place.settings, prefix="x" * 300 + "/")).prepare()
    assert raised.value.hint
