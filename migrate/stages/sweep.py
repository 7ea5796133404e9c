"""The windows of a sweep as they stand, and what their answers prove: whether one holds what its parts hold, and whether the PACS caps."""

from __future__ import annotations

import functools
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence

from migrate.manifest.windows import window_of
from migrate.model import HabitLearned, Outcome, PartBy, Window, WindowsPlanned, WindowState
from migrate.stages.questions import cuts, parts

Row = sqlite3.Row
_BAD_KEYS = ("yes", "refused", "finds nothing")  # values of a habit that speak against asking by a key
_HABITS: dict[PartBy, str] = {
    "time": "ignores_time", "modality": "ignores_modality", "patient": "ignores_patient_id", "accession": "ignores_accession"
}  # fmt: skip
_KEYS: dict[PartBy, str] = {"modality": "ModalitiesInStudy", "patient": "PatientID", "accession": "AccessionNumber"}
NAMES: dict[PartBy, str] = {
    "date": "date", "time": "time", "modality": "modality", "patient": "PatientID", "accession": "AccessionNumber"
}  # fmt: skip


class Sweep:
    """The windows of a sweep as they stand in the manifest, with comparisons of what they showed."""

    def __init__(
        self,
        number: int,
        rows: Sequence[Row],
        habits: Mapping[str, str],
        shown_only_by: Callable[[Iterable[int], Iterable[int]], int],
    ) -> None:
        self.number, self.rows, self.habits, self.shown_only_by = number, rows, habits, shown_only_by
        self.cap = int(habits["cap"]) if "cap" in habits else None
        self._children: dict[tuple[int, str | None], list[Row]] = {}
        self._again: dict[int, list[Row]] = {}
        for row in rows:
            if row["purpose"] == "again":
                self._again.setdefault(row["parent"], []).append(row)
            elif row["parent"] is not None:
                self._children.setdefault((row["parent"], row["part_by"]), []).append(row)
        self.dated = [
            row for row in rows if row["axis"] == "date" and row["state"] == WindowState.ANSWERED and row["purpose"] != "again"
        ]
        outside = sum(row["outside_count"] for row in self.dated)
        self.ignores_date = outside > sum(row["study_count"] for row in self.dated) - outside
        self.keyless: Row | None = next((row for row in rows if row["axis"] == "all" and row["purpose"] == "cover"), None)

    def cuts(self, window: Window) -> tuple[PartBy, ...]:
        """The keys to cut a window by. What is known to be ignored, refused or not found comes last; where dates do not count, first comes
        the key that has shown everything before, then those that are known to show studies without a date. Habits spare questions, and are no proof."""
        keys = cuts(window, ignores_date=self.ignores_date)
        of_keyless = window.axis == "all"
        shows_undated = set(self.habits.get("undated", "").split(", ")) if of_keyless else set()

        def rank(by: PartBy) -> tuple[bool, bool, bool]:
            best = of_keyless and self.habits.get("splits_by") == by
            return self.habits.get(_HABITS.get(by, "")) in _BAD_KEYS, not best, _KEYS.get(by) not in shows_undated

        return tuple(sorted(keys, key=rank))

    @functools.cached_property
    def keyless_shows_all(self) -> bool:
        """The question without a key was answered, and shows everything that any question by date has shown."""
        row = self.keyless
        if row is None or row["state"] != WindowState.ANSWERED or self.capped(row) or self.ignores_date:
            return False
        return not self.shown_only_by(self.now(self.dated), [row["id"], *ids(self.again(row))])

    @functools.cached_property
    def top(self) -> Row | None:
        """The largest answer by date that must be proven; None where the one without a key is larger than all of them."""
        dated = [row for row in self.roots() if row["state"] == WindowState.ANSWERED and not self.capped(row)]
        top = max(dated, key=lambda row: row["row_count"], default=None)
        if top is not None and self.keyless_shows_all and self.keyless is not None and top["row_count"] < self.keyless["study_count"]:
            return None
        return top

    @functools.cached_property
    def proof(self) -> list[Outcome] | None:
        """What `prove` says of the top."""
        return [] if self.top is None else prove(self, self.top)

    @property
    def trusts_keyless(self) -> bool:
        return self.keyless_shows_all and self.proof == []

    def believes(self, part: Row, root: Row) -> bool:
        """A part was answered with fewer rows than any cap may lie at."""
        if part["state"] != WindowState.ANSWERED or self.capped(part):
            return False
        if self.cap is not None or part["row_count"] < 2:
            return True
        if root is self.keyless and self.trusts_keyless:
            return bool(part["row_count"] <= root["study_count"])
        if root["state"] == WindowState.ANSWERED and part["row_count"] < root["study_count"]:
            return True
        return self.proof == [] and part["row_count"] <= max((row["study_count"] for row in self.dated), default=1)

    def capped(self, row: Row) -> bool:
        return self.cap is not None and row["row_count"] is not None and row["row_count"] >= self.cap

    def again(self, row: Row) -> list[Row]:
        """The same question, asked once more after others."""
        return self._again.get(row["id"], [])

    def now(self, rows: Iterable[Row]) -> list[int]:
        """The latest answer to each of these questions: what has vanished since the first is in it no longer."""
        return [next((each["id"] for each in self.again(row) if each["state"] == WindowState.ANSWERED), row["id"]) for row in rows]

    def lacking(self, rows: Iterable[Row], shown_by: Sequence[int]) -> list[Row]:
        """Those of these windows whose latest answer has studies that the others do not show, and that were asked only once."""
        return [row for row in rows if not self.again(row) and self.shown_only_by([row["id"]], shown_by)]

    def family(self, row: Row, by: PartBy) -> list[Row]:
        return self._children.get((row["id"], by), [])

    def siblings(self, part: Row) -> list[Row]:
        """The parts that were cut together with this one, itself included."""
        return self._children.get((part["parent"], part["part_by"]), [])

    def leaves(self, row: Row, by: PartBy) -> list[Row]:
        """The parts of a window by that key which were not cut further."""
        found: list[Row] = []
        for part in self.family(row, by):
            found += self.leaves(part, by) if part["state"] == WindowState.SPLIT else [part]
        return found

    def ignores(self, row: Row, by: PartBy) -> bool:
        """Whether the PACS showed studies that do not fit a part: the key does not count for it."""
        return any(part["outside_count"] for part in self.leaves(row, by))

    def whole(self, row: Row, by: PartBy) -> bool:
        """Every part was answered whole, with nothing that does not fit, and none can be capped."""
        leaves = self.leaves(row, by)
        return bool(leaves) and all(self.believes(part, row) and not part["outside_count"] for part in leaves)

    def roots(self) -> list[Row]:
        """The windows by date that cover the sweep: answered, or failed for good, and not cut by date any further."""
        return [
            row for row in self.rows
            if row["axis"] == "date" and row["purpose"] == "cover" and row["part_by"] in (None, "date")
            and row["state"] in (WindowState.ANSWERED, WindowState.FAILED)
        ]  # fmt: skip


def prove(sweep: Sweep, row: Row) -> list[Outcome] | None:
    """What to ask or to learn next to show that this answer is not capped; [] if that is shown, None if it cannot be.

    Its parts hold the same, and each is smaller, or is itself proven: a part with as many rows may be capped as well.
    """
    if row["row_count"] < 2:
        return []
    tried: list[int] = []
    proven = True
    for by in sweep.cuts(window_of(row)):
        leaves = sweep.leaves(row, by)
        again = sweep.again(row)
        if not leaves:
            smaller = parts(window_of(row), by)
            if not smaller:
                continue
            planned: list[Outcome] = [WindowsPlanned(sweep.number, smaller, row["id"], by, "check")]
            return planned if again else planned + ask_again(sweep, [row])
        if sweep.ignores(row, by) or any(part["state"] != WindowState.ANSWERED for part in leaves):
            continue
        if sweep.shown_only_by(ids(leaves), [row["id"], *ids(again)]):
            return learned_cap(row, again, f"for which its parts by {NAMES[by]} show more")
        for part in leaves:
            if part["row_count"] >= row["study_count"]:
                further = prove(sweep, part)
                if further:
                    return further
                proven = proven and further is not None
        tried += ids(leaves)
        if proven and (by == "date" or not sweep.shown_only_by([row["id"]], ids(leaves))):
            return []
    # no key shows all of it, but together they may, and nothing beyond it
    return [] if proven and tried and not sweep.shown_only_by([row["id"]], tried) else None


def learned_cap(row: Row, again: Sequence[Row], why: str) -> list[Outcome]:
    """The habit that such answers show: no more rows than so many."""
    cap = min([row["study_count"], *(each["study_count"] for each in again if each["study_count"] is not None)])  # rows may repeat
    return [HabitLearned("cap", str(cap), f"The PACS caps its answers: {cap} rows for a question {why}.")]


def ask_again(sweep: Sweep, rows: Iterable[Row]) -> list[Outcome]:
    """The same questions once more."""
    return [WindowsPlanned(sweep.number, (window_of(row),), row["id"], purpose="again") for row in rows]


def ids(rows: Iterable[Row]) -> list[int]:
    """The windows' numbers."""
    return [row["id"] for row in rows]
