"""A PACS that caps its SERIES and IMAGE answers, too: what no list names must come, or the study is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.runs import command, data_sets, practice, truth


@pytest.mark.parametrize("faults", [("image-cap",), ("image-cap=1", "abort-store"), ("image-cap=1", "skip-first")])
def test_what_no_list_names_comes_with_the_whole_study(tmp_path: Path, faults: tuple[str, ...]) -> None:
    """An attempt that broke is not made up for by the list alone: the study is asked for as a whole until all that is claimed is here."""
    with practice(tmp_path, *faults) as archive:
        done = command(tmp_path, "run", "--json")
    assert done.returncode == 0, done.stderr
    assert data_sets(tmp_path) == truth(archive)


def test_an_image_that_no_list_names_and_that_never_comes(tmp_path: Path) -> None:
    """Where more is claimed than came, and the lists are known to be short, the study is never complete."""
    with practice(tmp_path, "image-cap=1", "skip-one") as archive:
        done = command(tmp_path, "run", "--json")
    assert done.returncode == 3, done.stderr
    short = {study.uid for study in archive if study.number % 3 == 0 and study.series}
    assert {entry["study"] for entry in json.loads(done.stdout)["parked"]} == short
