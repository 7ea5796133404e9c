"""Verbs that look again at what was proven: verify at the destination, double-check at the source."""

from __future__ import annotations

import json
import random
import re
import sys
import time
from fractions import Fraction
from pathlib import Path

import click

from migrate.cli.frame import load, verb
from migrate.counted import counted
from migrate.errors import UsageError
from migrate.evidence.sampling import Slice
from migrate.jobs.double_check import double_check as compare_again
from migrate.jobs.migration import Migration
from migrate.jobs.verification import Choice, Level
from migrate.jobs.verification import verify as verify_again


def share_of(text: str) -> Fraction:
    """`5%` or `0.5 %` as a fraction. Raises UsageError."""
    number = text.strip().removesuffix("%").strip()
    if not re.fullmatch(r"\d{1,3}(\.\d{1,9})?", number):
        raise UsageError(f"--sample takes a percentage, not {text}.", hint="For example --sample 5%.")
    share = Fraction(number) / 100
    if not 0 < share <= 1:
        raise UsageError("--sample takes more than 0 and at most 100 per cent.", hint="For example --sample 5%.")
    return share


def slice_of(text: str) -> Slice:
    """`3/12`. Raises UsageError."""
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip())
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(f"--slice takes a part like 3/12, not {text}.", hint="1/12, 2/12 ... 12/12 together are everything.")
    return Slice(int(match[1]), int(match[2]))


def choice_of(level: Level, sample: str | None, size: int | None, part: str | None, seed: int | None) -> Choice:
    """What the options of a verb ask for. Raises UsageError where they do not go together."""
    if sample is not None and size is not None:
        raise UsageError("--sample and --sample-size say the same.", hint="Give one of them.")
    if part is not None and (sample is not None or size is not None):
        raise UsageError("--slice is not for samples.", hint="Give --slice, or --sample.")
    if seed is not None and sample is None and size is None:
        raise UsageError("--seed belongs to a sample.", hint="Give --sample or --sample-size too, or leave --seed out.")
    return Choice(
        level, random.SystemRandom().getrandbits(32) if seed is None else seed, None if sample is None else share_of(sample), size,
        None if part is None else slice_of(part),
    )  # fmt: skip


class Told:
    """So many of so many, on a terminal only, once a second."""

    def __init__(self) -> None:
        self._last = 0.0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if sys.stderr.isatty() and (now - self._last > 1 or done == total):
            self._last = now
            click.echo(f"\r{done:,} of {total:,} checked", err=True, nl=done == total)


@verb("verify", json=True)
@click.option("--level", "level_name", type=click.Choice([level.value for level in Level]), help="How closely to look; default: attested.")
@click.option("--deep", is_flag=True, help="The same as --level read-back: read every byte back, whatever the store attests.")
@click.option("--sample", metavar="N%", help="Only a random N per cent, drawn per year and modality.")
@click.option("--sample-size", "size", type=click.IntRange(min=1), metavar="N", help="Only N random objects, or some more, so that there is one of each year and modality.")  # fmt: skip
@click.option("--slice", "part", metavar="K/N", help="Only the Kth of N parts, which together are everything.")
@click.option("--seed", type=int, help="Draw the same sample again; default: a new one, which goes on record.")
def verify(config_path: Path, as_json: bool, level_name: str | None, deep: bool, sample: str | None, size: int | None, part: str | None, seed: int | None) -> int:  # fmt: skip
    """Look at the destination again and compare.

    Ends with 3 if an object is missing, differs or cannot be checked, until it is proven again or signed for. The next `run` heals it.
    """
    config = load(config_path)
    if deep and level_name not in (None, Level.READ_BACK.value):
        raise UsageError(f"--deep and --level {level_name} exclude each other.", hint="Give one of them.")
    level = Level.READ_BACK if deep else Level(level_name or Level.ATTESTED.value)
    choice = choice_of(level, sample, size, part, seed)
    with Migration(config, "verify", create=False) as migration:
        result = verify_again(migration, choice, Told())
        migration.exit_code = 0 if result.good else 3
    if as_json:
        click.echo(json.dumps(result.document(), indent=1))
        return migration.exit_code
    click.echo(result.statement())
    if choice.is_sample:
        click.echo(f"Seed: {choice.seed}")
    for kind, keys in (("missing", result.missing), ("differs", result.differs), ("not checked", result.unchecked), ("not proven again", result.open)):
        for key in keys:
            click.echo(f"{kind}: {key}")
    return migration.exit_code


@verb("double-check", json=True)
@click.option("--sample", metavar="N%", help="A random N per cent, drawn per year and modality.")
@click.option("--sample-size", "size", type=click.IntRange(min=1), metavar="N", help="N random images, or some more; default: 100.")
@click.option("--seed", type=int, help="Draw the same sample again; default: a new one, which goes on record.")
def double_check(config_path: Path, as_json: bool, sample: str | None, size: int | None, seed: int | None) -> int:
    """Retrieve a sample from the PACS again and compare.

    Ends with 3 if pixels differ or an image does not come.

    Other pixels open their study again: the next `run` puts them beside the first, and a person has to accept both.
    """
    config = load(config_path)
    choice = choice_of(Level.READ_BACK, sample, 100 if sample is None and size is None else size, None, seed)
    with Migration(config, "double-check", create=False) as migration:
        result = compare_again(migration, choice, Told())
        migration.exit_code = 0 if result.good else 3
    if as_json:
        click.echo(json.dumps(result.document(), indent=1))
        return migration.exit_code
    click.echo(result.statement())
    for tag, count in result.tags.most_common():
        click.echo(f"{tag} differs in {counted(count, 'image')}")
    for change, count in result.syntaxes.most_common():
        click.echo(f"transfer syntax {change}: {count}")
    click.echo(f"Seed: {choice.seed}")
    for words, sops in (("OTHER PIXELS OR CONTENT", result.content), ("did not come", result.not_sent)):
        for sop in sorted(sops):
            click.echo(f"{words}: {sop}")
    return migration.exit_code
