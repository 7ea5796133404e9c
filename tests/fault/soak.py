"""Hours of the real thing: migrations from the practice PACS into a real S3 server, both with faults, killed at random again and
again, while a long run beside them must neither leak nor stop. `make soak` runs it for SOAK_MINUTES; the suite for some seconds.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from migrate.dicom.part10 import read_header
from migrate.practice.pacs import PracticePacs
from migrate.practice.studies import Archive
from tests.fault.forked import Ended, Forks
from tests.fault.invariants import Truth, unkept
from tests.ports import free_port
from tests.runs import bucket, configure, truth
from tests.s3_server import ENVIRONMENT, Deed, S3Server, meddling, seaweedfs

MANNERS = ("skip-first", "abort-find", "abort-store", "twice", "early-success", "ff01", "padded-uids", "null-counters", "silent-cap",
           "few-questions")
"""Faults of the PACS that a run recovers from by itself."""
SENDS_MORE = frozenset(("twice", "skip-first", "abort-store"))
RETRY = "attempts = 20\nfirst_wait_s = 0.05\nmax_wait_s = 0.5\nunreachable_s = 20"
ASSOCIATIONS = 2
FIRST, EVERY_MIN = 40_000, "0.5"
"""How many studies the PACS of the long run lists from the start, more than a run ever holds at once (10,000 in a transaction, 2,000 that
wait for it), so that its memory does not follow the list; and how long that run waits between two rounds."""
LONG_SOURCE = 'settle_s = 0.3\nassociations = 1\nmodalities = ["CR", "CT", "MR", "US"]'
WARM_BYTES, WARM_S = 18 << 20, 1200.0
"""A manifest that is larger than this has filled SQLite's page cache (16 MiB); and by then all tables have the size that they come to."""
LONG_ENOUGH_S, MOST_MIB_H = 1800, 1.0
"""Whoever is watched for so long while warm may not grow by more."""
SLICE_S = 600.0
"""Longer than a round takes, also beside other work: the least of such a time is what a process holds when little is under way."""
DEEDS: tuple[tuple[str, Deed], ...] = (
    ("503", (503, b"<Error><Code>SlowDown</Code></Error>")), ("500", (500, b"<Error><Code>InternalError</Code></Error>")),
    ("reset", "reset"), ("drop", "drop"), ("answer lost", "lose"),
)  # fmt: skip


@dataclass
class Sample:
    """The long run's process at one moment."""

    at_s: float
    rss_bytes: int
    threads: int
    descriptors: int
    manifest_bytes: int

    @staticmethod
    def of(pid: int, at_s: float, manifest: Path) -> Sample:
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        return Sample(at_s, int(status["VmRSS"].split()[0]) << 10, int(status["Threads"]), len(os.listdir(f"/proc/{pid}/fd")),
                      manifest.stat().st_size)  # fmt: skip


@dataclass
class Course:
    """How the long run's process went on once it was warm: when its manifest has outgrown SQLite's page cache, and behind the first
    third of the time, and 20 minutes, in which each heap has held once what it ever holds."""

    samples: list[Sample] = field(default_factory=list)

    @property
    def warm(self) -> list[Sample]:
        warm_s = max(max((one.at_s for one in self.samples), default=0.0) / 3, WARM_S)
        return [one for one in self.samples if one.at_s > warm_s and one.manifest_bytes > WARM_BYTES]

    def floor(self) -> list[Sample]:
        """The least of each slice of time of the warm process. What leaks lifts it, and what comes and goes with the work does not hide that:
        all samples together scatter by more than what is looked for."""
        least: dict[int, Sample] = {}
        for one in self.warm:
            part = int(one.at_s / SLICE_S)
            least[part] = min(least.get(part, one), one, key=lambda each: each.rss_bytes)
        return list(least.values())

    def leaks(self) -> list[str]:
        """What grew in a process that was watched for long enough to tell; nothing, always."""
        warm = self.warm
        if not warm or warm[-1].at_s - warm[0].at_s < LONG_ENOUGH_S:
            return []
        found = [f"memory grows by {slope:.2f} MiB/h"] if (slope := slope_mib_h(self.floor())) > MOST_MIB_H else []
        early, late = warm[: len(warm) // 4], warm[-len(warm) // 4 :]
        for name in ("threads", "descriptors"):
            before, after = (max(getattr(one, name) for one in part) for part in (early, late))
            if after > before + 2:
                found.append(f"{before} {name} became {after}")
        return found

    def text(self) -> str:
        warm = self.warm
        if not self.samples:
            return "it was never seen alive"
        if len(warm) < 100:
            end = self.samples[-1]
            return (f"not warm yet, with a manifest of {end.manifest_bytes >> 10} KiB: "
                    f"{end.rss_bytes >> 20} MiB resident, {end.threads} threads, {end.descriptors} descriptors")  # fmt: skip
        quarters = [warm[len(warm) * part // 4 : len(warm) * (part + 1) // 4] for part in range(4)]
        rss = ", ".join(f"{statistics.median(one.rss_bytes for one in part) / (1 << 20):.1f}" for part in quarters)
        spans = [f"{name} {min(values)} to {max(values)}" for name, values in
                 (("threads", [one.threads for one in warm]), ("descriptors", [one.descriptors for one in warm]))]  # fmt: skip
        return (f"warm after {warm[0].at_s / 60:.0f} minutes, then watched for {(warm[-1].at_s - warm[0].at_s) / 60:.0f}: slope of resident memory "
                f"{slope_mib_h(self.floor()):+.2f} MiB/h at its lowest, {slope_mib_h(warm):+.2f} of all samples, which are "
                f"{rss} MiB by quarter in the middle and {max(one.rss_bytes for one in warm) / (1 << 20):.1f} at most, {', '.join(spans)}; the manifest grew to "
                f"{warm[-1].manifest_bytes >> 20} MiB")  # fmt: skip


def slope_mib_h(samples: Sequence[Sample]) -> float:
    """Of the resident memory, by least squares."""
    return statistics.linear_regression([one.at_s for one in samples], [one.rss_bytes for one in samples]).slope * 3600 / (1 << 20)


@dataclass
class Count:
    """What was done and what was seen."""

    migrations: int = 0
    kills: int = 0
    restarts: int = 0
    checks: int = 0
    objects: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    manners: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    course: Course = field(default_factory=Course)
    long_run_verified: int = 0
    long_run_rounds: int = 0

    def text(self) -> str:
        return "\n".join((
            f"migrations that reached their end: {self.migrations}, byte for byte {self.objects} objects",
            f"SIGKILLs: {self.kills}, restarts: {self.restarts}, checks of all promises: {self.checks}, promises broken: {len(self.wrong)}",
            f"faults of the store: {dict(self.faults)}",
            f"manners of the PACS: {dict(self.manners)}",
            f"how runs ended: {dict(self.codes)}",
            f"the long run: {self.long_run_rounds} rounds, {self.long_run_verified} instances verified; {self.course.text()}",
            *(f"BROKEN: {each}" for each in self.wrong),
        ))  # fmt: skip


class Soak:
    """The two lanes: migrations that are killed, and one that is not."""

    def __init__(self, server: S3Server, folder: Path, *, seconds: float, seed: int, studies: int = 25, first: int = FIRST) -> None:
        """`studies` has each migration that is killed; the long run's PACS begins with `first` that are left out, and gets one more a second."""
        self._server, self._folder, self._seconds = server, folder, seconds
        self._dice = random.Random(seed)
        self._studies, self._first = studies, first
        self._began = time.monotonic()
        self.count = Count()

    def _over(self) -> bool:
        return time.monotonic() - self._began >= self._seconds

    def run(self) -> Count:
        """Both, until the time is over and the last migration is at its end."""
        with self._long_run(), Forks() as forks:
            while not self._over() or not self.count.migrations:
                self._migration(forks, self.count.migrations + 1)
        self.count.wrong += self.count.course.leaks()
        return self.count

    # -- migrations that are killed
    def _migration(self, forks: Forks, number: int) -> None:
        folder = self._folder / f"m{number}"
        folder.mkdir()
        archive, receiver, name = Archive(self._studies, self._dice.randrange(1, 9999)), free_port(), self._server.new_bucket(versioned=True)
        known = truth(archive)
        manners = self._dice.sample(MANNERS, self._dice.randrange(3)) if number % 3 else []
        self.count.manners.update(manners)
        with (
            PracticePacs(archive, destinations={"PACSMIGRATE": ("127.0.0.1", receiver)}, faults=manners) as pacs,
            meddling(self._meddle, self._server) as store,
        ):  # fmt: skip
            configure(folder, pacs.port, receiver, source=f"settle_s = 0.3\nassociations = {ASSOCIATIONS}", retry=RETRY, destination=bucket(name, store.endpoint_url))
            kills = 0
            for _ in range(self._dice.randrange(4, 12)):
                ended = self._ended(forks.run(folder, "run", "--json", kill_after_s=self._dice.uniform(0.1, 2.5)), folder, name, known, manners)
                kills += ended.killed
                if ended.code == 0:
                    break
            for _ in range(10):  # an overloaded store may end a run that begins with it
                ended = self._ended(forks.run(folder, "run", "--json"), folder, name, known, manners)
                if ended.code != 21:
                    break
            report = forks.run(folder, "report", "--json")
            sent = pacs.counts["store"]
        self._at_the_end(ended, report, folder, name, known, sent, kills, manners)
        self._server.remove_bucket(name)
        self.count.migrations += 1

    def _meddle(self, method: str, path: str, count: int) -> Deed | None:
        if "/studies/" not in path or self._dice.random() > 0.02:
            return None
        name, deed = self._dice.choice(DEEDS)
        self.count.faults[name] += 1
        return deed

    def _ended(self, ended: Ended, folder: Path, name: str, known: Truth, manners: list[str]) -> Ended:
        """One more run is over: nothing may be wrong now."""
        self.count.restarts += 1
        self.count.kills += ended.killed
        self.count.codes["killed" if ended.killed else "stuck" if ended.code is None else f"exit {ended.code}"] += 1
        self.count.checks += 1
        self.count.wrong += unkept(folder / "manifests" / "test.db", folder / "staging", self._reader(name), known)
        if ended.code is None or "Traceback" in ended.err:
            self.count.wrong.append(f"{folder.name}, {manners}: a run hangs or breaks: {ended.err[-9000:]}")
        return ended

    def _reader(self, name: str) -> Any:
        client = self._server.client()

        def read(key: str) -> bytes | None:
            try:
                return client.get_object(Bucket=name, Key=key)["Body"].read()  # type: ignore[no-any-return]
            except client.exceptions.NoSuchKey:
                return None

        return read

    def _at_the_end(self, ended: Ended, report: Ended, folder: Path, name: str, known: Truth, sent: int, kills: int, manners: list[str]) -> None:
        """The last run and its report say exactly what the generator knows."""
        if ended.code != 0 or json.loads(ended.out)["complete"] is not True:
            said = json.loads(report.out or "{}")
            named = json.dumps([said.get("exceptions"), [each for each in said.get("enumeration", {}).get("suspicious", ()) if each["blocks"]]])
            self.count.wrong.append(f"{folder.name}, {manners}: no end, exit {ended.code}: {ended.err[-500:]}\n{ended.out[-2000:]}\n{named[:4000]}")
            return
        client, found = self._server.client(), {}
        pages = list(client.get_paginator("list_object_versions").paginate(Bucket=name, Prefix="studies/"))
        keys = [each["Key"] for page in pages for each in page.get("Versions", ())]
        for key in keys:
            raw = client.get_object(Bucket=name, Key=key)["Body"].read()
            parts = key.split("/")
            found[parts[1], parts[3], parts[5].removesuffix(".dcm")] = hashlib.sha256(raw[read_header(raw)[3] :]).digest()
        document = json.loads(report.out)
        says = (document["complete"], document["studies"]["migrated"], document["instances"]["verified"], document["exceptions"])
        if says != (True, self._studies, len(known), self._empty(document)):
            self.count.wrong.append(f"{folder.name}: the report says {says[:3]} and {len(says[3])} exceptions")
        if found != dict(known) or len(keys) != len(known):
            self.count.wrong.append(f"{folder.name}: {len(keys)} object versions, {len(known)} images, equal: {found == dict(known)}")
        if left := [path for path in (folder / "staging").rglob("*") if path.is_file()]:
            self.count.wrong.append(f"{folder.name}: left over: {left}")
        largest = max(Counter(study for study, _, _ in known).values())
        if not SENDS_MORE & set(manners) and sent > len(known) + (kills + 1) * ASSOCIATIONS * largest:
            self.count.wrong.append(f"{folder.name}: {sent} images sent for {len(known)} with {kills} kills")
        self.count.objects += len(found)

    @staticmethod
    def _empty(document: Any) -> list[Any]:
        """Studies without any image are listed; nothing else may be."""
        return [entry for entry in document["exceptions"] if entry["error"] == "EmptyAtSource"]

    # -- the run that is not killed
    @contextlib.contextmanager
    def _long_run(self) -> Iterator[None]:
        folder, receiver, port = self._folder / "long", free_port(), free_port()
        folder.mkdir()
        name = self._server.new_bucket()
        configure(folder, port, receiver, source=LONG_SOURCE, retry=RETRY, destination=bucket(name, self._server.endpoint_url))
        words = [sys.executable, "-m", "migrate", "run", "--watch", "--every", EVERY_MIN, "--config", str(folder / "migrate.toml")]
        ending = threading.Event()
        with self._growing_pacs(port, receiver), (folder / "err.txt").open("w") as err:
            process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=err, env=os.environ | ENVIRONMENT)
            watcher = threading.Thread(target=self._watch, args=(process.pid, folder / "manifests" / "test.db", ending))
            watcher.start()
            try:
                yield
            finally:
                ending.set()
                watcher.join()
                if process.poll() is not None:
                    self.count.wrong.append(f"the long run ended by itself: exit {process.returncode}: {(folder / 'err.txt').read_text()[-500:]}")
                process.send_signal(signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(60)
                process.kill()
                if process.wait() not in (130, -signal.SIGKILL) or process.returncode == -signal.SIGKILL:
                    self.count.wrong.append(f"the long run does not stop as it should: exit {process.returncode}")
        status = subprocess.run([sys.executable, "-m", "migrate", "status", "--json", "--config", str(folder / "migrate.toml")], capture_output=True, text=True)
        self.count.long_run_verified = json.loads(status.stdout)["instances"]["verified"]
        self.count.long_run_rounds = (folder / "err.txt").read_text().count("Round ended")

    @contextlib.contextmanager
    def _growing_pacs(self, port: int, receiver: int) -> Iterator[None]:
        most = self._first + int(10 * self._seconds) + 600  # so that it does not end
        words = [sys.executable, "-m", "tests.fault.growing", *map(str, (port, receiver, most, self._first, 1.0))]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None and process.stdout.readline() == "listens\n"
                yield
            finally:
                process.kill()

    def _watch(self, pid: int, manifest: Path, ending: threading.Event) -> None:
        while not ending.wait(min(5.0, self._seconds / 20)):
            with contextlib.suppress(OSError):
                self.count.course.samples.append(Sample.of(pid, time.monotonic() - self._began, manifest))


def main() -> int:
    minutes = float(os.environ.get("SOAK_MINUTES", "60"))
    seed = int(os.environ.get("SOAK_SEED", str(random.SystemRandom().randrange(10_000))))
    os.environ.update(ENVIRONMENT)
    print(f"{minutes:g} minutes, SOAK_SEED={seed}", flush=True)
    with tempfile.TemporaryDirectory() as name, seaweedfs(Path(name) / "store") as server:
        count = Soak(server, Path(name), seconds=60 * minutes, seed=seed, first=int(os.environ.get("SOAK_STUDIES", str(FIRST)))).run()
    print(count.text())
    return 1 if count.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
