"""The S3 store goes away in the middle of a run: a real server is killed, and started again on its port."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from migrate.dicom.part10 import read_header
from migrate.model import InstanceRef, object_key
from migrate.practice.pacs import PracticePacs
from migrate.practice.studies import Archive
from tests.ports import free_port, free_ports
from tests.runs import bucket, configure
from tests.s3_server import SEAWEEDFS_PORTS, S3Server, seaweedfs
from tests.waiting import until

STUDIES = 20


@pytest.fixture
def archive() -> Archive:
    return Archive(STUDIES)


@contextlib.contextmanager
def pacs_for(folder: Path, archive: Archive, ports: list[int], unreachable_s: float) -> Iterator[None]:
    """The practice PACS, and a configuration that leads from it to the store on `ports`."""
    receiver = free_port()
    with PracticePacs(archive, destinations={"PACSMIGRATE": ("127.0.0.1", receiver)}) as pacs:
        configure(folder, pacs.port, receiver, destination=bucket("images", f"http://127.0.0.1:{ports[0]}"),
                  retry=f"attempts = 2\nfirst_wait_s = 0.05\nmax_wait_s = 0.1\nunreachable_s = {unreachable_s}")  # fmt: skip
        yield


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "migrate", *words, "--json", "--config", str(folder / "migrate.toml")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(run: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = run.communicate(timeout=90)
    return run.returncode, out, err


def objects(server: S3Server) -> dict[str, str]:
    """Key and ETag of every object that belongs to a study."""
    pages = server.client().get_paginator("list_objects_v2").paginate(Bucket="images", Prefix="studies/")
    return {each["Key"]: each["ETag"] for page in pages for each in page.get("Contents", ())}


def await_objects(server: S3Server, run: subprocess.Popen[str]) -> None:
    until(lambda: objects(server), during=run)


def assert_all_arrived(server: S3Server, archive: Archive) -> None:
    """The bucket holds exactly the archive's data sets, byte for byte."""
    client, found = server.client(), {}
    for key in objects(server):
        _, study, _, series, _, name = key.split("/")
        raw = client.get_object(Bucket="images", Key=key)["Body"].read()
        found[study, series, name.removesuffix(".dcm")] = hashlib.sha256(raw[read_header(raw)[3] :]).digest()
    assert found == {(study, series, sop): digest for study, series, sop, digest in archive.truth()}


def assert_losses_are_named_and_healed(folder: Path, server: S3Server, archive: Archive) -> None:
    """What a store lost that had attested it (SIGKILLed, it has not synced everything; one more is removed here) is named by
    `verify`, and put again by the next run; all else is there."""
    server.client().delete_object(Bucket="images", Key=min(objects(server)))
    gone = {object_key(InstanceRef(*uids), "") for *uids, _ in archive.truth()} - objects(server).keys()
    code, out, err = ended(start(folder, "verify"))
    assert (code, set(json.loads(out)["missing"])) == (3, gone), err
    code, out, err = ended(start(folder, "run"))
    assert code == 0, err
    assert_all_arrived(server, archive)


def attempts_used(folder: Path) -> int:
    manifest = sqlite3.connect(folder / "manifests" / "test.db")
    with contextlib.closing(manifest):
        return int(manifest.execute("SELECT total(attempts) FROM study").fetchone()[0])


def test_a_store_that_dies_and_comes_back(tmp_path: Path, archive: Archive) -> None:
    """Killed in the middle of a run, the store is tried until it is back; no attempt is used up, the end is complete, and `verify` names what it lost."""
    ports = free_ports(SEAWEEDFS_PORTS)
    (tmp_path / "weed").mkdir()
    with pacs_for(tmp_path, archive, ports, unreachable_s=60):
        with seaweedfs(tmp_path / "weed", ports) as server:
            server.bucket("images")
            run = start(tmp_path, "run")
            await_objects(server, run)
        assert run.stderr is not None
        assert any("Trying again" in line for line in iter(run.stderr.readline, ""))
        with seaweedfs(tmp_path / "weed", ports) as server:
            code, out, err = ended(run)
            assert code == 0, err
            assert json.loads(out)["complete"] is True
            assert "Traceback" not in err
            assert attempts_used(tmp_path) == 0
            assert_losses_are_named_and_healed(tmp_path, server, archive)
    assert [path for path in (tmp_path / "staging").rglob("*") if path.is_file()] == []


def test_a_store_that_stays_away(tmp_path: Path, archive: Archive) -> None:
    """Gone for longer than unreachable_s, it ends the run with 21 and parks nothing; the next run completes."""
    ports = free_ports(SEAWEEDFS_PORTS)
    (tmp_path / "weed").mkdir()
    with pacs_for(tmp_path, archive, ports, unreachable_s=0.2):
        with seaweedfs(tmp_path / "weed", ports) as server:
            server.bucket("images")
            run = start(tmp_path, "run")
            await_objects(server, run)
        code, out, err = ended(run)
        assert code == 21, err
        assert out == "" and "Hint" in err and "Traceback" not in err
        status = json.loads(ended(start(tmp_path, "status"))[1])
        assert status["studies"]["parked"] == 0 and status["complete"] is False
        assert status["instances"]["verified"] < len(list(archive.truth()))
        assert attempts_used(tmp_path) == 0
        with seaweedfs(tmp_path / "weed", ports) as server:
            code, out, err = ended(start(tmp_path, "run"))
            assert code == 0, err
            assert json.loads(out)["complete"] is True
            assert_all_arrived(server, archive)
