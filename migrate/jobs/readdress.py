"""The PACS has another address: put on record by whom and why, once it has shown that it is the same one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

from migrate.config import Config
from migrate.errors import IdentityMismatch, UsageError
from migrate.jobs.command import Command
from migrate.manifest import decisions
from migrate.manifest.file import identity_of, open_reader
from migrate.sources import Source, open_source
from migrate.staging.area import Staging

_ASKED_FOR, _MAY_BE_GONE = 20, 0.1


@dataclass(frozen=True, slots=True)
class Moved:
    """From which address to which, and how many of the studies that were asked for were shown there."""

    old: str
    new: str
    shown: int
    asked: int

    def __str__(self) -> str:
        return f"{self.old} -> {self.new}, which shows {self.shown} of {self.asked} known studies"


def readdress(config: Config, signature: decisions.Signature) -> Moved:
    """Make the PACS at the address of `config` the manifest's own: one seal holds the change, the evidence, and who signed for it.

    It has to list images of up to twenty studies that the manifest knows images of, picked at random; a tenth of them may be gone.
    Raises UsageError where nothing has moved, IdentityMismatch where it is another PACS, and what asking raises.
    """
    with contextlib.closing(open_reader(config.manifest)) as reader:
        old, new = identity_of(reader, "source"), config.source_identity
    if old in (None, new):
        raise UsageError(f"The manifest's PACS is {new} already.", hint="Put its new address under [source] in migrate.toml first.")
    with Command(_at(config, old), "readdress", create=False) as command:
        shown = list(_shown(config, command))
        moved = Moved(old, new, sum(shown), len(shown))
        if not shown or moved.shown < (1 - _MAY_BE_GONE) * moved.asked:
            raise IdentityMismatch(f"{new} shows {moved.shown} of {moved.asked} studies that {old} had: it is not taken for the same PACS.",
                                   hint="Nothing was changed. Another PACS needs a manifest, and a migrate.toml, of its own.")  # fmt: skip
        decisions.readdress(command.manifest, new, str(moved), signature)
        command.exit_code = 0
    return moved


def _at(config: Config, identity: str) -> Config:
    """The configuration as it was for that PACS."""
    title, _, address = identity.rpartition("@")
    host, _, port = address.rpartition(":")
    return replace(config, source=replace(config.source, ae_title=title, host=host, port=int(port)))


def _shown(config: Config, command: Command) -> Iterator[bool]:
    """Of each study that is asked for, whether an image of it is listed that the manifest knows."""
    staging = Staging(config.staging)
    source: Source = open_source(config, staging, lambda received: None, command.queue.habits(), command.trail)
    try:
        for study, sops in command.queue.some_listed(_ASKED_FOR):
            yield not sops.isdisjoint(sop for series in source.instances(study).series for sop in series.sops)
    finally:
        source.close()
        staging.close()
