"""How studies, instances and objects are named."""

from __future__ import annotations

import re
from dataclasses import dataclass

_UID = re.compile(r"[0-9]+(\.[0-9]+)*\Z")


def is_uid(text: str) -> bool:
    """True for 1 to 64 characters of digits and single dots (PS3.5 9.1, leading zeros forgiven: old archives have them)."""
    return len(text) <= 64 and _UID.match(text) is not None


def _require_uid(*texts: str) -> None:
    for text in texts:
        if not is_uid(text):
            raise ValueError(f"not a UID: {text!a}")


@dataclass(frozen=True, slots=True)
class StudyRef:
    """A study's identity: its Study Instance UID. Raises ValueError for what is no UID."""

    study: str

    def __post_init__(self) -> None:
        _require_uid(self.study)


@dataclass(frozen=True, slots=True, order=True)
class InstanceRef:
    """An instance's identity is the triple: after a bad merge one SOP Instance UID can stand under two studies."""

    study: str
    series: str
    sop: str

    def __post_init__(self) -> None:
        _require_uid(self.study, self.series, self.sop)


def object_key(ref: InstanceRef, prefix: str = "", *, beside: bytes | None = None) -> str:
    """The object's key; `beside` (a data-set SHA-256) names a second content under the same three UIDs."""
    suffix = f"~{beside.hex()[:12]}" if beside else ""
    return f"{prefix}studies/{ref.study}/series/{ref.series}/instances/{ref.sop}{suffix}.dcm"
