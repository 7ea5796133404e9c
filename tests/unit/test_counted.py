"""Numbers with their nouns."""

from __future__ import annotations

import pytest

from migrate.counted import counted


@pytest.mark.parametrize(
    ("count", "words", "expected"),
    [
        (1, ("study",), "1 study"), (0, ("study",), "0 studies"), (2_000, ("study",), "2,000 studies"), (1, ("entry",), "1 entry"),
        (2, ("entry",), "2 entries"), (2, ("day",), "2 days"), (3, ("image",), "3 images"), (1, ("series", "series"), "1 series"),
        (2, ("series", "series"), "2 series"), (1, ("file is", "files are"), "1 file is"), (12, ("file is", "files are"), "12 files are"),
    ],
)  # fmt: skip
def test_one_is_singular_and_all_else_plural(count: int, words: tuple[str, ...], expected: str) -> None:
    """The noun fits the number; large numbers are grouped."""
    assert counted(count, *words) == expected
