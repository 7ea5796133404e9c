"""A lost manifest is made anew from what lies at the destination and in staging, and the run goes on."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from migrate.practice.pacs import PracticePacs
from migrate.practice.studies import Archive
from tests.fault.forked import Forks
from tests.fault.invariants import unkept_in
from tests.ports import free_port
from tests.runs import bucket, configure, data_sets, left_over, truth
from tests.s3_server import S3Server

SPAN = "settle_s = 0.2\nassociations = 1\nfrom = 2016-01-01\nto = 2019-12-31"


@contextlib.contextmanager
def pacs_for(folder: Path, *faults: str, **options: str) -> Iterator[tuple[PracticePacs, dict[tuple[str, str, str], bytes]]]:
    """A practice PACS, nine studies of which are to be migrated, and their truth."""
    archive, receiver = Archive(60), free_port()
    studies = {study.uid for study in map(archive.study, range(60)) if "2016" <= study.date[:4] <= "2019"}
    with PracticePacs(archive, destinations={"PACSMIGRATE": ("127.0.0.1", receiver)}, faults=faults) as pacs:
        configure(folder, pacs.port, receiver, source=SPAN, **options)
        yield pacs, {uids: digest for uids, digest in truth(archive).items() if uids[0] in studies}


def lose(folder: Path) -> None:
    for path in (folder / "manifests").glob("*.db*"):
        path.unlink()


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with Forks() as made:
        yield made


def events(folder: Path, kind: str) -> list[Any]:
    with contextlib.closing(sqlite3.connect(folder / "manifests" / "test.db")) as connection:
        return connection.execute("SELECT detail FROM event WHERE kind = ?", (kind,)).fetchall()


def test_a_run_goes_on_after_its_manifest_is_lost(tmp_path: Path, forks: Forks) -> None:
    """Lost amid a run: objects and staged files are known again, no object is written twice, the end is whole, byte for byte."""
    with pacs_for(tmp_path) as (pacs, known):
        assert forks.run(tmp_path, "run", failpoint="put-done:kill:30").killed
        there = {path: path.stat().st_mtime_ns for path in (tmp_path / "bucket" / "studies").rglob("*.dcm")}
        assert len(there) >= 25
        lose(tmp_path)
        assert forks.run(tmp_path, "rebuild", failpoint="commit-done:kill:1").killed
        done = forks.run(tmp_path, "rebuild", "--json")
        assert done.code == 0, done.err
        document = json.loads(done.out)
        assert (document["objects"], document["not_ours"]) == (len(there), [])
        assert document["staged"] >= 1
        assert unkept_in(tmp_path, known) == []
        assert [line for (line,) in events(tmp_path, "unknown since the rebuild")] == document["unknown"]
        assert json.loads(forks.run(tmp_path, "status", "--json").out)["complete"] is False
        sent = pacs.counts["store"]
        ended = forks.run(tmp_path, "run", "--json")
        assert ended.code == 0, ended.err
        assert json.loads(ended.out)["complete"] is True
    assert data_sets(tmp_path) == known
    assert {path: path.stat().st_mtime_ns for path in there} == there
    assert left_over(tmp_path) == []
    largest = max(Counter(study for study, _, _ in known).values())  # of the study that was cut off all is sent once more
    assert pacs.counts["store"] - sent <= len(known) - len(there) + largest


def test_a_finished_migration_is_not_sent_again(tmp_path: Path, forks: Forks) -> None:
    """After a rebuild of all that was done the PACS is asked, and sends nothing; with --ask-again it sends everything once more."""
    with pacs_for(tmp_path) as (pacs, known):
        assert forks.run(tmp_path, "run").code == 0
        assert forks.run(tmp_path, "rebuild").code == 2  # there is a manifest
        for words, sends in (("rebuild",), 0), (("rebuild", "--ask-again"), len(known)):
            lose(tmp_path)
            assert forks.run(tmp_path, *words).code == 0
            before = pacs.counts["store"]
            assert forks.run(tmp_path, "run").code == 0
            assert pacs.counts["store"] - before == sends
    assert data_sets(tmp_path) == known


def test_what_is_not_ours_is_named_and_second_contents_are_known(tmp_path: Path, forks: Forks) -> None:
    """An object that holds other bytes is named, a sound copy beside it is known for what it is; both stay as they are."""
    with pacs_for(tmp_path) as (_, known):
        assert forks.run(tmp_path, "run").code == 0
        victim = min((tmp_path / "bucket").glob("studies/*/series/*/instances/*.dcm"))
        victim.chmod(0o600)
        victim.write_bytes(b"not an image")
        assert forks.run(tmp_path, "verify").code == 3
        assert forks.run(tmp_path, "run").code == 3  # a sound copy goes beside it
        objects = {path: path.read_bytes() for path in (tmp_path / "bucket" / "studies").rglob("*.dcm")}
        lose(tmp_path)
        done = forks.run(tmp_path, "rebuild", "--json")
        assert done.code == 3
        assert json.loads(done.out)["not_ours"] == [victim.relative_to(tmp_path / "bucket").as_posix()]
        assert json.loads(done.out)["objects"] == len(known)
        ended = forks.run(tmp_path, "run", "--json")
        assert ended.code == 3, ended.err
        assert json.loads(ended.out)["instances"]["conflict"] == 1
        assert json.loads(ended.out)["instances"]["verified"] == len(known) - 1
    assert {path: path.read_bytes() for path in (tmp_path / "bucket" / "studies").rglob("*.dcm")} == objects


def test_from_a_bucket(tmp_path: Path, forks: Forks, server: S3Server) -> None:
    """The same from a real S3 server: nothing is put again, nothing sent again; and the copy of the manifest comes back from there."""
    name = server.new_bucket(versioned=True)
    with pacs_for(tmp_path, destination=bucket(name, server.endpoint_url)) as (pacs, known):
        assert forks.run(tmp_path, "run").code == 0
        lose(tmp_path)
        done = forks.run(tmp_path, "rebuild", "--json")
        assert done.code == 0, done.err
        assert json.loads(done.out)["objects"] == len(known)
        before = pacs.counts["store"]
        ended = forks.run(tmp_path, "run", "--json")
        assert ended.code == 0, ended.err
        assert json.loads(ended.out)["instances"]["verified"] == len(known)
        assert pacs.counts["store"] == before
        audited = json.loads(forks.run(tmp_path, "audit", "--json").out)
        assert (audited["holds"], audited["anchors"], audited["proven"]) == (True, 3, len(known)), audited  # that of the lost chain, too
        lose(tmp_path)
        assert forks.run(tmp_path, "restore-manifest").code == 0
        audited = json.loads(forks.run(tmp_path, "audit", "--json").out)
        assert (audited["holds"], audited["anchors"], audited["proven"]) == (True, 4, len(known)), audited
    versions = server.client().list_object_versions(Bucket=name, Prefix="studies/")
    assert len(versions["Versions"]) == len(known)
