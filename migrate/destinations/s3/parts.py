"""Large objects in parts: awscrt's S3Client, which reads, sends and retries several parts at once."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

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

from migrate.destinations.s3.access import Access
from migrate.destinations.s3.answers import Headers, NoAnswer, StoreSaid, error_code
from migrate.destinations.s3.http import CONNECT_S

_MEMORY_BYTES = 256 << 20  # the least that the client accepts; whole parts are streamed, so it stays far below


class Parts:
    """Multipart uploads into one bucket. Connects on first use; threads may share it."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._lock = threading.Lock()
        self._client: S3Client | None = None
        self._last_credentials: AwsCredentials | None = None
        self._last_known: Any = None

    def put(self, key: str, file: Path, size_bytes: int, headers: Mapping[str, str], limit_s: float) -> Headers:
        """Create-only, with a checksum of the whole object in `headers`. Raises StoreSaid, NoAnswer."""
        answer: dict[str, str] = {}

        def on_headers(status_code: int, headers: list[tuple[str, str]], **_: object) -> None:
            answer.update((name.lower(), value) for name, value in headers)

        whole = {"host": self._access.host, "content-length": str(size_bytes), "if-none-match": "*", **headers, **self._access.owner}
        request = HttpRequest("PUT", self._access.path(key), HttpHeaders(list(whole.items())))
        self._known_credentials()
        try:
            running = self._connected().make_request(
                request=request, on_headers=on_headers, type=S3RequestType.PUT_OBJECT, send_filepath=str(file),
                multipart_upload_threshold=self._access.settings.in_parts_from_bytes,
            )  # fmt: skip
        except AwsCrtError as error:
            raise _trouble(error) from error
        try:
            running.finished_future.result(limit_s)
        except concurrent.futures.TimeoutError as error:
            running.cancel()  # also aborts the upload
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

    def close(self) -> None:
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            ended = client.shutdown_event
            del client
            ended.wait(5)

    def _connected(self) -> S3Client:
        access = self._access
        with self._lock:
            if self._client is None:
                loops = EventLoopGroup(2)
                bootstrap = ClientBootstrap(loops, DefaultHostResolver(loops))
                provider = AwsCredentialsProvider.new_delegate(self._for_the_client)
                tls = None
                if access.encrypted and access.ca_file:
                    options = TlsContextOptions()
                    options.override_default_trust_store_from_path(None, str(access.ca_file))
                    tls = ClientTlsContext(options).new_connection_options()
                self._client = S3Client(
                    bootstrap=bootstrap, region=access.region, tls_connection_options=tls,
                    tls_mode=S3RequestTlsMode.ENABLED if access.encrypted else S3RequestTlsMode.DISABLED,
                    signing_config=create_default_s3_signing_config(region=access.region, credential_provider=provider),
                    part_size=access.settings.part_bytes, multipart_upload_threshold=access.settings.in_parts_from_bytes, memory_limit=_MEMORY_BYTES,
                    fio_options=S3FileIoOptions(should_stream=True), connect_timeout_ms=CONNECT_S * 1000,
                    max_active_connections_override=access.settings.workers,
                    retry_config=S3RetryConfig(max_retries=access.settings.retries, backoff_scale_factor_ms=round(access.settings.first_wait_s * 1000)),
                )  # fmt: skip
            return self._client

    def _for_the_client(self) -> AwsCredentials | None:
        """Asked on the client's own threads, where nothing may be raised: at worst the last credentials known."""
        with suppress(NoAnswer, StoreSaid):
            self._known_credentials()
        return self._last_credentials

    def _known_credentials(self) -> None:
        now = self._access.credentials()
        if now != self._last_known:
            self._last_credentials = AwsCredentials(now.access_key, now.secret_key, now.token)
            self._last_known = now  # last: another thread that finds it must find the credentials, too


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
