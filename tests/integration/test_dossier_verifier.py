"""verify_dossier.py, run as it lies in the dossier: it finds every change and names the place; a second implementation agrees."""

from __future__ import annotations

import ast
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from migrate.evidence import signing
from tests import damaged, second_verifier
from tests.shipped_verifier import SOURCE, copy, repaired, verify

DAMAGES = int(os.environ.get("DOSSIER_DAMAGES", "100"))
SEED = int(os.environ.get("DOSSIER_DAMAGE_SEED", "1"))


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a dossier and a bucket."""
    folder = tmp_path_factory.mktemp("sound")
    damaged.build(folder)
    return folder


def test_a_sound_dossier_holds(sound: Path) -> None:
    """As a program of its own, with Python's library alone, from any folder; the second implementation agrees; usage is 2."""
    program = [sys.executable, "-I", str(sound / "dossier" / "verify_dossier.py")]
    done = subprocess.run([*program, str(sound / "dossier"), "--objects", str(sound / "bucket")], capture_output=True, text=True, cwd="/", env={})
    assert (done.returncode, done.stderr) == (0, "") and "All of it holds." in done.stdout
    assert second_verifier.holds(sound / "dossier", sound / "bucket")
    assert subprocess.run([*program, "/no/such/folder"], capture_output=True).returncode == 2
    assert verify(sound)[0] == 0


def test_the_verifier_is_one_short_file_that_needs_nothing() -> None:
    """Below 300 lines, only the standard library, nothing of ours; the dossier has it as it is shipped."""
    source = SOURCE.read_text(encoding="utf-8")
    assert len(source.splitlines()) < 300
    imported = {alias.name.partition(".")[0] for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module).partition(".")[0] for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)}
    assert imported <= set(sys.stdlib_module_names)


def test_accidents_are_found_and_named(sound: Path, tmp_path: Path) -> None:
    """Flipped bits, cuts, added bytes, lost files, lines in another order, other objects' bytes: each is named; both verifiers agree."""
    folder = copy(sound, tmp_path / "copy")
    for number in range(SEED, SEED + DAMAGES):
        repaired(sound, folder)
        name = damaged.by_accident(folder, random.Random(number))
        code, said = verify(folder)
        assert (code, name in said) == (1, True), f"seed {number}: {name}\n{said}"
        assert not second_verifier.holds(folder / "dossier", folder / "bucket"), f"seed {number}: {name}"


@pytest.mark.parametrize(("damage", "times"), [(damaged.on_purpose, DAMAGES), (damaged.rolled_back, DAMAGES // 2)])
def test_what_was_made_to_fit_is_found(sound: Path, tmp_path: Path, damage: Callable[[Path, random.Random], str], times: int) -> None:
    """Sealed cells changed, rows deleted, repeated, exchanged, tails cut off, with every hash of a file made to fit; an older dossier, older files of it,
    and anchors that say something else: both verifiers find it."""
    folder = copy(sound, tmp_path / "copy")
    for number in range(SEED, SEED + times):
        repaired(sound, folder)
        what = damage(folder, random.Random(number))
        code, said = verify(folder)
        assert (code, "WRONG" in said) == (1, True), f"seed {number}: {what}\n{said}"
        assert not second_verifier.holds(folder / "dossier", folder / "bucket"), f"seed {number}: {what}"


def test_a_damaged_signature_is_found(sound: Path, tmp_path: Path) -> None:
    """Every flipped bit of the signature is found by verify-signature."""
    folder = copy(sound, tmp_path / "copy")
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(key)], check=True)
    signers = tmp_path / "signers"
    signers.write_text(f"somebody {key.with_suffix('.pub').read_text()}")
    signing.sign(folder / "dossier", key)
    assert signing.verify(folder / "dossier", signers).wrong == []
    good = (folder / "dossier" / "dossier.sig").read_bytes()
    for number in range(SEED, SEED + DAMAGES // 10):
        (folder / "dossier" / "dossier.sig").write_bytes(damaged.other_signature(good, random.Random(number)))
        assert any("dossier.sig" in what for what in signing.verify(folder / "dossier", signers).wrong), f"seed {number}"


def test_a_list_from_the_bucket_is_compared(sound: Path, tmp_path: Path) -> None:
    """Keys with sizes, and hashes if there are any: what is missing or differs is named."""
    rows = damaged.read(sound / "dossier" / "instances.csv.gz")
    at = {name: rows[0].index(name) for name in ("key", "size_bytes", "file_sha256", "proof")}
    proven = [[row[at["key"]], row[at["size_bytes"]], row[at["file_sha256"]]] for row in rows[1:] if row[at["proof"]]]
    listing = tmp_path / "list.tsv"
    for change, code, words in ((lambda lines: lines, 0, ""), (lambda lines: [line[:2] for line in lines], 0, ""), (lambda lines: lines[1:], 1, "is not in the list"),
                                (lambda lines: [[lines[0][0], "7"], *lines[1:]], 1, "another size"),
                                (lambda lines: [[*lines[0][:2], "0" * 64], *lines[1:]], 1, "another size or SHA-256")):  # fmt: skip
        listing.write_text("".join("\t".join(line) + "\n" for line in change(proven)))
        found, said = verify(sound, "--list", str(listing))
        assert (found, words in said, code == 0 or proven[0][0] in said) == (code, True, True), said


@pytest.mark.parametrize(("name", "change", "said"), [
    ("seal", lambda value: value + 3, "is older, cut off or rewritten"),
    ("head", lambda value: "0" + value[1:] if value[0] != "0" else "1" + value[1:], "is older, cut off or rewritten"),
    ("root", lambda value: value[::-1], "has the Merkle root"),
])  # fmt: skip
def test_the_anchors_tell_of_another_end(sound: Path, tmp_path: Path, name: str, change: Callable[[Any], Any], said: str) -> None:
    """A dossier that is sound in itself but ends elsewhere than its anchor is named; anchors of other migrations, and of what was lost, are not."""
    folder = copy(sound, tmp_path / "copy")
    anchor = damaged.own_anchors(folder)[-1]
    document = json.loads(anchor.read_text())
    anchor.write_text(json.dumps(document | {name: change(document[name])}))
    code, found = verify(folder)
    assert (code, said in found, anchor.name in found, found.count("WRONG")) == (1, True, True, 1), found
    assert not second_verifier.holds(folder / "dossier", folder / "bucket")
