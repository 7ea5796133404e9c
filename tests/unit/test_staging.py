"""The staging folder: what is known of a file however it comes in, and that the held bytes are those on the disk."""

from __future__ import annotations

import functools
import hashlib
import random
import stat
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import pytest
from awscrt.checksums import crc64nvme
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from migrate.errors import DiskFailing, LocalError
from migrate.model import Fixity, InstanceRef, Rolled
from migrate.staging.area import Staging
from migrate.staging.incoming import HELD_BYTES, Incoming

HEADER = b"\0" * 128 + b"DICM" + b"meta"
CONTENT = random.Random(5).randbytes(12 << 20)
FRAGMENTS = st.lists(st.one_of(st.integers(0, 300), st.integers(1, 2 << 20)), min_size=1, max_size=12)
STEPS = st.lists(
    st.tuples(st.sampled_from(["settle", "settle", "release", "restart"]), st.integers(0, 5), st.integers(0, 3)),
    max_size=25,
)
quick = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def staging(tmp_path: Path) -> Iterator[Staging]:
    opened = Staging(tmp_path / "staging", reserve_bytes=0)
    yield opened
    opened.close()


def expected_fixity(content: bytes) -> Fixity:
    whole = HEADER + content
    return Fixity(len(whole), hashlib.sha256(whole).digest(), hashlib.sha256(content).digest(), crc64nvme(whole))


def written(incoming: Incoming, sizes: list[int], *, more: bool = False) -> bytes:
    """Write so many bytes in these fragments, all from one buffer that is overwritten at once, as the receiver does."""
    buffer, position = bytearray(max(*sizes, 1)), 0
    for size in sizes:
        piece = CONTENT[position : position + size]
        buffer[: len(piece)] = piece
        incoming.write(memoryview(buffer)[: len(piece)], more=more)
        buffer[:] = bytes(len(buffer))
        position += len(piece)
    return CONTENT[:position]


def came(staging: Staging, sizes: list[int], sop: str = "1.4") -> tuple[Path, Path, Rolled]:
    """A file that came whole, as `settle` takes it."""
    incoming = staging.create().begin(HEADER)
    written(incoming, sizes)
    incoming.close()
    rolled = incoming.roll()
    return incoming.path, staging.path_of(InstanceRef("1.2", "1.3", sop), rolled.dataset_sha256), rolled


@quick
@given(sizes=FRAGMENTS)
@example(sizes=[2 << 20] * 6)
@example(sizes=[HELD_BYTES - len(HEADER)])
@example(sizes=[HELD_BYTES - len(HEADER), 1])
@example(sizes=[HELD_BYTES, 100, 100, 40 << 10, 100])
@example(sizes=[127 << 10, 2000, 129 << 10, 10])
def test_any_fragmentation_gives_the_fixity_of_the_whole(staging: Staging, sizes: list[int]) -> None:
    """However the bytes are cut, file, hashes and CRC are those of the whole, at the receipt and when it is durable."""
    incoming = staging.create().begin(HEADER)
    content = written(incoming, sizes)
    incoming.close()
    rolled = incoming.roll()
    assert rolled == expected_fixity(content).rolled
    assert incoming.path.read_bytes() == HEADER + content
    assert (incoming.whole is None) == (rolled.size_bytes > HELD_BYTES)
    assert incoming.whole is None or bytes(incoming.whole) == HEADER + content
    final = staging.path_of(InstanceRef("1.2", "1.3", "1.4"), rolled.dataset_sha256)
    assert staging.settle([(incoming.path, final, rolled)]) == [expected_fixity(content)]
    assert final.read_bytes() == HEADER + content
    final.unlink()


class Reluctant(Executor):
    """A hasher that does nothing before somebody waits for it, and then all that was handed over until then."""

    def __init__(self) -> None:
        self._left: deque[tuple[Future[Any], Callable[[], Any]]] = deque()

    def submit(self, work: Callable[..., Any], /, *what: Any, **more: Any) -> Future[Any]:
        reluctant = self

        class Asked(Future[Any]):
            def result(self, timeout: float | None = None) -> Any:
                while not self.done():
                    future, do = reluctant._left.popleft()
                    future.set_result(do())
                return super().result(timeout)

        self._left.append((Asked(), functools.partial(work, *what, **more)))
        return self._left[-1][0]


@quick
@given(sizes=FRAGMENTS, more=st.booleans())
@example(sizes=[2 << 20] * 6, more=True)
@example(sizes=[HELD_BYTES, 100, 100, 40 << 10, 100], more=True)
def test_a_slow_hasher_is_waited_for(staging: Staging, sizes: list[int], more: bool) -> None:
    """No byte of a buffer is overwritten before it is hashed, and no hash is told before it is one of all bytes."""
    incoming = staging.create(hasher=Reluctant()).begin(HEADER)
    content = written(incoming, sizes, more=more)
    incoming.close()
    assert incoming.roll() == expected_fixity(content).rolled
    incoming.discard()


@pytest.mark.parametrize("size", [0, 1 << 10, 6 << 20])
def test_a_discarded_file_leaves_nothing(staging: Staging, size: int) -> None:
    """Discarding removes the file, whether or not something was written, and may be done twice."""
    incoming = staging.create().begin(HEADER)
    written(incoming, [size // 2, size // 2])
    incoming.discard()
    incoming.discard()
    assert list(staging.incoming.iterdir()) == []


@pytest.mark.parametrize("spoil", ["flip", "cut", "grow"])
@pytest.mark.parametrize("size", [1000, 3 << 20])
def test_what_the_disk_spoilt_is_never_settled(staging: Staging, spoil: str, size: int) -> None:
    """A file that differs from what came by one bit or one byte ends the batch: nothing of it gets its final name."""
    batch = [came(staging, [size], f"1.{number}") for number in range(6)]
    with batch[3][0].open("r+b") as file:
        if spoil == "flip":
            file.seek(size // 2)
            byte = file.read(1)[0]
            file.seek(size // 2)
            file.write(bytes((byte ^ 1,)))
        else:
            file.truncate(len(HEADER) + size + (1 if spoil == "grow" else -1))
    with pytest.raises(DiskFailing, match="does not read back"):
        staging.settle(batch)
    assert list(staging.ready.rglob("*.dcm")) == []
    assert staging.held_bytes == 0
    others = batch[:3] + batch[4:]
    assert [fixity.rolled for fixity in staging.settle(others)] == [rolled for _, _, rolled in others]


def test_a_settling_that_fails_midway_counts_what_was_renamed(staging: Staging) -> None:
    """The held bytes are those on the disk also when a rename fails after others went well."""
    batch = [came(staging, [1000], "1.1"), came(staging, [2000], "1.2")]
    batch[1][1].mkdir(parents=True)  # a folder stands where the second file is to go
    with pytest.raises(LocalError):
        staging.settle(batch)
    assert batch[0][1].stat().st_size == staging.held_bytes == len(HEADER) + 1000


def test_files_and_folders_are_for_their_owner_only(staging: Staging) -> None:
    """Files are 0600 and folders 0700, on the way in and when they are durable."""
    part, final, rolled = came(staging, [0])
    part_mode = stat.S_IMODE(part.stat().st_mode)
    staging.settle([(part, final, rolled)])
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
                numbers = range(which, which + extra + 1)
                staging.settle([came(staging, [100 * (number + 1)], f"1.{number}") for number in numbers])
            elif step == "release":
                for path in sorted(staging.ready.glob("*/*"))[: which + 1]:
                    size = path.stat().st_size
                    staging.release(path, size)
                    staging.release(path, size)  # once more, as after a restart
            else:
                staging.create().begin(HEADER).close()  # broken off
                staging.close()
                kept = set(sorted(staging.ready.glob("*/*"))[:which])
                staging = Staging(Path(folder), reserve_bytes=0)
                staging.sweep(kept)
                assert set(staging.ready.glob("*/*")) == kept
                assert list(staging.incoming.iterdir()) == []
            assert staging.held_bytes == sum(path.stat().st_size for path in staging.ready.glob("*/*"))
        staging.close()
