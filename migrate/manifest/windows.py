"""The rows of a sweep: windows planned, asked, answered whole, failed, split, judged; and the habits learned from them."""

from __future__ import annotations

import sqlite3

from migrate.counted import counted
from migrate.errors import wait_factor
from migrate.manifest.file import now_ms
from migrate.model import (
    HabitLearned,
    RetryPolicy,
    Window,
    WindowAnswered,
    WindowAsked,
    WindowFailed,
    WindowJudged,
    WindowsDropped,
    WindowsPlanned,
    WindowState,
)

KEYS = ("axis", "lo", "hi", "time_lo", "time_hi", "modality", "patient", "accession")
"""The columns that say what a window asks: those of `model.Window`."""

AXIS_BITS = {"date": 1, "all": 2, "patient": 4, "accession": 8, "modality": 16, "list": 32}
"""What `study.axes` adds up."""

WindowFact = WindowsPlanned | WindowsDropped | WindowAsked | WindowAnswered | WindowFailed | WindowJudged | HabitLearned

_SAME = " AND ".join(f"old.{key} IS window.{key}" for key in KEYS)
_PLAN = (
    f"INSERT INTO window(sweep, parent, part_by, purpose, {', '.join(KEYS)}) SELECT :sweep, :parent, :by, :purpose, :{', :'.join(KEYS)} "
    f"WHERE NOT EXISTS (SELECT 1 FROM window WHERE sweep = :sweep AND parent IS :parent AND purpose IN (:purpose, 'cover') "
    f"AND {' AND '.join(f'{key} IS :{key}' for key in KEYS)})"
)

_INTO_COVER = (  # with the parts of those that were split meanwhile
    "WITH RECURSIVE part(id, state) AS (SELECT id, state FROM window WHERE parent = :parent AND part_by IS :by AND purpose = 'check' "
    "UNION ALL SELECT window.id, window.state FROM window JOIN part ON window.parent = part.id "
    "WHERE part.state = :split AND window.part_by IS :by AND window.purpose = 'check') "
    "UPDATE window SET purpose = 'cover' WHERE id IN (SELECT id FROM part)"
)


def apply(connection: sqlite3.Connection, outcome: WindowFact, policy: RetryPolicy) -> None:
    """Turn one fact about windows into rows. A window that was answered or split is never asked again in its sweep."""
    match outcome:
        case WindowsPlanned():
            _plan(connection, outcome)
        case WindowsDropped(sweep):
            connection.execute(
                "UPDATE window SET state = ? WHERE sweep = ? AND axis = 'date' AND state = 0", (int(WindowState.DROPPED), sweep)
            )
        case WindowAsked(window_id):
            connection.execute(
                "DELETE FROM sighting WHERE window_id = ? AND EXISTS (SELECT 1 FROM window WHERE id = ? AND state = 0)", (window_id, window_id)
            )
        case WindowAnswered():
            _answered(connection, outcome)
        case WindowFailed():
            _failed(connection, outcome, policy)
        case WindowJudged():
            connection.execute(
                "UPDATE window SET suspicion = :said, blocks = :blocks, accepted_by = CASE WHEN suspicion IS :said THEN accepted_by END, "
                "accepted_reason = CASE WHEN suspicion IS :said THEN accepted_reason END WHERE id = :id",
                {"said": outcome.suspicion, "blocks": int(outcome.blocks), "id": outcome.window_id},
            )
            _carry_acceptance(connection, outcome.window_id)
        case HabitLearned():
            connection.execute(
                "INSERT INTO habit VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET value = excluded.value, detail = excluded.detail, "
                "learned_at = excluded.learned_at WHERE value <> excluded.value OR detail <> excluded.detail",
                (outcome.name, outcome.value, outcome.detail, now_ms()),
            )


def _plan(connection: sqlite3.Connection, planned: WindowsPlanned) -> None:
    """Add windows; what stands already stays. Parts that were only compared become part of the cover with `replaces`."""
    if planned.parent is None:
        connection.execute("DELETE FROM sighting WHERE window_id IN (SELECT id FROM window WHERE sweep < ?)", (planned.sweep,))
    if planned.replaces:
        connection.execute("UPDATE window SET state = ?, blocks = 0 WHERE id = ? AND state <> 4", (int(WindowState.SPLIT), planned.parent))
        connection.execute(_INTO_COVER, {"parent": planned.parent, "by": planned.by, "split": int(WindowState.SPLIT)})
    place = {"sweep": planned.sweep, "parent": planned.parent, "by": planned.by, "purpose": planned.purpose}
    connection.executemany(_PLAN, [place | {key: getattr(window, key) for key in KEYS} for window in planned.windows])


def _answered(connection: sqlite3.Connection, answered: WindowAnswered) -> None:
    axis = connection.execute("SELECT axis FROM window WHERE id = ?", (answered.window_id,)).fetchone()
    studies, outside = connection.execute(  # some PACSs show what has no date for every range: that is not ignoring the date
        "SELECT count(*), coalesce(sum(outside AND (? <> 'date' OR (SELECT date FROM study WHERE id = study_id) IS NOT NULL)), 0) "
        "FROM sighting WHERE window_id = ?", (axis[0] if axis else "", answered.window_id)
    ).fetchone()  # fmt: skip
    if answered.studies is not None:
        studies, outside = min(studies, answered.studies), min(outside, answered.studies)
    bit = AXIS_BITS[axis[0]] if axis else 0
    connection.execute(
        "UPDATE study SET axes = axes | ? WHERE axes & ? = 0 AND id IN (SELECT study_id FROM sighting WHERE window_id = ? AND outside = 0)",
        (bit, bit, answered.window_id),
    )
    said = None
    if outside:
        misfits = counted(outside, "study that does not fit the question, which is", "studies that do not fit the question, which are")
        said = f"The PACS answered with {misfits} taken as found."
    connection.execute(
        "UPDATE window SET state = ?, row_count = ?, study_count = ?, outside_count = ?, answered_at = ?, error = NULL, detail = NULL, "
        "suspicion = ? WHERE id = ? AND state = 0",
        (int(WindowState.ANSWERED), answered.rows, studies, outside, now_ms(), said, answered.window_id),
    )


def _failed(connection: sqlite3.Connection, failed: WindowFailed, policy: RetryPolicy) -> None:
    row = connection.execute("SELECT attempts + 1, purpose = 'cover' AND coalesce(part_by, 'date') = 'date', state FROM window WHERE id = ?", (failed.window_id,)).fetchone()
    if row is None or row[2] != WindowState.PLANNED:
        return
    attempts, may_block, _ = row  # a part by another key is judged with its root
    connection.execute("DELETE FROM sighting WHERE window_id = ?", (failed.window_id,))
    wait_s = policy.wait_s(attempts, wait_factor(failed.error))
    given_up = attempts >= policy.attempts or not failed.retryable
    connection.execute(
        "UPDATE window SET state = ?, attempts = ?, not_before = ?, error = ?, detail = ?, blocks = ?, suspicion = ? WHERE id = ?",
        (int(WindowState.FAILED if given_up else WindowState.PLANNED), attempts, now_ms() + int(wait_s * 1000), failed.error,
         failed.detail, int(given_up and may_block), f"No whole answer: {failed.detail}" if given_up else None, failed.window_id),
    )  # fmt: skip
    _carry_acceptance(connection, failed.window_id)


def _carry_acceptance(connection: sqlite3.Connection, window_id: int) -> None:
    """What was signed for this question in an earlier sweep stands only while the very same trouble shows again."""
    connection.execute(
        "UPDATE window SET (accepted_by, accepted_reason) = (SELECT old.accepted_by, old.accepted_reason FROM window AS old "
        f"WHERE old.id < window.id AND {_SAME} AND old.state = window.state AND old.suspicion IS window.suspicion "
        "AND old.accepted_by IS NOT NULL ORDER BY old.id DESC LIMIT 1) WHERE id = ? AND accepted_by IS NULL AND blocks = 1",
        (window_id,),
    )


def accepted_alike(connection: sqlite3.Connection, window_id: int) -> list[tuple[int]]:
    """The accepted window of that number, and every one from which or to which its signature was carried."""
    return connection.execute(
        "SELECT old.id FROM window AS old JOIN window ON window.id = ? WHERE window.accepted_by IS NOT NULL AND old.accepted_by IS NOT NULL "
        f"AND (old.id = window.id OR ({_SAME} AND old.suspicion IS window.suspicion))", (window_id,),
    ).fetchall()  # fmt: skip


def window_of(row: sqlite3.Row) -> Window:
    """The question that a row holds."""
    return Window(**{key: row[key] for key in KEYS})
