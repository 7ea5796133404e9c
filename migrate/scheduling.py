"""One step of the way: what is ready, who does it, and how long it pauses when its peer is in trouble."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Any

from migrate.errors import PacsMigrateError
from migrate.model import Outcome

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 60.0


@dataclass
class Stage:
    """`ready(busy, limit)` yields (key, job) pairs, `work(job)` returns outcomes.

    `ahead`: so many jobs more than there are workers wait in line, so that nobody waits for a commit. `rest_s`: nothing is begun for so
    long after a job, so that more gathers for the next one.
    `ordered` sends its outcomes behind the files that arrived before them. `executor` runs the jobs: threads of this process
    by default; for others `work`, jobs and outcomes have to be such as can be pickled.
    """

    name: str
    ready: Callable[[set[Hashable], int], Iterable[tuple[Hashable, Any]]]
    work: Callable[[Any], Iterable[Outcome]]
    workers: int
    ahead: int = 0
    rest_s: float = 0.0
    ordered: bool = False
    side: str = "source"
    gate: Callable[[], bool] = lambda: True
    executor: Executor | None = None
    busy: dict[Hashable, Future[Any]] = field(default_factory=dict)
    paused_until: float = 0.0
    failing_since: float | None = None
    wait_s: float = _FIRST_PAUSE_S

    def went_well(self) -> None:
        self.failing_since, self.wait_s = None, _FIRST_PAUSE_S
        self.paused_until = max(self.paused_until, time.monotonic() + self.rest_s)

    def take_back(self) -> None:
        """Begin nothing of what is in line; it will be ready again."""
        for future in list(self.busy.values()):
            future.cancel()

    def pause(self, factor: float) -> None:
        """Start nothing for a while, twice as long each time. Workers that fail together make one pause."""
        now = time.monotonic()
        if now >= self.paused_until:
            self.paused_until = now + min(self.wait_s * factor, _LONGEST_PAUSE_S)
            self.wait_s = min(self.wait_s * 2, _LONGEST_PAUSE_S)


def collect(work: Callable[[Any], Iterable[Outcome]], job: Any) -> tuple[list[Outcome], PacsMigrateError | None]:
    """The outcomes of a job, and by which error it ended, if by one: what was done before it is done."""
    outcomes: list[Outcome] = []
    try:
        outcomes.extend(work(job))
    except PacsMigrateError as error:
        return outcomes, error
    return outcomes, None
