"""Chain of custody: which machine held which bytes, from when to when, and when its staging folder was seen to be empty.

A run's machine holds an image from its receipt until it is proven at the destination; its seals say which run received it.
"""

from __future__ import annotations

import json
import sqlite3
from typing import Any

from migrate.reports.moment import utc

_RUNS = """
SELECT receiving.id, count(*), sum(size_bytes), min(staged_at), max(staged_at), sum(state < 3), total(CASE WHEN state < 3 THEN size_bytes END),
  total(proving.host = receiving.host), max(CASE WHEN proving.host = receiving.host THEN verified_at END)
FROM (SELECT staged_seal, verified_seal, size_bytes, staged_at, state, verified_at FROM instance WHERE state > 0
  UNION ALL SELECT staged_seal, verified_seal, size_bytes, staged_at, state, verified_at FROM copy WHERE state > 0)
JOIN seal AS staged ON staged.id = staged_seal JOIN run AS receiving ON receiving.id = staged.run_id
LEFT JOIN seal AS verified ON verified.id = verified_seal LEFT JOIN run AS proving ON proving.id = verified.run_id
GROUP BY receiving.id ORDER BY receiving.id
"""
_LOOKS = "SELECT run_id, at, detail FROM event WHERE kind IN ('staging opened', 'staging left') ORDER BY id"
_HOSTS = "SELECT id, host FROM run ORDER BY id"


def custody(connection: sqlite3.Connection) -> list[dict[str, Any]]:
    """A row for each machine that ever received an image or looked into its staging folder, in the order of its first run.

    `held` are images that are not proven yet, `left` those that another machine has proven: nobody removed their files here. `staging` is what the last look saw there: `at`, `files`, `bytes`, `quarantined`; None where
    nobody looked. `unseen`: something was received after that look, because the run was killed.
    """
    hosts: dict[int, str] = dict(connection.execute(_HOSTS))
    machines: dict[str, dict[str, Any]] = {}

    def of(run: int) -> dict[str, Any]:
        host = hosts.get(run, "")
        return machines.setdefault(host, {
            "host": host, "runs": [], "received": 0, "bytes": 0, "first_received_at": None, "last_received_at": None, "released": 0,
            "last_released_at": None, "left": 0, "held": 0, "held_bytes": 0, "staging": None, "unseen": False,
        })  # fmt: skip

    for run, count, size, first, last, held, held_bytes, released, released_at in connection.execute(_RUNS).fetchall():
        machine = of(run)
        machine["runs"].append(run)
        machine["received"] += count
        machine["bytes"] += size
        machine["released"] += int(released)
        machine["left"] += count - held - int(released)
        machine["held"] += held
        machine["held_bytes"] += int(held_bytes)
        machine["first_received_at"] = min(filter(None, (machine["first_received_at"], first)))
        machine["last_received_at"] = max(filter(None, (machine["last_received_at"], last)))
        machine["last_released_at"] = max(filter(None, (machine["last_released_at"], released_at)), default=None)
    for run, at, detail in connection.execute(_LOOKS):
        of(run)["staging"] = {"at": at} | json.loads(detail)
    for machine in machines.values():
        seen, last = machine["staging"], machine["last_received_at"]
        machine["unseen"] = last is not None and (seen is None or seen["at"] < last)
        for name in ("first_received_at", "last_received_at", "last_released_at"):
            machine[name] = _time(machine[name])
        if seen is not None:
            seen["at"] = _time(seen["at"])
    return sorted(machines.values(), key=lambda machine: next((run for run, host in hosts.items() if host == machine["host"]), 0))


def _time(at_ms: int | None) -> str | None:
    return None if at_ms is None else f"{utc(at_ms):%Y-%m-%dT%H:%M:%SZ}"
