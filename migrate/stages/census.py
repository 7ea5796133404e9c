"""One question to the PACS, and what the answered ones prove: which to ask next, and which cannot be believed."""

from __future__ import annotations

import functools
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from migrate.errors import PacsMigrateError, QueryRefused
from migrate.failpoints import reach
from migrate.manifest.windows import window_of
from migrate.model import (
    HabitLearned,
    Outcome,
    PartBy,
    StudyFound,
    Window,
    WindowAnswered,
    WindowAsked,
    WindowFailed,
    WindowJudged,
    WindowsPlanned,
    WindowState,
)
from migrate.sources import Source
from migrate.stages.questions import by_date, cuts, parts

_AT_ONCE = 20  # windows that are asked again together
Row = sqlite3.Row
Select = Callable[[StudyFound, Window], StudyFound | None]
"""What the selection makes of a row: the same, excluded with a reason, or None: no concern of this sweep."""

_BAD_KEYS = ("yes", "refused", "finds nothing")  # values of a habit that speak against asking by a key
_HABITS: dict[PartBy, str] = {
    "time": "ignores_time", "modality": "ignores_modality", "patient": "ignores_patient_id", "accession": "ignores_accession"
}  # fmt: skip
_NAMES: dict[PartBy, str] = {
    "date": "date", "time": "time", "modality": "modality", "patient": "PatientID", "accession": "AccessionNumber"
}  # fmt: skip


def ask(source: Source, window_id: int, window: Window, attempts: int, select: Select) -> Iterator[Outcome]:
    """One question: its studies as they come, then how it ended. Errors of scope run are raised.

    What is refused is not asked again, nor what has failed twice and can be asked in smaller parts. Where a question takes several
    C-FINDs, one for each patient, its largest one counts: a PACS caps each by itself, so that all comparisons of a question with
    its parts hold as they do elsewhere. (The list of patients is shown to be whole by itself, see `sources.patients`.)
    """
    yield WindowAsked(window_id)
    reach("enumerate-asked")
    rows: Counter[int] = Counter()
    studies: Counter[int] = Counter()
    shown: set[str] = set()
    try:
        for study in source.studies(window):
            reach("enumerate-row")
            query = study.query or 0
            if study.query is not None:  # else it is one long answer, whose studies the manifest counts
                if query not in rows:
                    shown.clear()
                studies[query] += study.study.study not in shown
                shown.add(study.study.study)
            rows[query] += 1
            chosen = select(study, window)
            if chosen is not None:
                yield replace(chosen, window_id=window_id)
    except PacsMigrateError as error:
        if error.scope == "run":
            raise
        again = attempts == 0 or window.axis != "date" or not by_date(window)
        yield WindowFailed(window_id, error.name, str(error), retryable=again and not isinstance(error, QueryRefused))
    else:
        reach("enumerate-answered")
        yield WindowAnswered(window_id, max(rows.values(), default=0), max(studies.values(), default=None))
        yield from (HabitLearned(name, value, detail) for name, (value, detail) in source.habits.items())


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
        """The keys to cut a window by. What is known to be ignored, refused or not found comes last: habits spare questions, and are no proof."""
        keys = cuts(window, ignores_date=self.ignores_date)
        return tuple(sorted(keys, key=lambda by: self.habits.get(_HABITS.get(by, "")) in _BAD_KEYS))

    @functools.cached_property
    def keyless_shows_all(self) -> bool:
        """The question without a key was answered, and shows everything that any question by date has shown."""
        row = self.keyless
        if row is None or row["state"] != WindowState.ANSWERED or self.capped(row) or self.ignores_date:
            return False
        return not self.shown_only_by(self.now(self.dated), [row["id"], *_ids(self.again(row))])

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
        """What `_prove` says of the top."""
        return [] if self.top is None else _prove(self, self.top)

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


def judge(sweep: Sweep) -> list[Outcome]:
    """What to ask next once every window so far is answered, and what to say of those that are; nothing at the end.

    Trust is earned from the top: where the largest answer holds what its parts hold, a cap would have to lie above it. Where
    the parts hold more, the PACS caps its answers at what the whole showed, and every window with so many rows is cut.
    """
    if any(row["state"] == WindowState.PLANNED for row in sweep.rows):
        return []
    for step in (
        _cut_failed, _compare_with_keyless, _prove_top, _cut_capped, _keyless_by_other_axes, _open_ends,
        _note_habits, _count_what_parts_lack,
    ):  # fmt: skip
        if outcomes := step(sweep):
            return outcomes
    return []


def _said(row: Row, suspicion: str, blocks: bool) -> list[Outcome]:
    """The judgement, unless it stands already."""
    if row["suspicion"] == suspicion and bool(row["blocks"]) == blocks:
        return []
    return [WindowJudged(row["id"], suspicion, blocks)]


def _refused(row: Row) -> bool:
    return bool(row["state"] == WindowState.FAILED and row["error"] == QueryRefused.__name__)


def _ids(rows: Iterable[Row]) -> list[int]:
    return [row["id"] for row in rows]


def _cut_failed(sweep: Sweep) -> list[Outcome]:
    """What was refused or failed is asked in smaller parts; while no date at all was answered, of one window only."""
    failed = [row for row in sweep.roots() if row["state"] == WindowState.FAILED]
    smaller = [row for row in failed if by_date(window_of(row))]
    if not sweep.dated:
        if len(smaller) < len(failed) and any(row["lo"] and row["lo"] == row["hi"] for row in failed):
            return []  # not even a single day is answered
        smaller = [row for row in smaller if row["lo"]][-1:]
    return [WindowsPlanned(sweep.number, by_date(window_of(row)), row["id"], "date", replaces=True) for row in smaller]


def _compare_with_keyless(sweep: Sweep) -> list[Outcome]:
    """The largest answer of all is that without a key; what it lacks of the others it was capped of, or has come or gone since."""
    row = sweep.keyless
    if row is None or row["state"] != WindowState.ANSWERED or sweep.capped(row) or sweep.ignores_date or sweep.keyless_shows_all:
        return []
    again = sweep.again(row)
    if not again:
        return _ask_again(sweep, [row])
    shown = [row["id"], *_ids(again)]
    asked_twice = [each for each in sweep.dated if sweep.again(each)]
    if not sweep.shown_only_by(sweep.now(asked_twice), shown):  # what was missing so far has vanished: look at the next one
        return _ask_again(sweep, sweep.lacking(sweep.dated, shown)[:_AT_ONCE])
    if row["row_count"] < max((each["row_count"] for each in sweep.dated), default=0):
        return []  # no cap: it is not answered in earnest
    return _learned_cap(row, again, "without a key, and questions by date show more")


def _ask_again(sweep: Sweep, rows: Iterable[Row]) -> list[Outcome]:
    return [WindowsPlanned(sweep.number, (window_of(row),), row["id"], purpose="again") for row in rows]


def _learned_cap(row: Row, again: Sequence[Row], why: str) -> list[Outcome]:
    cap = min([row["study_count"], *(each["study_count"] for each in again if each["study_count"] is not None)])  # rows may repeat
    return [HabitLearned("cap", str(cap), f"The PACS caps its answers: {cap} rows for a question {why}.")]


def _prove_top(sweep: Sweep) -> list[Outcome]:
    """The largest answer by date is compared with its parts, where no larger one without a key has shown it to be whole."""
    if sweep.ignores_date and sweep.keyless is not None and sweep.keyless["state"] == WindowState.ANSWERED:
        return []  # it is cut by other keys below, which compares it
    if sweep.proof is None:
        assert sweep.top is not None
        return _said(sweep.top, "Nothing narrower shows whether the PACS caps its answers; studies may hide behind its largest one.", True)
    return sweep.proof


def _prove(sweep: Sweep, row: Row) -> list[Outcome] | None:
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
            return planned if again else planned + _ask_again(sweep, [row])
        if sweep.ignores(row, by) or any(part["state"] != WindowState.ANSWERED for part in leaves):
            continue
        if sweep.shown_only_by(_ids(leaves), [row["id"], *_ids(again)]):
            return _learned_cap(row, again, f"for which its parts by {_NAMES[by]} show more")
        for part in leaves:
            if part["row_count"] >= row["study_count"]:
                further = _prove(sweep, part)
                if further:
                    return further
                proven = proven and further is not None
        tried += _ids(leaves)
        if proven and (by == "date" or not sweep.shown_only_by([row["id"]], _ids(leaves))):
            return []
    # no key shows all of it, but together they may, and nothing beyond it
    return [] if proven and tried and not sweep.shown_only_by([row["id"]], tried) else None


def _cut_capped(sweep: Sweep) -> list[Outcome]:
    """Windows with as many rows as the cap are cut by date; single days, and what failed for good, by other keys."""
    outcomes: list[Outcome] = []
    roots = sweep.roots()
    if sweep.ignores_date:  # they are all the same question: one will do, and none where there is one without a key
        roots = [] if sweep.keyless is not None else sorted(roots, key=lambda row: row["row_count"] or 0)[-1:]
    for row in roots:
        failed = row["state"] == WindowState.FAILED
        if not failed and not sweep.capped(row):
            continue
        window = window_of(row)
        keys = sweep.cuts(window)
        if "date" in keys:
            if not failed:
                outcomes.append(WindowsPlanned(sweep.number, by_date(window), row["id"], "date", replaces=True))
        elif keys:
            if failed and not _refused(row):  # an answer that breaks off does so by any key: the time at least says where
                keys = tuple(key for key in keys if key == "time")
            outcomes += _by_other_keys(sweep, row, keys, "The answer may be capped" if not failed else "No whole answer")
        elif not failed:
            outcomes += _said(row, f"The PACS caps its answers at {sweep.cap} rows, and this window cannot be cut.", True)
    return outcomes


def _by_other_keys(sweep: Sweep, row: Row, keys: Sequence[PartBy], trouble: str) -> list[Outcome]:
    """Cut by one key after the other, until two ways were whole and the last shows again all that is known of the window.

    Studies that lack a value under one key are shown by another; those without any value nobody can see.
    """
    known, wholes = [row["id"]], list[PartBy]()
    for by in keys:
        more = _cut_family(sweep, row, by)
        if more:
            return more
        leaves = _ids(sweep.leaves(row, by))
        known += leaves
        if sweep.whole(row, by):
            wholes.append(by)
            if len(wholes) > 1 and not sweep.shown_only_by(known, leaves):
                ways = " and ".join(_NAMES[way] for way in wholes)
                return _said(row, f"{trouble}; asked in parts by {ways}, which show the same.", False)
    return _said(row, f"{trouble}, and no other key shows all of it; studies may hide.", True)


def _cut_family(sweep: Sweep, row: Row, by: PartBy) -> list[Outcome]:
    """The next questions by one key; none where it has been asked to the end, or the PACS ignores it."""
    family = sweep.family(row, by)
    window = window_of(row)
    if not family or len(family) == 1:
        smaller = parts(window, by) if row["axis"] != "all" else parts(replace(window, axis=by), by)  # type: ignore[arg-type]
        if not family:  # one part first: whoever ignores the key answers it with everything
            return [WindowsPlanned(sweep.number, smaller[:1], row["id"], by)] if smaller else []
        if family[0]["outside_count"] or family[0]["state"] == WindowState.FAILED:
            return []
        return [WindowsPlanned(sweep.number, smaller, row["id"], by)] if len(smaller) > 1 else []
    if sweep.ignores(row, by):
        return []
    outcomes: list[Outcome] = []
    for part in sweep.leaves(row, by):
        answered = any(each["state"] == WindowState.ANSWERED for each in sweep.siblings(part))
        broken = part["state"] == WindowState.FAILED and (by == "time" or (answered and _refused(part)))
        if broken or (part["state"] == WindowState.ANSWERED and not sweep.believes(part, row)):
            smaller = parts(window_of(part), by)
            if smaller:
                outcomes.append(WindowsPlanned(sweep.number, smaller, part["id"], by, replaces=True))
    return outcomes


def _keyless_by_other_axes(sweep: Sweep) -> list[Outcome]:
    """Studies without a date are shown by no date: where the question without a key is not to be believed, other keys are tried.

    A key is believed if its parts show again everything that the dates have shown.
    """
    row = sweep.keyless
    if row is None:
        return []
    if sweep.trusts_keyless:
        return _hidden_without_date(sweep, row)
    answered = row["state"] == WindowState.ANSWERED
    trouble = "The question without a key is not answered whole"
    if answered and sweep.capped(row):
        trouble = f"The PACS caps its answers at {sweep.cap} rows"
    elif answered and sweep.ignores_date:
        trouble = "The PACS ignores the date key"
    elif answered:
        trouble = "The question without a key shows less than those by date, or nothing narrower shows whether it is capped"
    seen: list[int] = []
    for by in sweep.cuts(window_of(row)):
        more = _cut_family(sweep, row, by)
        if more:
            return more
        if sweep.whole(row, by):
            leaves = _ids(sweep.leaves(row, by))
            reference = [*sweep.now(sweep.dated), *sweep.now([row])]
            if answered and not sweep.capped(row) and sweep.ignores_date and sweep.shown_only_by(leaves, [*reference, row["id"]]):
                return _learned_cap(row, (), f"without a key, and questions by {_NAMES[by]} show more")
            seen += leaves
            if not sweep.shown_only_by(reference, leaves):
                return _said(row, f"{trouble}; asked by {_NAMES[by]} instead, which shows again all that was found by date.", False)
    reference = [*sweep.now(sweep.dated), *sweep.now([row])]
    if seen and not sweep.shown_only_by(reference, seen):
        return _said(row, f"{trouble}; asked by other keys instead, which together show again all that was found by date.", False)
    if seen and (doubtful := sweep.lacking([*sweep.dated, row] if answered else sweep.dated, seen)):
        return _ask_again(sweep, doubtful[:_AT_ONCE])  # they may have vanished meanwhile
    return _said(row, f"{trouble}, and no other key shows all that was found by date; studies without a date may hide.", True)


def _hidden_without_date(sweep: Sweep, row: Row) -> list[Outcome]:
    """A whole answer without any undated study may hide them all: one other key is asked, too."""
    if sweep.shown_only_by([row["id"]], _ids(sweep.dated)):
        return []
    for by in sweep.cuts(window_of(row)):
        more = _cut_family(sweep, row, by)
        if more:
            return more
        if sweep.whole(row, by):
            hidden = sweep.shown_only_by(_ids(sweep.leaves(row, by)), [row["id"], *_ids(sweep.dated)])
            return _said(row, f"The question without a key hides {hidden} studies that {_NAMES[by]} shows.", False) if hidden else []
    return []


def _open_ends(sweep: Sweep) -> list[Outcome]:
    """Refused windows without a first or last day hold nothing that a trusted question without a date would not show."""
    keyless = sweep.keyless
    if keyless is None or (keyless["blocks"] and not sweep.trusts_keyless) or keyless["state"] == WindowState.PLANNED:
        return []
    outcomes: list[Outcome] = []
    for row in sweep.roots():
        if row["state"] == WindowState.FAILED and (row["lo"] is None or row["hi"] is None):
            outcomes += _said(row, f"No whole answer: {row['detail']} Questions without a date cover it.", False)
    return outcomes


def _note_habits(sweep: Sweep) -> list[Outcome]:
    """A PACS that ignores the date is known by it."""
    if not sweep.ignores_date or "ignores_date" in sweep.habits:
        return []
    return [HabitLearned("ignores_date", "yes", "A question by StudyDate shows studies of other dates.")]


def _count_what_parts_lack(sweep: Sweep) -> list[Outcome]:
    """Studies that a window shows and its parts do not, since they have no value under that key, are counted by name of the key."""
    outcomes: list[Outcome] = []
    for row in sweep.roots():
        if row["state"] != WindowState.ANSWERED or row["suspicion"]:
            continue
        for by in _NAMES:
            leaves = sweep.leaves(row, by)
            if len(leaves) > 1 and all(part["state"] == WindowState.ANSWERED and not part["outside_count"] for part in leaves):
                less = sweep.shown_only_by([row["id"]], _ids(leaves))
                if less:
                    outcomes += _said(row, f"{less} of its studies are in none of its parts by {_NAMES[by]}; they are kept.", False)
                    break
    return outcomes
