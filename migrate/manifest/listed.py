"""What lists of studies need of the manifest: a window to stand in, and the states of all studies."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection
from dataclasses import dataclass

from migrate.manifest.file import now_ms
from migrate.manifest.store import Manifest
from migrate.model import StudyState


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a study stands, with what its last trouble was or why it is left out."""

    state: StudyState
    error: str | None
    detail: str | None


def list_window(manifest: Manifest) -> int:
    """The window that stands for lists in the newest sweep; made if there is none, in a sweep of its own before the first one.

    It is answered from the start: no sweep asks it, and it never blocks.
    """
    with manifest.transaction():
        sweep = manifest.one("SELECT coalesce(max(sweep), 1) FROM window")[0]
        row = manifest.one("SELECT id FROM window WHERE sweep = ? AND axis = 'list'", sweep)
        if row is not None:
            return int(row[0])
        cursor = manifest.execute(
            "INSERT INTO window(sweep, axis, purpose, state, row_count, study_count, answered_at) VALUES (?, 'list', 'look', 1, 0, 0, ?)",
            sweep, now_ms(),
        )  # fmt: skip
    return int(cursor.lastrowid or 0)


def count_listed(manifest: Manifest, window_id: int) -> None:
    """Write down how many studies lists have shown in this sweep."""
    with manifest.transaction():
        manifest.execute(
            "UPDATE window SET row_count = shown, study_count = shown FROM (SELECT count(*) AS shown FROM sighting WHERE window_id = ?) "
            "WHERE id = ?", window_id, window_id,
        )  # fmt: skip


def standings(connection: sqlite3.Connection, uids: Collection[str] | None = None) -> dict[str, Standing]:
    """Where these studies (or all) stand, by UID; those that are not known are left out."""
    query = "SELECT uid, state, error, detail FROM study"
    if uids is None:
        rows = connection.execute(query)
    else:
        rows = connection.execute(f"{query} WHERE uid IN (SELECT value FROM json_each(?))", (json.dumps(list(uids)),))
    return {uid: Standing(StudyState(state), error, detail) for uid, state, error, detail in rows}
