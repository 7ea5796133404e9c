"""What is special about buckets: stores that lie, answers that get lost, versions, unfinished uploads."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from migrate.config import S3Settings
from migrate.destinations import open_destination
from migrate.destinations.s3.bucket import S3
from migrate.destinations.s3.transport import Transport
from migrate.errors import (
    DestinationRefused,
    DestinationUnreachable,
    KeyTaken,
    ObjectDiffers,
    PutFailed,
    StagedFileLost,
)
from migrate.model import Proof, object_key
from tests.places import staged
from tests.s3_server import Answer, Deed, Passed, S3Server, meddling, rclone_serve, seaweedfs

BYTES = bytes(range(1, 256)) * 100
PUT_PATH = "/studies/"


@pytest.mark.parametrize("size", [len(BYTES), 20 << 20])
def test_what_an_object_carries(server: S3Server, bucket: S3Settings, tmp_path: Path, size: int) -> None:
    """An object says that it is DICOM and carries its data set's hash; the store holds a checksum of the whole."""
    destination = open_destination(replace(bucket, storage_class="STANDARD_IA"))
    item, file = staged(tmp_path, (BYTES * (size // len(BYTES) + 1))[:size])
    receipt = destination.put(item, file)
    head = server.client().head_object(Bucket=bucket.bucket, Key=receipt.key, ChecksumMode="ENABLED")
    assert head["ContentType"] == "application/dicom"
    assert head["Metadata"] == {"dataset-sha256": item.fixity.dataset_sha256.hex()}
    assert head["StorageClass"] == "STANDARD_IA"
    kind, _, value = (receipt.checksum or "").partition(":")
    assert kind == ("SHA256" if size == len(BYTES) else "CRC64NVME")
    assert value == head[f"Checksum{kind}"]
    destination.close()


def test_a_careless_store_is_found_out_and_never_believed(tmp_path: Path) -> None:
    """A store that accepts wrong checksums and overwrites: `check` says so, and only re-reading counts as proof."""
    with rclone_serve(tmp_path) as careless:
        bucket = careless.bucket("bucket")
        destination = open_destination(S3Settings(bucket, endpoint_url=careless.endpoint_url))
        destination.prepare()
        levels = {finding.name: finding.level for finding in destination.check()}
        assert {name for name, level in levels.items() if level == "ok"} == {"destination reach", "destination write"}
        assert "fail" not in levels.values()
        item, file = staged(tmp_path, BYTES)
        large, large_file = staged(tmp_path, BYTES * 800)
        receipt = destination.put(item, file)
        for each, its_file in ((item, file), (large, large_file)):
            assert destination.put(each, its_file).key == destination.put(each, its_file).key
            assert destination.verify(each) is Proof.READ_BACK
        lost, lost_file = staged(tmp_path, BYTES)
        lost_file.write_bytes(BYTES[:-1] + b"!")
        with pytest.raises(StagedFileLost):
            destination.put(lost, lost_file)
        assert object_key(lost.ref) not in _keys(careless, bucket)
        careless.client().put_object(Bucket=bucket, Key=receipt.key, Body=BYTES[:-1] + b"!")
        with pytest.raises(ObjectDiffers):
            destination.verify(replace(item, receipt=receipt))
        with pytest.raises(KeyTaken):
            destination.put(item, file)
        assert careless.client().get_object(Bucket=bucket, Key=receipt.key)["Body"].read() == BYTES[:-1] + b"!"
        destination.close()


def test_two_stores_on_one_host_are_kept_apart(server: S3Server, bucket: S3Settings, tmp_path: Path) -> None:
    """Two servers that differ by their port only each get their own objects."""
    with rclone_serve(tmp_path) as other:
        other.bucket("elsewhere")
        places = [open_destination(each) for each in (bucket, S3Settings("elsewhere", endpoint_url=other.endpoint_url))]
        items = [staged(tmp_path, BYTES) for _ in places]
        keys = [place.put(*item).key for place, item in zip(places, items, strict=True)]
        assert _keys(server, bucket.bucket) >= {keys[0]} and keys[1] not in _keys(server, bucket.bucket)
        assert _keys(other, "elsewhere") >= {keys[1]}
        for place in places:
            place.close()


def _keys(server: S3Server, bucket: str) -> set[str]:
    return {each["Key"] for each in server.client().list_objects_v2(Bucket=bucket).get("Contents", ())}


def test_unfinished_uploads_of_a_killed_run_are_aborted(server: S3Server, bucket: S3Settings) -> None:
    """`prepare` aborts multipart uploads under our studies, `check` only tells of them, and others' stay."""
    client = server.client()
    for key in ("pacs/studies/1.2/series/1.3/instances/1.4.dcm", "pacs/other/object", "studies/1.2/object"):
        client.create_multipart_upload(Bucket=bucket.bucket, Key=key)
    destination = open_destination(bucket)
    told = [finding for finding in destination.check() if finding.level != "ok"]
    assert [(finding.name, finding.level) for finding in told] == [("destination unfinished uploads", "warn")]
    assert len(client.list_multipart_uploads(Bucket=bucket.bucket)["Uploads"]) == 3
    destination.prepare()
    left = client.list_multipart_uploads(Bucket=bucket.bucket)["Uploads"]
    assert {each["Key"] for each in left} == {"pacs/other/object", "studies/1.2/object"}
    destination.close()


def test_probing_again_and_again_leaves_two_objects(server: S3Server, bucket: S3Settings) -> None:
    """However often a store is probed, a sound one keeps two small objects and no unfinished upload."""
    for _ in range(3):
        destination = open_destination(bucket)
        destination.prepare()
        destination.close()
    assert _keys(server, bucket.bucket) == {"pacs/_pacs-migrate/probe", "pacs/_pacs-migrate/probe-multipart"}
    assert not server.client().list_multipart_uploads(Bucket=bucket.bucket).get("Uploads")


def test_equal_bytes_without_a_checksum_are_read_back(server: S3Server, bucket: S3Settings, tmp_path: Path) -> None:
    """Our bytes put by another tool, without a checksum of ours: taken as stored, but only a re-read is their proof."""
    destination = open_destination(bucket)
    item, file = staged(tmp_path, BYTES)
    server.client().put_object(Bucket=bucket.bucket, Key=object_key(item.ref, bucket.prefix), Body=BYTES)
    receipt = destination.put(item, file)
    assert receipt.key == object_key(item.ref, bucket.prefix)
    assert destination.verify(replace(item, receipt=receipt)) is Proof.READ_BACK
    destination.close()


def test_another_version_differs(server: S3Server, tmp_path: Path) -> None:
    """In a versioned bucket, an object written over ours is noticed even if its bytes are the same."""
    name = server.new_bucket(versioned=True)
    destination = open_destination(S3Settings(name, endpoint_url=server.endpoint_url))
    item, file = staged(tmp_path, BYTES)
    receipt = destination.put(item, file)
    assert receipt.version
    assert destination.put(item, file) == receipt
    assert destination.verify(replace(item, receipt=receipt)) is Proof.ATTESTED
    server.client().put_object(Bucket=name, Key=receipt.key, Body=BYTES, ChecksumAlgorithm="SHA256")
    for deep in (False, True):
        with pytest.raises(ObjectDiffers, match="version"):
            destination.verify(replace(item, receipt=receipt), deep=deep)
    assert destination.verify(item) is Proof.ATTESTED
    destination.close()


def said_otherwise(**headers: str) -> Callable[[Passed], Passed]:
    """The store's answer with these headers in place of its own."""
    changed = {name.replace("_", "-"): value for name, value in headers.items()}

    def change(passed: Passed) -> Passed:
        status, own, content = passed
        return status, [pair for pair in own if pair[0].lower() not in changed] + list(changed.items()), content

    return change


def test_an_object_replaced_between_the_look_and_the_reading_differs(server: S3Server, tmp_path: Path) -> None:
    """The look still shows our version, the reading another one: it is not ours that was read."""
    settings = S3Settings(server.new_bucket(versioned=True), endpoint_url=server.endpoint_url)
    with contextlib.closing(open_destination(settings)) as plain:
        item, file = staged(tmp_path, BYTES)
        receipt = plain.put(item, file)

    def replaced(method: str, path: str, count: int) -> Deed | None:
        return said_otherwise(x_amz_version_id="another") if method == "GET" and PUT_PATH in path else None

    with meddling(replaced, server) as proxy, contextlib.closing(open_destination(replace(settings, endpoint_url=proxy.endpoint_url))) as destination:
        assert destination.verify(replace(item, receipt=receipt)) is Proof.ATTESTED
        with pytest.raises(ObjectDiffers, match="version"):
            destination.verify(replace(item, receipt=receipt), deep=True)


def test_a_checksum_of_checksums_says_nothing_of_the_object(server: S3Server, bucket: S3Settings, tmp_path: Path) -> None:
    """Where a store shows a COMPOSITE checksum, of an object that it keeps in parts, the object is read back: it neither proves nor differs."""
    with contextlib.closing(open_destination(bucket)) as plain:
        item, file = staged(tmp_path, BYTES)
        receipt = plain.put(item, file)

    def composite(method: str, path: str, count: int) -> Deed | None:
        other = said_otherwise(x_amz_checksum_type="COMPOSITE", x_amz_checksum_sha256=f"{'A' * 43}=-2")
        return other if method == "HEAD" and PUT_PATH in path else None

    with meddling(composite, server) as proxy, contextlib.closing(open_destination(replace(bucket, endpoint_url=proxy.endpoint_url))) as destination:
        assert destination.verify(replace(item, receipt=receipt)) is Proof.READ_BACK


@pytest.mark.parametrize("size", [len(BYTES), 20 << 20])
def test_a_lost_answer_is_no_conflict(server: S3Server, bucket: S3Settings, tmp_path: Path, size: int) -> None:
    """The store takes the object and its answer is lost: the put ends as if the answer had come, once is enough."""
    lost: list[str] = []

    def lose_the_first(method: str, path: str, count: int) -> str | None:
        if method == ("COMPLETE" if size > 1 << 20 else "PUT") and PUT_PATH in path and count == 1:
            lost.append(path)
            return "lose"
        return None

    with meddling(lose_the_first, server) as proxy:  # type: ignore[arg-type]
        destination = open_destination(replace(bucket, endpoint_url=proxy.endpoint_url))
        item, file = staged(tmp_path, (BYTES * (size // len(BYTES) + 1))[:size])
        receipt = destination.put(item, file)
        assert len(lost) == 1
        assert destination.verify(replace(item, receipt=receipt)) is Proof.ATTESTED
        destination.close()


def test_a_conflict_is_tried_again(server: S3Server, bucket: S3Settings, tmp_path: Path) -> None:
    """409 means that two puts met: it is put again, and does not fail the instance."""

    def conflict_twice(method: str, path: str, count: int) -> Answer | None:
        if method == "PUT" and PUT_PATH in path and count <= 2:
            return 409, b"<Error><Code>ConditionalRequestConflict</Code></Error>"
        return None

    with meddling(conflict_twice, server) as proxy:
        destination = open_destination(replace(bucket, endpoint_url=proxy.endpoint_url))
        item, file = staged(tmp_path, BYTES)
        assert destination.put(item, file).checksum
        destination.close()


def test_a_refused_checksum_of_a_sound_file_is_put_again_later(
    server: S3Server, bucket: S3Settings, tmp_path: Path
) -> None:
    """BadDigest although the staged file is sound (the network flipped a bit): retryable, and the file is kept."""

    def bad_digest(method: str, path: str, count: int) -> Answer | None:
        return (400, b"<Error><Code>BadDigest</Code></Error>") if method == "PUT" and PUT_PATH in path else None

    with meddling(bad_digest, server) as proxy:
        destination = open_destination(replace(bucket, endpoint_url=proxy.endpoint_url))
        item, file = staged(tmp_path, BYTES)
        with pytest.raises(PutFailed, match="BadDigest") as raised:
            destination.put(item, file)
        assert raised.value.retryable and file.exists()
        destination.close()


def test_a_silent_store_does_not_hold_us(server: S3Server, bucket: S3Settings, tmp_path: Path) -> None:
    """A store that takes a put and never answers is given up after a limit of ours."""

    def hang(method: str, path: str, count: int) -> str | None:
        return "hang" if method == "PUT" and PUT_PATH in path else None

    with meddling(hang, server) as silent:  # type: ignore[arg-type]
        settings = replace(bucket, endpoint_url=silent.endpoint_url)
        destination = S3(settings, transport=lambda each: Transport(each, patience_s=1))
        item, file = staged(tmp_path, BYTES)
        begun = time.monotonic()
        with pytest.raises(DestinationUnreachable, match="within 1 s"):
            destination.put(item, file)
        assert time.monotonic() - begun < 10
        destination.close()


def test_a_store_that_went_away_is_unreachable(bucket: S3Settings, tmp_path: Path) -> None:
    """A store that dies in the middle of a run: puts and proofs say that it is unreachable, which is tried again."""
    item, file = staged(tmp_path, BYTES)
    (tmp_path / "weed").mkdir()
    with seaweedfs(tmp_path / "weed") as dying:
        destination = open_destination(S3Settings(dying.bucket("bucket"), endpoint_url=dying.endpoint_url))
        destination.prepare()
    with ThreadPoolExecutor(2) as pool:
        jobs: list[Future[Any]] = [pool.submit(destination.put, item, file), pool.submit(destination.verify, item)]
        for error in [job.exception() for job in jobs]:
            assert isinstance(error, DestinationUnreachable) and error.retryable
    destination.close()


@pytest.mark.parametrize(
    ("settings", "host", "path", "endpoint"),
    [
        (S3Settings("bkt", region="eu-central-1"), "bkt.s3.eu-central-1.amazonaws.com", "/a~b%20c/d%2B%25", "aws"),
        (S3Settings("b.kt", region="eu-central-1"), "s3.eu-central-1.amazonaws.com", "/b.kt/a~b%20c/d%2B%25", "aws"),
        (S3Settings("bkt", endpoint_url="https://store:9000/s3/"), "store:9000", "/s3/bkt/a~b%20c/d%2B%25",
         "https://store:9000/s3"),
        (S3Settings("bkt", endpoint_url="http://10.1.1.1", allow_http=True), "10.1.1.1", "/bkt/a~b%20c/d%2B%25",
         "http://10.1.1.1"),
    ],
)  # fmt: skip
def test_addresses(settings: S3Settings, host: str, path: str, endpoint: str) -> None:
    """The bucket is in the host's name at AWS (unless dots forbid it) and in the path elsewhere; keys are encoded."""
    transport = Transport(settings)
    assert transport.address("a~b c/d+%") == (host, path)
    assert transport.endpoint == endpoint
    transport.close()


def test_unencrypted_ways_are_refused() -> None:
    """http:// leads to loopback only, unless the configuration says that it is meant."""
    with pytest.raises(DestinationRefused, match="not encrypted"):
        open_destination(S3Settings("bucket", endpoint_url="http://192.0.2.1:9000"))
