"""How long a dossier of many instances takes, and how much memory: writing it, and checking it with its own verifier.

`python -m benchmarks.dossier --instances 1000000`; the manifest is filled through `Manifest.commit`, as a run would.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from migrate.manifest import Manifest

from migrate.model import (  # isort: skip
    Fixity, InstanceRef, InstanceStaged, InstanceStored, InstanceVerified, Item, Outcome, Proof, Receipt, Received, RetrieveEnded, RetryPolicy,
    SeriesPlan, StudyFound, StudyPlanned, StudyRef, Window, WindowAnswered, WindowsPlanned,
)

_ROOT = "1.2.826.0.1.3680043.10.543"
_CT, _SYNTAX = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.1"
_WRITE = """
import sys
from pathlib import Path
from migrate.manifest.file import open_reader
from migrate.reports import write_dossier
write_dossier(open_reader(Path(sys.argv[1])), Path(sys.argv[2]), prefix="", parquet="--parquet" in sys.argv)
"""


def fill(manifest: Manifest, studies: int, of_series: int) -> None:
    """Studies of 2 series with so many instances each, all proven."""
    manifest.commit([WindowsPlanned(1, (Window("20000101", "20241231"),))])
    at_once = max(500 // of_series, 1)
    for first in range(0, studies, at_once):
        numbers = range(first, min(first + at_once, studies))
        manifest.commit([StudyFound(StudyRef(f"{_ROOT}.{n}"), f"20{n % 25:02}{n % 12 + 1:02}{n % 28 + 1:02}", ("CT", "MR"), 2 * of_series, 1) for n in numbers])
        _move(manifest, [f"{_ROOT}.{number}" for number in numbers], of_series)
    manifest.commit([WindowAnswered(1, studies)])
    manifest.set_meta("closed_sweep", "1")


def _move(manifest: Manifest, studies: list[str], of_series: int) -> None:
    """Plan, receive, put and prove these studies, a commit each."""
    planned: list[Outcome] = []
    came: list[Outcome] = []
    items = []
    for study in studies:
        plans = tuple(
            SeriesPlan(f"{study}.{number}", kind, tuple(f"{study}.{number}.{n}" for n in range(of_series))) for number, kind in ((1, "CT"), (2, "MR"))
        )
        planned.append(StudyPlanned(StudyRef(study), plans))
        for plan in plans:
            for sop in plan.sops:
                digest = hashlib.sha256(sop.encode()).digest()
                fixity = Fixity(526_336, hashlib.sha256(digest).digest(), digest, int.from_bytes(digest[:8], "big"))
                ref = InstanceRef(study, plan.series, sop)
                came.append(InstanceStaged(Received(Path("x"), ref, fixity.rolled, _CT, _SYNTAX), fixity))
                items.append(Item(ref, fixity))
        came.append(RetrieveEnded(StudyRef(study), 0))
    manifest.commit(planned)
    manifest.commit(came)
    manifest.commit([InstanceStored(item, Receipt("k")) for item in items])
    manifest.commit([InstanceVerified(item, Proof.ATTESTED) for item in items])


def measured(command: list[str]) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds and the peak of resident memory in MiB of a process."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command} ended with {status}")
    return time.perf_counter() - began, used.ru_utime + used.ru_stime, used.ru_maxrss / (1 if sys.platform == "darwin" else 1024)


def filled(path: Path, instances: int, of_series: int) -> None:
    """A new manifest with so many instances."""
    manifest = Manifest(path, identity={"source": "a", "destination": "s3://b/", "migration": "benchmark"}, policy=RetryPolicy())
    manifest.begin_run("run", "benchmark", "")
    fill(manifest, instances // (2 * of_series), of_series)
    manifest.end_run(0)
    manifest.close()


def main() -> None:
    """Fill, write, check; print a row each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--instances", type=int, default=1_000_000)
    parser.add_argument("--of-series", type=int, default=25, help="instances of each series; a study has two")
    parser.add_argument("--manifest", type=Path, help="keep the filled manifest here, or take it from here")
    parser.add_argument("--parquet", action="store_true", help="with instances.parquet, which needs pyarrow")
    options = parser.parse_args()
    more = ["--parquet"] if options.parquet else []
    with tempfile.TemporaryDirectory() as name:
        path = options.manifest or Path(name) / "m.db"
        if not path.exists():
            began = time.perf_counter()
            # A process of its own: what it held would count as memory of the processes that are started after it.
            filling = multiprocessing.get_context("spawn").Process(target=filled, args=(path, options.instances, options.of_series))
            filling.start()
            filling.join()
            print(f"filled {options.instances:,} instances in {time.perf_counter() - began:.0f} s, {path.stat().st_size / 2**20:,.0f} MiB")
        folder = Path(name) / "dossier"
        print("| Step | Wall s | CPU s | Memory MiB |\n|---|---|---|---|")
        print("| writing | {:.0f} | {:.0f} | {:.0f} |".format(*measured([sys.executable, "-c", _WRITE, str(path), str(folder), *more])))
        sizes = {file.relative_to(folder).as_posix(): file.stat().st_size / 2**20 for file in folder.rglob("*") if file.is_file()}
        print("| checking | {:.0f} | {:.0f} | {:.0f} |".format(*measured([sys.executable, str(folder / "verify_dossier.py"), str(folder)])))
        print(f"\n{sum(sizes.values()):,.0f} MiB in all: " + ", ".join(f"{file} {size:,.1f}" for file, size in sorted(sizes.items()) if size >= 0.1))


if __name__ == "__main__":
    main()
