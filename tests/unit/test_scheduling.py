"""How long a step pauses when its peer is in trouble."""

from __future__ import annotations

import time

from migrate.scheduling import Stage


def pauses(stage: Stage, expected_s: float, factor: float = 1.0) -> bool:
    """Whether a failure that comes when no pause is going on makes one of that length, however slow this machine is."""
    stage.paused_until, before = 0.0, time.monotonic()
    stage.pause(factor)
    return before + expected_s <= stage.paused_until <= time.monotonic() + expected_s


def stage() -> Stage:
    return Stage("upload", lambda busy, limit: (), lambda job: (), workers=4)


def test_a_pause_doubles_up_to_a_minute_and_begins_anew_after_success() -> None:
    """Half a second, a second, two ... sixty; what goes well puts it back to half a second."""
    one = stage()
    expected = (0.5, 1, 2, 4, 8, 16, 32, 60, 60)
    assert [pauses(one, length) for length in expected] == [True] * len(expected)
    one.went_well()
    assert pauses(one, 0.5)


def test_workers_that_fail_together_make_one_pause() -> None:
    """Failures within a pause neither lengthen it nor the next one."""
    one = stage()
    one.paused_until = until = time.monotonic() + 1000
    for _ in range(8):
        one.pause(1.0)
    assert one.paused_until == until
    assert pauses(one, 0.5)


def test_an_error_may_ask_for_a_longer_pause() -> None:
    """Ten times as long for a store that throttles, and never more than a minute."""
    one = stage()
    assert pauses(one, 5.0, factor=10.0)
    assert pauses(one, 60.0, factor=1000.0)


def test_what_goes_well_ends_no_pause_of_others() -> None:
    """A worker that was served begins no sooner than the others; a step that rests does so after each job."""
    one = stage()
    one.paused_until = until = time.monotonic() + 1000
    one.went_well()
    assert one.paused_until == until
    resting, before = stage(), time.monotonic()
    resting.rest_s = 1000
    resting.went_well()
    assert before + 1000 <= resting.paused_until <= time.monotonic() + 1000
