"""Questions are cut without losing a day."""

from __future__ import annotations

import datetime

import pytest

from migrate.model import EXACT, Window
from migrate.stages.questions import PREFIX_MAX, by_date, by_time, closed, first_windows, is_far, narrower, parts

TODAY = datetime.date(2026, 7, 1)


def following(day: str) -> str:
    return f"{datetime.date(int(day[:4]), int(day[4:6]), int(day[6:])) + datetime.timedelta(1):%Y%m%d}".rjust(8, "0")


@pytest.mark.parametrize(
    ("lo", "hi"),
    [("00010101", "19691231"), ("00010101", "18991231"), ("20280101", "99991231"), ("60200101", "99991231"), ("19990101", "19991231"), ("20240228", "20240301")],
)
def test_parts_by_date_are_the_whole(lo: str, hi: str) -> None:
    """They follow each other without a gap, from the first day to the last."""
    parts = by_date(Window(lo, hi))
    assert (parts[0].lo, parts[-1].hi) == (lo, hi)
    assert [part.lo for part in parts[1:]] == [following(part.hi or "") for part in parts[:-1]]


@pytest.mark.parametrize(("open_ranges", "ends"), [(True, (None, None)), (False, ("00010101", "99991231"))])
def test_a_sweep_begins_with_every_date_there_can_be(open_ranges: bool, ends: tuple[str | None, str | None]) -> None:
    """Open ranges, or closed ones where the PACS makes little of them; an open one can be closed."""
    *dated, keyless = first_windows(None, None, TODAY, open_ranges=open_ranges)
    assert keyless == Window(None, None, "all")
    assert (dated[0].lo, dated[-1].hi) == ends
    assert [part.lo for part in dated[1:]] == [following(part.hi or "") for part in dated[:-1]]
    assert by_date(Window("20280101", None)) == closed(Window("20280101", None)) == (Window("20280101", "99991231"),)


def test_years_that_no_study_can_be_from_are_not_asked_for_one_by_one() -> None:
    """Before 1900 and from 2040 on a range is halved, so that one that is refused does not become thousands."""
    far = [part for window in (Window("00010101", "19691231"), Window("20280101", "99991231")) for part in by_date(window) if is_far(part)]
    assert far == [Window("00010101", "18991231"), Window("20400101", "99991231")]
    assert [len(by_date(window)) for window in far] == [2, 2]
    assert [narrower(window) for window in far] == [(), ()]


def test_halves_of_a_day_share_their_borders() -> None:
    """From its first moment to its last, so that a fraction of a second falls into one of them; down to a second, and never over midnight."""
    for last in (False, True):
        window = Window("20240229", "20240229")
        while halves := by_time(window):
            first, second = halves
            assert (first.time_lo, second.time_hi) == (window.time_lo or "000000", window.time_hi or "235959.999999")
            assert (first.time_hi, first.lo, first.hi, second.lo, second.hi) == (second.time_lo, *("20240229",) * 4)
            window = halves[last]
        assert (window.time_lo, window.time_hi) == (("235959", "235959.999999") if last else ("000000", "000001"))
    assert by_time(Window("20240229", "20240301")) == by_time(Window("20240229", None)) == ()


@pytest.mark.parametrize("key", ["patient", "accession"])
def test_prefixes_are_followed_by_every_longer_one_and_the_value_itself(key: str) -> None:
    """Up to eight characters, more of which would name a patient; what is asked for as a whole value is cut no further."""
    longer = [getattr(part, key) for part in parts(Window(None, None, key, **{key: "AB"}), key)]  # type: ignore[arg-type]
    assert longer[-1] == "AB" + EXACT and {"AB0", "ABZ", "ABz", "AB-"} <= set(longer)
    assert all(each.startswith("AB") and len(each) == 3 for each in longer)
    for value in ("A" * PREFIX_MAX, "AB" + EXACT):
        assert parts(Window(None, None, key, **{key: value}), key) == ()  # type: ignore[arg-type]
    assert EXACT not in [getattr(part, key) for part in parts(Window(None, None, key), key)]  # type: ignore[arg-type]
