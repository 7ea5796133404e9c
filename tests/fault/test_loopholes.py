"""Ways to a false "complete" that were looked for on purpose: each stays closed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from migrate.practice.studies import Archive
from tests.ports import free_port
from tests.runs import changing, data_sets, here, practice, truth

SIGNED = ("--reason", "nobody can mend it", "--by", "j.doe")


def report(folder: Path) -> Any:
    return json.loads(here(folder, "report", "--json")[1])


def parked(folder: Path) -> dict[str, str]:
    return {entry["study"]: entry["error"] for entry in json.loads(here(folder, "status", "--json")[1])["parked"]}


def exceptions(folder: Path) -> dict[str, Any]:
    return {entry["study"]: entry for entry in report(folder)["exceptions"]}


@pytest.mark.parametrize("fault", ["failed-image", "failed-unnamed", "skip-one"])
def test_an_image_that_nobody_lists_or_counts_and_that_fails(tmp_path: Path, fault: str) -> None:
    """Where lists are cut short and nothing is claimed, only a C-MOVE of the whole study without a failure shows that all came."""
    with practice(tmp_path, "no-counts", "image-cap=1", fault, studies=6) as archive:
        code, _ = here(tmp_path, "run")
    lacking = {study for study, *rest in truth(archive).keys() - data_sets(tmp_path).keys()}
    assert lacking and code == 3
    assert parked(tmp_path).keys() >= lacking


def test_an_image_that_nobody_lists_or_counts_and_an_association_that_breaks(tmp_path: Path) -> None:
    """The list does not make up for a C-MOVE of the whole study that broke."""
    with practice(tmp_path, "no-counts", "image-cap=1", "abort-store", studies=6) as archive:
        code, _ = here(tmp_path, "run")
    assert code == 0
    assert data_sets(tmp_path) == truth(archive)


def test_a_study_without_list_and_count_that_is_not_sent(tmp_path: Path) -> None:
    """A refusal for one study (A801) does not show that it is empty, though nothing is listed and nothing claimed."""
    with practice(tmp_path, "no-counts", "no-image-rows", "move-unknown@3", studies=5) as archive:
        code, _ = here(tmp_path, "run")
    assert code == 3
    assert parked(tmp_path) == {archive.study(3).uid: "MoveFailed"}


def test_a_lost_object_of_an_accepted_conflict(tmp_path: Path) -> None:
    """Who signs for two contents does not sign for their loss: what is lost afterwards is fetched again."""
    with practice(tmp_path, "other-bytes@3", studies=5) as archive:
        assert here(tmp_path, "run")[0] == 3
        study = archive.study(3).uid
        assert here(tmp_path, "accept", study, *SIGNED)[0] == 0
        assert here(tmp_path, "run")[0] == 0
        lost = next(path for path in (tmp_path / "bucket").rglob("*~*.dcm")).name.partition("~")[0]
        (gone,) = (tmp_path / "bucket" / "studies" / study).rglob(f"{lost}.dcm")
        gone.unlink()
        assert here(tmp_path, "verify")[0] == 3
        assert lost in exceptions(tmp_path)[study]["missing"]
        code, _ = here(tmp_path, "run")
        assert gone.exists() or code == 3
        assert code == 0


def test_a_signature_does_not_cover_what_is_claimed_later(tmp_path: Path) -> None:
    """A study whose list is cut short was accepted; when it grows, and the new image does not come either, a person decides again."""
    archive = Archive(5)
    port = free_port()
    faults = ("image-cap=1", "skip-one@3")
    with changing(tmp_path, archive, *faults, port=port):
        assert here(tmp_path, "run")[0] == 3
        study = archive.study(3).uid
        assert list(parked(tmp_path)) == [study]
        assert here(tmp_path, "accept", study, *SIGNED)[0] == 0
        assert here(tmp_path, "run")[0] == 0
    with changing(tmp_path, archive, *faults, "growing@3", port=port) as pacs:
        pacs.holdings.showed_images(pacs.holdings.study(3))
        assert here(tmp_path, "run")[0] == 3
        assert list(parked(tmp_path)) == [study]
