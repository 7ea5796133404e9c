"""A whole run with a canary in 60 tags and with odd failures: none is in any log, error, key, metadata, name or report."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from pydicom.datadict import DicomDictionary

from migrate.practice.pacs import PracticePacs
from migrate.practice.studies import Archive
from tests.ports import free_port
from tests.runs import bucket, called, configure
from tests.s3_server import S3Server

WORDS = ("Patient", "Physician", "Address", "Telephone", "Institution", "Operator", "Comments", "Responsible", "Requesting", "Admi", "Name")
TAGS = [tag for tag, (vr, vm, name, retired, _) in DicomDictionary.items()
        if vr in ("PN", "LO", "SH", "ST", "LT", "UT") and 0x00080070 <= tag < 0x00410000 and vm == "1" and not retired
        and any(word in name for word in WORDS)][:60]  # fmt: skip
CANARIES = {tag: (DicomDictionary[tag][0], f"CANARY{number:02}") for number, tag in enumerate(TAGS)}
FAULTS = ("truncated", "path-uids", "other-command-uid", "failed-image", "undecodable-row=1", "odd-names", "rewrites-headers")


def test_no_canary_is_heard(tmp_path: Path, server: S3Server) -> None:
    """Sixty tags, the archive's own names, IDs and birth dates; seven odd failures; all that is said at the highest level."""
    assert len(CANARIES) == 60
    archive, receiver, name = Archive(6, more=CANARIES), free_port(), server.new_bucket()
    secrets = {f"{text}" for study in archive for text in (*study.patient_name.split("^"), study.patient_id)}
    words = [b"CANARY", *(text.encode() for text in secrets), *(study.birth_date.encode() for study in archive)]
    said: list[str] = []
    root = logging.getLogger()
    handler, level = logging.StreamHandler(), root.level
    handler.emit = lambda record: said.append(handler.format(record))  # type: ignore[method-assign]
    root.addHandler(handler)
    try:
        with PracticePacs(archive, destinations={"PACSMIGRATE": ("127.0.0.1", receiver)}, faults=FAULTS) as pacs:
            configure(tmp_path, pacs.port, receiver, destination=bucket(name, server.endpoint_url),
                      retry="attempts = 2\nfirst_wait_s = 0.05\nmax_wait_s = 0.1")  # fmt: skip
            for verb in (("check",), ("run",), ("status",), ("report", "--dossier", str(tmp_path / "dossier"))):
                code, out, err = called(tmp_path, verb[0], "-vv", *verb[1:])
                said += [out, err]
                assert code in (0, 3), err
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    client = server.client()
    keys = [each["Key"] for page in client.get_paginator("list_objects_v2").paginate(Bucket=name) for each in page["Contents"]]
    images = [key for key in keys if "/instances/" in key]
    heads = [client.head_object(Bucket=name, Key=key) for key in images[:5]]
    assert images and b"CANARY59" in client.get_object(Bucket=name, Key=images[0])["Body"].read()
    assert any((tmp_path / "staging" / "quarantine").iterdir())
    paths = [path for path in tmp_path.rglob("*") if path.is_file()]
    heard = {"said": "\n".join(said).encode(), "keys": repr(keys).encode(), "metadata": repr(heads).encode(), "names": repr(paths).encode()}
    heard |= {str(path.relative_to(tmp_path)): path.read_bytes() for path in paths if "quarantine" not in path.parts}
    found = [(place, word) for place, raw in heard.items() for word in words if word in raw]
    assert found == []


def test_who_may_read_what_a_run_leaves(tmp_path: Path) -> None:
    """Even with an open umask, and where staging lay open before: folders are for their owner only, and so are files; `check`
    names a manifest that others can read."""
    archive, receiver = Archive(1), free_port()
    old = os.umask(0)
    try:
        for folder in ("staging", "staging/quarantine"):
            (tmp_path / folder).mkdir(mode=0o777)
        with PracticePacs(archive, destinations={"PACSMIGRATE": ("127.0.0.1", receiver)}, faults=("path-uids",)) as pacs:
            configure(tmp_path, pacs.port, receiver, retry="attempts = 1")
            assert called(tmp_path, "run")[0] == 3
            (tmp_path / "manifests" / "test.db").chmod(0o640)
            told = called(tmp_path, "check")[1]
    finally:
        os.umask(old)
    assert "Others may look into" in told and "test.db" in told
    ours = [*(tmp_path / "staging").rglob("*"), *(tmp_path / "manifests").rglob("*"), tmp_path / "manifests"]
    wide = [path for path in ours if path.stat().st_mode & 0o077 and not path.name.startswith("test.db")]
    assert any(path.is_file() for path in (tmp_path / "staging" / "quarantine").rglob("*"))
    assert wide == []
