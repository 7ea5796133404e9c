"""What must not stand in a migrate.toml, which is copied, mailed and put into repositories: keys, passwords, tokens.

Credentials come from the AWS chain, keys from files that only their owner may read. Nothing found here is ever repeated.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

_WORDS = ("secret", "password", "passwd", "passphrase", "access_key", "api_key", "private_key", "token", "credential", "netrc")
_ACCESS_KEY = re.compile(r"(?<![A-Z0-9])(AKIA|ASIA)[A-Z0-9]{16}(?![A-Z0-9])")
_CHAIN = "credentials come from the AWS chain (environment, profile, role)"
_OPEN = "an open file of passwords for any host is no place for them"


def looks_secret(key: str) -> str | None:
    """Why a key of this name has no place in the file; None if its name says nothing of a secret."""
    if "netrc" in key.lower():
        return f"is not read: {_OPEN}; {_CHAIN}"
    return f"looks like a secret: {_CHAIN}" if any(word in key.lower() for word in _WORDS) else None


def secrets_in(data: Any, name: str = "") -> Iterator[str]:
    """A mistake for each value in the parsed file that is a secret, whatever its key is called."""
    if isinstance(data, dict):
        for key, value in data.items():
            if isinstance(value, str):
                if looks_secret(key) is None and (why := _kind(value)):
                    yield f"[{name}] {key} {why}"
            else:
                yield from secrets_in(value, f"{name}.{key}" if name else key)
    elif isinstance(data, list):
        for value in data:
            if isinstance(value, str) and (why := _kind(value)):
                yield f"[{name.rpartition('.')[0]}] {name.rpartition('.')[2]} {why}"
            elif not isinstance(value, str):
                yield from secrets_in(value, name)


def _kind(value: str) -> str | None:
    if "PRIVATE KEY-----" in value:
        return "holds a private key: name its file, which only you may read"
    if _ACCESS_KEY.search(value):
        return f"holds an AWS access key: {_CHAIN}"
    if re.search(r"(^|[/\\])\.?_?netrc$", value):
        return f"names a .netrc: {_OPEN}; {_CHAIN}"
    try:
        url = urlsplit(value)
        if url.scheme and url.password is not None:
            return f"holds a user and a password: {_CHAIN}"
    except ValueError:
        return None
    return None
