"""Seals: what a page of code makes of docs/proof.md agrees with them, and every change of what they cover is found and named."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from migrate.errors import PacsMigrateError
from migrate.evidence.signing import signature
from migrate.jobs.anchors import Kept, check_signatures
from migrate.manifest import Manifest, decisions
from migrate.manifest.anchored import Anchor, anchor_of, compare, head_of
from migrate.manifest.audit import Audited, audit
from migrate.manifest.file import open_reader
from migrate.manifest.population import Population
from migrate.manifest.roots import KeptRoots, inclusion_proofs, migration_root
from tests import damaged, filled
from tests.proof_reader import proof_holds, recomputed

from migrate.model import (  # isort: skip
    DestinationLost, Failed, HabitLearned, InstanceState, InstanceVerified, Noted, Proof, RetrieveEnded, StagedLost, StudyRef, Window,
    WindowFailed, WindowJudged,
)

MUTATIONS = int(os.environ.get("MUTATIONS", "200"))
SEED = int(os.environ.get("MUTATION_SEED", "1"))
SEALED = {
    "meta": "key, value", "run": "*", "habit": "*", "quarantine": "*", "acceptance": "*", "revocation": "*", "event": "*", "seal": "*",
    "window": "id, sweep, axis, lo, hi, time_lo, time_hi, modality, parent, part_by, purpose, state, row_count, study_count, outside_count, error, "
              "detail, suspicion, blocks, accepted_by, accepted_reason, answered_at",
    # not its id, which is internal: where something refers to it, that is orphaned and named
    "study": "uid, state, date, modalities, claimed_instances, claimed_by_series, time, listed_instances, attempts, error, detail, "
             "found_at, changed_at",
    "series": "*", "instance": "*", "copy": "*", "state_name": "*", "transition": "*", "uid_name": "*",
}  # fmt: skip

USED = {  # rows that nothing refers to claim nothing
    "series": "WHERE id IN (SELECT series_id FROM instance)",
    "uid_name": "WHERE id IN (SELECT sop_class_id FROM instance UNION SELECT transfer_syntax_id FROM instance)",
}


def fill(manifest: Manifest) -> None:
    """Something of everything that a manifest can hold."""
    window = filled.swept(manifest, "1.1", "1.2", "1.3", "1.4", "1.5", claimed=3)
    filled.migrated(manifest, "1.1", "1.1.1.1", "1.1.1.2", "1.1.1.3", proof=Proof.ATTESTED)
    filled.migrated(manifest, "1.2", "1.2.1.1", "1.2.1.2")
    manifest.commit([HabitLearned("cap", "500", "it's a \t tab"), WindowJudged(window, "an odd answer", True)])
    decisions.accept(manifest, [f"w{window}"], "known", "j.doe")
    # a second content, quarantined bytes, something unlisted
    filled.planned(manifest, "1.3", "1.3.1.1", "1.3.1.2", "1.3.1.3")
    strange = filled.received("1.3", "1.3.1.9")
    bad = filled.came(filled.received("1.3", "1.3.1.2", "bad", quarantine="its UIDs are not the command's", claimed=("1.3", "1.3.1", "1.3.1.2")))
    object.__setattr__(bad.received, "ref", None)
    manifest.commit([filled.came(filled.received("1.3", "1.3.1.1")), filled.came(filled.received("1.3", "1.3.1.1", "other")), bad,
                     filled.came(strange), filled.came(filled.received("1.3", "1.3.1.1", "third"))])  # fmt: skip
    manifest.commit([filled.came(filled.received("1.3", "1.3.1.2")), RetrieveEnded(StudyRef("1.3"), 0)])
    copies = [item for item in filled.items(manifest, InstanceState.STAGED) if item.copy]
    manifest.commit([StagedLost(copies[0], "gone")])
    filled.proven(manifest)
    decisions.accept(manifest, ["q1"], "looked at", "j.doe")
    # steps back: proof raised, object lost, another object in its place
    proven = {item.ref.sop: item for _, part in Population(manifest.connection).series() for item in part if not item.copy}
    manifest.commit([InstanceVerified(proven["1.1.1.1"], Proof.READ_BACK), InstanceVerified(proven["1.1.1.2"], Proof.READ_BACK)])
    manifest.commit([DestinationLost(proven["1.1.1.2"], False, "gone"), DestinationLost(proven["1.2.1.1"], True, "other bytes")])
    manifest.commit([filled.came(filled.received("1.2", "1.2.1.1")), RetrieveEnded(StudyRef("1.2"), 0)])
    filled.proven(manifest)
    # decisions
    manifest.commit([Failed(StudyRef("1.4"), "plan", "VanishedAtSource", "gone", retryable=False)])
    decisions.accept(manifest, ["1.4"], "it's a test", "j.doe")
    decisions.revoke(manifest, ["1.4"], "a mistake", "a.roe")
    decisions.exclude(manifest, ["1.5"], "a phantom", "j.doe")
    other = filled.asked(manifest, 2, Window("20210101", "20211231"), Window("20220101", None))
    manifest.commit([WindowFailed(other[0], "SourceRefused", "A700", False), Noted("links", "one line\nand another", "1.1")])
    manifest.end_run(3)
    manifest.begin_run("accept", "a.roe", "")
    manifest.end_run(0)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A closed manifest with something of everything."""
    folder = tmp_path_factory.mktemp("sealed")
    with filled.fresh_manifest(folder) as manifest:
        fill(manifest)
    return folder / "m.db"


def in_memory(file: Path) -> sqlite3.Connection:
    with contextlib.closing(sqlite3.connect(file)) as stored:
        copy = sqlite3.connect(":memory:", isolation_level=None)
        stored.backup(copy)
    return copy


def audited(file: Path) -> Audited:
    with contextlib.closing(open_reader(file)) as reader:
        return audit(reader, "p/")


def test_a_page_of_code_computes_every_seal_from_rows_and_events(file: Path) -> None:
    """From docs/proof.md alone, also the seals over steps that were taken back since."""
    with contextlib.closing(sqlite3.connect(file)) as database:
        sealed = [row[0] for row in database.execute("SELECT lower(hex(sha256)) FROM seal ORDER BY id")]
        kinds = {kind for (kind,) in database.execute("SELECT DISTINCT kind FROM event")}
        copies = {state for (state,) in database.execute("SELECT DISTINCT state FROM copy")}
    assert {"instance fell back", "copy fell back", "proof raised", "instance lies beside", "revocation row", "instance unexpected"} <= kinds
    assert copies == {0, 3}
    assert recomputed(file) == sealed


def test_what_nobody_touched_holds(file: Path) -> None:
    """The audit finds nothing in a manifest that only the tool has written, and counts what it has seen."""
    found = audited(file)
    assert found.troubles == []
    with contextlib.closing(sqlite3.connect(file)) as database:
        assert (found.seals, found.head) == database.execute("SELECT id, sha256 FROM seal ORDER BY id DESC").fetchone()
        assert found.events == database.execute("SELECT max(id) FROM event").fetchone()[0]
        assert found.root == migration_root(database, "p/")


def test_roots_are_kept_until_something_moves(tmp_path: Path) -> None:
    """Only studies that moved are computed again, and the migration's root is the one over all instances, whatever is kept of it."""
    def kept(manifest: Manifest) -> dict[str, int]:
        return dict(manifest.execute("SELECT uid, leaves FROM study_root JOIN study ON study.id = study_id").fetchall())

    def keep(manifest: Manifest) -> None:
        roots = KeptRoots(manifest, "p/")
        while not roots.done:
            roots.some()

    with filled.fresh_manifest(tmp_path) as manifest:
        fill(manifest)
        seals = manifest.one("SELECT count(*) FROM seal")
        computed = migration_root(manifest.connection, "p/")
        keep(manifest)
        assert kept(manifest) == {"1.1": 2, "1.2": 2, "1.3": 4}
        assert (migration_root(manifest.connection, "p/"), manifest.one("SELECT count(*) FROM seal")) == (computed, seals)
        proven = {item.ref.sop: item for _, part in Population(manifest.connection).series() for item in part}
        manifest.commit([DestinationLost(proven["1.1.1.3"], False, "gone"), InstanceVerified(proven["1.2.1.2"], Proof.READ_BACK)])
        assert kept(manifest).keys() == {"1.2", "1.3"}  # what was read back before is proven no better
        manifest.commit([DestinationLost(next(item for item in proven.values() if item.copy), False, "gone")])
        assert kept(manifest).keys() == {"1.2"}
        anew = migration_root(manifest.connection, "p/")
        keep(manifest)
        assert (migration_root(manifest.connection, "p/"), anew.instances) == (anew, computed.instances - 2)
        manifest.execute("DELETE FROM study_root")
        assert migration_root(manifest.connection, "p/") == anew
        keep(manifest)
    assert audited(tmp_path / "m.db").troubles == []
    with contextlib.closing(sqlite3.connect(tmp_path / "m.db", isolation_level=None)) as database:
        database.execute("UPDATE study_root SET leaves = leaves + 1 WHERE study_id = (SELECT id FROM study WHERE uid = '1.2')")
        database.execute("INSERT INTO study_root VALUES (99, 1, zeroblob(32))")
    assert [str(each) for each in audited(tmp_path / "m.db").troubles] == [
        "study 1.2: the root that is kept of it is not that of its instances", "study_root: 1 row belongs to nothing"]


def test_every_image_is_proven_to_be_under_the_root_without_naming_another(file: Path) -> None:
    """A page of code follows the proof of each to the root; a proof in which anything is changed leads elsewhere."""
    with contextlib.closing(open_reader(file)) as reader:
        root = migration_root(reader, "p/")
        sops = [sop for (sop,) in reader.execute("SELECT DISTINCT sop_uid FROM instance WHERE state = 3")]
        proofs = {sop: inclusion_proofs(reader, sop, "p/") for sop in sops}
        assert inclusion_proofs(reader, "1.3.1.3", "p/") == [] == inclusion_proofs(reader, "9.9", "p/")
    assert sum(map(len, proofs.values())) == root.instances > len(sops)  # a copy has a proof of its own
    for sop, each in proofs.items():
        for proof in each:
            assert proof_holds(proof)
            assert proof["root"] == root.sha256.hex()
            assert not any(other in json.dumps(proof) for other in sops if other != sop)
            for name in ("leaf", "study_leaf"):
                assert not proof_holds(proof | {name: proof[name].replace('"1.', '"2.', 1)})
            assert not proof_holds(proof | {"path": [*proof["path"], "00" * 32]})
            assert not proof_holds(proof | {"root": "00" * 32})


# -- changes
Change = Callable[[sqlite3.Connection, random.Random], tuple[str, str]]
"""Changes something; returns what, and a pattern of which the audit must name one."""


def content(database: sqlite3.Connection) -> list[Any]:
    """Everything that is sealed, or follows from it."""
    found = []
    for table, columns in SEALED.items():
        found.append(database.execute(f"SELECT {columns} FROM {table} {USED.get(table, '')} ORDER BY 1, 2").fetchall())
    return [*found, database.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger' ORDER BY name").fetchall()]


@contextlib.contextmanager
def lawless(database: sqlite3.Connection) -> Iterator[None]:
    """As somebody writes who knows how: without triggers, checks and foreign keys, and all is in place again afterwards."""
    triggers = database.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
    for name, _ in triggers:
        database.execute(f"DROP TRIGGER {name}")
    database.execute("PRAGMA foreign_keys = OFF")
    database.execute("PRAGMA ignore_check_constraints = ON")
    yield
    database.execute("PRAGMA ignore_check_constraints = OFF")
    for _, sql in triggers:
        database.execute(sql)


def some_table(database: sqlite3.Connection, chance: random.Random) -> tuple[str, dict[str, Any], str]:
    """A table, a row of it, and what finds the row again."""
    table = chance.choice([table for table in SEALED if database.execute(f"SELECT count(*) FROM {table}").fetchone()[0]])
    keys = [row[1] for row in database.execute(f"PRAGMA table_info({table})") if row[5]]
    cursor = database.execute(f"SELECT * FROM {table} ORDER BY {', '.join(keys)}")
    rows = cursor.fetchall()
    row = dict(zip([column[0] for column in cursor.description], chance.choice(rows), strict=True))
    return table, row, " AND ".join(f"{key} = {literal(row[key])}" for key in keys)


def literal(value: Any) -> str:
    return str(sqlite3.connect(":memory:").execute("SELECT quote(?)", (value,)).fetchone()[0])


def place_of(database: sqlite3.Connection, table: str, row: dict[str, Any]) -> str:
    """A pattern for what names that row."""
    def seal(event: int) -> int:
        return int(database.execute("SELECT coalesce(min(id), 0) FROM seal WHERE last_event >= ?", (event,)).fetchone()[0])

    def study(condition: str) -> str:
        return "|".join(re.escape(uid) for (uid,) in database.execute(f"SELECT uid FROM study WHERE id IN ({condition})")) or "belong to nothing"

    match table:
        case "event":
            return rf"\bevents? {row['id']}\b|seal {seal(row['id'])}\b|under no seal"
        case "study":
            return re.escape(row["uid"])
        case "series":
            return study(str(row["study_id"]))
        case "instance" | "copy":
            return study(f"SELECT study_id FROM series WHERE id = {row['series_id']}")
        case "meta":
            return f"meta {row['key']}"
        case "habit":
            return f"habit {row['name']}"
        case "window" | "quarantine":
            return rf"\b{table[0]}{row['id']}\b"
        case "seal":
            return rf"seal {row['id']}\b|under no seal"
        case "run" | "acceptance" | "revocation":
            return rf"{table} {row['id']}\b"
        case "uid_name":
            return r"seal \d"
        case _:
            return table


def alter(database: sqlite3.Connection, chance: random.Random) -> tuple[str, str]:
    """Another value of the same kind in one column of one row."""
    table, row, where = some_table(database, chance)
    place = place_of(database, table, row)
    column = chance.choice([name for name in row if SEALED[table] == "*" or name in SEALED[table].split(", ")])
    old = row[column]
    kind = next(each[2] for each in database.execute(f"PRAGMA table_info({table})") if each[1] == column)
    new: Any = None
    if old is None or chance.random() < 0.8:
        if kind == "INTEGER":
            new = chance.choice((0, 1, 2, 3, 4, 7, (old or 0) + 1, -5))
        else:
            new = chance.randbytes(32) if kind == "BLOB" else chance.choice((f"{old or ''}1", "1.2", "x", ""))
    with contextlib.suppress(sqlite3.IntegrityError):  # another row has that value, or it may not be NULL
        database.execute(f"UPDATE {table} SET {column} = {literal(new)} WHERE {where}")
    return f"{table} {row}: {column} = {new!r}", place


def delete(database: sqlite3.Connection, chance: random.Random) -> tuple[str, str]:
    """One row less."""
    table, row, where = some_table(database, chance)
    place = place_of(database, table, row)
    database.execute(f"DELETE FROM {table} WHERE {where}")
    return f"{table} {row}: deleted", place


def add(database: sqlite3.Connection, chance: random.Random) -> tuple[str, str]:
    """One row more, much like another."""
    table, row, _ = some_table(database, chance)
    if "id" in row:
        row["id"] = database.execute(f"SELECT max(id) + 1 FROM {table}").fetchone()[0]
    for name in ("uid", "sop_uid", "key", "name", "file"):
        if row.get(name):
            row[name] += "7"
    with contextlib.suppress(sqlite3.IntegrityError):
        database.execute(f"INSERT INTO {table}({', '.join(row)}) VALUES ({', '.join(map(literal, row.values()))})")
    return f"{table} {row}: added", place_of(database, table, row)


def swap(database: sqlite3.Connection, chance: random.Random) -> tuple[str, str]:
    """Two rows of the log, of the chain or of the instances change places, but for their keys."""
    table, keys = chance.choice((("event", ("id",)), ("seal", ("id",)), ("instance", ("series_id", "sop_uid")), ("copy", ("series_id", "sop_uid"))))
    cursor = database.execute(f"SELECT * FROM {table} ORDER BY {', '.join(keys)}")
    names = [column[0] for column in cursor.description]
    one, other = chance.sample(cursor.fetchall(), 2)
    place = place_of(database, table, dict(zip(names, one, strict=True)))
    columns = [name for name in names if name not in keys and not (table == "copy" and name == "dataset_sha256")]
    for here, there in ((one, other), (other, one)):
        mine, theirs = dict(zip(names, here, strict=True)), dict(zip(names, there, strict=True))
        sets = ", ".join(f"{name} = {literal(theirs[name])}" for name in columns)
        database.execute(f"UPDATE {table} SET {sets} WHERE {' AND '.join(f'{key} = {literal(mine[key])}' for key in keys)}")
    return f"{table}: {one} and {other} swapped", place


def cut(database: sqlite3.Connection, chance: random.Random) -> tuple[str, str]:
    """The newest seals are gone, or the newest events, or both together as far as that goes without touching rows."""
    seals, events = chance.choice(((1, 0), (0, 1), (1, 1)))
    last = database.execute("SELECT max(id) FROM seal").fetchone()[0] - chance.randrange(1, 20)
    event = database.execute("SELECT last_event FROM seal WHERE id = ?", (last,)).fetchone()[0]
    if seals:
        database.execute("DELETE FROM seal WHERE id > ?", (last,))
    if events:
        database.execute("DELETE FROM event WHERE id > ?", (event,))
    return f"cut after seal {last}, event {event}: seals {seals}, events {events}", r"\bevents? \d|under seal \d|run \d"


CHANGES: tuple[Change, ...] = (alter, alter, alter, delete, add, swap, cut)


@pytest.mark.parametrize("change", ["ended_at = 1, exit_code = 0", "exit_code = 0", "ended_at = ended_at + 1"])
def test_a_run_that_is_said_to_have_ended_otherwise_is_found(tmp_path: Path, change: str) -> None:
    """No seal covers how a run ended but by its event: a run that failed, or was killed, cannot be made one that went well."""
    with filled.fresh_manifest(tmp_path) as manifest:
        if "= 1," not in change:
            manifest.end_run(3)
    with contextlib.closing(in_memory(tmp_path / "m.db")) as database:
        assert audit(database, "p/").troubles == []
        with lawless(database):
            database.execute(f"UPDATE run SET {change}")
        assert "run 1: its end is not the one on record" in "\n".join(map(str, audit(database, "p/").troubles))


def test_every_change_of_what_is_sealed_is_found(file: Path) -> None:
    """Random changes by somebody who drops the triggers first and puts them back; `make mutations` makes 10,000."""
    original = in_memory(file)
    before = content(original)
    made = 0
    for number in range(MUTATIONS):
        chance = random.Random(SEED * 1_000_000 + number)
        changed = sqlite3.connect(":memory:", isolation_level=None)
        original.backup(changed)
        with lawless(changed):
            said, place = chance.choice(CHANGES)(changed, chance)
        if content(changed) != before:
            made += 1
            found = "\n".join(map(str, audit(changed, "p/").troubles))
            assert re.search(place, found), f"change {number}: {said}\nexpected {place}, said:\n{found or 'nothing'}"
        changed.close()
    original.close()
    assert made > MUTATIONS * 0.8


def test_flipped_bits_and_cut_files_are_found(file: Path, tmp_path: Path) -> None:
    """Any bit of the file may flip and any end be missing: what is sealed is unchanged, or the audit says that it is not."""
    raw = file.read_bytes()
    with contextlib.closing(in_memory(file)) as original:
        before = content(original)
    spoilt = tmp_path / "m.db"
    harmless = 0
    for number in range(MUTATIONS // 3):
        chance = random.Random(SEED * 2_000_000 + number)
        bytes_now = bytearray(raw)
        if chance.random() < 0.1:
            del bytes_now[chance.randrange(len(raw)) :]
        else:
            bytes_now[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
        spoilt.write_bytes(bytes_now)
        for left in tmp_path.glob("m.db-*"):
            left.unlink()
        try:
            found: list[Any] = list(audited(spoilt).troubles)
        except PacsMigrateError as error:
            found = [error]
        if not found:
            with contextlib.closing(sqlite3.connect(spoilt)) as now:
                assert content(now) == before, f"change {number}"
            harmless += 1
    assert harmless < MUTATIONS // 3 * 0.9  # unused pages, free space within pages, indexes that are made anew


# -- roll-backs and anchors
@dataclasses.dataclass(frozen=True)
class Moment:
    """A manifest as it was once, what the audit finds in it by itself, and the anchor that was left then."""

    database: sqlite3.Connection
    audited: Audited
    anchor: Anchor

    def told(self, anchors: dict[str, Anchor]) -> list[str]:
        assert self.audited.troubles == []
        return [str(each) for each in compare(self.database, anchors.items(), self.audited.root)[0]]


def moment(file: Path) -> Moment:
    database = in_memory(file)
    head, root = head_of(database), migration_root(database, "p/")
    assert head is not None
    return Moment(database, audit(database, "p/"), Anchor("m", head, root, (f"manifest/{head.name}.db.gz", "ab" * 32, 4711)))


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[list[Moment], list[Moment]]]:
    """A manifest at five moments; and older copies of it with which somebody went on, as if nothing had come after them."""
    folder = tmp_path_factory.mktemp("grown")
    moments, forked = [], []
    for number in range(5):
        with filled.fresh_manifest(folder) as manifest:
            filled.swept(manifest, f"1.{number}")
            filled.migrated(manifest, f"1.{number}", *(f"1.{number}.1.{sop}" for sop in range(number + 1)))
        moments.append(moment(folder / "m.db"))
        other = folder / f"forked{number}"
        other.mkdir()
        shutil.copy(folder / "m.db", other / "m.db")
        with filled.fresh_manifest(other) as manifest:
            for study in range(number, 6):
                filled.swept(manifest, f"2.{study}")
                filled.migrated(manifest, f"2.{study}", f"2.{study}.1.1")
        forked.append(moment(other / "m.db"))
    yield moments, forked[:-1]
    for each in (*moments, *forked):
        each.database.close()


def changed(anchor: Anchor, chance: random.Random, *, newest: bool) -> Anchor:
    """Another number, time, hash, root or count."""
    head, root = anchor.head, anchor.root
    assert root is not None
    flipped = bytes(byte ^ (1 << chance.randrange(8) if place == 0 else 0) for place, byte in enumerate(head.sha256))
    more = chance.choice((-1, 1, 7, 1000))
    heads = (dataclasses.replace(head, number=max(head.number + more, 0)), dataclasses.replace(head, at_ms=head.at_ms + more),
             dataclasses.replace(head, sha256=flipped))  # fmt: skip
    roots = (dataclasses.replace(root, sha256=flipped), dataclasses.replace(root, studies=root.studies + more),
             dataclasses.replace(root, instances=root.instances + more))  # fmt: skip
    if newest and chance.random() < 0.5:  # the root of an older one can be compared with nothing any more
        return dataclasses.replace(anchor, root=chance.choice(roots))
    return dataclasses.replace(anchor, head=chance.choice(heads))


def test_roll_backs_and_changed_anchors_are_found(grown: tuple[list[Moment], list[Moment]]) -> None:
    """An older manifest in the place of the newest, with which somebody may have gone on, and an anchor that says something else: an anchor is named."""
    moments, forked = grown
    anchors = {each.anchor.head.name: each.anchor for each in moments}
    assert moments[-1].told(anchors) == []
    for number in range(MUTATIONS):
        chance = random.Random(SEED * 3_000_000 + number)
        what = chance.choice(("older", "forked", "anchor"))
        if what == "anchor":
            name = chance.choice(list(anchors))
            anchor = changed(anchors[name], chance, newest=name == moments[-1].anchor.head.name)
            found, places = moments[-1].told(anchors | {name: anchor}), [name]
        else:
            at = chance.randrange(len(forked))
            newer = {each.anchor.head.name: each.anchor for each in chance.sample(moments[at + 1 :], chance.randint(1, len(moments) - 1 - at))}
            found, places = (moments if what == "older" else forked)[at].told(newer), list(newer)
        assert [each for each in found if any(place in each for place in places)] == found != [], f"change {number}: {what} {places}\n{found}"


def test_every_changed_byte_of_a_signed_anchor_is_found(grown: tuple[list[Moment], list[Moment]], tmp_path: Path) -> None:
    """Flipped bits and cuts in an anchor or in its signature, and the signature of another anchor, by ssh-keygen itself."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(tmp_path / "key")], check=True)
    (tmp_path / "signers").write_text(f"somebody {(tmp_path / 'key.pub').read_text()}")
    documents = [each.anchor.document() for each in grown[0]]
    sound = [Kept(anchor_of(each).head.name, each, signature(each, tmp_path / "key"), anchor_of(each)) for each in documents]
    assert check_signatures(sound, "m", tmp_path / "m.db", tmp_path / "signers") == ([], ["5 anchors are signed by somebody."])
    for number in range(MUTATIONS // 20):
        chance = random.Random(SEED * 4_000_000 + number)
        at = chance.randrange(len(sound))
        document, signed = documents[at], sound[at].signature or b""
        kind = chance.choice(("document", "document", "signature", "cut", "another's"))
        if kind == "document":
            place = chance.randrange(len(document))
            document = document[:place] + bytes([document[place] ^ 1 << chance.randrange(8)]) + document[place + 1 :]
        elif kind == "cut":
            document = document[: chance.randrange(len(document))]
        elif kind == "signature":
            signed = damaged.other_signature(signed, chance)
        else:
            signed = sound[at - 1].signature or b""
        anchor = None
        with contextlib.suppress(ValueError):
            anchor = anchor_of(document)
        found, _ = check_signatures([Kept(sound[at].name, document, signed, anchor)], "m", tmp_path / "m.db", tmp_path / "signers")
        assert [each.place for each in found] == [f"anchor {sound[at].name}"], f"change {number}: {kind}"
