"""Verbs that prove: audit, prove. They only read, and take no lock."""

from __future__ import annotations

import json
from pathlib import Path

import click

from migrate.cli.frame import load, verb
from migrate.manifest.audit import audit as audited
from migrate.manifest.file import open_reader
from migrate.manifest.sealed import inclusion_proofs


@verb("audit", json=True)
def audit(config_path: Path, as_json: bool) -> int:
    """Compute every seal of the manifest again and compare it with its rows. Ends with 3 if something does not hold."""
    config = load(config_path)
    reader = open_reader(config.manifest)
    try:
        found = audited(reader, config.destination.prefix)
    finally:
        reader.close()
    if as_json:
        document = {
            "holds": not found.troubles, "seals": found.seals, "head": found.head.hex(), "events": found.events, "studies": found.studies,
            "instances": found.instances, "proven": found.proven, "root": found.root.hex(),
            "troubles": [{"place": each.place, "what": each.what} for each in found.troubles],
        }  # fmt: skip
        click.echo(json.dumps(document, indent=1))
    else:
        for each in found.troubles:
            click.echo(f"WRONG: {each}")
        click.echo(f"{found.seals} seals over {found.events} events and {found.instances} instances of {found.studies} studies; "
                   f"{found.proven} are proven. Head {found.head.hex()}, Merkle root {found.root.hex()}.")  # fmt: skip
        click.echo(f"{len(found.troubles)} places are not as they were sealed." if found.troubles else "Everything holds.")
    return 3 if found.troubles else 0


@verb("prove")
@click.argument("sop_uid", metavar="SOP_UID")
def prove(config_path: Path, sop_uid: str) -> int:
    """Print as JSON that one image is under the migration's Merkle root; nothing of other images but hashes is in it.

    Ends with 3 if nothing is proven under this SOP Instance UID.
    """
    config = load(config_path)
    reader = open_reader(config.manifest)
    try:
        reader.execute("BEGIN")
        seal = reader.execute("SELECT id, lower(hex(sha256)) FROM seal ORDER BY id DESC LIMIT 1").fetchone()
        proofs = inclusion_proofs(reader, sop_uid, config.destination.prefix)
    finally:
        reader.close()
    if not proofs:
        click.echo("Nothing is proven under this SOP Instance UID.", err=True)
        return 3
    click.echo(json.dumps({"migration": config.name, "seal": seal[0], "head": seal[1], "proofs": proofs}, indent=1))
    return 0
