"""A PACS that gets another address amid its migration: signed for, with evidence, and sealed; another PACS is never taken for it."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

from migrate.practice.pacs import PracticePacs
from migrate.practice.studies import Archive
from tests.ports import free_port
from tests.runs import called, configure, data_sets, truth

SIGNED = ("readdress", "--reason", "new network", "--by", "j.doe", "--role", "PACS administrator")


def served(folder: Path, archive: Archive, *faults: str, words: tuple[str, ...] = ("run",), ae_title: str = "PRACTICE") -> tuple[int, str]:
    """One command against a PACS that has a port of its own each time; (exit code, what was said)."""
    receiver = free_port()
    with PracticePacs(archive, ae_title=ae_title, destinations={"PACSMIGRATE": ("127.0.0.1", receiver)}, faults=faults) as pacs:
        configure(folder, pacs.port, receiver, ae_title=ae_title, retry="attempts = 1")
        code, out, err = called(folder, *words)
        return code, out + err


def signed_and_run(folder: Path, archive: Archive, *faults: str) -> tuple[tuple[int, str], tuple[int, str]]:
    """What `readdress` and `run` say at one and the same new address."""
    receiver = free_port()
    with PracticePacs(archive, destinations={"PACSMIGRATE": ("127.0.0.1", receiver)}, faults=faults) as pacs:
        configure(folder, pacs.port, receiver, retry="attempts = 1")
        first, second = called(folder, *SIGNED), called(folder, "run")
        return (first[0], first[1] + first[2]), (second[0], second[1] + second[2])


def test_the_same_pacs_goes_on_at_its_new_address(tmp_path: Path) -> None:
    """Refused without a signature, which the refusal names; with one the run goes on to the end, and the seals hold the change."""
    archive = Archive(12)
    assert served(tmp_path, archive, "skip-one")[0] == 3
    code, said = served(tmp_path, archive)
    assert code == 2 and "pacs-migrate readdress" in said
    (code, said), (ended, told) = signed_and_run(tmp_path, archive)
    assert code == 0 and "shows 11 of 11 known studies" in said, said
    assert ended in (0, 3), told
    assert called(tmp_path, "audit")[0] == 0
    with sqlite3.connect(tmp_path / "manifests" / "test.db") as manifest:
        (detail,) = manifest.execute("SELECT detail FROM event WHERE kind = 'source readdressed'").fetchone()
        (now,) = manifest.execute("SELECT value FROM meta WHERE key = 'source'").fetchone()
        sealed = manifest.execute("SELECT count(*) FROM event WHERE kind = 'meta' AND detail LIKE '''source''%'").fetchone()[0]
    assert detail.endswith("by j.doe (PACS administrator): new network") and now in detail
    assert sealed == 2
    anchors = sorted((tmp_path / "bucket" / "_pacs-migrate" / "anchors").glob("*.json"))
    assert len(anchors) >= 2 and all(json.loads(path.read_text()) for path in anchors)


def test_another_pacs_is_not_taken_for_it(tmp_path: Path) -> None:
    """One that has other studies, and one that has lost most of them, is refused with 2; the manifest stays as it was."""
    archive = Archive(12)
    assert served(tmp_path, archive)[0] == 0
    arrived = data_sets(tmp_path)
    with sqlite3.connect(tmp_path / "manifests" / "test.db") as manifest:
        before = manifest.execute("SELECT key, value FROM meta ORDER BY key").fetchall()
    for other in (Archive(12, 2), Archive(4)):
        (code, said), (ended, _) = signed_and_run(tmp_path, other)
        assert code == 2 and "not taken for the same PACS" in said, said
        assert ended == 2
    with sqlite3.connect(tmp_path / "manifests" / "test.db") as manifest:
        assert manifest.execute("SELECT key, value FROM meta ORDER BY key").fetchall() == before
    assert data_sets(tmp_path) == arrived == truth(archive)


def test_nothing_is_signed_where_nothing_moved(tmp_path: Path) -> None:
    """The address that the manifest has already, no answer at the new one, and no name: 2, 20 and 2."""
    archive, receiver = Archive(3), free_port()
    with PracticePacs(archive, destinations={"PACSMIGRATE": ("127.0.0.1", receiver)}) as pacs:
        configure(tmp_path, pacs.port, receiver)
        assert called(tmp_path, "run")[0] == 0
        code, _, err = called(tmp_path, *SIGNED)
        assert code == 2 and "already" in err
    configure(tmp_path, free_port(), receiver)
    assert called(tmp_path, *SIGNED)[0] == 20
    assert called(tmp_path, "readdress", "--reason", "r", "--by", " ")[0] == 2
