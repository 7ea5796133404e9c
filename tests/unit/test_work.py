"""Whose fault it is when something fails: the object's or the study's, the store's or the PACS's, or nobody's yet."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from migrate.config import FolderSettings
from migrate.errors import (
    DestinationBusy,
    DestinationError,
    DestinationRefused,
    DestinationUnreachable,
    ObjectDiffers,
    PutFailed,
    QueryFailed,
    SourceUnreachable,
)
from migrate.model import DestinationLost, Failed, InstanceStored, Item, Outcome, Receipt, StagedLost, StudyPlanned, StudyRef, object_key
from migrate.sources import Source
from migrate.stages.work import Batch, Done, _each, plan, upload
from tests.places import staged

GONE, FULL, BUSY = DestinationUnreachable("no answer"), DestinationRefused("no rights"), DestinationBusy("slow down")


class Store:
    """Does what it is told with each item, by its place in the batch: the errors one after the other, then it serves."""

    def __init__(self, folder: Path, count: int = 3, *, refused_before: bool = False, last: bool = False, **troubles: list[DestinationError]) -> None:
        folder.mkdir(exist_ok=True)
        self._items = [staged(folder, b"%d" % number)[0] for number in range(count)]
        self._batch = Batch(FolderSettings(folder / "bucket"), tuple((item, None) for item in self._items), refused_before=refused_before, last=last)
        self._troubles = troubles
        self.asked: list[int] = []

    def put(self, does: Callable[[Item], Done] | None = None) -> list[int | str]:
        """What is done with the batch: the numbers of what was stored, and the names of errors that the study is told of. Raises what ends it."""

        def do(item: Item, file: Path | None) -> Done:
            number = self._items.index(item)
            self.asked.append(number)
            if troubles := self._troubles.get(f"n{number}"):
                raise troubles.pop(0)
            return does(item) if does else (InstanceStored(item, Receipt("k")), None)

        return [
            outcome.error if isinstance(outcome, Failed) else self._items.index(outcome.item)  # type: ignore[union-attr]
            for outcome in _each(self._batch, "upload", do)
        ]


def test_objects_that_fail_are_one_attempt_of_their_study(tmp_path: Path) -> None:
    """The others are stored, and the first error is the study's."""
    store = Store(tmp_path, n0=[PutFailed("a")], n2=[ObjectDiffers("b")])
    assert store.put() == [1, "PutFailed"]


def test_an_error_that_comes_with_an_outcome_is_the_studys_too(tmp_path: Path) -> None:
    """What is on record is not enough: an attempt is used up."""
    store = Store(tmp_path, 1)
    assert store.put(lambda item: (InstanceStored(item, Receipt("k")), ObjectDiffers("c"))) == [0, "ObjectDiffers"]


def test_an_object_that_fails_once_is_tried_again(tmp_path: Path) -> None:
    """After others were served; it costs no attempt."""
    assert Store(tmp_path, n0=[GONE]).put() == [1, 2, 0]


def test_an_object_that_fails_while_others_are_served_is_to_blame(tmp_path: Path) -> None:
    """By name, and not the store."""
    assert Store(tmp_path, n1=[GONE, GONE]).put() == [0, 2, "ObjectRefused"]


def test_two_that_fail_in_a_row_are_the_stores_fault(tmp_path: Path) -> None:
    """Nothing more is asked of it; between them one that was served would speak for it."""
    store = Store(tmp_path, n0=[GONE], n1=[GONE])
    with pytest.raises(DestinationUnreachable):
        store.put()
    assert store.asked == [0, 1]
    assert Store(tmp_path, n0=[GONE], n2=[GONE]).put() == [1, 0]  # the other one is asked for with the next job


def test_of_one_alone_nobody_knows(tmp_path: Path) -> None:
    """Whether the store would serve others is not known: it is the store's trouble, unless this study is known for such an object."""
    for last in (False, True):  # a folder never says that it serves
        store = Store(tmp_path / f"{last}", 1, n0=[GONE, GONE], last=last)
        with pytest.raises(DestinationUnreachable):
            store.put()
        assert store.asked == [0]
    assert Store(tmp_path / "before", 1, n0=[GONE, GONE], refused_before=True).put() == ["ObjectRefused"]


def test_a_file_that_is_lost_here_says_nothing_of_the_store(tmp_path: Path) -> None:
    """It was not asked for it, and so has served nobody since it failed."""
    store = Store(tmp_path, n0=[GONE])
    with pytest.raises(DestinationUnreachable):
        store.put(lambda item: (StagedLost(item, "gone"), None))
    assert store.asked == [0, 1, 2]


@pytest.mark.parametrize("trouble", [FULL, BUSY], ids=["refused", "busy"])
def test_what_hits_every_object_ends_the_batch(tmp_path: Path, trouble: DestinationError) -> None:
    """At once, whatever was served before, and also where an object is tried again."""
    for folder, first in (("once", [trouble]), ("again", [GONE, trouble])):
        store = Store(tmp_path / folder, n1=first)
        with pytest.raises(type(trouble)):
            store.put()
        assert store.asked == ([0, 1] if folder == "once" else [0, 1, 2, 1])


def test_a_taken_key_costs_no_attempt_until_the_one_beside_it_is_taken_too(tmp_path: Path) -> None:
    """The sound copy goes beside what is foreign; only where something foreign stands there as well has the study failed."""
    settings = FolderSettings(tmp_path / "bucket")
    for beside, expected in ((False, []), (True, ["KeyTaken"])):
        item, file = staged(tmp_path, b"ours" * 100, beside=beside)
        taken = settings.path / object_key(item.ref, beside=item.fixity.dataset_sha256 if beside else None)
        taken.parent.mkdir(parents=True, exist_ok=True)
        taken.write_bytes(b"foreign")
        lost, *failed = upload(Batch(settings, ((item, file),)))
        assert isinstance(lost, DestinationLost) and lost.file_kept
        assert [each.error for each in failed if isinstance(each, Failed)] == expected


class Listing:
    """A source that lists each study as empty, or is away."""

    def __init__(self, *, away: bool = False) -> None:
        self._away = away

    @contextlib.contextmanager
    def listing(self) -> Iterator[Callable[[StudyRef], StudyPlanned]]:
        def instances(study: StudyRef) -> StudyPlanned:
            if self._away:
                raise SourceUnreachable("away")
            if study == STUDIES[0]:
                raise QueryFailed("no answer")
            return StudyPlanned(study, ())

        yield instances


STUDIES = [StudyRef("1.1"), StudyRef("1.2")]


def listing(*, away: bool = False) -> list[Outcome]:
    return list(plan(cast(Source, cast(Any, Listing(away=away))), STUDIES))


def test_a_study_that_is_not_listed_is_no_reason_not_to_list_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has failed by name; after a while the others are left to the next job, so that what is known goes on record."""
    failed = Failed(STUDIES[0], "plan", "QueryFailed", "no answer")
    assert listing() == [failed, StudyPlanned(STUDIES[1], ())]
    monkeypatch.setattr("migrate.stages.work._LISTING_S", -1.0)
    assert listing() == [failed]


def test_a_pacs_that_is_away_is_no_studys_failure() -> None:
    """The run is told."""
    with pytest.raises(SourceUnreachable):
        listing(away=True)
