"""Bytes to and from an S3 store: awscrt's S3Client for puts and heads, boto3 for everything small or streamed.

Nothing here knows of proofs: an answer is either headers, or `StoreSaid` (the store's refusal), or `NoAnswer`.
"""

from __future__ import annotations

import base64
import concurrent.futures
import hashlib
import ipaddress
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import quote, urlsplit

import boto3
import botocore.exceptions
import botocore.parsers
import botocore.session
from awscrt.auth import AwsCredentials, AwsCredentialsProvider
from awscrt.exceptions import AwsCrtError
from awscrt.http import HttpHeaders, HttpRequest
from awscrt.io import ClientBootstrap, ClientTlsContext, DefaultHostResolver, EventLoopGroup, TlsContextOptions
from awscrt.s3 import (
    S3Client,
    S3FileIoOptions,
    S3RequestTlsMode,
    S3RequestType,
    S3ResponseError,
    S3RetryConfig,
    create_default_s3_signing_config,
)
from botocore.config import Config

from migrate.config import S3Settings
from migrate.errors import DestinationRefused

MULTIPART_FROM_BYTES = 16 << 20
_PART_BYTES = 8 << 20
_MEMORY_BYTES = 256 << 20  # the least that the client accepts; whole parts are streamed, so it stays far below
_SINGLE_MAX_BYTES = 5 << 30
_SLOWEST_BYTES_S = 128 << 10
_PATIENCE_S = 120.0
_CONNECT_S = 10
_RETRIES = 4  # with growing waits, some seconds in all; minutes and more are the caller's
_FIRST_WAIT_MS = 500  # at most: doubles, with jitter
_CODE = re.compile(rb"<Code>\s*([A-Za-z0-9._-]{1,80})\s*</Code>")

_OUT_OF_DATE = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "InvalidToken", "InvalidAccessKeyId"}

Headers = Mapping[str, str]
T = TypeVar("T")


class StoreSaid(Exception):
    """The store answered and did not do it; `code` is its own error code, or `HTTP nnn` where it gave none."""

    def __init__(self, status: int, code: str | None, headers: Headers | None = None) -> None:
        self.status, self.code = status, code or f"HTTP {status}"
        self.headers = headers or {}
        super().__init__(self.code)


class NoAnswer(Exception):
    """No answer came. `kind` tells whose trouble it is: the network's, our credentials', or our own file's."""

    def __init__(self, reason: str, kind: str = "network") -> None:
        self.reason, self.kind = reason, kind
        super().__init__(reason)


def base64_of(digest: bytes) -> str:
    """A checksum as S3 headers carry it."""
    return base64.b64encode(digest).decode()


def crc_base64(crc64nvme: int) -> str:
    """A CRC64NVME as S3 headers carry it: big-endian, base64."""
    return base64_of(crc64nvme.to_bytes(8, "big"))


def error_code(body: bytes | None) -> str | None:
    """The error code in an answer's body; None for an empty, HTML or broken one."""
    match = _CODE.search(body or b"")
    return match[1].decode() if match else None


class Transport:
    """One bucket on one store. Connects on first use; threads may share it, processes may not.

    `patience_s` is what any request may take at least; puts and reads get more with their size.
    """

    def __init__(self, settings: S3Settings, *, patience_s: float = _PATIENCE_S) -> None:
        self.settings, self._patience_s = settings, patience_s
        core = botocore.session.Session()
        with _boto_errors():
            self._session = boto3.Session(botocore_session=core, region_name=settings.region)
            self._style: Literal["path", "auto"] = "path" if settings.endpoint_url else "auto"
            self.region: str = settings.region or self._session.region_name or "us-east-1"
            self.boto = self._boto()
            self._ca_file = core.get_config_variable("ca_bundle")
            url = urlsplit(self.boto.meta.endpoint_url)
            is_aws = (url.hostname or "").endswith((".amazonaws.com", ".amazonaws.com.cn"))
            if not is_aws and not settings.endpoint_url:  # AWS_ENDPOINT_URL or a profile names it
                self._style = "path"
                self.boto = self._boto()
        own = f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path.rstrip('/')}"
        self.endpoint = "aws" if is_aws else own
        self._encrypted = url.scheme == "https"
        if not self._encrypted and not settings.allow_http and not _is_loopback(url.hostname or ""):
            raise DestinationRefused(
                "The endpoint is not encrypted.", hint="Use https://, or set allow_http = true if that is really meant."
            )
        self._host, self._base = url.netloc.rpartition("@")[2], url.path.rstrip("/")
        if (
            is_aws and not settings.endpoint_url and "." not in settings.bucket
        ):  # a dotted bucket does not fit the certificate
            self._host = f"{settings.bucket}.{self._host}"
        else:
            self._base += "/" + quote(settings.bucket, safe="")
        self._owner = {"x-amz-expected-bucket-owner": settings.bucket_owner} if settings.bucket_owner else {}
        self._lock = threading.Lock()
        self._client: S3Client | None = None
        self._last_credentials: AwsCredentials | None = None
        self._last_known: Any = None

    def _boto(self) -> Any:
        config = Config(
            s3={"addressing_style": self._style}, retries={"mode": "standard", "total_max_attempts": 3},
            connect_timeout=_CONNECT_S, read_timeout=min(60, self._patience_s),
            max_pool_connections=max(10, self.settings.workers),
            request_checksum_calculation="when_required", response_checksum_validation="when_required",
        )  # fmt: skip
        return self._session.client(
            "s3", endpoint_url=self.settings.endpoint_url, config=config, region_name=self.region
        )

    def address(self, key: str) -> tuple[str, str]:
        """(host, encoded path) of an object: the bucket is in the host's name at AWS, in the path elsewhere."""
        return self._host, f"{self._base}/{quote(key, safe='/~')}"

    # -- large and many: awscrt
    def put(self, key: str, file: Path, size_bytes: int, headers: Mapping[str, str], *, multipart: bool) -> Headers:
        """PutObject of a file, create-only; answers with the store's headers in lower case.

        With `multipart` in parts, otherwise one request up to 5 GiB; streamed either way. Raises StoreSaid, NoAnswer.
        """
        if not multipart and size_bytes > _SINGLE_MAX_BYTES:
            raise StoreSaid(400, "EntityTooLarge")
        threshold = MULTIPART_FROM_BYTES if multipart else max(size_bytes + 1, MULTIPART_FROM_BYTES)
        return self._request(
            "PUT", key, {"content-length": str(size_bytes), "if-none-match": "*", **headers},
            self._patience_s + size_bytes / _SLOWEST_BYTES_S, type=S3RequestType.PUT_OBJECT, send_filepath=str(file),
            multipart_upload_threshold=threshold,
        )  # fmt: skip

    def head(self, key: str) -> Headers:
        """HeadObject with checksums, of the newest version. Raises StoreSaid, NoAnswer."""
        return self._request(
            "HEAD", key, {"x-amz-checksum-mode": "ENABLED"}, self._patience_s,
            type=S3RequestType.DEFAULT, operation_name="HeadObject",
        )  # fmt: skip

    def _request(self, method: str, key: str, headers: Mapping[str, str], limit_s: float, **options: Any) -> Headers:
        return self._renewing(lambda: self._requested(method, key, headers, limit_s, **options))

    def _requested(self, method: str, key: str, headers: Mapping[str, str], limit_s: float, **options: Any) -> Headers:
        answer: dict[str, str] = {}

        def on_headers(status_code: int, headers: list[tuple[str, str]], **_: object) -> None:
            answer.update((name.lower(), value) for name, value in headers)

        host, path = self.address(key)
        request = HttpRequest(method, path, HttpHeaders([("host", host), *headers.items(), *self._owner.items()]))
        try:
            running = self._connected().make_request(request=request, on_headers=on_headers, **options)
        except AwsCrtError as error:
            raise _trouble(error) from error
        try:
            running.finished_future.result(limit_s)
        except concurrent.futures.TimeoutError as error:
            running.cancel()  # also aborts a multipart upload
            with suppress(Exception):
                running.finished_future.result(5)
            raise NoAnswer(f"nothing was finished within {limit_s:.0f} s") from error
        except S3ResponseError as error:
            said = {name.lower(): value for name, value in error.headers or ()}
            raise StoreSaid(error.status_code or 0, error_code(error.body), said) from error
        except AwsCrtError as error:
            raise _trouble(error) from error
        finally:
            del running  # its future holds the error, the error this frame: a circle that would keep the client alive
        return answer

    def _connected(self) -> S3Client:
        with self._lock:
            if self._client is None:
                loops = EventLoopGroup(2)
                bootstrap = ClientBootstrap(loops, DefaultHostResolver(loops))
                provider = AwsCredentialsProvider.new_delegate(self._for_the_client)
                tls = None
                if self._encrypted and self._ca_file:
                    options = TlsContextOptions()
                    options.override_default_trust_store_from_path(None, str(self._ca_file))
                    tls = ClientTlsContext(options).new_connection_options()
                self._client = S3Client(
                    bootstrap=bootstrap, region=self.region, tls_connection_options=tls,
                    tls_mode=S3RequestTlsMode.ENABLED if self._encrypted else S3RequestTlsMode.DISABLED,
                    signing_config=create_default_s3_signing_config(region=self.region, credential_provider=provider),
                    part_size=_PART_BYTES, multipart_upload_threshold=MULTIPART_FROM_BYTES, memory_limit=_MEMORY_BYTES,
                    fio_options=S3FileIoOptions(should_stream=True), connect_timeout_ms=_CONNECT_S * 1000,
                    max_active_connections_override=self.settings.workers,
                    retry_config=S3RetryConfig(max_retries=_RETRIES, backoff_scale_factor_ms=_FIRST_WAIT_MS),
                )  # fmt: skip
            return self._client

    def _for_the_client(self) -> AwsCredentials | None:
        """Asked on the client's own threads, where nothing may be raised: at worst the last credentials known."""
        with suppress(NoAnswer, StoreSaid):
            self._credentials()
        return self._last_credentials

    def _credentials(self) -> Any:
        """Look for credentials, renewing them if it is time to, and keep them for the client. Raises NoAnswer."""
        now = self._frozen()
        if now is None:
            raise NoAnswer("no credentials were found", "credentials")
        if now != self._last_known:
            self._last_credentials = AwsCredentials(now.access_key, now.secret_key, now.token)
            self._last_known = now  # last: another thread that finds it must find the credentials, too
        return now

    def _renewing(self, ask: Callable[[], T]) -> T:
        """`ask`, and once more with other credentials if the store says that ours ran out and the chain has others by now."""
        used = self._credentials()
        try:
            return ask()
        except StoreSaid as said:
            if said.code not in _OUT_OF_DATE or not self._renewed(used):
                raise
        return ask()

    def _renewed(self, used: Any) -> bool:
        """Whether there are other credentials than the `used` ones: somebody logged in again, a file or a program has new ones."""
        with self._lock:
            if self._frozen() != used:
                return True  # another thread was faster
            with _boto_errors():
                session = boto3.Session(botocore_session=botocore.session.Session(), region_name=self.settings.region)
                found = session.get_credentials()
                if found is None or found.get_frozen_credentials() == used:
                    return False
                self._session = session
                self.boto = self._boto()
            return True

    def _frozen(self) -> Any:
        with _boto_errors():
            found = self._session.get_credentials()
            return None if found is None else found.get_frozen_credentials()

    # -- small and rare: boto3
    def call(self, operation: str, **parameters: Any) -> Any:
        """A boto3 call on this bucket, e.g. `call("head_bucket")`. Raises StoreSaid, NoAnswer."""
        if self.settings.bucket_owner:
            parameters["ExpectedBucketOwner"] = self.settings.bucket_owner

        def ask() -> Any:
            with _boto_errors():
                return getattr(self.boto, operation)(Bucket=self.settings.bucket, **parameters)

        return self._renewing(ask)

    def sha256_of(self, key: str, size_bytes: int) -> tuple[int, bytes, str | None]:
        """Fetch an object whole and hash it: (size in bytes, SHA-256, version). Raises StoreSaid, NoAnswer.

        Stops reading after `size_bytes` + 1: a longer object differs anyway.
        """
        answer = self.call("get_object", Key=key)
        digest, size = hashlib.sha256(), 0
        with _boto_errors(), answer["Body"] as body:
            while size <= size_bytes and (chunk := body.read(1 << 20)):
                digest.update(chunk)
                size += len(chunk)
        return size, digest.digest(), answer.get("VersionId")

    def pieces(self, key: str) -> Iterator[bytes]:
        """An object, piece by piece. Raises StoreSaid, NoAnswer."""
        answer = self.call("get_object", Key=key)
        with answer["Body"] as body:
            while True:
                with _boto_errors():
                    piece = body.read(1 << 20)
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
        owner = {"ExpectedBucketOwner": self.settings.bucket_owner} if self.settings.bucket_owner else {}
        with _boto_errors():
            pages = self.boto.get_paginator("list_multipart_uploads").paginate(
                Bucket=self.settings.bucket, Prefix=prefix, **owner
            )
            uploads = [upload for page in pages for upload in page.get("Uploads", ())]
        return [(each["Key"], each["UploadId"]) for each in uploads if each["Key"].startswith(prefix)]

    def close(self) -> None:
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            ended = client.shutdown_event
            del client
            ended.wait(5)
        self.boto.close()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


_SWALLOWED = {  # answers that the client keeps to itself after its retries
    "AWS_ERROR_S3_REQUEST_TIME_TOO_SKEWED": (403, "RequestTimeTooSkewed"),
    "AWS_ERROR_S3_REQUEST_TIMEOUT": (400, "RequestTimeout"),
    "AWS_ERROR_S3_SLOW_DOWN": (503, None),  # its name for any 503
    "AWS_ERROR_S3_INTERNAL_ERROR": (500, "HTTP 5xx"),  # its name for any other
}
_OWN_FILE = ("_FILE_", "_STREAM_", "CHECKSUM", "CONTENT_LENGTH", "NO_PERMISSION")


def _trouble(error: AwsCrtError) -> StoreSaid | NoAnswer:
    if error.name in _SWALLOWED:
        return StoreSaid(*_SWALLOWED[error.name])
    if "_AUTH_" in error.name:
        return NoAnswer(error.name, "credentials")
    return NoAnswer(error.name, "file" if any(part in error.name for part in _OWN_FILE) else "network")


_CREDENTIALS = (
    botocore.exceptions.NoCredentialsError, botocore.exceptions.PartialCredentialsError,
    botocore.exceptions.ProfileNotFound,
    botocore.exceptions.CredentialRetrievalError, botocore.exceptions.TokenRetrievalError, botocore.exceptions.SSOError,
    botocore.exceptions.MetadataRetrievalError, botocore.exceptions.RefreshWithMFAUnsupportedError,
    botocore.exceptions.ConfigParseError, botocore.exceptions.ConfigNotFound,
)  # fmt: skip


@contextmanager
def _boto_errors() -> Iterator[None]:
    try:
        yield
    except botocore.exceptions.ClientError as error:
        meta = error.response.get("ResponseMetadata", {})
        code = str(error.response.get("Error", {}).get("Code", ""))
        headers = {str(name).lower(): str(value) for name, value in meta.get("HTTPHeaders", {}).items()}
        # of an answer without a body botocore makes a code out of the number
        raise StoreSaid(int(meta.get("HTTPStatusCode", 0)), None if code.isdigit() else code, headers) from error
    except _CREDENTIALS as error:
        raise NoAnswer(type(error).__name__, "credentials") from error
    except botocore.exceptions.ParamValidationError as error:
        raise NoAnswer(" ".join(str(error).split()), "settings") from error
    except (botocore.exceptions.ValidationError, ValueError) as error:  # its text may hold the endpoint's user part
        raise NoAnswer(type(error).__name__, "settings") from error
    except botocore.parsers.ResponseParserError as error:
        raise NoAnswer("the answer is not what an S3 store says") from error
    except (botocore.exceptions.BotoCoreError, OSError) as error:
        raise NoAnswer(type(error).__name__) from error
