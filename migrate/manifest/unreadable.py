"""Rows of a study's lists that name no valid UID: what they stand for cannot be asked for, so that they block until a person has signed.

The last event of their kind says which there are now.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence

from migrate.manifest.writer import Writer

_KIND = "rows without a UID"
LAST = f"(SELECT detail FROM event WHERE study_uid = :uid AND kind = '{_KIND}' ORDER BY id DESC LIMIT 1)"
"""SQL: these rows as a JSON list, NULL where there never was one."""


def rows_of(connection: sqlite3.Connection, uid: str) -> list[str]:
    """What the last answers about the study held of such rows."""
    detail = connection.execute(f"SELECT {LAST}", {"uid": uid}).fetchone()[0]
    return [str(row) for row in json.loads(detail)] if detail else []


def note(manifest: Writer, uid: str, rows: Sequence[str]) -> None:
    """Put on record what the newest answers hold of them, if that is not so already."""
    if list(rows) != rows_of(manifest.connection, uid):
        manifest.log(_KIND, json.dumps(list(rows)), study=uid)
