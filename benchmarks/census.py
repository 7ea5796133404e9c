"""A whole sweep of the practice PACS into a fresh manifest: rows a second, memory, and who used the CPU.

    python -m benchmarks.census [--studies 1000000] [--by-patient]

The PACS makes up its studies on the fly in a process of its own. CPU seconds are told apart by thread: asking and decoding
(`enumerate`), writing the manifest (`commit`), and the scheduler, which compares what the windows showed. `--by-patient`: the PACS knows
Patient Root alone and wants a PatientID with each question; it has two studies a patient.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from migrate import config
from migrate.dicom.scu import FindSession, Level
from migrate.jobs.migration import Migration

TOML = """[migration]
name = "census"
manifest = "census.db"
[source]
host = "127.0.0.1"
port = {port}
ae_title = "PRACTICE"
[receiver]
host = "127.0.0.1"
port = 1
[destination]
kind = "folder"
path = "bucket"
"""


def cpu_s_by_thread() -> dict[str, float]:
    """CPU seconds so far of every living thread of this process, by its name without numbers (Linux)."""
    ticks = os.sysconf("SC_CLK_TCK")
    names = {thread.native_id: thread.name.rstrip("0123456789_-") for thread in threading.enumerate()}
    used: dict[str, float] = {}
    for task in Path("/proc/self/task").iterdir():
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        name = names.get(int(task.name), "other")
        used[name] = used.get(name, 0.0) + (int(fields[11]) + int(fields[12])) / ticks
    return used


def sample(latest: dict[str, float], every_s: float = 0.5) -> None:
    """Look at the threads from time to time: those that have ended are not seen any more."""
    now = time.monotonic()
    if now - latest.get("sampled", 0.0) > every_s:
        latest |= cpu_s_by_thread() | {"sampled": now}


def count_questions() -> Counter[str]:
    """From now on: the C-FINDs of this process, by level."""
    asked: Counter[str] = Counter()
    plain = FindSession.find

    def find(self: FindSession, level: Level, keys: Mapping[int, str], wanted: Sequence[int]) -> Iterator[dict[int, str]]:
        asked[level] += 1
        return plain(self, level, keys, wanted)

    FindSession.find = find  # type: ignore[method-assign]
    return asked


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--studies", type=int, default=1_000_000)
    parser.add_argument("--by-patient", action="store_true")
    arguments = parser.parse_args()
    command = [sys.executable, "-m", "migrate", "practice-pacs", "--port", "0", "--studies", str(arguments.studies)]
    command += ["--fault", "patient-root-only"] if arguments.by_patient else []
    asked = count_questions()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as pacs, tempfile.TemporaryDirectory() as folder:
        assert pacs.stdout is not None
        port = int(pacs.stdout.readline().rpartition(":")[2].split()[0].rstrip("."))
        path = Path(folder) / "migrate.toml"
        path.write_text(TOML.format(port=port))
        latest: dict[str, float] = {}
        began, cpu_s = time.monotonic(), time.process_time()
        with Migration(config.load(path), "enumerate") as migration:
            migration.progress = lambda _: sample(latest)
            migration.run(only_enumerate=True)
            migration.exit_code = 0
            rows = sum(row["row_count"] or 0 for row in migration.queue.windows(1))
            found = migration.queue.connection.execute("SELECT count(*) FROM study").fetchone()[0]
            windows = len(migration.queue.windows(1))
        wall_s, cpu_s = time.monotonic() - began, time.process_time() - cpu_s
        pacs.terminate()
        latest.pop("sampled", None)
        print(f"C-FINDs: {', '.join(f'{count:,} {level}' for level, count in sorted(asked.items()))}")
        rate = f"{sum(asked.values()) / wall_s:,.0f} C-FINDs/s" if arguments.by_patient else f"{rows:,} rows, {rows / wall_s:,.0f} a second"
        print(f"{found:,} studies in {windows} questions: {wall_s:.0f} s, {rate}")
        print(f"CPU {cpu_s:.1f} s in all; " + ", ".join(f"{name} {used:.1f} s" for name, used in sorted(latest.items()) if used >= 0.1))
        print(f"memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB at most")
        print(f"manifest {sum(each.stat().st_size for each in Path(folder).glob('census.db*')) / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
