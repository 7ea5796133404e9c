"""A disk that is really full, under staging or under the manifest: exit 22, nothing false on record, and the next run completes."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from migrate.dicom.part10 import read_header
from migrate.practice.pacs import PracticePacs
from migrate.practice.studies import Archive
from tests.ports import free_port
from tests.runs import configure
from tests.small_disk import SmallDisk, small_disk

STAGING_DISK_BYTES = 8 << 20
MANIFEST_DISK_BYTES = 24 << 20  # its log grows to 16 MiB before it is moved into the file
STUDIES = 8


class Job:
    """A migration of the practice archive, of which one part lies on a small disk."""

    def __init__(self, folder: Path, disk: SmallDisk, archive: Archive) -> None:
        self.folder, self.disk, self.archive = folder, disk, archive

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        config = str(self.folder / "migrate.toml")
        return self.disk.run(sys.executable, "-m", "migrate", *words, "--json", "--config", config)

    def assert_ended_by_the_disk(self) -> None:
        """A run ends with 22 and says why; nothing is parked, nothing is called complete, no attempt is used up."""
        done = self.command("run")
        assert done.returncode == 22, done.stderr
        assert done.stdout == "" and "Traceback" not in done.stderr
        assert "full" in done.stderr and "Hint:  Free space" in done.stderr

    def assert_next_run_completes(self) -> None:
        done = self.command("run")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["complete"] is True
        found = {}
        for path in (self.folder / "bucket").glob("studies/*/series/*/instances/*.dcm"):
            raw = path.read_bytes()
            found[path.parts[-5], path.parts[-3], path.stem] = hashlib.sha256(raw[read_header(raw)[3] :]).digest()
        assert found == {(study, series, sop): digest for study, series, sop, digest in self.archive.truth()}


@contextmanager
def job(folder: Path, *, staging: str = "staging", manifest: str = "manifest.db", archive: Archive | None = None,
        disk_bytes: int = STAGING_DISK_BYTES, attempts: int = 3, limit_s: float = 120.0) -> Iterator[Job]:  # fmt: skip
    (folder / "small").mkdir()
    archive = archive or Archive(STUDIES)
    receiver = free_port()
    with (
        small_disk(folder / "small", MANIFEST_DISK_BYTES if manifest.startswith("small/") else disk_bytes, limit_s=limit_s) as disk,
        PracticePacs(archive, destinations={"PACSMIGRATE": ("127.0.0.1", receiver)}) as pacs,
    ):
        places = f'staging = "{staging}"\nmanifest = "{manifest}"'
        configure(folder, pacs.port, receiver, migration=places, source="settle_s = 0.1",
                  retry=f"attempts = {attempts}\nfirst_wait_s = 0.05\nmax_wait_s = 0.1")  # fmt: skip
        yield Job(folder, disk, archive)


@pytest.mark.parametrize("leave_bytes", [0, 8 << 10])
def test_staging_without_room_for_an_image(tmp_path: Path, leave_bytes: int) -> None:
    """Where an image never fits, the run ends with 22, no study is blamed, and after room is made the next run completes."""
    with job(tmp_path, staging="small/staging") as migration:
        migration.disk.fill(leave_bytes)
        migration.assert_ended_by_the_disk()
        status = json.loads(migration.command("status").stdout)
        assert status["complete"] is False
        assert status["studies"]["parked"] == 0 and status["instances"]["quarantined"] == 0
        migration.disk.free()
        migration.assert_next_run_completes()


def test_staging_with_room_for_a_few_images(tmp_path: Path) -> None:
    """Where less fits than a study has, the rest is asked for as uploads make room, and the run completes by itself."""
    with job(tmp_path, staging="small/staging") as migration:
        migration.disk.fill(leave_bytes=64 << 10)
        migration.assert_next_run_completes()


def test_small_disk_large_archive(tmp_path: Path) -> None:
    """Studies each larger than the disk under staging go through it, and our own refusals use up no attempt: the first one used
    up would park its study. `make small-disk` sends 10 GB through 64 MiB."""
    disk_mib, archive_mib = int(os.environ.get("SMALL_DISK_MIB", 8)), int(os.environ.get("SMALL_DISK_ARCHIVE_MIB", 24))
    pixels = 512 if archive_mib > 1024 else 256
    studies = 5 if archive_mib > 1024 else 2
    images = (archive_mib << 20) // (studies * pixels * pixels * 2)
    archive = Archive(studies, pixels=pixels, shapes=dict.fromkeys(range(studies), (("CT", images),)))
    began = time.monotonic()
    with job(tmp_path, staging="small/staging", archive=archive, disk_bytes=disk_mib << 20, attempts=1, limit_s=7000) as migration:
        migration.assert_next_run_completes()
    print(f"{archive_mib} MiB through a staging disk of {disk_mib} MiB in {time.monotonic() - began:.0f} s, {studies * images} images")


@pytest.mark.parametrize("leave_bytes", [0, 32 << 10, 512 << 10])
def test_a_manifest_without_room(tmp_path: Path, leave_bytes: int) -> None:
    """A full disk under the manifest ends the run with 22 wherever it strikes, and the next run completes."""
    with job(tmp_path, manifest="small/test.db") as migration:
        migration.disk.fill(leave_bytes)
        migration.assert_ended_by_the_disk()
        migration.disk.free()
        migration.assert_next_run_completes()
