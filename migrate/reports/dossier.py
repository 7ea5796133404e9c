"""The dossier: what was found, moved, proven, is missing and was accepted, as files that can be checked without this package.

It is deterministic: the same manifest gives the same bytes. Its time is that of the last seal in the manifest.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
from pathlib import Path
from typing import Any

from migrate.errors import DiskFailing, UsageError
from migrate.evidence.merkle import Tree, instance_entry, study_entry
from migrate.evidence.signing import CONTENTS, SIGNATURE
from migrate.reports import completeness
from migrate.reports.bag import Objects, sha256, sums_line
from migrate.reports.inventory import Inventory, base_uri
from migrate.reports.moment import last_seal_ms
from migrate.reports.parquet import INSTANCES as PARQUET
from migrate.reports.parquet import ParquetTable
from migrate.reports.parquet import require as require_pyarrow
from migrate.reports.status import is_complete, one_moment
from migrate.reports.tables import EVENT_COLUMNS, INSTANCE_COLUMNS, SEAL_COLUMNS, Table, events, instances, seals

_FILES = ("report.html", "report-anonymous.html", "report.json", "studies.csv", "exceptions.csv", "instances.csv.gz", "events.csv.gz", "seals.csv.gz", "merkle.json", "SHA256SUMS",
          "inventory.dcm", "verify_dossier.py",
          "bag/bag-info.txt", "bag/bagit.txt", "bag/manifest-sha256.txt", "bag/tagmanifest-sha256.txt")  # fmt: skip
_COPY, _KEY, _PROOF, _SIZE, _FILE = map(INSTANCE_COLUMNS.index, ("copy", "key", "proof", "size_bytes", "file_sha256"))
_LISTED = tuple(map(INSTANCE_COLUMNS.index, ("study", "series", "sop", "modality", "sop_class", "transfer_syntax", "key", "file_sha256")))

_LEAF = tuple(map(INSTANCE_COLUMNS.index, ("study", "series", "sop", "size_bytes", "dataset_sha256", "file_sha256", "key", "version", "proof")))


def write_dossier(connection: sqlite3.Connection, folder: Path, *, prefix: str, parquet: bool = False) -> Path:
    """Write every file of the dossier, of one moment, and return the path of its page. `prefix`: that of the object keys.

    `parquet`: instances.parquet, too. Raises UsageError where the folder holds something else or a signed dossier, or pyarrow is missing, DiskFailing.
    """
    _refuse_foreign(folder)
    files: tuple[str, ...] = _FILES
    if parquet:
        require_pyarrow()
        files = (*_FILES, PARQUET)
    new = folder / ".new"
    try:
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        with one_moment(connection):
            _write(connection, new, prefix, files)
        for name in (CONTENTS, PARQUET):  # a dossier that is half the old and half the new one must not look whole
            (folder / name).unlink(missing_ok=True)
        (folder / "bag" / "data").mkdir(parents=True, exist_ok=True)
        for name in (*files, CONTENTS):
            os.replace(new / name, folder / name)
    except OSError as error:
        raise DiskFailing(f"The dossier cannot be written into {folder}: {error.strerror}.", hint="Choose another --dossier.") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return folder / "report.html"


def _refuse_foreign(folder: Path) -> None:
    """Nothing but an unsigned dossier of ours is written over. Raises UsageError."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder.", hint="Choose another --dossier.")
    names = {path.name for path in folder.iterdir()}
    if SIGNATURE in names:
        raise UsageError(f"{folder} holds a signed dossier.", hint="Signed dossiers stay as they are. Choose another folder.")
    ours = {name.partition("/")[0] for name in (*_FILES, PARQUET, CONTENTS)} | {".new"}
    if names - ours:
        raise UsageError(f"{folder} holds other files.", hint="Choose a new folder for the dossier.")


class Forest:
    """The Merkle tree of the migration over the proven objects, which come in the order of study, series, SOP Instance UID."""

    def __init__(self) -> None:
        self._tree, self._mine = Tree(), Tree()
        self._study, self._sop, self._leaves = "", ("", ""), 0
        self._held: list[tuple[bytes, bytes]] = []

    def add(self, row: tuple[Any, ...]) -> None:
        """A proven row by INSTANCE_COLUMNS."""
        study, series, sop, size, dataset, file, key, version, proof = (row[column] for column in _LEAF)
        if study != self._study:
            self._end_study()
            self._study = study
        if (series, sop) != self._sop:
            self._end_instance()
            self._sop = (series, sop)
        self._held.append((key.encode(), instance_entry(study, series, sop, size, dataset, file, key, version, proof)))

    def _end_instance(self) -> None:
        for _, entry in sorted(self._held):  # by key: an instance and its further contents
            self._mine.add(entry)
        self._held.clear()

    def _end_study(self) -> None:
        self._end_instance()
        if self._mine.leaves:
            self._tree.add(study_entry(self._study, self._mine.leaves, self._mine.root()))
            self._leaves += self._mine.leaves
            self._mine = Tree()

    def document(self, connection: sqlite3.Connection) -> dict[str, Any]:
        """merkle.json, after the last row."""
        self._end_study()
        number, head = connection.execute("SELECT id, lower(hex(sha256)) FROM seal ORDER BY id DESC LIMIT 1").fetchone() or (0, "")
        return {"seal": number, "head": head, "studies": self._tree.leaves, "leaves": self._leaves, "root": self._tree.root().hex()}


def _write(connection: sqlite3.Connection, folder: Path, prefix: str, files: tuple[str, ...]) -> None:
    at_ms = last_seal_ms(connection)
    objects, forest = Objects(folder), Forest()
    listed = Inventory(folder / "inventory.dcm", connection, at_ms=at_ms, base_uri=base_uri(connection, prefix), complete=is_complete(connection))
    with contextlib.ExitStack() as stack:
        tables: list[Table | ParquetTable] = [stack.enter_context(Table(folder / "instances.csv.gz", INSTANCE_COLUMNS))]
        tables += [stack.enter_context(ParquetTable(folder / PARQUET))] if PARQUET in files else []
        stack.enter_context(listed)
        for row in instances(connection, prefix):
            for each in tables:
                each.row(row)
            if row[_PROOF] is not None:
                objects.add(row[_KEY], row[_FILE], row[_SIZE])
                forest.add(row)
                if row[_COPY] is None:
                    listed.add(*(row[column] for column in _LISTED))
    for name, columns, rows in (("events.csv.gz", EVENT_COLUMNS, events(connection)), ("seals.csv.gz", SEAL_COLUMNS, seals(connection))):
        with Table(folder / name, columns) as table:
            for row in rows:
                table.row(row)
    merkle = forest.document(connection)
    (folder / "merkle.json").write_text(json.dumps(merkle, indent=1) + "\n", encoding="utf-8", newline="")
    shutil.copyfile(Path(__file__).with_name("verify_dossier.py"), folder / "verify_dossier.py")
    named = connection.execute("SELECT value FROM meta WHERE key = 'migration'").fetchone()
    objects.close(named[0] if named else "", at_ms)
    completeness.write_files(connection, folder, at_ms=at_ms, merkle=merkle)
    lines = [sums_line(sha256(folder / each), each) for each in sorted(files)]
    (folder / CONTENTS).write_text("".join(lines), encoding="utf-8", newline="")
