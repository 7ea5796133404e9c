"""What comes back from a store: headers, its refusal (`StoreSaid`), or no answer at all (`NoAnswer`)."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import botocore.exceptions
import botocore.parsers

Headers = Mapping[str, str]

_CODE = re.compile(rb"<Code>\s*([A-Za-z0-9._-]{1,80})\s*</Code>")


class StoreSaid(Exception):
    """The store answered and did not do it; `code` is its own error code, or `HTTP nnn` where it gave none."""

    def __init__(self, status: int, code: str | None, headers: Headers | None = None) -> None:
        self.status, self.code = status, code or f"HTTP {status}"
        self.headers = headers or {}
        super().__init__(self.code)


class NoAnswer(Exception):
    """No answer came. `kind` tells whose trouble it is: the network's, our credentials' or settings', or our own file's."""

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


_CREDENTIALS = (
    botocore.exceptions.NoCredentialsError, botocore.exceptions.PartialCredentialsError,
    botocore.exceptions.ProfileNotFound,
    botocore.exceptions.CredentialRetrievalError, botocore.exceptions.TokenRetrievalError, botocore.exceptions.SSOError,
    botocore.exceptions.MetadataRetrievalError, botocore.exceptions.RefreshWithMFAUnsupportedError,
    botocore.exceptions.ConfigParseError, botocore.exceptions.ConfigNotFound,
)  # fmt: skip


_WORDS = {
    "EndpointConnectionError": "nobody answers at its address",
    "ConnectTimeoutError": "no connection came about in time",
    "ReadTimeoutError": "it fell silent",
    "ConnectionClosedError": "it closed the connection",
    "ProxyConnectionError": "the proxy does not answer",
}


@contextmanager
def boto_errors() -> Iterator[None]:
    """Turns what boto raises inside into StoreSaid and NoAnswer."""
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
        raise NoAnswer(_WORDS.get(type(error).__name__, type(error).__name__)) from error
