"""How fast the running run proves instances, and when it may be done: a few look-ups by index, whatever the manifest's size."""

from __future__ import annotations

import sqlite3
from typing import Any

from migrate.manifest.file import now_ms

# No index stands on any time: on 100 million instances it would cost more than it tells. What was proven of late belongs to a
# study that the log names as migrated of late (the log is in the order of time, so its end is found by halving), or to one
# that is on its way (small partial indexes). Only those studies' instances are looked at.
# CROSS JOIN keeps SQLite from beginning with all instances; `state < 3` is what lets it use the index of studies that wait.
_LOOK_BACK_S = (900, 300, 60)
_MOST_INSTANCES = 200_000
"""So many instances are looked at; where more have come, a shorter time is."""
_RECENT = """
WITH recent AS (
  SELECT study.id FROM event JOIN study ON study.uid = event.study_uid WHERE event.id >= :first AND event.kind = 'study migrated'
  UNION SELECT id FROM study WHERE state = 2 AND state < 3
  UNION SELECT study_id FROM series WHERE staged > 0
  UNION SELECT study_id FROM series WHERE stored > 0)
"""
_TALLY = _RECENT + "SELECT coalesce(sum(verified), 0) FROM recent CROSS JOIN series ON series.study_id = recent.id"
_PROVEN = _RECENT + (
    "SELECT count(*), coalesce(sum(size_bytes), 0) FROM recent CROSS JOIN series ON series.study_id = recent.id AND series.verified > 0 "
    "CROSS JOIN instance ON instance.series_id = series.id WHERE instance.state = 3 AND instance.verified_at >= :since"
)


def throughput(connection: sqlite3.Connection) -> dict[str, float]:
    """Instances and bytes proven a second over the last `window_s` seconds of the running run; zeros where none is running."""
    run = connection.execute("SELECT started_at, ended_at FROM run WHERE verb = 'run' ORDER BY id DESC LIMIT 1").fetchone()
    now = now_ms()
    if run is None or run[1] is not None or now <= run[0]:
        return {"instances_per_s": 0.0, "bytes_per_s": 0.0, "window_s": 0.0}
    since, first = now, 0
    for look_back_s in _LOOK_BACK_S:
        since = max(now - look_back_s * 1000, run[0])
        first = _first_event(connection, since)
        if connection.execute(_TALLY, {"first": first}).fetchone()[0] <= _MOST_INSTANCES:
            break
    instances, size_bytes = connection.execute(_PROVEN, {"first": first, "since": since}).fetchone()
    window_s = max((now - since) / 1000, 1.0)
    return {
        "instances_per_s": round(instances / window_s, 4),
        "bytes_per_s": round(size_bytes / window_s, 1),
        "window_s": round(window_s, 1),
    }


def _first_event(connection: sqlite3.Connection, since_ms: int) -> int:
    """The id of the first event of that time or later; the log only grows, so its end is found by halving."""
    low, high = 1, connection.execute("SELECT coalesce(max(id), 0) + 1 FROM event").fetchone()[0]
    while low < high:
        middle = (low + high) // 2
        row = connection.execute("SELECT id, at FROM event WHERE id >= ? ORDER BY id LIMIT 1", (middle,)).fetchone()
        if row is None or row[1] >= since_ms:
            high = middle
        else:
            low = row[0] + 1
    return int(low)


def eta_s(connection: sqlite3.Connection, document: dict[str, Any]) -> float | None:
    """Seconds until all that is known of is proven at this pace; None while nothing moves or the PACS is still being asked.

    A study not listed yet counts with what its row claims, else with the average of those that are.
    """
    pace = document["throughput"]["instances_per_s"]
    asked = connection.execute("SELECT state = 0 FROM window WHERE sweep = (SELECT max(sweep) FROM window) ORDER BY state LIMIT 1").fetchone()
    if not pace or asked is None or asked[0]:
        return None
    instances = document["instances"]
    left = instances["expected"] + instances["staged"] + instances["stored"]
    left -= connection.execute(
        "SELECT coalesce(sum(expected + staged + stored), 0) FROM study CROSS JOIN series ON study_id = study.id WHERE study.state IN (4, 5, 6)"
    ).fetchone()[0]
    unlisted, claimed, without = connection.execute(
        "SELECT count(*), coalesce(sum(claimed_instances), 0), coalesce(sum(claimed_instances IS NULL), 0) FROM study WHERE state = 0 AND state IN (0, 1, 2)"
    ).fetchone()
    if unlisted:
        listed = sum(document["studies"].values()) - unlisted
        known = sum(instances[name] for name in ("expected", "staged", "stored", "verified"))
        if without and not listed:
            return None
        left += claimed + (without * known / listed if without else 0)
    return round(max(left, 0) / pace, 1) if left > 0 else None
