"""Verbs to begin with: demo, init, practice-pacs."""

from __future__ import annotations

import errno
import shutil
import signal
import socket
import sys
import tempfile
import threading
from pathlib import Path

import click

from migrate.cli.frame import load, terminal_width, without_config
from migrate.cli.moving import run_migration
from migrate.config import EXAMPLE
from migrate.counted import counted
from migrate.errors import Interrupted, PortInUse, UsageError
from migrate.host import STOP_SIGNALS, reason
from migrate.manifest.file import open_reader
from migrate.practice.faults import DEFAULTS, FAULTS, parse_fault
from migrate.practice.pacs import PracticePacs
from migrate.practice.studies import Archive
from migrate.reports import status as status_of
from migrate.reports import status_text, what_is_open, write_report

_DEMO = """# The practice PACS of this demo again, for verbs that ask it:
# pacs-migrate practice-pacs --port {pacs} --studies {studies} --move-to PACSMIGRATE=127.0.0.1:{receiver}

[migration]
name = "demo"
manifest = "manifests/demo.db"
staging = "staging"

[source]
host = "127.0.0.1"
port = {pacs}
ae_title = "PRACTICE"
settle_s = 1

[receiver]
ae_title = "PACSMIGRATE"
host = "127.0.0.1"
port = {receiver}

[destination]
kind = "folder"
path = "bucket"
"""


@without_config("demo")
@click.option("--keep", type=click.Path(path_type=Path, file_okay=False), help="Keep everything in this folder.")
@click.option("--studies", type=click.IntRange(1, 100_000), default=20, show_default=True, help="How many the practice PACS has.")
def demo(keep: Path | None, studies: int) -> int:
    """Migrate a practice PACS into a folder: the whole job.

    Needs nothing but this package: no PACS, no bucket, no configuration. Ends with the path of the report, which is all that stays without --keep.
    """
    folder = (keep or Path(tempfile.mkdtemp(prefix="pacs-migrate-demo-"))).resolve()
    path = folder / "migrate.toml"
    if path.exists():
        raise UsageError(f"{path} exists already.", hint="Choose a new folder, or remove the old one.")
    folder.mkdir(parents=True, exist_ok=True)
    receiver_port = _free_port()
    with PracticePacs(Archive(studies), destinations={"PACSMIGRATE": ("127.0.0.1", receiver_port)}) as pacs:
        path.write_text(_DEMO.format(pacs=pacs.port, receiver=receiver_port, studies=studies), encoding="utf-8")
        config = load(path)
        click.echo(f"A practice PACS with {counted(studies, 'synthetic study')} is migrated into {folder / 'bucket'}.", err=True)
        try:
            code = run_migration(config)
        except Interrupted as error:
            raise Interrupted(str(error), hint=f"The practice PACS ends with its demo: remove {folder}, and begin anew.") from error
    reader = open_reader(config.manifest)
    document = status_of(reader)
    click.echo(status_text(document, why=what_is_open(reader, document["studies"]), width=terminal_width()))
    if keep is not None:
        click.echo(f"Every other verb can be tried with --config {path}; its first lines say how to start this practice PACS again.")
    page = write_report(reader, folder / "report")
    reader.close()
    if keep is None and code == 0:  # nobody looks for the rest of it in a temporary folder
        for each in folder.iterdir():
            if each != page.parent:
                shutil.rmtree(each) if each.is_dir() else each.unlink()
    click.echo(f"Report: {page}")
    return code


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@without_config("init")
@click.argument("path", type=click.Path(path_type=Path, dir_okay=False), default=Path("migrate.toml"))
def init(path: Path) -> int:
    """Write a commented configuration to PATH.

    The default is migrate.toml. Never over an existing file.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(EXAMPLE)
    except FileExistsError as error:
        raise UsageError(f"{error.filename} exists already; it was left as it is.", hint="Name another file.") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):  # what is half written would be in the way of the next try
            path.unlink(missing_ok=True)
        raise UsageError(f"{path} cannot be written: {error.strerror}.", hint="Name another place.") from error
    click.echo(f"Wrote {path}. Fill in [source] and [destination], then run `pacs-migrate check`.")
    return 0


def _fault_line(name: str, what: str) -> str:
    return f"  {name if name not in DEFAULTS else f'{name}={DEFAULTS[name]}':24} {what}"


_FAULT_HELP = "\n\n\b\nFaults, with the value that is taken where none is given:\n" + "\n".join(
    _fault_line(name, what) for name, what in sorted(FAULTS.items())
)


@without_config("practice-pacs", help_first=_FAULT_HELP + "\n\n")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=11110, show_default=True, help="0 chooses a free one.")
@click.option("--ae-title", default="PRACTICE", show_default=True, help="The AE title of the practice PACS.")
@click.option("--studies", type=click.IntRange(0, 10_000_000), default=20, show_default=True, help="How many it has.")
@click.option("--seed", type=click.IntRange(0, 9999), default=1, show_default=True, help="Another number, another archive.")
@click.option("--move-to", "move_to", multiple=True, metavar="AE=HOST:PORT", help="A C-MOVE destination; repeatable.")
@click.option("--fault", "faults", multiple=True, metavar="NAME[=VALUE][@STUDY]", help="A habit; repeatable. Those about sending can strike one study alone, by its number.")
def practice_pacs(host: str, port: int, ae_title: str, studies: int, seed: int, move_to: tuple[str, ...], faults: tuple[str, ...]) -> int:
    """Run the practice PACS alone, with faults to choose.

    A PACS with a synthetic archive, for rehearsals. SIGINT or SIGTERM ends it.
    """
    destinations = dict(_destination(text) for text in move_to)
    stop = threading.Event()
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: stop.set())
    try:
        if strays := [fault for fault in faults if (parse_fault(fault)[2] or 0) >= max(studies, 1)]:
            raise ValueError(f"there is no such study for {', '.join(strays)}: they count from 0 to {studies - 1}")
        pacs = PracticePacs(Archive(studies, seed), ae_title=ae_title, host=host, port=port, destinations=destinations, faults=faults)
    except ValueError as error:
        raise UsageError(f"--fault: {error}.", hint="`practice-pacs --help` lists the faults and their values.") from error
    try:
        pacs.start()
    except OSError as error:
        raise PortInUse(f"Port {port} on {host} cannot be used: {reason(error)}.", hint="Choose another --port.") from error
    click.echo(f"{ae_title} listens on {host}:{pacs.port} with {counted(studies, 'study')}.")
    sys.stdout.flush()
    stop.wait()
    pacs.close()
    return 0


def _destination(text: str) -> tuple[str, tuple[str, int]]:
    title, _, address = text.partition("=")
    host, _, port = address.rpartition(":")
    if not title or not host or not port.isdigit():
        raise UsageError(f"--move-to takes AE=HOST:PORT, not {text}.", hint="For example --move-to PACSMIGRATE=127.0.0.1:11112.")
    return title, (host, int(port))
