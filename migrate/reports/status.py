"""Counts by state, and what is parked and why."""

from __future__ import annotations

import contextlib
import sqlite3
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from tabulate import tabulate

from migrate.counted import counted
from migrate.model import InstanceState, StudyState
from migrate.reports.pace import eta_s, throughput


@contextlib.contextmanager
def one_moment(connection: sqlite3.Connection) -> Iterator[None]:
    """Every question asked inside sees the manifest as of the first one, whatever a run commits meanwhile.

    A document whose counts and verdict come from different moments could call complete what it counts as open.
    """
    if connection.in_transaction:  # an outer call holds the moment
        yield
        return
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")


def status(connection: sqlite3.Connection) -> dict[str, Any]:
    """The `status --json` document, of one consistent moment."""
    with one_moment(connection):
        return _status(connection)


def totals(connection: sqlite3.Connection) -> dict[str, Any]:
    """Counts of studies and instances by state, bytes, and whether all is complete."""
    studies = {state.name.lower(): 0 for state in StudyState}
    for state, count in connection.execute("SELECT state, count(*) FROM study GROUP BY state"):
        studies[StudyState(state).name.lower()] = count
    sizes = connection.execute("SELECT coalesce(sum(waiting_bytes), 0), coalesce(sum(verified_bytes), 0) FROM series").fetchone()
    return {
        "studies": studies,
        "instances": instance_counts(connection),
        "bytes": {"staged": sizes[0], "verified": sizes[1]},
        "complete": is_complete(connection),
    }


def _status(connection: sqlite3.Connection) -> dict[str, Any]:
    parked = [
        {"study": uid, "error": error, "detail": detail, "attempts": attempts}
        for uid, error, detail, attempts in connection.execute(
            "SELECT uid, error, detail, attempts FROM study WHERE state = 5 ORDER BY uid"
        )
    ]
    document = totals(connection) | {"parked": parked, "throughput": throughput(connection)}
    return document | {"eta_s": eta_s(connection, document)}


def instance_counts(connection: sqlite3.Connection) -> dict[str, int]:
    """Each instance once: conflict before all others, then unexpected, then by state; quarantined counts files."""
    names = [state.name.lower() for state in InstanceState]
    totals = connection.execute(
        f"SELECT {', '.join(f'coalesce(sum({name}), 0)' for name in names)} FROM series"
    ).fetchone()
    counts = dict(zip(names, totals, strict=True))
    counts |= {"unexpected": 0, "conflict": 0}
    for state, conflict, number in connection.execute(
        "SELECT state, conflict, count(*) FROM instance WHERE listed = 0 OR conflict = 1 GROUP BY state, conflict"
    ):
        counts[names[state]] -= number
        counts["conflict" if conflict else "unexpected"] += number
    counts["quarantined"] = connection.execute("SELECT count(*) FROM quarantine").fetchone()[0]
    return counts


def is_complete(connection: sqlite3.Connection) -> bool:
    """True only if every study is migrated, excluded or accepted, no window blocks, and the closing sweep found nothing new."""
    sweep = connection.execute("SELECT max(sweep) FROM window").fetchone()[0]
    closed = connection.execute("SELECT value FROM meta WHERE key = 'closed_sweep'").fetchone()
    if sweep is None or closed is None or closed[0] != str(sweep):
        return False
    questions = (
        "SELECT 1 FROM study WHERE state NOT IN (3, 4, 6)",
        f"SELECT 1 FROM window WHERE sweep = {int(sweep)} AND accepted_by IS NULL AND (blocks = 1 OR state = 0)",
        "SELECT 1 FROM quarantine WHERE study_uid IS NULL AND accepted_by IS NULL",
    )
    return not any(connection.execute(f"{question} LIMIT 1").fetchone() for question in questions)


_SHOWN = 50
_NOTHING = "nothing was found. The PACS showed no study at all; some show nothing to an AE title that they do not know, so ask its administrator whether it is empty."
_GOES_ON = "`pacs-migrate run` goes on."


def what_is_open(connection: sqlite3.Connection, studies: dict[str, int], *, recounted: int = 0) -> dict[str, str]:
    """Every reason why a migration is not complete, each with what to do about it; none where it is. `studies` are the counts by state."""
    sweep = connection.execute("SELECT max(sweep) FROM window").fetchone()[0]
    if sweep is None:
        return {"the PACS has not been asked for its studies yet": _GOES_ON}
    unfinished = studies["found"] + studies["planned"] + studies["retrieved"]
    unanswered, loose = connection.execute(
        "SELECT (SELECT count(*) FROM window WHERE sweep = ? AND state = 0 AND accepted_by IS NULL), "
        "(SELECT count(*) FROM quarantine WHERE study_uid IS NULL AND accepted_by IS NULL)", (sweep,)
    ).fetchone()  # fmt: skip
    names = [f"w{number}" for (number,) in connection.execute(
        "SELECT id FROM window WHERE sweep = ? AND blocks = 1 AND accepted_by IS NULL ORDER BY id", (sweep,)
    )]  # fmt: skip
    closed = connection.execute("SELECT value FROM meta WHERE key = 'closed_sweep'").fetchone()
    more = f" and {len(names) - 5:,} more" if len(names) > 5 else ""
    reasons = [
        (unfinished, f"{counted(unfinished, 'study is', 'studies are')} not finished", _GOES_ON),
        (studies["parked"], f"{counted(studies['parked'], 'study is', 'studies are')} parked",
         "`pacs-migrate retry` puts parked studies back, `accept` signs for what cannot be migrated; `report` names what is missing."),
        (unanswered, f"{counted(unanswered, 'question to the PACS has', 'questions to the PACS have')} not been answered yet", _GOES_ON),
        (names, f"the PACS may hide studies in {', '.join(names[:5])}{more}", "`pacs-migrate report` says what is odd about them; `accept --window` settles one."),
        (loose, f"{counted(loose, 'file is', 'files are')} in quarantine without a valid study UID",
         "They are kept in the staging folder; `pacs-migrate accept q1` settles the first of them."),
        (recounted, f"a recount of the manifest differs from its tallies in {recounted:,} series", "Something else has changed the manifest: `pacs-migrate audit` names the place."),
        (closed is None or closed[0] != str(sweep), "no closing sweep has shown that nothing new came", _GOES_ON),
    ]  # fmt: skip
    return {reason: remedy for applies, reason, remedy in reasons if applies}


def status_text(document: dict[str, Any], coverage: str = "", why: Mapping[str, str] | None = None, width: int = 100) -> str:
    """The same for people, with what `coverage_text` and `what_is_open` say; nothing but UIDs is wider than `width`."""
    parts = [
        tabulate(
            [(name, f"{count:,}") for name, count in document[kind].items()],
            headers=(kind, ""),
            colalign=("left", "right"),
        )
        for kind in ("studies", "instances")
    ]
    verified = document["bytes"]["verified"]
    parts.append(f"{verified:,} bytes proven at the destination, {document['bytes']['staged']:,} in staging.")
    pace = document["throughput"]
    if pace["window_s"]:
        eta = "" if document["eta_s"] is None else f"; about {duration(document['eta_s'])} left for what is known"
        parts.append(
            f"{pace['instances_per_s']:,.1f} instances and {pace['bytes_per_s'] / 1e6:,.1f} MB proven a second "
            f"over the last {duration(pace['window_s'])}{eta}."
        )
    if coverage:
        parts.append(coverage)
    if document["parked"]:
        shown = document["parked"][:_SHOWN]
        parts.append("\n".join(["Parked:", *(_parked(entry, width) for entry in shown)]))
        if len(document["parked"]) > len(shown):
            parts.append(f"And {len(document['parked']) - len(shown):,} more; `pacs-migrate report` names all of them.")
    if document["complete"]:
        found = any(document["studies"].values())
        parts.append("COMPLETE: every instance found is proven, or its exception is signed." if found else _wrapped(f"COMPLETE: {_NOTHING}", width))
    else:
        lines = [f"NOT COMPLETE{': ' if why else ''}{'; '.join(why or ())}.", *dict.fromkeys((why or {}).values())]
        parts.append("\n".join(_wrapped(line, width) for line in lines))
    return "\n\n".join(parts)


def _parked(entry: Mapping[str, Any], width: int) -> str:
    why = f"{entry['error']} after {counted(entry['attempts'], 'attempt')}" + (f": {entry['detail']}" if entry["detail"] else "")
    return f"{entry['study']}\n{_wrapped(why, width, '  ')}"


def _wrapped(text: str, width: int, indent: str = "") -> str:
    return textwrap.fill(text, width, initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def duration(seconds: float) -> str:
    """Two units at most: 45 s, 3 min 20 s, 5 h 12 min, 2 d 4 h."""
    whole = round(seconds)
    for size, unit, smaller_size, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // smaller_size
            return f"{whole // size} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{whole} s"
