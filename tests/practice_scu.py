"""DCMTK's findscu and movescu asking the practice PACS, and what came of it."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydicom

from migrate.dicom.part10 import read_header
from migrate.practice.pacs import PracticePacs
from migrate.practice.records import StudyRecord
from migrate.practice.studies import Archive
from tests.dicom_peers import HOST, PeerServer, run

ARCHIVE = Archive(20)
STUDIES = list(ARCHIVE)
TRUTH = {sop: sha256 for _, _, sop, sha256 in ARCHIVE.truth()}
TITLE = "PRACTICE"

_numbers = itertools.count()


def find(
    pacs: PracticePacs, folder: Path, level: str, *keys: str, model: str = "-S", options: tuple[str, ...] = ()
) -> tuple[list[pydicom.Dataset], str]:
    """(the rows that DCMTK's findscu got, what it said)."""
    rows = folder / f"rows{next(_numbers)}"
    rows.mkdir()
    arguments = [part for key in (f"QueryRetrieveLevel={level}", *keys) for part in ("-k", key)]
    command = ["findscu", "-v", model, "-X", "-od", rows, *options, "-aec", TITLE, *arguments, HOST, pacs.port]
    done = run(*(str(part) for part in command), ok=False)
    answers = [pydicom.dcmread(path, force=True) for path in sorted(rows.glob("rsp*.dcm"))]
    return answers, done.stdout + done.stderr


@dataclass
class Moved:
    """What came of a movescu: what it said, and the SOP UIDs that storescp has got meanwhile."""

    said: str
    got: set[str] = field(default_factory=set)


def move(
    pacs: PracticePacs,
    receiver: PeerServer,
    level: str,
    *keys: str,
    to: str = "DEST",
    model: str = "-S",
    options: tuple[str, ...] = (),
    known: dict[str, bytes] = TRUTH,
) -> Moved:
    for path in receiver.folder.iterdir():
        path.unlink()
    arguments = [part for key in (f"QueryRetrieveLevel={level}", *keys) for part in ("-k", key)]
    command = ["movescu", "-d", model, *options, "-aec", TITLE, "-aem", to, *arguments, HOST, str(pacs.port)]
    done = run(*command, ok=False)
    pacs.drain()
    return Moved(done.stdout + done.stderr, arrived(receiver, known))


def arrived(receiver: PeerServer, known: dict[str, bytes]) -> set[str]:
    """SOP UIDs of the files at the receiver, each checked to hold exactly the bytes that are known."""
    found = set()
    for path in receiver.folder.iterdir():
        data = path.read_bytes()
        _, sop, _, offset = read_header(data)
        assert known[sop] == hashlib.sha256(data[offset:]).digest()
        found.add(sop)
    return found


def sops(study: StudyRecord) -> set[str]:
    return {image.sop for series in study.series for image in series.instances}


def moved(pacs: PracticePacs, receiver: PeerServer, study: StudyRecord, **more: Any) -> Moved:
    return move(pacs, receiver, "STUDY", f"StudyInstanceUID={study.uid}", **more)


def modalities(row: pydicom.Dataset) -> tuple[str, ...]:
    value = row.ModalitiesInStudy or ()
    return (value,) if isinstance(value, str) else tuple(value)
