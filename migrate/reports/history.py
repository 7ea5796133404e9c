"""What happened, for the page: commands with their starts, stops and kills, the machines and versions, decisions, links."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

from migrate.counted import counted
from migrate.reports.moment import utc

_RUNS = "SELECT id, verb, operator, host, version, started_at, ended_at, exit_code FROM run ORDER BY id DESC LIMIT ?"
_MACHINES = """
SELECT host, version, sqlite_version, config_sha256, min(id), max(id), count(*), sum(ended_at IS NULL) FROM run
GROUP BY host, version, sqlite_version, config_sha256 ORDER BY min(id)
"""
_DECISIONS = """
SELECT at, kind, study_uid, sop_uid, detail FROM event
WHERE kind IN ('exception accepted', 'exception revoked', 'exclusion signed', 'exclusion undone') ORDER BY id DESC LIMIT ?
"""
_COUNTS = "SELECT count(*), coalesce(sum(ended_at IS NULL), 0), coalesce(max(id), 0) FROM run"
_MOST = 500
"""So many commands and decisions stand on the page, the newest ones."""
_WIDTH = 620
_ENDS = {0: "done", 3: "done, something parked or missing", 130: "interrupted"}


def history(connection: sqlite3.Connection) -> dict[str, Any]:
    """The runs as rows and as a picture, environments, decisions, what is known of the links."""
    total, unended, newest = connection.execute(_COUNTS).fetchone()
    rows = [_run(row, newest) for row in connection.execute(_RUNS, (_MOST,))][::-1]
    decisions = [
        {"at": _time(at), "kind": kind, "study": study, "sop": sop, "detail": _briefly(kind, detail)}
        for at, kind, study, sop, detail in connection.execute(_DECISIONS, (_MOST,))
    ][::-1]
    machines = connection.execute(_MACHINES).fetchall()
    names = ("host", "version", "sqlite", "config", "first", "last", "count", "unended")
    meta = dict(connection.execute("SELECT key, value FROM meta WHERE key IN ('source', 'destination', 'created_by')"))
    last_open = bool(rows and rows[-1]["end"] == "not ended yet")
    return {
        "runs": rows, "total": total, "killed": unended - last_open, "picture": _picture(rows), "decisions": decisions,
        "machines": [dict(zip(names, machine, strict=True)) for machine in machines[:_MOST]], "meta": meta, "links": _links(connection),
    }  # fmt: skip


def _briefly(kind: str, detail: str | None) -> str | None:
    """Without the list of what an acceptance covers, which may be thousands of UIDs; the log has it."""
    words, mark, covers = (detail or "").rpartition("; covers [")
    if kind != "exception accepted" or not mark:
        return detail
    count = len(json.loads(f"[{covers}"))
    return f"{words} (covers {counted(count, 'entry')})"


def _run(row: tuple[Any, ...], newest: int) -> dict[str, Any]:
    number, verb, operator, host, version, started, ended, code = row
    if ended is None:
        end = "not ended yet" if number == newest else "killed, or cut off"
    else:
        end = _ENDS.get(code, "ended by an error")
    return {
        "id": number, "verb": verb, "operator": operator, "host": host, "version": version, "started_ms": started, "ended_ms": ended,
        "started": _time(started), "ended": _time(ended) if ended is not None else "", "exit": code, "end": end,
    }  # fmt: skip


def _picture(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Each run as a bar on one line of time; one that was killed ends, as far as is known, where the next begins."""
    if not rows:
        return {"bars": []}
    begin = rows[0]["started_ms"]
    ends = [row["ended_ms"] or following["started_ms"] for row, following in zip(rows, [*rows[1:], rows[-1]], strict=True)]
    span = max(max(ends) - begin, 1)
    bars = [
        {"x": _WIDTH * (row["started_ms"] - begin) / span, "width": max(_WIDTH * (end - row["started_ms"]) / span, 1.5), "run": row}
        for row, end in zip(rows, ends, strict=True)
    ]
    return {"bars": bars, "from": rows[0]["started"], "to": _time(max(ends))}


def _links(connection: sqlite3.Connection) -> list[tuple[str, str]]:
    """When which links to the PACS were set up how, where the log tells it: (time, words)."""
    rows = connection.execute("SELECT min(at), detail FROM event WHERE kind = 'links' GROUP BY detail ORDER BY min(id)")
    return [(_time(at), detail) for at, detail in rows]


def _time(at_ms: int) -> str:
    return f"{utc(at_ms):%Y-%m-%d %H:%M:%S}"
