"""What a question leaves on record, and how it ended where the PACS did not answer it whole."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, cast

import pytest

from migrate.errors import PacsMigrateError, QueryFailed, QueryRefused, SourceUnreachable
from migrate.model import StudyFound, StudyRef, Window, WindowAnswered, WindowAsked, WindowFailed
from migrate.sources import Source
from migrate.stages.asking import Question, ask_each

STUDY = StudyFound(StudyRef("1.2"), "20200101")


class Answering:
    """A source all of whose answers are one study, and end with that error if there is one."""

    def __init__(self, error: type[PacsMigrateError] | None = None) -> None:
        self.habits: dict[str, tuple[str, str]] = {}
        self._error = error

    def by_patient(self) -> bool:
        return False

    @contextlib.contextmanager
    def questions(self) -> Iterator[Callable[[Window], Iterable[StudyFound]]]:
        def studies(_: Window) -> Iterable[StudyFound]:
            yield STUDY
            if self._error is not None:
                raise self._error("no answer")

        yield studies


def source(error: type[PacsMigrateError] | None = None) -> Source:
    return cast(Source, cast(Any, Answering(error)))


DAY = Window("20200101", "20200101")
BOTH = [Question(number, DAY, 0, lambda study, _: study) for number in (7, 8)]
ANSWERED = [[WindowAsked(number), replace(STUDY, window_id=number), WindowAnswered(number, 1, None)] for number in (7, 8)]


def test_a_question_is_on_record_before_its_rows() -> None:
    """What a killed process noted of an answer is forgotten as it is asked for again; one question follows the other."""
    assert list(ask_each(source(), 1, BOTH, begun=True)) == ANSWERED[0] + ANSWERED[1]


def test_after_a_while_what_the_answers_show_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """The questions that are left are not asked, which may not be worth asking any more."""
    monkeypatch.setattr("migrate.stages.asking._ASKING_S", -1.0)
    assert list(ask_each(source(), 1, BOTH, begun=True)) == ANSWERED[0]


def test_a_pacs_that_is_away_is_no_questions_failure() -> None:
    """The run is told, and no question has been asked in vain."""
    outcomes = ask_each(source(SourceUnreachable), 1, BOTH, begun=True)
    assert [next(outcomes), next(outcomes)] == ANSWERED[0][:2]
    with pytest.raises(SourceUnreachable):
        next(outcomes)


@pytest.mark.parametrize(("lo", "hi", "attempts", "again"), [
    ("20200101", "20201231", 0, True), ("20200101", "20201231", 1, False),  # then in months
    ("20200101", "20200101", 5, True), ("00010101", "18991231", 5, True), ("20400101", "99991231", 5, True),  # which are not cut
])  # fmt: skip
def test_what_is_not_cut_is_asked_again(lo: str, hi: str, attempts: int, again: bool) -> None:
    """What broke off is asked for once more as it is, and more often where it is not cut by date: a day, and years that no study can be from."""
    question = Question(7, Window(lo, hi), attempts, lambda study, _: study)
    for error, expected in ((QueryFailed, again), (QueryRefused, False)):
        *_, failed = ask_each(source(error), 1, [question], begun=True)
        assert isinstance(failed, WindowFailed) and failed.retryable is expected
