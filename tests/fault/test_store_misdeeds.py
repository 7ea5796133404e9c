"""Whole runs against a store that misbehaves: nothing false is claimed, nothing overwritten or deleted, and the run goes on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from migrate.config import load
from migrate.dicom.part10 import read_header
from migrate.errors import DestinationUnreachable
from migrate.jobs.migration import Migration
from migrate.model import InstanceRef, object_key
from migrate.practice.pacs import PracticePacs
from migrate.practice.studies import Archive
from tests.ports import free_port
from tests.runs import bucket, called, configure
from tests.s3_server import ACCESS_KEY, SECOND_ACCESS_KEY, SECRET_KEY, Asked, Deed, Passed, S3Server, meddling

ARCHIVE = Archive(2, shapes={0: (("MR", 2),), 1: (("CT", 24),)})
HEAVY = Archive(1, pixels=2350, shapes={0: (("CT", 2),)})  # each image goes in three parts of 5 MiB
KEYS = {object_key(InstanceRef(*uids), ""): uids[2] for *uids, _ in ARCHIVE.truth()}
VICTIMS = [key for key in KEYS if f"/{ARCHIVE.study(1).uid}/" in key]
OTHER = next(key for key in KEYS if key not in VICTIMS)


@dataclass
class Rig:
    """A migration whose store asks `meddle(method, key, count)` about every request; what it does not answer passes on."""

    folder: Path
    server: S3Server
    bucket: str
    archive: Archive
    asked: list[Asked] = field(default_factory=list)
    meddle: Callable[[str, str, int], Deed | None] = field(default=lambda method, key, count: None)

    def __post_init__(self) -> None:
        self.truth = {sop: digest for _, _, sop, digest in self.archive.truth()}

    def on_request(self, method: str, path: str, count: int) -> Deed | None:
        return self.meddle(method, path.removeprefix(f"/{self.bucket}").removeprefix("/"), count)

    def run(self, *words: str) -> tuple[int, str, str]:
        return called(self.folder, *(words or ("run",)), "--json")

    def report(self) -> Any:
        assert called(self.folder, "report", "--out", str(self.folder / "report"))[0] == 0
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
            with contextlib.suppress(Exception):  # other bytes need not be DICOM
                if hashlib.sha256(raw[read_header(raw)[3] :]).digest() == self.truth[sop]:
                    found.add(sop)
        return found

    def configure(self, old: str, new: str) -> None:
        toml = self.folder / "migrate.toml"
        assert old in toml.read_text()
        toml.write_text(toml.read_text().replace(old, new))

    def completes(self) -> None:
        """A run against a store that behaves ends complete, with every object whole and no upload left open."""
        self.meddle = lambda method, key, count: None
        code, out, err = self.run()
        assert code == 0, out + err
        self.assert_all_arrived()

    def assert_all_arrived(self) -> None:
        assert len(self.objects()) == len(self.truth)
        assert self.sound() == self.truth.keys()

    def uploads(self) -> list[Any]:
        return list(self.server.client().list_multipart_uploads(Bucket=self.bucket).get("Uploads", []))

    def assert_harmless(self) -> None:
        """No object of a study was deleted, and none was put but create-only."""
        for asked in self.asked:
            if f"/{self.bucket}/studies/" in asked.path:
                assert asked.method in ("PUT", "HEAD", "GET", "BEGIN", "PART", "COMPLETE", "ABORT"), asked
                assert asked.create_only or asked.method not in ("PUT", "COMPLETE"), asked


@contextlib.contextmanager
def rigged(
    folder: Path, server: S3Server, archive: Archive, *faults: str, migration: str = "", destination: str = ""
) -> Iterator[Rig]:
    made, receiver = Rig(folder, server, server.new_bucket(), archive), free_port()
    with (
        PracticePacs(archive, destinations={"PACSMIGRATE": ("127.0.0.1", receiver)}, faults=faults) as pacs,
        meddling(lambda *request: made.on_request(*request), server, made.asked) as store,
    ):
        configure(folder, pacs.port, receiver, migration=migration, source="settle_s = 0.1",
                  destination=f"{bucket(made.bucket, store.endpoint_url)}\n{destination}",
                  retry="attempts = 3\nfirst_wait_s = 0.05\nmax_wait_s = 0.1\nunreachable_s = 30")  # fmt: skip
        yield made
        made.assert_harmless()


@pytest.fixture
def rig(tmp_path: Path, server: S3Server) -> Iterator[Rig]:
    with rigged(tmp_path, server, ARCHIVE) as made:
        yield made


@pytest.fixture
def heavy(tmp_path: Path, server: S3Server) -> Iterator[Rig]:
    with rigged(tmp_path, server, HEAVY, destination="part_mib = 5") as made:
        yield made


def xml(code: str) -> bytes:
    return f'<?xml version="1.0"?>\n<Error><Code>{code}</Code><Message>m</Message></Error>'.encode()


def refusal(status: int, code: str, method: str) -> Deed:
    """As a store says it: without a body to a HEAD."""
    return status, b"" if method == "HEAD" else xml(code)


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
        ("HEAD", VICTIMS[11]): (1, (403, b"")),
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


def test_a_store_that_is_overloaded_for_a_while(rig: Rig) -> None:
    """Storms of "slower, please", one at the very first puts of the run, use up no attempt of any study; the run goes on."""
    puts: list[str] = []

    def storm(method: str, key: str, count: int) -> Deed | None:
        if method != "PUT" or not key.startswith("studies/"):
            return None
        puts.append(key)
        if len(puts) <= 12:
            return 503, xml("SlowDown")
        return (429, xml("TooManyRequests")) if 15 < len(puts) <= 24 else None

    rig.meddle = storm
    rig.configure("attempts = 3", "attempts = 1")  # the first one used up would park a study
    code, out, err = rig.run()
    assert code == 0, out + err
    assert "SlowDown" in err
    assert "TooManyRequests" in err and "Trying again" in err
    rig.assert_all_arrived()


def test_an_object_that_always_fails_is_named(rig: Rig) -> None:
    """One object that the store cannot take and one that it cannot show, all the others well: their studies use up their attempts and
    are parked by name, the rest is proven, exit 3; when the store is mended, `retry` completes it."""
    broken = {("PUT", VICTIMS[3]), ("HEAD", OTHER)}
    rig.meddle = lambda method, key, count: refusal(500, "InternalError", method) if (method, key) in broken else None
    code, out, err = rig.run()
    assert code == 3, out + err
    status = json.loads(out)
    assert (status["complete"], status["studies"]["parked"]) == (False, 2)
    assert status["instances"]["verified"] == len(KEYS) - 2
    found = {each["study"]: (each["error"], each["missing"]) for each in rig.report()["exceptions"]}
    assert found == {ARCHIVE.study(0).uid: ("ObjectRefused", [KEYS[OTHER]]), ARCHIVE.study(1).uid: ("ObjectRefused", [KEYS[VICTIMS[3]]])}
    assert called(rig.folder, "retry")[0] == 0
    rig.completes()


@pytest.mark.parametrize("method", ["PUT", "HEAD"])
def test_an_object_that_fails_when_nothing_else_is_left(tmp_path: Path, server: S3Server, method: str) -> None:
    """With one object to move and one that the store cannot take, or show, there is no other to compare it with: one of our own is asked
    for, and the study is parked by name, exit 3; where that one fails, too, the run ends with 21 and nothing is parked."""
    single = Archive(1, shapes={0: (("CR", 1),)})
    (key,) = (object_key(InstanceRef(*uids), "") for *uids, _ in single.truth())
    with rigged(tmp_path, server, single) as rig:
        rig.configure("unreachable_s = 30", "unreachable_s = 1")
        rig.meddle = lambda asked, name, count: refusal(500, "InternalError", asked) if asked == method and (name == key or count > 1) else None
        code, out, err = rig.run()
        assert (code, out) == (21, ""), err
        assert json.loads(rig.run("status")[1])["studies"]["parked"] == 0
        rig.meddle = lambda asked, name, count: refusal(500, "InternalError", asked) if (asked, name) == (method, key) else None
        code, out, err = rig.run()
        assert code == 3, out + err
        assert [(each["error"], len(each["missing"])) for each in rig.report()["exceptions"]] == [("ObjectRefused", 1)]
        assert called(rig.folder, "retry")[0] == 0
        rig.completes()


def test_a_store_that_fails_for_all_is_no_objects_fault(rig: Rig) -> None:
    """Where nothing at all succeeds any more the run ends with 21; no study is parked or loses an attempt."""
    puts: list[str] = []

    def fail(method: str, key: str, count: int) -> Deed | None:
        puts.append(key) if method == "PUT" and key.startswith("studies/") else None
        return refusal(500, "InternalError", method) if len(puts) > 5 and method == "PUT" else None

    rig.meddle = fail
    rig.configure("unreachable_s = 30", "unreachable_s = 2")
    code, out, err = rig.run()
    assert (code, out) == (21, ""), err
    assert "InternalError" in err and "Hint" in err
    assert json.loads(rig.run("status")[1])["studies"]["parked"] == 0
    rig.configure("attempts = 3", "attempts = 1")
    rig.completes()


def test_a_store_that_is_away_while_staging_fills(tmp_path: Path, server: S3Server, caplog: pytest.LogCaptureFixture) -> None:
    """Images for which staging has no room since the store takes none: the store ends the run (21), not the disk, and nothing is parked."""
    archive = Archive(1, pixels=512, shapes={0: (("CT", 4),)})  # three of them fill nine tenths
    with rigged(tmp_path, server, archive, "skip-first=1", migration="staging_max_gib = 0.0015") as rig:
        away: list[str] = []

        def go_away(method: str, key: str, count: int) -> Deed | None:
            away.append(key) if key.startswith("studies/") and method == "PUT" else None
            return "reset" if away else None

        rig.meddle = go_away
        rig.configure("unreachable_s = 30", "unreachable_s = 4")
        config = load(rig.folder / "migrate.toml")
        impatient = replace(config, source=replace(config.source, room_s=0.2, full_s=0.2))
        with pytest.raises(DestinationUnreachable, match="gave no answer"), Migration(impatient, "run") as migration:
            migration.run()
        assert "Waiting for room" in caplog.text
        assert json.loads(rig.run("status")[1])["studies"]["parked"] == 0
        rig.configure("attempts = 3", "attempts = 1")
        rig.completes()


def test_nothing_more_is_asked_for_while_staging_is_nearly_full(tmp_path: Path, server: S3Server) -> None:
    """While the store takes nothing, images come up to three quarters of staging's budget; then no C-MOVE is begun, so that no
    association has to be turned down, and all goes on once the store does."""
    archive = Archive(40, pixels=128, shapes=dict.fromkeys(range(40), (("CT", 2),)))  # each study fills a thirtieth
    with rigged(tmp_path, server, archive, migration="staging_max_gib = 0.0019") as rig:
        config = load(rig.folder / "migrate.toml")
        config = replace(config, source=replace(config.source, associations=1))
        held: list[int] = []
        with Migration(config, "run") as migration:

            def full_first(method: str, key: str, count: int) -> Deed | None:
                if method == "PUT" and key.startswith("studies/"):
                    held.append(migration._staging.held_bytes)
                    return (503, xml("SlowDown")) if max(held) < config.staging_max_bytes * 3 // 4 else None  # type: ignore[operator]
                return None

            rig.meddle = full_first
            migration.run()
            assert migration._staging.turned_away == 0
        assert config.staging_max_bytes is not None
        assert config.staging_max_bytes * 3 // 4 <= max(held) < config.staging_max_bytes * 9 // 10
        rig.assert_all_arrived()


def test_refusals_that_end_the_run_park_nothing(rig: Rig) -> None:
    """Expired, skewed, redirected, without key, rights or bucket, at a put or at a proof: 21 with a hint, nothing is parked
    or taken for lost, and the next run goes on."""
    rig.configure("attempts = 3", "attempts = 1")
    for status, error, hint, method in (
        (400, "ExpiredToken", "log in again", "PUT"),
        (403, "RequestTimeTooSkewed", "clock", "PUT"),
        (301, "PermanentRedirect", "region", "PUT"),
        (400, "KMS.DisabledException", "kms_key_id", "PUT"),
        (403, "AccessDenied", "PutObject", "PUT"),
        (404, "NoSuchBucket", "bucket", "PUT"),
        (400, "ExpiredToken", "log in again", "HEAD"),
        (404, "NoSuchBucket", "bucket", "HEAD"),
    ):
        begun: list[str] = []

        def refuse(asked: str, key: str, count: int, begun: list[str] = begun, told: Any = (status, error), at: str = method) -> Deed | None:
            """From the second request of this kind on nothing else is answered."""
            if asked == at and key.startswith("studies/"):
                begun.append(key)
            return refusal(*told, asked) if len(begun) > 1 else None

        rig.meddle = refuse
        code, out, err = rig.run()
        assert (code, out) == (21, ""), (error, method, err)
        assert (error in err or f"HTTP {status}" in err) and hint in err, err  # a look at an object tells no more than the number
        assert json.loads(rig.run("status")[1])["studies"]["parked"] == 0, (error, method, err)
    rig.completes()
    report = rig.report()
    assert report["exceptions"] == []


def test_keys_that_run_out_are_renewed(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the chain has new credentials by then, here from a program, a run goes on when the store refuses the old ones."""
    program, ran_out = rig.folder / "keys.py", rig.folder / "ran-out"
    program.write_text(f"""import json, pathlib
key = {SECOND_ACCESS_KEY!r} if pathlib.Path({str(ran_out)!r}).exists() else {ACCESS_KEY!r}
print(json.dumps({{"Version": 1, "AccessKeyId": key, "SecretAccessKey": {SECRET_KEY!r}}}))
""")
    (rig.folder / "aws.ini").write_text(f"[profile renewing]\ncredential_process = {sys.executable} {program}\n")

    def expire(method: str, key: str, count: int) -> Deed | None:
        if method == "HEAD" and key.startswith("studies/"):
            ran_out.touch()
        return refusal(400, "ExpiredToken", method) if ran_out.exists() and rig.asked[-1].access_key == ACCESS_KEY else None

    rig.meddle = expire
    with monkeypatch.context() as environment:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            environment.delenv(name)
        environment.setenv("AWS_CONFIG_FILE", str(rig.folder / "aws.ini"))
        environment.setenv("AWS_PROFILE", "renewing")
        code, out, err = rig.run()
    assert code == 0, out + err
    assert {each.access_key for each in rig.asked} == {ACCESS_KEY, SECOND_ACCESS_KEY}
    rig.assert_all_arrived()


def test_what_the_store_spoils_is_named(rig: Rig) -> None:
    """Never stored although it said so, flipped, truncated, told with a wrong checksum, taken by somebody else's object: each is
    named and not verified, the others are there, exit 3; nothing that stands there is touched."""
    lost, flipped, truncated, echoed, foreign = OTHER, *VICTIMS[:4]
    client = rig.server.client()
    client.put_object(Bucket=rig.bucket, Key=foreign, Body=b"foreign")
    rot: dict[str, Callable[[bytes], bytes]] = {flipped: lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]), truncated: lambda raw: raw[: len(raw) // 2]}

    def meddle(method: str, key: str, count: int) -> Deed | None:
        if (method, key) == ("PUT", lost):
            return 200, b""
        if (method, key) == ("HEAD", echoed):
            return wrong_checksum
        if method == "HEAD" and count == 1 and key in rot:  # changed at rest before the first look at it
            raw = client.get_object(Bucket=rig.bucket, Key=key)["Body"].read()
            client.put_object(Bucket=rig.bucket, Key=key, Body=rot[key](raw))
        return None

    rig.meddle = meddle
    code, out, err = rig.run()
    assert code == 3, out + err
    status = json.loads(out)
    assert status["complete"] is False
    assert status["instances"]["verified"] == len(KEYS) - 5, (status, err)
    by_study = {each["study"]: each for each in rig.report()["exceptions"]}
    assert by_study[ARCHIVE.study(0).uid]["missing"] == [KEYS[lost]]
    assert sorted(by_study[ARCHIVE.study(1).uid]["conflict"]) == sorted(KEYS[key] for key in (flipped, truncated, echoed, foreign))
    assert rig.objects()[foreign] == b"foreign"
    assert rig.sound() == set(KEYS.values()) - {KEYS[lost]}


def test_rot_that_the_store_hides_needs_reading(rig: Rig) -> None:
    """Bytes that change after the proof are found by `verify --deep`, with the key; the next run puts a sound copy beside them."""
    victim = VICTIMS[2]
    code, out, err = rig.run()
    assert code == 0, out + err
    before = rig.server.client().head_object(Bucket=rig.bucket, Key=victim, ChecksumMode="ENABLED")
    raw = rig.objects()[victim]
    rig.server.client().put_object(Bucket=rig.bucket, Key=victim, Body=raw[:-1] + bytes([raw[-1] ^ 1]))

    def hide(passed: Passed) -> Passed:
        status, headers, content = passed
        kept = [(name, value) for name, value in headers if not name.lower().startswith("x-amz-checksum")]
        return status, [*kept, ("x-amz-checksum-sha256", before["ChecksumSHA256"])], content

    rig.meddle = lambda method, key, count: hide if (method, key) == ("HEAD", victim) else None
    assert rig.run("verify")[0] == 0
    code, out, err = rig.run("verify", "--deep")
    assert (code, json.loads(out)["differs"]) == (3, [victim])
    code, out, err = rig.run()
    assert code == 3, out + err
    assert rig.sound() == set(KEYS.values())


def test_a_bucket_that_is_gone_loses_nothing_on_record(rig: Rig) -> None:
    """Gone in the middle of a verify, of which every look says just 404: 21, and no object is taken for missing."""
    rig.completes()
    looked: list[str] = []

    def gone(method: str, key: str, count: int) -> Deed | None:
        looked.append(key) if method == "HEAD" and key.startswith("studies/") else None
        return refusal(404, "NoSuchBucket", method) if len(looked) > 3 else None

    rig.meddle = gone
    code, out, err = rig.run("verify")
    assert (code, out) == (21, ""), err
    assert "NoSuchBucket" in err and "bucket" in err
    status = json.loads(rig.run("status")[1])
    assert status["complete"] is True and status["instances"]["verified"] == len(KEYS)


def test_uploads_in_parts(heavy: Rig) -> None:
    """A part that is lost, an error within the 200 of the completion, a completion whose answer is lost: put again, whole."""
    first, second = (object_key(InstanceRef(*uids), "") for *uids, _ in heavy.archive.truth())
    deeds: dict[tuple[str, str, int], Deed] = {
        ("PART", first, 2): (200, [("ETag", '"0123456789abcdef0123456789abcdef"')], b""),
        ("COMPLETE", first, 2): (200, xml("InternalError")),
        ("PART", second, 1): "reset",
        ("PART", second, 3): (503, xml("SlowDown")),
        ("COMPLETE", second, 1): "lose",
    }
    done: list[object] = []

    def meddle(method: str, key: str, count: int) -> Deed | None:
        deed = deeds.get((method, key, count))
        done.append((method, key)) if deed is not None else None
        return deed

    heavy.meddle = meddle
    code, out, err = heavy.run()
    assert code == 0, out + err
    assert len(done) == len(deeds), done
    heavy.assert_all_arrived()
    assert heavy.uploads() == []


def test_a_killed_upload_is_aborted_by_the_next_run(heavy: Rig) -> None:
    """Killed in the middle of the parts, a run leaves an upload open; the next one aborts it and puts the object whole."""
    words = [sys.executable, "-m", "migrate", "run", "--config", str(heavy.folder / "migrate.toml")]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as run:

        def kill(method: str, key: str, count: int) -> Deed | None:
            if method == "PART" and key.startswith("studies/") and count == 2:
                run.kill()
                return "drop"
            return None

        heavy.meddle = kill
        assert run.wait(60) == -9
    assert len(heavy.uploads()) >= 1
    heavy.completes()
    assert heavy.uploads() == []
