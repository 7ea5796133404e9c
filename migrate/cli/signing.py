"""Verbs for a dossier's signature: sign, verify-signature. They need neither manifest nor configuration."""

from __future__ import annotations

from pathlib import Path

import click

from migrate.cli.frame import without_config
from migrate.errors import UsageError
from migrate.evidence import signing

_FOLDER = click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
_FILE = click.Path(path_type=Path, dir_okay=False)


@without_config("sign")
@click.option("--key", type=_FILE, help="SSH key: a private key, or a public key whose private half the SSH agent holds.")
@click.option("--time-stamp-request", is_flag=True, help="Also write dossier.tsq, for a time stamping authority (RFC 3161).")
@click.option("--time-stamp-answer", type=_FILE, help="Check the authority's answer and keep it as dossier.tsr.")
@click.option("--time-stamp-ca", type=_FILE, help="The authority's certificates (PEM), for the answer.")
@_FOLDER
def sign(folder: Path, key: Path | None, time_stamp_request: bool, time_stamp_answer: Path | None, time_stamp_ca: Path | None) -> int:
    """Sign a dossier with an SSH key.

    Writes dossier.sig over contents.sha256, as `ssh-keygen -Y sign -n pacs-migrate` does.
    """
    if not (key or time_stamp_request or time_stamp_answer):
        raise UsageError("There is nothing to do.", hint="Give --key, or --time-stamp-request or --time-stamp-answer for a signed dossier.")
    if bool(time_stamp_answer) != bool(time_stamp_ca):
        raise UsageError("--time-stamp-answer and --time-stamp-ca belong together.", hint="The answer is checked before it is kept.")
    if key:
        click.echo(f"Signed: {signing.sign(folder, key)}")
    if time_stamp_request:
        click.echo(f"Request: {signing.time_stamp_request(folder)}")
    if time_stamp_answer and time_stamp_ca:
        click.echo(f"Time stamp: {signing.time_stamp_answer(folder, time_stamp_answer, time_stamp_ca)}")
    return 0


@without_config("verify-signature")
@click.option("--signers", type=_FILE, help="Who may sign: lines as in ssh-keygen(1), ALLOWED SIGNERS.")
@click.option("--time-stamp-ca", type=_FILE, help="Check dossier.tsr, too: the authority's certificates (PEM).")
@_FOLDER
def verify_signature(folder: Path, signers: Path | None, time_stamp_ca: Path | None) -> int:
    """Check a dossier's files and signature.

    Ends with 3 if something does not hold, or if --signers does not tell whose key it is."""
    checked = signing.verify(folder, signers, time_stamp_ca)
    for what in checked.wrong:
        click.echo(f"WRONG: {what}")
    if checked.time_stamp:
        click.echo(f"The signature existed on {checked.time_stamp}, says the time stamping authority.")
    if checked.wrong:
        return 3
    if checked.signer is None:
        click.echo(f"The files are as they were signed, by {checked.key}. Whose key that is, was not checked: give --signers.")
        return 3
    click.echo(f"The files are as {checked.signer} signed them, with {checked.key}.")
    return 0
