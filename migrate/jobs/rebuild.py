"""The manifest made anew when it is lost and no snapshot of it is left: from the objects at the destination and from staging.

Every object is fetched, walked and hashed: what stands under its own name with its own UIDs is verified, READ_BACK. Durable
files in staging are staged again. What nobody can know any more is named, in the log, too; the next `run` sweeps the PACS, lists
every study anew and asks only for what is not here.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from awscrt.checksums import crc64nvme

from migrate.config import Config
from migrate.destinations import shared_destination
from migrate.dicom.part10 import read_header
from migrate.dicom.scanner import scan_file
from migrate.errors import Interrupted, ObjectMissing, UsageError
from migrate.host import stop_signals
from migrate.jobs import anchors
from migrate.jobs.migration import Migration
from migrate.manifest.anchored import NO_HEAD, RESTORED, restored_detail
from migrate.model import (
    DestinationLost,
    Fixity,
    InstanceRef,
    InstanceStaged,
    InstanceStored,
    InstanceVerified,
    Item,
    Noted,
    Outcome,
    Proof,
    Receipt,
    Received,
    Rolled,
    is_uid,
    object_key,
)
from migrate.staging.area import Staging

_KEY = re.compile(r"studies/([0-9.]{1,64})/series/([0-9.]{1,64})/instances/([0-9.]{1,64})(?:~([0-9a-f]{12}))?\.dcm\Z")
_PIECE_BYTES = 256 << 10
_AT_ONCE = 64  # objects whose facts are committed together
UNKNOWN = (
    "Attempts, errors and times of all that went before, and the log of it.",
    "Which studies were excluded or accepted, by whom and why: sign again what the next run parks.",
    "What the PACS listed: every study is found and listed anew by the next run.",
    "Images that the PACS sends without listing them, of studies whose listed images are all here: --ask-again has these sent once more.",
    "Versions of objects, and whether an object's data set is what the PACS sent before it was stored.",
)
"""What cannot be known from the destination and staging."""


@dataclass
class Rebuilt:
    """What was found. `strangers`: keys of objects that are not what their names say."""

    objects: int = 0
    staged: int = 0
    quarantined: int = 0
    strangers: list[str] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        return {"objects": self.objects, "staged": self.staged, "quarantined": self.quarantined, "not_ours": self.strangers, "unknown": list(UNKNOWN)}


def rebuild(config: Config, *, ask_again: bool = False, progress: Callable[[int], None] = lambda _: None) -> Rebuilt:
    """Make the manifest; one that was cut off goes on where it was. With `ask_again` the next run has every study sent once more.

    Raises UsageError where there is a manifest, Interrupted, DestinationUnreachable, DestinationRefused, LocalError.
    """
    begun = config.manifest.with_name(config.manifest.name + ".rebuilding")
    if config.manifest.exists() and config.manifest.stat().st_size and not begun.exists():
        raise UsageError(
            f"There is a manifest {config.manifest}.", hint="`rebuild` makes one where none is left; move this one away if that is really meant."
        )
    config.manifest.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    begun.touch(mode=0o600)
    with Migration(config, "rebuild") as migration:
        result = _Work(migration, progress).done(ask_again)
        migration.exit_code = 3 if result.strangers else 0
    begun.unlink()
    return result


class _Work:
    def __init__(self, migration: Migration, progress: Callable[[int], None]) -> None:
        self._migration, self._progress = migration, progress
        self._staging = Staging(migration.config.staging)
        self._destination = shared_destination(migration.config.destination)
        self._numbers = itertools.count()
        self._result = Rebuilt()
        self._stop = threading.Event()

    def done(self, ask_again: bool) -> Rebuilt:
        manifest = self._migration.manifest
        with stop_signals(self._stop.set):
            beside: list[str] = []
            self._objects(self._plain(beside), _AT_ONCE)
            self._objects(iter(sorted(beside)), 1)  # one by one: what is on record says what the next one is
            self._files()
        if not ask_again:
            manifest.set_meta("rebuilt", "1")
        config = self._migration.config
        known, _ = anchors.told(anchors.read_all(config, self._destination), config.name)
        if known:  # of a chain that is lost: audit tells of it, and does not take this one for forged
            manifest.log(RESTORED, restored_detail(NO_HEAD, (name for name, _ in known)))
        said = f"{self._result.objects} objects, {self._result.staged} staged files, {self._result.quarantined} quarantined"
        manifest.commit([Noted("manifest rebuilt", f"{said}; {len(self._result.strangers)} objects are not what they are called")]
                        + [Noted("unknown since the rebuild", sentence) for sentence in UNKNOWN])  # fmt: skip
        self._staging.close()
        return self._result

    # -- objects
    def _plain(self, beside: list[str]) -> Iterator[str]:
        """All keys but those of second contents, which are put off: whether there are two shows when the first are known."""
        for key, _ in self._destination.listed(f"{self._migration.prefix}studies/"):
            if "~" in key:
                beside.append(key)
            else:
                yield key

    def _objects(self, keys: Iterator[str], at_once: int) -> None:
        """Put on record what the keys hold, unless it is already."""
        workers = max(getattr(self._migration.config.destination, "workers", 4), 1)
        with ThreadPoolExecutor(workers, "rebuild") as pool:
            while batch := list(itertools.islice(keys, at_once)):
                if self._stop.is_set():
                    raise Interrupted("Stopped; what was looked at is on record.")
                new = [key for key in batch if not self._is_known(key)]
                facts: list[Outcome] = []
                for key, found in zip(new, pool.map(self._looked_at, new), strict=True):
                    facts += self._facts(key, found)
                self._commit(facts)
                self._result.objects += len(batch) - len(new)
                self._progress(len(batch))

    def _named(self, key: str) -> tuple[InstanceRef | None, str | None]:
        """Which instance a key stands for, and the beginning of the data set's hash that it names; (None, None) where it is none of ours."""
        match = _KEY.match(key.removeprefix(self._migration.prefix))
        if match is None or not all(is_uid(uid) for uid in match.group(1, 2, 3)):
            return None, None
        return InstanceRef(*match.group(1, 2, 3)), match[4]

    def _is_known(self, key: str) -> bool:
        """Whether a rebuild that was cut off has this one on record."""
        ref, digest = self._named(key)
        return ref is not None and digest is None and self._migration.queue.is_verified(ref)

    def _looked_at(self, key: str) -> tuple[Received, Fixity] | None:
        """An object as it stands there now; None where it is not what its key says."""
        ref, digest = self._named(key)
        if ref is None:
            return None
        file = self._staging.incoming / f"rebuild-{next(self._numbers):x}.part"
        try:
            self._destination.fetch(Item(ref, Fixity(0, b"", b"", 0), receipt=Receipt(key)), file)
            received, fixity = examined(file)
        except (ObjectMissing, ValueError):
            return None
        finally:
            with suppress(FileNotFoundError):
                file.unlink()
        if received.ref != ref or (digest and not fixity.dataset_sha256.hex().startswith(digest)):
            return None
        return received, fixity

    def _facts(self, key: str, found: tuple[Received, Fixity] | None) -> list[Outcome]:
        if found is None:
            self._result.strangers.append(ascii(key)[1:-1])
            return [Noted("object not ours", ascii(key)[1:-1])]
        received, fixity = found
        assert received.ref is not None
        self._result.objects += 1
        plain = object_key(received.ref, self._migration.prefix)
        if key == plain:
            item = Item(received.ref, fixity, receipt=Receipt(key))
            before: list[Outcome] = [InstanceStaged(received, fixity)]
        elif self._migration.queue.is_verified(received.ref):
            item = Item(received.ref, fixity, beside=True, copy=True, receipt=Receipt(key))
            before = [InstanceStaged(received, fixity)]
        else:  # a sound copy beside something else
            item = Item(received.ref, fixity, beside=True, receipt=Receipt(key))
            lost = DestinationLost(Item(received.ref, fixity, receipt=Receipt(plain)), True, "A sound copy stands beside it.", file_kept=True)
            before = [InstanceStaged(received, fixity), lost]
        return [*before, InstanceStored(item, Receipt(key)), InstanceVerified(item, Proof.READ_BACK)]

    # -- staging
    def _files(self) -> None:
        """Durable files become rows again; the others are swept by the next run."""
        for path in sorted(self._staging.ready.glob("*/*.dcm")):
            try:
                received, fixity = examined(path)
            except ValueError:
                continue
            if received.ref is not None and self._staging.path_of(received.ref, fixity.dataset_sha256) == path:
                self._settled(path, received, fixity)
                self._result.staged += 1
        for path in sorted(self._staging.quarantine.iterdir()):
            rolled, claimed = _kept(path)
            self._settled(path, Received(path, None, rolled, "", "", quarantine="found by rebuild", claimed=claimed), None)
            self._result.quarantined += 1

    def _settled(self, path: Path, received: Received, fixity: Fixity | None) -> None:
        """Synced once more: the process that renamed it may have been killed before its sync."""
        (found,) = self._staging.settle([(path, path, received.rolled)])
        assert fixity is None or found == fixity
        self._commit([InstanceStaged(received, found)])

    def _commit(self, facts: list[Outcome]) -> None:
        effects = self._migration.manifest.commit(facts)
        for path, size in effects.drop:
            if path.parent.parent == self._staging.ready:  # its object is proven
                self._staging.release(path, size)


def examined(path: Path) -> tuple[Received, Fixity]:
    """A Part 10 file as if it had just come. Raises ValueError where it is none of ours, OSError."""
    with path.open("rb", buffering=0) as file:
        sop_class, sop, syntax, offset = read_header(file)
    fixity = _fixity(path, offset)
    scan = scan_file(path, offset, syntax)
    if scan.error is not None or (scan.sop, scan.sop_class) != (sop, sop_class):
        raise ValueError("its data set is not what its header says")
    if not all(is_uid(uid) for uid in (scan.study, scan.series, scan.sop)):
        raise ValueError("its UIDs are no UIDs")
    ref = InstanceRef(scan.study, scan.series, scan.sop)
    return Received(path, ref, fixity.rolled, sop_class, syntax, scan.notes, pixel_crc64=scan.pixel_crc64), fixity


def _kept(path: Path) -> tuple[Rolled, tuple[str, str, str]]:
    """What can be said of a quarantined file."""
    claimed, offset = ("", "", ""), 0
    with suppress(ValueError):
        with path.open("rb", buffering=0) as file:
            _, _, syntax, offset = read_header(file)
        scan = scan_file(path, offset, syntax)
        claimed = (scan.study, scan.series, scan.sop)
    return _fixity(path, offset).rolled, claimed


def _fixity(path: Path, offset: int) -> Fixity:
    whole, dataset, crc, size = hashlib.sha256(), hashlib.sha256(), 0, 0
    with path.open("rb", buffering=0) as file:
        while piece := file.read(_PIECE_BYTES):
            whole.update(piece)
            dataset.update(piece[max(offset - size, 0) :])
            crc = crc64nvme(piece, crc)
            size += len(piece)
    return Fixity(size, whole.digest(), dataset.digest(), crc)
