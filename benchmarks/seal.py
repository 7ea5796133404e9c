"""What sealing costs: batches of facts as a run commits them, with seals and without, on this disk; and how many bytes of a manifest
an instance takes where UIDs are as long as they may be. `python -m benchmarks.seal [FOLDER]`.
"""

from __future__ import annotations

import hashlib
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from migrate.manifest import Manifest

from migrate.model import (  # isort: skip
    Fixity, InstanceRef, InstanceStaged, InstanceStored, InstanceVerified, Item, Proof, Receipt, Received, RetrieveEnded, RetryPolicy,
    SeriesPlan, StudyPlanned, StudyRef,
)

STUDIES, INSTANCES = 40, 500


class NoSeals:
    """Stands in for the sealer."""

    number = 1

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


def facts(more: str = "") -> list[list[Any]]:
    """Transactions of a run over 20,000 instances, in the order in which they come. `more`: makes UIDs longer."""
    batches: list[list[Any]] = []
    for study in range(STUDIES):
        uid = f"1.2.840.99999.{study}.1234567890.123{more}"
        series = f"{uid}.1"
        sops = [f"{series}.{number}.9876543210" for number in range(INSTANCES)]
        items = [Item(InstanceRef(uid, series, sop), _fixity(sop)) for sop in sops]
        batches.append([StudyPlanned(StudyRef(uid), (SeriesPlan(series, "CT", tuple(sops)),))])
        staged = [
            InstanceStaged(Received(Path("/x"), item.ref, item.fixity.rolled, "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.1", (), pixel_crc64=item.fixity.crc64nvme), item.fixity)
            for item in items
        ]  # fmt: skip
        batches.append([*staged, RetrieveEnded(StudyRef(uid), 0)])
        batches.append([InstanceStored(item, Receipt("k", "v" * 32)) for item in items])
        batches.append([InstanceVerified(item, Proof.ATTESTED) for item in items])
    return batches


def _fixity(text: str) -> Fixity:
    digest = hashlib.sha256(text.encode()).digest()
    return Fixity(524_288, digest, digest, 2**63 + 5)


def measure(folder: Path, *, sealed: bool) -> float:
    """Seconds for all commits."""
    path = folder / "m.db"
    manifest = Manifest(path, identity={"source": "a", "destination": "b", "migration": "c"}, policy=RetryPolicy())
    manifest.begin_run("run", "operator", "0" * 64)
    if not sealed:
        manifest.sealer = NoSeals()  # type: ignore[assignment]
    begun = time.perf_counter()
    for batch in facts():
        manifest.commit(batch)
    took = time.perf_counter() - begun
    manifest.connection.close()
    return took


def sizes(folder: Path) -> None:
    """Print the bytes an instance of the largest tables, with SOP Instance UIDs of 60 to 64 characters and versions of 32."""
    manifest = Manifest(folder / "m.db", identity={"source": "a", "destination": "b", "migration": "c"}, policy=RetryPolicy())
    manifest.begin_run("run", "operator", "0" * 64)
    for batch in facts(".20200101123456"):
        manifest.commit(batch)
    manifest.checkpoint(0)
    instances, longest = manifest.one("SELECT count(*), max(length(sop_uid)) FROM instance")
    print(f"{instances:,} instances, UIDs of up to {longest} characters; bytes an instance (of these unused):")
    rows = manifest.execute("SELECT name, sum(pgsize), sum(unused) FROM dbstat GROUP BY name ORDER BY 2 DESC").fetchall()
    for name, size, unused in [*rows[:4], ("all", sum(row[1] for row in rows), sum(row[2] for row in rows))]:
        print(f"  {name:<10} {size / instances:6.1f} ({unused / instances:.1f})")
    manifest.close()


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path()
    taken: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(5):
        for sealed in (False, True):
            scratch = Path(tempfile.mkdtemp(dir=folder))
            taken[sealed].append(measure(scratch, sealed=sealed))
            shutil.rmtree(scratch)
    steps = STUDIES * INSTANCES * 3
    without, with_seals = statistics.median(taken[False]), statistics.median(taken[True])
    with tempfile.TemporaryDirectory(dir=folder) as scratch_name:
        sizes(Path(scratch_name))
    print(f"{steps / without:,.0f} steps/s without seals, {steps / with_seals:,.0f} with: {(with_seals - without) / with_seals:.1%} of a commit's time")


if __name__ == "__main__":
    main()
