"""Verbs for what a person decides: retry, accept, revoke, exclude, readdress."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import click

from migrate.cli.frame import load, verb
from migrate.config import Config
from migrate.counted import counted
from migrate.errors import UsageError
from migrate.jobs.migration import Migration
from migrate.jobs.readdress import readdress as readdressed
from migrate.jobs.reconcile import chosen_studies
from migrate.lists.exceptions import read_exemptions, refuse
from migrate.lists.studies import read_list
from migrate.manifest import decisions
from migrate.reports import status as status_of


@verb("retry")
@click.option("--error", metavar="CLASS", help="Only what is parked with this error class.")
@click.argument("studies", nargs=-1, metavar="[STUDY...]")
def retry(config_path: Path, error: str | None, studies: tuple[str, ...]) -> int:
    """Put parked studies back for the next `run`.

    All of them, or those that are named, or those with one error.
    """
    with Migration(load(config_path), "retry", create=False) as migration:
        count = decisions.retry(migration.manifest, error, studies)
        parked = Counter(str(study["error"]) for study in status_of(migration.queue.connection)["parked"]) if error and not count else {}
        migration.exit_code = 0
    others = f", but with {', '.join(f'{name} ({number:,})' for name, number in sorted(parked.items()))}" if parked else ""
    click.echo(f"{counted(count, 'study')} put back." if count else f"Nothing is parked{f' with the error {error}{others}' if error else ''}.")
    return 0


@verb("accept")
@click.option("--reason", default="", help="Why this cannot be migrated. With --file: where the list does not say.")
@click.option("--code", type=click.Choice(list(decisions.REASONS)), default="other", show_default=True, help="What kind of reason that is.")
@click.option("--by", default="", help="Who says so.")
@click.option("--role", default="", help="As what: head of radiology, data protection officer ...")
@click.option("--window", metavar="W", multiple=True, help="The same as naming it (w12) like a study.")
@click.option("--instance", metavar="SOP_UID", multiple=True, help="Of the one study that is named, only this instance.")
@click.option("--file", "list_path", type=click.Path(path_type=Path, dir_okay=False), help="CSV with columns study, instance, code, reason, by, role: all of it, or nothing.")  # fmt: skip
@click.argument("studies", nargs=-1, metavar="[STUDY...]")
def accept(config_path: Path, reason: str, code: str, by: str, role: str, window: tuple[str, ...], instance: tuple[str, ...],
           list_path: Path | None, studies: tuple[str, ...]) -> int:  # fmt: skip
    """Sign exceptions for what cannot be migrated.

    Parked studies by UID, windows (w12) or quarantined files (q3) that stay as they are: all that is named, or nothing.
    """
    if list_path is not None:
        if studies or window or instance:
            raise UsageError("--file stands alone.", hint="Put the studies into the list, or leave --file out.")
        return _accept_list(load(config_path), list_path, reason, by, role, code)
    signature = decisions.Signature(reason, by, role, code)
    if not studies and not window:
        raise UsageError("Nothing to accept was named.", hint="Name studies by UID, windows and quarantined files as w12 and q3.")
    names = [name for name in studies if re.fullmatch(r"[wq]\d+", name)]
    uids = [uid for uid in studies if uid not in names]
    if instance and len(uids) != 1:
        raise UsageError("--instance belongs to one study.", hint="Name the study that it is an instance of, and no other.")
    if not all(re.fullmatch(r"w\d+", name) for name in window):
        raise UsageError("--window takes a name like w12.", hint="The report lists the names.")
    wanted = [decisions.Exempted(uid, signature, sop) for uid in uids for sop in instance or (None,)]
    wanted += [decisions.Exempted(name, signature) for name in (*names, *window)]
    with Migration(load(config_path), "accept", create=False) as migration:
        decisions.accept_each(migration.manifest, wanted)
        migration.exit_code = 0
    click.echo(f"{counted(len(set(wanted)), 'exception')} accepted by {by}.")
    return 0


def _accept_list(config: Config, path: Path, reason: str, by: str, role: str, code: str) -> int:
    """All that a list names, or nothing; every mistake is told with its line."""
    rows = read_exemptions(path, reason=reason, by=by, role=role, code=code)
    wrong = {row.line: row.mistake for row in rows if row.exempted is None}
    sound = [(row.line, row.exempted) for row in rows if row.exempted is not None]
    wanted = [exempted for _, exempted in sound]
    with Migration(config, "accept", create=False) as migration:
        wrong |= {sound[number][0]: mistake for number, mistake in decisions.mistakes(migration.manifest, wanted).items()}
        refuse(path, wrong)
        decisions.accept_each(migration.manifest, wanted)
        migration.exit_code = 0
    click.echo(f"{counted(len(wanted), 'exception')} accepted.")
    return 0


@verb("revoke")
@click.option("--reason", required=True, help="Why it no longer holds.")
@click.option("--by", required=True, help="Who says so.")
@click.option("--role", default="", help="As what.")
@click.argument("names", nargs=-1, required=True, metavar="STUDY...")
def revoke(config_path: Path, reason: str, by: str, role: str, names: tuple[str, ...]) -> int:
    """Take signed exceptions back.

    Of studies, windows (w12) or quarantined files (q3); the next `run` tries those studies again.
    """
    decisions.Signature(reason, by, role)
    with Migration(load(config_path), "revoke", create=False) as migration:
        count = decisions.revoke(migration.manifest, names, reason, by, role=role)
        migration.exit_code = 0
    click.echo(f"{counted(count, 'exception')} taken back by {by}.")
    return 0


@verb("exclude")
@click.option("--reason", required=True, help="Why they are left out, or taken in again.")
@click.option("--by", required=True, help="Who says so.")
@click.option("--list", "list_path", type=click.Path(path_type=Path, dir_okay=False), help="All studies that this file names.")
@click.option("--undo", is_flag=True, help="Take excluded studies in again; the next `run` migrates them.")
@click.argument("studies", nargs=-1, metavar="[STUDY...]")
def exclude(config_path: Path, reason: str, by: str, list_path: Path | None, undo: bool, studies: tuple[str, ...]) -> int:
    """Leave studies out, on record by whom and why.

    Only what is not migrated yet can be left out.
    """
    if not reason.strip() or not by.strip():
        raise UsageError("An exclusion needs a reason and a name.", hint="Give --reason and --by.")
    if not studies and list_path is None:
        raise UsageError("No study was named.", hint="Name studies by UID, or give --list FILE.")
    config, listed = load(config_path), read_list(list_path) if list_path else None
    with Migration(config, "exclude", create=False) as migration:
        chosen = [*studies, *(chosen_studies(config, listed, migration.queue.connection) if listed else ())]
        decide = decisions.include if undo else decisions.exclude
        count = decide(migration.manifest, list(dict.fromkeys(chosen)), reason, by)
        migration.exit_code = 0
    click.echo(f"{counted(count, 'study')} {'taken in again' if undo else 'excluded'} by {by}.")
    return 0


@verb("readdress")
@click.option("--reason", required=True, help="Why it has another address.")
@click.option("--by", required=True, help="Who says so.")
@click.option("--role", default="", help="As what.")
def readdress(config_path: Path, reason: str, by: str, role: str) -> int:
    """Record that the PACS has another address.

    That of migrate.toml, once it has shown there studies that the manifest knows.
    """
    click.echo(f"On record: {readdressed(load(config_path), decisions.Signature(reason, by, role))}.")
    return 0
