"""Everything that is sealed is computed again from the manifest alone, and what differs is named. Reads only, takes no lock."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from migrate.counted import counted
from migrate.evidence.merkle import Tree, study_entry
from migrate.manifest.announcements import KIND, announced
from migrate.manifest.audit_schema import as_made, schema_of
from migrate.manifest.audit_study import STUDY_ROW, Study, differs
from migrate.manifest.roots import NO_ROOT, Root, study_root
from migrate.manifest.sealed import lines_taken_back, literals, quoted, rows_of
from migrate.manifest.seals import FIRST, event_line, head_line
from migrate.model import INSTANCE_TRANSITIONS, STUDY_TRANSITIONS

_MOST_NAMED = 5  # studies behind one seal that does not hold
_WINDOW = ("id", "sweep", "axis", "lo", "hi", "time_lo", "time_hi", "modality", "length(patient)", "length(accession)", "parent", "part_by",
           "purpose", "state", "row_count", "study_count", "outside_count", "error", "detail", "suspicion", "blocks", "accepted_by",
           "accepted_reason", "answered_at")  # fmt: skip
_TALLIES = "SELECT uid, expected, staged, stored, verified, waiting_bytes, verified_bytes FROM series WHERE study_id = ?"


@dataclass(frozen=True, slots=True)
class RowEvents:
    """A table whose rows are put on record whole by events of one kind; the first literal is the key."""

    table: str
    kind: str
    columns: tuple[str, ...]
    name: Callable[[Any], str]


_ROWS = (
    RowEvents("meta", "meta", ("key", "value"), lambda key: f"meta {key}"),
    RowEvents("run", "run row", ("id", "verb", "operator", "host", "pid", "version", "sqlite_version", "config_sha256", "started_at"),
              lambda key: f"run {key}"),
    RowEvents("window", "window row", _WINDOW, lambda key: f"window w{key}"),
    RowEvents("habit", "habit", ("name", "value", "detail", "learned_at"), lambda key: f"habit {key}"),
    RowEvents("quarantine", "file quarantined", ("id", "file", "reason", "claimed", "size_bytes", "lower(hex(file_sha256))"),
              lambda key: f"quarantined file q{key}"),
    RowEvents("acceptance", "acceptance row", ("id", "covers", "code", "reason", "accepted_by", "role", "accepted_at"),
              lambda key: f"acceptance {key}"),
    RowEvents("revocation", "revocation row", ("id", "acceptance_id", "reason", "revoked_by", "role", "revoked_at"),
              lambda key: f"revocation {key}"),
)  # fmt: skip
_BY_KIND = {each.kind: each for each in _ROWS}


@dataclass(frozen=True, slots=True)
class Trouble:
    """One place where something is not as it was sealed."""

    place: str
    what: str

    def __str__(self) -> str:
        return f"{self.place}: {self.what}"


@dataclass(slots=True)
class Audited:
    """What was computed again, and what did not hold."""

    seals: int = 0
    events: int = 0
    studies: int = 0
    instances: int = 0  # with a step under a seal, copies included
    head: bytes = FIRST
    root: Root = NO_ROOT
    troubles: list[Trouble] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Seal:
    number: int
    run_id: int | None
    at: int
    last_event: int
    steps: int
    sha256: bytes


@dataclass(slots=True)
class _Open:
    """A seal that is being computed again."""

    digest: Any
    steps: int = 0
    studies: list[str] = field(default_factory=list)


def audit(connection: sqlite3.Connection, prefix: str) -> Audited:
    """Compute all of it again, in one read transaction. `prefix`: that of the object keys."""
    connection.text_factory = lambda raw: raw.decode("utf-8", "backslashreplace")
    connection.execute("PRAGMA temp_store = MEMORY")
    auditor = _Auditor(connection, prefix)
    try:
        with auditor.reading("file"):
            connection.execute("BEGIN")
        auditor.work()
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    return auditor.audited


class _Auditor:
    def __init__(self, connection: sqlite3.Connection, prefix: str) -> None:
        self._connection, self._prefix = connection, prefix
        self.audited = Audited()
        self._seals: list[_Seal] = []
        self._open: dict[int, _Open] = {}
        self._rows: dict[str, dict[Any, str]] = {each.kind: {} for each in _ROWS}  # the last event of each row
        self._row_of: dict[str, dict[Any, tuple[Any, ...]]] = {"acceptance row": {}, "revocation row": {}, "file quarantined": {}}
        self._ended: dict[int, tuple[int, str]] = {}
        self._signed_files: dict[Any, str] = {}

    def say(self, place: str, what: str) -> None:
        self.audited.troubles.append(Trouble(place, what))

    @contextlib.contextmanager
    def reading(self, place: str) -> Iterator[None]:
        """What cannot be read as a manifest is one more trouble."""
        try:
            yield
        except (sqlite3.Error, ValueError, TypeError, AttributeError, OverflowError, LookupError) as error:
            self.say(place, f"holds what cannot be read: {type(error).__name__}: {error}")

    def work(self) -> None:
        for place, step in (("file", self._intact), ("schema", self._schema), ("seals", self._read_seals), ("events", self._events),
                            ("rows", self._compare_rows), ("studies", self._walk), ("seals", self._compare_seals)):  # fmt: skip
            with self.reading(place):
                step()

    def _intact(self) -> None:
        for (line,) in self._connection.execute("PRAGMA integrity_check(20)"):
            if line != "ok":
                self.say("file", f"SQLite finds it damaged: {line}")

    # -- the law itself
    def _schema(self) -> None:
        """Triggers, tables, states and steps are those of this version."""
        (ours, names), (theirs, found_names) = as_made(), schema_of(self._connection)
        for name, sql in ours.items():
            if theirs.get(name) != sql:
                self.say(name, "is not as this version makes it" if name in theirs else "is missing")
        for name in theirs:
            if name not in ours and name.startswith(("trigger ", "view ")):
                self.say(name, "was added")
        if found_names != names:
            self.say("state_name", "is not as this version makes it")
        law = {("study", int(a), int(b)) for a, b in STUDY_TRANSITIONS} | {("instance", int(a), int(b)) for a, b in INSTANCE_TRANSITIONS}
        for entity, a, b in sorted(set(self._connection.execute("SELECT * FROM transition").fetchall()) ^ law):
            self.say("transition", f"{entity} {a} to {b} was {'removed' if (entity, a, b) in law else 'added'}")

    # -- seals and events
    def _read_seals(self) -> None:
        self._seals = [_Seal(*row) for row in self._connection.execute("SELECT id, run_id, at, last_event, steps, sha256 FROM seal ORDER BY id")]
        expected, last_event = 1, 0
        for seal in self._seals:
            if seal.number != expected:
                self.say(f"seal {expected}", "is missing" if seal.number == expected + 1 else f"is missing, up to seal {seal.number - 1}")
            if seal.last_event < last_event:
                self.say(f"seal {seal.number}", f"ends at event {seal.last_event}, before the seal before it")
            expected, last_event = seal.number + 1, max(last_event, seal.last_event)
        self.audited.seals = len(self._seals)
        if self._seals:
            self.audited.head = self._seals[-1].sha256

    def _events(self) -> None:
        """One walk through the log: the first part of each seal, and what rows were last put on record as."""
        runs = {row[0]: row for row in self._connection.execute("SELECT id, operator, host, version FROM run")}
        self._connection.execute("CREATE TEMP TABLE found(uid TEXT PRIMARY KEY, at INTEGER, detail TEXT, event INTEGER) WITHOUT ROWID")
        seals = iter(self._seals)
        before = FIRST
        seal: _Seal | None = None
        upcoming = next(seals, None)
        expected, unsealed = 1, 0

        def begin(upto: int) -> None:
            """Open every seal whose events begin before that event."""
            nonlocal seal, upcoming, before
            while upcoming is not None and (seal is None or seal.last_event < upto):
                seal, upcoming = upcoming, next(seals, None)
                run = runs.get(seal.run_id) if seal.run_id is not None else (None, None, None, None)
                if run is None:
                    self.say(f"run {seal.run_id}", f"is missing, though seal {seal.number} names it")
                    run = (seal.run_id, None, None, None)
                digest = hashlib.sha256(before + (head_line(seal.number, seal.at, *run) + "\n").encode())
                self._open[seal.number] = _Open(digest)
                before = seal.sha256

        for row in self._connection.execute("SELECT id, at, run_id, kind, study_uid, series_uid, sop_uid, detail FROM event ORDER BY id"):
            number = row[0]
            if number != expected:
                gap = f"event {expected}" if number == expected + 1 else f"events {expected} to {number - 1}"
                self.say(gap, "missing")
            expected = number + 1
            begin(number)
            if seal is not None and number <= seal.last_event:
                self._open[seal.number].digest.update((event_line(row) + "\n").encode())
            else:
                unsealed += 1
            self._note(row)
        begin(1 << 62)
        self.audited.events = expected - 1
        if self._seals and self._seals[-1].last_event > expected - 1:
            self.say(f"events {expected} to {self._seals[-1].last_event}", "missing")
        if unsealed:
            self.say(f"events {expected - unsealed} to {expected - 1}", "are under no seal: something wrote past the tool, or seals were cut off")

    def _note(self, row: Sequence[Any]) -> None:
        number, at, run_id, kind, study, series, sop, detail = row
        if kind == KIND:
            try:
                rows = [(uid, at, literals_, number) for uid, literals_ in announced(detail or "")]
            except ValueError:
                self.say(f"event {number}", "says nothing that can be read")
                return
            self._connection.executemany("INSERT OR IGNORE INTO found VALUES (?, ?, ?, ?)", rows)
        elif kind in _BY_KIND:
            try:
                key = literals(detail or "")[0]
            except (ValueError, IndexError):
                self.say(f"event {number}", "says nothing that can be read")
                return
            self._rows[kind][key] = detail
            if kind in self._row_of:
                self._row_of[kind][key] = (study, series, sop, at)
        elif kind == "run ended":
            self._ended[run_id] = (at, detail)
        elif kind == "quarantine row":
            self._signed_files[literals(detail)[0]] = detail

    # -- rows that events speak for
    def _compare_rows(self) -> None:
        for each in _ROWS:
            on_record = self._rows[each.kind]
            seen = set()
            for row in self._connection.execute(f"SELECT {', '.join(each.columns)} FROM {each.table}"):
                key = row[0]
                seen.add(key)
                if key not in on_record:
                    self.say(each.name(key), "stands in no event: it was added")
                else:
                    differs(self.say, each.name(key), each.columns, on_record[key], row)
            for key in sorted(on_record.keys() - seen, key=str):
                self.say(each.name(key), "is gone, though an event tells of it")
        for number, ended_at, code in self._connection.execute("SELECT id, ended_at, exit_code FROM run"):
            said = self._ended.get(number)
            if (said or (None, None)) != ((ended_at, f"exit {code}") if ended_at is not None else (None, None)):
                self.say(f"run {number}", f"its end is not the one on record ({'none' if said is None else said[1]})")
        for number, *uids in self._connection.execute("SELECT id, study_uid, series_uid, sop_uid, received_at FROM quarantine"):
            if number in self._row_of["file quarantined"] and tuple(uids) != self._row_of["file quarantined"][number]:
                self.say(f"quarantined file q{number}", "its UIDs or its time are not those on record")
        for number, by, reason in self._connection.execute("SELECT id, accepted_by, accepted_reason FROM quarantine"):
            if self._signed_files.get(number, quoted(number, None, None)) != quoted(number, by, reason):
                self.say(f"quarantined file q{number}", "its acceptance is not the one on record")
        for number, study, sop in self._connection.execute("SELECT acceptance.id, uid, sop_uid FROM acceptance LEFT JOIN study ON study.id = study_id"):
            said_of = self._row_of["acceptance row"].get(number)
            if said_of is not None and (said_of[0], said_of[2]) != (study, sop):
                self.say(f"acceptance {number}", f"is for another study or instance than on record ({said_of[0]})")

    # -- instances
    def _walk(self) -> None:
        """One walk through studies by UID: the steps of each seal in their order, the Merkle tree, and what events say of each study."""
        tree, proven = Tree(), 0
        for study in self._studies():
            rows = rows_of(self._connection, study.id)
            log = self._log(study.uid)
            lines = [line for row in rows for line in row.lines(study.uid)]
            for number, kind, _, series, sop, detail in log:
                if kind in ("instance fell back", "copy fell back", "proof raised"):
                    try:
                        lines += lines_taken_back(study.uid, series, sop, detail)
                    except ValueError:
                        self.say(f"event {number}", "holds no step that can be read")
            self._add(study.uid, lines)
            with self.reading(f"study {study.uid}"):
                study.compare(self.say, rows, log)
            with self.reading(f"study {study.uid}"):
                leaves, root = study_root(study.uid, rows, self._prefix)
                if leaves:
                    tree.add(study_entry(study.uid, leaves, root))
                if study.kept not in ((None, None), (leaves, root)):
                    self.say(f"study {study.uid}", "the root that is kept of it is not that of its instances")
                proven += leaves
            self.audited.studies += 1
            self.audited.instances += sum(row.state > 0 for row in rows)
        self.audited.root = Root(tree.root(), tree.leaves, proven)
        for uid in self._connection.execute("SELECT uid FROM found WHERE uid NOT IN (SELECT uid FROM study)").fetchall():
            self.say(f"study {uid[0]}", "is gone, though an event tells of it")
        for table, key in (("series", "study_id IN (SELECT id FROM study)"), ("instance", "series_id IN (SELECT id FROM series)"),
                           ("copy", "series_id IN (SELECT id FROM series)"), ("study_root", "study_id IN (SELECT id FROM study)")):  # fmt: skip
            for (count,) in self._connection.execute(f"SELECT count(*) FROM {table} WHERE NOT {key}"):
                if count:
                    self.say(table, f"{counted(count, 'row belongs', 'rows belong')} to nothing")

    def _studies(self) -> Iterator[Study]:
        columns = ", ".join(STUDY_ROW)
        for row in self._connection.execute(f"SELECT id, uid, state, found_at, changed_at, found_event, leaves, sha256, {columns} FROM study LEFT JOIN study_root ON study_id = id ORDER BY uid"):
            found = self._connection.execute("SELECT at, detail FROM found WHERE uid = ? AND event = ?", (row[1], row[5])).fetchone()
            tallies = self._connection.execute(_TALLIES, (row[0],)).fetchall()
            yield Study(row[0], row[1], row[2], row[3], row[4], row[6:8], row[8:], found, tallies)

    def _log(self, study: str) -> list[tuple[Any, ...]]:
        """(id, kind, time, series, SOP, detail) of the study's own events."""
        question = "SELECT id, kind, at, series_uid, sop_uid, detail FROM event WHERE study_uid = ? ORDER BY id"
        return self._connection.execute(question, (study,)).fetchall()

    def _add(self, study: str, lines: list[tuple[int, str]]) -> None:
        lines.sort(key=lambda each: each[1])
        for number, line in lines:
            seal = self._open.get(number)
            if seal is None:
                self.say(f"instance {line.split(chr(9))[3]} of study {study}", f"a step of it is under seal {number}, which is not there")
                continue
            seal.digest.update((line + "\n").encode())
            seal.steps += 1
            if len(seal.studies) <= _MOST_NAMED and seal.studies[-1:] != [study]:
                seal.studies.append(study)

    def _compare_seals(self) -> None:
        first = 1
        for seal in self._seals:
            again = self._open.get(seal.number)
            if again is None:
                self.say(f"seal {seal.number}", "could not be computed again, because the log could not be read to its end")
                continue
            if again.digest.digest() != seal.sha256 or again.steps != seal.steps:
                counted = "" if again.steps == seal.steps else f" {again.steps} of {seal.steps} steps are there."
                studies = ", ".join(again.studies[:_MOST_NAMED]) + (" and others" if len(again.studies) > _MOST_NAMED else "")
                over = f"events {first} to {seal.last_event}" if seal.last_event >= first else "no event"
                over += f", {seal.steps} steps" + (f" of studies {studies}" if studies else "")
                self.say(f"seal {seal.number}", f"of {time_of(seal.at)} does not hold over run {seal.run_id}, {over}: one of them, or the seal "
                                                f"or the one before it, was changed.{counted}")  # fmt: skip
            first = seal.last_event + 1


def time_of(at_ms: int) -> str:
    """A time for people."""
    return datetime.datetime.fromtimestamp(at_ms / 1000, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if 0 <= at_ms < 1 << 47 else str(at_ms)

