"""A command that writes: what it holds from its start to its end, and what its end leaves on record and at the destination."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Self

from migrate.audit_trail.delivery import AuditTrail, open_trail
from migrate.config import Config
from migrate.destinations import close_shared, open_destination, shared_destination
from migrate.errors import DestinationError, Interrupted, LocalError, PacsMigrateError, UsageError
from migrate.failpoints import reach
from migrate.jobs import anchors
from migrate.manifest import Lock, Manifest, Queue
from migrate.manifest.file import expect_manifest
from migrate.manifest.roots import KeptRoots
from migrate.model import Noted, Outcome

_MOVING = ("run", "demo", "verify", "double-check", "restore-manifest", "rebuild")
_ANCHORED = (*_MOVING, "accept", "revoke", "exclude", "readdress")


class Command:
    """Holds the lock, the manifest, its queue and the audit trail. Use as a context manager.

    Raises NoManifest, ManifestLocked, ManifestTooNew, IdentityMismatch, DiskFailing.
    """

    def __init__(self, config: Config, verb: str, *, create: bool = True) -> None:
        self.config, self.verb, self._create = config, verb, create
        self.prefix = config.destination.prefix
        self._stack = contextlib.ExitStack()
        self.exit_code = 1
        self.progress: Callable[[list[Outcome]], None] = lambda _: None
        self.trail: AuditTrail | None = None
        self.copied_at = time.monotonic()

    def __enter__(self) -> Self:
        config = self.config
        key = config.proof.signing_key
        if key is not None and self.verb in _ANCHORED and not key.is_file():  # whoever only reads does not need it
            raise UsageError(f"There is no key {key}.", hint="Set signing_key under [proof] to an SSH key's file, or leave it out.")
        if not self._create:
            expect_manifest(config.manifest)  # before anything is made where perhaps another file was meant
        with contextlib.ExitStack() as stack:
            stack.enter_context(Lock(config.manifest))
            anchors.sweep(config.manifest)
            stack.callback(close_shared)
            destination = open_destination(config.destination)
            identity = {"source": config.source_identity, "destination": destination.identity, "migration": config.name}
            self.manifest = Manifest(config.manifest, identity=identity, policy=config.retry, create=self._create)
            stack.callback(self._end)
            self.manifest.begin_run(self.verb, config.operator, config.sha256)
            reach("run-begun")
            self.trail = open_trail(config)
            if self.trail is not None:
                self.trail.application(started=True)
            self.queue = Queue(config.manifest, prefix=self.prefix)
            stack.callback(self.queue.close)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, PacsMigrateError):
            self.exit_code = error.exit_code
        self._stack.close()

    def _end(self) -> None:
        with contextlib.suppress(PacsMigrateError):
            if self.trail is not None and (lost := self.trail.end(self.exit_code)):
                self.manifest.commit([Noted("audit messages lost", f"{lost} never reached the syslog server")])
        try:
            self.manifest.end_run(self.exit_code)
            with contextlib.suppress(Exception):
                self.anchor()
        except Exception:
            if self.exit_code in (0, 3):  # else what ended the command is told
                raise
        finally:
            self.manifest.close()

    def anchor(self) -> None:
        """The end of a run that moved or decided something goes to the destination, where nobody who changes the manifest can take it back."""
        if self.verb not in _ANCHORED or not self.manifest.run_id or self.exit_code in (DestinationError.exit_code, LocalError.exit_code):
            return
        destination = shared_destination(self.config.destination)
        if self.exit_code == Interrupted.exit_code:  # whoever stops a run does not want to wait for a copy
            anchors.drop_or_warn(self.config, destination, root=False, snapshot=False)
        elif self.verb in _MOVING:
            moved = self.manifest.has_moved()
            roots = KeptRoots(self.manifest, self.prefix)
            while moved and not roots.done:
                roots.some()
            anchors.drop_or_warn(self.config, destination, root=moved, snapshot=True)
        else:
            anchors.drop_or_warn(self.config, destination, root=False, snapshot=None)
        self.copied_at = time.monotonic()


@contextlib.contextmanager
def at_the_end(do: Callable[[], None]) -> Iterator[None]:
    """Do that behind what is inside, however it ends; of two errors the first one counts."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(PacsMigrateError):
            do()
        raise
    do()
