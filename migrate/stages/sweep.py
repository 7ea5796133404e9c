"""The windows of a sweep as they stand, and what their answers prove: whether one holds what its parts hold, and whether the PACS caps."""

from __future__ import annotations

import functools
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence

from migrate.errors import QueryRefused
from migrate.manifest.windows import window_of
from migrate.model import HabitLearned, Outcome, PartBy, Window, WindowsPlanned, WindowState
from migrate.stages.questions import cuts, narrower, parts

Row = sqlite3.Row
AT_ONCE = 20  # windows that are asked again together
_BAD_KEYS = ("yes", "refused", "finds nothing")  # values of a habit that speak against asking by a key
_HABITS: dict[PartBy, str] = {
    "time": "ignores_time", "modality": "ignores_modality", "patient": "ignores_patient_id", "accession": "ignores_accession"
}  # fmt: skip
_KEYS: dict[PartBy, str] = {"modality": "ModalitiesInStudy", "patient": "PatientID", "accession": "AccessionNumber"}
NAMES: dict[PartBy, str] = {
    "date": "date", "time": "time", "modality": "modality", "patient": "PatientID", "accession": "AccessionNumber"
}  # fmt: skip


class Sweep:
    """The windows of a sweep as they stand in the manifest, with comparisons of what they showed.

    `no_dates`: questions by date do not count, since most of what they show does not fit, or most of what others show with a date is missing;
    or since within bounds they show nothing, which may as well be the PACS's way with ranges.
    """

    def __init__(
        self,
        number: int,
        rows: Sequence[Row],
        habits: Mapping[str, str],
        shown_only_by: Callable[..., int],
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
        self.most: int = max((row["study_count"] for row in rows if row["study_count"] is not None), default=0)
        closed = [row for row in self.dated if row["lo"] and row["hi"]]  # many a PACS ignores open ranges alone
        outside = sum(row["outside_count"] for row in closed)
        inside = sum(row["study_count"] for row in closed) - outside
        self.ignores_date = outside > inside
        others = [row["id"] for row in rows if row["axis"] != "date" and row["state"] == WindowState.ANSWERED]
        one_by_one = any(window_of(row).share for row in rows)  # then questions by date are for a few patients only
        by_date_ = [row for row in rows if row["axis"] == "date"]
        bounds = min((row["lo"] or "" for row in by_date_), default=""), max((row["hi"] or "9" for row in by_date_), default="9")
        self.misses_dates = not one_by_one and shown_only_by(others, ids(self.dated), dated=bounds) > inside
        self.shows_nothing = not one_by_one and self._shows_nothing()
        self.no_dates = self.ignores_date or self.misses_dates or self.shows_nothing
        self.keyless: Row | None = next((row for row in rows if row["axis"] == "all" and row["purpose"] == "cover"), None)

    def _shows_nothing(self) -> bool:
        """Within bounds no range of dates was answered with any study, and none is left to be cut."""
        if not any(row["purpose"] == "look" for row in self.rows):
            return False
        ranges = [row for row in self.dated if row["lo"] != row["hi"]] or self.dated
        cut = (window_of(row) for row in self.roots() if row["state"] == WindowState.FAILED)
        return bool(ranges) and not any(row["row_count"] for row in ranges) and not any(narrower(window) for window in cut)

    def cuts(self, window: Window) -> tuple[PartBy, ...]:
        """The keys to cut a window by. What is known to be ignored, refused or not found comes last; where dates do not count, first comes
        the key that has shown everything before, then those that are known to show studies without a date. Habits spare questions, and are no proof."""
        keys = cuts(window, ignores_date=self.no_dates)
        of_keyless = window.axis == "all"
        shows_undated = set(self.habits.get("undated", "").split(", ")) if of_keyless else set()

        def rank(by: PartBy) -> tuple[bool, bool, bool]:
            best = of_keyless and self.habits.get("splits_by") == by
            return self.is_known_bad(by), not best, _KEYS.get(by) not in shows_undated

        return tuple(sorted(keys, key=rank))

    def is_known_bad(self, by: PartBy) -> bool:
        """A habit on record says that the PACS ignores or refuses this key, or finds nothing by it."""
        return self.habits.get(_HABITS.get(by, "")) in _BAD_KEYS

    @functools.cached_property
    def keyless_shows_all(self) -> bool:
        """The question without a key was answered, and shows everything that any question by date has shown."""
        row = self.keyless
        if row is None or row["state"] != WindowState.ANSWERED or self.capped(row) or self.no_dates:
            return False
        return not self.shown_only_by(self.now(self.dated), [row["id"], *ids(self.again(row))])

    @functools.cached_property
    def tops(self) -> list[Row]:
        """The answers by date that must be proven: those with as many rows as the largest shows studies. One with fewer is below any cap.

        None where the question without a key is larger than all of them.
        """
        answered = [row for row in self.roots() if row["state"] == WindowState.ANSWERED and not self.capped(row)]
        all_there = [self.keyless["study_count"]] if self.keyless is not None and self.keyless_shows_all else []
        most = max([2, *(row["study_count"] for row in answered), *all_there])
        return [row for row in answered if row["row_count"] >= most]

    @functools.cached_property
    def unproven(self) -> tuple[Row, list[Outcome] | None] | None:
        """The next of the tops that is not proven, with what `prove` says of it; None where all are.

        Where nothing narrower shows it, any answer with more rows does: that one is below a cap as well.
        """
        undecided = None
        for row in self.tops:
            steps = prove(self, row)
            if steps:
                return row, steps
            if steps is None and row["row_count"] >= self.most:
                undecided = undecided or (row, None)
        return undecided

    @property
    def trusts_keyless(self) -> bool:
        return self.keyless_shows_all and self.unproven is None

    def believes(self, part: Row, root: Row) -> bool:
        """A part was answered with fewer rows than any cap may lie at: this sweep has shown more at once, or as many, and these were all."""
        if part["state"] != WindowState.ANSWERED or self.capped(part):
            return False
        if part["row_count"] < max(self.most, 2):
            return True
        return bool(root is self.keyless and self.trusts_keyless and part["row_count"] <= root["study_count"])

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
        for part in map(self._answered, self.family(row, by)):
            found += self.leaves(part, by) if part["state"] == WindowState.SPLIT else [part]
        return found

    def _answered(self, part: Row) -> Row:
        """The part, or in place of one that failed the same question as it was answered later."""
        if part["state"] == WindowState.FAILED:
            return next((each for each in self.again(part) if each["state"] in (WindowState.ANSWERED, WindowState.SPLIT)), part)
        return part

    def once_more(self, parts: Iterable[Row]) -> list[Outcome]:
        """Those of these parts that broke off each time are asked once more after all others; none twice, nor what was refused."""
        broken = [part for part in parts if part["state"] == WindowState.FAILED and not refused(part) and part["purpose"] != "again"]
        return ask_again(self, [part for part in broken if not self.again(part)])

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


def prove(sweep: Sweep, row: Row, keys: Sequence[PartBy] = ()) -> list[Outcome] | None:
    """What to ask or to learn next to show that this answer is not capped; [] if that is shown, None if it cannot be.

    Its parts hold the same, and each is smaller, or is itself proven: a part with as many rows may be capped as well, and is cut
    by the same key, or a day by any. `keys`: by these alone.
    """
    if row["row_count"] < 2:
        return []
    tried: list[int] = []
    proven = True
    for by in keys or sweep.cuts(window_of(row)):
        leaves = sweep.leaves(row, by)
        again = sweep.again(row)
        if not leaves:
            smaller = parts(window_of(row), by)
            if not smaller:
                continue
            planned: list[Outcome] = [WindowsPlanned(sweep.number, smaller, row["id"], by, "check")]
            return planned if again else planned + ask_again(sweep, [row])
        if sweep.ignores(row, by):
            continue
        if failed := [part for part in leaves if part["state"] != WindowState.ANSWERED]:
            narrower = [(part, smaller) for part in failed if by == "date" and (smaller := parts(window_of(part), by))]
            planned = [WindowsPlanned(sweep.number, smaller, part["id"], by, "check", replaces=True) for part, smaller in narrower]
            if planned := planned or sweep.once_more(failed):
                return planned
            continue
        if sweep.shown_only_by(ids(leaves), [row["id"], *ids(again)]):
            return learned_cap(row, again, f"for which its parts by {NAMES[by]} show more")
        for part in leaves:
            if part["row_count"] >= row["study_count"]:
                further = prove(sweep, part, () if by == "date" else (by,))
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


def both_again(sweep: Sweep, row: Row, others: Sequence[Row], known: Sequence[int] = ()) -> list[Outcome]:
    """What to ask once more before an answer is believed to lack what others show, and the `known` ones do not: that may have come or gone since.

    First this question after all the others, then those that show more; nothing once one of them has shown it again.
    """
    shown = [row["id"], *ids(sweep.again(row))]
    if max(shown) < max(ids(others)):
        return ask_again(sweep, [row])
    shown += known
    if sweep.shown_only_by(sweep.now(each for each in others if sweep.again(each)), shown):
        return []
    return ask_again(sweep, sweep.lacking(others, shown)[:AT_ONCE])


def refused(row: Row) -> bool:
    """The PACS would not answer it, rather than break off."""
    return bool(row["state"] == WindowState.FAILED and row["error"] == QueryRefused.__name__)


def ids(rows: Iterable[Row]) -> list[int]:
    """The windows' numbers."""
    return [row["id"] for row in rows]
