"""What an S3 store's word is worth, found out by lying to it.

Some stores echo whatever checksum they were sent, or ignore If-None-Match. So a wrong checksum is offered, which must
be refused, and a second create-only put is made, which must be refused, too. Probe objects are a few bytes long, lie
under `{prefix}_pacs-migrate/`, and stay: a sound store keeps two of them for good.
"""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass
from typing import Any

from awscrt.checksums import crc64nvme

from migrate.destinations.s3.answers import StoreSaid, base64_of, crc_base64
from migrate.destinations.s3.transport import Transport

CONTENT = b"pacs-migrate probe\n"
_SHA256 = base64_of(hashlib.sha256(CONTENT).digest())
_WRONG_SHA256 = base64_of(hashlib.sha256(b"other bytes").digest())
_CRC = crc_base64(crc64nvme(CONTENT))
_WRONG_CRC = crc_base64(crc64nvme(b"other bytes"))
_TRIES = 5


@dataclass(frozen=True, slots=True)
class Word:
    """`create_only`: a second put is refused. `sha256`, `crc64nvme`: a wrong checksum is refused and a right one is
    reported afterwards, for single puts and for whole multipart objects."""

    create_only: bool
    sha256: bool
    crc64nvme: bool


def probe(transport: Transport, prefix: str, options: dict[str, Any]) -> Word:
    """Try a store with at most a dozen small requests; `options` are boto3's storage class and encryption.

    Raises StoreSaid, NoAnswer.
    """
    own = f"{prefix}_pacs-migrate/"
    create_only = _refuses_second(transport, f"{own}probe", options)
    sha256 = _refuses_wrong_sha256(transport, f"{own}probe-wrong-{uuid.uuid4().hex}", options)
    reported = transport.call("head_object", Key=f"{own}probe", ChecksumMode="ENABLED")
    sha256 = sha256 and reported.get("ChecksumSHA256") == _SHA256
    return Word(create_only, sha256, sha256 and _checks_multipart(transport, own, options))


def still_serves(transport: Transport, prefix: str, options: dict[str, Any]) -> None:
    """Put the probe object, which stands there already, and look at it. Raises StoreSaid, NoAnswer."""
    _refuses_second(transport, f"{prefix}_pacs-migrate/probe", options)
    transport.call("head_object", Key=f"{prefix}_pacs-migrate/probe")


def _refuses_second(transport: Transport, key: str, options: dict[str, Any]) -> bool:
    for attempt in range(1, _TRIES + 1):
        try:
            transport.call("put_object", Key=key, Body=CONTENT, IfNoneMatch="*", ChecksumSHA256=_SHA256, **options)
        except StoreSaid as said:
            if said.status == 412:
                return True
            if said.status != 409 or attempt == _TRIES:  # 409: another process is putting its probe just now
                raise
        else:
            if attempt > 1:
                return False
    return True


def _refuses_wrong_sha256(transport: Transport, key: str, options: dict[str, Any]) -> bool:
    try:
        transport.call("put_object", Key=key, Body=CONTENT, ChecksumSHA256=_WRONG_SHA256, **options)
    except StoreSaid as said:
        if said.status == 400:
            return True
        raise
    return False


def _checks_multipart(transport: Transport, own: str, options: dict[str, Any]) -> bool:
    """True if a whole-object CRC64NVME is checked on completion, and reported."""
    key = f"{own}probe-multipart"
    try:
        if _multipart(transport, f"{own}probe-wrong-{uuid.uuid4().hex}", _WRONG_CRC, options):
            return False
        _multipart(transport, key, _CRC, options)  # refused with 412 where it stands since an earlier run
        reported = transport.call("head_object", Key=key, ChecksumMode="ENABLED")
    except StoreSaid as said:
        if said.status in (400, 404, 405, 412, 501):  # not known there: large objects go in one request
            return False
        raise
    return bool(reported.get("ChecksumCRC64NVME") == _CRC and reported.get("ChecksumType") == "FULL_OBJECT")


def _multipart(transport: Transport, key: str, crc: str, options: dict[str, Any]) -> bool:
    """One upload with one part; False if its completion was refused (its upload is then aborted)."""
    begun = transport.call(
        "create_multipart_upload", Key=key, ChecksumAlgorithm="CRC64NVME", ChecksumType="FULL_OBJECT", **options
    )
    upload = {"Key": key, "UploadId": begun["UploadId"]}
    try:
        part = transport.call("upload_part", PartNumber=1, Body=CONTENT, ChecksumCRC64NVME=_CRC, **upload)
        parts = [{"PartNumber": 1, "ETag": part["ETag"], "ChecksumCRC64NVME": _CRC}]
        transport.call(
            "complete_multipart_upload", MultipartUpload={"Parts": parts}, ChecksumCRC64NVME=crc,
            ChecksumType="FULL_OBJECT", MpuObjectSize=len(CONTENT), IfNoneMatch="*", **upload,
        )  # fmt: skip
    except StoreSaid as said:
        transport.call("abort_multipart_upload", **upload)
        if said.status in (400, 409, 412):
            return False
        raise
    return True
