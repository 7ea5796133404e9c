"""The dossier: what was found, moved, proven, is missing and was accepted, as files that can be checked without this package.

It is deterministic: the same manifest gives the same bytes. Its time is that of the last fact in the manifest.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from pathlib import Path

from migrate.errors import DiskFailing, UsageError
from migrate.reports import completeness
from migrate.reports.bag import Objects, sha256, sums_line
from migrate.reports.inventory import Inventory, base_uri
from migrate.reports.moment import last_fact_ms
from migrate.reports.status import is_complete, one_moment
from migrate.reports.tables import EVENT_COLUMNS, INSTANCE_COLUMNS, Table, events, instances
from migrate.signing import CONTENTS, SIGNATURE

_FILES = ("report.html", "report-anonymous.html", "report.json", "studies.csv", "exceptions.csv", "instances.csv.gz", "events.csv.gz", "SHA256SUMS", "inventory.dcm",
          "bag/bag-info.txt", "bag/bagit.txt", "bag/manifest-sha256.txt", "bag/tagmanifest-sha256.txt")  # fmt: skip
_COPY, _KEY, _PROOF, _SIZE, _FILE = map(INSTANCE_COLUMNS.index, ("copy", "key", "proof", "size_bytes", "file_sha256"))
_LISTED = tuple(map(INSTANCE_COLUMNS.index, ("study", "series", "sop", "modality", "sop_class", "transfer_syntax", "key", "file_sha256")))


def write_dossier(connection: sqlite3.Connection, folder: Path, *, prefix: str) -> Path:
    """Write every file of the dossier, of one moment, and return the path of its page. `prefix`: that of the object keys.

    Raises UsageError where the folder holds something else or a signed dossier, DiskFailing.
    """
    _refuse_foreign(folder)
    new = folder / ".new"
    try:
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        with one_moment(connection):
            _write(connection, new, prefix)
        (folder / CONTENTS).unlink(missing_ok=True)  # a dossier that is half the old and half the new one must not look whole
        (folder / "bag" / "data").mkdir(parents=True, exist_ok=True)
        for name in (*_FILES, CONTENTS):
            os.replace(new / name, folder / name)
        shutil.rmtree(new)
    except OSError as error:
        raise DiskFailing(f"The dossier cannot be written into {folder}: {error.strerror}.", hint="Choose another --dossier.") from error
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
    ours = {name.partition("/")[0] for name in (*_FILES, CONTENTS)} | {".new"}
    if names - ours:
        raise UsageError(f"{folder} holds other files.", hint="Choose a new folder for the dossier.")


def _write(connection: sqlite3.Connection, folder: Path, prefix: str) -> None:
    at_ms = last_fact_ms(connection)
    objects = Objects(folder)
    listed = Inventory(folder / "inventory.dcm", connection, at_ms=at_ms, base_uri=base_uri(connection, prefix), complete=is_complete(connection))
    with Table(folder / "instances.csv.gz", INSTANCE_COLUMNS) as table, listed:
        for row in instances(connection, prefix):
            table.row(row)
            if row[_PROOF] is not None:
                objects.add(row[_KEY], row[_FILE], row[_SIZE])
                if row[_COPY] is None:
                    listed.add(*(row[column] for column in _LISTED))
    with Table(folder / "events.csv.gz", EVENT_COLUMNS) as table:
        for row in events(connection):
            table.row(row)
    name = connection.execute("SELECT value FROM meta WHERE key = 'migration'").fetchone()
    objects.close(name[0] if name else "", at_ms)
    completeness.write_files(connection, folder, at_ms=at_ms, anonymous=True)
    lines = [sums_line(sha256(folder / each), each) for each in sorted(_FILES)]
    (folder / CONTENTS).write_text("".join(lines), encoding="utf-8", newline="")
