"""requirements.lock pins what a release installs."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_dependency_is_locked_with_hashes() -> None:
    """Each runtime dependency stands there with a version that is new enough, everything has hashes, and no address is named."""
    text = (ROOT / "requirements.lock").read_text()
    locked = dict(re.findall(r"^([a-z0-9-]+)==([0-9.a-z]+)", text, re.M))
    for entry in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]:
        name, least = re.fullmatch(r"([A-Za-z0-9-]+)(?:\[\w+\])?>=([0-9.]+)", entry).groups()  # type: ignore[union-attr]
        assert [int(part) for part in locked[name].split(".")] >= [int(part) for part in least.split(".")], entry
    blocks = re.split(r"\n(?=[a-z])", "\n".join(line for line in text.splitlines() if not line.startswith("#")))
    assert all("--hash=sha256:" in block for block in blocks if block.strip())
    assert "://" not in text
