"""The format that others read: its page and its golden file."""

from __future__ import annotations

import importlib.util
import shutil
import sqlite3
from pathlib import Path

from migrate.manifest.file import open_reader, open_writer
from migrate.reports import status

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
