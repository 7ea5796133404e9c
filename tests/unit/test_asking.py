"""How a question ended that the PACS did not answer whole."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import pytest

from migrate.errors import QueryFailed, QueryRefused
from migrate.model import StudyFound, Window, WindowFailed
from migrate.sources import Source
from migrate.stages.asking import Question, ask_each


class Unanswered:
    """A source all of whose answers end with that error."""

    def __init__(self, error: type[QueryFailed] | type[QueryRefused]) -> None:
        self.habits: dict[str, tuple[str, str]] = {}
        self._error = error

    def by_patient(self) -> bool:
        return False

    @contextlib.contextmanager
    def questions(self) -> Iterator[Callable[[Window], Iterable[StudyFound]]]:
        def studies(_: Window) -> Iterable[StudyFound]:
            raise self._error("no answer")

        yield studies


@pytest.mark.parametrize(("lo", "hi", "attempts", "again"), [
    ("20200101", "20201231", 0, True), ("20200101", "20201231", 1, False),  # then in months
    ("20200101", "20200101", 5, True), ("00010101", "18991231", 5, True), ("20400101", "99991231", 5, True),  # which are not cut
])  # fmt: skip
def test_what_is_not_cut_is_asked_again(lo: str, hi: str, attempts: int, again: bool) -> None:
    """What broke off is asked for once more as it is, and more often where it is not cut by date: a day, and years that no study can be from."""
    question = Question(7, Window(lo, hi), attempts, lambda study, _: study)
    for error, expected in ((QueryFailed, again), (QueryRefused, False)):
        source = cast(Source, cast(Any, Unanswered(error)))
        *_, failed = ask_each(source, 1, [question], begun=True)
        assert isinstance(failed, WindowFailed) and failed.retryable is expected
