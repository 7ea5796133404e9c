"""The rows of a sweep: windows planned, answered whole, failed, split, judged."""

from __future__ import annotations

import sqlite3

from migrate.manifest.file import now_ms
from migrate.model import RetryPolicy, Window, WindowAnswered, WindowFailed, WindowJudged, WindowsPlanned, WindowState


def apply(
    connection: sqlite3.Connection,
    outcome: WindowsPlanned | WindowAnswered | WindowFailed | WindowJudged,
    policy: RetryPolicy,
) -> None:
    """Turn one fact about windows into rows. A window that was answered or split is never asked again in its sweep."""
    match outcome:
        case WindowsPlanned():
            _plan(connection, outcome.sweep, outcome.windows, outcome.parent, "check" if outcome.check else "cover")
        case WindowAnswered():
            suspicion = None
            if outcome.outside:
                suspicion = f"The PACS answered with {outcome.outside} studies outside the asked dates; they are taken as found."
            connection.execute(
                "UPDATE window SET state = ?, row_count = ?, study_count = ?, outside_count = ?, answered_at = ?, error = NULL, "
                "detail = NULL, suspicion = ? WHERE id = ? AND state = 0",
                (
                    int(WindowState.ANSWERED),
                    outcome.rows,
                    outcome.studies,
                    outcome.outside,
                    now_ms(),
                    suspicion,
                    outcome.window_id,
                ),
            )
        case WindowFailed() if outcome.split:
            _split(connection, outcome.window_id, outcome.split, outcome.error, outcome.detail)
        case WindowFailed():
            attempts = connection.execute(
                "SELECT attempts + 1 FROM window WHERE id = ?", (outcome.window_id,)
            ).fetchone()[0]
            wait_s = min(policy.first_wait_s * 2 ** (attempts - 1), policy.max_wait_s)
            given_up = attempts >= policy.attempts or not outcome.retryable
            connection.execute(
                "UPDATE window SET state = ?, attempts = ?, not_before = ?, error = ?, detail = ?, blocks = ?, suspicion = ? "
                "WHERE id = ? AND state = 0",
                (int(WindowState.FAILED if given_up else WindowState.PLANNED), attempts, now_ms() + int(wait_s * 1000), outcome.error,
                 outcome.detail, int(given_up), f"No whole answer: {outcome.detail}" if given_up else None, outcome.window_id),
            )  # fmt: skip
            _carry_acceptance(connection, outcome.window_id)
        case WindowJudged():
            connection.execute(
                "UPDATE window SET suspicion = :said, blocks = :blocks, accepted_by = CASE WHEN suspicion IS :said THEN accepted_by END, "
                "accepted_reason = CASE WHEN suspicion IS :said THEN accepted_reason END WHERE id = :id",
                {"said": outcome.suspicion, "blocks": int(outcome.blocks), "id": outcome.window_id},
            )
            _carry_acceptance(connection, outcome.window_id)
            if outcome.split:
                _split(connection, outcome.window_id, outcome.split, None, None)


def _plan(
    connection: sqlite3.Connection, sweep: int, windows: tuple[Window, ...], parent: int | None, purpose: str
) -> None:
    connection.executemany(
        "INSERT INTO window(sweep, axis, lo, hi, parent, purpose) SELECT :sweep, :axis, :lo, :hi, :parent, :purpose WHERE NOT EXISTS "
        "(SELECT 1 FROM window WHERE sweep = :sweep AND axis = :axis AND lo IS :lo AND hi IS :hi AND parent IS :parent)",
        [
            {"sweep": sweep, "axis": window.axis, "lo": window.lo, "hi": window.hi, "parent": parent, "purpose": purpose}
            for window in windows
        ],
    )


def _carry_acceptance(connection: sqlite3.Connection, window_id: int) -> None:
    """What was signed for these dates in an earlier sweep stands only while the very same trouble shows again."""
    connection.execute(
        "UPDATE window SET (accepted_by, accepted_reason) = (SELECT old.accepted_by, old.accepted_reason FROM window AS old "
        "WHERE old.id < window.id AND old.axis = window.axis AND old.lo IS window.lo AND old.hi IS window.hi "
        "AND old.state = window.state AND old.suspicion IS window.suspicion AND old.accepted_by IS NOT NULL ORDER BY old.id DESC LIMIT 1) "
        "WHERE id = ? AND accepted_by IS NULL AND blocks = 1",
        (window_id,),
    )


def _split(
    connection: sqlite3.Connection, window_id: int, parts: tuple[Window, ...], error: str | None, detail: str | None
) -> None:
    """Replace a window by its parts; halves that were only checks become part of the cover."""
    sweep, state = connection.execute("SELECT sweep, state FROM window WHERE id = ?", (window_id,)).fetchone()
    if state == WindowState.SPLIT:
        return
    connection.execute(
        "UPDATE window SET state = ?, error = coalesce(?, error), detail = coalesce(?, detail) WHERE id = ?",
        (int(WindowState.SPLIT), error, detail, window_id),
    )
    if connection.execute("SELECT 1 FROM window WHERE parent = ?", (window_id,)).fetchone():
        connection.execute("UPDATE window SET purpose = 'cover' WHERE parent = ?", (window_id,))
    else:
        _plan(connection, sweep, parts, window_id, "cover")
