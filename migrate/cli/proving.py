"""Verbs that prove: audit and prove, which only read and take no lock; and restore-manifest."""

from __future__ import annotations

import json
from pathlib import Path

import click

from migrate.cli.frame import load, verb
from migrate.config import Config
from migrate.counted import counted
from migrate.destinations import open_destination
from migrate.errors import LocalError, UsageError
from migrate.jobs import anchors
from migrate.jobs.anchors import Kept
from migrate.jobs.migration import Migration
from migrate.manifest.anchored import RESTORED, compare, head_of, restored_detail
from migrate.manifest.audit import Audited, Trouble
from migrate.manifest.audit import audit as audited
from migrate.manifest.file import compare_identity, open_reader
from migrate.manifest.roots import inclusion_proofs
from migrate.reports import one_moment


@verb("audit", json=True)
@click.option("--offline", is_flag=True, help="Leave the anchors at the destination out: then a manifest whose end was cut off looks whole.")
@click.option("--signers", type=click.Path(path_type=Path, dir_okay=False, exists=True), help="Who may sign anchors: lines as in ssh-keygen(1), ALLOWED SIGNERS.")
def audit(config_path: Path, as_json: bool, offline: bool, signers: Path | None) -> int:
    """Find out whether anybody has changed the manifest.

    Computes every seal again and compares it with the rows, and with the anchors at the destination and their signatures. Ends with 3 if something does not hold, and names each place.
    """
    if offline and signers is not None:
        raise UsageError("--signers is for anchors, which --offline leaves out.", hint="Give one of them.")
    config = load(config_path)
    found, notes, compared = _audited(config, offline=offline, signers=signers)
    if as_json:
        document = {
            "holds": not found.troubles, "seals": found.seals, "head": found.head.hex(), "events": found.events, "studies": found.studies,
            "anchors": compared, "instances": found.instances, "proven": found.root.instances, "root": found.root.sha256.hex(),
            "troubles": [{"place": each.place, "what": each.what} for each in found.troubles], "notes": notes,
        }  # fmt: skip
        click.echo(json.dumps(document, indent=1))
    else:
        for each in found.troubles:
            click.echo(f"WRONG: {each}")
        for note in notes:
            click.echo(note)
        click.echo(f"{counted(found.seals, 'seal')} over {counted(found.events, 'event')}, {counted(found.studies, 'study')} and "
                   f"{counted(found.instances, 'instance')}, {found.root.instances:,} of them proven; {counted(compared, 'anchor')} compared.")  # fmt: skip
        click.echo(f"Last seal:   {found.head.hex()}\nMerkle root: {found.root.sha256.hex()}")
        troubles = counted(len(found.troubles), "place is", "places are")
        click.echo(f"{troubles} not as sealed." if found.troubles else "Everything holds.")
    return 3 if found.troubles else 0


def _audited(config: Config, *, offline: bool, signers: Path | None) -> tuple[Audited, list[str], int]:
    """What the audit finds, what else a reader should know, and how many anchors were compared."""
    kept: list[Kept] = []
    reader = open_reader(config.manifest)
    try:
        if not offline:  # before the manifest is read: a run may go on, and its next anchor would tell of more than was read
            destination = open_destination(config.destination)
            try:
                compare_identity(reader, "destination", destination.identity)
                kept = anchors.read_all(config, destination)
            except LocalError as error:
                raise type(error)(str(error), hint=f"{error.hint} `audit --offline` writes nothing, and leaves the anchors out.") from error
            finally:
                destination.close()
        signed = anchors.check_signatures(kept, config.name, config.manifest, signers)
        found = audited(reader, config.destination.prefix)
        anchored, odd = anchors.told(kept, config.name)
        if offline:
            return found, ["The anchors at the destination were left out: whether the manifest's end was cut off is not known."], 0
        troubles, notes = compare(reader, anchored, found.root)
        found.troubles += [*troubles, *(Trouble(f"anchor {name}", "is not as it was written") for name in odd), *signed[0]]
        return found, notes + signed[1], len(anchored)
    finally:
        reader.close()


@verb("prove")
@click.argument("sop_uid", metavar="SOP_UID")
def prove(config_path: Path, sop_uid: str) -> int:
    """Prove that one image is under the Merkle root.

    Prints JSON in which nothing of other images but hashes is. Ends with 3 if nothing is proven under this SOP Instance UID.
    """
    config = load(config_path)
    reader = open_reader(config.manifest)
    try:
        with one_moment(reader):
            head = head_of(reader)
            proofs = inclusion_proofs(reader, sop_uid, config.destination.prefix)
    finally:
        reader.close()
    if not proofs or head is None:
        click.echo("Nothing is proven under this SOP Instance UID.", err=True)
        return 3
    click.echo(json.dumps({"migration": config.name, "seal": head.number, "head": head.sha256.hex(), "proofs": proofs}, indent=1))
    return 0


@verb("restore-manifest")
def restore_manifest(config_path: Path) -> int:
    """Bring the manifest back from the destination.

    For the day after a disk has died: the newest copy comes back, and `run` goes on from there. The copy is checked against its anchor. Nothing is written where a manifest is. What was lost since is on record and in `audit`.
    """
    config = load(config_path)
    destination = open_destination(config.destination)
    try:
        head, lost, spoilt = anchors.restore(config, destination)
    finally:
        destination.close()
    for each in spoilt:
        click.echo(f"Passed over: {each}", err=True)
    with Migration(config, "restore-manifest", create=False) as migration:
        migration.manifest.log(RESTORED, restored_detail(head, lost))
        migration.exit_code = 0
    click.echo(f"Restored to seal {head.number}: {config.manifest}")
    if lost:
        click.echo(f"{counted(len(lost), 'anchor tells', 'anchors tell')} of work that was lost with the disk; `run` finds at the destination what was stored since.")
    return 0
