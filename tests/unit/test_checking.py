"""Looking again: who gets which job, and when a destination that is gone ends it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from migrate.config import FolderSettings
from migrate.destinations import open_destination
from migrate.errors import DestinationUnreachable
from migrate.model import Proof
from migrate.stages.checking import Check, Handout, check
from tests.places import staged


def test_a_job_is_with_one_worker_until_it_is_done() -> None:
    """What is under way is not handed out a second time; what came back undone is, before anything new; what is done never again."""
    handout = Handout(["one", "two", "three"])
    first, second = (key for key, _ in handout.ready(set(), 2))
    assert [job for _, (_, job) in handout.ready({first, second}, 1)] == ["three"]
    handout.done(second)
    assert [job for _, (_, job) in handout.ready({2}, 5)] == ["one"]
    assert [key for key, _ in handout.ready({first, 2}, 5)] == []


def test_a_destination_that_is_gone_is_no_objects_fault(tmp_path: Path) -> None:
    """It ends the looking, instead of naming every object as one that could not be checked."""
    settings = FolderSettings(tmp_path / "bucket")
    destination = open_destination(settings)
    destination.prepare()
    item, file = staged(tmp_path, b"bytes")
    job = Check(settings, (replace(item, receipt=destination.put(item, file)),))
    facts, unchecked = check(job)
    assert ([fact.proof for fact in facts], unchecked) == ([Proof.READ_BACK], [])  # type: ignore[union-attr]
    settings.path.rename(tmp_path / "unmounted")
    with pytest.raises(DestinationUnreachable):
        check(job)
