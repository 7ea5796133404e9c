"""The format that others read: its page and its golden file."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import sqlite3
from pathlib import Path

from migrate.manifest import Manifest
from migrate.manifest.file import open_reader, open_writer
from migrate.reports import status
from migrate.reports.tables import studies
from tests.filled import migrated, planned, swept

MANIFESTS = Path(__file__).parents[2] / "manifests"


def test_the_page_is_what_the_schema_says() -> None:
    """manifests/README.md is made from the schema as it stands."""
    spec = importlib.util.spec_from_file_location("describe", MANIFESTS / "describe.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (MANIFESTS / "README.md").read_text() == module.describe(module.SCHEMA.read_text())


def test_the_example_is_the_one_that_init_writes() -> None:
    """manifests/example.toml and `init` say the same."""
    assert (MANIFESTS / "example.toml").read_text() == (MANIFESTS.parent / "migrate" / "example.toml").read_text()


def test_the_golden_manifest_opens_and_upgrades(tmp_path: Path) -> None:
    """A copy of the first release's file is read, and opened for writing, by today's code."""
    copy = tmp_path / "golden.db"
    shutil.copy(MANIFESTS / "golden" / "schema-1.db", copy)
    reader = open_reader(copy)
    assert status(reader)["studies"]["migrated"] == 8
    assert reader.execute("SELECT count(*) FROM instances WHERE length(file_sha256) = 64").fetchone()[0] > 50
    reader.close()
    writer = open_writer(copy, create=False)
    assert writer.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    writer.close()
    assert sqlite3.connect(copy).execute("SELECT count(*) FROM events").fetchone()[0] > 8


def test_the_table_of_studies_is_the_view_of_studies(manifest: Manifest) -> None:
    """studies.csv has a question of its own, which needs no sorting: the same columns and rows, by UID."""
    swept(manifest, "1.10", "1.9", "1.2")
    migrated(manifest, "1.9", "1.9.1.1", "1.9.1.2")
    planned(manifest, "1.10", "1.10.1.1")
    with contextlib.closing(open_reader(manifest.path)) as reader:
        columns, rows = studies(reader)
        view = reader.execute("SELECT * FROM studies ORDER BY study")
        assert columns == [column[0] for column in view.description]
        assert list(rows) == view.fetchall()
