"""What people decide: exceptions they sign, and parked work they put back. Each is one transaction with its events."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from migrate.errors import UsageError
from migrate.manifest import settlement, studies
from migrate.manifest.file import now_ms, with_begin
from migrate.model import StudyState, is_uid

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


def exclude(manifest: Manifest, study_uids: Sequence[str], reason: str, by: str) -> int:
    """Leave studies out, on record by whom and why; no later sweep brings them back. Returns how many.

    Raises UsageError, and excludes nothing, if one of them is unknown, or its images are with the destination already.
    """
    rows = _known(manifest, study_uids)
    free = (StudyState.FOUND, StudyState.PLANNED, StudyState.PARKED, StudyState.EXCLUDED)
    _refuse([uid for uid, (_, state, _) in rows.items() if state not in free], "are migrated already, about to be, or accepted",
            "What is at the destination is never taken back; take them off the list.")  # fmt: skip

    def work() -> None:
        for uid, (study_id, state, _) in rows.items():
            if state == StudyState.EXCLUDED:
                manifest.execute("UPDATE study SET error = ?, detail = ? WHERE id = ?", studies.BY_PERSON, f"{reason} (by {by})", study_id)
            else:
                studies.exclude(manifest, study_id, studies.BY_PERSON, f"{reason} (by {by})")
            manifest.log("exclusion signed", f"by {by}: {reason}", study=uid)

    with_begin(manifest.connection, work)
    return len(rows)


def include(manifest: Manifest, study_uids: Sequence[str], reason: str, by: str) -> int:
    """Undo exclusions that people have signed. Returns how many studies are found again.

    Raises UsageError, and undoes nothing, if one of them is unknown, not excluded, or left out by the configuration.
    """
    rows = _known(manifest, study_uids)
    _refuse([uid for uid, (_, state, error) in rows.items() if state != StudyState.EXCLUDED or error != studies.BY_PERSON],
            "are not excluded by a person", "What [source] from, to and modalities leave out comes back when these are changed.")  # fmt: skip

    def work() -> None:
        for uid, (study_id, _, _) in rows.items():
            manifest.execute("UPDATE study SET error = NULL, detail = NULL WHERE id = ?", study_id)
            manifest.set_state(study_id, StudyState.FOUND)
            manifest.log("exclusion undone", f"by {by}: {reason}", study=uid)

    with_begin(manifest.connection, work)
    return len(rows)


def _known(manifest: Manifest, study_uids: Sequence[str]) -> dict[str, tuple[int, StudyState, str | None]]:
    """(row, state, error) of studies by UID. Raises UsageError if one is unknown."""
    rows: dict[str, tuple[int, StudyState, str | None]] = {}
    for uid in study_uids:
        row: tuple[Any, ...] | None = manifest.one("SELECT id, state, error FROM study WHERE uid = ?", uid)
        if row is not None:
            rows[uid] = (row[0], StudyState(row[1]), row[2])
    _refuse([uid for uid in study_uids if uid not in rows], "are not known", "`enumerate` finds them, `enumerate --list` adds them by UID.")
    return rows


def _refuse(uids: Sequence[str], why: str, hint: str) -> None:
    if uids:
        named = ", ".join(uid if is_uid(uid) else "something that is no UID" for uid in uids[:20])
        more = f" and {len(uids) - 20} more" if len(uids) > 20 else ""
        raise UsageError(f"Nothing was done, because these studies {why}: {named}{more}.", hint=hint)
