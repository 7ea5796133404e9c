"""What both benchmarks share: made-up files, processes whose CPU time is read, turns that alternate, a table."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
ROOT = "1.2.826.0.1.3680043.8.498"
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Shape:
    """So many objects of this size, in a study of their own, or spread over `parts` studies whose UIDs begin with it."""

    count: int
    size_bytes: int
    study: str
    parts: int = 1

    def __str__(self) -> str:
        size = self.size_bytes
        return f"{self.count:,} x {size >> 20} MiB" if size >= 1 << 20 else f"{self.count:,} x {size >> 10} KiB"

    @property
    def total_bytes(self) -> int:
        return self.count * self.size_bytes

    @property
    def studies(self) -> list[str]:
        """The UIDs of the studies."""
        return [self.study] if self.parts == 1 else [f"{self.study}.{part}" for part in range(self.parts)]


@dataclass(frozen=True, slots=True)
class Turn:
    """One tool, once: wall seconds, CPU seconds of its own processes, and both of what is timed apart."""

    wall_s: float
    cpu_s: float
    apart_s: float = 0.0
    apart_cpu_s: float = 0.0


def shapes(scale: float, parts: int = 1) -> list[Shape]:
    """CT-like, small and enhanced multi-frame objects; `scale` cuts the number of objects (at least one a study), not their size."""
    sizes = ((2000, 512 << 10), (4000, 24 << 10), (4, 512 << 20))
    return [Shape(max(parts, round(n * scale)), size, f"{ROOT}.9.{at}", parts) for at, (n, size) in enumerate(sizes, 1)]


def make_files(folder: Path, shape: Shape) -> list[Path]:
    """Write the files of a shape, random pixels inside; nobody's data."""
    folder.mkdir(parents=True)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = SECONDARY_CAPTURE
    dataset = Dataset()
    dataset.SOPClassUID, dataset.PatientID, dataset.PatientName = SECONDARY_CAPTURE, "BENCH", "BENCH"
    dataset.Modality = "OT"
    dataset.Rows, dataset.Columns, dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 64, 64, 8, 8, 7
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    dataset.NumberOfFrames = shape.size_bytes // 4096
    files = []
    for number in range(1, shape.count + 1):
        study = shape.studies[number % shape.parts]
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, f"{study}.1"
        dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID = f"{study}.1.{number}"
        dataset.PixelData = os.urandom(shape.size_bytes // 4096 * 4096)
        dataset.file_meta = meta
        files.append(folder / f"{number}.dcm")
        pydicom.dcmwrite(files[-1], dataset, enforce_file_format=True)
    return files


def cpu_s_of(pid: int) -> float:
    """User and system seconds of a process, its threads and the children it has waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:15]) / _TICKS_PER_S


def children_cpu_s() -> float:
    """User and system seconds of all processes that this one has started and waited for."""
    times = os.times()
    return times.children_user + times.children_system


def timed_run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Turn:
    """Run a command to its end. Raises RuntimeError with what it said if it fails."""
    before, began = children_cpu_s(), time.monotonic()
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        env={**os.environ, **(environment or {})},
    )
    wall_s, cpu_s = time.monotonic() - began, children_cpu_s() - before
    if done.returncode:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {done.stdout[-500:]}{done.stderr[-1500:]}")
    return Turn(wall_s, cpu_s)


@contextlib.contextmanager
def serving(command: Sequence[str], ready: Callable[[], bool], log: Path) -> Iterator[int]:
    """A server process, up when the context begins; yields its process id."""
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    try:
        give_up = time.monotonic() + 30
        while not ready():
            if process.poll() is not None or time.monotonic() > give_up:
                raise RuntimeError(f"{command[0]} does not answer: {log.read_text(errors='replace')[-1500:]}")
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.05)
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def alternate(tools: Mapping[str, Callable[[], Turn]], rounds: int) -> dict[str, list[Turn]]:
    """Every tool once a round, each round beginning with another one, the disk at rest before each turn."""
    turns: dict[str, list[Turn]] = defaultdict(list)
    names = list(tools)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            os.sync()
            turns[name].append(tools[name]())
    return turns


def report(shape: Shape, turns: Mapping[str, list[Turn]], apart: str = "") -> None:
    """Print medians; ratios are to the first tool in the same round, then the median of those. Above 1 is slower."""
    first = next(iter(turns.values()))
    for name, own in turns.items():
        wall_s = statistics.median(turn.wall_s for turn in own)
        ratios = sorted(a.wall_s / b.wall_s for a, b in zip(own, first, strict=True))
        line = f"| {shape!s} | {name} | {wall_s:.2f} | {shape.total_bytes / wall_s / 1e6:,.0f} | {shape.count / wall_s:,.0f} "
        line += f"| {statistics.median(turn.cpu_s for turn in own):.2f} "
        line += f"| {statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f}) |"
        if apart:
            whole = statistics.median(a.wall_s / (b.wall_s + b.apart_s) for a, b in zip(own, first, strict=True))
            apart_s, cpu_s = (statistics.median(times) for times in zip(*((t.apart_s, t.apart_cpu_s) for t in own), strict=True))
            line += f" {apart_s:.2f} | {cpu_s:.2f} | - |" if apart_s else f" - | - | {whole:.2f} |"
        print(line, flush=True)


def heading(apart: str = "") -> None:
    columns = ["Objects", "Tool", "Wall s", "MB/s", "Objects/s", "CPU s", "Wall, ours = 1"]
    if apart:
        columns += [f"{apart} s", f"{apart} CPU s", f"Wall, ours with {apart.lower()} = 1"]
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns), flush=True)


def arguments(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--scale", type=float, default=0.1, help="share of the objects of each shape (default 0.1)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each tool (default 3)")
    parser.add_argument("--folder", type=Path, help="where the data goes meanwhile (default: the temporary folder)")
    return parser


def put_away(folder: Path) -> None:
    """Empty what lies below and move it aside until the end, instead of removing it.

    Where ext4 has no journal, making a file costs a look at every inode that was removed a minute ago or less: up to a
    millisecond, for whoever comes next.
    """
    for path in folder.rglob("*"):
        if path.is_file():
            os.truncate(path, 0)
    away = folder.parent / "away"
    away.mkdir(exist_ok=True)
    folder.rename(Path(tempfile.mkdtemp(dir=away)) / folder.name)


@contextlib.contextmanager
def work_folder(below: Path | None) -> Iterator[Path]:
    """A folder for the data, removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="benchmark-", dir=below))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
