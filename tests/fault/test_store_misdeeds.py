"""Whole runs against a store that misbehaves: nothing false is claimed, nothing overwritten or deleted, and the run goes on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from migrate.dicom.part10 import read_header
from migrate.model import InstanceRef, object_key
from migrate.practice.pacs import PracticePacs
from migrate.practice.studies import Archive
from tests.runs import bucket, configure, free_port
from tests.s3_server import Asked, Deed, Passed, S3Server, meddling

ARCHIVE = Archive(2)
TRUTH = {(study, series, sop): digest for study, series, sop, digest in ARCHIVE.truth()}
KEYS = {object_key(InstanceRef(*uids), ""): uids[2] for uids in sorted(TRUTH)}
VICTIMS = [key for key in KEYS if f"/{ARCHIVE.study(1).series[0].uid}/" in key]
VICTIM = VICTIMS[2]
SOP = KEYS[VICTIM]


# the command with the transport's own waits cut short
SHORT = "from migrate.destinations import s3_transport; s3_transport._FIRST_WAIT_MS = 10; from migrate.cli import main; main()"


@dataclass
class Rig:
    """A migration whose store asks `meddle(method, key, count)` about every request for an object of a study."""

    folder: Path
    server: S3Server
    bucket: str
    asked: list[Asked]
    meddle: Callable[[str, str, int], Deed | None] = field(default=lambda method, key, count: None)

    def on_request(self, method: str, path: str, count: int) -> Deed | None:
        key = path.removeprefix(f"/{self.bucket}/")
        return self.meddle(method, key, count) if key.startswith("studies/") else None

    def run(self, *words: str) -> tuple[int, str, str]:
        command = [sys.executable, "-c", SHORT, *(words or ("run",)), "--json", "--config", str(self.folder / "migrate.toml")]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=40)
        assert "Traceback" not in ended.stderr, ended.stderr
        return ended.returncode, ended.stdout, ended.stderr

    def report(self) -> Any:
        subprocess.run(
            [sys.executable, "-m", "migrate", "report", "--out", str(self.folder / "report"), "--config", str(self.folder / "migrate.toml")],
            check=True, capture_output=True,
        )  # fmt: skip
        return json.loads((self.folder / "report" / "report.json").read_text())

    def objects(self) -> dict[str, bytes]:
        client = self.server.client()
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix="studies/")
        keys = [each["Key"] for page in pages for each in page.get("Contents", ())]
        return {key: client.get_object(Bucket=self.bucket, Key=key)["Body"].read() for key in keys}

    def sound(self) -> set[str]:
        """The SOP Instance UIDs whose true bytes stand in the bucket under their own key or beside it."""
        found = set()
        for key, raw in self.objects().items():
            sop = key.rpartition("/")[2].removesuffix(".dcm").partition("~")[0]
            digest = next(digest for uids, digest in TRUTH.items() if uids[2] == sop)
            with contextlib.suppress(Exception):  # other bytes need not be DICOM
                if hashlib.sha256(raw[read_header(raw)[3] :]).digest() == digest:
                    found.add(sop)
        return found

    def configure(self, old: str, new: str) -> None:
        toml = self.folder / "migrate.toml"
        assert old in toml.read_text()
        toml.write_text(toml.read_text().replace(old, new))

    def assert_all_arrived(self) -> None:
        assert self.objects().keys() == KEYS.keys()
        assert self.sound() == set(KEYS.values())

    def assert_harmless(self) -> None:
        """No object of a study was deleted, and none was put but create-only."""
        for asked in self.asked:
            if f"/{self.bucket}/studies/" in asked.path:
                assert asked.method in ("PUT", "HEAD", "GET"), asked
                assert asked.create_only or asked.method != "PUT", asked


@pytest.fixture
def rig(tmp_path: Path, server: S3Server) -> Iterator[Rig]:
    made = Rig(tmp_path, server, server.new_bucket(), [])
    receiver = free_port()
    with (
        PracticePacs(ARCHIVE, destinations={"PACSMIGRATE": ("127.0.0.1", receiver)}) as pacs,
        meddling(lambda *request: made.on_request(*request), server, made.asked) as store,
    ):
        configure(tmp_path, pacs.port, receiver, destination=bucket(made.bucket, store.endpoint_url),
                  retry="attempts = 3\nfirst_wait_s = 0.05\nmax_wait_s = 0.1\nunreachable_s = 30")  # fmt: skip
        yield made
        made.assert_harmless()


def xml(code: str) -> bytes:
    return f'<?xml version="1.0"?>\n<Error><Code>{code}</Code><Message>m</Message></Error>'.encode()


def without_checksum(passed: Passed) -> Passed:
    status, headers, content = passed
    return status, [(name, value) for name, value in headers if not name.lower().startswith("x-amz-checksum")], content


def wrong_checksum(passed: Passed) -> Passed:
    status, headers, content = passed
    return status, [(name, "A" * 43 + "=" if name.lower() == "x-amz-checksum-sha256" else value) for name, value in headers], content


def test_what_passes_is_survived(rig: Rig) -> None:
    """Throttled, failed, reset, dropped, conflicting puts, lost answers, a 404 just after the put: all arrives, exit 0."""
    deeds: dict[tuple[str, str], tuple[int, Deed]] = {
        ("PUT", VICTIMS[0]): (2, (503, xml("SlowDown"))),
        ("PUT", VICTIMS[1]): (2, (500, xml("InternalError"))),
        ("PUT", VICTIMS[2]): (1, "reset"),
        ("PUT", VICTIMS[3]): (1, "drop"),
        ("PUT", VICTIMS[4]): (1, "lose"),
        ("PUT", VICTIMS[5]): (1, (409, xml("ConditionalRequestConflict"))),
        ("PUT", VICTIMS[6]): (1, (400, xml("RequestTimeout"))),
        ("PUT", VICTIMS[7]): (1, (400, xml("BadDigest"))),
        ("HEAD", VICTIMS[8]): (1, (404, b"")),
        ("HEAD", VICTIMS[9]): (100, without_checksum),
        ("HEAD", VICTIMS[10]): (1, (500, b"")),
    }

    def meddle(method: str, key: str, count: int) -> Deed | None:
        times, deed = deeds.get((method, key), (0, "lose"))
        return deed if count <= times else None

    rig.meddle = meddle
    code, out, err = rig.run()
    assert code == 0, out + err
    assert json.loads(out)["complete"] is True
    assert rig.report()["proof"] == {"acknowledged": 0, "listed": 0, "attested": len(KEYS) - 1, "read_back": 1}
    rig.assert_all_arrived()


@pytest.mark.parametrize(
    ("status", "code", "first", "times"), [(503, "SlowDown", 0, 12), (503, "SlowDown", 5, 12), (429, "TooManyRequests", 0, 4)],
    ids=["503", "503 later", "429"],
)  # fmt: skip
def test_a_store_that_is_overloaded_for_a_while(rig: Rig, status: int, code: str, first: int, times: int) -> None:
    """A storm of "slower, please" uses up no attempt of any study, even if it meets the first puts of the run, which goes on behind it."""
    puts: list[str] = []

    def storm(method: str, key: str, count: int) -> Deed | None:
        if method == "PUT":
            puts.append(key)
            return (status, xml(code)) if first < len(puts) <= first + times else None
        return None

    rig.meddle = storm
    rig.configure("attempts = 3", "attempts = 1")  # the first one used up would park a study
    ended, out, err = rig.run()
    assert ended == 0, out + err
    assert "Trying again" in err
    rig.assert_all_arrived()


def test_refusals_that_end_the_run_park_nothing(rig: Rig) -> None:
    """Expired, skewed, redirected, without key or bucket: 21 with a hint, nothing is parked, the next run goes on."""
    for status, error, hint in (
        (400, "ExpiredToken", "log in again"),
        (403, "RequestTimeTooSkewed", "clock"),
        (301, "PermanentRedirect", "region"),
        (400, "KMS.DisabledException", "kms_key_id"),
        (404, "NoSuchBucket", "bucket"),
    ):
        passed: set[str] = set()
        refusal = (status, xml(error))

        def refuse(method: str, key: str, count: int, passed: set[str] = passed, answer: Deed = refusal) -> Deed | None:
            if method != "PUT" or key in passed:
                return None
            if len(passed) < 3:
                passed.add(key)
                return None
            return answer

        rig.meddle = refuse
        code, out, err = rig.run()
        assert (code, out) == (21, ""), (error, err)
        assert error in err and hint in err
        assert json.loads(rig.run("status")[1])["studies"]["parked"] == 0
    rig.meddle = lambda method, key, count: None
    code, out, err = rig.run()
    assert code == 0, out + err
    rig.assert_all_arrived()


def never_stored(rig: Rig) -> Callable[[str, str, int], Deed | None]:
    return lambda method, key, count: (200, b"") if (method, key) == ("PUT", VICTIM) else None


def rotten(rig: Rig, content: Callable[[bytes], bytes]) -> Callable[[str, str, int], Deed | None]:
    """What is stored is changed at rest before the first look at it."""

    def meddle(method: str, key: str, count: int) -> Deed | None:
        if (method, key, count) == ("HEAD", VICTIM, 1):
            client = rig.server.client()
            raw = client.get_object(Bucket=rig.bucket, Key=key)["Body"].read()
            client.put_object(Bucket=rig.bucket, Key=key, Body=content(raw))
        return None

    return meddle


@pytest.mark.parametrize(
    ("misdeed", "kind"),
    [
        (never_stored, "missing"),
        (lambda rig: rotten(rig, lambda raw: raw[:-1] + bytes([raw[-1] ^ 1])), "conflict"),
        (lambda rig: rotten(rig, lambda raw: raw[: len(raw) // 2]), "conflict"),
        (lambda rig: lambda method, key, count: wrong_checksum if (method, key) == ("HEAD", VICTIM) else None, "conflict"),
    ],
    ids=["200 but not stored", "flipped bit", "truncated", "wrong checksum told"],
)
def test_what_the_store_spoils_is_named(rig: Rig, misdeed: Callable[[Rig], Any], kind: str) -> None:
    """The one instance is named, not verified, its study is not complete, all others are there, exit 3."""
    rig.meddle = misdeed(rig)
    code, out, err = rig.run()
    assert code == 3, out + err
    status = json.loads(out)
    assert status["complete"] is False
    assert status["instances"]["verified"] == len(KEYS) - 1
    (exception,) = rig.report()["exceptions"]
    assert exception[kind] == [SOP]
    assert rig.sound() == set(KEYS.values()) - ({SOP} if kind == "missing" else set())


def test_a_foreign_object_stays(rig: Rig) -> None:
    """Somebody else's object under our key is left alone and named; a sound copy stands beside it."""
    rig.server.client().put_object(Bucket=rig.bucket, Key=VICTIM, Body=b"foreign")
    code, out, err = rig.run()
    assert code == 3, out + err
    (exception,) = rig.report()["exceptions"]
    assert exception["conflict"] == [SOP]
    assert rig.objects()[VICTIM] == b"foreign"
    assert rig.sound() == set(KEYS.values())


def test_rot_that_the_store_hides_needs_reading(rig: Rig) -> None:
    """Bytes that change after the proof are found by `verify --deep`, with the key; the next run puts a sound copy beside them."""
    code, out, err = rig.run()
    assert code == 0, out + err
    before = rig.server.client().head_object(Bucket=rig.bucket, Key=VICTIM, ChecksumMode="ENABLED")
    raw = rig.objects()[VICTIM]
    rig.server.client().put_object(Bucket=rig.bucket, Key=VICTIM, Body=raw[:-1] + bytes([raw[-1] ^ 1]))

    def hide(passed: Passed) -> Passed:
        status, headers, content = passed
        kept = [(name, value) for name, value in headers if not name.lower().startswith("x-amz-checksum")]
        return status, [*kept, ("x-amz-checksum-sha256", before["ChecksumSHA256"])], content

    rig.meddle = lambda method, key, count: hide if (method, key) == ("HEAD", VICTIM) else None
    assert rig.run("verify")[0] == 0
    code, out, err = rig.run("verify", "--deep")
    assert (code, json.loads(out)["differs"]) == (3, [VICTIM])
    code, out, err = rig.run()
    assert code == 3, out + err
    assert rig.sound() == set(KEYS.values())
