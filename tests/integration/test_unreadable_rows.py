"""A row of a list without a valid UID costs no other image, and is never forgotten."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.runs import called, command, data_sets, practice, truth


def test_the_others_are_migrated_and_the_row_waits_for_a_person(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every image arrives, but the study is not migrated until somebody signs for the row, even if the process dies in between."""
    with practice(tmp_path, "nameless-rows@1", studies=4) as archive:
        monkeypatch.setenv("PACS_MIGRATE_FAILPOINT", "retrieve-ended:kill:2")
        killed = command(tmp_path, "run")
        monkeypatch.delenv("PACS_MIGRATE_FAILPOINT")
        code, out, said = called(tmp_path, "run", "--json")
        (entry,) = json.loads(called(tmp_path, "report", "--json")[1])["exceptions"]
        study = archive.study(1).uid
        assert called(tmp_path, "accept", study, "--reason", "the database is damaged", "--by", "J. Doe")[0] == 0
        last = called(tmp_path, "run", "--json")
    assert (killed.returncode, code, json.loads(out)["complete"]) == (-signal.SIGKILL, 3, False), said
    assert (entry["study"], entry["state"], entry["error"]) == (study, "parked", "UnreadableRow")
    assert f'The PACS lists an image of series {archive.study(1).series[-1].uid}: "", which is no UID.' in entry["detail"]
    assert (last[0], json.loads(last[1])["complete"]) == (0, True), last[2]
    assert data_sets(tmp_path) == truth(archive)
