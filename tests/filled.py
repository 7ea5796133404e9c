"""Real manifests filled with facts, and what the reports make of them."""

from __future__ import annotations

import contextlib
import html
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from migrate.manifest import Manifest, Queue
from migrate.manifest.file import open_reader
from migrate.reports import report, write_report

from migrate.model import (  # isort: skip
    Fixity, InstanceRef, InstanceStaged, InstanceState, InstanceStored, InstanceVerified, Item, PartBy, Proof, Receipt, Received,
    RetrieveEnded, RetryPolicy, SeriesPlan, StudyFound, StudyPlanned, StudyRef, Window, WindowAnswered, WindowsPlanned,
)

IDENTITY = {"source": "A@127.0.0.1:1", "destination": "folder:/x", "migration": "m"}
HOSTILE = "<script>document.title='owned'</script>"


@contextlib.contextmanager
def fresh_manifest(folder: Path, host: str | None = None) -> Iterator[Manifest]:
    """An empty manifest whose work is parked at the first failure; `host` is the machine that it is on."""
    opened = Manifest(
        folder / "m.db",
        identity={"source": "a", "destination": "b", "migration": HOSTILE},
        policy=RetryPolicy(attempts=1),
    )
    opened.begin_run("run", "op", "", host=host)
    yield opened
    opened.close()


def fixity(text: str) -> Fixity:
    seed = text.encode().ljust(32, b"x")[:32]
    return Fixity(100, seed, seed, 2**63 + 5)


def received(study: str, sop: str, content: str = "", **more: object) -> Received:
    return Received(Path(f"/x/{sop}{content}"), InstanceRef(study, f"{study}.1", sop), fixity(sop + content).rolled, "1.1", "1.2", **more)  # type: ignore[arg-type]


def came(received: Received) -> InstanceStaged:
    rolled = received.rolled
    return InstanceStaged(received, Fixity(rolled.size_bytes, rolled.dataset_sha256, rolled.dataset_sha256, rolled.crc64nvme))


def swept(manifest: Manifest, *studies: str, claimed: int | None = None) -> int:
    """A sweep of one window that shows these studies; its number is the run's closing sweep."""
    sweep = manifest.one("SELECT coalesce(max(sweep), 0) + 1 FROM window")[0]
    manifest.commit([WindowsPlanned(sweep, (Window("20200101", "20201231"),))])
    window = manifest.one("SELECT max(id) FROM window")[0]
    found = [StudyFound(StudyRef(uid), "20200505", ("CT",), claimed, window) for uid in studies]
    manifest.commit([*found, WindowAnswered(window, len(studies))])
    manifest.set_meta("closed_sweep", str(sweep))
    return window


def planned(manifest: Manifest, study: str, *sops: str, notes: tuple[str, ...] = ()) -> None:
    manifest.commit([StudyPlanned(StudyRef(study), (SeriesPlan(f"{study}.1", "CT", sops),) if sops else (), notes)])


def items(manifest: Manifest, state: InstanceState) -> list[Item]:
    queue = Queue(manifest.path)
    try:
        return [
            item
            for _, part in (*queue.items(state, skip_series=set(), limit=99), *queue.copies(state, skip_series=set()))
            for item in part
        ]
    finally:
        queue.close()


def proven(manifest: Manifest, proof: Proof = Proof.READ_BACK) -> None:
    staged = items(manifest, InstanceState.STAGED)
    manifest.commit([InstanceStored(item, Receipt("k")) for item in staged])
    manifest.commit([InstanceVerified(item, proof) for item in staged])


def migrated(manifest: Manifest, study: str, *sops: str, proof: Proof = Proof.READ_BACK) -> None:
    planned(manifest, study, *sops)
    manifest.commit([*(came(received(study, sop)) for sop in sops), RetrieveEnded(StudyRef(study), 0)])
    proven(manifest, proof)


def read(manifest: Manifest, question: Callable[..., Any] = report, *words: Any, **more: Any) -> Any:
    """What the report, or another question, says to one who only reads."""
    with contextlib.closing(open_reader(manifest.path)) as reader:
        return question(reader, *words, **more)


def written(manifest: Manifest, folder: Path) -> Path:
    return Path(read(manifest, write_report, folder))


def verdict(page: Path) -> str:
    text = page.read_text(encoding="utf-8")
    return html.unescape(text.partition('id="verdict">')[2].partition("</p>")[0])


def in_browser(page: Path, profile: Path, *more: str) -> str:
    """The DOM as Chromium has it once the page is loaded."""
    program = shutil.which("chromium")
    assert program, "Chromium comes with the test peers"
    arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", f"--user-data-dir={profile}"]
    done = subprocess.run([program, *arguments, *more, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout


def asked(manifest: Manifest, sweep: int, *windows: Window, parent: int | None = None, by: PartBy | None = None, **more: Any) -> list[int]:
    """Windows as planned; their numbers."""
    before = manifest.one("SELECT coalesce(max(id), 0) FROM window")[0]
    manifest.commit([WindowsPlanned(sweep, windows, parent, by, **more)])
    return [number for (number,) in manifest.execute("SELECT id FROM window WHERE id > ? ORDER BY id", before)]


def answered(manifest: Manifest, window: int, *studies: tuple[str, str | None]) -> None:
    """The window's answer: (study, date) each."""
    found = [StudyFound(StudyRef(uid), date, ("CT",), None, window) for uid, date in studies]
    manifest.commit([*found, WindowAnswered(window, len(studies))])
