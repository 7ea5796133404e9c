"""Where the objects go: the contract of every destination, and the table of kinds."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from migrate.config import DestinationSettings, FolderSettings, S3Settings
from migrate.model import Finding, Item, Proof, Receipt


class Destination(Protocol):
    """Takes objects and proves that it has them; nothing is ever overwritten or deleted.

    All methods may be called from several threads at once. A destination is not carried over a fork.
    """

    identity: str
    """Which destination this is: the same text in every run, no secrets in it."""

    def check(self) -> list[Finding]:
        """Try reaching, writing, reading, checksums and create-only puts; never raises for what it finds.

        Writes a few probe objects under `{prefix}_pacs-migrate/` and nothing else.
        """

    def prepare(self) -> None:
        """Reach the destination once at the start of a run, and clear what a killed run of ours left unfinished.

        Only one run at a time may use a prefix: uploads that are still going on under it are taken for leftovers.

        Raises DestinationUnreachable or DestinationRefused.
        """

    def put(self, item: Item, file: Path) -> Receipt:
        """Store the staged file under the item's key, unless the same bytes stand there already.

        Idempotent: a lost answer leads to the receipt that was lost. On return the object is durable as far as the
        destination promises that. Never stores bytes that are not `item.fixity`.

        Raises KeyTaken (other bytes stand there, untouched), StagedFileLost, PutFailed, DestinationUnreachable,
        DestinationRefused.
        """

    def verify(self, item: Item, *, deep: bool = False) -> Proof:
        """Prove that the destination holds `item.fixity` now: ATTESTED or READ_BACK; `deep` always reads back.

        Never writes below the item's key. The key and version of `item.receipt` count where there is one.

        Raises ObjectMissing, ObjectDiffers, DestinationUnreachable, DestinationRefused.
        """

    def listed(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Every object whose key begins with `prefix`, which ends with a slash: (key, size in bytes), in any order. Nothing is read of it.

        Raises DestinationUnreachable, DestinationRefused.
        """

    def fetch(self, item: Item, file: Path) -> None:
        """Copy what stands under the item's key now into a new file; nothing of it is compared.

        Raises ObjectMissing, DestinationUnreachable, DestinationRefused, LocalError.
        """

    def keep(self, name: str, file: Path) -> None:
        """Store a file of our own under `{prefix}_pacs-migrate/{name}`, create-only like `put`; idempotent for the same bytes.

        Raises what `put` raises.
        """

    def kept(self, name: str, file: Path) -> None:
        """Copy what `keep` stored under that name into a new file; nothing of it is compared.

        Raises ObjectMissing, DestinationUnreachable, DestinationRefused, LocalError.
        """

    def serves(self) -> bool:
        """Whether it takes and shows an object of our own just now, so that what it does not take or show is that object's trouble."""

    def close(self) -> None:
        """Give back connections and threads; safe to call twice."""


def _folder(settings: Any) -> Destination:
    from migrate.destinations.folder import Folder

    return Folder(settings)


def _s3(settings: Any) -> Destination:
    from migrate.destinations.s3.bucket import S3  # the AWS libraries load only where they are needed

    return S3(settings)


_KINDS: dict[type, Callable[[Any], Destination]] = {FolderSettings: _folder, S3Settings: _s3}
_shared: dict[tuple[int, DestinationSettings], Destination] = {}
_shared_lock = threading.Lock()


def open_destination(settings: DestinationSettings) -> Destination:
    """A destination of the settings' kind; reaches nothing yet.

    Raises DestinationRefused for settings that cannot work (no credentials configured, no TLS).
    """
    return _KINDS[type(settings)](settings)


def shared_destination(settings: DestinationSettings) -> Destination:
    """The destination of these settings in this process, opened on first use: what upload and verify jobs take.

    Raises as `open_destination` does.
    """
    key = (os.getpid(), settings)
    with _shared_lock:
        if key not in _shared:
            _shared[key] = open_destination(settings)
        return _shared[key]


def close_shared() -> None:
    """Close every destination that `shared_destination` opened in this process."""
    with _shared_lock:
        mine = [key for key in _shared if key[0] == os.getpid()]
        opened = [_shared.pop(key) for key in mine]
    for destination in opened:
        destination.close()


__all__ = ["Destination", "close_shared", "open_destination", "shared_destination"]
