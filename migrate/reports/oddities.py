"""What is odd about what the PACS says, in words: windows, studies that one question shows and another does not, wrong counts."""

from __future__ import annotations

import datetime
import sqlite3
from collections.abc import Iterator
from typing import Any

from migrate.counted import counted
from migrate.model import SHARE, Window

# Parts are judged with the window that they are parts of, and questions that only compare, with what they are compared with.
_WINDOWS = """
SELECT id, suspicion, blocks, accepted_by, accepted_reason, lo, hi, axis, time_lo, time_hi, modality, patient, accession FROM window
WHERE (sweep = :sweep OR sweep = (SELECT max(sweep) FROM window WHERE purpose = 'look' AND axis = 'all') AND purpose = 'look') AND suspicion IS NOT NULL AND (blocks = 1 OR (
  state IN (0, 1, 2) AND (purpose IN ('cover', 'look') AND coalesce(part_by, 'date') = 'date'
  OR outside_count > 0 AND NOT EXISTS (SELECT 1 FROM window AS whole WHERE whole.id = window.parent AND whole.suspicion IS NOT NULL))))
ORDER BY id
"""
# What SERIES rows claimed wrongly is in the log. Only notes of the last plan count: an older answer may have been mended since.
_CLAIMS_BY_SERIES = """
SELECT note.study_uid, note.detail FROM event AS note WHERE note.kind = 'counts differ' AND note.id > coalesce((
  SELECT id FROM event WHERE study_uid = note.study_uid AND kind = 'study planned' ORDER BY id DESC LIMIT 1 OFFSET 1), 0)
ORDER BY note.study_uid, note.id
"""
_CLAIMS = """
SELECT uid, claimed_instances, listed_instances FROM study WHERE listed_instances IS NOT NULL AND claimed_instances IS NOT NULL
  AND claimed_instances <> listed_instances ORDER BY uid
"""
_CHANGED = """
SELECT study_uid, kind, detail FROM event WHERE id IN (
  SELECT max(id) FROM event WHERE kind IN ('study shrank', 'study vanished', 'study grew', 'attributes differ') GROUP BY study_uid, kind)
ORDER BY study_uid, id
"""
# Without any answer by date nothing can be missing from it; and a study without a date is expected to be shown without a key only.
_NOT_BY_DATE = """
SELECT uid, axes, date IS NULL, CASE WHEN state = 4 THEN detail END FROM study WHERE axes <> 0 AND CASE WHEN date IS NULL
  THEN CASE state WHEN 4 THEN detail LIKE 'It has no StudyDate%' ELSE axes NOT IN (1, 2) AND axes & (axes - 1) = 0 END
  ELSE axes & 1 = 0 AND state <> 4 AND EXISTS (SELECT 1 FROM window WHERE sweep = ? AND axis = 'date' AND state IN (1, 3)) END
ORDER BY uid
"""
# A sweep with a first or last day did not ask for what lies beyond; what failed for good shows nothing either.
_VANISHED = """
SELECT study.uid, study.seen_sweep FROM study JOIN (SELECT
    max(axis = 'all' AND purpose = 'cover') AS without_key, min(CASE WHEN axis = 'date' THEN coalesce(lo, '') END) AS lo,
    max(CASE WHEN axis = 'date' THEN coalesce(hi, '99999999') END) AS hi FROM window WHERE sweep = :sweep) AS asked
WHERE study.seen_sweep < :sweep AND study.axes <> 32 AND study.state <> 4
  AND (asked.without_key OR study.date BETWEEN asked.lo AND asked.hi) AND NOT EXISTS (
    SELECT 1 FROM window WHERE sweep = :sweep AND axis = 'date' AND purpose = 'cover' AND state = 2 AND coalesce(part_by, 'date') = 'date'
    AND study.date BETWEEN coalesce(lo, '') AND coalesce(hi, '99999999'))
ORDER BY study.uid
"""
_BY_PATIENT = "SELECT 1 FROM window WHERE sweep = ? AND patient = ?"
_FINISHED = "SELECT max(sweep) FROM (SELECT sweep FROM window GROUP BY sweep HAVING sum(state = 0) = 0)"
_AXES = {2: "without a key", 4: "by PatientID", 8: "by AccessionNumber", 16: "by modality", 32: "by a list"}


def suspicious(connection: sqlite3.Connection, sweep: int) -> list[dict[str, Any]]:
    """Windows whose answers are odd, then what is odd about studies: how they are shown, what changed, wrong counts."""
    windows = [
        {"window": f"w{window_id}", "question": str(Window(*asked)), "reason": reason, "blocks": bool(blocks), "accepted_by": accepted}
        | ({"accepted_reason": why} if why else {})
        for window_id, reason, blocks, accepted, why, *asked in connection.execute(_WINDOWS, {"sweep": sweep})
    ]
    said = (*_vanished(connection), *_not_by_date(connection, sweep), *_changed(connection), *_claims(connection))
    return windows + [{"window": None, "reason": reason, "blocks": False, "accepted_by": None} for reason in said]


def _vanished(connection: sqlite3.Connection) -> Iterator[str]:
    """Studies that the newest finished sweep asked for, and that only an older one was shown."""
    sweep = connection.execute(_FINISHED).fetchone()[0]
    times = dict(connection.execute("SELECT sweep, max(answered_at) FROM window GROUP BY sweep"))
    for uid, seen in connection.execute(_VANISHED, {"sweep": sweep}):
        when = f", at the latest on {_time(times[seen])}" if times.get(seen) else ""
        yield f"study {uid} was last shown by sweep {seen}{when}, and by no question of sweep {sweep}"


def _time(at_ms: int) -> str:
    return f"{datetime.datetime.fromtimestamp(at_ms / 1000, datetime.UTC):%Y-%m-%d %H:%M} UTC"


def _not_by_date(connection: sqlite3.Connection, sweep: int) -> Iterator[str]:
    by_patient = asked_by_patient(connection, sweep)  # then nearly all are shown in that way only
    for uid, axes, undated, left_out in connection.execute(_NOT_BY_DATE, (sweep,)):
        if left_out:
            yield f"study {uid}: {left_out}"
        elif by_patient:
            continue
        elif undated:
            yield f"study {uid} has no StudyDate, and is shown only {_ways(axes)}"
        else:
            yield f"study {uid} is shown by no question by date, only {_ways(axes)}"


def asked_by_patient(connection: sqlite3.Connection, sweep: int) -> bool:
    """Whether a sweep asked for patients one by one, and by date only for those whose answers may have been cut off."""
    return connection.execute(_BY_PATIENT, (sweep, SHARE)).fetchone() is not None


def _ways(axes: int) -> str:
    return " and ".join(words for bit, words in _AXES.items() if axes & bit)


def _changed(connection: sqlite3.Connection) -> Iterator[str]:
    for uid, kind, detail in connection.execute(_CHANGED):
        yield f"study {uid}: {kind.removeprefix('study ')}: {detail}"


def _claims(connection: sqlite3.Connection) -> Iterator[str]:
    for uid, claimed, listed in connection.execute(_CLAIMS):
        yield f"study {uid}: {counted(claimed, 'instance')} claimed, {listed} listed"
    for uid, note in connection.execute(_CLAIMS_BY_SERIES):
        yield f"study {uid}, {note}"


def tallies_that_differ(connection: sqlite3.Connection) -> list[dict[str, Any]]:
    """Series whose tallies are not what a recount gives: the file was changed by something else."""
    rows = connection.execute(
        "SELECT series.uid FROM series LEFT JOIN instance ON instance.series_id = series.id GROUP BY series.id HAVING "
        + " OR ".join(
            f"series.{name} <> count(CASE WHEN instance.state = {number} THEN 1 END)"
            for number, name in enumerate(("expected", "staged", "stored", "verified"))
        )
    )
    reason = "the manifest's tallies differ from a recount of series"
    return [{"window": None, "reason": f"{reason} {uid}", "blocks": True, "accepted_by": None} for (uid,) in rows]


def habits(connection: sqlite3.Connection) -> list[dict[str, str]]:
    """What has been learned of the PACS's manners."""
    rows = connection.execute("SELECT name, value, detail FROM habit ORDER BY name")
    return [{"name": name, "value": value, "detail": detail} for name, value, detail in rows]
