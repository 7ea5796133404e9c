"""The verb for the day on which the manifest is lost: rebuild."""

from __future__ import annotations

import json
from pathlib import Path

import click

from migrate.cli.frame import load, verb
from migrate.counted import counted
from migrate.jobs.rebuild import rebuild as make_anew


@verb("rebuild", json=True)
@click.option("--ask-again", is_flag=True, help="Have the next run ask the PACS for every study as a whole once more.")
def rebuild(config_path: Path, as_json: bool, ask_again: bool) -> int:
    """Make a lost manifest anew from the destination.

    Its objects are read and hashed, each, and what lies in staging is taken, too; then `run` goes on.
    """
    result = make_anew(load(config_path), ask_again=ask_again)
    document = result.document()
    if as_json:
        click.echo(json.dumps(document, indent=1))
    else:
        click.echo(f"On record again: {counted(result.objects, 'proven object')}, {counted(result.staged, 'staged file')}, {counted(result.quarantined, 'quarantined file')}.")
        for key in result.strangers:
            click.echo(f"not ours: {key}")
        click.echo("Not known any more:")
        for sentence in document["unknown"]:
            click.echo(f"  {sentence}")
        click.echo("Now `pacs-migrate run` sweeps the PACS and asks for what is missing.")
    return 3 if result.strangers else 0
