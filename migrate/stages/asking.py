"""Questions to the PACS, one after the other: their studies as they come, and how each ended."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, replace

from migrate.errors import PacsMigrateError, QueryRefused
from migrate.failpoints import reach
from migrate.model import (
    LISTS_PATIENTS,
    HabitLearned,
    Outcome,
    StudyFound,
    Window,
    WindowAnswered,
    WindowAsked,
    WindowFailed,
    WindowJudged,
    WindowsPlanned,
    shares,
)
from migrate.sources import Source
from migrate.stages.questions import narrower

_PATIENTS_A_SHARE, _ASKING_S = 250, 1.0
Studies = Callable[[Window], Iterable[StudyFound]]
Select = Callable[[StudyFound, Window], StudyFound | None]
"""What the selection makes of a row: the same, excluded with a reason, or None: no concern of this question."""


@dataclass(frozen=True, slots=True)
class Question:
    """A window that is to be asked for: its number, what it asks, how often it was asked in vain, and what becomes of its rows."""

    window_id: int
    window: Window
    attempts: int
    select: Select


def ask_each(source: Source, sweep: int, questions: Iterable[Question], *, begun: bool) -> Iterator[Outcome]:
    """One question after the other over one association, until `_ASKING_S` are over: what the answers show decides what else is worth asking."""
    until = time.monotonic() + _ASKING_S
    with source.questions() as studies:
        for question in questions:
            go_on = yield from _ask(source, studies, sweep, question, begun=begun)
            if not go_on or time.monotonic() > until:
                return


def _ask(source: Source, studies: Studies, sweep: int, question: Question, *, begun: bool) -> Generator[Outcome, None, bool]:
    """One question: its studies as they come, then how it ended; False where patients come before all other questions. Errors of scope run are raised.

    What is refused is not asked again, nor what has failed twice and can be asked in smaller parts. Where the PACS wants a
    PatientID with each question, the patients are listed and asked for one by one before all others, unless that has `begun`; what
    of their answers may be cut off, all questions that were planned then ask for. Where a question takes several C-FINDs, its
    largest one counts: a PACS caps each by itself, so that all comparisons of a question with its parts hold as they do elsewhere.
    """
    window_id, window = question.window_id, question.window
    try:
        if window.lists_patients:
            yield from _list_patients(source, sweep, window_id)
            return False
        elif not begun and source.by_patient():
            yield WindowsPlanned(sweep, (LISTS_PATIENTS,))
            return False
        else:
            yield WindowAsked(window_id)
            reach("enumerate-asked")
            yield from _rows(studies, question)
    except PacsMigrateError as error:
        if error.scope == "run":
            raise
        again = question.attempts == 0 or window.axis != "date" or not narrower(window)
        yield WindowFailed(window_id, error.name, str(error), retryable=again and not isinstance(error, QueryRefused))
    else:
        yield from (HabitLearned(name, value, detail) for name, (value, detail) in source.habits.items())
    return True


def _list_patients(source: Source, sweep: int, window_id: int) -> Iterator[Outcome]:
    """Who they are is held by the source; how many shares of them are to be asked for is planned."""
    if not source.by_patient():
        yield HabitLearned("insists_on_patient_id", "no", "Studies are shown without a PatientID.")
        yield WindowAnswered(window_id, 0, 0)
        return
    count, trouble = source.count_patients()
    yield WindowsPlanned(sweep, shares(-(-count // _PATIENTS_A_SHARE)))
    yield WindowAnswered(window_id, count, 0)
    if trouble:
        yield WindowJudged(window_id, f"The PACS insists on a PatientID with every question, and {trouble}.", blocks=True)


def _rows(studies: Studies, question: Question) -> Iterator[Outcome]:
    """The studies of one answer that concern the sweep, and how many it held."""
    rows: Counter[int] = Counter()
    counts: Counter[int] = Counter()
    shown: set[str] = set()
    for study in studies(question.window):
        reach("enumerate-row")
        query = study.query or 0
        if study.query is not None:  # else it is one long answer, whose studies the manifest counts
            if query not in rows:
                shown.clear()
            counts[query] += study.study.study not in shown
            shown.add(study.study.study)
        rows[query] += 1
        chosen = question.select(study, question.window)
        if chosen is not None:
            yield replace(chosen, window_id=question.window_id)
    reach("enumerate-answered")
    yield WindowAnswered(question.window_id, max(rows.values(), default=0), max(counts.values(), default=None))
