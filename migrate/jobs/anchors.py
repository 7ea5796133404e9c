"""The chain's head at the destination, where whoever changes the manifest cannot take it back; and the way back from there.

`{prefix}_pacs-migrate/anchors/` holds an anchor for each end of a run, `{prefix}_pacs-migrate/manifest/` copies of the manifest. Nothing
of it is ever overwritten or deleted by us. docs/proof.md has the format.
"""

from __future__ import annotations

import contextlib
import gzip
import logging
import os
import shutil
import sqlite3
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from migrate.config import Config
from migrate.counted import counted
from migrate.destinations import Destination
from migrate.errors import (
    KeyTaken,
    ManifestError,
    ManifestTooNew,
    NoManifest,
    ObjectDiffers,
    ObjectMissing,
    PacsMigrateError,
    ProgramMissing,
    UsageError,
)
from migrate.evidence.signing import signature, signed_by
from migrate.failpoints import reach
from migrate.host import sync_folder
from migrate.manifest import Lock
from migrate.manifest.anchored import (
    Anchor,
    Head,
    anchor_of,
    changed_since,
    copy_whole,
    head_and_root,
    head_of,
    holds,
    is_new_here,
    knows_a_study,
)
from migrate.manifest.audit import Trouble
from migrate.manifest.file import open_reader, telling_disk
from migrate.staging.area import hash_file, local_error

log = logging.getLogger(__name__)

_ANCHORS, _SNAPSHOTS = "anchors/", "manifest/"
_SPARE_BYTES = 64 << 20
_SMALL_BYTES = 256 << 20


def drop(config: Config, destination: Destination, *, root: bool, snapshot: bool | None) -> Head | None:
    """Anchor the manifest as it stands now; returns the seal, None where it is anchored already or no study is known yet.

    `snapshot`: with a copy of the manifest if something has changed since the last one; None: only of a small manifest. Raises what the
    destination raises, LocalError, UsageError for a key that cannot sign.
    """
    with _scratch(config.manifest) as scratch:
        reach("anchor-begun")
        source = config.manifest
        with contextlib.closing(open_reader(source)) as reader:
            if not knows_a_study(reader):  # whoever begins anew by mistake shall not push the copies of what was aside
                return None
            wanted = snapshot is not False and _wants_snapshot(config, destination, reader, small_only=snapshot is None)
        if wanted:
            source = scratch / "m.db"
            copy_whole(config.manifest, source)
        with contextlib.closing(open_reader(source)) as reader:
            head, merkle = head_and_root(reader, config.destination.prefix, root=root or wanted)
        if head is None:
            return None
        kept = None
        if wanted:
            packed = scratch / "m.db.gz"
            _pack(source, packed)
            size, digest = hash_file(packed)
            kept = (f"{_SNAPSHOTS}{head.name}.db.gz", digest.hex(), size)
            destination.keep(kept[0], packed)
        document = scratch / "anchor.json"
        document.write_bytes(Anchor(config.name, head, merkle, kept).document())
        unsigned: PacsMigrateError | None = None
        try:
            if config.proof.signing_key is not None:  # the signature goes first: a kill in between leaves no anchor without one
                signed = scratch / "anchor.sig"
                try:
                    signed.write_bytes(signature(document.read_bytes(), config.proof.signing_key))
                    destination.keep(f"{_ANCHORS}{head.name}.json.sig", signed)
                except (UsageError, ProgramMissing) as error:  # an anchor without a signature is better than none
                    unsigned = error
            destination.keep(f"{_ANCHORS}{head.name}.json", document)
        except KeyTaken:  # of this very seal, with or without a copy of the manifest
            return None
        reach("anchor-kept")
        if unsigned is not None:
            raise unsigned
        return head


def drop_or_warn(config: Config, destination: Destination, *, root: bool, snapshot: bool | None) -> None:
    """The same at a run's end, whose outcome does not hang on it: the next end of a run anchors this one, too."""
    try:
        drop(config, destination, root=root, snapshot=snapshot)
    except (PacsMigrateError, OSError, sqlite3.Error) as error:
        log.warning("The manifest could not be anchored and signed at the destination: %s", error)


@dataclass(frozen=True, slots=True)
class Kept:
    """What lies at the destination as an anchor: `anchor` is None where it is none, `signature` where it has none."""

    name: str
    document: bytes
    signature: bytes | None
    anchor: Anchor | None


def read(destination: Destination, prefix: str, scratch: Path) -> list[Kept]:
    """Every anchor, also of other migrations. Raises DestinationUnreachable, DestinationRefused, LocalError."""
    folder = f"{prefix}_pacs-migrate/{_ANCHORS}"
    keys = {key.removeprefix(folder) for key, _ in destination.listed(folder)}
    found = []
    for name in sorted(key.removesuffix(".json") for key in keys if key.endswith(".json")):
        document = _fetched(destination, f"{name}.json", scratch) or b""
        signed = _fetched(destination, f"{name}.json.sig", scratch) if f"{name}.json.sig" in keys else None
        anchor = None
        with contextlib.suppress(ValueError):
            anchor = anchor_of(document)
        found.append(Kept(name, document, signed, anchor if anchor is not None and anchor.head.name == name else None))
    return found


def read_all(config: Config, destination: Destination) -> list[Kept]:
    """The same, with a folder of its own beside the manifest."""
    with _scratch(config.manifest) as scratch:
        return read(destination, config.destination.prefix, scratch)


def warn_of_others(config: Config, destination: Destination, connection: sqlite3.Connection) -> None:
    """Whoever begins anew by mistake is told that a manifest of this name was there: two of one name spoil each other's audit. Raises DestinationError, LocalError."""
    if not is_new_here(connection, ()):
        return
    names = [name for name, _ in told(read_all(config, destination), config.name)[0]]
    if names and is_new_here(connection, names):
        log.warning("A migration named %s has left %s at the destination, and %s is new. If the old manifest is lost, stop, move the new one away, and "
                    "`pacs-migrate restore-manifest`; else choose another name or prefix: `audit` holds these anchors against the new one, too.",
                    config.name, counted(len(names), "anchor"), config.manifest)  # fmt: skip


def told(kept: list[Kept], migration: str) -> tuple[list[tuple[str, Anchor]], list[str]]:
    """((name, anchor) of this migration, names of what is no anchor)."""
    anchors = [(each.name, each.anchor) for each in kept if each.anchor is not None and each.anchor.migration == migration]
    return anchors, [each.name for each in kept if each.anchor is None]


def _fetched(destination: Destination, name: str, scratch: Path) -> bytes | None:
    file = scratch / "fetched"
    file.unlink(missing_ok=True)
    try:
        destination.kept(f"{_ANCHORS}{name}", file)
    except (ObjectMissing, ObjectDiffers):
        return None
    return file.read_bytes()


def check_signatures(kept: list[Kept], migration: str, manifest: Path, signers: Path | None) -> tuple[list[Trouble], list[str]]:
    """(what does not hold of the signatures, what a reader should know). `signers`: who may sign, as in ssh-keygen(1), ALLOWED SIGNERS.

    With `signers` each anchor of this migration has to be signed by one of them, but for those that are older than the first that is signed.
    Without, a signature only has to fit. Raises UsageError, ProgramMissing.
    """
    troubles: list[Trouble] = []
    by: Counter[str | None] = Counter()
    signed = [each for each in kept if each.signature is not None]
    with _scratch(manifest) if signed else contextlib.nullcontext(Path()) as scratch:
        file = scratch / "anchor.sig"
        for each in signed:
            assert each.signature is not None
            ours = each.anchor is None or each.anchor.migration == migration
            file.write_bytes(each.signature)
            try:
                signer, _ = signed_by(each.document, file, signers if ours else None)
                by[signer] += ours
            except ValueError as error:
                troubles.append(Trouble(f"anchor {each.name}", f"its signature {error}"))
    mine = sorted((each for each in kept if each.anchor is not None and each.anchor.migration == migration), key=_time)
    first = next((number for number, each in enumerate(mine) if each.signature is not None), None)
    older, bare = mine[: first or 0], [each for each in mine[first or 0 :] if each.signature is None]
    if signers is not None:
        troubles += [Trouble(f"anchor {each.name}", "is not signed") for each in bare]
    elif bare:
        older += bare
    notes = [f"{counted(count, 'anchor is', 'anchors are')} signed{f' by {name}' if name else ''}." for name, count in by.items() if count]
    notes += [f"{counted(len(older), 'anchor is', 'anchors are')} not signed."] if older else []
    notes += ["Whose keys have signed was not checked: give --signers."] if signers is None and by.total() else []
    return troubles, notes


def _time(kept: Kept) -> int:
    assert kept.anchor is not None
    return kept.anchor.head.at_ms  # a rebuilt manifest counts its seals from 1 again


def restore(config: Config, destination: Destination) -> tuple[Head, list[str], list[str]]:
    """Bring the newest sound copy of the manifest back: (its seal, the anchors of seals that it does not have, the names of copies that are not sound).

    Raises UsageError where a manifest is there, NoManifest where no copy is, ManifestTooNew, what the destination raises, LocalError.
    """
    with Lock(config.manifest):
        if any(config.manifest.with_name(config.manifest.name + end).exists() for end in ("", "-wal")):
            raise UsageError(f"{config.manifest} is there.", hint="Only a manifest that is gone is restored. Move what is left of it away first.")
        spoilt = []
        with _scratch(config.manifest) as scratch:
            anchors, _ = told(read(destination, config.destination.prefix, scratch), config.name)
            for _, anchor in sorted(anchors, key=lambda each: -each[1].head.at_ms):  # a rebuilt manifest counts from 1 again
                if anchor.snapshot is None:
                    continue
                try:
                    _fetch(destination, anchor, scratch)
                except (ObjectMissing, ObjectDiffers) as error:
                    spoilt.append(f"{anchor.snapshot[0]}: {error}")
                    continue
                with contextlib.closing(open_reader(scratch / "m.db")) as reader:
                    lost = [name for name, each in anchors if not holds(reader, each.head.name)]
                _put_in_place(scratch / "m.db", config.manifest)
                return anchor.head, lost, spoilt
    more = f" {len(spoilt)} are there and spoilt: {'; '.join(spoilt)}" if spoilt else ""
    raise NoManifest(f"The destination holds no sound copy of the manifest of {config.name}.{more}",
                     hint="Copies are made at the end of each run. Is it the right destination, prefix and [migration] name?")  # fmt: skip


def sweep(manifest: Path) -> None:
    """Remove what a killed run left beside the manifest; only by who holds the lock."""
    for left in manifest.parent.glob(f"{manifest.name}.out-*"):
        shutil.rmtree(left, ignore_errors=True)


def _wants_snapshot(config: Config, destination: Destination, reader: sqlite3.Connection, *, small_only: bool) -> bool:
    size = config.manifest.stat().st_size
    if small_only and size > _SMALL_BYTES:
        return False
    folder = f"{config.destination.prefix}_pacs-migrate/{_SNAPSHOTS}"
    names = (key.removeprefix(folder).removesuffix(".db.gz") for key, _ in destination.listed(folder))
    last = max((int(name[:12]) for name in names if holds(reader, name)), default=None)
    if last is not None and not changed_since(reader, last):
        return False
    if shutil.disk_usage(config.manifest.parent).free < 2 * size + _SPARE_BYTES:
        log.warning("There is no room beside the manifest for a copy of it: it is anchored without one.")
        return False
    return True


@contextlib.contextmanager
def _scratch(manifest: Path) -> Iterator[Path]:
    """A folder beside the manifest, for this process's eyes only."""
    try:
        manifest.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(prefix=f"{manifest.name}.out-", dir=manifest.parent, ignore_cleanup_errors=True) as folder:
            yield Path(folder)
    except OSError as error:
        raise local_error(error, "working beside the manifest") from error


def _pack(source: Path, target: Path) -> None:
    """Equal bytes in, equal bytes out."""
    with source.open("rb") as plain, target.open("xb") as out, gzip.GzipFile("", "wb", 6, out, mtime=0) as packed:
        shutil.copyfileobj(plain, packed, 1 << 20)


def _fetch(destination: Destination, anchor: Anchor, scratch: Path) -> None:
    """The copy that an anchor tells of, unpacked as m.db. Raises ObjectMissing, ObjectDiffers where it is not what the anchor says, ManifestTooNew."""
    assert anchor.snapshot is not None
    name, sha256, _ = anchor.snapshot
    packed, plain = scratch / "m.db.gz", scratch / "m.db"
    for path in (packed, plain):
        path.unlink(missing_ok=True)
    if not name.startswith(_SNAPSHOTS) or ".." in name:
        raise ObjectDiffers("its anchor names another place")
    destination.kept(name, packed)
    if hash_file(packed)[1].hex() != sha256:
        raise ObjectDiffers(f"its SHA-256 is not the one in anchor {anchor.head.name}")
    try:
        with gzip.open(packed, "rb") as source, plain.open("xb") as out:
            shutil.copyfileobj(source, out, 1 << 20)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ObjectDiffers("it cannot be unpacked") from error
    try:
        with telling_disk(plain), contextlib.closing(open_reader(plain)) as reader:
            head = head_of(reader)
    except ManifestTooNew:
        raise
    except (ManifestError, sqlite3.DatabaseError) as error:
        raise ObjectDiffers("it is no manifest") from error
    if head != anchor.head:
        raise ObjectDiffers(f"it does not end with the seal of anchor {anchor.head.name}")


def _put_in_place(file: Path, manifest: Path) -> None:
    os.chmod(file, 0o600)
    fd = os.open(file, os.O_RDWR)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    os.replace(file, manifest)
    sync_folder(manifest.parent)
