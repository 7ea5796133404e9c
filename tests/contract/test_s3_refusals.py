"""What a store's refusals and our credentials' troubles mean, whatever an answer looks like."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrate.config import S3Settings
from migrate.destinations import open_destination
from migrate.destinations.s3.answers import error_code
from migrate.destinations.s3.errors import telling
from migrate.destinations.s3.transport import Transport
from migrate.errors import (
    DestinationBusy,
    DestinationError,
    DestinationRefused,
    DestinationUnreachable,
    PutFailed,
)
from tests.places import staged
from tests.s3_server import ENVIRONMENT, Answer, Meddle, S3Server, meddling

BYTES = bytes(range(1, 256)) * 100
PUT_PATH = "/studies/"


def _xml(code: str) -> bytes:
    return f'<?xml version="1.0"?>\n<Error><Code>{code}</Code><Message>m</Message></Error>'.encode()


ANSWERS: list[tuple[int, bytes, type[DestinationError], str, str]] = [
    (403, _xml("AccessDenied"), DestinationRefused, "AccessDenied", "PutObject"),
    (403, _xml("InvalidAccessKeyId"), DestinationRefused, "InvalidAccessKeyId", "credentials"),
    (403, _xml("SignatureDoesNotMatch"), DestinationRefused, "SignatureDoesNotMatch", "credentials"),
    (400, _xml("ExpiredToken"), DestinationRefused, "ExpiredToken", "log in again"),
    (403, _xml("RequestTimeTooSkewed"), DestinationRefused, "RequestTimeTooSkewed", "clock"),
    (404, _xml("NoSuchBucket"), DestinationRefused, "NoSuchBucket", "bucket"),
    (400, _xml("KMS.DisabledException"), DestinationRefused, "KMS.DisabledException", "kms_key_id"),
    (400, _xml("AuthorizationHeaderMalformed"), DestinationRefused, "AuthorizationHeaderMalformed", "region"),
    (403, b"", DestinationRefused, "HTTP 403", "PutObject"),
    (403, b"<html><body>Forbidden by proxy", DestinationRefused, "HTTP 403", "PutObject"),
    (400, b"\xff\xfe<<<", PutFailed, "HTTP 400", "again"),
    (503, _xml("SlowDown"), DestinationBusy, "SlowDown", "workers"),
    (429, b"", DestinationBusy, "HTTP 429", "workers"),
    (503, b"", DestinationUnreachable, "HTTP 503", "later"),
    (500, b"<html>Internal", DestinationUnreachable, "HTTP 500", "later"),
    (502, b"<html>Bad Gateway", DestinationUnreachable, "HTTP 502", "later"),
]


def test_every_refusal_has_its_meaning(tmp_path: Path) -> None:
    """A refusal becomes the right error, with the store's own code in the sentence, whatever its body looks like."""

    def answer(method: str, path: str, count: int) -> Answer:
        status, body, *_ = ANSWERS[int(path.rpartition("/")[2])]
        return status, body

    item, file = staged(tmp_path, BYTES)
    with meddling(answer) as rude:
        transport = Transport(S3Settings("bucket", endpoint_url=rude.endpoint_url, workers=32))

        def both(index: int) -> list[DestinationError]:
            errors = []
            for call in (
                lambda: transport.put(str(index), file, item.fixity, {}, multipart=False),
                lambda: transport.call("get_object", Key=str(index)),
            ):
                with pytest.raises(DestinationError) as raised, telling("an object"):
                    call()
                errors.append(raised.value)
            return errors

        with ThreadPoolExecutor(len(ANSWERS)) as pool:
            found = list(pool.map(both, range(len(ANSWERS))))
        transport.close()
    for (_, _, expected, sentence, hint), errors in zip(ANSWERS, found, strict=True):
        for error in errors:
            assert type(error) is expected, error
            assert sentence in str(error)
            assert hint in error.hint


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong-secret"}, "SignatureDoesNotMatch"),
        ({"AWS_ACCESS_KEY_ID": "AKNOBODYNOBODYNOBODY"}, "InvalidAccessKeyId"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "no credentials were found"),
        ({"AWS_PROFILE": "no-such-profile"}, "ProfileNotFound"),
    ],
)
def test_wrong_credentials_are_refused_and_never_told(
    bucket: S3Settings, monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], code: str
) -> None:
    """Wrong, missing or misnamed credentials stop the run with a hint, and no secret is in the sentence."""
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name, value in changes.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    with pytest.raises(DestinationRefused, match=code) as raised:
        open_destination(bucket).prepare()
    assert "credentials" in raised.value.hint
    assert not any(
        value and value in f"{raised.value} {raised.value.hint}" for value in changes.values() if "wrong" in value
    )


def test_credentials_that_end_during_a_run_stop_it(
    bucket: S3Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Credentials that cannot be renewed any more refuse puts and proofs, also on the client that is already open."""
    keys = {"Version": 1, "AccessKeyId": ENVIRONMENT["AWS_ACCESS_KEY_ID"]}
    keys["SecretAccessKey"] = ENVIRONMENT["AWS_SECRET_ACCESS_KEY"]
    soon = datetime.now(UTC) + timedelta(minutes=5)
    (tmp_path / "keys.json").write_text(json.dumps(keys | {"Expiration": soon.isoformat()}))
    (tmp_path / "config").write_text(f"[profile short]\ncredential_process = cat {tmp_path / 'keys.json'}\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "short")
    item, file = staged(tmp_path, BYTES)
    destination = open_destination(bucket)
    destination.put(item, file)
    (tmp_path / "keys.json").unlink()
    other, other_file = staged(tmp_path, BYTES)
    for call in (lambda: destination.put(other, other_file), lambda: destination.verify(item)):
        with pytest.raises(DestinationRefused, match="credentials"):
            call()
    destination.close()


def refusing(when: Callable[[str, str, int], bool], status: int, code: str) -> Meddle:
    """A store that answers so when the method, the path and the count of such requests tell it to."""
    return lambda method, path, count: (status, _xml(code)) if when(method, path, count) else None


@pytest.mark.parametrize(("status", "code"), [(400, "InvalidArgument"), (405, "MethodNotAllowed"), (404, "NoSuchKey")])
def test_a_refused_probe_is_no_objects_fault(server: S3Server, bucket: S3Settings, tmp_path: Path, status: int, code: str) -> None:
    """What refuses the probe would refuse every object: it ends the run before the first one, and is not each one's failure."""
    with meddling(refusing(lambda method, *_: method == "PUT", status, code), server) as rude:
        destination = open_destination(replace(bucket, endpoint_url=rude.endpoint_url))
        for call in (destination.prepare, lambda: destination.put(*staged(tmp_path, BYTES))):
            with pytest.raises(DestinationRefused, match=code) as raised:
                call()
            assert raised.value.scope == "run" and raised.value.hint
        destination.close()


@pytest.mark.parametrize(("status", "code", "expected"), [
    (400, "InvalidRequest", None), (403, "AccessDenied", None), (404, "NoSuchUpload", None), (405, "MethodNotAllowed", None), (501, "NotImplemented", None),
    (500, "InternalError", DestinationUnreachable), (503, "SlowDown", DestinationBusy), (404, "NoSuchBucket", None),
])  # fmt: skip
def test_leftovers_that_cannot_be_listed_are_no_reason_not_to_run(
    server: S3Server, bucket: S3Settings, status: int, code: str, expected: type[DestinationError] | None
) -> None:
    """A store without such a list, or one that we may not see, is good enough; one in trouble is not."""
    with meddling(refusing(lambda method, _, count: method == "GET" and count > 1, status, code), server) as rude:  # the first is the look at the bucket
        destination = open_destination(replace(bucket, endpoint_url=rude.endpoint_url))
        with contextlib.nullcontext() if expected is None else pytest.raises(expected):
            destination.prepare()
        destination.close()


def test_an_upload_that_cannot_be_aborted_is_no_reason_not_to_run(server: S3Server, bucket: S3Settings) -> None:
    """Nor is one that somebody else has just aborted, behind which the others are."""
    client = server.client()
    for key in ("pacs/studies/1.2/object", "pacs/studies/1.3/object"):
        client.create_multipart_upload(Bucket=bucket.bucket, Key=key)
    for status, code in ((403, "AccessDenied"), (404, "NoSuchUpload")):
        with meddling(refusing(lambda method, path, _: method == "ABORT" and "/1.2/" in path, status, code), server) as rude:
            destination = open_destination(replace(bucket, endpoint_url=rude.endpoint_url))
            destination.prepare()
            destination.close()
    assert [each["Key"] for each in client.list_multipart_uploads(Bucket=bucket.bucket)["Uploads"]] == ["pacs/studies/1.2/object"]


def test_a_bucket_that_is_gone_is_no_missing_object(server: S3Server, bucket: S3Settings, tmp_path: Path) -> None:
    """A look at an object says 404 for both; only the look at the bucket tells them apart."""
    gone: list[bool] = []

    def answer(method: str, path: str, count: int) -> Answer | None:
        return (404, b"" if method == "HEAD" else _xml("NoSuchBucket")) if gone else None

    with meddling(answer, server) as rude:
        destination = open_destination(replace(bucket, endpoint_url=rude.endpoint_url))
        item, file = staged(tmp_path, BYTES)
        item = replace(item, receipt=destination.put(item, file))
        gone.append(True)
        with pytest.raises(DestinationRefused, match="NoSuchBucket"):
            destination.verify(item)
        destination.close()


@given(st.binary() | st.from_regex(rb".*<Code>.*</Code>.*"))
def test_no_error_body_breaks_the_parser(body: bytes) -> None:
    """Whatever stands in an error's body, it has a code or it has none."""
    code = error_code(body)
    assert code is None or code.encode() in body
