"""migrate.toml -> frozen dataclasses. Finds all mistakes before it complains, and never holds a secret."""

from __future__ import annotations

import dataclasses
import datetime
import getpass
import hashlib
import ipaddress
import math
import os
import re
import socket
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from migrate.errors import ConfigError
from migrate.model import RetryPolicy

_SECRETS = ("secret", "password", "passwd", "access_key", "token", "credential")


@dataclass(frozen=True, slots=True)
class FolderSettings:
    path: Path
    prefix: str = ""


@dataclass(frozen=True, slots=True)
class S3Settings:
    bucket: str
    prefix: str = ""
    region: str | None = None
    endpoint_url: str | None = None
    storage_class: str | None = None
    kms_key_id: str | None = None
    bucket_owner: str | None = None
    workers: int = 8
    allow_http: bool = False


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
class SourceSettings:
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

    @property
    def bounded(self) -> bool:
        """Whether only a range of dates is migrated."""
        return self.date_from is not None or self.date_to is not None


@dataclass(frozen=True, slots=True)
class ReceiverConfig:
    ae_title: str = "PACSMIGRATE"
    host: str = "0.0.0.0"
    port: int = 11112
    allow: tuple[str, ...] = ()
    allow_ae: tuple[str, ...] = ()
    max_pdu: int = 131072
    ack: str = "received"
    transfer_syntaxes: tuple[str, ...] = ()
    tls: TlsSettings | None = None


@dataclass(frozen=True, slots=True)
class Config:
    path: Path
    name: str
    manifest: Path
    staging: Path
    staging_max_bytes: int | None
    operator: str
    source: SourceSettings
    receiver: ReceiverConfig
    destination: DestinationSettings
    workers: int
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    sha256: str = ""

    @property
    def source_identity(self) -> str:
        """Which PACS this is: what the manifest compares on every start."""
        return f"{self.source.ae_title}@{self.source.host}:{self.source.port}"


class _Table:
    """One TOML table being read: takes keys out, collects mistakes, and complains about what is left."""

    def __init__(self, name: str, data: Any, mistakes: list[str]) -> None:
        self.name, self.mistakes = name, mistakes
        self.known: list[str] = []
        if data is not None and not isinstance(data, dict):
            self.wrong("", "is not a table")
            data = None
        self.data: dict[str, Any] = dict(data or {})

    def wrong(self, key: str, why: str) -> None:
        self.mistakes.append(f"[{self.name}] {key} {why}".replace("  ", " "))

    def take(self, key: str, kind: type | tuple[type, ...], default: Any = None, *, required: bool = False,
             fits: Callable[[Any], bool] | None = None, must: str = "") -> Any:  # fmt: skip
        self.known.append(key)
        if key not in self.data:
            if required:
                self.wrong(key, f"is missing{': ' + must if must else ''}")
            return default
        value = self.data.pop(key)
        kinds = kind if isinstance(kind, tuple) else (kind,)
        # bool is an int and datetime is a date to isinstance; neither is meant
        stray = (isinstance(value, bool) and bool not in kinds) or isinstance(value, datetime.datetime)
        if stray or not isinstance(value, kinds):
            self.wrong(key, f"must be {' or '.join(_NAMES[k] for k in kinds)}")
            return default
        if isinstance(value, float) and not math.isfinite(value):
            self.wrong(key, f"must be {must or 'a number'}, and finite")
            return default
        if fits is not None and not fits(value):
            self.wrong(key, f"must be {must}")
            return default
        return value

    def done(self) -> None:
        for key in self.data:
            if any(word in key.lower() for word in _SECRETS):
                self.wrong(key, "looks like a secret: credentials come from the AWS chain (environment, profile, role)")
                continue
            near = get_close_matches(key, self.known, 1)
            self.wrong(key, f"is not known{f'; did you mean {near[0]}?' if near else ''}")


_NAMES: Mapping[type, str] = {
    str: "a text", int: "a whole number", float: "a number", bool: "true or false", list: "a list",
    datetime.date: "a date like 1995-01-01",
}  # fmt: skip


def _is_title(text: str) -> bool:
    return 0 < len(text.strip()) <= 16 and text.isascii() and text.isprintable() and "\\" not in text


def _are_modalities(values: list[Any]) -> bool:
    return bool(values) and all(isinstance(value, str) and re.fullmatch(r"[A-Z0-9_]{1,16}", value) for value in values)


def _is_port(number: int) -> bool:
    return 0 < number < 65536


def _is_network(text: Any) -> bool:
    try:
        ipaddress.ip_network(text, strict=False)
    except (ValueError, TypeError):
        return False
    return isinstance(text, str)  # a bare number would pass as an address


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


_TITLE = "1 to 16 printable ASCII characters (a DICOM AE title)"
_PORT = "a port from 1 to 65535"
_POSITIVE = "greater than 0"


def load(path: Path) -> Config:
    """Read and check a migrate.toml; relative paths are relative to the file.

    Raises ConfigError with every mistake in it.
    """
    try:
        raw = path.read_bytes()
        data = tomllib.loads(raw.decode())
    except FileNotFoundError as error:
        raise ConfigError(
            f"There is no configuration file {path}.",
            hint="Write one with `pacs-migrate init`, or name it with --config.",
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read.", hint="It must be a UTF-8 text file that you may read.") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}.", hint="See https://toml.io for the syntax.") from error
    mistakes: list[str] = []
    config = _read(path.resolve(), data, mistakes)
    if mistakes or config is None:
        numbered = tuple(_with_line(raw.decode(), mistake) for mistake in mistakes)
        raise ConfigError(f"{path} has {len(mistakes)} mistake(s):", numbered, hint="`pacs-migrate init` shows every key.")
    return dataclasses.replace(config, sha256=hashlib.sha256(raw).hexdigest())


def _with_line(text: str, mistake: str) -> str:
    """Put the number of the line in front, where the mistake's key stands in the file."""
    table, _, rest = mistake.partition("] ")
    key = rest.split(" ", 1)[0]
    current = ""
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if stripped.startswith("["):
            current = stripped.split("]")[0]
            if current == table and not key:
                return f"line {number}: {mistake}"
        elif current == table and stripped.split("=")[0].strip() == key:
            return f"line {number}: {mistake}"
    return mistake


def _read(path: Path, data: dict[str, Any], mistakes: list[str]) -> Config | None:
    tables = ("migration", "source", "receiver", "destination", "retry")
    for key in data:
        if key not in tables:
            near = get_close_matches(key, tables, 1)
            mistakes.append(f"[{key}] is not known{f'; did you mean [{near[0]}]?' if near else ''}")
    base = path.parent
    migration = _Table("migration", data.get("migration"), mistakes)
    name = migration.take("name", str, required=True, fits=lambda t: bool(t.strip()), must="a name for this migration")
    manifest = migration.take("manifest", str, f"manifests/{name or 'migration'}.db")
    staging = migration.take("staging", str, "staging")
    max_gib = migration.take("staging_max_gib", (int, float), fits=lambda n: n > 0, must=_POSITIVE)
    operator = migration.take("operator", str, None, fits=lambda t: bool(t.strip()), must="a name") or _login()
    migration.done()
    source, receiver = _source(base, data, mistakes), _receiver(base, data, mistakes)
    if source is not None:
        _clear_text(source, receiver, mistakes)
    destination, workers = _destination(base, data, mistakes)
    retry = _retry(data, mistakes)
    if mistakes or source is None or destination is None:
        return None
    if not receiver.allow:
        receiver = dataclasses.replace(receiver, allow=(source.host,))
    return Config(
        path, name, base / manifest, base / staging, int(max_gib * 2**30) if max_gib else None, operator,
        source, receiver, destination, workers, retry,
    )  # fmt: skip


def _tls(base: Path, owner: _Table, mistakes: list[str]) -> TlsSettings | None:
    """The table `[source.tls]` or `[receiver.tls]`, whose files must be there; None without it."""
    if "tls" not in owner.data:
        return None
    table = _Table(f"{owner.name}.tls", owner.data.pop("tls"), mistakes)
    files: dict[str, Path | None] = {}
    for key in ("ca", "cert", "key"):
        name = table.take(key, str)
        files[key] = path = base / name if name else None
        if path is None:
            continue
        if not os.access(path, os.R_OK) or not path.is_file():
            table.wrong(key, "is no file that can be read")
        elif key == "key" and os.name == "posix" and path.stat().st_mode & 0o077:
            table.wrong(key, "can be read by others, who could then pass for us: chmod 600")
    pin = table.take("pin", str, None, fits=lambda t: re.fullmatch("[0-9a-f]{64}", _bare(t)) is not None,
                     must="the SHA-256 of a certificate or of its public key: 64 hexadecimal digits")  # fmt: skip
    verify = table.take("verify_hostname", bool, pin is None and owner.name == "source")
    table.done()
    if bool(files["cert"]) != bool(files["key"]):
        table.wrong("cert", "and key belong together")
    if owner.name == "receiver":
        for key in ("ca", "cert"):
            if files[key] is None:
                table.wrong(key, "is missing: the PACS and we show each other a certificate")
        if verify:
            table.wrong("verify_hostname", "is for [source.tls]; name the PACS's certificate with pin")
    elif files["ca"] is None and pin is None:
        table.wrong("ca", "is missing (or a pin): without one anybody could pass for the PACS")
    elif files["ca"] is None and verify:
        table.wrong("verify_hostname", "needs ca")
    elif not verify and pin is None:
        table.wrong("verify_hostname", "may be false only with a pin: else every certificate of this CA would pass for the PACS")
    return TlsSettings(files["ca"], files["cert"], files["key"], _bare(pin) if pin else None, verify)


def _bare(digest: str) -> str:
    return digest.replace(":", "").lower()


def clear_text(source: SourceSettings, receiver: ReceiverConfig) -> list[str]:
    """Which links to the PACS are not encrypted: questions, images."""
    return [what for what, tls in (("questions", source.tls), ("images", receiver.tls)) if tls is None]


def _clear_text(source: SourceSettings, receiver: ReceiverConfig, mistakes: list[str]) -> None:
    """Plain DICOM outside one's own network is a mistake unless it is said to be meant."""
    open_links = clear_text(source, receiver)
    if not open_links or source.allow_cleartext:
        return
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(source.host, None)}
    except (OSError, UnicodeError):
        return  # nobody can be reached under this name
    if not all(ip.is_private or ip.is_loopback or ip.is_link_local for ip in map(ipaddress.ip_address, (f.partition("%")[0] for f in found))):
        mistakes.append(
            f"[source] host is a public address, and {' and '.join(open_links)} would cross the open network in clear text, with "
            "patients' names; set up [source.tls] and [receiver.tls], or allow_cleartext = true if a tunnel encrypts the link"
        )


def _source(base: Path, data: dict[str, Any], mistakes: list[str]) -> SourceSettings | None:
    table = _Table("source", data.get("source"), mistakes)
    table.take("kind", str, "dimse-move", fits=lambda k: k == "dimse-move", must='"dimse-move"')
    host = table.take("host", str, required=True, fits=lambda t: bool(t.strip()), must="the PACS's address")
    port = table.take("port", int, required=True, fits=_is_port, must=_PORT)
    title = table.take("ae_title", str, required=True, fits=_is_title, must=_TITLE)
    first = table.take("from", datetime.date)
    last = table.take("to", datetime.date)
    if first and last and first > last:
        table.wrong("from", "is later than to")
    more = {
        "associations": table.take("associations", int, 2, fits=lambda n: 0 < n <= 64, must="from 1 to 64"),
        "stall_s": float(table.take("stall_s", (int, float), 600, fits=lambda n: n > 0, must=_POSITIVE)),
        "attempt_s": float(table.take("attempt_s", (int, float), 21600, fits=lambda n: n > 0, must=_POSITIVE)),
        "settle_s": float(table.take("settle_s", (int, float), 5, fits=lambda n: n >= 0, must="0 or more")),
        "modalities": tuple(table.take("modalities", list, [], fits=_are_modalities, must='a list of modalities, such as ["CT", "MR"]')),
        "allow_cleartext": table.take("allow_cleartext", bool, False),
        "tls": _tls(base, table, mistakes),
    }
    table.done()
    if host is None or port is None or title is None:
        return None
    dates = [day.strftime("%Y%m%d") if day else None for day in (first, last)]
    return SourceSettings(host, port, title, dates[0], dates[1], **more)


def _receiver(base: Path, data: dict[str, Any], mistakes: list[str]) -> ReceiverConfig:
    table = _Table("receiver", data.get("receiver"), mistakes)
    settings = ReceiverConfig(
        ae_title=table.take("ae_title", str, "PACSMIGRATE", fits=_is_title, must=_TITLE),
        host=table.take("host", str, "0.0.0.0"),
        port=table.take("port", int, 11112, fits=_is_port, must=_PORT),
        allow=tuple(table.take("allow", list, [], fits=lambda v: all(map(_is_network, v)), must="a list of addresses or networks")),
        allow_ae=tuple(table.take("allow_ae", list, [], fits=lambda v: all(isinstance(t, str) and _is_title(t) for t in v),
                                  must="a list of AE titles")),
        max_pdu=table.take("max_pdu", int, 131072, fits=lambda n: 4096 <= n <= 1 << 24, must="from 4096 to 16777216"),
        ack=table.take("ack", str, "received", fits=lambda t: t in ("received", "durable"), must='"received" or "durable"'),
        transfer_syntaxes=tuple(table.take("transfer_syntaxes", list, [], fits=lambda v: all(isinstance(t, str) for t in v),
                                           must="a list of transfer syntax UIDs, the most wanted first")),
        tls=_tls(base, table, mistakes),
    )  # fmt: skip
    table.done()
    return settings


def _destination(base: Path, data: dict[str, Any], mistakes: list[str]) -> tuple[DestinationSettings | None, int]:
    table = _Table("destination", data.get("destination"), mistakes)
    kind = table.take("kind", str, required=True, fits=lambda k: k in ("s3", "folder"), must='"s3" or "folder"')
    prefix = table.take("prefix", str, "", fits=_is_prefix, must="a relative path without . or .. in it")
    if prefix and not prefix.endswith("/"):
        prefix += "/"
    workers = table.take("workers", int, 8, fits=lambda n: 0 < n <= 256, must="from 1 to 256")
    result: DestinationSettings | None = None
    if kind == "folder":
        where = table.take("path", str, required=True, must="the folder that takes the objects")
        result = FolderSettings(base / where, prefix) if where else None
    elif kind == "s3":
        bucket = table.take("bucket", str, required=True, must="the bucket's name")
        endpoint = table.take("endpoint_url", str, None, fits=lambda t: urlsplit(t).scheme in ("http", "https") and bool(urlsplit(t).hostname),
                              must="an address that begins with https://")  # fmt: skip
        allow_http = table.take("allow_http", bool, False)
        if endpoint and urlsplit(endpoint).scheme == "http" and not allow_http and not _is_loopback(urlsplit(endpoint).hostname or ""):
            table.wrong("endpoint_url", "is not encrypted; use https://, or set allow_http = true if that is really meant")
        options = {key: table.take(key, str) for key in ("region", "storage_class", "kms_key_id", "bucket_owner")}
        if bucket:
            result = S3Settings(bucket, prefix, endpoint_url=endpoint, workers=workers, allow_http=allow_http, **options)
    if kind is not None:
        table.done()
    return result, workers


def _is_prefix(text: str) -> bool:
    parts = text.rstrip("/").split("/") if text else []
    return not text.startswith("/") and "\\" not in text and all(part not in ("", ".", "..") for part in parts)


def _retry(data: dict[str, Any], mistakes: list[str]) -> RetryPolicy:
    table = _Table("retry", data.get("retry"), mistakes)
    default = RetryPolicy()
    policy = RetryPolicy(
        attempts=table.take("attempts", int, default.attempts, fits=lambda n: 0 < n <= 1000, must="from 1 to 1000"),
        **{
            key: float(table.take(key, (int, float), getattr(default, key), fits=lambda n: n >= 0, must="0 or more"))
            for key in ("first_wait_s", "max_wait_s", "unreachable_s")
        },
    )
    table.done()
    return policy


def _login() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"


EXAMPLE = (Path(__file__).parent / "example.toml").read_text(encoding="utf-8")
