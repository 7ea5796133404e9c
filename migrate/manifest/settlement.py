"""After each batch: where does a touched study stand now? The only place that closes, heals, parks or reopens studies."""

from __future__ import annotations

import json
import sqlite3

from migrate.counted import counted
from migrate.manifest.unreadable import LAST
from migrate.manifest.writer import Writer
from migrate.model import StudyState

_S = StudyState
_NAMES = {"row": "rows without a valid UID", "quarantined": "quarantine"}

_EXCEPTIONS = """
SELECT 'missing:' || sop_uid FROM instance JOIN series ON series.id = series_id WHERE study_id = :study AND instance.state < 3
UNION ALL
SELECT 'conflict:' || sop_uid FROM instance JOIN series ON series.id = series_id WHERE study_id = :study AND conflict = 1
UNION ALL
SELECT 'quarantined:' || file FROM quarantine WHERE study_uid = :uid AND accepted_by IS NULL AND NOT EXISTS (
  SELECT 1 FROM series JOIN instance ON instance.series_id = series.id
  WHERE series.study_id = :study AND instance.sop_uid = quarantine.sop_uid AND instance.state = 3 AND (
    quarantine.reason NOT LIKE '% is not the command''s' OR instr(quarantine.file, '-' || lower(substr(hex(instance.dataset_sha256), 1, 24)))))
UNION ALL
SELECT CASE copy.state WHEN 0 THEN 'lost:' ELSE 'content:' END || sop_uid || '~' || substr(lower(hex(dataset_sha256)), 1, 12)
  FROM copy JOIN series ON series.id = series_id WHERE study_id = :study
UNION ALL
SELECT 'plan:' || error || ':' || coalesce(claimed_instances, '') FROM study WHERE id = :study AND state IN (5, 6) AND stage = 'plan'
UNION ALL
SELECT 'claimed:' || max(coalesce(claimed_instances, 0), coalesce(claimed_by_series, 0)) FROM study
  WHERE id = :study AND state IN (5, 6) AND stage = 'retrieve' AND retrieve_ended = 0
""" + f"UNION ALL SELECT 'row:' || value FROM json_each({LAST})"
# What came and was proven after somebody had signed for its absence: if it is lost then, that is another matter.
_PROVEN_SINCE = """
SELECT 'missing:' || sop_uid FROM event WHERE study_uid = :uid AND kind = 'instance fell back' AND detail LIKE :verified AND id > (
  SELECT max(id) FROM event WHERE study_uid = :uid AND kind = 'acceptance row' AND detail LIKE :acceptance || ',%')
"""


def exceptions(connection: sqlite3.Connection, study_id: int, uid: str) -> set[str]:
    """Everything of a study that a person may have to answer for, as "kind:what".

    missing (not proven), conflict: SOP Instance UID; quarantined without a sound twin: file (whose twin has the same data set where the
    command named another UID: else it is no twin of what was meant); content: a further content, lost: one that
    is neither staged nor stored; plan: why a parked study could not be listed, with what the PACS claims, since nobody knows then
    what is missing; row: of a list, without a valid UID; claimed: what it claims of a parked study whose list may be cut short.
    """
    return {row[0] for row in connection.execute(_EXCEPTIONS, {"study": study_id, "uid": uid})}


def covered(connection: sqlite3.Connection, study_id: int, uid: str) -> set[str] | None:
    """What acceptances that were not taken back cover; None where there is none."""
    rows = connection.execute(
        "SELECT id, covers FROM acceptance WHERE study_id = ? AND id NOT IN (SELECT acceptance_id FROM revocation)", (study_id,)
    ).fetchall()
    entries: set[str] = set()
    for acceptance, covers in rows:
        since = connection.execute(_PROVEN_SINCE, {"uid": uid, "acceptance": acceptance, "verified": "'verified',%"})
        entries |= set(json.loads(covers)) - {row[0] for row in since}
    return entries if rows else None


def settle(manifest: Writer, study_id: int) -> None:
    """Take the steps that the rows of a study allow, until it rests."""
    while _step(manifest, study_id):
        pass


def _step(manifest: Writer, study_id: int) -> bool:
    state, ended, uid, stage, confirmed = manifest.one("SELECT state, retrieve_ended, uid, stage, confirmed FROM study WHERE id = ?", study_id)
    expected, under_way = manifest.one(
        "SELECT coalesce(sum(expected), 0), coalesce(sum(staged + stored), 0) FROM series WHERE study_id = ?", study_id
    )
    under_way += manifest.one(
        "SELECT count(*) FROM copy JOIN series ON series.id = series_id WHERE study_id = ? AND state IN (1, 2)", study_id
    )[0]
    target: StudyState | None = None
    if state == _S.PLANNED and not expected and ended:
        target = _S.RETRIEVED
    elif state in (_S.RETRIEVED, _S.MIGRATED) and expected:
        target = _S.PLANNED
    elif state == _S.MIGRATED and under_way:
        target = _S.RETRIEVED
    elif state == _S.PARKED and stage == "retrieve" and not expected and ended:
        target = _S.FOUND  # what was missing has come after all
    elif state == _S.PARKED and stage == "person" and not expected and not under_way and not exceptions(manifest.connection, study_id, uid):
        target = _S.FOUND  # what a person had to decide is decided, or a sound copy has come
    elif state == _S.MIGRATED and exceptions(manifest.connection, study_id, uid):
        target = _S.RETRIEVED
    elif state == _S.RETRIEVED and not under_way:
        target = _closed(manifest, study_id, uid, stage, bool(confirmed))
    elif state in (_S.PARKED, _S.ACCEPTED):
        accepted = covered(manifest.connection, study_id, uid)
        if accepted is not None:
            new = exceptions(manifest.connection, study_id, uid) - accepted
            if state == _S.PARKED and not new and not under_way:
                target = _S.ACCEPTED
            elif state == _S.ACCEPTED and new:
                target = _S.FOUND
    if target is not None:
        manifest.set_state(study_id, target)
    return target is not None


def _closed(manifest: Writer, study_id: int, uid: str, stage: str | None, confirmed: bool) -> StudyState | None:
    """Where a study goes of which everything that came is proven; None while it waits for the last look at it."""
    open_ones = exceptions(manifest.connection, study_id, uid)
    if open_ones:
        named = [kind for entry in open_ones if (kind := entry.partition(":")[0]) != "content"]
        error = "Conflict" if "conflict" in named else "Quarantined" if "quarantined" in named else "UnreadableRow"
        manifest.execute(
            "UPDATE study SET stage = 'person', error = ?, detail = ? WHERE id = ?",
            error, f"{counted(len(named), 'instance')} in {' and '.join(_NAMES.get(kind, kind) for kind in sorted(set(named)))}: a person has to decide.", study_id,
        )  # fmt: skip
        return _S.PARKED
    if manifest.asks_again and not confirmed:
        if stage != "confirm":  # an upload or a proof may have failed on the way; it is behind us
            manifest.execute("UPDATE study SET stage = 'confirm', attempts = 0, not_before = 0 WHERE id = ?", study_id)
        return None
    manifest.execute("UPDATE study SET error = CASE WHEN error = 'EmptyAtSource' THEN error END, detail = NULL WHERE id = ?", study_id)
    return _S.MIGRATED
