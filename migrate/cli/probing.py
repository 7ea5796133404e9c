"""The verb that asks a PACS for its habits: probe."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from migrate.cli.frame import in_columns, load, verb
from migrate.errors import UsageError
from migrate.jobs.habits import learn
from migrate.reports.habits import habits_page, questions, words


@verb("probe", json=True)
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Folder for probe.md; default: report/ beside the configuration."
)
def probe(config_path: Path, as_json: bool, out: Path | None) -> int:
    """Ask the PACS for its habits, in less than two minutes.

    They go on record, and into probe.md with questions to the vendor.
    """
    config = load(config_path)
    folder = out or config.path.parent / "report"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"The folder {folder} cannot be made: {error.strerror}.", hint="Name another one with --out.") from error
    habits = learn(config)
    page = folder / "probe.md"
    try:
        page.write_text(habits_page(habits, config.source_identity, time.strftime("%Y-%m-%d", time.gmtime())), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{page} cannot be written: {error.strerror}.", hint="Name another folder with --out.") from error
    if as_json:
        shown = [{"name": habit.name, "value": habit.value, "detail": habit.detail, "effect": words(habit).effect} for habit in habits]
        click.echo(json.dumps({"habits": shown, "questions": questions(habits)}, indent=1))
    else:
        rows = [(habit.name, habit.value, habit.detail, words(habit).effect) for habit in habits]
        click.echo(in_columns(rows, ("habit", "value", "finding", "what we do"), narrow=(None, 24)))
        click.echo(f"Page, with questions to the vendor: {page}")
    return 0
