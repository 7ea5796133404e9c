"""The completeness report: report.json, studies.csv, exceptions.csv and report.html."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from migrate import errors
from migrate.counted import counted
from migrate.errors import DiskFailing
from migrate.manifest.file import now_ms
from migrate.manifest.unreadable import rows_of
from migrate.model import HabitLearned, Proof, StudyState
from migrate.reports.checks import checks
from migrate.reports.coverage import Coverage, coverage, coverage_document
from migrate.reports.custody import custody
from migrate.reports.habits import words
from migrate.reports.history import history
from migrate.reports.moment import utc
from migrate.reports.oddities import habits, suspicious, tallies_that_differ
from migrate.reports.pictures import by_year_and_modality, calendar, gaps_in_words
from migrate.reports.reconciliation import Reconciliation, for_the_page, reconciliation
from migrate.reports.status import is_complete, one_moment, totals, what_is_open
from migrate.reports.tables import Table, studies

_PAGE = Environment(
    loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True,
    undefined=StrictUndefined,  # a word that no template knows would else be silence, or a number in red
)  # fmt: skip
_PAGE.filters["n"] = "{:,}".format
_PAGE.filters["counted"] = counted

FILES = ("report.html", "report.json", "studies.csv", "exceptions.csv")
EXCEPTION_COLUMNS = ("study", "state", "error", "detail", "attempts", "missing", "unexpected", "conflict", "quarantined", "accepted_by", "reason")
_NAMED = 20
"""Of a study of which all is missing, the page does not name more images than these: the study's UID does."""
_KINDS = ("missing", "unexpected", "conflict", "quarantined")
_REMEDIES = {
    "Conflict": "The PACS sent different contents under the same UIDs; all are kept. Somebody has to look at them and `accept` the study.",
    "Quarantined": "What was sent cannot be read as it should. Look at the file in the staging folder, then `retry`, or `accept` it by its name (q1).",
    "UnreadableRow": "The PACS lists something of the study without a valid UID. Ask its administrator what it is, then `retry`, or `accept` the study.",
    "EmptyAtSource": "The PACS lists the study and no image of it, and sends none. Nothing has to be done.",
}
"""What to do about entries whose name is no class of errors."""

# The days that the questions by date cover; the first and the last date that can be written close a range that is open.
_BOUNDS = """
SELECT CASE WHEN sum(cover AND lo IS NULL) THEN NULL ELSE min(CASE WHEN cover THEN lo END) END,
  CASE WHEN sum(cover AND hi IS NULL) THEN NULL ELSE max(CASE WHEN cover THEN hi END) END, count(*)
FROM (SELECT nullif(lo, '00010101') AS lo, nullif(hi, '99991231') AS hi, axis = 'date' AND purpose = 'cover' AND parent IS NULL AS cover FROM window WHERE sweep = ?)
"""

# The signatures that stand, each with what it is for; the code where it says more than the text.
_SIGNED = """
SELECT study_id, accepted_by || CASE WHEN role <> '' THEN ' (' || role || ')' ELSE '' END,
  coalesce(sop_uid || ': ', '') || CASE WHEN code <> 'other' THEN code || ': ' ELSE '' END || reason
FROM acceptance WHERE id NOT IN (SELECT acceptance_id FROM revocation) ORDER BY id
"""

_NOT_SIMPLY_PROVEN = """
SELECT sop_uid, state, listed, conflict FROM series JOIN instance ON instance.series_id = series.id
WHERE study_id = ? AND (state < 3 OR listed = 0 OR conflict = 1) ORDER BY sop_uid
"""


def report(connection: sqlite3.Connection) -> dict[str, Any]:
    """The `report.json` document; tallies are recounted from the instances and compared.

    All of it is of one moment. Raises sqlite3.Error where the manifest cannot be read.
    """
    with one_moment(connection):
        return _report(connection, coverage(connection), reconciliation(connection), now_ms()) | {"exceptions": list(each_exception(connection))}


def _report(connection: sqlite3.Connection, covered: Coverage, reconciled: Reconciliation, at_ms: int) -> dict[str, Any]:
    """The document without its exceptions, which may be as many as there are studies."""
    document = totals(connection)
    wrong = tallies_that_differ(connection)
    proof = {kind.name.lower(): 0 for kind in Proof}
    for kind, count in connection.execute(
        "SELECT proof, count(*) FROM instance WHERE proof IS NOT NULL GROUP BY proof"
    ):
        proof[Proof(kind).name.lower()] = count
    name = connection.execute("SELECT value FROM meta WHERE key = 'migration'").fetchone()
    sweep = connection.execute("SELECT coalesce(max(sweep), 0) FROM window").fetchone()[0]
    bounds = connection.execute(_BOUNDS, (sweep,)).fetchone()
    return {
        "schema": 1,
        "migration": name[0] if name else "",
        "generated_at": f"{utc(at_ms):%Y-%m-%dT%H:%M:%SZ}",
        "complete": document["complete"] and not wrong,
        "studies": document["studies"],
        "instances": document["instances"],
        "bytes": document["bytes"],
        "proof": proof,
        "enumeration": {"from": _iso(bounds[0]), "to": _iso(bounds[1]), "windows": bounds[2],
                        "suspicious": suspicious(connection, sweep) + wrong},
        "checks": checks(connection),
        "custody": custody(connection),
        "coverage": coverage_document(covered) | {"habits": habits(connection)},
        "reconciliation": reconciled.document(),
        "excluded": [
            {"error": error, "detail": detail, "studies": count}
            for error, detail, count in connection.execute(
                "SELECT error, detail, count(*) FROM study WHERE state = 4 GROUP BY error, detail ORDER BY count(*) DESC, error, detail"
            )
        ],
    }  # fmt: skip


def _recounted(document: dict[str, Any]) -> int:
    """In how many series a recount differs from the tallies."""
    return sum(entry["blocks"] and not entry["window"] for entry in document["enumeration"]["suspicious"])


def _iso(date: str | None) -> str | None:
    return f"{date[:4]}-{date[4:6]}-{date[6:8]}" if date else None


def each_exception(connection: sqlite3.Connection) -> Iterator[dict[str, Any]]:
    """Every study that is not migrated, and every instance that is missing, unexpected, in conflict or quarantined."""
    wanted = (
        "SELECT id FROM study WHERE state <> 3 OR error IS NOT NULL UNION SELECT study_id FROM series WHERE expected > 0 "
        "UNION SELECT study_id FROM series JOIN instance ON instance.series_id = series.id WHERE listed = 0 OR conflict = 1 "
        "UNION SELECT study.id FROM study JOIN quarantine ON quarantine.study_uid = study.uid"
    )
    files: dict[str, list[tuple[Any, ...]]] = {}
    for study, *file in connection.execute("SELECT study_uid, id, sop_uid, reason, claimed FROM quarantine WHERE study_uid IS NOT NULL ORDER BY id"):
        files.setdefault(study, []).append(tuple(file))
    signed: dict[int, list[tuple[str, str]]] = {}
    for study_id, by, why in connection.execute(_SIGNED):
        signed.setdefault(study_id, []).append((by, why))
    for study_id, uid, state, error, detail, attempts in connection.execute(
        f"SELECT id, uid, state, error, detail, attempts FROM study WHERE id IN ({wanted}) ORDER BY uid"
    ):
        given_up = state in (StudyState.PARKED, StudyState.ACCEPTED)  # what is not proven of it is missing, also where its staged file is here
        sops: dict[str, list[str]] = {"missing": [], "unexpected": [], "conflict": []}
        for sop, at, listed, conflict in connection.execute(_NOT_SIMPLY_PROVEN, (study_id,)):
            if conflict:
                sops["conflict"].append(sop)
            elif not listed:
                sops["unexpected"].append(sop)
            if at == 0 or (given_up and at < 3 and not conflict):
                sops["missing"].append(sop)
        kept = files.get(uid, [])
        entry = {
            "study": uid, "state": StudyState(state).name.lower(), "error": error, "detail": detail, "attempts": attempts,
            **sops, "quarantined": [sop or f"q{number}" for number, sop, *_ in kept],
        }  # fmt: skip
        named = [_quarantined(number, reason, claimed) for number, _, reason, claimed in kept]
        named += [f"The PACS lists {row}, which is no UID." for row in rows_of(connection, uid)]
        if named:
            entry["detail"] = " ".join(filter(None, (detail, *named)))
        if study_id in signed:
            by, why = zip(*signed[study_id], strict=True)
            entry |= {"accepted_by": "; ".join(dict.fromkeys(by)), "reason": "; ".join(dict.fromkeys(why))}
        yield entry
    for number, reason, claimed, accepted, why in connection.execute(
        "SELECT id, reason, claimed, accepted_by, accepted_reason FROM quarantine WHERE study_uid IS NULL ORDER BY id"
    ):
        yield {"study": None, "state": "accepted" if accepted else "quarantined", "error": "Quarantined",
               "detail": _quarantined(number, reason, claimed), "attempts": 0, "missing": [], "unexpected": [], "conflict": [],
               "quarantined": [f"q{number}"]} | ({"accepted_by": accepted, "reason": why} if accepted else {})  # fmt: skip


def _quarantined(number: int, reason: str, claimed: str) -> str:
    """A quarantined file by the name that `accept` takes; `claimed` is JSON, so that hostile UIDs are escaped."""
    return f"q{number}: {reason}; UIDs as sent: {claimed}."


def write_report(connection: sqlite3.Connection, folder: Path) -> Path:
    """Write all four files, of one moment, and return the page's path. Raises DiskFailing."""
    new = folder / ".new"
    try:
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        with one_moment(connection):
            write_files(connection, new, at_ms=now_ms())
        for name in FILES:
            os.replace(new / name, folder / name)
        new.rmdir()
    except OSError as error:
        raise DiskFailing(
            f"The report cannot be written into {folder}: {error.strerror}.", hint="Choose another --out."
        ) from error
    return folder / "report.html"


def write_files(connection: sqlite3.Connection, folder: Path, *, at_ms: int, merkle: dict[str, Any] | None = None) -> None:
    """Write FILES into a folder that has none of them yet; memory does not grow with studies or exceptions. `at_ms`: when they are made.

    `merkle`: of a dossier, the last seal and the Merkle root. It also has report-anonymous.html, which names no study, image, person, place or machine.
    """
    covered, reconciled = coverage(connection), reconciliation(connection)
    document = _report(connection, covered, reconciled, at_ms)
    heads, rows = studies(connection)
    with Table(folder / "studies.csv", heads) as table:
        for row in rows:
            table.row(row)
    shown, failed = 0, set[str]()
    kinds: dict[tuple[str, str | None], list[int]] = {}
    with Table(folder / "exceptions.csv", EXCEPTION_COLUMNS) as table, (folder / "report.json").open("x", encoding="utf-8") as file:
        file.write(json.dumps(document, indent=1)[:-2] + ',\n "exceptions": [\n')  # a line of its own: verifiers read up to it
        mark = ""
        for entry in each_exception(connection):
            file.write(mark + textwrap.indent(json.dumps(entry, indent=1), "  "))
            mark = ",\n"
            values = (entry.get(column) for column in EXCEPTION_COLUMNS)
            table.row([" ".join(value) or None if isinstance(value, list) else value for value in values])
            counts = kinds.setdefault((entry["state"], entry["error"]), [0] * 5)
            for number, count in enumerate((1, *(len(entry[kind]) for kind in _KINDS))):
                counts[number] += count
            if _needs_words(entry):
                shown += 1
                failed |= {entry["error"]} if entry["error"] else set()
        file.write(("\n" if mark else "") + " ]\n}\n")
    shows: dict[str, Any] = {
        "report": document, "open": what_is_open(connection, document["studies"], recounted=_recounted(document)), "table": by_year_and_modality(connection),
        "reconciled": for_the_page(reconciled), "history": history(connection), "exceptions": _on_the_page(connection), "shown": shown, "remedies": _remedies(failed),
        "calendar": calendar(covered), "gaps": gaps_in_words(covered), "habits": _noteworthy(document["coverage"]["habits"]),
        "kinds": sorted(kinds.items(), key=lambda pair: (pair[0][0], pair[0][1] or "")), "names": True, "merkle": merkle,
        "blocking": sum(entry["blocks"] for entry in document["enumeration"]["suspicious"]),
    }  # fmt: skip
    _render(folder / "report.html", shows)
    if merkle:
        _render(folder / "report-anonymous.html", shows | {"names": False})


def _render(page: Path, values: dict[str, Any]) -> None:
    """Piece by piece: there may be as many exceptions as studies."""
    with page.open("x", encoding="utf-8") as file:
        file.writelines(_PAGE.get_template(page.name).generate(**values))


def _noteworthy(habits: list[dict[str, str]]) -> list[dict[str, str]]:
    """Habits of which anything follows, with what this tool does about them."""
    known = [(habit, words(HabitLearned(**habit))) for habit in habits]
    return [habit | {"effect": follows.effect} for habit, follows in known if follows.effect or follows.ask]


def _on_the_page(connection: sqlite3.Connection) -> Iterator[dict[str, Any]]:
    """Each exception that needs words, with its instances as (kind, UIDs, how many are left out: all or none of them)."""
    for entry in each_exception(connection):
        if not _needs_words(entry):
            continue
        left_out = 0
        if len(entry["missing"]) > _NAMED:
            (listed,) = connection.execute("SELECT listed_instances FROM study WHERE uid = ?", (entry["study"],)).fetchone()
            left_out = listed if listed == len(entry["missing"]) else 0
        named = [(kind, entry[kind], 0) for kind in _KINDS if entry[kind] and not (kind == "missing" and left_out)]
        yield entry | {"named": [("missing", [], left_out)] * bool(left_out) + named}


def _remedies(failed: set[str]) -> list[tuple[str, str]]:
    """What can be done about each of these errors."""
    known = [(name, _REMEDIES.get(name) or getattr(getattr(errors, name, None), "default_hint", "")) for name in sorted(failed)]
    return [(name, remedy) for name, remedy in known if remedy]


def _needs_words(entry: dict[str, Any]) -> bool:
    """Whether the page shows it: studies that are merely not finished, or left out on purpose, are only counted there."""
    if entry["state"] in ("found", "planned", "retrieved"):
        return bool(entry["error"] or entry["unexpected"] or entry["conflict"] or entry["quarantined"])
    return bool(entry["state"] != "excluded")


__all__ = ["is_complete", "report", "write_report"]
