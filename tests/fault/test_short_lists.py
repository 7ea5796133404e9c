"""A PACS that caps its SERIES and IMAGE answers, too: what no list names must come, or the study is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.runs import command, data_sets, practice, truth


@pytest.mark.parametrize("faults", [("image-cap",), ("image-cap=1", "abort-store"), ("image-cap=1", "skip-first"),
                                    ("no-image-rows", "no-counts"), ("no-image-rows", "no-counts", "abort-store")])  # fmt: skip
def test_what_no_list_names_comes_with_the_whole_study(tmp_path: Path, faults: tuple[str, ...]) -> None:
    """An attempt that broke is not made up for by the list alone: the study is asked for as a whole until all that is claimed is here."""
    with practice(tmp_path, *faults) as archive:
        done = command(tmp_path, "run", "--json")
    assert done.returncode == 0, done.stderr
    assert data_sets(tmp_path) == truth(archive)


@pytest.mark.parametrize("faults", [("image-cap=1",), ("no-image-rows", "no-counts")])
def test_an_image_that_no_list_names_and_that_never_comes(tmp_path: Path, faults: tuple[str, ...]) -> None:
    """Where more is claimed than came, be it by the C-MOVE's counters, and the lists are known to be short, the study is never complete."""
    with practice(tmp_path, "skip-one", *faults) as archive:
        done = command(tmp_path, "run", "--json")
    assert done.returncode == 3, done.stderr
    short = {study.uid for study in archive if study.number % 3 == 0 and study.series}
    assert {entry["study"] for entry in json.loads(done.stdout)["parked"]} == short


def test_an_empty_study_without_a_number_is_asked_for(tmp_path: Path) -> None:
    """A study that lists nothing and claims nothing is empty only once its C-MOVE has brought nothing, too; it is named."""
    with practice(tmp_path, "no-counts", "empty-studies"):
        done = command(tmp_path, "run", "--json")
        document = json.loads(command(tmp_path, "report", "--json").stdout)
    assert done.returncode == 0, done.stderr
    assert [(entry["state"], entry["missing"]) for entry in document["exceptions"] if entry["error"] == "EmptyAtSource"] == [("migrated", [])] * 2
