"""Imports only point downwards."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
LEVELS = {
    "errors": 0, "failpoints": 0, "host": 0, "model": 0, "config": 0,
    "staging": 1, "dicom": 1, "lists": 1, "evidence": 1, "audit_trail": 1,
    "dicom.storing": 2, "dicom.receiver": 2, "dicom.scu": 2, "dicom.move": 2, "dicom.trial": 2,
    "pipeline": 3, "sources": 3, "destinations": 3, "manifest": 3,
    "stages": 4, "reports": 4, "practice": 4, "evidence.anchors": 4,
    "jobs": 5, "lists.exceptions": 5,
    "cli": 6, "__main__": 7,
}  # fmt: skip


def level(module: str) -> int:
    parts = module.split(".")[1:]
    if not parts:
        return 0
    return LEVELS.get(".".join(parts[:2]), LEVELS[parts[0]])


def test_imports_only_point_downwards() -> None:
    """No module imports one of a higher level, and neither sources nor destinations see the manifest."""
    wrong = []
    for path in (ROOT / "migrate").rglob("*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                wrong += [f"{name} imports {alias.name}" for alias in node.names if alias.name.startswith("migrate") and level(alias.name) > level(name)]
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("migrate"):
                if level(node.module) > level(name):
                    wrong.append(f"{name} imports {node.module}")
                if name.split(".")[1:2] in (["sources"], ["destinations"]) and node.module.startswith("migrate.manifest"):
                    wrong.append(f"{name} sees the manifest")
    assert wrong == []
