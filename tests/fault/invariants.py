"""What holds whenever no process runs, however the last one ended."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from migrate.dicom.part10 import read_header
from migrate.model import InstanceRef, object_key
from migrate.staging.area import Staging

Truth = Mapping[tuple[str, str, str], bytes]
"""SHA-256 of each data set by its three UIDs, as the generator knows them."""

_ITEMS = """
SELECT study.uid, series.uid, sop_uid, instance.state, beside, dataset_sha256, file_sha256 FROM instance
  JOIN series ON series.id = series_id JOIN study ON study.id = study_id WHERE instance.state > 0
UNION ALL
SELECT study.uid, series.uid, sop_uid, copy.state, 1, dataset_sha256, file_sha256 FROM copy
  JOIN series ON series.id = series_id JOIN study ON study.id = study_id WHERE copy.state > 0
"""
_UNPROVEN = """
SELECT count(*) FROM study JOIN series ON series.study_id = study.id JOIN instance ON series_id = series.id
  WHERE study.state = 3 AND instance.state < 3
"""


@contextlib.contextmanager
def _copied(manifest: Path) -> Iterator[Path]:
    """A copy with its log or journal: what was begun can be taken back there, as the next writer does, and all stays as it is."""
    with tempfile.TemporaryDirectory(dir=manifest.parent.parent) as folder:
        for name in ("", "-wal", "-journal"):
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(f"{manifest}{name}", Path(folder) / f"copy.db{name}")
        yield Path(folder) / "copy.db"


def unkept(manifest: Path, staging: Path, read: Callable[[str], bytes | None], truth: Truth) -> list[str]:
    """The promises of a manifest that are not kept: none, always. `read` gives an object by its key."""
    if not manifest.exists() or not manifest.stat().st_size:
        return []
    wrong: list[str] = []
    with _copied(manifest) as copy, contextlib.closing(sqlite3.connect(copy)) as connection:
        if connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'copy'").fetchone()[0] == 0:
            return []  # killed while it was made
        if (found := connection.execute("PRAGMA integrity_check").fetchone()[0]) != "ok":
            return [f"integrity: {found}"]
        if connection.execute("PRAGMA foreign_key_check").fetchall():
            wrong.append("foreign keys")
        if connection.execute(_UNPROVEN).fetchone()[0]:
            wrong.append("a migrated study has instances that are not verified")
        items = connection.execute(_ITEMS).fetchall()
    for study, series, sop, state, beside, dataset_sha256, file_sha256 in items:
        ref = InstanceRef(study, series, sop)
        if not beside and truth.get((study, series, sop), dataset_sha256) != dataset_sha256:
            wrong.append(f"{sop}: another data set than was sent")
        if state == 3:
            content = read(object_key(ref, "", beside=dataset_sha256 if beside else None))
        else:
            path = Staging.path_below(staging, ref, dataset_sha256)
            content = path.read_bytes() if path.exists() else None
        if content is None or hashlib.sha256(content).digest() != file_sha256:
            wrong.append(f"{sop}: state {state} without its bytes")
        elif hashlib.sha256(content[read_header(content)[3] :]).digest() != dataset_sha256:
            wrong.append(f"{sop}: the file's data set is another one")
    return wrong


def unkept_in(folder: Path, truth: Truth) -> list[str]:
    """The same for a migration into a folder, as `tests.runs` configures it."""

    def read(key: str) -> bytes | None:
        path = folder / "bucket" / key
        return path.read_bytes() if path.exists() else None

    return unkept(folder / "manifests" / "test.db", folder / "staging", read, truth)
