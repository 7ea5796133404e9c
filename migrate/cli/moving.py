"""Verbs that take the manifest's lock and move something: enumerate, run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NoReturn

import click

from migrate.cli.frame import load, terminal_width, verb
from migrate.cli.listing import add_list
from migrate.cli.progress import Progress
from migrate.config import Config
from migrate.counted import counted
from migrate.errors import PacsMigrateError, UsageError
from migrate.jobs.migration import Migration, Watch
from migrate.manifest.file import open_reader
from migrate.model import WindowState
from migrate.reports import status as status_of
from migrate.reports import status_text, what_is_open

_LONGEST_MIN = 60 * 24 * 365


def run_migration(config: Config) -> int:
    """The whole job with progress; 0 if it is complete, else 3."""
    with Migration(config, "run") as migration, Progress(status_of(migration.queue.connection)) as progress:
        migration.progress, progress.known = progress, lambda: migration.manifest.studies_found
        migration.run()
        migration.exit_code = 0 if status_of(migration.queue.connection)["complete"] else 3
        return migration.exit_code


@verb("run", json=True)
@click.option("--watch", "watching", is_flag=True, help="Afterwards sweep again and again, following new and changed studies, until a signal.")
@click.option("--every", "every_min", type=float, metavar="MINUTES", help="With --watch: how long to wait between two rounds; default: 60.")  # fmt: skip
def run(config_path: Path, as_json: bool, watching: bool, every_min: float | None) -> int:
    """Do the whole job; starting and resuming are the same.

    Enumerate, plan, retrieve, upload and verify until nothing is left. Ctrl-C stops it without loss.
    """
    config = load(config_path)
    if every_min is not None and not watching:
        raise UsageError("--every belongs to --watch.", hint="Give --watch too, or leave --every out.")
    if every_min is not None and not 0 < every_min <= _LONGEST_MIN:
        raise UsageError(f"--every takes more than 0 minutes and at most {_LONGEST_MIN:,}, not {every_min:g}.", hint="For example --every 30.")
    if watching:
        watch_pacs(config, 60.0 * (every_min or 60.0))
    code = run_migration(config)
    reader = open_reader(config.manifest)
    document = status_of(reader)
    text = json.dumps(document, indent=1) if as_json else status_text(document, why=what_is_open(reader, document["studies"]), width=terminal_width())
    reader.close()
    click.echo(text)
    return code


def watch_pacs(config: Config, every_s: float) -> NoReturn:
    """Rounds of the whole job until a signal or an error that waiting cannot mend; each round is told on stderr."""
    with Migration(config, "run") as migration, Progress(status_of(migration.queue.connection)) as progress:

        def after_round(error: PacsMigrateError | None) -> int:
            document = status_of(migration.queue.connection)
            counts = ", ".join(f"{count} {state}" for state, count in document["studies"].items() if count)
            said = f"{error}" if error else "complete." if document["complete"] else "not complete."
            click.echo(f"Round ended: {said} Studies: {counts or 'none'}. The next round begins in {every_s / 60:g} minutes.", err=True)
            return error.exit_code if error else 0 if document["complete"] else 3

        migration.progress, progress.known = progress, lambda: migration.manifest.studies_found
        migration.run(watch=Watch(every_s, after_round))
    raise AssertionError("a watch ends by an error or a signal only")


@verb("enumerate", json=True)
@click.option("--list", "list_path", type=click.Path(path_type=Path, dir_okay=False),
              help="Instead of sweeping, ask for the studies that this file names by Study Instance UID, AccessionNumber or PatientID.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="With --list: write what became of every line, as CSV.")
def enumerate_(config_path: Path, as_json: bool, list_path: Path | None, out: Path | None) -> int:
    """Ask the PACS what it holds, or for what a list names.

    Sweeps it by C-FIND into the manifest; moves nothing.
    """
    config = load(config_path)
    if list_path is not None:
        return add_list(config, list_path, out, as_json)
    if out is not None:
        raise UsageError("--out belongs to --list.", hint="Give --list FILE too, or leave --out out.")
    with Migration(config, "enumerate") as migration, Progress() as progress:
        migration.progress, progress.known = progress, lambda: migration.manifest.studies_found
        migration.run(only_enumerate=True)
        rows = migration.queue.windows(migration.queue.last_sweep())
        bad = [row for row in rows if (row["state"] == WindowState.PLANNED or row["blocks"]) and not row["accepted_by"]]
        found = status_of(migration.queue.connection)["studies"]
        migration.exit_code = 3 if bad else 0
        if as_json:
            click.echo(json.dumps({"studies": found, "windows": len(rows), "open_windows": [f"w{row['id']}" for row in bad]}, indent=1))
        else:
            click.echo(f"{counted(sum(found.values()), 'study')} known; {counted(len(rows), 'window')} asked, {len(bad):,} without a whole answer.")
        return migration.exit_code
