"""Verbs about lists of studies that somebody else made: enumerate --list, reconcile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from migrate.cli.frame import load, verb
from migrate.cli.progress import Progress
from migrate.config import Config
from migrate.counted import counted
from migrate.jobs.migration import Migration
from migrate.jobs.reconcile import FAILED, INVALID, NOT_FOUND, ONLY_MANIFEST, Comparison, Line, Result, add_listed, compare
from migrate.lists.studies import read_list

_SHOWN = 50


def add_list(config: Config, path: Path, out: Path | None, as_json: bool) -> int:
    """Ask the PACS for what a list names and say what came of it; 0 if all of it was found, else 3."""
    listed = read_list(path)
    with Migration(config, "enumerate") as migration, Progress() as progress:
        migration.progress, progress.known = progress, lambda: migration.manifest.studies_found
        addition = add_listed(migration, listed)
        migration.exit_code = 0 if addition.agrees else 3
    if out:
        addition.write_csv(out)
    document = addition.document()
    if as_json:
        click.echo(json.dumps(document, indent=1))
        return migration.exit_code
    click.echo(
        f"{_values(document)}: {document['found']:,} found, with {counted(document['studies'], 'study')}; "
        f"{document['added']:,} added, {document['excluded']:,} excluded."
    )
    _say_troubles(addition)
    return migration.exit_code


@verb("reconcile", json=True)
@click.option("--csv", "csv_path", type=click.Path(path_type=Path, dir_okay=False), help="Write every study of the comparison there.")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
def reconcile(config_path: Path, as_json: bool, csv_path: Path | None, file: Path) -> int:
    """Compare a list of studies with the manifest.

    In both directions, by Study Instance UIDs, accession numbers or patient IDs. Only reads. Exit 0 if both name the same studies, and each is migrated, accepted or excluded; else 3.
    """
    config = load(config_path)
    comparison = compare(config, read_list(file))
    if csv_path:
        comparison.write_csv(csv_path)
    if as_json:
        click.echo(json.dumps(comparison.document(), indent=1))
    else:
        _say(comparison)
    return 0 if comparison.agrees else 3


def _say(comparison: Comparison) -> None:
    document = comparison.document()
    states = ", ".join(f"{count} {state}" for state, count in document["states"].items() if count)
    click.echo(f"{_values(document)}.")
    click.echo(f"{counted(document['both'], 'study')} on the list and in the manifest{': ' + states if states else ''}.")
    _say_lines("on the list, and not migrated", comparison.open())
    _say_lines("on the list, not in the manifest", comparison.of("not in the manifest"))
    _say_lines("in the manifest, not on the list", comparison.of(ONLY_MANIFEST))
    _say_troubles(comparison)
    click.echo("EQUAL: every study of the list is in the manifest and settled, and no other." if comparison.agrees else "DIFFERENT.")


def _values(document: dict[str, Any]) -> str:
    return f"{counted(document['values'], 'value')} of {document['key']} on {counted(document['lines'], 'line')}"


def _say_troubles(result: Result) -> None:
    _say_lines("not found", result.of(NOT_FOUND))
    _say_lines("no whole answer, so nothing is known", result.of(FAILED))
    _say_lines("no value that can be asked for", result.of(INVALID))


def _say_lines(title: str, lines: list[Line]) -> None:
    """A line each, fifty at most; files and --json hold all of them."""
    if not lines:
        return
    click.echo(f"{title}: {len(lines)}")
    for line in lines[:_SHOWN]:
        where = f"line {line.line}" if line.line is not None else None
        uid = line.study or line.value
        parts = [part for part in (where, uid, line.state, line.error, line.detail) if part]
        click.echo("  " + ", ".join(parts))
    if len(lines) > _SHOWN:
        click.echo(f"  ... and {len(lines) - _SHOWN} more")
