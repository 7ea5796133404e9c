"""An S3 bucket as destination: the store is told the known checksum, refuses other bytes, and attests what it holds."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from migrate.config import S3Settings
from migrate.counted import counted
from migrate.destinations.s3.answers import Headers, NoAnswer, StoreSaid, base64_of, crc_base64
from migrate.destinations.s3.errors import error_of, telling
from migrate.destinations.s3.probe import Word, probe, still_serves
from migrate.destinations.s3.transport import Transport
from migrate.errors import (
    DestinationError,
    DestinationRefused,
    KeyTaken,
    ObjectDiffers,
    ObjectMissing,
    PutFailed,
    StagedFileLost,
)
from migrate.model import Finding, Fixity, Item, Proof, Receipt, object_key
from migrate.staging.area import copy_into, hash_file, local_error, measured

_CONFLICTS = 6  # 409 means "again": two puts of one key met
_LOOKS_FIRST = "Existing keys are looked up first instead; let nobody else write under the prefix."
_READS_BACK = "Every object is read back and hashed instead: slower, and proven all the same."
_ONE_REQUEST = (
    "The store does not check the CRC64NVME of a whole multipart object; 5 GiB is then the most for an object."
)
_SHA256, _CRC = "x-amz-checksum-sha256", "x-amz-checksum-crc64nvme"


class S3:
    """Objects in a bucket; see `Destination` for the contract.

    What the store's checksums and create-only puts are worth is probed once per process (`Word`). Where they prove
    nothing, staged files are hashed before the put, existing keys are looked up first, and every proof is READ_BACK.
    """

    def __init__(self, settings: S3Settings, *, transport: Callable[[S3Settings], Transport] = Transport) -> None:
        self.settings = settings
        with telling("opening it"):
            self._transport = transport(settings)
        self.identity = f"s3://{settings.bucket}/{settings.prefix} @ {self._transport.endpoint}"
        self._own = f"{settings.prefix}_pacs-migrate/"
        self._lock = threading.Lock()
        self._word: Word | None = None
        self._put_headers = {"content-type": "application/dicom"}
        self._probe_options: dict[str, Any] = {}
        if settings.storage_class:
            self._put_headers["x-amz-storage-class"] = settings.storage_class
            self._probe_options["StorageClass"] = settings.storage_class
        if settings.kms_key_id:
            self._put_headers["x-amz-server-side-encryption"] = "aws:kms"
            self._put_headers["x-amz-server-side-encryption-aws-kms-key-id"] = settings.kms_key_id
            self._probe_options |= {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": settings.kms_key_id}

    # -- the contract
    def check(self) -> list[Finding]:
        """See `Destination.check`."""
        found: list[Finding] = []

        def add(name: str, good: bool, detail: str, otherwise: str = "", hint: str = "") -> None:
            told = Finding(f"destination {name}", "ok", detail, part="destination")
            found.append(told if good else replace(told, level="warn", detail=otherwise, hint=hint))

        doing = "reach"
        try:
            self._look()
            add("reach", True, f"{self.identity} answers.")
            doing = "write"
            word = self._probed()
            self._read(f"{self.settings.prefix}_pacs-migrate/probe", 1 << 10)
            add("write", True, "A probe object was written and read.")
            add(
                "no overwriting",
                word.create_only,
                "A second put is refused.",
                "The store overwrites objects.",
                _LOOKS_FIRST,
            )
            add(
                "checksum",
                word.sha256,
                "The store attests its objects.",
                "The store's checksums prove nothing.",
                _READS_BACK,
            )
            add(
                "multipart",
                word.crc64nvme,
                "Large objects go in parts.",
                "Large objects go in one request.",
                _ONE_REQUEST,
            )
            doing = "unfinished uploads"
            with telling("listing unfinished uploads"):
                left = len(self._transport.orphans(f"{self.settings.prefix}studies/"))
            add(doing, not left, "There are none.", f"{counted(left, 'upload')}.", "They are aborted when a run starts.")
        except DestinationError as error:
            # these cost money, not images
            if doing == "unfinished uploads":
                add(doing, False, "", str(error), "They cannot be cleared from here; a rule of the bucket can do that.")
            else:
                found.append(Finding(f"destination {doing}", "fail", str(error), error.hint, "destination"))
        return found

    def prepare(self) -> None:
        """See `Destination.prepare`: probes the store and aborts multipart uploads that a killed run left."""
        self._look()
        self._probed()
        try:
            for key, upload in self._transport.orphans(f"{self.settings.prefix}studies/"):
                self._abort(key, upload)
        except StoreSaid as said:  # leftovers cost money, not images: no reason not to run
            if said.status not in (400, 403, 404, 405, 501):
                raise error_of(said, "listing unfinished uploads") from said
        except NoAnswer as silence:
            raise error_of(silence, "listing unfinished uploads") from silence

    def put(self, item: Item, file: Path) -> Receipt:
        """See `Destination.put`."""
        headers = self._put_headers | {"x-amz-meta-dataset-sha256": item.fixity.dataset_sha256.hex()}
        return self._put(self._key(item), file, item.fixity, headers)

    def _put(self, key: str, file: Path, fixity: Fixity, headers: dict[str, str]) -> Receipt:
        word = self._probed()
        self._expect_staged(file, fixity, whole=not word.sha256)
        if not word.create_only and (receipt := self._existing(key, fixity)):
            return receipt
        multipart = fixity.size_bytes > self.settings.in_parts_from_bytes and word.crc64nvme
        for attempt in range(1, _CONFLICTS + 1):
            try:
                answer = self._transport.put(key, file, fixity, headers, multipart=multipart)
            except StoreSaid as said:
                # NoSuchUpload: a completion whose answer was lost, asked for once more
                if said.status == 412 or said.code == "NoSuchUpload":
                    if receipt := self._existing(key, fixity):
                        return receipt
                    raise PutFailed("The store said that the key is taken, and then that it is not.") from said
                if said.status == 409 and attempt < _CONFLICTS:
                    time.sleep(random.uniform(0, 0.05 * 2**attempt))
                    continue
                self._explain(error_of(said, "an object"), file, fixity, said)
            except NoAnswer as silence:
                self._explain(error_of(silence, "putting an object"), file, fixity, silence)
            else:
                if multipart:  # the checksum stands in the completion's body, which the client keeps to itself
                    with telling("looking at an object"):
                        answer = {**self._transport.head(key), **answer}
                return _receipt(key, answer)
        raise PutFailed("The store saw conflicting puts of one key again and again.")

    def verify(self, item: Item, *, deep: bool = False) -> Proof:
        """See `Destination.verify`: ATTESTED by the store's own checksum, otherwise READ_BACK."""
        key = item.receipt.key if item.receipt else self._key(item)
        version = item.receipt.version if item.receipt else None
        try:
            return self._prove(key, item.fixity, version, deep=deep)
        except ObjectMissing:
            self._look()  # a look at an object says no more where the whole bucket is gone
            raise

    def listed(self, prefix: str) -> Iterator[tuple[str, int]]:
        """See `Destination.listed`."""
        with telling("listing objects"):
            yield from self._transport.listed(prefix)

    def fetch(self, item: Item, file: Path) -> None:
        """See `Destination.fetch`."""
        key = item.receipt.key if item.receipt else self._key(item)
        with self._reading(key):
            copy_into(self._transport.pieces(key), file)

    def keep(self, name: str, file: Path) -> None:
        """See `Destination.keep`; in the bucket's own storage class, so that it can be read at any time."""
        headers = {key: value for key, value in self._put_headers.items() if key != "x-amz-storage-class"}
        self._put(f"{self._own}{name}", file, measured(file), headers | {"content-type": "application/octet-stream"})

    def kept(self, name: str, file: Path) -> None:
        """See `Destination.kept`."""
        key = f"{self._own}{name}"
        with self._reading(key):
            copy_into(self._transport.pieces(key), file)

    def serves(self) -> bool:
        """See `Destination.serves`."""
        try:
            still_serves(self._transport, self.settings.prefix, self._probe_options)
        except (StoreSaid, NoAnswer):
            return False
        return True

    def close(self) -> None:
        """See `Destination.close`."""
        self._transport.close()

    # -- steps
    def _key(self, item: Item) -> str:
        return object_key(item.ref, self.settings.prefix, beside=item.fixity.dataset_sha256 if item.beside else None)

    def _look(self) -> None:
        """One small listing: unlike HeadBucket it is refused with an error code."""
        with telling("a look at the bucket"):
            self._transport.call("list_objects_v2", Prefix=f"{self.settings.prefix}_pacs-migrate/", MaxKeys=1)

    def _probed(self) -> Word:
        if self._word is not None:
            return self._word
        with self._lock:
            if self._word is None:
                try:
                    self._word = probe(self._transport, self.settings.prefix, self._probe_options)
                except StoreSaid as said:
                    error = error_of(said, "a probe object")
                    if isinstance(error, PutFailed) and said.status < 429:  # no object's fault: it would hit every one
                        error = DestinationRefused(str(error), hint="Check the options under [destination].")
                    raise error from said
                except NoAnswer as silence:
                    raise error_of(silence, "probing the store") from silence
            return self._word

    def _abort(self, key: str, upload: str) -> None:
        try:
            self._transport.call("abort_multipart_upload", Key=key, UploadId=upload)
        except StoreSaid as said:
            if said.code != "NoSuchUpload":
                raise

    def _head(self, key: str) -> Headers:
        with self._reading(key, "looking at an object"):
            try:
                return self._transport.head(key)
            except StoreSaid as said:
                if said.status not in (400, 401, 403):
                    raise
                self._look()  # a refused HEAD has no body that says why: a listing has, and renews credentials that ran out
                return self._transport.head(key)

    @contextmanager
    def _reading(self, key: str, doing: str = "reading an object") -> Iterator[None]:
        """Turns what the transport raises inside into ObjectMissing and what `telling` makes of it."""
        with telling(doing):
            try:
                yield
            except StoreSaid as said:
                if said.status == 404 and said.code in ("HTTP 404", "NoSuchKey"):
                    raise ObjectMissing(f"Nothing stands at {key}.") from said
                raise

    def _read(self, key: str, size_bytes: int) -> tuple[int, bytes, str | None]:
        with self._reading(key):
            return self._transport.sha256_of(key, size_bytes)

    def _prove(self, key: str, fixity: Fixity, version: str | None, *, deep: bool = False,
               headers: Headers | None = None) -> Proof:  # fmt: skip
        word = self._probed()
        headers = self._head(key) if headers is None else headers
        size = headers.get("content-length", "")
        if size.isdigit() and int(size) != fixity.size_bytes:
            raise ObjectDiffers(f"{key} has {size} bytes instead of {fixity.size_bytes}.")
        _same_version(key, version, headers.get("x-amz-version-id"))
        whole = headers.get("x-amz-checksum-type", "FULL_OBJECT") == "FULL_OBJECT"
        said = {
            base64_of(fixity.file_sha256): headers.get(_SHA256) if word.sha256 and whole else None,
            crc_base64(fixity.crc64nvme): headers.get(_CRC) if word.crc64nvme and whole else None,
        }
        for ours, theirs in said.items():
            if theirs and theirs != ours:
                raise ObjectDiffers(f"{key} has other bytes than were received, says the store (checksum {theirs}).")
        if not deep and size.isdigit() and any(said.values()):
            return Proof.ATTESTED
        size_bytes, sha256, found = self._read(key, fixity.size_bytes)
        _same_version(key, version, found)
        if size_bytes != fixity.size_bytes:
            raise ObjectDiffers(f"{key} has other bytes than the {fixity.size_bytes} that were received.")
        if sha256 != fixity.file_sha256:
            raise ObjectDiffers(f"{key} has other bytes than were received (SHA-256 {sha256.hex()}).")
        return Proof.READ_BACK

    def _existing(self, key: str, fixity: Fixity) -> Receipt | None:
        """The receipt of an object that stands there already, if it is ours; None if none is. Raises KeyTaken."""
        try:
            headers = self._head(key)
            self._prove(key, fixity, None, headers=headers)
        except ObjectMissing:
            return None
        except ObjectDiffers as error:
            raise KeyTaken(f"Something else stands at {key}: {error}") from error
        return _receipt(key, headers)

    def _expect_staged(self, file: Path, fixity: Fixity, *, whole: bool) -> None:
        """Raises StagedFileLost unless the file is there with its size (and, with `whole`, its bytes); LocalError."""
        try:
            if whole:
                same = hash_file(file) == (fixity.size_bytes, fixity.file_sha256)
            else:
                same = file.stat().st_size == fixity.size_bytes
        except FileNotFoundError as error:
            raise StagedFileLost("The staged file is gone.") from error
        except OSError as error:
            raise local_error(error, "reading a staged file") from error
        if not same:
            raise StagedFileLost("The staged file's bytes are no longer those that were received.")

    def _explain(self, error: DestinationError, file: Path, fixity: Fixity, cause: Exception) -> None:
        """Raise `error`, or StagedFileLost where a failed put is explained by the staged file itself."""
        if isinstance(error, PutFailed):
            self._expect_staged(file, fixity, whole=True)
        raise error from cause


def _same_version(key: str, ours: str | None, theirs: str | None) -> None:
    if ours and theirs and ours != theirs:
        raise ObjectDiffers(f"{key} has another version ({theirs}) than the one stored ({ours}).")


def _receipt(key: str, headers: Headers) -> Receipt:
    checksum = None
    if value := headers.get(_SHA256):
        checksum = f"SHA256:{value}"
    elif value := headers.get(_CRC):
        checksum = f"CRC64NVME:{value}"
    version = headers.get("x-amz-version-id")
    return Receipt(key, None if version == "null" else version, checksum)
