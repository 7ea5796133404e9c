"""How to reach a bucket, and as whom: boto's settings, credential chain, proxies and certificate authorities, as users know them."""

from __future__ import annotations

import ipaddress
import ssl
import threading
from collections.abc import Callable
from typing import Any, Literal, TypeVar
from urllib.parse import quote, urlsplit

import boto3
import botocore.session
from botocore.config import Config
from botocore.httpsession import ProxyConfiguration, get_cert_path
from botocore.utils import get_environ_proxies

from migrate.config import S3Settings
from migrate.destinations.s3.answers import NoAnswer, StoreSaid, boto_errors
from migrate.destinations.s3.http import CONNECT_S, Road
from migrate.errors import DestinationRefused

_OUT_OF_DATE = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "InvalidToken", "InvalidAccessKeyId"}

T = TypeVar("T")


class Access:
    """One bucket on one store, and the credentials for it. Threads may share it; it reaches nothing by itself.

    Raises DestinationRefused for an unencrypted endpoint that is not meant, NoAnswer for settings that cannot work.
    """

    def __init__(self, settings: S3Settings, *, read_timeout_s: float) -> None:
        self.settings, self._read_timeout_s = settings, read_timeout_s
        core = botocore.session.Session()
        with boto_errors():
            self._session = boto3.Session(botocore_session=core, region_name=settings.region)
            self._style: Literal["path", "auto"] = "path" if settings.endpoint_url else "auto"
            self.region: str = settings.region or self._session.region_name or "us-east-1"
            self.boto = self._boto()
            self.ca_file: str | None = core.get_config_variable("ca_bundle")
            url = urlsplit(self.boto.meta.endpoint_url)
            is_aws = (url.hostname or "").endswith((".amazonaws.com", ".amazonaws.com.cn"))
            if not is_aws and not settings.endpoint_url:  # AWS_ENDPOINT_URL or a profile names it
                self._style = "path"
                self.boto = self._boto()
        own = f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path.rstrip('/')}"
        self.endpoint = "aws" if is_aws else own
        self.encrypted = url.scheme == "https"
        if not self.encrypted and not settings.allow_http and not _is_loopback(url.hostname or ""):
            raise DestinationRefused(
                "The endpoint is not encrypted.", hint="Use https://, or set allow_http = true if that is really meant."
            )
        self.host, self._base = url.netloc.rpartition("@")[2], url.path.rstrip("/")
        if is_aws and not settings.endpoint_url and "." not in settings.bucket:  # a dotted bucket does not fit the certificate
            self.host = f"{settings.bucket}.{self.host}"
        else:
            self._base += "/" + quote(settings.bucket, safe="")
        self.owner = {"x-amz-expected-bucket-owner": settings.bucket_owner} if settings.bucket_owner else {}
        self._lock = threading.Lock()

    def _boto(self) -> Any:
        config = Config(
            s3={"addressing_style": self._style}, retries={"mode": "standard", "total_max_attempts": 3},
            connect_timeout=CONNECT_S, read_timeout=self._read_timeout_s,
            max_pool_connections=max(10, self.settings.workers),
            request_checksum_calculation="when_required", response_checksum_validation="when_required",
        )  # fmt: skip
        return self._session.client(
            "s3", endpoint_url=self.settings.endpoint_url, config=config, region_name=self.region
        )

    def path(self, key: str) -> str:
        """The encoded path of an object: the bucket is in the host's name at AWS, in the path elsewhere."""
        return f"{self._base}/{quote(key, safe='/~')}"

    def road(self) -> Road:
        """How connections get to the host: through which proxy, with which certificate authorities. Raises NoAnswer."""
        scheme = "https" if self.encrypted else "http"
        proxies = ProxyConfiguration(get_environ_proxies(f"{scheme}://{self.host}"))
        proxy = proxies.proxy_url_for(f"{scheme}://{self.host}")
        if proxy and not proxy.startswith("http:"):
            raise NoAnswer("a proxy that is itself reached over TLS cannot be used", "settings")
        try:
            tls = ssl.create_default_context(cafile=get_cert_path(self.ca_file or True)) if self.encrypted else None
        except OSError as error:
            raise NoAnswer(f"the file of certificate authorities cannot be read ({type(error).__name__})", "settings") from error
        return Road(self.host, tls, proxy, proxies.proxy_headers_for(proxy) if proxy else {})

    def credentials(self) -> Any:
        """Those of now, renewed if it is time to: `access_key`, `secret_key`, `token`. Raises NoAnswer."""
        now = self._frozen()
        if now is None:
            raise NoAnswer("no credentials were found", "credentials")
        return now

    def renewing(self, ask: Callable[[], T]) -> T:
        """`ask`, and once more with other credentials if the store says that ours ran out and the chain has others by now."""
        used = self.credentials()
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
            with boto_errors():
                session = boto3.Session(botocore_session=botocore.session.Session(), region_name=self.settings.region)
                found = session.get_credentials()
                if found is None or found.get_frozen_credentials() == used:
                    return False
                self._session = session
                self.boto = self._boto()
            return True

    def _frozen(self) -> Any:
        with boto_errors():
            found = self._session.get_credentials()
            return None if found is None else found.get_frozen_credentials()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
