"""The package's structure: imports point downwards and never in a circle, and no file grows past a page that one can keep in mind."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[2]
LEVELS = {
    "counted": 0, "errors": 0, "failpoints": 0, "host": 0, "model": 0, "config": 0,
    "staging": 1, "dicom": 1, "lists": 1, "evidence": 1, "audit_trail": 1,
    "dicom.storing": 2, "dicom.receiver": 2, "dicom.scu": 2, "dicom.move": 2, "dicom.trial": 2,
    "inbox": 3, "scheduling": 3, "pipeline": 3, "sources": 3, "destinations": 3, "manifest": 3,
    "stages": 4, "reports": 4, "practice": 4,
    "jobs": 5, "lists.exceptions": 5,
    "cli": 6, "__main__": 7,
}  # fmt: skip
MOST_LINES = 350
LONGER: dict[str, str] = {
    "manifest/schema.sql": "one statement after the other, most of it what a column means: the file's form is the list",
}
"""Files that may be longer, with the reason."""


def paths() -> dict[str, Path]:
    """The package's modules by name, without "migrate."."""
    found = ((path.relative_to(ROOT / "migrate").with_suffix("").parts, path) for path in (ROOT / "migrate").rglob("*.py"))
    return {".".join(parts).removesuffix("__init__").removesuffix("."): path for parts, path in found}


def imports() -> dict[str, set[str]]:
    """Which modules of the package each one imports: anywhere in it, those for types alone too."""
    known = paths()
    return {name: {module for module in named(path) if module in known and module != name} for name, path in known.items()}


def named(path: Path) -> Iterable[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.removeprefix("migrate.") for alias in node.names if alias.name.startswith("migrate."))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "migrate":
            assert node.module
            parent = node.module.removeprefix("migrate").removeprefix(".")
            for alias in node.names:
                child = f"{parent}.{alias.name}".removeprefix(".")
                yield child if child in KNOWN else parent


KNOWN = paths()


def level(module: str) -> int:
    return LEVELS.get(".".join(module.split(".")[:2]), LEVELS[module.split(".")[0]]) if module else 0


def circle(graph: Mapping[str, Iterable[str]]) -> list[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_imports_only_point_downwards() -> None:
    """No module imports one of a higher level, and neither sources nor destinations see the manifest."""
    seen = imports()
    assert seen["cli"] and seen["manifest.store"]
    upwards = [f"{name} imports {other}" for name, others in seen.items() for other in others if level(other) > level(name)]
    assert upwards == []
    outside = {name: others for name, others in seen.items() if name.startswith(("sources", "destinations"))}
    assert [name for name, others in outside.items() if any(other.startswith("manifest") for other in others)] == []


def test_nothing_imports_in_a_circle() -> None:
    """Neither modules nor packages, not even for a type."""
    seen = imports()
    assert circle(seen) == []
    packages: dict[str, set[str]] = {}
    for name, others in seen.items():
        package = name.split(".")[0]
        packages.setdefault(package, set()).update(other.split(".")[0] for other in others if other.split(".")[0] != package)
    assert circle(packages) == []


def test_a_circle_is_found() -> None:
    """What looks for circles sees one."""
    assert set(circle({"a": ["b"], "b": ["c"], "c": ["a"], "d": ["a"]})) == {"a", "b", "c"}


def test_no_file_is_too_long() -> None:
    """A file past 350 lines wants to be two, or gives its reason above; and a reason that is needed no longer goes."""
    files = (path for path in (ROOT / "migrate").rglob("*") if path.suffix in (".py", ".sql", ".html", ".css"))
    lengths = {path.relative_to(ROOT / "migrate").as_posix(): len(path.read_text().splitlines()) for path in files}
    assert {name for name, lines in lengths.items() if lines > MOST_LINES} == set(LONGER)
