"""What every kind of destination promises, tried on a real folder and on a real S3 server."""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from migrate.config import FolderSettings, S3Settings
from migrate.destinations import Destination, close_shared, open_destination, shared_destination
from migrate.errors import (
    DestinationError,
    DestinationRefused,
    DestinationUnreachable,
    KeyTaken,
    ObjectDiffers,
    ObjectMissing,
    StagedFileLost,
)
from migrate.model import Item, Proof
from tests.places import BucketPlace, FolderPlace, Place, key_of, new_number, staged
from tests.s3_server import ENVIRONMENT, S3Server

BYTES = bytes(range(256)) * 96
LARGE_BYTES = 40 << 20


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "folder":
        (tmp_path / "objects").mkdir()
        return FolderPlace(FolderSettings(tmp_path / "objects", "site a/"))
    server: S3Server = request.getfixturevalue("server")
    bucket = server.new_bucket()
    return BucketPlace(S3Settings(bucket, "site a/", endpoint_url=server.endpoint_url), server)


@pytest.fixture
def destination(place: Place) -> Iterator[Destination]:
    opened = open_destination(place.settings)
    opened.prepare()
    yield opened
    opened.close()


def test_what_was_put_is_proven_and_stands_under_its_key(
    place: Place, destination: Destination, tmp_path: Path
) -> None:
    """A put object has the staged bytes under the agreed key, and both kinds of proof find it."""
    item, file = staged(tmp_path, BYTES)
    receipt = destination.put(item, file)
    assert receipt.key == key_of(place, item)
    assert place.read(receipt.key) == BYTES
    proven = replace(item, receipt=receipt)
    assert destination.verify(proven) is (Proof.READ_BACK if isinstance(place, FolderPlace) else Proof.ATTESTED)
    assert destination.verify(proven, deep=True) is Proof.READ_BACK
    assert destination.verify(item) is destination.verify(proven)
    assert place.stored() == {receipt.key}


def test_objects_are_listed_with_their_sizes(place: Place, destination: Destination, tmp_path: Path) -> None:
    """Everything below a prefix and nothing else, whoever put it there; nothing where there is nothing."""
    assert list(destination.listed("site a/studies/")) == []
    item, file = staged(tmp_path, BYTES)
    key = destination.put(item, file).key
    foreign = key.rpartition("/")[0] + "/foreign"
    place.write(foreign, b"x")
    place.write("site a/studies/9/series/1/instances/1.dcm", b"other")
    assert dict(destination.listed(key.rpartition("/")[0] + "/")) == {key: len(BYTES), foreign: 1}


def test_an_object_is_fetched_as_it_stands(place: Place, destination: Destination, tmp_path: Path) -> None:
    """Whatever lies under the key now is copied; what is gone is told."""
    item, file = staged(tmp_path, BYTES)
    proven = replace(item, receipt=destination.put(item, file))
    destination.fetch(proven, tmp_path / "1")
    place.write(key_of(place, item), b"rotten")
    destination.fetch(proven, tmp_path / "2")
    assert ((tmp_path / "1").read_bytes(), (tmp_path / "2").read_bytes()) == (BYTES, b"rotten")
    place.remove(key_of(place, item))
    with pytest.raises(ObjectMissing):
        destination.fetch(proven, tmp_path / "3")


def test_a_file_of_our_own_is_kept_once(place: Place, destination: Destination, tmp_path: Path) -> None:
    """It comes back as it was, is listed, keeps its bytes when others are to be kept under its name, and is no object."""
    (file := tmp_path / "own").write_bytes(BYTES)
    destination.keep("anchors/1.json", file)
    destination.keep("anchors/1.json", file)
    (other := tmp_path / "other").write_bytes(b"other")
    with pytest.raises(KeyTaken):
        destination.keep("anchors/1.json", other)
    destination.kept("anchors/1.json", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == BYTES
    assert dict(destination.listed("site a/_pacs-migrate/anchors/")) == {"site a/_pacs-migrate/anchors/1.json": len(BYTES)}
    assert place.stored() == set()
    with pytest.raises(ObjectMissing):
        destination.kept("anchors/2.json", tmp_path / "none")


def test_put_twice_is_the_same_receipt(place: Place, destination: Destination, tmp_path: Path) -> None:
    """A put whose answer was lost is put again and leads to the same receipt, also by another process's destination."""
    item, file = staged(tmp_path, BYTES)
    first = destination.put(item, file)
    other = open_destination(place.settings)
    assert destination.put(item, file) == first
    assert other.put(item, file) == first
    other.close()


@pytest.mark.parametrize(
    "foreign", [b"something else", b"\1" + BYTES[1:], b""], ids=["other-size", "same-size", "empty"]
)
def test_foreign_bytes_are_never_overwritten(
    place: Place, destination: Destination, tmp_path: Path, foreign: bytes
) -> None:
    """A key with other bytes under it is taken: the put says so and leaves them as they are."""
    item, file = staged(tmp_path, BYTES)
    place.write(key_of(place, item), foreign)
    with pytest.raises(KeyTaken):
        destination.put(item, file)
    assert place.read(key_of(place, item)) == foreign


def test_a_second_content_stands_beside_the_first(place: Place, destination: Destination, tmp_path: Path) -> None:
    """Two contents under the same UIDs keep a key each, and each is proven by itself."""
    first, first_file = staged(tmp_path, BYTES)
    second, second_file = staged(tmp_path, BYTES[::-1], beside=True, number=int(first.ref.sop.rpartition(".")[2]))
    keys = {destination.put(first, first_file).key, destination.put(second, second_file).key}
    assert place.stored() == keys == {key_of(place, first), key_of(place, second)}
    assert "~" in key_of(place, second)
    assert destination.verify(second) and destination.verify(first)


@pytest.mark.parametrize("size", [len(BYTES), LARGE_BYTES])
def test_a_damaged_staged_file_is_never_stored(
    place: Place, destination: Destination, tmp_path: Path, size: int
) -> None:
    """One flipped bit in the staged file: nothing is stored, and the staged file counts as lost."""
    item, file = staged(tmp_path, bytes(size))
    file.write_bytes(bytes(size // 2) + b"\1" + bytes(size - size // 2 - 1))
    with pytest.raises(StagedFileLost):
        destination.put(item, file)
    assert place.stored() == set()


@pytest.mark.parametrize("change", ["gone", "shorter", "longer"])
def test_a_staged_file_of_another_size_is_lost(
    place: Place, destination: Destination, tmp_path: Path, change: str
) -> None:
    """A staged file that is gone, shorter or longer is lost, and nothing is stored."""
    item, file = staged(tmp_path, BYTES)
    if change == "gone":
        file.unlink()
    else:
        file.write_bytes(BYTES[:-1] if change == "shorter" else BYTES + b"\0")
    with pytest.raises(StagedFileLost):
        destination.put(item, file)
    assert place.stored() == set()


@pytest.mark.parametrize("deep", [False, True])
def test_a_missing_object_is_missing(place: Place, destination: Destination, tmp_path: Path, deep: bool) -> None:
    """An object that was never put, or was removed, is reported as missing."""
    item, file = staged(tmp_path, BYTES)
    with pytest.raises(ObjectMissing):
        destination.verify(item, deep=deep)
    receipt = destination.put(item, file)
    place.remove(receipt.key)
    with pytest.raises(ObjectMissing):
        destination.verify(replace(item, receipt=receipt), deep=deep)


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize(
    "spoilt",
    [BYTES[:-1], BYTES + b"\0", BYTES[:99] + b"!" + BYTES[100:], b""],
    ids=["cut", "longer", "flipped", "empty"],
)
def test_a_spoilt_object_differs(
    place: Place, destination: Destination, tmp_path: Path, spoilt: bytes, deep: bool
) -> None:
    """Any verify names an object that was cut, lengthened, emptied or flipped in one byte behind our back."""
    item, file = staged(tmp_path, BYTES)
    receipt = destination.put(item, file)
    place.write(receipt.key, spoilt)
    with pytest.raises(ObjectDiffers):
        destination.verify(replace(item, receipt=receipt), deep=deep)
    with pytest.raises(ObjectDiffers):
        destination.verify(item, deep=deep)
    assert place.read(receipt.key) == spoilt


def test_large_objects_keep_every_promise(place: Place, destination: Destination, tmp_path: Path) -> None:
    """40 MiB (several parts in a bucket) are stored whole, put again idempotently, proven, and never overwritten."""
    item, file = staged(tmp_path, os.urandom(LARGE_BYTES))
    receipt = destination.put(item, file)
    assert destination.put(item, file) == receipt
    assert destination.verify(replace(item, receipt=receipt)) >= Proof.ATTESTED
    assert destination.verify(item, deep=True) is Proof.READ_BACK
    taken, other = staged(tmp_path, b"\0" * LARGE_BYTES, number=int(item.ref.sop.rpartition(".")[2]))
    with pytest.raises(KeyTaken):
        destination.put(taken, other)
    assert hashlib.sha256(place.read(receipt.key) or b"").digest() == item.fixity.file_sha256


@pytest.mark.parametrize("size", [0, 1, 132])
def test_the_smallest_objects(destination: Destination, tmp_path: Path, size: int) -> None:
    """A file without a data set, and even an empty one, is stored and proven."""
    item, file = staged(tmp_path, bytes(size))
    receipt = destination.put(item, file)
    assert destination.put(item, file) == receipt
    assert destination.verify(item) >= Proof.ATTESTED
    assert destination.verify(item, deep=True) is Proof.READ_BACK


def test_a_race_has_one_content(place: Place, destination: Destination, tmp_path: Path) -> None:
    """Eight puts of eight contents at once under one key: one is stored, seven are told that the key is taken."""
    number = new_number()
    racers = [staged(tmp_path, bytes([index]) * 30_000, number=number) for index in range(8)]

    def put(racer: tuple[Item, Path]) -> bool:
        try:
            destination.put(*racer)
        except KeyTaken:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(put, racers))
    assert won.count(True) == 1
    assert place.read(key_of(place, racers[0][0])) == bytes([won.index(True)]) * 30_000


def test_equal_puts_at_once_all_succeed(place: Place, destination: Destination, tmp_path: Path) -> None:
    """Eight puts of the same bytes at once under one key all end with the same receipt."""
    item, file = staged(tmp_path, BYTES)
    with ThreadPoolExecutor(8) as pool:
        receipts = set(pool.map(lambda _: destination.put(item, file), range(8)))
    assert len(receipts) == 1
    assert place.stored() == {key_of(place, item)}


def test_a_healthy_destination_checks_well(place: Place, destination: Destination) -> None:
    """`check` says ok to everything, twice, names the destination's part, and leaves no object among the studies."""
    for _ in range(2):
        findings = destination.check()
        assert {finding.level for finding in findings} == {"ok"}, findings
        assert {finding.part for finding in findings} == {"destination"}
    assert place.stored() == set()


@pytest.mark.parametrize(
    ("trouble", "expected"), [("unreachable", DestinationUnreachable), ("refused", DestinationRefused)]
)
def test_a_destination_that_cannot_be_used_says_why(
    place: Place, tmp_path: Path, trouble: str, expected: type[DestinationError]
) -> None:
    """Nobody there, or nothing usable there: the right error and a failed finding, each with a hint."""
    opened = open_destination(place.elsewhere(trouble))
    with pytest.raises(expected) as raised:
        opened.prepare()
    assert raised.value.hint
    assert raised.value.scope == "run"
    failed = [finding for finding in opened.check() if finding.level == "fail"]
    assert failed and all(finding.hint for finding in failed)
    opened.close()


def test_identity_is_stable_and_tells_destinations_apart(place: Place) -> None:
    """The identity is the same after pickling the settings, differs with the prefix, and holds no secret."""
    again = pickle.loads(pickle.dumps(place.settings))
    identities = [open_destination(each).identity for each in (place.settings, again, replace(again, prefix="b/"))]
    assert identities[0] == identities[1] != identities[2]
    assert not any(secret in identities[0] for secret in ENVIRONMENT.values())


def test_one_shared_destination_a_process(place: Place) -> None:
    """Jobs with equal settings share a destination until it is closed."""
    first = shared_destination(place.settings)
    assert shared_destination(pickle.loads(pickle.dumps(place.settings))) is first
    close_shared()
    assert shared_destination(place.settings) is not first
    close_shared()


_part = st.text(
    st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Zs"), exclude_characters="/\\"),
    min_size=1,
    max_size=12,
)
_prefixes = st.lists(_part.filter(lambda part: part not in (".", "..") and part == part.strip()), max_size=3).map(
    lambda parts: "".join(f"{part}/" for part in parts)
)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prefix=_prefixes, beside=st.booleans())
def test_any_prefix_comes_through(place: Place, tmp_path: Path, prefix: str, beside: bool) -> None:
    """Whatever characters a prefix has, the object stands under exactly that key and is found there again."""
    chosen = replace(place, settings=replace(place.settings, prefix=prefix))  # type: ignore[type-var]
    opened = open_destination(chosen.settings)
    item, file = staged(tmp_path, BYTES[:300], beside=beside)
    receipt = opened.put(item, file)
    assert chosen.read(key_of(chosen, item)) == BYTES[:300]
    assert receipt.key in chosen.stored()
    assert opened.verify(replace(item, receipt=receipt)) >= Proof.ATTESTED
    opened.close()
    if isinstance(place, FolderPlace):
        shutil.rmtree(place.settings.path)
        place.settings.path.mkdir()
