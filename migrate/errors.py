"""Every error this package raises on purpose.

PacsMigrateError
├── UsageError                 2   ConfigError · IdentityMismatch
├── ManifestError             10   NoManifest 10 · ManifestLocked 11 · ManifestTooNew 12 · LawBroken
├── SourceError               20
│   ├── SourceUnreachable          scope run, retryable: nobody answers, or associations are rejected for now
│   ├── SourceRefused              scope run: rejected for good (AE title unknown ...)
│   ├── MoveDestinationUnknown     scope run: A801
│   ├── NothingSent                scope run: nothing of three studies, and nothing has ever come
│   ├── SendingStopped             scope run, retryable: it sent, answers, and sends nothing any more
│   ├── MoveFailed                     scope study: it broke off; MoveRefused: A900, Cxxx ...; SourceBusy: A7xx
│   └── QueryRefused · QueryFailed · SourceIncomplete · SourceStalled · VanishedAtSource   scope study
├── DestinationError          21
│   ├── DestinationUnreachable     scope run, retryable; DestinationBusy: it asks for a slower pace
│   ├── DestinationRefused         scope run: credentials, bucket, rights
│   └── PutFailed · ObjectRefused · ObjectMissing · ObjectDiffers · KeyTaken     scope instance
├── LocalError                22   DiskFull · DiskFailing · PortInUse · ProgramMissing (scope run) · StagedFileLost (scope instance)
└── Interrupted              130

A class says whether trying again can help (`retryable`), how many times as long as usual to wait before that (`wait_factor`),
how far the trouble reaches (`scope`), how the process ends if it ends by it (`exit_code`), and what a person can do (`hint`).
"""

from __future__ import annotations

from typing import ClassVar, Literal

Scope = Literal["instance", "study", "run"]


class PacsMigrateError(Exception):
    """One sentence that says what happened; `hint` says what to do about it."""

    exit_code: ClassVar[int] = 1
    retryable: ClassVar[bool] = False
    wait_factor: ClassVar[float] = 1.0
    scope: ClassVar[Scope] = "run"
    default_hint: ClassVar[str] = ""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = self.default_hint if hint is None else hint

    @property
    def name(self) -> str:
        """The class's name: what the manifest and the reports call this error."""
        return type(self).__name__


class UsageError(PacsMigrateError):
    """The command line or the configuration cannot be followed."""

    exit_code = 2


class ConfigError(UsageError):
    """migrate.toml has mistakes; `mistakes` lists all of them, a line each."""

    def __init__(self, message: str, mistakes: tuple[str, ...] = (), *, hint: str | None = None) -> None:
        super().__init__("\n  ".join((message, *mistakes)), hint=hint)
        self.mistakes = mistakes


class IdentityMismatch(UsageError):
    """The manifest belongs to another PACS or another destination."""

    default_hint = "Use the manifest that belongs to this PACS and bucket, or name a new file under [migration] manifest."


class ManifestError(PacsMigrateError):
    """The manifest cannot be used."""

    exit_code = 10


class NoManifest(ManifestError):
    """There is no manifest where one is looked for."""

    default_hint = "`pacs-migrate run` makes one; one that is lost comes back by `pacs-migrate restore-manifest`. Or name the right file with --config."


class ManifestLocked(ManifestError):
    """Another process works on the manifest."""

    exit_code = 11
    default_hint = "Wait for the other process, or stop it with SIGTERM; `status` and `report` work meanwhile."


class ManifestTooNew(ManifestError):
    """A newer version than this one wrote the manifest."""

    exit_code = 12
    default_hint = "Install the version of pacs-migrate that wrote it, or a newer one. Nothing was changed."


class LawBroken(ManifestError):
    """The schema refused a step that its law forbids: a defect of ours, never of the data."""

    exit_code = 10
    default_hint = "Nothing was written. Please report this with the sentence above."


class SourceError(PacsMigrateError):
    """The PACS did not do what it was asked for."""

    exit_code = 20
    scope: ClassVar[Scope] = "study"
    retryable = True


class SourceUnreachable(SourceError):
    """Nobody answers at the PACS's address, or the association was lost."""

    scope: ClassVar[Scope] = "run"
    default_hint = "Check that the PACS is up, and host, port and firewall under [source]."


class SourceRefused(SourceError):
    """The PACS answers and will not have us."""

    scope: ClassVar[Scope] = "run"
    retryable = False
    default_hint = "Ask the PACS administrator to register our AE title (under [receiver]) and our address."


class MoveDestinationUnknown(SourceRefused):
    """The PACS does not know our AE title as a C-MOVE destination (A801)."""

    default_hint = (
        "Ask the PACS administrator to register our AE title, address and port (under [receiver]) as a C-MOVE destination."
    )


class NothingSent(SourceRefused):
    """The PACS ends one C-MOVE after the other, by Success or a failure, and has not sent a single image."""

    default_hint = (
        "Ask the PACS administrator which AE title, address and port the PACS has for us (under [receiver]), and whether a firewall "
        "lets it connect to us."
    )


class SendingStopped(SourceError):
    """The PACS sent, answers still, and sends nothing any more."""

    scope: ClassVar[Scope] = "run"
    default_hint = "Look at the PACS's log and at the network from it to us, then run again: no study was given up for it."


class QueryRefused(SourceError):
    """The PACS refused a question (A700, A900, Cxxx): a narrower one may be answered."""

    default_hint = "The question is asked again in smaller pieces."


class QueryFailed(SourceError):
    """An answer broke off or could not be decoded: it counts as no answer at all."""

    default_hint = "The question is asked again."


class SourceIncomplete(SourceError):
    """Not all images that are listed have come."""

    default_hint = "The PACS lists images that it does not send. Look at its log for this study, then `pacs-migrate retry`."


class SourceStalled(SourceError):
    """A time limit of [source] was reached."""

    default_hint = "Nothing came for `stall_s`, or an attempt took longer than `attempt_s`; raise them for a slow PACS."


class MoveFailed(SourceError):
    """The association broke in the middle of a C-MOVE."""

    default_hint = "Look at the PACS's log for this study, then `pacs-migrate retry`."


class MoveRefused(MoveFailed):
    """The PACS ended a C-MOVE with a failure (A900, Cxxx ...): soon again it would say the same."""

    wait_factor = 10.0


class SourceBusy(MoveFailed):
    """The PACS is out of resources (A7xx): it needs time, not more questions."""

    wait_factor = 4.0


class VanishedAtSource(SourceError):
    """A study is not shown any more, or none of its images."""

    wait_factor = 10.0
    default_hint = "The PACS no longer shows it. Ask its administrator, then `retry`, or `accept` it."


class DestinationError(PacsMigrateError):
    """The store did not do what it was asked for."""

    exit_code = 21
    scope: ClassVar[Scope] = "instance"
    retryable = True


class DestinationUnreachable(DestinationError):
    """Nobody answers at the store's address."""

    scope: ClassVar[Scope] = "run"
    default_hint = "Check network, endpoint_url and region under [destination]."


class DestinationBusy(DestinationUnreachable):
    """The store asks for a slower pace."""

    wait_factor = 10.0
    default_hint = "The store asks for a slower pace, and gets it. Fewer workers under [destination] help."


class DestinationRefused(DestinationError):
    """The store answers and will not have us, or has no such bucket."""

    scope: ClassVar[Scope] = "run"
    retryable = False
    default_hint = "Check credentials, bucket name, owner and rights (PutObject, GetObject, ListBucket)."


class PutFailed(DestinationError):
    """An object was not stored."""

    default_hint = "The store refused or lost this object; it is put again."


class ObjectRefused(DestinationError):
    """The store fails for one object again and again while it serves others."""

    wait_factor = 4.0
    default_hint = "Look at the store's log for this key, then `pacs-migrate retry`."


class ObjectMissing(DestinationError):
    """Nothing stands under the key of an object that was stored."""

    default_hint = "`run` fetches it from the PACS and puts it again."


class ObjectDiffers(DestinationError):
    """Other bytes than ours stand under the key; nothing was overwritten."""

    default_hint = "`run` puts a sound copy beside it; then look at the foreign object and `accept` the study."


class KeyTaken(ObjectDiffers):
    """A create-only put found other bytes under its key."""


class LocalError(PacsMigrateError):
    """This machine cannot go on."""

    exit_code = 22
    scope: ClassVar[Scope] = "run"


class DiskFull(LocalError):
    """No space is left, or no more may be used."""

    retryable = True
    default_hint = "Free space on the disk under [migration] staging (or the manifest's), then run again."


class DiskFailing(LocalError):
    """An operation on a file failed otherwise."""

    default_hint = "The disk reported an error. Check it before you go on; nothing that was promised is lost."


class PortInUse(LocalError):
    """The receiver's port is taken."""

    default_hint = "Another program listens on [receiver] port. Stop it or choose another port (and tell the PACS)."


class ProgramMissing(LocalError):
    """A program of the operating system that this verb calls is not installed."""

    default_hint = "Install the program that the sentence names."


class StagedFileLost(LocalError):
    """A staged file is gone or its bytes changed: the PACS is asked again."""

    scope: ClassVar[Scope] = "instance"
    retryable = True
    default_hint = "The instance is fetched again. If this repeats, check the staging disk."


class Interrupted(PacsMigrateError):
    """A signal ended the command."""

    exit_code = 130
    default_hint = "Run the same command again to go on."


def wait_factor(name: str) -> float:
    """How many times as long as usual to wait after the error of this name; 1 where it is none of ours."""
    found = globals().get(name)
    return found.wait_factor if isinstance(found, type) and issubclass(found, PacsMigrateError) else 1.0
