"""The staging folder: what is known of a file however it comes in, and that the held bytes are those on the disk."""

from __future__ import annotations

import hashlib
import random
import stat
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from awscrt.checksums import crc64nvme
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from migrate.model import Fixity, InstanceRef
from migrate.staging import Incoming, Staging

HEADER = b"\0" * 128 + b"DICM" + b"meta"
CONTENT = random.Random(5).randbytes(12 << 20)
FRAGMENTS = st.lists(st.one_of(st.integers(0, 300), st.integers(1, 2 << 20)), min_size=1, max_size=12)
STEPS = st.lists(
    st.tuples(st.sampled_from(["settle", "settle", "release", "restart"]), st.integers(0, 5), st.integers(0, 3)),
    max_size=25,
)
quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def staging(tmp_path: Path) -> Iterator[Staging]:
    opened = Staging(tmp_path / "staging", reserve_bytes=0)
    yield opened
    opened.close()


def expected_fixity(content: bytes) -> Fixity:
    whole = HEADER + content
    return Fixity(len(whole), hashlib.sha256(whole).digest(), hashlib.sha256(content).digest(), crc64nvme(whole))


def written(incoming: Incoming, sizes: list[int]) -> bytes:
    """Write so many bytes in these fragments, all from one buffer that is overwritten at once, as the receiver does."""
    buffer, position = bytearray(max(*sizes, 1)), 0
    for size in sizes:
        piece = CONTENT[position : position + size]
        buffer[: len(piece)] = piece
        incoming.write(memoryview(buffer)[: len(piece)])
        buffer[:] = bytes(len(buffer))
        position += len(piece)
    return CONTENT[:position]


def hashing_threads() -> int:
    return sum(thread.name == "hash" for thread in threading.enumerate())


@quick
@given(sizes=FRAGMENTS)
@example(sizes=[2 << 20] * 6)
def test_any_fragmentation_gives_the_fixity_of_the_whole(staging: Staging, sizes: list[int]) -> None:
    """However the bytes are cut, file, hashes and CRC are those of the whole, and no thread is left."""
    incoming = staging.create(HEADER)
    content = written(incoming, sizes)
    assert incoming.close() == expected_fixity(content)
    assert incoming.path.read_bytes() == HEADER + content
    assert hashing_threads() == 0
    incoming.path.unlink()


@pytest.mark.parametrize(("size", "threads"), [(1 << 20, 0), (6 << 20, 1)])
def test_a_discarded_file_leaves_nothing(staging: Staging, size: int, threads: int) -> None:
    """Only a large file has a second thread; discarding ends it and removes the file, and may be done twice."""
    incoming = staging.create(HEADER)
    written(incoming, [size // 2, size // 2, 100])
    assert hashing_threads() == threads
    incoming.discard()
    incoming.discard()
    assert hashing_threads() == 0
    assert list(staging.incoming.iterdir()) == []


def test_a_digest_that_fails_is_an_error_of_the_disk(staging: Staging) -> None:
    """What goes wrong in the second thread is raised as OSError by close, never swallowed, and blocks nobody."""
    incoming = staging.create(HEADER)
    written(incoming, [5 << 20, 1])
    assert incoming._helper is not None
    incoming._helper._digest = None  # type: ignore[assignment]
    written(incoming, [1 << 20] * 6)
    with pytest.raises(OSError, match="checksum"):
        incoming.close()
    incoming.discard()
    assert hashing_threads() == 0
    assert not incoming.path.exists()


def test_files_and_folders_are_for_their_owner_only(staging: Staging) -> None:
    """Files are 0600 and folders 0700, on the way in and when they are durable."""
    incoming = staging.create(HEADER)
    fixity = incoming.close()
    part_mode = stat.S_IMODE(incoming.path.stat().st_mode)
    final = staging.path_of(InstanceRef("1.2", "1.3", "1.4"), fixity.dataset_sha256)
    staging.settle([(incoming.path, final, fixity.size_bytes)])
    assert (part_mode, stat.S_IMODE(final.stat().st_mode)) == (0o600, 0o600)
    folders = [staging.root, *(path for path in staging.root.rglob("*") if path.is_dir())]
    assert {0o700} == {stat.S_IMODE(folder.stat().st_mode) for folder in folders}
    assert len(folders) == 5


@quick
@given(steps=STEPS)
def test_held_bytes_are_those_on_the_disk(steps: list[tuple[str, int, int]]) -> None:
    """After any settling (also of the same bytes again), releasing and restarting, the count is what lies there."""
    with tempfile.TemporaryDirectory() as folder:
        staging = Staging(Path(folder), reserve_bytes=0)
        for step, which, extra in steps:
            if step == "settle":
                batch = []
                for number in range(which, which + extra + 1):
                    incoming = staging.create(HEADER)
                    written(incoming, [100 * (number + 1)])
                    fixity = incoming.close()
                    final = staging.path_of(InstanceRef("1.2", "1.3", f"1.{number}"), fixity.dataset_sha256)
                    batch.append((incoming.path, final, fixity.size_bytes))
                staging.settle(batch)
            elif step == "release":
                for path in sorted(staging.ready.glob("*/*"))[: which + 1]:
                    size = path.stat().st_size
                    staging.release(path, size)
                    staging.release(path, size)  # once more, as after a restart
            else:
                staging.create(HEADER).close()  # broken off
                staging.close()
                kept = set(sorted(staging.ready.glob("*/*"))[:which])
                staging = Staging(Path(folder), reserve_bytes=0)
                staging.sweep(kept)
                assert set(staging.ready.glob("*/*")) == kept
                assert list(staging.incoming.iterdir()) == []
            assert staging.held_bytes == sum(path.stat().st_size for path in staging.ready.glob("*/*"))
        staging.close()
