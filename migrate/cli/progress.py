"""Progress on stderr: bars on a terminal, a plain line every 30 s elsewhere."""

from __future__ import annotations

import collections
import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import click
from tqdm import tqdm

from migrate.counted import counted
from migrate.model import (
    InstanceStaged,
    InstanceStored,
    InstanceVerified,
    Outcome,
    StudyConfirmed,
    StudyFound,
    StudyPlanned,
)
from migrate.reports.status import duration

_LINE_S = 30.0
_LOOK_BACK_S = 120.0
"""Rates are those of this time: a run of weeks is not judged by its first hour."""
_STAGES = (("enumerate", "row"), ("plan", "study"), ("retrieve", "img"), ("upload", "img"), ("verify", "img"), ("confirm", "study"))
_IMAGES = ("retrieve", "upload", "verify")


class Progress:
    """Counts committed facts by stage; totals grow as studies are found and plans are committed.

    `before` is the `status` document of the moment before the run: what earlier runs left to do counts in the totals.
    """

    def __init__(self, before: Mapping[str, Any] | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.done = dict.fromkeys((name for name, _ in _STAGES), 0)
        self.size_bytes = dict.fromkeys(_IMAGES, 0)
        self.known: Callable[[], int] = lambda: 0  # how many studies have been found anew
        self._images_planned = 0
        self._before = {"plan": 0, "retrieve": 0, "upload": 0, "verify": 0, "confirm": 0}
        if before is not None:
            studies, images = before["studies"], before["instances"]
            self._before["plan"] = studies["found"]
            self._before["confirm"] = studies["planned"] + studies["retrieved"]
            self._before["retrieve"] = images["expected"]
            self._before["upload"] = images["expected"] + images["staged"]
            self._before["verify"] = images["expected"] + images["staged"] + images["stored"]
        self._clock = clock
        self._said = clock()
        self._seen = collections.deque([(self._said, dict(self.done), dict(self.size_bytes))])
        self._bars: dict[str, Any] = {}
        if sys.stderr.isatty():
            self._bars = {name: tqdm(desc=f"{name:10}", unit=unit, position=place, leave=True, dynamic_ncols=True)
                          for place, (name, unit) in enumerate(_STAGES)}  # fmt: skip

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for bar in self._bars.values():
            bar.close()
        if not self._bars:
            self._say(ended=True)

    def __call__(self, outcomes: list[Outcome]) -> None:
        """Take in a committed batch."""
        for outcome in outcomes:
            match outcome:
                case StudyFound():
                    self.done["enumerate"] += 1
                case StudyPlanned(series=series):
                    self.done["plan"] += 1
                    self._images_planned += sum(len(one.sops) for one in series)
                case InstanceStaged(received=received):
                    self._image("retrieve", received.rolled.size_bytes)
                case InstanceStored(item=item):
                    self._image("upload", item.fixity.size_bytes)
                case InstanceVerified(item=item):
                    self._image("verify", item.fixity.size_bytes)
                case StudyConfirmed():
                    self.done["confirm"] += 1
        self._show()

    def _image(self, stage: str, size_bytes: int) -> None:
        self.done[stage] += 1
        self.size_bytes[stage] += size_bytes

    def total(self, stage: str) -> int | None:
        """What the stage has to do as far as it is known; None where that is not known."""
        if stage == "enumerate":
            return None
        more = self.known() if stage == "plan" else self.done["plan"] if stage == "confirm" else self._images_planned
        total = self._before[stage] + more
        return total if total >= self.done[stage] else None

    def rate(self, stage: str) -> float:
        """Of late, a second."""
        then, done, _ = self._seen[0]
        return (self.done[stage] - done[stage]) / max(self._clock() - then, 0.001)

    def rate_bytes(self, stage: str) -> float:
        """Of late, bytes a second."""
        then, _, size_bytes = self._seen[0]
        return (self.size_bytes[stage] - size_bytes[stage]) / max(self._clock() - then, 0.001)

    def eta_s(self, stage: str) -> float | None:
        """Seconds until the stage has done what is known; None where nothing is left, nothing moves or it is not known."""
        total, rate = self.total(stage), self.rate(stage)
        if total is None or not rate:
            return None
        studies = self.total("plan")
        if stage != "plan" and self.done["plan"] and studies is not None:  # what is found and not listed yet has as much as the others
            each = 1.0 if stage == "confirm" else self._images_planned / self.done["plan"]
            total += round((studies - self.done["plan"]) * each)
        return (total - self.done[stage]) / rate if total > self.done[stage] else None

    def _show(self) -> None:
        now = self._clock()
        if now - self._seen[-1][0] >= 1:
            self._seen.append((now, dict(self.done), dict(self.size_bytes)))
            while len(self._seen) > 2 and now - self._seen[1][0] >= _LOOK_BACK_S:
                self._seen.popleft()
        for name, bar in self._bars.items():
            bar.total = self.total(name)
            bar.update(self.done[name] - bar.n)
            if name in _IMAGES:
                bar.set_postfix_str(f"{self.rate_bytes(name) / 1e6:.1f} MB/s", refresh=False)
            bar.refresh()
        if not self._bars and now - self._said >= _LINE_S:
            self._say()

    def _say(self, *, ended: bool = False) -> None:
        """A line of the stages that have, or had, anything to do; at the end only if there was one."""
        self._said = self._clock()
        words = [self._words(name) for name in self.done if self.done[name] or self.total(name)]
        left = [] if ended else [eta for name, _ in _STAGES if (eta := self.eta_s(name)) is not None]
        if words or not ended:
            click.echo((", ".join(words) or "no answer yet") + (f"; ETA {duration(max(left))}" if left else ""), err=True)

    def _words(self, name: str) -> str:
        total, rate = self.total(name), self.rate(name)
        speed = [f"{rate:,.1f}/s"] if rate else []
        speed += [f"{self.rate_bytes(name) / 1e6:,.1f} MB/s"] if rate and name in _IMAGES else []
        count = counted(self.done[name], "row") if name == "enumerate" else f"{self.done[name]}" + (f"/{total}" if total is not None else "")
        return f"{name} {count}" + (f" ({', '.join(speed)})" if speed else "")
