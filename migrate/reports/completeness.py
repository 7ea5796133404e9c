"""The completeness report: report.json, studies.csv, exceptions.csv and report.html."""

from __future__ import annotations

import csv
import datetime
import io
import json
import os
import sqlite3
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from migrate.errors import DiskFailing
from migrate.model import Proof, StudyState
from migrate.reports.status import instance_counts, is_complete, status

_PAGE = Environment(
    loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
)


def report(connection: sqlite3.Connection) -> dict[str, Any]:
    """The `report.json` document; tallies are recounted from the instances and compared."""
    document = status(connection)
    wrong = tallies_that_differ(connection)
    proof = {kind.name.lower(): 0 for kind in Proof}
    for kind, count in connection.execute(
        "SELECT proof, count(*) FROM instance WHERE proof IS NOT NULL GROUP BY proof"
    ):
        proof[Proof(kind).name.lower()] = count
    name = connection.execute("SELECT value FROM meta WHERE key = 'migration'").fetchone()
    sweep = connection.execute("SELECT coalesce(max(sweep), 0) FROM window").fetchone()[0]
    bounds = connection.execute(
        "SELECT CASE WHEN sum(lo IS NULL) THEN NULL ELSE min(lo) END, CASE WHEN sum(hi IS NULL) THEN NULL ELSE max(hi) END, count(*) "
        "FROM window WHERE sweep = ?", (sweep,)
    ).fetchone()  # fmt: skip
    return {
        "schema": 1,
        "migration": name[0] if name else "",
        "generated_at": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "complete": document["complete"] and not wrong,
        "studies": document["studies"],
        "instances": instance_counts(connection),
        "bytes": document["bytes"],
        "proof": proof,
        "enumeration": {"from": _iso(bounds[0]), "to": _iso(bounds[1]), "windows": bounds[2],
                        "suspicious": suspicious(connection, sweep) + wrong},
        "exceptions": exceptions(connection),
    }  # fmt: skip


def _iso(date: str | None) -> str | None:
    return f"{date[:4]}-{date[4:6]}-{date[6:8]}" if date else None


def suspicious(connection: sqlite3.Connection, sweep: int) -> list[dict[str, Any]]:
    """Windows whose answers are odd, and counts that are claimed otherwise than listed."""
    windows = [
        {"window": f"w{window_id}", "reason": reason, "blocks": bool(blocks), "accepted_by": accepted}
        for window_id, reason, blocks, accepted in connection.execute(
            "SELECT id, suspicion, blocks, accepted_by FROM window WHERE sweep = ? AND suspicion IS NOT NULL ORDER BY id",
            (sweep,),
        )
    ]
    counts = [
        {
            "window": None,
            "reason": f"study {uid}: {claimed} instances claimed, {listed} listed",
            "blocks": False,
            "accepted_by": None,
        }
        for uid, claimed, listed in connection.execute(
            "SELECT uid, claimed_instances, listed_instances FROM study WHERE listed_instances IS NOT NULL AND claimed_instances IS NOT NULL "
            "AND claimed_instances <> listed_instances ORDER BY uid"
        )
    ]
    return windows + counts


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


def exceptions(connection: sqlite3.Connection) -> list[dict[str, Any]]:
    """Every study that is not migrated, and every instance that is missing, unexpected, in conflict or quarantined."""
    wanted = (
        "SELECT id FROM study WHERE state <> 3 OR error IS NOT NULL UNION SELECT study_id FROM series WHERE expected > 0 "
        "UNION SELECT study_id FROM series JOIN instance ON instance.series_id = series.id WHERE listed = 0 OR conflict = 1 "
        "UNION SELECT study.id FROM study JOIN quarantine ON quarantine.study_uid = study.uid"
    )
    found = []
    for study_id, uid, state, error, detail, attempts in connection.execute(
        f"SELECT id, uid, state, error, detail, attempts FROM study WHERE id IN ({wanted}) ORDER BY uid"
    ).fetchall():

        def sops(where: str, study_id: int = study_id) -> list[str]:
            query = f"SELECT sop_uid FROM instance JOIN series ON series.id = series_id WHERE study_id = ? AND {where} ORDER BY sop_uid"
            return [sop for (sop,) in connection.execute(query, (study_id,))]

        signed = connection.execute(
            "SELECT accepted_by, reason FROM acceptance WHERE study_id = ? ORDER BY id DESC LIMIT 1", (study_id,)
        ).fetchone()
        entry = {
            "study": uid, "state": StudyState(state).name.lower(), "error": error, "detail": detail, "attempts": attempts,
            "missing": sops("state = 0 AND conflict = 0"), "unexpected": sops("listed = 0 AND conflict = 0"), "conflict": sops("conflict = 1"),
            "quarantined": [sop or f"q{number}" for number, sop in connection.execute(
                "SELECT id, sop_uid FROM quarantine WHERE study_uid = ? ORDER BY id", (uid,))],
        }  # fmt: skip
        if signed:
            entry |= {"accepted_by": signed[0], "reason": signed[1]}
        found.append(entry)
    for number, reason, claimed, accepted in connection.execute(
        "SELECT id, reason, claimed, accepted_by FROM quarantine WHERE study_uid IS NULL ORDER BY id"
    ):
        found.append({"study": None, "state": "accepted" if accepted else "quarantined", "error": "Quarantined",
                      "detail": f"{reason}; UIDs as sent: {claimed}", "attempts": 0, "missing": [], "unexpected": [], "conflict": [],
                      "quarantined": [f"q{number}"]})  # fmt: skip
    return found


def write_report(connection: sqlite3.Connection, folder: Path) -> Path:
    """Write all four files and return the page's path. Raises DiskFailing."""
    document = report(connection)
    studies = connection.execute("SELECT * FROM studies ORDER BY study")
    heads = [column[0] for column in studies.description]
    listed = [
        [entry[key] if not isinstance(entry[key], list) else " ".join(entry[key])
         for key in ("study", "state", "error", "detail", "attempts", "missing", "unexpected", "conflict", "quarantined")]
        for entry in document["exceptions"]
    ]  # fmt: skip
    files = {
        "report.json": json.dumps(document, indent=1) + "\n",
        "studies.csv": _csv(heads, studies.fetchall()),
        "exceptions.csv": _csv(
            ["study", "state", "error", "detail", "attempts", "missing", "unexpected", "conflict", "quarantined"],
            listed,
        ),
        "report.html": _PAGE.get_template("report.html").render(
            report=document,
            years=_bars(connection, "coalesce(substr(date, 1, 4), 'no date')"),
            modalities=_modalities(connection),
        ),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            temporary = folder / f".{name}.new"
            temporary.write_text(text, encoding="utf-8", newline="")
            os.replace(temporary, folder / name)
    except OSError as error:
        raise DiskFailing(
            f"The report cannot be written into {folder}: {error.strerror}.", hint="Choose another --out."
        ) from error
    return folder / "report.html"


def _csv(heads: list[str], rows: list[Any]) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(heads)
    writer.writerows(rows)
    return text.getvalue()


def _bars(connection: sqlite3.Connection, by: str) -> list[dict[str, Any]]:
    rows = connection.execute(f"SELECT {by}, count(*), sum(state = 3) FROM study GROUP BY 1 ORDER BY 1").fetchall()
    return _scaled(rows)


def _modalities(connection: sqlite3.Connection) -> list[dict[str, Any]]:
    rows = connection.execute(
        "SELECT coalesce(nullif(series.modality, ''), 'unknown'), count(DISTINCT study.id), count(DISTINCT CASE WHEN study.state = 3 THEN study.id END) "
        "FROM series JOIN study ON study.id = series.study_id GROUP BY 1 ORDER BY 1"
    ).fetchall()
    return _scaled(rows)


def _scaled(rows: list[Any]) -> list[dict[str, Any]]:
    most = max((count for _, count, _ in rows), default=1)
    return [
        {
            "label": label,
            "count": count,
            "done": done or 0,
            "width": 400 * count / most,
            "done_width": 400 * (done or 0) / most,
        }
        for label, count, done in rows
    ]


__all__ = ["is_complete", "report", "write_report"]
