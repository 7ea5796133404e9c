"""What every verb shares: options, exit codes in help, errors in words."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
from tabulate import tabulate

from migrate import config as configuration
from migrate.config import Config
from migrate.errors import Interrupted, PacsMigrateError

_NARROWEST = 12
F = TypeVar("F", bound=Callable[..., Any])

EXIT_CODES = """\b
Exit codes:
  0   complete, or done as asked
  2   usage or configuration
  3   finished, but something is parked or missing
  10  no manifest
  11  manifest locked by another process
  12  manifest from a newer version
  20  source unreachable or refusing
  21  destination unreachable or refusing
  22  this machine (disk full or failing, port in use); resumable
  130 interrupted; resumable
"""


def verb(name: str, *, json: bool = False) -> Callable[[F], click.Command]:
    """A command with --config and -v, perhaps --json, and the table of exit codes in its help."""

    def decorate(function: F) -> click.Command:
        decorated: Any = function
        if json:
            decorated = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")(decorated)
        decorated = click.option(
            "--config", "config_path", type=click.Path(path_type=Path, dir_okay=False), default=Path("migrate.toml"), show_default=True,
            help="The configuration.",
        )(decorated)  # fmt: skip
        return without_config(name)(decorated)

    return decorate


def without_config(name: str, *, help_first: str = "") -> Callable[[F], click.Command]:
    """A command with -v and the table of exit codes in its help, which `help_first` comes before."""

    def decorate(function: F) -> click.Command:
        option = click.option("-v", "--verbose", count=True, callback=_set_verbosity, expose_value=False, help="Say more.")
        return click.command(name, epilog=help_first + EXIT_CODES)(option(function))

    return decorate


def _set_verbosity(_: click.Context, __: click.Parameter, count: int) -> None:
    log_to_stderr(count)


def log_to_stderr(verbosity: int) -> None:
    """One event a line; 0: warnings, 1: what is done, 2 and more: everything."""
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbosity, 2)]
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("migrate").setLevel(level)
    for name in ("pydicom", "boto3", "botocore", "urllib3"):  # they would name patients
        logging.getLogger(name).setLevel(logging.CRITICAL)


def load(path: Path) -> Config:
    """The configuration at `path`. Raises ConfigError."""
    return configuration.load(path)


def terminal_width() -> int:
    """Columns of the terminal (or COLUMNS); 120 where there is none."""
    return shutil.get_terminal_size((120, 24)).columns


def in_columns(rows: Sequence[Sequence[object]], headers: Sequence[str], *, narrow: Sequence[int | None]) -> str:
    """A table as wide as the terminal: the first columns are no wider than `narrow` says, the last two share what is left."""
    cells = [[str(cell) for cell in row] for row in (headers, *rows)]
    taken = sum(min(max(len(row[place]) for row in cells), most or 1000) + 2 for place, most in enumerate(narrow))
    share = max((terminal_width() - taken - 2) // 2, _NARROWEST)
    return tabulate(rows, headers=headers, maxcolwidths=[*narrow, share, share])


def say_error(error: PacsMigrateError) -> None:
    """One sentence and a hint on stderr."""
    click.echo(str(error) if isinstance(error, Interrupted) else f"Error: {error}", err=True)
    if error.hint:
        click.echo(f"Hint:  {error.hint}", err=True)
