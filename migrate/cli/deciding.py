"""Verbs for what a person decides: retry, accept."""

from __future__ import annotations

import re
from pathlib import Path

import click

from migrate.cli.frame import load, verb
from migrate.errors import UsageError
from migrate.manifest import decisions
from migrate.migration import Migration


@verb("retry")
@click.option("--error", metavar="CLASS", help="Only what is parked with this error class.")
@click.argument("studies", nargs=-1, metavar="[STUDY...]")
def retry(config_path: Path, error: str | None, studies: tuple[str, ...]) -> int:
    """Put parked work back; the next `run` tries it again."""
    with Migration(load(config_path), "retry", create=False) as migration:
        count = decisions.retry(migration.manifest, error, studies)
        migration.exit_code = 0
    click.echo(f"{count} studies put back.")
    return 0


@verb("accept")
@click.option("--reason", required=True, help="Why this cannot be migrated.")
@click.option("--by", required=True, help="Who says so.")
@click.option("--window", metavar="W", multiple=True, help="A window that blocks, by its name (w12).")
@click.argument("studies", nargs=-1, metavar="[STUDY...]")
def accept(config_path: Path, reason: str, by: str, window: tuple[str, ...], studies: tuple[str, ...]) -> int:
    """Sign an exception: parked studies, windows (--window w12) or quarantined files (q3) that stay as they are."""
    if not reason.strip() or not by.strip():
        raise UsageError("An exception needs a reason and a name.", hint="Give --reason and --by.")
    if not studies and not window:
        raise UsageError(
            "Nothing to accept was named.", hint="Name studies by UID, windows by --window, quarantined files as q3."
        )
    quarantined = [name for name in studies if re.fullmatch(r"q\d+", name)]
    with Migration(load(config_path), "accept", create=False) as migration:
        done = decisions.accept(migration.manifest, [uid for uid in studies if uid not in quarantined], reason, by)
        for name in window:
            decisions.accept_window(migration.manifest, name, reason, by)
        for name in quarantined:
            decisions.accept_quarantined(migration.manifest, name, reason, by)
        migration.exit_code = 0
    click.echo(f"{len(done) + len(window) + len(quarantined)} exceptions accepted by {by}.")
    return 0
