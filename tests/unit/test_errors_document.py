"""docs/errors.md says of every error what it means, what it does, and what a person can do; nothing else stands there."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from migrate import errors
from migrate.errors import PacsMigrateError

DOCUMENT = Path(__file__).parents[2] / "docs" / "errors.md"
CLASSES = {name: found for name, found in inspect.getmembers(errors, inspect.isclass) if issubclass(found, PacsMigrateError)}
FAMILIES = {"PacsMigrateError", "SourceError", "DestinationError", "LocalError"}  # never raised themselves


def entries() -> list[tuple[str, list[str]]]:
    """(heading, lines below it) in the document's order."""
    parts = re.split(r"^## ", DOCUMENT.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return [(lines[0].strip(), [line for line in lines[1:] if line.strip()]) for lines in map(str.splitlines, parts)]


def test_every_class_has_one_entry_and_every_entry_a_class() -> None:
    """The headings are the classes, each once, in the order of the module."""
    in_order = sorted(CLASSES, key=lambda name: inspect.getsourcelines(CLASSES[name])[1])
    assert [name for name, _ in entries()] == in_order


@pytest.mark.parametrize("name", CLASSES)
def test_an_entry_says_what_its_class_does(name: str) -> None:
    """Meaning first, then scope, repetition and exit code as the class has them, then what to do; of a PACS's errors also who has them."""
    error = CLASSES[name]
    meaning, *rest = dict(entries())[name]
    assert meaning.endswith(".") and not meaning.startswith(("Scope", "What to do"))
    again = "yes" if error.retryable else "no"
    assert rest.pop(0) == f"Scope {error.scope} · tried again: {again} · exit {error.exit_code}."
    if issubclass(error, errors.SourceError) and name not in FAMILIES:
        assert rest.pop().startswith("Known for it: ") and rest[-1].startswith("Meanwhile: ")
    if rest and rest[-1].startswith("Meanwhile: "):
        rest.pop()
    if error.default_hint:
        assert rest == [f"What to do: {error.default_hint}"]
    elif name not in FAMILIES:
        (advice,) = rest
        assert advice.startswith("What to do: ") and advice.endswith(".")


def test_the_table_says_who_waits_longer() -> None:
    """The table of waits has every class that waits longer than usual, with its factor, and no other."""
    said = re.findall(r"^\| (\w+) \| (\d+) times as long \| ", DOCUMENT.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert {name: int(factor) for name, factor in said} == {name: found.wait_factor for name, found in CLASSES.items() if found.wait_factor != 1}
    assert all(errors.wait_factor(name) == found.wait_factor for name, found in CLASSES.items())


def test_the_tree_in_the_module_names_every_class() -> None:
    """The tree drawn at the top of the module has all classes, and the exit codes of its families."""
    drawn = errors.__doc__ or ""
    assert set(re.findall(r"\b[A-Z]\w*[a-z]\w*\b", drawn)) >= set(CLASSES)
    for family, code in re.findall(r"[├└]── (\w+) +(\d+)", drawn):
        assert CLASSES[family].exit_code == int(code)
