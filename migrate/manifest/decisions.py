"""What people decide: exceptions they sign, and parked work they put back. Each is one transaction with its events."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from migrate.errors import UsageError
from migrate.manifest import settlement
from migrate.manifest.file import now_ms, with_begin
from migrate.model import StudyState

if TYPE_CHECKING:
    from migrate.manifest.store import Manifest


def accept(manifest: Manifest, study_uids: Sequence[str], reason: str, by: str) -> list[str]:
    """Sign an exception for parked studies: it covers exactly what is missing, in conflict or quarantined now.

    Returns the accepted UIDs. Raises UsageError, and accepts nothing, if one of them is unknown or not parked.
    """
    rows = {uid: manifest.one("SELECT id, state FROM study WHERE uid = ?", uid) for uid in study_uids}
    wrong = [uid for uid, row in rows.items() if row is None or row[1] != StudyState.PARKED]
    if wrong:
        raise UsageError(
            f"Not parked, or not known: {', '.join(wrong)}.", hint="`pacs-migrate status` lists what is parked."
        )

    def work() -> None:
        for uid, (study_id, _) in rows.items():
            covers = sorted(settlement.exceptions(manifest.connection, study_id, uid))
            manifest.execute(
                "INSERT INTO acceptance(study_id, covers, reason, accepted_by, accepted_at) VALUES (?, ?, ?, ?, ?)",
                study_id, json.dumps(covers), reason, by, now_ms(),
            )  # fmt: skip
            manifest.set_state(study_id, StudyState.ACCEPTED)

    with_begin(manifest.connection, work)
    return list(rows)


def accept_window(manifest: Manifest, window_name: str, reason: str, by: str) -> None:
    """Sign that a window's completeness cannot be shown. Raises UsageError for a window that does not block."""
    _accept_row(manifest, "window", window_name, "w", "AND (blocks = 1 OR state = 2)", reason, by)


def accept_quarantined(manifest: Manifest, name: str, reason: str, by: str) -> None:
    """Sign that a quarantined file (q3) stays where it is. Raises UsageError for an unknown one."""
    _accept_row(manifest, "quarantine", name, "q", "", reason, by)


def _accept_row(manifest: Manifest, table: str, name: str, letter: str, more: str, reason: str, by: str) -> None:
    if not re.fullmatch(rf"{letter}\d+", name):
        raise UsageError(f"{name} is not a name like {letter}12.", hint="The report lists the names.")

    def work() -> None:
        changed = manifest.execute(
            f"UPDATE {table} SET accepted_by = ?, accepted_reason = ? WHERE id = ? {more}", by, reason, int(name[1:])
        ).rowcount
        if not changed:
            raise UsageError(f"{name} is not known, or does not block.", hint="The report lists what blocks.")
        manifest.log("exception accepted", f"{name} by {by}: {reason}")
        if table == "quarantine":
            uid = manifest.one("SELECT study_uid FROM quarantine WHERE id = ?", int(name[1:]))[0]
            if uid:
                settlement.settle(manifest, manifest.study_id(str(uid)))

    with_begin(manifest.connection, work)


def retry(manifest: Manifest, error: str | None, study_uids: Sequence[str]) -> int:
    """Put parked studies back, all of them or those named or parked with that error. Returns how many.

    Raises UsageError if a named study is not parked.
    """
    parked = {
        uid: study_id
        for study_id, uid, why in manifest.connection.execute("SELECT id, uid, error FROM study WHERE state = 5")
        if error is None or why == error
    }
    wrong = [uid for uid in study_uids if uid not in parked]
    if wrong:
        raise UsageError(f"Not parked: {', '.join(wrong)}.", hint="`pacs-migrate status` lists what is parked.")
    chosen = {uid: parked[uid] for uid in study_uids} if study_uids else parked

    def work() -> None:
        for study_id in chosen.values():
            manifest.set_state(study_id, StudyState.FOUND)

    with_begin(manifest.connection, work)
    return len(chosen)
