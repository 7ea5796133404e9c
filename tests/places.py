"""Places for objects, with raw access behind a destination's back, and staged files to put there."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from awscrt.checksums import crc64nvme

from migrate.config import DestinationSettings, FolderSettings, S3Settings
from migrate.model import Fixity, InstanceRef, Item, object_key
from tests.ports import free_ports
from tests.s3_server import S3Server

_numbers = itertools.count(1)


def new_number() -> int:
    """A number that no other staged instance of this process has."""
    return next(_numbers)


class Place(Protocol):
    """A destination's settings, and raw access behind its back."""

    @property
    def settings(self) -> DestinationSettings: ...
    def read(self, key: str) -> bytes | None: ...
    def write(self, key: str, content: bytes) -> None: ...
    def remove(self, key: str) -> None: ...
    def stored(self) -> set[str]: ...
    def elsewhere(self, trouble: str) -> DestinationSettings: ...


@dataclass
class FolderPlace:
    settings: FolderSettings

    def read(self, key: str) -> bytes | None:
        path = self.settings.path / key
        return path.read_bytes() if path.exists() else None

    def write(self, key: str, content: bytes) -> None:
        (self.settings.path / key).parent.mkdir(parents=True, exist_ok=True)
        (self.settings.path / key).write_bytes(content)

    def remove(self, key: str) -> None:
        (self.settings.path / key).unlink()

    def stored(self) -> set[str]:
        found = (
            path.relative_to(self.settings.path).as_posix() for path in self.settings.path.rglob("*") if path.is_file()
        )
        return {key for key in found if "_pacs-migrate/" not in key}

    def elsewhere(self, trouble: str) -> DestinationSettings:
        if trouble == "unreachable":  # a link into nowhere, as an unmounted disk leaves it
            (self.settings.path.parent / "gone").symlink_to(self.settings.path.parent / "nowhere" / "deep")
            return replace(self.settings, path=self.settings.path.parent / "gone" / "sub")
        (self.settings.path.parent / "file").write_bytes(b"")
        return replace(self.settings, path=self.settings.path.parent / "file" / "sub")


@dataclass
class BucketPlace:
    settings: S3Settings
    server: S3Server

    def read(self, key: str) -> bytes | None:
        client = self.server.client()
        try:
            content: bytes = client.get_object(Bucket=self.settings.bucket, Key=key)["Body"].read()
        except client.exceptions.NoSuchKey:
            return None
        return content

    def write(self, key: str, content: bytes) -> None:
        self.server.client().put_object(Bucket=self.settings.bucket, Key=key, Body=content)

    def remove(self, key: str) -> None:
        self.server.client().delete_object(Bucket=self.settings.bucket, Key=key)

    def stored(self) -> set[str]:
        pages = self.server.client().get_paginator("list_objects_v2").paginate(Bucket=self.settings.bucket)
        found = (each["Key"] for page in pages for each in page.get("Contents", ()))
        return {key for key in found if "_pacs-migrate/" not in key}

    def elsewhere(self, trouble: str) -> DestinationSettings:
        if trouble == "unreachable":
            return replace(self.settings, endpoint_url=f"http://127.0.0.1:{free_ports(1)[0]}")
        return replace(self.settings, bucket="no-such-bucket")


def staged(folder: Path, content: bytes, *, beside: bool = False, number: int | None = None) -> tuple[Item, Path]:
    """A staged file and its item; UIDs of their own unless `number` says which."""
    number = new_number() if number is None else number
    file = folder / f"staged-{new_number()}.dcm"
    file.write_bytes(content)
    sha256 = hashlib.sha256(content).digest()
    fixity = Fixity(len(content), sha256, hashlib.sha256(content[132:]).digest(), crc64nvme(content))
    return Item(InstanceRef("1.2.3", "1.2.3.4", f"1.2.3.4.{number}"), fixity, beside=beside), file


def key_of(place: Place, item: Item) -> str:
    return object_key(item.ref, place.settings.prefix, beside=item.fixity.dataset_sha256 if item.beside else None)
