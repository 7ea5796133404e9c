"""The whole job for many small studies: what one study costs this process, in CPU by thread.

    python -m benchmarks.studies [--studies 1000] [--images 4] [--store folder|s3] [--rounds 3]

Nearly all of a PACS's studies are small, so that what is done once a study is what counts. The practice PACS, and SeaweedFS where `--store s3`,
run in processes of their own; each round has a fresh manifest and a fresh bucket. CPU is told apart by the names of threads.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from benchmarks.turns import put_away, work_folder
from migrate import config
from migrate.jobs.migration import Migration
from migrate.practice.pacs import PracticePacs
from migrate.practice.studies import Archive
from tests.ports import free_port
from tests.s3_server import ENVIRONMENT, S3Server, seaweedfs

TOML = """[migration]
name = "studies"
manifest = "manifest.db"
[source]
host = "127.0.0.1"
port = {pacs}
ae_title = "PRACTICE"
settle_s = 1
[receiver]
host = "127.0.0.1"
port = {receiver}
[destination]
"""


def count_by_thread() -> Counter[str]:
    """From now on: the CPU seconds of every thread that has ended, by its name without numbers."""
    used: Counter[str] = Counter()
    plain, lock = threading.Thread.run, threading.Lock()

    def run(self: threading.Thread) -> None:
        try:
            plain(self)
        finally:
            with lock:
                used[self.name.rstrip("0123456789_-")] += time.thread_time()  # type: ignore[assignment]

    threading.Thread.run = run  # type: ignore[method-assign]
    return used


def serve(studies: int, images: int, receiver: int) -> None:
    """The practice PACS, each study with so many small images; ends with its standard input."""
    archive = Archive(studies, shapes=dict.fromkeys(range(studies), (("CR", images),)))
    with PracticePacs(archive, port=0, destinations={"PACSMIGRATE": ("127.0.0.1", receiver)}) as pacs:
        print(pacs.port, flush=True)
        sys.stdin.read()


@contextlib.contextmanager
def practice(studies: int, images: int, receiver: int) -> Iterator[int]:
    """The same in a process of its own; yields its port."""
    command = [sys.executable, "-m", "benchmarks.studies", "--serve", str(receiver), "--studies", str(studies), "--images", str(images)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        yield int(process.stdout.readline())
        process.stdin.close()


def turn(folder: Path, store: str, port: int, receiver: int, objects: int) -> tuple[float, Counter[str]]:
    """Wall seconds, and CPU seconds by thread, of one `run`."""
    home = folder / "home"
    home.mkdir()
    (home / "migrate.toml").write_text(TOML.format(pacs=port, receiver=receiver) + store)
    used = count_by_thread()
    began, main, whole = time.monotonic(), time.thread_time(), time.process_time()
    with Migration(config.load(home / "migrate.toml"), "run") as migration:
        migration.run()
        migration.exit_code = 0
        verified = migration.queue.connection.execute("SELECT total(verified) FROM series").fetchone()[0]
        if verified != objects:
            raise RuntimeError(f"{verified:.0f} of {objects} objects are verified")
    wall_s = time.monotonic() - began
    used["main"] = time.thread_time() - main  # type: ignore[assignment]
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            thread.join(2.0)
    whole = time.process_time() - whole
    used["others"] = whole - used.total()  # type: ignore[assignment]
    put_away(home)
    return wall_s, used


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--images", type=int, default=4, help="of each study (default 4)")
    parser.add_argument("--store", choices=("folder", "s3"), default="folder", help="where they go (default: folder)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.studies, options.images, options.serve)
        return
    os.environ.update(ENVIRONMENT)
    turns = []
    plain = threading.Thread.run
    with work_folder(None) as folder, contextlib.ExitStack() as stack:
        server: S3Server | None = None
        if options.store == "s3":
            (folder / "server").mkdir()
            server = stack.enter_context(seaweedfs(folder / "server"))
        for _ in range(options.rounds):
            receiver = free_port()
            store = 'kind = "folder"\npath = "bucket"\n'
            if server is not None:
                store = f'kind = "s3"\nbucket = "{server.new_bucket()}"\nendpoint_url = "{server.endpoint_url}"\n'
            with practice(options.studies, options.images, receiver) as port:
                turns.append(turn(folder, store, port, receiver, options.studies * options.images))
            threading.Thread.run = plain  # type: ignore[method-assign]
    per_study = {
        name: statistics.median(used[name] for _, used in turns) * 1000 / options.studies for name in sorted({name for _, used in turns for name in used})
    }
    totals = sorted(used.total() * 1000 / options.studies for _, used in turns)
    print(f"{options.studies:,} studies of {options.images} images into {options.store}: {statistics.median(wall for wall, _ in turns):.1f} s, "
          f"CPU {statistics.median(totals):.2f} ms a study ({totals[0]:.2f}-{totals[-1]:.2f})")  # fmt: skip
    print(", ".join(f"{name} {ms:.2f}" for name, ms in sorted(per_study.items(), key=lambda pair: -pair[1]) if ms >= 0.01))


if __name__ == "__main__":
    main()
