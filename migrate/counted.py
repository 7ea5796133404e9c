"""Numbers with their nouns, for people."""

from __future__ import annotations


def counted(count: int, one: str, many: str | None = None) -> str:
    """1 study, 2,000 studies; where more than the noun changes, `many` says how: counted(n, "study is", "studies are")."""
    if count == 1:
        return f"1 {one}"
    if many is None:
        many = f"{one[:-1]}ies" if one.endswith("y") and one[-2] not in "aeiou" else f"{one}s"
    return f"{count:,} {many}"
