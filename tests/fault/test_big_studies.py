"""A multi-frame image of some size and a study of many images, through whole runs. `make big-studies` takes 4 GiB and 66,000."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from migrate.dicom.part10 import read_header
from migrate.practice.pacs import PracticePacs
from migrate.practice.studies import Archive
from tests.ports import free_port
from tests.runs import configure

MIB, IMAGES = int(os.environ.get("HUGE_MIB", "100")), int(os.environ.get("MANY_IMAGES", "500"))
_MOST_MEMORY_KIB = {"huge": 120 << 10, "many": 300 << 10}
"""Less than the huge image, so that nobody holds it."""


def memory_kib(process: subprocess.Popen[str]) -> int:
    """The memory of its own that a process has now; pages of files that it has mapped are the system's to take back."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1])
    return 0


def digest(path: Path) -> bytes:
    """SHA-256 of the data set in a file."""
    with path.open("rb") as file:
        file.seek(read_header(file)[3])
        return hashlib.file_digest(file, "sha256").digest()


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("faults", [(f"huge-image={MIB}",), (f"many-images={IMAGES}", "abort-store@0", "wrapped-counters")], ids=["huge", "many"])
def test_it_arrives_as_it_was_sent(tmp_path: Path, faults: tuple[str, ...]) -> None:
    """All arrives, byte for byte, with little memory; the many are sent in part only at first, and the rest is asked for in lists."""
    receiver = free_port()
    with PracticePacs(Archive(1, pixels=2), destinations={"PACSMIGRATE": ("127.0.0.1", receiver)}, faults=faults) as pacs:
        config = configure(tmp_path, pacs.port, receiver)
        words = [sys.executable, "-m", "migrate", "run", "--config", str(config)]
        most = 0
        with (tmp_path / "said").open("w+") as said, subprocess.Popen(words, stdout=said, stderr=said, text=True) as process:
            while process.returncode is None:
                most = max(most, memory_kib(process))
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.05)
            assert process.returncode == 0, (tmp_path / "said").read_text()
        found = {path.stem: digest(path) for path in (tmp_path / "bucket").glob("studies/*/series/*/instances/*.dcm")}
        assert found == {sop: sha256 for _, _, sop, sha256 in pacs.holdings.truth()}
        print(f"{faults}: {len(found)} images, at most {most >> 10} MiB of memory")
        assert 0 < most < _MOST_MEMORY_KIB["huge" if len(faults) == 1 else "many"]
