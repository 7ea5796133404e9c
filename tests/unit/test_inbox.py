"""What the commit thread takes at once: as much as comes while more is on its way, and nobody waits for that."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from migrate.inbox import CHUNK, Inbox, Unhurried

LONG_S = 600.0


def filled(*entries: object) -> Inbox:
    inbox = Inbox(100)
    for entry in entries:
        assert inbox.put(entry, 0)
    return inbox


def asked(answers: list[bool], then: Callable[[], object] = lambda: None) -> Callable[[], bool]:
    """Says whether more comes, and does something whenever it is asked."""

    def more_comes() -> bool:
        then()
        return answers.pop(0)

    return more_comes


def test_what_comes_meanwhile_is_taken_together() -> None:
    """What workers put in within the beat is in the same batch, also the end of a job; and it ends as soon as nothing more comes."""
    inbox, ended = filled("a"), Unhurried(lambda: None)
    assert inbox.take(time.monotonic() + LONG_S, asked([True, True, False], lambda: inbox.put(ended, 0))) == ["a", ended, ended, ended]


def test_a_beat_has_an_end() -> None:
    """However much is on its way."""
    assert filled("a", "b").take(time.monotonic() + 0.05, lambda: True) == ["a", "b"]


def test_whoever_waits_is_not_kept_waiting() -> None:
    """What is to be called at once, or the end of the thread, ends the beat, be it there before or put in meanwhile; the next beat is a whole one."""
    done = threading.Event().set
    for entry in (done, None):
        assert filled("a", entry).take(time.monotonic() + LONG_S, asked([])) == ["a", entry]
    inbox = filled("a")
    waiting = threading.Timer(0.1, inbox.put, (done, 0))
    waiting.start()
    assert inbox.take(time.monotonic() + LONG_S, lambda: True) == ["a", done]
    waiting.join()
    assert inbox.put("b", 0)
    assert inbox.take(time.monotonic() + LONG_S, asked([True, False])) == ["b"]


def test_rows_of_a_long_answer_are_waited_for_until_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of it comes a moment later, and is in the same batch; its end is no reason to wait for more."""
    monkeypatch.setattr("migrate.inbox._PATIENCE_S", LONG_S)
    rows = ["row"] * CHUNK
    waiting = filled(rows)
    later = threading.Timer(0.1, lambda: [waiting.put(entry, 0) for entry in (rows, "end")])
    later.start()
    assert waiting.take() == [rows, rows, "end"]
    later.join()


def test_no_batch_is_larger_than_memory_bears() -> None:
    """Neither by its rows nor by its entries."""
    rows = ["row"] * 5000
    assert filled(rows, rows, rows, "end").take() == [rows, rows]
    many = Inbox(1000)
    assert all(many.put("a", 0) for _ in range(600))
    assert len(many.take()) == 512


def test_no_more_than_so_many_wait() -> None:
    """Whoever puts in more is told."""
    inbox = Inbox(1)
    assert (inbox.put("a", 0), inbox.put("b", 0.01)) == (True, False)
    assert inbox.take() == ["a"]
