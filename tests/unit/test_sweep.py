"""What a sweep makes of answers, over a real manifest and without a PACS: which questions it asks, and which of them block."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from migrate.manifest import Manifest, Queue
from migrate.model import Outcome, RetryPolicy, StudyFound, StudyRef, Window, WindowAnswered, WindowAsked, WindowFailed, WindowsPlanned
from migrate.stages.census import judge
from migrate.stages.questions import first_windows, parts
from migrate.stages.sweep import Sweep, prove
from tests.filled import IDENTITY

DATES = ("19990101", "20050607", "20050608", "20200229")
TODAY = datetime.date(2026, 7, 1)
Answer = Callable[[Window], bool]
"""Whether a question has a whole answer."""


class Asking:
    """A sweep of a PACS that has a study on each of some dates, and answers some questions only."""

    def __init__(self, folder: Path) -> None:
        self.manifest = Manifest(folder / "m.db", identity=IDENTITY, policy=RetryPolicy(attempts=2, first_wait_s=0, max_wait_s=0))
        self.manifest.begin_run("enumerate", "op", "")
        self.queue = Queue(folder / "m.db")
        self.manifest.commit([WindowsPlanned(1, first_windows(None, None, TODAY))])

    def to_its_end(self, answers: Answer, sweep: int = 1) -> None:
        """Ask until nothing is left to ask or to say."""
        while True:
            for window_id, window, _, _ in self.queue.windows_to_ask(sweep, 10_000):
                self.manifest.commit([WindowAsked(window_id), *self._answer(window_id, window, answers(window))])
            judged = judge(Sweep(sweep, self.queue.windows(sweep), self.queue.habits(), self.queue.shown_only_by))
            if not judged and not self.queue.windows_to_ask(sweep, 1):
                return
            self.manifest.commit(judged)

    def _answer(self, window_id: int, window: Window, whole: bool) -> Iterator[Outcome]:
        if not whole:
            yield WindowFailed(window_id, "QueryFailed", "it broke off", retryable=False)
            return
        studies = [date for date in DATES if (window.lo or "") <= date <= (window.hi or "9")]
        yield from (StudyFound(StudyRef(f"1.2.{date}"), date, ("CT",), 1, window_id) for date in studies)
        yield WindowAnswered(window_id, len(studies))

    def blocking(self) -> list[Window]:
        return [Window(row["lo"], row["hi"], row["axis"]) for row in self.queue.windows(1) if row["blocks"]]


@pytest.fixture
def asking(tmp_path: Path) -> Iterator[Asking]:
    opened = Asking(tmp_path)
    yield opened
    opened.queue.close()
    opened.manifest.close()


def is_of_any_year(window: Window) -> bool:
    """By date, and not of years alone that a study can be from."""
    return window.axis == "date" and not ((window.lo or "") >= "1900" and (window.hi or "9") < "2040")


def test_years_without_an_answer_that_no_study_can_be_from_block_nothing(asking: Asking) -> None:
    """The question without a key, compared with those by date, shows that nothing hides there."""
    asking.to_its_end(lambda window: not is_of_any_year(window))
    assert asking.blocking() == []
    suspicions = [row["suspicion"] for row in asking.queue.windows(1) if row["suspicion"] and row["state"] == 2]
    assert len(suspicions) == 2 and all("Questions without a date cover it" in each for each in suspicions)


def test_they_do_where_the_question_without_a_key_has_no_answer_either(asking: Asking) -> None:
    """Nor any other key: then nothing shows what is in them."""
    asking.to_its_end(lambda window: window.axis == "date" and not is_of_any_year(window))
    assert asking.blocking() == [Window(None, None, "all"), Window("00010101", "18991231"), Window("20400101", "99991231")]


def test_what_a_killed_process_noted_of_an_answer_is_forgotten(asking: Asking) -> None:
    """Asked for again it counts what is shown then, and nothing else."""
    (window_id, *_), *_ = asking.queue.windows_to_ask(1, 1)
    asking.manifest.commit([WindowAsked(window_id), StudyFound(StudyRef("1.2"), "19690101", window_id=window_id)])
    asking.manifest.commit([WindowAsked(window_id), WindowAnswered(window_id, 0)])
    assert asking.queue.windows(1)[0]["study_count"] == asking.queue.shown_only_by([window_id], []) == 0


@pytest.mark.parametrize("outside", [False, True])
def test_parts_that_show_what_does_not_fit_prove_nothing(asking: Asking, outside: bool) -> None:
    """A key that the PACS ignores, be it in one part alone, is not one that was asked to the end."""
    whole = Window(None, None, "all")
    asking.manifest.commit([WindowsPlanned(2, (whole,))])
    (window_id,) = (row["id"] for row in asking.queue.windows(2))
    asking.manifest.commit([*(StudyFound(StudyRef(f"1.2.{number}"), None, window_id=window_id) for number in range(3)), WindowAnswered(window_id, 3)])
    asking.manifest.commit([WindowsPlanned(2, parts(replace(whole, axis="modality"), "modality")[:2], window_id, "modality")])
    root, *family = asking.queue.windows(2)
    for number, part in enumerate(family):
        found = StudyFound(StudyRef(f"1.2.{number}"), None, window_id=part["id"], outside=outside and number == 1)
        asking.manifest.commit([found, WindowAnswered(part["id"], 1)])
    sweep = Sweep(2, asking.queue.windows(2), {}, asking.queue.shown_only_by)
    assert sweep.whole(root, "modality") is not outside


def test_a_day_that_nothing_narrower_can_check_blocks(asking: Asking) -> None:
    """Its answer may be as long as the PACS makes any: where no part of it has an answer, nobody knows."""
    day = Window("20200229", "20200229")
    asking.manifest.commit([WindowsPlanned(2, (day,))])
    (window_id,) = (row["id"] for row in asking.queue.windows(2))
    asking.manifest.commit([*(StudyFound(StudyRef(f"1.2.{number}"), day.lo, window_id=window_id) for number in range(3)), WindowAnswered(window_id, 3)])
    asking.to_its_end(lambda window: False, sweep=2)
    assert [row["id"] for row in asking.queue.windows(2) if row["blocks"]] == [window_id]


def test_a_part_as_large_as_its_whole_is_cut_further(asking: Asking) -> None:
    """Both may be capped: only what its own parts show tells more."""
    month = Window("20200201", "20200229")
    asking.manifest.commit([WindowsPlanned(2, (month,))])
    (window_id,) = (row["id"] for row in asking.queue.windows(2))
    asking.manifest.commit([WindowsPlanned(2, parts(month, "date"), window_id, "date", "check"), WindowsPlanned(2, (month,), window_id, purpose="again")])
    for row in asking.queue.windows(2):
        shown = 0 if row["lo"] > "20200201" else 2
        studies = (StudyFound(StudyRef(f"1.2.{number}"), "20200203", window_id=row["id"]) for number in range(shown))
        asking.manifest.commit([*studies, WindowAnswered(row["id"], shown)])
    root, half, *_ = asking.queue.windows(2)
    steps = prove(Sweep(2, asking.queue.windows(2), {}, asking.queue.shown_only_by), root)
    assert steps and isinstance(steps[0], WindowsPlanned) and steps[0].parent == half["id"]
