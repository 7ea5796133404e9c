"""What the log says of one study, against its rows."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from migrate.manifest.sealed import Row, literals, quoted
from migrate.manifest.seals import text
from migrate.model import STUDY_TRANSITIONS, InstanceState, StudyState

STUDY_ROW = ("date", "time", "modalities", "claimed_instances", "claimed_by_series", "listed_instances", "attempts", "error", "detail")
"""What an event of kind `study row` says."""

Say = Callable[[str, str], None]
_STATES = {f"study {state.name.lower()}": state for state in StudyState}


def differs(say: Say, place: str, columns: Sequence[str], on_record: str, row: Sequence[Any]) -> None:
    """Says which columns of a row are not as its last event says."""
    if on_record == quoted(*row):
        return
    said = literals(on_record)
    wrong = [column for column, ours, theirs in zip(columns, said, row, strict=False) if ours != theirs]
    say(place, f"{', '.join(wrong) or 'the row'}: not as last put on record")


@dataclass(frozen=True, slots=True)
class Study:
    """A study's row beside what the log says of it; times in milliseconds since 1970."""

    id: int
    uid: str
    state: int
    found_at: int
    changed_at: int
    kept: tuple[Any, ...]
    row: tuple[Any, ...]
    found: tuple[int, str] | None
    tallies: list[tuple[Any, ...]]

    def compare(self, say: Say, rows: list[Row], log: list[tuple[Any, ...]]) -> None:
        """What the log says of the study against its rows."""
        place = f"study {self.uid}"
        if self.found is None:
            say(place, "stands in no event: it was added")
            return
        state, changed_at, on_record, listed = StudyState.FOUND, self.found[0], f"{self.found[1]},NULL,NULL,0,NULL,NULL", None
        if self.found_at != self.found[0]:
            say(place, "found_at: not as on record")
        for number, kind, at, _, _, detail in log:
            if kind in _STATES:
                if (state, _STATES[kind]) not in STUDY_TRANSITIONS:
                    say(f"event {number}", f"study {self.uid} cannot go from {state.name.lower()} to {_STATES[kind].name.lower()}")
                state, changed_at = _STATES[kind], at
            elif kind == "study row":
                on_record = detail
            elif kind == "study listed":
                listed = detail
        if self.state != state:
            say(place, f"its state is {_name(self.state)}, on record is {state.name.lower()}")
        elif self.changed_at != changed_at:
            say(place, "changed_at: not as on record")
        differs(say, place, STUDY_ROW, on_record, self.row)
        self._listed(say, rows, listed)
        self._flags(say, rows, log)
        self._tallies(say, rows)

    def _listed(self, say: Say, rows: list[Row], on_record: str | None) -> None:
        lines = sorted(f"{row.series}\t{text(row.modality)}\t{row.sop}\n" for row in rows if row.listed and row.copy is None)
        said = quoted(len(lines), hashlib.sha256("".join(lines).encode()).hexdigest()) if lines else None
        if (on_record or None) != said:
            count = (on_record or "0").partition(",")[0]
            say(f"study {self.uid}", f"the list of its instances (or a modality) is not the one on record: {count} were listed, {len(lines)} are")

    def _flags(self, say: Say, rows: list[Row], log: list[tuple[Any, ...]]) -> None:
        said: dict[str, set[tuple[str, str]]] = {"instance conflict": set(), "instance lies beside": set(), "instance unexpected": set()}
        for _, kind, _, series, sop, _ in log:
            if kind in said:
                said[kind].add((series, sop))
        instances = {(row.series, row.sop): row for row in rows if row.copy is None}
        for kind, column in (("instance conflict", "conflict"), ("instance lies beside", "beside")):
            flagged = {place for place, row in instances.items() if getattr(row, column)}
            for _, sop in sorted(flagged ^ said[kind], key=str):
                say(f"instance {sop} of study {self.uid}", f"{column}: not as on record")
        self._copies(say, rows, log)
        for _, sop in sorted(said["instance unexpected"] - instances.keys(), key=str):
            say(f"instance {sop} of study {self.uid}", "is gone, though an event tells of it")
        for row in rows:
            place = f"instance {row.sop} of study {self.uid}"
            if row.copy is None and not row.listed and (row.series, row.sop) not in said["instance unexpected"]:
                say(place, "is not listed, and stands in no event: it was added, or listed once")
            stray = _stray(row)
            if stray:
                say(place, f"{', '.join(stray)}: a value that its state ({_name(row.state, InstanceState)}) cannot have")

    def _copies(self, say: Say, rows: list[Row], log: list[tuple[Any, ...]]) -> None:
        """Further contents came with an event each; a lost one still has the bytes that its last event tells of."""
        came: dict[tuple[str, str, str], str | None] = {}
        for _, kind, _, series, sop, detail in log:
            if kind == "instance has a second content":
                came[series, sop, detail.removeprefix("data set ").lower()] = None
            elif kind == "copy fell back":
                came[series, sop, str(literals(detail)[2])] = detail
        there = {(row.series, row.sop, row.copy.hex()): row for row in rows if row.copy is not None}
        for _, sop, digest in sorted(came.keys() ^ there.keys(), key=str):
            say(f"copy {digest[:12]} of instance {sop} of study {self.uid}", "rows and events differ on whether it came")
        for key, row in there.items():
            said = came.get(key)
            if row.state == 0 and said and _lost_bytes(said) != (row.size_bytes, row.file_sha256 and row.file_sha256.hex(), row.crc64nvme):
                say(f"copy {key[2][:12]} of instance {row.sop} of study {self.uid}", "its bytes are not those on record")

    def _tallies(self, say: Say, rows: list[Row]) -> None:
        counted: Counter[tuple[str, int]] = Counter()
        size: Counter[tuple[str, int]] = Counter()
        for row in rows:
            if row.copy is None:
                counted[row.series, row.state] += 1
                size[row.series, row.state] += row.size_bytes or 0
        for series, *tally in self.tallies:
            waiting, verified = size[series, 1] + size[series, 2], size[series, 3]
            if tally != [*(counted[series, state] for state in range(4)), waiting, verified]:
                say(f"series {series} of study {self.uid}", "its tallies are not what its instances add up to")


def _lost_bytes(detail: str) -> tuple[Any, ...]:
    """(size, SHA-256 of the file, CRC as a signed number) of what an event says that was taken back."""
    values = literals(detail)
    crc = int(str(values[7]), 16)
    return values[4], values[6], crc - (1 << 64) if crc >= 1 << 63 else crc


def _stray(row: Row) -> list[str]:
    """Columns that hold what no step of the row's state has set, or lack what one has."""
    stray = [column for column in ("listed", "conflict", "beside") if getattr(row, column) not in (0, 1)]
    stray += ["state"] if row.state not in list(InstanceState) else []
    bytes_known = row.state > 0 or row.copy is not None
    for columns, there in (
        (("size_bytes", "dataset_sha256", "file_sha256", "crc64nvme"), bytes_known), (("staged_at", "staged_seal"), row.state > 0),
        (("stored_at", "stored_seal"), row.state > 1), (("verified_at", "verified_seal", "proof"), row.state == InstanceState.VERIFIED),
    ):  # fmt: skip
        stray += [column for column in columns if (getattr(row, column) is not None) != there]
    if row.state == 0:
        stray += [column for column in ("pixel_crc64", "notes", "sop_class", "transfer_syntax") if getattr(row, column) is not None]
    if row.state < InstanceState.STORED:
        stray += [column for column in ("version", "checksum") if getattr(row, column) is not None]
    return stray


def _name(state: int, states: Any = StudyState) -> str:
    return states(state).name.lower() if state in list(states) else f"{state}, which is none"
