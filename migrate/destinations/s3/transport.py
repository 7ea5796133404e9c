"""Bytes to and from one bucket: small objects directly, large ones in parts, everything rare or streamed by boto3.

Nothing here knows of proofs: an answer is either headers, or `StoreSaid` (the store's refusal), or `NoAnswer`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from migrate.config import S3Settings
from migrate.destinations.s3.access import Access
from migrate.destinations.s3.answers import Headers, StoreSaid, base64_of, boto_errors, crc_base64
from migrate.destinations.s3.direct import Direct
from migrate.destinations.s3.parts import Parts
from migrate.model import Fixity

_SINGLE_MAX_BYTES = 5 << 30
_SLOWEST_BYTES_S = 128 << 10
_READ_BYTES = 256 << 10
_PATIENCE_S = 120.0


class Transport:
    """One bucket on one store. Connects on first use; threads may share it, processes may not.

    `patience_s` is what any request may take at least; puts and reads get more with their size.
    """

    def __init__(self, settings: S3Settings, *, patience_s: float = _PATIENCE_S) -> None:
        self._patience_s = patience_s
        self._access = Access(settings, read_timeout_s=min(60, patience_s))
        self.endpoint = self._access.endpoint
        self._direct, self._parts = Direct(self._access), Parts(self._access)

    def address(self, key: str) -> tuple[str, str]:
        """(host, encoded path) of an object."""
        return self._access.host, self._access.path(key)

    def put(self, key: str, file: Path, fixity: Fixity, headers: Headers, *, multipart: bool) -> Headers:
        """PutObject of a file, create-only, with a checksum of the whole for the store to check; its headers in lower case.

        With `multipart` in parts, otherwise one request up to 5 GiB; streamed either way. Raises StoreSaid, NoAnswer.
        """
        size_bytes = fixity.size_bytes
        limit_s = self._patience_s + size_bytes / _SLOWEST_BYTES_S
        if multipart:
            whole = {**headers, "x-amz-checksum-crc64nvme": crc_base64(fixity.crc64nvme)}
            return self._access.renewing(lambda: self._parts.put(key, file, size_bytes, whole, limit_s))
        if size_bytes > _SINGLE_MAX_BYTES:
            raise StoreSaid(400, "EntityTooLarge")
        whole = {**headers, "x-amz-checksum-sha256": base64_of(fixity.file_sha256)}
        return self._access.renewing(lambda: self._direct.put(key, file, size_bytes, fixity.file_sha256, whole, limit_s))

    def head(self, key: str) -> Headers:
        """HeadObject with checksums, of the newest version. Raises StoreSaid, NoAnswer."""
        return self._access.renewing(lambda: self._direct.head(key, self._patience_s))

    def call(self, operation: str, **parameters: Any) -> Any:
        """A boto3 call on this bucket, e.g. `call("head_bucket")`. Raises StoreSaid, NoAnswer."""
        if self._access.settings.bucket_owner:
            parameters["ExpectedBucketOwner"] = self._access.settings.bucket_owner

        def ask() -> Any:
            with boto_errors():
                return getattr(self._access.boto, operation)(Bucket=self._access.settings.bucket, **parameters)

        return self._access.renewing(ask)

    def sha256_of(self, key: str, size_bytes: int) -> tuple[int, bytes, str | None]:
        """Fetch an object whole and hash it: (size in bytes, SHA-256, version). Raises StoreSaid, NoAnswer.

        Stops reading after `size_bytes` + 1: a longer object differs anyway.
        """
        answer = self.call("get_object", Key=key)
        digest, size = hashlib.sha256(), 0
        with boto_errors(), answer["Body"] as body:
            while size <= size_bytes and (chunk := body.read(_READ_BYTES)):
                digest.update(chunk)
                size += len(chunk)
        return size, digest.digest(), answer.get("VersionId")

    def pieces(self, key: str) -> Iterator[bytes]:
        """An object, piece by piece. Raises StoreSaid, NoAnswer."""
        answer = self.call("get_object", Key=key)
        with answer["Body"] as body:
            while True:
                with boto_errors():
                    piece = body.read(_READ_BYTES)
                if not piece:
                    return
                yield piece

    def listed(self, prefix: str) -> Iterator[tuple[str, int]]:
        """(key, size in bytes) of every object under a prefix. Raises StoreSaid, NoAnswer."""
        more: dict[str, str] = {}
        while True:
            page = self.call("list_objects_v2", Prefix=prefix, **more)
            yield from ((each["Key"], each["Size"]) for each in page.get("Contents", ()))
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def orphans(self, prefix: str) -> list[tuple[str, str]]:
        """Multipart uploads begun and never ended under a prefix: (key, upload id). Raises StoreSaid, NoAnswer."""
        owner = {"ExpectedBucketOwner": self._access.settings.bucket_owner} if self._access.settings.bucket_owner else {}
        with boto_errors():
            pages = self._access.boto.get_paginator("list_multipart_uploads").paginate(
                Bucket=self._access.settings.bucket, Prefix=prefix, **owner
            )
            uploads = [upload for page in pages for upload in page.get("Uploads", ())]
        return [(each["Key"], each["UploadId"]) for each in uploads if each["Key"].startswith(prefix)]

    def close(self) -> None:
        self._direct.close()
        self._parts.close()
        self._access.boto.close()
