"""Chain of custody: which machine held which bytes, from when to when."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from migrate.config import load
from migrate.manifest import Manifest
from migrate.manifest.file import open_reader
from migrate.model import Noted
from migrate.reports.custody import custody
from tests.filled import came, fresh_manifest, in_browser, planned, proven, received, written
from tests.runs import data_sets, here, practice


@pytest.fixture
def manifest(tmp_path: Path) -> Iterator[Manifest]:
    with fresh_manifest(tmp_path, host="first") as opened:
        yield opened


def looked(manifest: Manifest, kind: str, files: int) -> None:
    manifest.commit([Noted(kind, json.dumps({"files": files, "bytes": 100 * files, "quarantined": 0}))])


def test_bytes_belong_to_the_machine_that_received_them(manifest: Manifest, tmp_path: Path) -> None:
    """What a killed machine received and another one proved may still lie there; the other one's own is released, and its folder empty."""
    planned(manifest, "1.1", "1.1.1", "1.1.2", "1.1.3")
    looked(manifest, "staging opened", 0)
    manifest.commit([came(received("1.1", "1.1.1"))])
    proven(manifest)
    manifest.commit([came(received("1.1", "1.1.2"))])  # and is killed: no run ended
    manifest.begin_run("run", "op", "", host="second")
    looked(manifest, "staging opened", 0)
    manifest.commit([came(received("1.1", "1.1.3"))])
    proven(manifest)
    looked(manifest, "staging left", 0)
    rows = custody(manifest.connection)
    assert [(row["host"], row["runs"], row["received"], row["bytes"], row["released"], row["left"], row["held"]) for row in rows] == [
        ("first", [1], 2, 200, 1, 1, 0), ("second", [2], 1, 100, 1, 0, 0)
    ]  # fmt: skip
    assert [(row["unseen"], row["staging"]["files"]) for row in rows] == [(True, 0), (False, 0)]
    page = in_browser(written(manifest, tmp_path / "out"), tmp_path / "profile")
    table = page.partition('id="custody"')[2].partition("</table>")[0]
    assert "1 image was proven by another machine, and its file may still lie here; more came after that" in table.partition("second")[0]
    assert "empty at" in table.partition("second")[2]


def test_what_is_not_proven_is_held(manifest: Manifest) -> None:
    """Received and not yet proven: still with its machine, of which nobody knows more."""
    planned(manifest, "1.1", "1.1.1")
    manifest.commit([came(received("1.1", "1.1.1"))])
    (row,) = custody(manifest.connection)
    assert (row["held"], row["held_bytes"], row["released"], row["last_released_at"], row["staging"]) == (1, 100, 0, None, None)
    assert row["first_received_at"] == row["last_received_at"] is not None


def test_a_run_says_when_staging_was_emptied(tmp_path: Path) -> None:
    """After a whole run everything that was received is released, and the folder was seen to be empty."""
    with practice(tmp_path, studies=2):
        assert here(tmp_path, "run")[0] == 0
    with closing(open_reader(load(tmp_path / "migrate.toml").manifest)) as reader:
        (row,) = custody(reader)
    assert (row["received"], row["released"], row["held"], row["unseen"]) == (len(data_sets(tmp_path)),) * 2 + (0, False)
    assert {name: row["staging"][name] for name in ("files", "bytes", "quarantined")} == {"files": 0, "bytes": 0, "quarantined": 0}
