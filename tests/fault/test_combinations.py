"""Two misdeeds of the PACS, one of the store and a SIGKILL in one migration, drawn by lot: whatever comes of it, nothing false is claimed.

What the generator knows is the judge: which images the PACS has, under which UIDs and with which bytes. `COMBINATIONS=N` takes other than four
lots, `COMBINATION_SEED=N` another first one; a seed repeats its lot.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from migrate.dicom.part10 import read_header
from migrate.failpoints import POINTS
from migrate.model import InstanceRef, is_uid, object_key
from migrate.practice.faults import FAULTS, OF_STUDIES
from migrate.practice.pacs import PracticePacs
from migrate.practice.studies import Archive
from tests.fault.forked import Ended, Forks
from tests.fault.invariants import unkept
from tests.fault.test_canaries import CANARIES
from tests.fault.test_store_misdeeds import refusal, wrong_checksum, xml
from tests.ports import free_port
from tests.runs import bucket, configure
from tests.s3_server import Asked, Deed, S3Server, meddling

LOTS = int(os.environ.get("COMBINATIONS", "4"))
FIRST = int(os.environ.get("COMBINATION_SEED", "0"))
STUDIES = 11

VALUES = {"many-classes": ("=20",), "huge-image": ("=20",), "drip": ("=0.2",), "late-stores": ("=0.6",), "skip-first": ("", "=2"), "abort-store": ("", "=2"),
          "move-status": ("=A702", "=A900", "=B000", "=C001", "=FE00", "=0110")}  # fmt: skip
ELSEWHERE = frozenset(("many-images", "stops-sending", "new-studies", "slow-answers", "hang-find"))
"""Faults that take long, or whose whole run is judged by another test."""
OF_A_STUDY = sorted(f"{name}{value}" for name in OF_STUDIES - ELSEWHERE for value in VALUES.get(name, ("",)))
OF_ALL = sorted(FAULTS.keys() - OF_STUDIES - ELSEWHERE)
ANY_BYTES = frozenset(("rewrites-headers", "other-bytes"))
"""What makes several contents of an image true."""

Meddle = Callable[[str, str, int], Deed | None]


@dataclass
class Store:
    """What the store does: to all requests by chance, or to one object; `spoilt` are the keys of objects that are not sound there."""

    dice: random.Random
    victim: str
    server: S3Server
    bucket: str
    spoilt: set[str] = field(default_factory=set)
    puts: int = 0

    def fine(self, method: str, key: str, count: int) -> Deed | None:
        return None

    def storm(self, method: str, key: str, count: int) -> Deed | None:
        self.puts += method == "PUT"
        return (503, xml("SlowDown")) if method == "PUT" and 2 < self.puts <= 9 else None

    def flaky(self, method: str, key: str, count: int) -> Deed | None:
        deeds: tuple[Deed, ...] = ("reset", "drop", "lose", (500, b"" if method == "HEAD" else xml("InternalError")))
        return self.dice.choice(deeds) if self.dice.random() < 0.15 else None

    def forgets(self, method: str, key: str, count: int) -> Deed | None:
        return (200, b"") if (method, key) == ("PUT", self.victim) else None

    def loses_its_answers(self, method: str, key: str, count: int) -> Deed | None:
        return "lose" if method == "PUT" and count == 1 else None

    def shows_late(self, method: str, key: str, count: int) -> Deed | None:
        return (404, b"") if method == "HEAD" and count == 1 else None

    def lies_of_checksums(self, method: str, key: str, count: int) -> Deed | None:
        return wrong_checksum if (method, key) == ("HEAD", self.victim) else None

    def rots(self, method: str, key: str, count: int) -> Deed | None:
        if (method, key) == ("HEAD", self.victim) and self.victim not in self.spoilt:
            client = self.server.client()
            with contextlib.suppress(client.exceptions.NoSuchKey):
                raw = client.get_object(Bucket=self.bucket, Key=key)["Body"].read()
                client.put_object(Bucket=self.bucket, Key=key, Body=raw[: len(raw) // 2])
                self.spoilt.add(key)
        return None

    def is_taken(self, method: str, key: str, count: int) -> Deed | None:
        if not self.spoilt:
            self.spoilt.add(self.victim)
            self.server.client().put_object(Bucket=self.bucket, Key=self.victim, Body=b"somebody else's")
        return None

    def is_refused_for_a_while(self, method: str, key: str, count: int) -> Deed | None:
        self.puts += method == "PUT"
        return refusal(403, "AccessDenied", method) if method == "PUT" and 3 <= self.puts < 5 else None

    def fails_for_one(self, method: str, key: str, count: int) -> Deed | None:
        return (500, xml("InternalError")) if (method, key) == ("PUT", self.victim) else None


DEEDS = tuple(name for name in vars(Store) if callable(getattr(Store, name)) and not name.startswith("_"))


@dataclass
class Lot:
    """One combination, its migration, and what is wrong with it: nothing."""

    seed: int
    folder: Path
    server: S3Server
    wrong: list[str] = field(default_factory=list)
    codes: list[int | None] = field(default_factory=list)
    complete: bool = False

    def __post_init__(self) -> None:
        dice = random.Random(self.seed)
        self.folder.mkdir()
        shapes = {number: tuple((dice.choice(("CT", "MR", "CR")), dice.randint(1, 4)) for _ in range(dice.randint(1, 2))) for number in range(STUDIES) if number != 4}
        self.archive = Archive(STUDIES, dice.randrange(1, 9999), pixels=16, shapes=shapes, more=CANARIES)
        first = dice.choice([number for number in shapes if number])
        self.struck = (first, dice.choice((first, dice.choice(list(shapes)))))
        aimed = [f"{fault}@{study or 1}" for fault, study in zip(dice.sample(OF_A_STUDY, 2), self.struck, strict=True)]
        self.faults = dice.choice((aimed, [aimed[0], dice.choice(OF_ALL)]))
        self.deed = dice.choice(DEEDS)
        self.kill: dict[str, Any] = dice.choice(({"kill_after_s": dice.uniform(0.3, 3)}, {"failpoint": f"{dice.choice(list(POINTS))}:kill:{dice.randint(1, 6)}"}))
        study = self.archive.study(self.struck[0])
        series = dice.choice(study.series)
        victim = object_key(InstanceRef(study.uid, series.uid, dice.choice(series.instances).sop), "")
        self.store = Store(dice, victim, self.server, self.server.new_bucket(versioned=True))
        self.client = self.server.client()
        self.asked: list[Asked] = []
        self.said: list[bytes] = []

    def __str__(self) -> str:
        return f"seed {self.seed}: {', '.join(self.faults)}; the store {self.deed.replace('_', ' ')}; {self.kill}; runs ended with {self.codes}"

    def live(self, forks: Forks) -> None:
        """A run that is killed, and then as many as it takes; all promises are looked at after each, and the rest at the end."""
        receiver = free_port()
        with (
            PracticePacs(self.archive, destinations={"PACSMIGRATE": ("127.0.0.1", receiver)}, faults=self.faults) as pacs,
            meddling(self._meddle, self.server, self.asked) as store,
        ):
            configure(self.folder, pacs.port, receiver, source="associations = 3\nsettle_s = 0.3\nstall_s = 1\nattempt_s = 4",
                      destination=bucket(self.store.bucket, store.endpoint_url),
                      retry="attempts = 2\nfirst_wait_s = 0.05\nmax_wait_s = 0.1\nunreachable_s = 20")  # fmt: skip
            before = self._held(pacs)
            self._ended(forks.run(self.folder, "run", "-vv", "--json", **self.kill), before | self._held(pacs))
            for _ in range(6):
                ended = self._ended(forks.run(self.folder, "run", "-vv", "--json"), before | self._held(pacs))
                if ended.code in (0, 3):
                    break
            else:
                self.wrong.append(f"no end: {ended.err[-400:]}")
            report = forks.run(self.folder, "report", "-vv", "--json")
            forks.run(self.folder, "report", "-vv", "--dossier", str(self.folder / "dossier"))
            held = self._held(pacs)
        self._judge(ended, json.loads(report.out), before | held, held)

    def _held(self, pacs: PracticePacs) -> dict[tuple[str, str, str], bytes]:
        """What the PACS has now, but for what vanished; no digest where several contents are true."""
        vague = {self.archive.study(number).uid for fault, number in self._aimed() if fault in ANY_BYTES}
        found = {(study, series, sop): b"" if study in vague else digest for study, series, sop, digest in pacs.holdings.truth()}
        return {uids: digest for uids, digest in found.items() if uids[0] not in pacs.holdings.vanished and is_uid(uids[2])}

    def _aimed(self) -> Iterator[tuple[str, int]]:
        for fault in self.faults:
            name, at, number = fault.partition("@")
            if at:
                yield name.partition("=")[0], int(number)

    def _meddle(self, method: str, path: str, count: int) -> Deed | None:
        key = path.removeprefix(f"/{self.store.bucket}/")
        deed: Meddle = getattr(self.store, self.deed)
        return deed(method, key, count) if key.startswith("studies/") else None

    def _read(self, key: str) -> bytes | None:
        try:
            return self.client.get_object(Bucket=self.store.bucket, Key=key)["Body"].read()  # type: ignore[no-any-return]
        except self.client.exceptions.NoSuchKey:
            return None

    def _ended(self, ended: Ended, known: dict[tuple[str, str, str], bytes]) -> Ended:
        self.codes.append(ended.code)
        self.said += [ended.out.encode(), ended.err.encode()]
        broken = unkept(self.folder / "manifests" / "test.db", self.folder / "staging", self._read, {uids: digest for uids, digest in known.items() if digest})
        self.wrong += [f"after exit {ended.code}: {each}" for each in broken]
        if ended.code not in (0, 3, 20, 21, -9) or "Traceback" in ended.err or "defect" in ended.err:
            self.wrong.append(f"exit {ended.code}: {ended.err[-2000:]}")
        return ended

    def _judge(self, ended: Ended, report: Any, known: dict[tuple[str, str, str], bytes], held: dict[tuple[str, str, str], bytes]) -> None:
        versions = self._versions()
        sound = self._sound(versions, known)
        self.complete = report["complete"]
        if (ended.code == 0) is not report["complete"]:
            self.wrong.append(f"exit {ended.code}, complete: {report['complete']}")
        lacking = held.keys() - sound
        named = {(entry["study"], sop) for entry in report["exceptions"] for sop in (*entry["missing"], *entry["conflict"])}
        whole = {entry["study"] for entry in report["exceptions"] if entry["state"] != "migrated"}
        if report["complete"] and lacking:
            self.wrong.append(f"complete without {sorted(lacking)}")
        unseen = lacking if any(each["blocks"] for each in report["enumeration"]["suspicious"]) else set()  # whom a window may hide
        unseen = {uids for uids in unseen if uids[0] not in {study for study, _, _ in sound}}
        if unnamed := {uids for uids in lacking - unseen if (uids[0], uids[2]) not in named and uids[0] not in whole}:
            self.wrong.append(f"not named: {sorted(unnamed)}")
        if report["instances"]["verified"] > len(sound):
            self.wrong.append(f"{report['instances']['verified']} verified, {len(sound)} sound")
        if touched := {key: count for key, count in Counter(versions).items() if count > 1 + (key in self.store.spoilt)}:
            self.wrong.append(f"overwritten: {touched}")
        harm = [one for one in self.asked if "/studies/" in one.path and (one.method == "DELETE" or (one.method in ("PUT", "COMPLETE") and not one.create_only))]
        self.wrong += [f"harm: {one}" for one in harm]
        self.wrong += [f"left in staging: {path}" for path in (self.folder / "staging").rglob("*") if path.is_file() and "quarantine" not in path.parts] if report["complete"] else []
        self.wrong += [f"heard: {place}: {word!r}" for place, word in self._heard(versions)]

    def _versions(self) -> list[str]:
        """The key of each version of an object of a study; a delete marker counts as harm."""
        pages = list(self.client.get_paginator("list_object_versions").paginate(Bucket=self.store.bucket, Prefix="studies/"))
        self.wrong += [f"deleted: {each['Key']}" for page in pages for each in page.get("DeleteMarkers", ())]
        return [each["Key"] for page in pages for each in page.get("Versions", ())]

    def _sound(self, keys: list[str], known: dict[tuple[str, str, str], bytes]) -> set[tuple[str, str, str]]:
        """The images of which true bytes stand under their key, or beside it."""
        found = set()
        for key in set(keys):
            parts = key.split("/")
            uids = parts[1], parts[3], parts[5].removesuffix(".dcm").partition("~")[0]
            raw = self._read(key) or b""
            with contextlib.suppress(Exception):  # what the store spoilt need not be DICOM
                digest = hashlib.sha256(raw[read_header(raw)[3] :]).digest()
                if known.get(uids, digest) in (b"", digest):
                    found.add(uids)
                elif key not in self.store.spoilt and "~" not in key:
                    self.wrong.append(f"other bytes: {key}")
        return found

    def _heard(self, keys: list[str]) -> list[tuple[str, str]]:
        """Where a canary, a name, an ID or a birth date of the archive is to be seen, but in images."""
        words = {"CANARY", *(text for study in self.archive for text in (*study.patient_name.split("^"), study.patient_id, study.birth_date))}
        with contextlib.closing(sqlite3.connect(self.folder / "manifests" / "test.db")) as manifest:  # days that were asked for are no birth dates
            words -= {day for bounds in manifest.execute("SELECT lo, hi FROM window") for day in bounds}
        words -= {study.date for study in self.archive}
        paths = [path for path in self.folder.rglob("*") if path.is_file()]
        places = {"said": b"\n".join(self.said), "keys": repr(keys).encode(), "names": repr(paths).encode()}
        places["metadata"] = repr([self.client.head_object(Bucket=self.store.bucket, Key=key) for key in set(keys)]).encode()
        places |= {str(path): path.read_bytes() for path in paths if "staging" not in path.parts}
        return [(place, word) for place, raw in places.items() for word in words if word.encode() in raw]


@pytest.mark.timeout(0)
def test_nothing_false_is_claimed(server: S3Server, tmp_path: Path) -> None:
    """Every promise holds after every run; a migration is complete only with every image that the PACS has; what is lacking is named,
    what stands at the destination stays, nobody's name is heard."""
    lots: list[Lot] = []
    with Forks() as forks:
        for seed in range(FIRST, FIRST + LOTS):
            lot = Lot(seed, tmp_path / f"{seed}", server)
            lots.append(lot)
            lot.live(forks)
            print(lot, *lot.wrong, sep="\n    ", flush=True)
    print(f"{len(lots)} lots, {sum(lot.complete for lot in lots)} complete, {sum(-9 in lot.codes for lot in lots)} killed; {sum(len(lot.codes) for lot in lots)} runs")
    assert [f"{lot}: {each}" for lot in lots for each in lot.wrong] == []
