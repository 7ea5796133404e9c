"""Following a PACS that goes on working: later sweeps, a second run, and `run --watch`."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from migrate.dicom import dimse
from migrate.dicom.scu import FindSession, Peer
from migrate.practice.pacs import PracticePacs
from migrate.practice.studies import Archive
from tests.ports import free_port, free_ports
from tests.runs import changing, command, configure, data_sets, document, left_over, practice_process, truth
from tests.s3_server import ENVIRONMENT, SEAWEEDFS_PORTS, seaweedfs

S3 = """kind = "s3"
bucket = "images"
endpoint_url = "http://127.0.0.1:{port}"
workers = 2
"""


def query(folder: Path, sql: str) -> list[tuple]:
    """Rows of the manifest as of now; none while there is no manifest yet."""
    path = folder / "manifests" / "test.db"
    if not path.exists():
        return []
    manifest = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)
    try:
        return manifest.execute(sql).fetchall()
    except sqlite3.OperationalError:  # the schema is being written
        return []
    finally:
        manifest.close()


def rounds(folder: Path) -> list[str]:
    return [detail for (detail,) in query(folder, "SELECT detail FROM event WHERE kind = 'round ended' ORDER BY id")]


class Watching:
    """A `run --watch` in a process of its own, with what it says on stderr."""

    def __init__(self, folder: Path, every: str, environment: dict[str, str]) -> None:
        words = [sys.executable, "-m", "migrate", "run", "--watch", "--every", every, "--config", str(folder / "migrate.toml")]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment})
        self.said: list[str] = []
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._news:
                self.said.append(line)
                self._news.notify_all()
        with self._news:
            self._news.notify_all()

    def wait_for(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        """Until it holds; looked at whenever the watch says something, and ten times a second."""
        until = time.monotonic() + seconds
        with self._news:
            while not condition():
                assert self.process.poll() is None, "".join(self.said)
                assert time.monotonic() < until, "".join(self.said)
                self._news.wait(0.1)

    def end(self, number: int = signal.SIGTERM) -> tuple[int, float]:
        """(exit code, seconds that it took) after a signal."""
        began = time.monotonic()
        self.process.send_signal(number)
        code = self.process.wait(40)
        self._reader.join(5)
        return code, time.monotonic() - began


@contextlib.contextmanager
def watching(folder: Path, every: str = "0.005", environment: dict[str, str] | None = None) -> Iterator[Watching]:
    watch = Watching(folder, every, environment or {})
    try:
        yield watch
    finally:
        watch.process.kill()
        watch.process.wait()


def held(pacs: PracticePacs) -> dict[tuple[str, str, str], bytes]:
    """What the PACS has now."""
    return {(study, series, sop): digest for study, series, sop, digest in pacs.holdings.truth()}


def look_at_all_images(pacs: PracticePacs) -> None:
    """An IMAGE query for every study, after which a PACS with such a fault changes some of them."""
    with FindSession(Peer("127.0.0.1", pacs.port, "PRACTICE", "VIEWER")) as session:
        for study in list(pacs.holdings):
            for series in study.series:
                list(session.find("IMAGE", {dimse.STUDY_UID: study.uid, dimse.SERIES_UID: series.uid}, (dimse.SOP_UID,)))


def test_what_grows_while_it_is_moved_is_completed(tmp_path: Path) -> None:
    """Studies that grow after their first IMAGE answer are complete at the end of the same run."""
    with changing(tmp_path, Archive(24), "growing") as pacs:
        assert document(tmp_path, "run")["complete"] is True
        assert pacs.holdings.added
        assert data_sets(tmp_path) == held(pacs)


def test_what_grew_between_two_runs_is_completed(tmp_path: Path) -> None:
    """A sweep finds migrated studies again whose claim has changed, and the next run fetches what is new, and only that."""
    archive = Archive(24)
    with changing(tmp_path, archive) as pacs:
        document(tmp_path, "run")
    before = data_sets(tmp_path)
    with changing(tmp_path, archive, "growing", port=pacs.port) as pacs:
        look_at_all_images(pacs)
        grown = pacs.holdings.added
        assert grown
        assert document(tmp_path, "enumerate")["studies"]["found"] == len(grown)
        done = document(tmp_path, "run")
        stored = pacs.counts["store"]
        assert done["complete"] is True and done["studies"]["migrated"] == 24
        assert data_sets(tmp_path) == held(pacs)
    assert {sop for _, _, sop in data_sets(tmp_path).keys() - before.keys()} == grown
    assert stored < len(before)


def test_what_shrank_between_two_runs_stays(tmp_path: Path) -> None:
    """What is proven once is never taken back; the log says that the study shrank."""
    archive = Archive(24)
    with changing(tmp_path, archive) as pacs:
        document(tmp_path, "run")
    with changing(tmp_path, archive, "shrinking", port=pacs.port) as pacs:
        look_at_all_images(pacs)
        lost = pacs.holdings.lost
        assert lost
        done = document(tmp_path, "run")
    assert done["complete"] is True
    assert data_sets(tmp_path) == truth(archive)
    assert len(query(tmp_path, "SELECT DISTINCT study_uid FROM event WHERE kind = 'study shrank'")) == len(lost)


def test_what_vanishes_before_its_turn_is_named(tmp_path: Path) -> None:
    """A study that was found and is gone when it is asked for is parked with its own error; all others are migrated."""
    archive = Archive(24)
    with changing(tmp_path, archive, "vanishing") as pacs:
        assert command(tmp_path, "enumerate").returncode in (0, 3)  # what goes while answers are compared, that sweep cannot vouch for
        parked = document(tmp_path, "run", code=3)["parked"]
        assert {entry["study"] for entry in parked} == pacs.holdings.vanished
        assert {entry["error"] for entry in parked} == {"VanishedAtSource"}
        assert data_sets(tmp_path) == held(pacs)


def test_what_vanishes_once_it_is_migrated_stays(tmp_path: Path) -> None:
    """The next runs are complete, the report names what no sweep shows any more, and nothing is taken back."""
    archive = Archive(24)
    with changing(tmp_path, archive) as pacs:
        document(tmp_path, "run")
    with changing(tmp_path, archive, "vanishing", port=pacs.port) as pacs:
        assert command(tmp_path, "run").returncode in (0, 3)  # what goes while its sweep compares answers, that sweep cannot vouch for
        assert document(tmp_path, "run")["complete"] is True
        gone = pacs.holdings.vanished
        reasons = [entry["reason"] for entry in document(tmp_path, "report")["enumeration"]["suspicious"]]
    assert gone and all(any(uid in reason and "was last shown" in reason for reason in reasons) for uid in gone)
    assert data_sets(tmp_path) == truth(archive)


def test_studies_that_appear_belong_to_the_next_run(tmp_path: Path) -> None:
    """What is dated today and comes after a run's first sweep is taken by the run after it."""
    with changing(tmp_path, Archive(12), "new-studies=300") as pacs:
        assert document(tmp_path, "run")["studies"]["migrated"] == 12
        while len(pacs.holdings) == 12:
            document(tmp_path, "run")
        done = document(tmp_path, "run")
        assert done["complete"] is True and done["studies"]["migrated"] == 15
        assert data_sets(tmp_path) == held(pacs)


def test_a_watch_follows_what_is_new(tmp_path: Path) -> None:
    """Studies that appear while it watches are migrated in a later round; every round is a run on record; SIGTERM ends it with 130."""
    with changing(tmp_path, Archive(12), "new-studies=300", "growing") as pacs, watching(tmp_path) as watch:
        watch.wait_for(lambda: len(pacs.holdings) == 15 and data_sets(tmp_path) == held(pacs))
        seen = len(rounds(tmp_path))
        watch.wait_for(lambda: len(rounds(tmp_path)) > seen)
        code, _ = watch.end()
        assert code == 130
        ended = rounds(tmp_path)
        runs = query(tmp_path, "SELECT verb, exit_code FROM run ORDER BY id")
        assert len(ended) > 1 and ended[-1].startswith("exit 0")
        assert runs[-1] == ("run", 130) and set(runs[:-1]) <= {("run", 0), ("run", 3)}
        assert len(runs) - len(ended) in (0, 1)
        assert document(tmp_path, "run")["complete"] is True


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_watch_that_waits_ends_at_once(tmp_path: Path, number: int) -> None:
    """A signal between two rounds ends it within a few seconds, and leaves nothing behind."""
    with changing(tmp_path, Archive(12)), watching(tmp_path, "60") as watch:
        watch.wait_for(lambda: any("Round ended: complete" in line for line in watch.said))
        code, seconds = watch.end(number)
    assert (code, seconds < 5) == (130, True)
    assert left_over(tmp_path) == []
    assert query(tmp_path, "SELECT exit_code FROM run") == [(130,)]
    assert rounds(tmp_path) == ["exit 0; the next one in 60 minutes"]


def test_a_watch_waits_for_a_pacs_that_is_away(tmp_path: Path) -> None:
    """A PACS that dies ends a round and not the watch; when it is back, the rounds are complete again. A refusal ends the watch."""
    port, receiver = free_port(), free_port()
    configure(tmp_path, port, receiver, retry="attempts = 6\nfirst_wait_s = 0.05\nmax_wait_s = 0.1\nunreachable_s = 0.1")
    with practice_process(tmp_path, port, receiver) as pacs, watching(tmp_path) as watch:
        watch.wait_for(lambda: any(line.startswith("exit 0") for line in rounds(tmp_path)))
        pacs.kill()
        pacs.wait()
        watch.wait_for(lambda: any("SourceUnreachable" in line for line in rounds(tmp_path)))
        with practice_process(tmp_path, port, receiver):
            seen = len(rounds(tmp_path))
            watch.wait_for(lambda: any(line.startswith("exit 0") for line in rounds(tmp_path)[seen:]))
        with practice_process(tmp_path, port, receiver, "--ae-title", "OTHER"):
            assert watch.process.wait(60) == 20
    assert data_sets(tmp_path) == truth(Archive(60))


def test_a_watch_waits_for_a_store_that_is_away(tmp_path: Path) -> None:
    """A store that dies while there is something to put ends a round and not the watch; what waits in staging is put when it is back."""
    ports = free_ports(SEAWEEDFS_PORTS)
    (tmp_path / "weed").mkdir()
    with changing(tmp_path, Archive(12), "new-studies=300") as pacs:
        path = tmp_path / "migrate.toml"
        text = path.read_text().replace('kind = "folder"\npath = "bucket"\n', S3.format(port=ports[0]))
        path.write_text(text + "unreachable_s = 0.1\n")
        with contextlib.ExitStack() as stack:
            with seaweedfs(tmp_path / "weed", ports) as server:
                server.bucket("images")
                watch = stack.enter_context(watching(tmp_path, environment=ENVIRONMENT))
                watch.wait_for(lambda: any(line.startswith("exit 0") for line in rounds(tmp_path)))
            watch.wait_for(lambda: any("DestinationUnreachable" in line for line in rounds(tmp_path)))
            assert query(tmp_path, "SELECT 1 FROM study WHERE state = 5") == []
            with seaweedfs(tmp_path / "weed", ports) as server:
                complete = "SELECT 1 FROM study WHERE state = 3 GROUP BY state HAVING count(*) = 15"
                watch.wait_for(lambda: bool(query(tmp_path, complete)))
                assert watch.end()[0] == 130
                pages = server.client().get_paginator("list_objects_v2").paginate(Bucket="images", Prefix="studies/")
                assert sum(len(page.get("Contents", ())) for page in pages) == len(held(pacs))
    assert query(tmp_path, "SELECT total(attempts) FROM study") == [(0,)]


def test_a_watch_does_not_wait_for_a_pacs_that_never_was_there(tmp_path: Path) -> None:
    """At the first contact it ends like any run; --every alone is a usage error."""
    configure(tmp_path, free_port(), free_port())
    assert command(tmp_path, "run", "--watch").returncode == 20
    assert command(tmp_path, "run", "--every", "5").returncode == 2
    assert command(tmp_path, "run", "--watch", "--every", "0").returncode == 2
