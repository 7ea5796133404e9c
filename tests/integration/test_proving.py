"""The verbs audit and prove, over a whole run."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
from pathlib import Path

import pytest

from tests.proof_reader import proof_holds, recomputed
from tests.runs import command, practice


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished migration into a folder."""
    folder = tmp_path_factory.mktemp("migrated")
    with practice(folder, studies=3):
        assert command(folder, "run").returncode == 0
    return folder


def manifest_of(folder: Path) -> Path:
    return next((folder / "manifests").glob("*.db"))


def test_a_run_holds(migrated: Path) -> None:
    """What a run has sealed is computed again, by the verb and by a page of code."""
    done = command(migrated, "audit", "--json")
    document = json.loads(done.stdout)
    assert (done.returncode, document["holds"], document["troubles"]) == (0, True, []), done.stderr
    assert recomputed(manifest_of(migrated))[-1] == document["head"]
    assert document["proven"] == document["instances"] > 0
    assert command(migrated, "audit").stdout.endswith("Everything holds.\n")


def test_an_image_is_proven_by_a_page_of_code(migrated: Path) -> None:
    """What `prove` prints leads from the image to the root that `audit` computes; an unknown image has no proof."""
    root = json.loads(command(migrated, "audit", "--json").stdout)["root"]
    with contextlib.closing(sqlite3.connect(manifest_of(migrated))) as database:
        sop = database.execute("SELECT sop_uid FROM instance").fetchone()[0]
    proof = json.loads(command(migrated, "prove", sop).stdout)["proofs"][0]
    assert proof_holds(proof)
    assert (proof["root"], json.loads(proof["leaf"])[2]) == (root, sop)
    unknown = command(migrated, "prove", "1.2.3")
    assert (unknown.returncode, unknown.stdout) == (3, "")


def test_what_was_changed_ends_with_3_and_is_named(migrated: Path, tmp_path: Path) -> None:
    """A changed size is named by seal and study; the audit changes nothing of the file."""
    shutil.copy(migrated / "migrate.toml", tmp_path)
    (tmp_path / "manifests").mkdir()
    file = tmp_path / "manifests" / manifest_of(migrated).name
    file.write_bytes(manifest_of(migrated).read_bytes())
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as database:
        database.execute("DROP TRIGGER instance_keeps_its_bytes")
        study, series, sop, seal = database.execute(
            "SELECT study.uid, series_id, sop_uid, staged_seal FROM instance JOIN series ON series.id = series_id JOIN study ON study.id = study_id"
        ).fetchone()
        database.execute("UPDATE instance SET size_bytes = size_bytes + 1 WHERE series_id = ? AND sop_uid = ?", (series, sop))
    before = file.read_bytes()
    done = command(tmp_path, "audit")
    assert done.returncode == 3
    assert f"WRONG: seal {seal}:" in done.stdout
    assert study in done.stdout
    assert "WRONG: trigger instance_keeps_its_bytes: is missing" in done.stdout
    assert file.read_bytes() == before
