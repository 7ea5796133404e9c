"""From what the answered questions of a sweep prove: which to ask next, and which answers cannot be believed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from migrate.counted import counted
from migrate.manifest.windows import window_of
from migrate.model import (
    HabitLearned,
    Outcome,
    PartBy,
    Window,
    WindowJudged,
    WindowsPlanned,
    WindowState,
)
from migrate.stages.questions import by_date, closed, is_far, narrower, parts
from migrate.stages.sweep import AT_ONCE, NAMES, Row, Sweep, ask_again, both_again, ids, learned_cap, refused


def judge(sweep: Sweep) -> list[Outcome]:
    """What to ask next once every window so far is answered, and what to say of those that are; nothing at the end.

    Trust is earned from the top: where the largest answer holds what its parts hold, a cap would have to lie above it. Where
    the parts hold more, the PACS caps its answers at what the whole showed, and every window with so many rows is cut.
    """
    if any(row["state"] == WindowState.PLANNED for row in sweep.rows):
        return []
    for step in (
        _ask_without_date, _cut_failed, _compare_with_keyless, _prove_top, _cut_capped, _keyless_by_other_axes, _open_ends,
        _judge_look, _note_habits, _count_what_parts_lack,
    ):  # fmt: skip
        if outcomes := step(sweep):
            return outcomes
    return []


def _said(row: Row, suspicion: str, blocks: bool) -> list[Outcome]:
    """The judgement, unless it stands already."""
    if row["suspicion"] == suspicion and bool(row["blocks"]) == blocks:
        return []
    return [WindowJudged(row["id"], suspicion, blocks)]


def _ask_without_date(sweep: Sweep) -> list[Outcome]:
    """Where the date does not count, bounds do not either: the question without a key is compared with its parts, as in a sweep of everything."""
    if not sweep.no_dates or sweep.keyless is not None:
        return []
    return [WindowsPlanned(sweep.number, (Window(None, None, "all"),))]


def _cut_failed(sweep: Sweep) -> list[Outcome]:
    """What was refused or failed is asked in smaller parts, and a closed range in place of an open one that shows other dates.

    While no date at all was answered, of one window only.
    """
    failed = [row for row in sweep.roots() if row["state"] == WindowState.FAILED or (_shows_others(row) and not sweep.no_dates)]
    smaller = [row for row in failed if narrower(window_of(row))]
    if not any(row["state"] == WindowState.ANSWERED for row in sweep.roots()):  # what a day's parts by other keys show tells nothing of dates
        if len(smaller) < len(failed) and any(row["lo"] and row["lo"] == row["hi"] for row in failed):
            return []  # not even a single day is answered
        smaller = [row for row in smaller if row["lo"] and row["hi"]][-1:]
    return [WindowsPlanned(sweep.number, by_date(window_of(row)), row["id"], "date", replaces=True) for row in smaller]


def _shows_others(row: Row) -> bool:
    """An open range of dates was answered with dates beyond it."""
    return bool(row["outside_count"] and closed(window_of(row)))


def _compare_with_keyless(sweep: Sweep) -> list[Outcome]:
    """The largest answer of all is that without a key; what it lacks of the others it was capped of, or has come or gone since."""
    row = sweep.keyless
    if row is None or row["state"] != WindowState.ANSWERED or sweep.capped(row) or sweep.no_dates or sweep.keyless_shows_all:
        return []
    if more := both_again(sweep, row, sweep.dated):
        return more
    if row["row_count"] < max((each["row_count"] for each in sweep.dated), default=0):
        return []  # no cap: it is not answered in earnest
    return learned_cap(row, sweep.again(row), "without a key, and questions by date show more")


def _prove_top(sweep: Sweep) -> list[Outcome]:
    """The largest answers by date are compared with their parts, where no larger one without a key has shown them to be whole."""
    if sweep.no_dates and sweep.keyless is not None and sweep.keyless["state"] == WindowState.ANSWERED:
        return []  # it is cut by other keys below, which compares it
    if sweep.unproven is None:
        return []
    row, steps = sweep.unproven
    if steps is None:
        return _said(row, "Nothing narrower shows whether the PACS caps its answers; studies may hide behind its largest one.", True)
    return steps


def _cut_capped(sweep: Sweep) -> list[Outcome]:
    """Windows with as many rows as the cap are cut by date; single days, and what failed for good, by other keys."""
    outcomes: list[Outcome] = []
    roots = sweep.roots()
    if sweep.no_dates:  # they are all the same question: one will do, and none where there is one without a key
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
            if failed and not refused(row):  # an answer that breaks off does so by any key: the time at least says where
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
        leaves = ids(sweep.leaves(row, by))
        known += leaves
        if sweep.whole(row, by):
            wholes.append(by)
            if len(wholes) > 1 and not sweep.shown_only_by(known, leaves):
                ways = " and ".join(NAMES[way] for way in wholes)
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
    leaves = sweep.leaves(row, by)
    outcomes = [] if by == "time" or not any(leaf["state"] == WindowState.ANSWERED for leaf in leaves) else sweep.once_more(leaves)
    for part in leaves:
        answered = any(each["state"] == WindowState.ANSWERED for each in sweep.siblings(part))
        broken = part["state"] == WindowState.FAILED and (by == "time" or (answered and refused(part)))
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
    elif answered and sweep.no_dates:
        trouble = "The PACS does not match ranges of dates" if sweep.misses_dates else "No question by date shows any study"
        trouble = "The PACS ignores the date key" if sweep.ignores_date else trouble
    elif answered:
        trouble = "The question without a key shows less than those by date, or nothing narrower shows whether it is capped"
    seen: list[int] = []
    for by in sweep.cuts(window_of(row)):
        more = _cut_family(sweep, row, by)
        if more:
            return more
        if sweep.whole(row, by):
            leaves = ids(sweep.leaves(row, by))
            reference = [*sweep.now(sweep.dated), *sweep.now([row])]
            if answered and not sweep.capped(row) and sweep.no_dates and sweep.shown_only_by(leaves, [*reference, row["id"]]):
                return learned_cap(row, (), f"without a key, and questions by {NAMES[by]} show more")
            seen += leaves
            if not sweep.shown_only_by(reference, leaves):
                said = _said(row, f"{trouble}; asked by {NAMES[by]} instead, which shows again all that was found by date.", False)
                if sweep.habits.get("splits_by") != by:
                    said.append(HabitLearned("splits_by", by, f"Questions by {NAMES[by]} show again all that was found by date."))
                return said
    reference = [*sweep.now(sweep.dated), *sweep.now([row])]
    if seen and not sweep.shown_only_by(reference, seen):
        return _said(row, f"{trouble}; asked by other keys instead, which together show again all that was found by date.", False)
    if seen and (doubtful := sweep.lacking([*sweep.dated, row] if answered else sweep.dated, seen)):
        return ask_again(sweep, doubtful[:AT_ONCE])  # they may have vanished meanwhile
    return _said(row, f"{trouble}, and no other key shows all that was found by date; studies without a date may hide.", True)


def _hidden_without_date(sweep: Sweep, row: Row) -> list[Outcome]:
    """A whole answer may still hide studies without a date, all or those behind a cap that no date comes near: one more key is asked."""
    for by in sorted(sweep.cuts(window_of(row)), key=lambda by: (sweep.is_known_bad(by), by != "modality")):  # which takes few questions
        if more := _cut_family(sweep, row, by):
            return more
        if not sweep.whole(row, by):
            continue
        leaves, dated = sweep.leaves(row, by), ids(sweep.dated)
        hidden = sweep.shown_only_by(sweep.now(leaves), [row["id"], *ids(sweep.again(row)), *dated])
        if not hidden:
            return []
        if more := both_again(sweep, row, leaves, dated):
            return more
        if sweep.shown_only_by([row["id"]], dated):
            return learned_cap(row, sweep.again(row), f"without a key, and questions by {NAMES[by]} show more")
        return _said(row, f"The question without a key hides {counted(hidden, 'study')} that {NAMES[by]} shows.", False)
    return []


def _open_ends(sweep: Sweep) -> list[Outcome]:
    """Windows without a first or last day, and of years that no study can be from, hold nothing that a trusted question without a date
    would not show: where they have no whole answer, they are not cut."""
    keyless = sweep.keyless
    if keyless is None or (keyless["blocks"] and not sweep.trusts_keyless) or keyless["state"] == WindowState.PLANNED:
        return []
    outcomes: list[Outcome] = []
    for row in sweep.roots():
        if row["state"] == WindowState.FAILED and (row["lo"] is None or row["hi"] is None or is_far(window_of(row))):
            outcomes += _said(row, f"No whole answer: {row['detail']} Questions without a date cover it.", False)
    return outcomes


def _judge_look(sweep: Sweep) -> list[Outcome]:
    """Within bounds, what names the studies without a date may be cut off. They are not to be migrated: it blocks nothing."""
    looks = [row for row in sweep.rows if row["purpose"] == "look" and row["axis"] == "all" and row["state"] == WindowState.ANSWERED]
    cut_off = [row for row in looks if sweep.capped(row) or sweep.shown_only_by(sweep.now(sweep.dated), [row["id"]])]
    said = "The question without a key is not answered whole: not all studies without a date, which are left out, may be named."
    return [outcome for row in cut_off for outcome in _said(row, said, False)]


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
        for by in NAMES:
            leaves = sweep.leaves(row, by)
            if len(leaves) > 1 and all(part["state"] == WindowState.ANSWERED and not part["outside_count"] for part in leaves):
                less = sweep.shown_only_by([row["id"]], ids(leaves))
                if less:
                    outcomes += _said(row, f"{counted(less, 'of its studies is', 'of its studies are')} in none of its parts by {NAMES[by]}, and kept.", False)
                    break
    return outcomes
