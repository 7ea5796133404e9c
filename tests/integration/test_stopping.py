"""What a stop cuts off, and what comes at the very end of a run."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from migrate import config
from migrate.errors import DiskFailing
from migrate.jobs.migration import Migration
from migrate.model import InstanceRef, Received, StudyRef, Wanted
from migrate.pipeline import Pipeline
from migrate.practice.pacs import PracticePacs
from migrate.practice.studies import Archive
from migrate.sources import open_source
from migrate.staging.area import Staging
from tests.ports import free_port
from tests.runs import configure, practice
from tests.waiting import until


def test_a_retrieval_that_is_cut_off_is_no_failure(tmp_path: Path) -> None:
    """A C-MOVE under way ends long before the PACS would be called silent, and by our own doing."""
    archive, receiver = Archive(1), free_port()
    study = archive.study(0)
    wanted = Wanted(True, {series.uid: tuple(image.sop for image in series.instances) for series in study.series})
    with PracticePacs(archive, destinations={"PACSMIGRATE": ("127.0.0.1", receiver)}, faults=("never-answers",)) as pacs, ThreadPoolExecutor(1) as pool:
        settings = config.load(configure(tmp_path, pacs.port, receiver))
        source = open_source(settings, Staging(tmp_path / "staging", reserve_bytes=0), lambda _: None)
        source.open()
        ended = pool.submit(source.retrieve, StudyRef(study.uid), wanted)
        until(lambda: pacs.counts["move STUDY"])
        source.cut()
        assert ended.result(30).error == "Interrupted"
        source.close()


class VisitedLate(Migration):
    """A migration to which an image comes behind all else, and spoils on the disk."""

    def _sweeps(self, pipeline: Pipeline, only_enumerate: bool) -> None:
        super()._sweeps(pipeline, only_enumerate)
        incoming = self._staging.create().begin(b"\0" * 128 + b"DICM" + b"meta")
        incoming.write(memoryview(b"late" * 100))
        incoming.close()
        received = Received(incoming.path, InstanceRef("1.2", "1.2.1", "1.2.1.1"), incoming.roll(), "1.3", "1.4")
        incoming.path.write_bytes(b"spoilt")
        pipeline.deliver(received)


def test_an_image_that_is_lost_at_the_very_end_is_no_success(tmp_path: Path) -> None:
    """What came after the last sweep and did not become durable ends the run as it would have ended it before."""
    with practice(tmp_path, studies=1), VisitedLate(config.load(tmp_path / "migrate.toml"), "run") as migration, pytest.raises(DiskFailing):
        migration.run()


@pytest.mark.parametrize(("code", "told"), [(0, True), (3, True), (21, False)])
def test_a_run_whose_end_cannot_be_recorded_does_not_end_well(tmp_path: Path, code: int, told: bool) -> None:
    """The manifest takes nothing any more at the last row: that is told, but for a run that ends by an error of its own."""
    with practice(tmp_path, studies=1), pytest.raises(DiskFailing) if told else contextlib.nullcontext(), \
            Migration(config.load(tmp_path / "migrate.toml"), "enumerate") as migration:  # fmt: skip
        migration.exit_code = code
        migration.manifest.connection.execute("PRAGMA query_only = ON")
    with Migration(config.load(tmp_path / "migrate.toml"), "enumerate"):
        pass  # nobody holds the lock
