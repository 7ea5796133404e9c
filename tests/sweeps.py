"""Sweeps of a practice PACS in this process, and what they may claim."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from migrate import config
from migrate.jobs.migration import Migration
from migrate.practice.pacs import PracticePacs
from migrate.practice.studies import Archive
from tests import runs


@dataclass(frozen=True)
class Swept:
    """What a sweep found, what it says of itself, and what it cost."""

    found: frozenset[str]
    blocked: bool
    windows: int
    suspicions: tuple[str, ...]
    habits: dict[str, str]


def configure(folder: Path, pacs: PracticePacs, more: str = "", stall_s: float = 20) -> config.Config:
    """A configuration that asks this PACS."""
    path = runs.configure(folder, pacs.port, 1, source=f"stall_s = {stall_s}\n{more}", retry="attempts = 3\nfirst_wait_s = 0.001\nmax_wait_s = 0.002")
    return config.load(path)


def sweep(settings: config.Config) -> Swept:
    """One `enumerate`."""
    with Migration(settings, "enumerate") as migration:
        migration.run(only_enumerate=True)
        migration.exit_code = 0
        number = migration.queue.last_sweep()
        rows = migration.queue.windows(number)
        found = migration.queue.connection.execute("SELECT uid FROM study WHERE state <> 4")
        return Swept(
            frozenset(uid for (uid,) in found), any(row["blocks"] or row["state"] == 0 for row in rows), len(rows),
            tuple(row["suspicion"] for row in rows if row["suspicion"]), migration.queue.habits(),
        )  # fmt: skip


def sweep_with(folder: Path, archive: Archive, faults: Iterable[str]) -> tuple[Swept, PracticePacs]:
    """One `enumerate` of a PACS with these faults, and the PACS, which knows the truth."""
    with PracticePacs(archive, faults=tuple(faults)) as pacs:
        return sweep(configure(folder, pacs)), pacs
