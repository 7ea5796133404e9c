"""AWS Signature Version 4 for a request whose body's SHA-256 is known already."""

from __future__ import annotations

import functools
import hashlib
import hmac
import time
from typing import Any

from migrate.destinations.s3_answers import Headers


def sign(method: str, path: str, headers: Headers, sha256: bytes, credentials: Any, region: str, now_s: float) -> dict[str, str]:
    """The headers, which have `host` among them and lower-case names, with a signature that covers all of them, path and body.

    `path` is encoded, without a query; `credentials` are botocore's. Source: "Signature Calculations for the Authorization Header",
    Amazon S3 API Reference. botocore's own signer takes 0.1 ms of processor time more, a tenth of what a small put takes.
    """
    now = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now_s))
    whole = {name: " ".join(value.split()) for name, value in headers.items()}
    whole |= {"x-amz-date": now, "x-amz-content-sha256": sha256.hex()}
    if credentials.token:
        whole["x-amz-security-token"] = credentials.token
    names = sorted(whole)
    listed = ";".join(names)
    canonical = "\n".join((method, path, "", *(f"{name}:{whole[name]}" for name in names), "", listed, sha256.hex()))
    scope = f"{now[:8]}/{region}/s3/aws4_request"
    to_sign = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    signature = hmac.digest(_key_of(credentials.secret_key, scope), to_sign.encode(), "sha256").hex()
    whole["authorization"] = f"AWS4-HMAC-SHA256 Credential={credentials.access_key}/{scope}, SignedHeaders={listed}, Signature={signature}"
    return whole


@functools.lru_cache(maxsize=2)  # one a day and secret
def _key_of(secret: str, scope: str) -> bytes:
    key = f"AWS4{secret}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key
