"""Schema versions of the manifest: sqlite-utils' migrations, each in one transaction with its record."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from sqlite_utils import Database
from sqlite_utils.migrations import Migrations

from migrate.failpoints import reach

SCHEMA_VERSION = 1
SCHEMA = (Path(__file__).parent / "schema.sql").read_text(encoding="utf-8")

migrations = Migrations("pacs-migrate")


@migrations()  # type: ignore[untyped-decorator,unused-ignore]
def m001_first_schema(db: Any) -> None:
    """The first released schema."""
    for statement in statements(SCHEMA):
        db.execute(statement)
    reach("upgrade-step")
    db.execute("INSERT INTO meta VALUES ('schema', ?)", [str(SCHEMA_VERSION)])


def statements(script: str) -> list[str]:
    """The script's statements, one by one: `executescript` would commit the transaction around it."""
    found, current = [], ""
    for line in script.splitlines(keepends=True):
        current += line
        if sqlite3.complete_statement(current):
            found.append(current)
            current = ""
    return [statement for statement in found if statement.strip()]


def upgrade(connection: sqlite3.Connection) -> None:
    """Bring the file to SCHEMA_VERSION; each step and its record are one transaction."""
    migrations.apply(Database(connection, recursive_triggers=False))  # true would turn them on for the writer, too
