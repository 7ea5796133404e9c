"""What waits for one of the pipeline's two threads: many put in, one takes, as much at once as is worth it."""

from __future__ import annotations

import functools
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

CHUNK = 100
"""So many facts of a long answer are handed on together, as a list."""
_ENTRIES, _FACTS, _PATIENCE_S = 512, 10_000, 1.0  # that are taken at once; and how long the rows of a long answer wait for as many
_TICK_S = 0.01


class Unhurried(functools.partial[Any]):
    """To be called in its turn, and nobody waits for that: who puts in anything else to be called does."""


class Inbox:
    """Facts, lists of them, files, and what is to be called in between; no more than `most` entries. Safe for threads; one takes."""

    def __init__(self, most: int) -> None:
        self._queue: queue.Queue[Any] = queue.Queue(maxsize=most)
        self._awaited = threading.Event()

    def put(self, entry: object, timeout_s: float) -> bool:
        """False where there was no room for so long."""
        try:
            self._queue.put(entry, timeout=timeout_s)
        except queue.Full:
            return False
        if entry is None or (callable(entry) and not isinstance(entry, Unhurried)):
            self._awaited.set()
        return True

    def take(self, until: float = 0.0, more_comes: Callable[[], bool] = lambda: False) -> list[Any]:
        """What is there, at least one; and what is put in until then (on the clock of `time.monotonic`) as long as `more_comes`, unless
        somebody waits.

        Of a long answer, whose end is still to come, many rows together: each page of the manifest that they touch is written once.
        """
        batch, patience = [self._queue.get()], time.monotonic() + _PATIENCE_S
        facts = _facts(batch[0])
        amid_answer, last = facts >= CHUNK, False
        while len(batch) < _ENTRIES and facts < _FACTS:
            try:
                batch.append(self._queue.get(timeout=max(patience - time.monotonic(), 0.0)) if amid_answer else self._queue.get_nowait())
            except queue.Empty:
                if amid_answer or last:
                    break
                last = self._waited(until, more_comes)
                continue
            facts += _facts(batch[-1])
            amid_answer = amid_answer and _facts(batch[-1]) >= CHUNK
        return batch

    def _waited(self, until: float, more_comes: Callable[[], bool]) -> bool:
        """Wait for a moment, without waking for each entry; whether that was the last time."""
        left_s = until - time.monotonic()
        if left_s > 0 and not self._awaited.is_set() and more_comes():
            self._awaited.wait(min(left_s, _TICK_S))
            return False
        self._awaited.clear()
        return True


def _facts(entry: object) -> int:
    return len(entry) if isinstance(entry, list) else 0
