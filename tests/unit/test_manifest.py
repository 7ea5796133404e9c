"""The manifest's law, its lock and its version."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from pathlib import Path

import pytest

from migrate.errors import IdentityMismatch, ManifestLocked, ManifestTooNew
from migrate.manifest import Lock, Manifest, decisions
from migrate.manifest.audit import audit
from migrate.manifest.file import open_reader
from migrate.model import (
    DestinationLost,
    Failed,
    Fixity,
    InstanceRef,
    InstanceStaged,
    InstanceStored,
    InstanceVerified,
    Item,
    Proof,
    Receipt,
    Received,
    RetrieveEnded,
    RetryPolicy,
    SeriesPlan,
    StagedLost,
    StudyFound,
    StudyPlanned,
    StudyRef,
)
from tests.filled import IDENTITY


def opened(folder: Path, **identity: str) -> Manifest:
    manifest = Manifest(folder / "m.db", identity=IDENTITY | identity, policy=RetryPolicy(attempts=2, first_wait_s=0))
    manifest.begin_run("run", "op", "")
    return manifest


def outcomes(study: int, sop: int, content: int) -> list[object]:
    ref = InstanceRef(f"1.{study}", f"1.{study}.1", f"1.{study}.1.{sop}")
    fixity = Fixity(100, bytes([content]) * 32, bytes([content]) * 32, content)
    item = Item(ref, fixity)
    who = StudyRef(ref.study)
    return [
        StudyFound(who, "20200101", ("CT",), 3),
        StudyPlanned(who, (SeriesPlan(ref.series, "CT", tuple(f"1.{study}.1.{n}" for n in range(1, 4))),)),
        InstanceStaged(Received(Path(f"/x/{content}"), ref, fixity.rolled, "1.2", "1.2.1", pixel_crc64=content // 2), fixity),
        RetrieveEnded(who, 0),
        InstanceStored(item, Receipt("k")),
        InstanceVerified(item, Proof.ATTESTED),
        StagedLost(item, "gone"),
        DestinationLost(item, False, "gone"),
        DestinationLost(item, True, "differs", file_kept=True),
        Failed(who, "upload", "PutFailed", "no"),
        InstanceStaged(
            Received(Path(f"/q/{content}"), None, fixity.rolled, "", "", quarantine="cut", claimed=(ref.study, ref.series, ref.sop)), fixity
        ),
    ]


def test_the_file_itself_refuses_what_the_law_forbids(tmp_path: Path) -> None:
    """Plain SQL from anyone cannot skip a step, delete a row or change the log."""
    manifest = opened(tmp_path)
    manifest.commit(outcomes(1, 1, 9)[:2])  # type: ignore[arg-type]
    manifest.close()
    plain = sqlite3.connect(tmp_path / "m.db")
    for statement in (
        "UPDATE study SET state = 3", "UPDATE instance SET state = 3, proof = 3", "DELETE FROM instance", "DELETE FROM event",
        "UPDATE event SET kind = 'x'", "DELETE FROM study",
    ):  # fmt: skip
        with pytest.raises(sqlite3.IntegrityError):
            plain.execute(statement)
    plain.close()


def test_another_pacs_or_bucket_is_refused(tmp_path: Path) -> None:
    """The manifest knows which source and destination it is for, as soon as anything of the PACS is in it."""
    manifest = opened(tmp_path)
    manifest.commit([StudyFound(StudyRef("1.2"))])
    manifest.close()
    with pytest.raises(IdentityMismatch):
        opened(tmp_path, source="B@c:2")
    with pytest.raises(IdentityMismatch):
        opened(tmp_path, destination="folder:/y")


def test_a_mistyped_address_can_be_put_right(tmp_path: Path) -> None:
    """While nothing was learnt of any PACS, another source and destination take the place of the first, on record, and every seal holds."""
    opened(tmp_path).close()
    manifest = opened(tmp_path, source="B@c:2", destination="folder:/y")
    now = dict(manifest.execute("SELECT key, value FROM meta WHERE key IN ('source', 'destination')").fetchall())
    told = [detail for (detail,) in manifest.execute("SELECT detail FROM event WHERE kind = 'meta' ORDER BY id")]
    manifest.close()
    assert now == {"source": "B@c:2", "destination": "folder:/y"}
    assert [detail for detail in told if "'source'" in detail] == [f"'source','{IDENTITY['source']}'", "'source','B@c:2'"]
    with contextlib.closing(open_reader(tmp_path / "m.db")) as reader:
        assert audit(reader, "").troubles == []


def test_a_newer_file_is_left_untouched(tmp_path: Path) -> None:
    """Schema 99 is refused and not a byte changes."""
    opened(tmp_path).close()
    plain = sqlite3.connect(tmp_path / "m.db")
    plain.execute("UPDATE meta SET value = '99' WHERE key = 'schema'")
    plain.commit()
    plain.execute("PRAGMA journal_mode=DELETE")
    plain.close()
    before = (tmp_path / "m.db").read_bytes()
    with pytest.raises(ManifestTooNew):
        opened(tmp_path)
    assert (tmp_path / "m.db").read_bytes() == before


def test_the_lock_names_its_holder(tmp_path: Path) -> None:
    """A second lock is refused with host and pid."""
    with Lock(tmp_path / "m.db"), pytest.raises(ManifestLocked, match="pid"):
        Lock(tmp_path / "m.db")


def test_an_acceptance_covers_what_was_never_proven(tmp_path: Path) -> None:
    """A study parked because the store spoils it is accepted with its unproven instances named, and only with them."""
    manifest = opened(tmp_path)
    manifest.commit([*outcomes(1, 1, 9)[:3], *(outcomes(1, sop, 9)[2] for sop in (2, 3)), outcomes(1, 1, 9)[3]])  # type: ignore[list-item, misc]
    for _ in range(2):
        manifest.commit([outcomes(1, 1, 9)[9]])  # type: ignore[list-item]
    assert decisions.accept(manifest, ["1.1"], "the store refuses it", "Dr. Test") == ["1.1"]
    covers = manifest.connection.execute("SELECT covers FROM acceptance").fetchone()[0]
    assert json.loads(covers) == [f"missing:1.1.1.{sop}" for sop in (1, 2, 3)]
    manifest.close()
