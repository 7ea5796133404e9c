"""One table of a migrate.toml being read, and what may stand in it."""

from __future__ import annotations

import datetime
import ipaddress
import math
import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

from migrate.config.secrets import looks_secret


class Table:
    """One TOML table being read: takes keys out, collects mistakes, and complains about what is left."""

    def __init__(self, name: str, data: Any, mistakes: list[str]) -> None:
        self.name, self.mistakes = name, mistakes
        self.known: list[str] = []
        if data is not None and not isinstance(data, dict):
            self.wrong("", "is not a table")
            data = None
        self.data: dict[str, Any] = dict(data or {})

    def wrong(self, key: str, why: str) -> None:
        self.mistakes.append(f"[{self.name}] {key} {why}".replace("  ", " "))

    def take(self, key: str, kind: type | tuple[type, ...], default: Any = None, *, required: bool = False,
             fits: Callable[[Any], bool] | None = None, must: str = "") -> Any:  # fmt: skip
        self.known.append(key)
        if key not in self.data:
            if required:
                self.wrong(key, f"is missing{': ' + must if must else ''}")
            return default
        value = self.data.pop(key)
        kinds = kind if isinstance(kind, tuple) else (kind,)
        # bool is an int and datetime is a date to isinstance; neither is meant
        stray = (isinstance(value, bool) and bool not in kinds) or isinstance(value, datetime.datetime)
        if stray or not isinstance(value, kinds):
            self.wrong(key, f"must be {_NAMES[kinds[-1]]}")
            return default
        if isinstance(value, float) and not math.isfinite(value):
            self.wrong(key, f"must be {must or 'a number'}, and finite")
            return default
        if isinstance(value, str) and re.search(r"[\x00-\x1f\x7f]", value):
            self.wrong(key, "holds a control character (such as NUL or a line break), which no name, address or path of it may have")
            return default
        if fits is not None and not fits(value):
            self.wrong(key, f"must be {must}")
            return default
        return value

    def done(self) -> None:
        for key in self.data:
            if why := looks_secret(key):
                self.wrong(key, why)
                continue
            near = get_close_matches(key, self.known, 1)
            self.wrong(key, f"is not known{f'; did you mean {near[0]}?' if near else ''}")


_NAMES: Mapping[type, str] = {
    str: "a text", int: "a whole number", float: "a number", bool: "true or false", list: "a list",
    datetime.date: "a date like 1995-01-01",
}  # fmt: skip


def is_title(text: str) -> bool:
    """Whether it can be an AE title (PS3.5 6.2): up to 16 printable ASCII characters, no backslash."""
    return 0 < len(text.strip()) <= 16 and text.isascii() and text.isprintable() and "\\" not in text


def are_modalities(values: list[Any]) -> bool:
    """Whether they can be values of Modality (PS3.3 C.7.3.1.1.1), at least one."""
    return bool(values) and all(isinstance(value, str) and re.fullmatch(r"[A-Z0-9_]{1,16}", value) for value in values)


def is_port(number: int) -> bool:
    """Whether it is the number of a TCP port."""
    return 0 < number < 65536


def is_network(text: Any) -> bool:
    """Whether it is the text of an address or of a network."""
    try:
        ipaddress.ip_network(text, strict=False)
    except (ValueError, TypeError):
        return False
    return isinstance(text, str)  # a bare number would pass as an address


def is_positive(number: float) -> bool:
    """Whether it can be a time or a size that has to be one: more is a slip, and more than some clocks and systems can count."""
    return 0 < number <= _MOST


def is_amount(number: float) -> bool:
    """The same, or none at all."""
    return 0 <= number <= _MOST


TITLE = "1 to 16 printable ASCII characters (a DICOM AE title)"
PORT = "a port from 1 to 65535"
_MOST = 1_000_000
POSITIVE = f"greater than 0 and at most {_MOST}"
AMOUNT = f"from 0 to {_MOST}"
