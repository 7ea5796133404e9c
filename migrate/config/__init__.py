"""migrate.toml -> frozen dataclasses. Finds all mistakes before it complains, and never holds a secret."""

from __future__ import annotations

import dataclasses
import getpass
import hashlib
import tomllib
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from migrate.config.audit import audit_of
from migrate.config.pacs import clear_text, expect_encryption, receiver_of, source_of
from migrate.config.secrets import looks_secret, secrets_in
from migrate.config.settings import (
    AuditSettings,
    Config,
    DestinationSettings,
    FolderSettings,
    ProofSettings,
    ReceiverSettings,
    S3Settings,
    SourceSettings,
    TlsSettings,
)
from migrate.config.store import destination_of
from migrate.config.table import AMOUNT, POSITIVE, Table, is_amount, is_positive
from migrate.counted import counted
from migrate.errors import ConfigError
from migrate.model import RetryPolicy

EXAMPLE = (Path(__file__).parents[1] / "example.toml").read_text(encoding="utf-8")


def load(path: Path) -> Config:
    """Read and check a migrate.toml; relative paths are relative to the file.

    Raises ConfigError with every mistake in it.
    """
    if not _is_text(path.resolve()):
        raise ConfigError(f"The path of {path} is no UTF-8 text.", hint="Rename the folder or the file: paths stand in the manifest and in the report.")
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
        raise ConfigError(f"{path} is not valid TOML: {error}.", hint='A text needs quotation marks at both ends: name = "practice". The syntax: https://toml.io') from error
    mistakes = list(secrets_in(data))
    config = _read(path.resolve(), data, mistakes)
    if mistakes or config is None:
        raise ConfigError(f"{path} has {counted(len(mistakes), 'mistake')}:", _with_lines(raw.decode(), mistakes), hint="`pacs-migrate init` shows every key.")
    return dataclasses.replace(config, sha256=hashlib.sha256(raw).hexdigest())


def _is_text(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _with_lines(text: str, mistakes: list[str]) -> tuple[str, ...]:
    """In the order of the file, with the line where each mistake's key stands, or else its table begins."""
    placed = sorted(((_line_of(text, mistake), mistake) for mistake in mistakes), key=lambda each: each[0])
    return tuple(f"line {line}: {mistake}" if line else mistake for line, mistake in placed)


def _line_of(text: str, mistake: str) -> int:
    """0 where neither stands in the file."""
    table, _, rest = mistake.partition("]")
    key = rest.strip().split(" ", 1)[0]
    current, begins = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip().startswith("["):
            current = line.strip().split("]")[0]
            begins = begins or (number if current == table else 0)
        elif current == table and line.split("=")[0].strip() == key:
            return number
    return begins


def _read(path: Path, data: dict[str, Any], mistakes: list[str]) -> Config | None:
    tables = ("migration", "source", "receiver", "destination", "retry", "audit", "proof")
    for key in data:
        if not isinstance(data[key], dict) and (why := looks_secret(key)):
            mistakes.append(f"{key} {why}")
        elif key not in tables:
            near = get_close_matches(key, tables, 1)
            mistakes.append(f"[{key}] is not known{f'; did you mean [{near[0]}]?' if near else ''}")
    base = path.parent
    migration = Table("migration", data.get("migration"), mistakes)
    name = migration.take("name", str, required=True, fits=lambda t: bool(t.strip()), must="a name for this migration")
    manifest = migration.take("manifest", str, f"manifests/{name or 'migration'}.db")
    staging = migration.take("staging", str, "staging")
    max_gib = migration.take("staging_max_gib", (int, float), fits=is_positive, must=POSITIVE)
    operator = migration.take("operator", str, None, fits=lambda t: bool(t.strip()), must="a name") or _login()
    migration.done()
    source, receiver = source_of(base, data, mistakes), receiver_of(base, data, mistakes)
    if source is not None:
        expect_encryption(source, receiver, mistakes)
    destination, workers = destination_of(base, data, mistakes)
    retry, audit, proof = _retry(data, mistakes), audit_of(base, data, mistakes), _proof(base, data, mistakes)
    if mistakes or source is None or destination is None:
        return None
    if not receiver.allow:
        receiver = dataclasses.replace(receiver, allow=(source.host,))
    return Config(
        path, name, base / manifest, base / staging, int(max_gib * 2**30) if max_gib else None, operator,
        source, receiver, destination, workers, retry, audit, proof,
    )  # fmt: skip


def _retry(data: dict[str, Any], mistakes: list[str]) -> RetryPolicy:
    table = Table("retry", data.get("retry"), mistakes)
    default = RetryPolicy()
    policy = RetryPolicy(
        attempts=table.take("attempts", int, default.attempts, fits=lambda n: 0 < n <= 1000, must="from 1 to 1000"),
        **{
            key: float(table.take(key, (int, float), getattr(default, key), fits=is_amount, must=AMOUNT))
            for key in ("first_wait_s", "max_wait_s", "unreachable_s")
        },
    )
    table.done()
    return policy


def _proof(base: Path, data: dict[str, Any], mistakes: list[str]) -> ProofSettings:
    table = Table("proof", data.get("proof"), mistakes)
    key = table.take("signing_key", str, fits=lambda t: bool(t.strip()), must="an SSH key's file")
    hours = table.take("snapshot_hours", (int, float), ProofSettings().snapshot_hours, fits=is_positive, must=POSITIVE)
    table.done()
    return ProofSettings(base / key if key else None, float(hours))


def _login() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"


__all__ = [
    "EXAMPLE", "AuditSettings", "Config", "DestinationSettings", "FolderSettings", "ProofSettings", "ReceiverSettings", "S3Settings", "SourceSettings",
    "TlsSettings", "clear_text", "load",
]  # fmt: skip
