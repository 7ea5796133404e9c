"""What a migrate.toml says, as frozen values. None of them is a secret."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from migrate.model import RetryPolicy


@dataclass(frozen=True, slots=True)
class FolderSettings:
    """[destination] of kind folder: objects are files under `path`."""

    path: Path
    prefix: str = ""


@dataclass(frozen=True, slots=True)
class S3Settings:
    """[destination] of kind s3. `part_bytes`: what is larger than two of these goes up in parts of it; `retries`: of one request."""

    bucket: str
    prefix: str = ""
    region: str | None = None
    endpoint_url: str | None = None
    storage_class: str | None = None
    kms_key_id: str | None = None
    bucket_owner: str | None = None
    workers: int = 8
    part_bytes: int = 8 << 20
    allow_http: bool = False
    retries: int = 4  # with growing waits, some seconds in all; minutes and more are the manifest's
    first_wait_s: float = 0.5  # at most: doubles, with jitter

    @property
    def in_parts_from_bytes(self) -> int:
        """The largest object that is put in one piece."""
        return 2 * self.part_bytes


DestinationSettings = FolderSettings | S3Settings


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """`pin`: SHA-256 in hex of the peer's certificate or of its public key (SubjectPublicKeyInfo)."""

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    pin: str | None = None
    verify_hostname: bool = True


@dataclass(frozen=True, slots=True)
class AuditSettings:
    """Where DICOM audit messages go: a file, or a syslog server (host, port) over TLS. `site`: AuditEnterpriseSiteID."""

    file: Path | None = None
    syslog: tuple[str, int] | None = None
    tls: TlsSettings | None = None
    site: str = ""


@dataclass(frozen=True, slots=True)
class SourceSettings:
    """[source]: the PACS. `associations`: the most C-MOVEs at once; `room_s`: how long uploads may take to release the next staged
    file; `full_s`: a disk that takes nothing for so long is full, before that another study's images may be on their way through it."""

    host: str
    port: int
    ae_title: str
    date_from: str | None = None  # YYYYMMDD
    date_to: str | None = None
    associations: int = 2
    stall_s: float = 600.0
    attempt_s: float = 21600.0
    settle_s: float = 5.0
    modalities: tuple[str, ...] = ()  # only studies with one of these; empty: all
    tls: TlsSettings | None = None
    allow_cleartext: bool = False
    room_s: float = 30.0
    full_s: float = 2.0

    @property
    def bounded(self) -> bool:
        """Whether only a range of dates is migrated."""
        return self.date_from is not None or self.date_to is not None


@dataclass(frozen=True, slots=True)
class ReceiverSettings:
    """[receiver]: our Storage SCP: who may send, and how. `port` 0 lets the system choose one; `max_pdu` in bytes.

    An empty `allow` (addresses and networks) or `allow_ae` lets anyone in. `ack`: answer when the file is closed and scanned, or only when it is
    durable. `transfer_syntaxes`: these are preferred, in this order, where a context proposes them; else its first one is taken, which is what the
    sender has.
    """

    ae_title: str = "PACSMIGRATE"
    host: str = "0.0.0.0"
    port: int = 11112
    allow: tuple[str, ...] = ()
    allow_ae: tuple[str, ...] = ()
    max_pdu: int = 131072
    ack: Literal["received", "durable"] = "received"
    transfer_syntaxes: tuple[str, ...] = ()
    tls: TlsSettings | None = None


@dataclass(frozen=True, slots=True)
class ProofSettings:
    """`signing_key`: an SSH key that signs each anchor. `snapshot_hours`: how often a long run copies the manifest to the destination."""

    signing_key: Path | None = None
    snapshot_hours: float = 24.0


@dataclass(frozen=True, slots=True)
class Config:
    """The whole of a migrate.toml: `path` is the file itself, `sha256` its hash in hex; `workers` upload at once."""

    path: Path
    name: str
    manifest: Path
    staging: Path
    staging_max_bytes: int | None
    operator: str
    source: SourceSettings
    receiver: ReceiverSettings
    destination: DestinationSettings
    workers: int
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    audit: AuditSettings | None = None
    proof: ProofSettings = field(default_factory=ProofSettings)
    sha256: str = ""

    @property
    def source_identity(self) -> str:
        """Which PACS this is: what the manifest compares on every start."""
        return f"{self.source.ae_title}@{self.source.host}:{self.source.port}"
