"""Ways to a false "complete" that were looked for on purpose: each stays closed."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from migrate.practice.pacs import PracticePacs
from migrate.practice.studies import Archive
from tests.ports import free_port
from tests.runs import called, changing, command, configure, data_sets, here, practice, truth

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


def test_images_that_nobody_lists_or_counts_and_that_come_last(tmp_path: Path) -> None:
    """A run does not end while the PACS is still sending what its early answer has not told of."""
    archive, receiver = Archive(1, shapes={0: (("CT", 40),)}), free_port()
    faults = ("no-counts", "image-cap=1", "null-counters", "early-success", "slow-answers=0.2")
    with PracticePacs(archive, destinations={"PACSMIGRATE": ("127.0.0.1", receiver)}, faults=faults) as pacs:
        configure(tmp_path, pacs.port, receiver, source="settle_s = 4")
        assert here(tmp_path, "run")[0] == 0
    assert data_sets(tmp_path) == truth(archive)


@pytest.mark.parametrize("counts", ["no-counts", "null-counters"])
def test_a_study_that_grows_between_two_runs_though_nobody_lists_it(tmp_path: Path, counts: str) -> None:
    """A list that was found to be short, or a claim, has the study asked for again as a whole."""
    archive, port = Archive(4), free_port()
    faults = (counts, "image-cap=1")
    with changing(tmp_path, archive, *faults, port=port):
        assert here(tmp_path, "run")[0] == 0
    with changing(tmp_path, archive, *faults, "growing@2", port=port) as pacs:
        pacs.holdings.showed_images(pacs.holdings.study(2))
        assert here(tmp_path, "run")[0] == 0
        assert len(pacs.holdings.added) == 1
        assert data_sets(tmp_path) == truth(pacs.holdings)


def test_a_sweep_that_was_cut_off_is_no_answer_of_today(tmp_path: Path) -> None:
    """Without numbers only the lists of images tell that a study grew: also where its row came before the last run was killed."""
    archive, port = Archive(4), free_port()
    with changing(tmp_path, archive, "no-counts", port=port):
        assert here(tmp_path, "run")[0] == 0
        killed = command(tmp_path, "run", failpoint="enumerate-answered:kill:60")
        assert killed.returncode < 0
    with changing(tmp_path, archive, "no-counts", "growing@2", port=port) as pacs:
        pacs.holdings.showed_images(pacs.holdings.study(2))
        assert here(tmp_path, "run")[0] == 0
        assert data_sets(tmp_path) == truth(pacs.holdings)


def test_a_clock_that_was_years_ahead(tmp_path: Path) -> None:
    """What waits for a time that no wait can lead to is due: else the run would wait for years."""
    with practice(tmp_path, "skip-first", studies=3) as archive:
        ahead = time.time_ns() // 1_000_000 + 10 * 365 * 86_400_000
        assert here(tmp_path, "enumerate")[0] == 0
        with contextlib.closing(sqlite3.connect(tmp_path / "manifests" / "test.db")) as manifest, manifest:
            manifest.execute("UPDATE study SET not_before = ?", (ahead,))
        assert command(tmp_path, "run").returncode == 0
    assert data_sets(tmp_path) == truth(archive)


@pytest.mark.parametrize(("there", "verb", "code"), [(False, "run", 21), (False, "verify", 21), (True, "run", 21), (True, "verify", 3)])
def test_a_destination_that_is_another_one(tmp_path: Path, there: bool, verb: str, code: int) -> None:
    """Where nothing of what was proven is to be seen, as when a disk is not mounted, no run is complete, and nothing is made or put there."""
    with practice(tmp_path, studies=2) as archive:
        assert here(tmp_path, "run")[0] == 0
        (tmp_path / "bucket").rename(tmp_path / "elsewhere")
        if there:
            (tmp_path / "bucket").mkdir()
        ended, _, said = called(tmp_path, verb)
        assert (ended, "mounted" in said) == (code, code == 21)
        assert list((tmp_path / "bucket").rglob("*.dcm")) == [] and (tmp_path / "bucket").exists() is there
        assert called(tmp_path, "run")[0] == (0 if code == 3 else 21)  # what `verify` has put on record as missing comes again
    assert data_sets(tmp_path) == (truth(archive) if code == 3 else {})
