"""What a stop cuts off."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from migrate import config
from migrate.model import StudyRef, Wanted
from migrate.practice.pacs import PracticePacs
from migrate.practice.studies import Archive
from migrate.sources import open_source
from migrate.staging.area import Staging
from tests.ports import free_port
from tests.runs import configure
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
