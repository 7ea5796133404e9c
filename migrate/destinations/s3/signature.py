"""AWS Signature Version 4 by the AWS library, for a request whose body's SHA-256 is known already."""

from __future__ import annotations

import datetime
from typing import Any

from awscrt.auth import (
    AwsCredentialsProvider,
    AwsSignedBodyHeaderType,
    AwsSigningConfig,
    aws_sign_request,
)
from awscrt.exceptions import AwsCrtError
from awscrt.http import HttpHeaders, HttpRequest

from migrate.destinations.s3.answers import Headers, NoAnswer

_LIMIT_S = 10  # it is done at once


def sign(
    method: str, path: str, headers: Headers, sha256: bytes, credentials: Any, region: str, now: datetime.datetime | None = None
) -> dict[str, str]:
    """The headers, which have `host` among them, with a signature that covers all of them, path and body. Raises NoAnswer.

    `path` is encoded, without a query; `credentials` are botocore's. Its own signer takes three times as long.
    """
    request = HttpRequest(method, path, HttpHeaders(list(headers.items())))
    try:
        provider = AwsCredentialsProvider.new_static(credentials.access_key, credentials.secret_key, credentials.token)
        config = AwsSigningConfig(
            credentials_provider=provider, region=region, service="s3", date=now, signed_body_value=sha256.hex(),
            signed_body_header_type=AwsSignedBodyHeaderType.X_AMZ_CONTENT_SHA_256,
            use_double_uri_encode=False, should_normalize_uri_path=False,
        )  # fmt: skip
        aws_sign_request(request, config).result(_LIMIT_S)
    except AwsCrtError as error:
        raise NoAnswer(error.name, "credentials") from error
    return dict(request.headers)
