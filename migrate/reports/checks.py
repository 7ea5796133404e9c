"""What was found when objects or images were looked at again, as the events of these checks tell it."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

from migrate.reports.moment import utc

KINDS = {"destination verified": "verifications", "source compared": "comparisons"}
_ROWS = "SELECT at, run_id, kind, detail FROM event WHERE kind IN ('destination verified', 'source compared') ORDER BY id"


def checks(connection: sqlite3.Connection) -> dict[str, list[dict[str, Any]]]:
    """Results by kind, the oldest first, each with its time and run; the numbers of single strata are left to the events.

    `slices`: of each level and number of parts, which of them were last looked at without a fault, and when the oldest of these was.
    """
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in KINDS.values()}
    for at, run, kind, detail in connection.execute(_ROWS):
        try:
            result = json.loads(detail)
        except ValueError:
            continue
        result.pop("strata", None)
        when = utc(at).strftime("%Y-%m-%dT%H:%M:%SZ")
        found[KINDS[kind]].append({"at": when, "run": run} | result)
    return found | {"slices": _slices(found["verifications"])}


def _slices(verifications: list[dict[str, Any]]) -> list[dict[str, Any]]:
    last: dict[tuple[str, int], dict[int, str]] = {}
    for check in verifications:
        if not check["slice"] or not check["ended"]:
            continue
        part, _, count = check["slice"].partition("/")
        done = last.setdefault((check["level"], int(count)), {})
        if check["missing"] or check["differs"] or check["unchecked"] or check.get("open"):
            done.pop(int(part), None)
        else:
            done[int(part)] = check["at"]
    return [{"level": level, "of": count, "done": sorted(done), "oldest": min(done.values(), default=None)} for (level, count), done in sorted(last.items())]
