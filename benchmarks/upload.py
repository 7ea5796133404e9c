"""The same files into an S3 server on loopback: our destination, rclone and s5cmd, in turn; puts only.

    python -m benchmarks.upload [--scale 0.1] [--rounds 3] [--server seaweedfs|rclone]

Eight workers each; every turn goes under a prefix of its own, to the same keys below it. Ours knows the files' checksums
beforehand, as it does in a migration, and has opened the bucket, which a migration does once; a peer's turn is a process
with a start. So two more rows are shown: each peer without its start (what the same command takes for one small file), and
ours with it (a process that loads everything, opens the bucket and probes it).
"""

from __future__ import annotations

import hashlib
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from awscrt.checksums import crc64nvme

from benchmarks.turns import (
    Shape,
    Turn,
    alternate,
    arguments,
    heading,
    make_files,
    report,
    shapes,
    timed_run,
    work_folder,
)
from migrate.config import S3Settings
from migrate.destinations import open_destination
from migrate.model import Fixity, InstanceRef, Item, object_key
from tests.s3_server import ACCESS_KEY, ENVIRONMENT, SECRET_KEY, S3Server, rclone_serve, seaweedfs

WORKERS = 8
_BESIDE_PYTHON = Path(sys.executable).parent


def rclone_command(server: S3Server, verb: Sequence[str], folder: Path, there: str) -> tuple[list[str], dict[str, str]]:
    """A call of rclone between a folder and a place that begins with "store:", and the environment that it needs."""
    options = {"TYPE": "s3", "PROVIDER": "Other", "ACCESS_KEY_ID": ACCESS_KEY, "SECRET_ACCESS_KEY": SECRET_KEY}
    options |= {"ENDPOINT": server.endpoint_url, "REGION": "us-east-1", "NO_CHECK_BUCKET": "true", "NO_HEAD": "true"}
    command = [str(_BESIDE_PYTHON / "rclone"), *verb, str(folder), there, "--config", "", "--transfers", str(WORKERS)]
    return command, {f"RCLONE_CONFIG_STORE_{name}": value for name, value in options.items()}


@dataclass
class Bench:
    """One shape's files, and the bucket they go to."""

    server: S3Server
    bucket: str
    folder: Path
    shape: Shape
    items: list[tuple[Item, Path]]
    number: int = 0

    def _prefix(self) -> str:
        self.number += 1
        return f"turn{self.number}/"

    def _checked(self, turn: Turn, prefix: str) -> Turn:
        pages = self.server.client().get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        sizes = sorted(each["Size"] for page in pages for each in page.get("Contents", ()) if "/_" not in each["Key"])
        if sizes != sorted(item.fixity.size_bytes for item, _ in self.items):
            raise RuntimeError(f"{len(sizes)} of {self.shape.count} objects arrived whole")
        return turn

    def ours(self) -> Turn:
        prefix = self._prefix()
        destination = open_destination(S3Settings(self.bucket, prefix, endpoint_url=self.server.endpoint_url))
        destination.prepare()
        with ThreadPoolExecutor(WORKERS) as pool:
            cpu_s, began = time.process_time(), time.monotonic()
            for receipt in pool.map(lambda each: destination.put(*each), self.items):
                assert receipt.key
            turn = Turn(time.monotonic() - began, time.process_time() - cpu_s)
        destination.close()
        return self._checked(turn, prefix)

    def rclone(self) -> Turn:
        prefix = self._prefix()
        return self._checked(self._rclone(self.folder, prefix), prefix)

    def _rclone(self, folder: Path, prefix: str) -> Turn:
        return timed_run(*rclone_command(self.server, ["copy", "--no-check-dest"], folder, f"store:{self.bucket}/{prefix}"))

    def s5cmd(self) -> Turn:
        prefix = self._prefix()
        return self._checked(self._s5cmd(self.folder, prefix), prefix)

    def _s5cmd(self, folder: Path, prefix: str) -> Turn:
        command = [
            str(_BESIDE_PYTHON / "s5cmd"),
            "--endpoint-url",
            self.server.endpoint_url,
            "--numworkers",
            str(WORKERS),
        ]
        command += ["--log", "error", "cp", f"{folder}/", f"s3://{self.bucket}/{prefix}"]
        return timed_run(command)

    def starts_s(self) -> dict[str, float]:
        """What the start of each tool takes (s), medians of five."""
        one = self.folder.with_name("one")
        one.mkdir()
        (one / "file").write_bytes(b"one small file")
        ours = [sys.executable, "-c", _START, self.bucket, self._prefix(), self.server.endpoint_url]
        tools: dict[str, Callable[[], Turn]] = {
            "pacs-migrate": lambda: timed_run(ours),
            "rclone": lambda: self._rclone(one, self._prefix()),
            "s5cmd": lambda: self._s5cmd(one, self._prefix()),
        }
        return {name: statistics.median(start().wall_s for _ in range(5)) for name, start in tools.items()}


_START = """import sys
from migrate.config import S3Settings
from migrate.destinations import open_destination
destination = open_destination(S3Settings(sys.argv[1], sys.argv[2], endpoint_url=sys.argv[3]))
destination.prepare()
destination.close()
"""


def _with_and_without(turns: dict[str, list[Turn]], starts_s: dict[str, float]) -> dict[str, list[Turn]]:
    """The turns, and beside each those that are comparable with the other side's: ours with a start, theirs without."""
    found = dict(turns)
    for name, own in turns.items():
        sign, label = (1, "with its start") if name == "pacs-migrate" else (-1, "without its start")
        found[f"{name}, {label} ({starts_s[name]:.2f} s)"] = [replace(turn, wall_s=turn.wall_s + sign * starts_s[name]) for turn in own]
    return found


def _items(files: list[Path], study: str) -> list[tuple[Item, Path]]:
    """The files, moved to where their keys would be below the same folder: the peers then put under the same keys."""
    found = []
    root = files[0].parent
    for number, made in enumerate(files, 1):
        ref = InstanceRef(study, f"{study}.1", f"{study}.1.{number}")
        path = root / object_key(ref)
        path.parent.mkdir(parents=True, exist_ok=True)
        made.rename(path)
        whole, crc, size = hashlib.sha256(), 0, 0
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                whole.update(piece)
                crc, size = crc64nvme(piece, crc), size + len(piece)
        # the data set's own hash is only carried along as metadata
        fixity = Fixity(size, whole.digest(), whole.digest(), crc)
        found.append((Item(ref, fixity), path))
    return found


def main() -> None:
    parser = arguments(str(__doc__).splitlines()[0])
    parser.add_argument("--server", choices=("seaweedfs", "rclone"), default="seaweedfs", help="which S3 server")
    options = parser.parse_args()
    os.environ.update(ENVIRONMENT)
    serve = seaweedfs if options.server == "seaweedfs" else rclone_serve
    heading()
    for shape in shapes(options.scale):
        with work_folder(options.folder) as folder:
            items = _items(make_files(folder / "made", shape), shape.study)
            (folder / "server").mkdir()
            with serve(folder / "server") as server:
                bench = Bench(server, server.new_bucket(), folder / "made", shape, items)
                tools: dict[str, Callable[[], Turn]] = {
                    "pacs-migrate": bench.ours, "rclone": bench.rclone, "s5cmd": bench.s5cmd,
                }  # fmt: skip
                report(shape, _with_and_without(alternate(tools, options.rounds), bench.starts_s()))


if __name__ == "__main__":
    main()
