"""A folder as destination: same keys as in a bucket, durable and create-only, every proof a re-read."""

from __future__ import annotations

import errno
import hashlib
import io
import itertools
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from migrate.config import FolderSettings
from migrate.errors import (
    DestinationError,
    DestinationRefused,
    DestinationUnreachable,
    KeyTaken,
    ObjectDiffers,
    ObjectMissing,
    PutFailed,
    StagedFileLost,
)
from migrate.failpoints import reach
from migrate.model import Finding, Fixity, Item, Proof, Receipt, object_key
from migrate.staging.area import copy_into, local_error, measured
from migrate.staging.disk import DISK, Disk, DurableFolders

_FULL = {errno.ENOSPC, errno.EDQUOT}
_REFUSED = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ, errno.ENOTDIR, errno.EFBIG,
}  # fmt: skip
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL}
_CHUNK_BYTES = 256 << 10
_LOW_BYTES = 1 << 30


class Folder:
    """Objects as files below `path`, their keys as relative paths; see `Destination` for the contract.

    Without hard links (`links`, or found out by trying) a claim file keeps our own workers apart; a foreign program
    that writes the same name in the same moment could then be overwritten.
    """

    def __init__(self, settings: FolderSettings, *, links: bool = True, disk: Disk = DISK) -> None:
        self.root = settings.path.absolute()
        self._disk = disk
        self.prefix = settings.prefix
        if self.prefix.startswith("/") or any(part in (".", "..") for part in self.prefix.split("/")):
            raise DestinationRefused("The prefix leads out of the folder.", hint="Use a relative path without . or ..")
        self.identity = f"folder:{self.root}" + (f" prefix {self.prefix}" if self.prefix else "")
        self._own = self.root / f"{self.prefix}_pacs-migrate"
        self._tmp = self._own / "tmp"
        self._numbers = itertools.count()
        self._folders = DurableFolders(disk, self.root)
        self._links = links

    # -- the contract
    def check(self) -> list[Finding]:
        """See `Destination.check`."""
        try:
            self.prepare()
            found = [Finding("destination reach", "ok", f"{self.root} is there.", part="destination"), self._probe()]
            free = shutil.disk_usage(self.root).free
        except (DestinationError, OSError) as error:
            hint = error.hint if isinstance(error, DestinationError) else DestinationUnreachable.default_hint
            return [Finding("destination folder", "fail", str(error), hint, "destination")]
        size = f"{free / (1 << 30):,.1f} GiB free."
        if free < _LOW_BYTES:
            hint = "Is this the right disk? A PACS needs more."
            return [*found, Finding("destination space", "warn", size, hint, "destination")]
        return [*found, Finding("destination space", "ok", size, part="destination")]

    def prepare(self) -> None:
        """See `Destination.prepare`: makes the folder if it is new, and removes our own temporary files."""
        with self._errors(f"preparing {self.root}"):
            new = [folder for folder in self.root.parents if not folder.exists()]
            self.root.mkdir(parents=True, exist_ok=True)
            for folder in (self.root, *new):  # with the name of one of them all objects would be lost
                with suppress(PermissionError):  # a folder of others, which we may pass through but not read
                    self._disk.sync_folder(folder.parent)
            self._make_folder(self._tmp)
            for leftover in self._tmp.iterdir():
                self._disk.unlink(leftover)

    def put(self, item: Item, file: Path) -> Receipt:
        """See `Destination.put`."""
        return self._put(self._key(item), file, item.fixity)

    def _put(self, key: str, file: Path, fixity: Fixity) -> Receipt:
        final = self.root / key
        with self._errors("writing an object"):
            if os.path.lexists(final):
                return self._existing(key, final, fixity)
            if not self.root.is_dir():  # never made anew here: an unmounted disk must not turn into a local folder
                raise DestinationUnreachable(f"The folder {self.root} is gone.", hint="Is its disk mounted?")
            self._make_folder(self._tmp)
            temporary = self._tmp / f"{os.getpid():x}-{id(self):x}-{next(self._numbers):x}.part"
            try:
                self._copy(file, temporary, fixity)
                reach("put-copied")
                self._make_folder(final.parent)
                try:
                    self._publish(temporary, final)
                except FileExistsError:  # another thread or host was faster
                    return self._existing(key, final, fixity)
                reach("put-published")
                self._disk.sync_folder(final.parent)
            finally:
                with suppress(OSError):  # what stays is swept by the next run's prepare()
                    self._disk.unlink(temporary)
        return Receipt(key)

    def verify(self, item: Item, *, deep: bool = False) -> Proof:
        """See `Destination.verify`: always READ_BACK, past the page cache where the system can do that."""
        key = item.receipt.key if item.receipt else self._key(item)
        with self._errors("reading an object"):
            self._read_back(self.root / key, key, item.fixity)
        return Proof.READ_BACK

    def listed(self, prefix: str) -> Iterator[tuple[str, int]]:
        """See `Destination.listed`: regular files only."""
        with self._errors("listing objects"):
            if not self.root.is_dir():
                raise DestinationUnreachable(f"The folder {self.root} is gone.", hint="Is its disk mounted?")
            for folder, _, names in os.walk(self.root / prefix, onerror=_unless_missing):
                for name in names:
                    path = Path(folder, name)
                    kind = path.lstat()
                    if stat.S_ISREG(kind.st_mode):
                        yield path.relative_to(self.root).as_posix(), kind.st_size

    def fetch(self, item: Item, file: Path) -> None:
        """See `Destination.fetch`."""
        key = item.receipt.key if item.receipt else self._key(item)
        with self._errors("reading an object"), self._opened(self.root / key, key) as source:
            copy_into(iter(lambda: source.read(_CHUNK_BYTES), b""), file)

    def keep(self, name: str, file: Path) -> None:
        """See `Destination.keep`."""
        self._put(f"{self.prefix}_pacs-migrate/{name}", file, measured(file))

    def kept(self, name: str, file: Path) -> None:
        """See `Destination.kept`."""
        key = f"{self.prefix}_pacs-migrate/{name}"
        with self._errors("reading an object"), self._opened(self.root / key, key) as source:
            copy_into(iter(lambda: source.read(_CHUNK_BYTES), b""), file)

    def serves(self) -> bool:
        """See `Destination.serves`: a disk tells of each trouble whose it is."""
        return False

    def close(self) -> None:
        """See `Destination.close`."""

    # -- steps
    def _key(self, item: Item) -> str:
        return object_key(item.ref, self.prefix, beside=item.fixity.dataset_sha256 if item.beside else None)

    def _existing(self, key: str, final: Path, fixity: Fixity) -> Receipt:
        try:
            self._read_back(final, key, fixity)
        except (ObjectDiffers, ObjectMissing) as error:
            raise KeyTaken(f"Something else stands at {key}: {error}") from error
        self._make_folder(final.parent)  # a run killed between publishing and syncing: sync now
        self._disk.sync_folder(final.parent)
        return Receipt(key)

    def _copy(self, source: Path, target: Path, fixity: Fixity) -> None:
        """Copy while hashing and sync. Raises StagedFileLost if what was read is not `fixity`."""
        digest, size = hashlib.sha256(), 0
        out = self._disk.create(target, 0o666)
        try:
            for chunk in self._staged(source):
                digest.update(chunk)
                size += len(chunk)
                self._disk.write(out, chunk)
            self._disk.sync(out)
        finally:
            self._disk.close(out)
        if (size, digest.digest()) != (fixity.size_bytes, fixity.file_sha256):
            raise StagedFileLost("The staged file's bytes are no longer those that were received.")

    def _staged(self, source: Path) -> Iterator[memoryview]:
        """The staged file in chunks. Raises StagedFileLost where it is gone, LocalError where its disk fails."""
        buffer = memoryview(bytearray(_CHUNK_BYTES))
        try:
            fd = self._disk.open(source)
            try:
                while count := self._disk.read(fd, buffer):
                    yield buffer[:count]
            finally:
                self._disk.close(fd)
        except FileNotFoundError as error:
            raise StagedFileLost("The staged file is gone.") from error
        except OSError as error:
            raise local_error(error, "reading a staged file") from error

    def _publish(self, temporary: Path, final: Path) -> None:
        """Give the file its name, only if nothing has it. Raises FileExistsError."""
        if os.name == "nt":
            os.rename(temporary, final)  # create-only there
            return
        if self._links:
            try:
                self._disk.link(temporary, final)
                return
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                self._links = False  # FAT, some network file systems
        claim = self._tmp / f"{hashlib.sha256(str(final).encode()).hexdigest()}.claim"
        try:
            self._disk.close(self._disk.create(claim))
        except FileExistsError as error:
            raise PutFailed("Another worker is writing the same object just now.") from error
        try:
            if os.path.lexists(final):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            self._disk.rename(temporary, final)
        finally:
            self._disk.unlink(claim)

    def _make_folder(self, folder: Path) -> None:
        """Make a folder with its parents, durable. Raises DestinationRefused where something else has the name."""
        try:
            self._folders.make(folder)
        except NotADirectoryError as error:
            raise DestinationRefused(
                f"{Path(error.filename or folder).relative_to(self.root)} is no folder.", hint="Something else put a file or a link there."
            ) from error

    def _opened(self, final: Path, key: str) -> io.FileIO:
        """An object's file, open. Raises ObjectMissing, ObjectDiffers, OSError."""
        for parent in final.relative_to(self.root).parents:
            if (self.root / parent).is_symlink() and parent != Path("."):
                raise ObjectDiffers(f"A symbolic link leads to {key}.")
        flags = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        try:
            kind = final.lstat().st_mode
            if not stat.S_ISREG(kind):
                raise ObjectDiffers(f"What stands at {key} is no regular file.")
            fd = self._disk.open(final, flags=flags)
        except (FileNotFoundError, NotADirectoryError) as error:
            if not self.root.is_dir():
                raise DestinationUnreachable(f"The folder {self.root} is gone.", hint="Is its disk mounted?") from error
            raise ObjectMissing(f"Nothing stands at {key}.") from error
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise ObjectDiffers(f"What stands at {key} is no regular file.") from error
            raise
        return io.FileIO(fd, "r")

    def _read_back(self, final: Path, key: str, fixity: Fixity) -> None:
        """Raises ObjectMissing, ObjectDiffers, OSError."""
        with self._opened(final, key) as file:
            size = os.fstat(file.fileno()).st_size
            if size != fixity.size_bytes:
                raise ObjectDiffers(f"{key} has {size} bytes instead of {fixity.size_bytes}.")
            if hasattr(os, "posix_fadvise"):
                with suppress(OSError):  # a wish only; where the disk fails, the read says so
                    self._disk.sync(file.fileno())  # only clean pages can be dropped
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            digest = hashlib.file_digest(file, "sha256").digest()
        if digest != fixity.file_sha256:
            raise ObjectDiffers(f"{key} has other bytes than were received (SHA-256 {digest.hex()}).")

    def _probe(self) -> Finding:
        """Write, publish twice, read back: a probe file that stays."""
        content = b"pacs-migrate probe\n"
        sha256 = hashlib.sha256(content).digest()
        final = self._own / "probe"
        temporary = self._tmp / f"{os.getpid():x}-{id(self):x}-{next(self._numbers):x}.part"
        with self._errors("writing a probe"):
            temporary.write_bytes(content)
            try:
                if not os.path.lexists(final):
                    self._publish(temporary, final)
                    temporary.write_bytes(content)
                try:
                    self._publish(temporary, final)
                except FileExistsError:
                    pass
                else:
                    raise DestinationRefused("The folder's file system overwrites files.", hint="Use another one.")
            finally:
                temporary.unlink(missing_ok=True)
            self._read_back(final, final.name, Fixity(len(content), sha256, sha256, 0))
        return Finding("destination write", "ok", "A probe file was written and read back; a second one does not overwrite it.", part="destination")

    @contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            said = error.strerror or type(error).__name__
            if error.errno in _FULL:
                raise DestinationRefused(
                    f"The destination folder's disk is full while {doing}.", hint="Free or add space, then run again."
                ) from error
            if error.errno in _REFUSED:
                raise DestinationRefused(
                    f"The destination folder refused {doing}: {said}.",
                    hint=f"Check who owns {self.root} and what its file system allows.",
                ) from error
            raise DestinationUnreachable(
                f"The destination folder failed while {doing}: {said}.", hint=f"Is the disk of {self.root} mounted?"
            ) from error


def _unless_missing(error: OSError) -> None:
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        raise error
