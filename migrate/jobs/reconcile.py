"""Lists against the manifest: what a list names is added, or compared in both directions, and what differs is named.

Values that are patient data are in none of the results: a line number stands for them.
"""

from __future__ import annotations

import csv
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from migrate.config import Config
from migrate.errors import Interrupted, UsageError
from migrate.host import stop_signals
from migrate.jobs.command import Command
from migrate.lists.studies import Entry, Key, StudyList
from migrate.manifest import Queue
from migrate.manifest.listed import Standing, count_listed, list_window, standings
from migrate.model import Outcome, StudyState, Window
from migrate.sources.dimse.peer import peer_of
from migrate.sources.dimse.study_list import Answer, ask_list
from migrate.stages.selection import selection

_SETTLED = (StudyState.MIGRATED, StudyState.EXCLUDED, StudyState.ACCEPTED)
NOT_FOUND, FAILED, INVALID, ONLY_MANIFEST = "not found", "failed", "invalid", "only in the manifest"
_COLUMNS = ("line", "value", "result", "study", "state", "error", "detail")


@dataclass(frozen=True, slots=True)
class Line:
    """One row of a result: a study of a list's line, or what is wrong with the line. `value`: a UID, else None."""

    line: int | None
    value: str | None
    result: str
    study: str | None = None
    state: str | None = None
    error: str | None = None
    detail: str | None = None

    def named(self) -> dict[str, Any]:
        """What there is to say, for JSON."""
        return {name: value for name in _COLUMNS if (value := getattr(self, name)) is not None or name in ("line", "value")}


@dataclass
class Result:
    """What became of a list; `agrees` where nothing is left to look at."""

    listed: StudyList
    lines: list[Line] = field(default_factory=list)

    def of(self, *results: str) -> list[Line]:
        return [line for line in self.lines if line.result in results]

    def count(self, *results: str) -> int:
        """How many lines of the list: one with several studies counts once."""
        return len({line.line for line in self.of(*results)})

    def _document(self) -> dict[str, Any]:
        return {
            "key": self.listed.key.value,
            "lines": self.listed.lines + len(self.listed.invalid),
            "values": len(self.listed.entries),
        }

    def _troubles(self) -> dict[str, Any]:
        return {name: [line.named() for line in self.of(result)]
                for name, result in (("not_found", NOT_FOUND), ("failed", FAILED), ("invalid", INVALID))}  # fmt: skip

    def write_csv(self, path: Path) -> None:
        """All rows as CSV. Raises UsageError where the file cannot be written."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(_COLUMNS)
                writer.writerows([getattr(line, name) for name in _COLUMNS] for line in self.lines)
        except OSError as error:
            raise UsageError(f"{path} cannot be written: {error.strerror}.", hint="Name another file.") from error


class Addition(Result):
    """What became of a list that was added: results are added, known, not found, failed, invalid."""

    @property
    def agrees(self) -> bool:
        return not self.of(NOT_FOUND, FAILED, INVALID)

    def document(self) -> dict[str, Any]:
        shown = {line.study: line for line in self.of("added", "known", FAILED) if line.study}
        return self._document() | {
            "found": self.count("added", "known"),
            "studies": len(shown),
            "added": len({line.study for line in self.of("added")}),
            "excluded": sum(line.state == "excluded" for line in shown.values()),
        } | self._troubles()  # fmt: skip


class Comparison(Result):
    """A list beside the manifest: results are both, not in the manifest, only in the manifest, not found, failed, invalid."""

    @property
    def agrees(self) -> bool:
        return not self.open() and not self.of("not in the manifest", ONLY_MANIFEST, NOT_FOUND, FAILED, INVALID)

    def open(self) -> list[Line]:
        """Studies on both sides that are neither migrated nor signed for."""
        settled = {state.name.lower() for state in _SETTLED}
        return [line for line in self.of("both") if line.state not in settled]

    def document(self) -> dict[str, Any]:
        both = {line.study: line.state for line in self.of("both")}
        states = {state.name.lower(): 0 for state in StudyState}
        for state in both.values():
            states[str(state)] += 1
        return self._document() | {
            "equal": self.agrees,
            "both": len(both),
            "states": states,
            "not_migrated": [line.named() for line in self.open()],
            "not_in_manifest": [line.named() for line in self.of("not in the manifest")],
            "only_in_manifest": [line.named() for line in self.of(ONLY_MANIFEST)],
        } | self._troubles()  # fmt: skip


def ask(config: Config, listed: StudyList, connection: sqlite3.Connection) -> Iterator[list[Answer]]:
    """What the PACS shows of each value, heeding the cap that sweeps have learned. Raises as `ask_list`."""
    cap = connection.execute("SELECT value FROM habit WHERE name = 'cap'").fetchone()
    return ask_list(peer_of(config.source, config.receiver), listed, cap=int(cap[0]) if cap else None)


def add_listed(command: Command, listed: StudyList) -> Addition:
    """Ask the PACS for what a list names and add what it shows; nothing is ever taken off, and repeating it is resuming it.

    Raises Interrupted, SourceUnreachable, SourceRefused; what was found until then is on record.
    """
    select = selection(command.config.source)
    window_id = list_window(command.manifest)
    connection = command.manifest.connection
    addition = Addition(listed, invalid(listed))
    stop = threading.Event()
    with stop_signals(stop.set):
        for answers in ask(command.config, listed, connection):
            if stop.is_set():
                raise Interrupted("Stopped; what was found is on record.")
            shown = [study for answer in answers for study in answer.studies]
            uids = [study.study.study for study in shown]
            before = standings(connection, uids)
            chosen = [select(study, Window(None, None, "list"), False) for study in shown]
            found: list[Outcome] = [replace(study, window_id=window_id) for study in chosen if study is not None]
            command.manifest.commit(found)
            command.progress(found)
            addition.lines += added(listed, answers, before, standings(connection, uids))
    count_listed(command.manifest, window_id)
    command.manifest.log("list added", "{found} of {values} values found, {added} studies added".format_map(addition.document()))
    return addition


def added(listed: StudyList, answers: Iterable[Answer], before: dict[str, Standing], after: dict[str, Standing]) -> list[Line]:
    """The rows of some answers, by where their studies stood before and stand now."""
    lines: list[Line] = []
    for answer in answers:
        for study in answer.studies:
            uid = study.study.study
            result = FAILED if answer.error else "known" if uid in before else "added"
            lines.append(_line(listed, answer.entry, result, uid, after.get(uid), answer))
        if not answer.studies:
            lines.append(_line(listed, answer.entry, FAILED if answer.error else NOT_FOUND, None, None, answer))
    return lines


def _line(listed: StudyList, entry: Entry, result: str, study: str | None, standing: Standing | None, answer: Answer | None = None) -> Line:
    state = standing.state.name.lower() if standing else None
    error, detail = (standing.error, standing.detail) if standing else (None, None)
    if answer is not None and answer.error:
        error, detail = answer.error, answer.detail
    return Line(entry.line, listed.shown(entry), result, study, state, error, detail)


def invalid(listed: StudyList) -> list[Line]:
    """The lines of a list that name no study."""
    return [Line(line.line, None, INVALID, detail=line.reason) for line in listed.invalid]


def studies_of(config: Config, listed: StudyList, connection: sqlite3.Connection) -> Iterator[Answer | tuple[Entry, str]]:
    """The studies behind each value: UIDs stand for themselves, all else is asked of the PACS. Raises as `ask_list`."""
    if listed.key is Key.STUDY:
        yield from ((entry, entry.value) for entry in listed.entries)
        return
    for answers in ask(config, listed, connection):
        yield from answers


def compare(config: Config, listed: StudyList) -> Comparison:
    """A list beside the manifest, which is only read. UIDs need no PACS. Raises NoManifest, SourceUnreachable, SourceRefused."""
    queue = Queue(config.manifest)
    try:
        found = list(studies_of(config, listed, queue.connection))
        known = standings(queue.connection)
    finally:
        queue.close()
    comparison = Comparison(listed)
    matched: set[str] = set()
    for each in found:
        if isinstance(each, tuple):
            entry, uid = each
            pairs, answer = [uid], None
        else:
            entry, answer = each.entry, each
            pairs = [study.study.study for study in each.studies]
            if not pairs:
                comparison.lines.append(_line(listed, entry, FAILED if each.error else NOT_FOUND, None, None, each))
        for uid in pairs:
            matched.add(uid)
            failed = answer is not None and answer.error is not None
            result = FAILED if failed else "both" if uid in known else "not in the manifest"
            comparison.lines.append(_line(listed, entry, result, uid, known.get(uid), answer))
    comparison.lines += invalid(listed)
    comparison.lines += [
        Line(None, None, ONLY_MANIFEST, uid, standing.state.name.lower(), standing.error, standing.detail)
        for uid, standing in sorted(known.items()) if uid not in matched
    ]  # fmt: skip
    return comparison


def chosen_studies(config: Config, listed: StudyList, connection: sqlite3.Connection) -> Sequence[str]:
    """The UIDs of every study that a list names. Raises UsageError, naming lines, unless each line names some."""
    uids: list[str] = []
    wrong = [line.line for line in listed.invalid]
    for each in studies_of(config, listed, connection):
        if isinstance(each, tuple):
            uids.append(each[1])
        elif each.error or not each.studies:
            wrong.append(each.entry.line)
        else:
            uids += [study.study.study for study in each.studies]
    if wrong:
        lines = ", ".join(map(str, sorted(wrong)[:20])) + (" ..." if len(wrong) > 20 else "")
        raise UsageError(f"Lines of the list that name no study: {lines}.", hint="Mend or remove them; nothing was done.")
    return list(dict.fromkeys(uids))
