"""Verbs that only look: check, status, report. They never take the manifest's lock."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click

from migrate.cli.frame import in_columns, load, terminal_width, verb
from migrate.errors import UsageError
from migrate.jobs.preflight import check as preflight
from migrate.manifest.file import open_reader
from migrate.reports import coverage, coverage_text, one_moment, status_text, what_is_open, write_dossier, write_report
from migrate.reports import status as status_of


@verb("check", json=True)
def check(config_path: Path, as_json: bool) -> int:
    """Preflight: PACS, receiver, destination, this machine.

    Each finding is ok, warn or fail, with what to do. Ends with 0 if none fails, else with 2 (configuration, or a manifest that does not belong to it), 20, 21 or 22 by the first part that does; with 11 while a run is active.
    """
    findings, code = preflight(load(config_path))
    if as_json:
        shown = [
            {key: value for key, value in dataclasses.asdict(finding).items() if key != "part"} for finding in findings
        ]
        click.echo(json.dumps({"findings": shown}, indent=1))
    else:
        rows = [(finding.level.upper(), finding.name, finding.detail, finding.hint) for finding in findings]
        click.echo(in_columns(rows, ("", "what", "finding", "what to do"), narrow=(None, 18)))
    return code


@verb("status", json=True)
def status(config_path: Path, as_json: bool) -> int:
    """Show counts, pace, time left, what is parked and why.

    May be asked at any time, also while a run is going on. Ends with 0 whenever the manifest can be read.
    """
    reader = open_reader(load(config_path).manifest)
    with one_moment(reader):
        document = status_of(reader)
        text = "" if as_json else status_text(document, coverage_text(coverage(reader), terminal_width()), what_is_open(reader, document["studies"]), terminal_width())
    click.echo(json.dumps(document, indent=1) if as_json else text)
    return 0


@verb("report", json=True)
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Folder; default: report/ beside the configuration."
)
@click.option("--dossier", type=click.Path(path_type=Path), help="Write the whole dossier into this new folder instead.")
@click.option("--parquet", is_flag=True, help="With --dossier: instances.parquet, too (pip install 'pacs-migrate[parquet]').")
def report(config_path: Path, as_json: bool, out: Path | None, dossier: Path | None, parquet: bool) -> int:
    """Write the completeness report, or the dossier.

    The report is report.html, report.json, studies.csv and exceptions.csv. With --dossier also every instance and event, checksum lists for other tools, and a program that checks all of it.
    """
    config = load(config_path)
    if out and dossier:
        raise UsageError("--out and --dossier were both given.", hint="The dossier holds the report's files, too.")
    if parquet and not dossier:
        raise UsageError("--parquet belongs to a dossier.", hint="Give --dossier DIR, too.")
    reader = open_reader(config.manifest)
    if dossier:
        page = write_dossier(reader, dossier, prefix=config.destination.prefix, parquet=parquet)
    else:
        page = write_report(reader, out or config.path.parent / "report")
    click.echo(page.with_name("report.json").read_text(encoding="utf-8") if as_json else f"{'Dossier' if dossier else 'Report'}: {page}")
    return 0
