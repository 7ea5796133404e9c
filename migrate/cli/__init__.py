"""The command `pacs-migrate`: parse, call, print. No logic, no SQL, no DICOM."""

from __future__ import annotations

import os
import sqlite3
import traceback

import click

from migrate import __version__
from migrate.cli import deciding, listing, looking, moving, probing, proving, recovering, signing, starting, verifying
from migrate.cli.frame import EXIT_CODES, say_error
from migrate.cli.streams import keep_streams
from migrate.errors import DiskFailing, PacsMigrateError
from migrate.host import bound_heaps
from migrate.staging.area import local_error


class _Ordered(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_Ordered, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="pacs-migrate")
def cli() -> None:
    """Move every image of an old PACS into object storage, resumably, and prove that nothing is missing."""


for command in (starting.demo, starting.init, looking.check, probing.probe, moving.enumerate_, moving.run, looking.status, verifying.verify, verifying.double_check,
                deciding.retry, deciding.accept, deciding.revoke, deciding.exclude, deciding.readdress, listing.reconcile, looking.report, proving.audit, proving.prove, proving.restore_manifest, recovering.rebuild,
                signing.sign, signing.verify_signature, starting.practice_pacs):  # fmt: skip
    cli.add_command(command)


def called(words: list[str] | None = None) -> int:
    """Run the command (of `words`, else of the command line) and return its exit code; an error of ours or of a peer is one
    sentence and a hint, never a traceback."""
    try:
        result = cli.main(words, prog_name="pacs-migrate", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except PacsMigrateError as error:
        say_error(error)
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return 2
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        return 130
    except OSError as error:  # of this machine, at a place where nobody expects one
        failing = local_error(error, "working")
        say_error(failing)
        return failing.exit_code
    except sqlite3.OperationalError as error:  # the disk under the manifest, at a look at it
        if error.sqlite_errorcode == sqlite3.SQLITE_ERROR:  # no disk's fault: a statement of ours is wrong
            raise
        broken = DiskFailing(f"The manifest cannot be read: {error}.")
        say_error(broken)
        return broken.exit_code


def main() -> None:
    """The command of a shell."""
    keep_streams()
    bound_heaps()
    try:
        code = called()
    except Exception:  # a defect of ours
        traceback.print_exc()
        code = 1
    os._exit(code)  # a worker stuck in a peer must not keep the process alive; all promises are on the disk
