"""The schema as a new manifest has it, to compare another with."""

from __future__ import annotations

import functools
import sqlite3
from typing import Any

from migrate.manifest.upgrades import upgrade


@functools.cache
def as_made() -> tuple[dict[str, str], list[Any]]:
    """The schema of a new manifest."""
    fresh = sqlite3.connect(":memory:", isolation_level=None)
    try:
        upgrade(fresh)
        return schema_of(fresh)
    finally:
        fresh.close()


def schema_of(connection: sqlite3.Connection) -> tuple[dict[str, str], list[Any]]:
    """What was created, by type and name, and the names of states."""
    made = dict(connection.execute("SELECT type || ' ' || name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall())
    return made, connection.execute("SELECT entity, state, name FROM state_name ORDER BY 1, 2").fetchall()
