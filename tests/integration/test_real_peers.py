"""The whole job from Orthanc and dcmqrscp into a bucket and a folder: real peers on both sides."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import boto3
import pytest

from migrate.dicom.part10 import file_header, read_header
from migrate.practice.studies import Archive
from tests.dicom_peers import dcmqrscp, orthanc, run, storescp
from tests.ports import free_port
from tests.runs import bucket, configure
from tests.s3_server import ENVIRONMENT, seaweedfs

RETRY = "attempts = 2\nfirst_wait_s = 0.05"
UNCOMPRESSED = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1")


def archive_files(folder: Path, studies: int = 8) -> list[Path]:
    """The practice archive as Part 10 files."""
    folder.mkdir()
    files = []
    for study in Archive(studies):
        for series in study.series:
            for instance in series.instances:
                path = folder / f"{len(files)}.dcm"
                header = file_header(instance.sop_class, instance.sop, instance.transfer_syntax)
                path.write_bytes(header + Archive(studies).dataset(instance))
                files.append(path)
    return files


def migrate(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "migrate", *words, "--config", str(folder / "migrate.toml")],
        capture_output=True, text=True, timeout=150,
    )  # fmt: skip


def objects(folder: Path) -> list[Path]:
    return list((folder / "bucket").glob("studies/*/series/*/instances/*.dcm"))


def data_set_hashes(raws: list[bytes]) -> list[tuple[str, str]]:
    return sorted((read_header(raw)[1], hashlib.sha256(raw[read_header(raw)[3] :]).hexdigest()) for raw in raws)


def test_from_orthanc_into_a_bucket(tmp_path: Path) -> None:
    """Every image of an Orthanc lies in a SeaweedFS bucket, attested, byte for byte what it was."""
    receiver = free_port()
    files = archive_files(tmp_path / "files")
    with seaweedfs(tmp_path / "weed") as store, orthanc(tmp_path / "pacs", moves={"PACSMIGRATE": ("127.0.0.1", receiver)}, files=files) as pacs:
        client = boto3.client("s3", endpoint_url=store.endpoint_url, aws_access_key_id=ENVIRONMENT["AWS_ACCESS_KEY_ID"],
                              aws_secret_access_key=ENVIRONMENT["AWS_SECRET_ACCESS_KEY"], region_name="us-east-1")  # fmt: skip
        client.create_bucket(Bucket="images")
        configure(tmp_path, pacs.port, receiver, ae_title=pacs.ae_title, destination=bucket("images", store.endpoint_url), retry=RETRY)
        checked = migrate(tmp_path, "check", "--json")
        assert checked.returncode == 0, checked.stdout
        done = migrate(tmp_path, "run", "--json")
        assert done.returncode == 0, done.stderr
        report = json.loads(migrate(tmp_path, "report", "--json").stdout)
        deep = migrate(tmp_path, "verify", "--deep", "--json")
        keys = [entry["Key"] for page in client.get_paginator("list_objects_v2").paginate(Bucket="images", Prefix="studies/") for entry in page["Contents"]]
        stored = [client.get_object(Bucket="images", Key=key)["Body"].read() for key in keys]
    assert report["proof"]["attested"] == len(files)
    assert {"checked": len(files), "missing": [], "differs": []}.items() <= json.loads(deep.stdout).items()
    sent = dict(data_set_hashes(stored))
    held = dict(data_set_hashes([path.read_bytes() for path in files]))
    assert sent.keys() == held.keys()
    assert sum(sent[sop] == held[sop] for sop in held) > len(held) // 3  # Orthanc transcodes the others on its way out


@pytest.mark.parametrize("compressed", [False, True])
def test_from_dcmqrscp_into_a_folder(tmp_path: Path, compressed: bool) -> None:
    """What arrives is what dcmqrscp sends to storescp; what it lists and cannot send (it never transcodes) is named, exit 3."""
    files = [path for path in archive_files(tmp_path / "files") if compressed or read_header(path.read_bytes())[2] in UNCOMPRESSED]
    receiver = free_port()
    with storescp(tmp_path / "scp") as peer:
        moves = {"PACSMIGRATE": ("127.0.0.1", receiver), peer.ae_title: ("127.0.0.1", peer.port)}
        with dcmqrscp(tmp_path / "pacs", moves=moves, files=files) as pacs:
            configure(tmp_path, pacs.port, receiver, ae_title=pacs.ae_title, retry=RETRY)
            done = migrate(tmp_path, "run", "--json")
            report = json.loads(migrate(tmp_path, "report", "--json").stdout)
            for study in {path.parts[-5] for path in objects(tmp_path)}:
                run("movescu", "-S", "-aec", pacs.ae_title, "-aem", peer.ae_title, "-k", "0008,0052=STUDY", "-k", f"0020,000d={study}",
                    "127.0.0.1", str(pacs.port), ok=False)  # fmt: skip
    ours = data_set_hashes([path.read_bytes() for path in objects(tmp_path)])
    theirs = data_set_hashes([path.read_bytes() for path in peer.folder.rglob("*") if path.is_file()])
    assert ours == theirs
    missing = {sop for entry in report["exceptions"] for sop in entry["missing"]}
    listed = {read_header(path.read_bytes())[1] for path in files}
    assert missing == listed - {sop for sop, _ in ours}
    assert bool(missing) is compressed
    assert done.returncode == (3 if compressed else 0), done.stderr
