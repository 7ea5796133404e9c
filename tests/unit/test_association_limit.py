"""How many associations a PACS is asked for at once, and who waits for one."""

from __future__ import annotations

import contextlib
import threading

import pytest

from migrate.dicom.upper_layer import Rejected
from migrate.errors import Interrupted, SourceUnreachable
from migrate.sources.dimse.association_limit import AssociationLimit


def at_once(places: AssociationLimit, most: int = 9) -> int:
    """How many places are given while none is given back; whoever gets none is told, since nobody waits."""
    with contextlib.ExitStack() as stack:
        for number in range(most):
            try:
                stack.enter_context(places.one())
            except Interrupted:
                return number
    return most


def stopped() -> threading.Event:
    event = threading.Event()
    event.set()
    return event


def test_whoever_waits_when_the_run_stops_is_not_to_blame() -> None:
    """No study and no question has failed for that: the error is the run's."""
    places = AssociationLimit(1, stopped())
    with places.one(), pytest.raises(Interrupted) as told, places.one():
        pass
    assert told.value.scope == "run"


def rejected(places: AssociationLimit) -> None:
    """One that the PACS turns down for now."""
    with contextlib.suppress(SourceUnreachable), places.one():
        raise SourceUnreachable("no") from Rejected(2, 3, 2)


def test_a_rejection_tells_how_many_there_may_be() -> None:
    """As many as were open besides the one that was rejected; a rejection of the only one tells nothing, nor does another trouble."""
    places = AssociationLimit(None, stopped())
    rejected(places)
    with contextlib.suppress(SourceUnreachable), places.one(), places.one():
        raise SourceUnreachable("nobody answers")
    assert at_once(places) == 9
    with places.one(), places.one():
        rejected(places)
    assert at_once(places) == 2


def test_after_a_while_one_more_is_tried() -> None:
    """A hundred associations without a rejection; but never more than are allowed."""
    places = AssociationLimit(3, stopped())
    with places.one():
        rejected(places)
    seen = set()
    for _ in range(300):
        with places.one():
            pass
        seen.add(at_once(places))
    assert (min(seen), max(seen)) == (1, 3)
