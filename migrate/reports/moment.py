"""When: the time of a dossier, and times as people read them."""

from __future__ import annotations

import datetime
import sqlite3


def last_seal_ms(connection: sqlite3.Connection) -> int:
    """The time of the last seal in the manifest, milliseconds since 1970."""
    return int(connection.execute("SELECT coalesce((SELECT at FROM seal ORDER BY id DESC LIMIT 1), 0)").fetchone()[0])


def utc(at_ms: int) -> datetime.datetime:
    """In whole seconds."""
    return datetime.datetime.fromtimestamp(at_ms // 1000, datetime.UTC)
