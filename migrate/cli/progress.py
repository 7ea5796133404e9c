"""Progress on stderr: bars on a terminal, a plain line every 30 s elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import click
from tqdm import tqdm

from migrate.model import (
    InstanceStaged,
    InstanceStored,
    InstanceVerified,
    Outcome,
    StudyFound,
    StudyPlanned,
)

_LINE_S = 30.0
_STAGES = (("enumerate", "row"), ("plan", "study"), ("retrieve", "img"), ("upload", "img"), ("verify", "img"))


class Progress:
    """Counts committed facts by stage; `expected` grows as plans are committed."""

    def __init__(self) -> None:
        self.done = dict.fromkeys((name for name, _ in _STAGES), 0)
        self.total: dict[str, int | None] = dict.fromkeys(self.done, None)
        self.size_bytes = 0
        self._began = self._said = time.monotonic()
        self.known: Callable[[], int] = lambda: 0  # how many studies have been found anew
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
            self._say()

    def __call__(self, outcomes: list[Outcome]) -> None:
        """Take in a committed batch."""
        for outcome in outcomes:
            match outcome:
                case StudyFound():
                    self.done["enumerate"] += 1
                case StudyPlanned(series=series):
                    self.done["plan"] += 1
                    more = sum(len(one.sops) for one in series)
                    for stage in ("retrieve", "upload", "verify"):
                        self.total[stage] = (self.total[stage] or 0) + more
                case InstanceStaged(received=received):
                    self.done["retrieve"] += 1
                    self.size_bytes += received.rolled.size_bytes
                case InstanceStored():
                    self.done["upload"] += 1
                case InstanceVerified():
                    self.done["verify"] += 1
        self.total["plan"] = self.known()
        self._show()

    def _show(self) -> None:
        for name, bar in self._bars.items():
            bar.total = self.total[name]
            bar.n = self.done[name]
            if name == "retrieve":
                bar.set_postfix_str(f"{self._rate() / 1e6:.1f} MB/s", refresh=False)
            bar.refresh()
        if not self._bars and time.monotonic() - self._said >= _LINE_S:
            self._say()

    def _rate(self) -> float:
        return self.size_bytes / max(time.monotonic() - self._began, 0.001)

    def _say(self) -> None:
        self._said = time.monotonic()
        parts = [f"{name} {self.done[name]}" + (f"/{self.total[name]}" if self.total[name] is not None else "") for name in self.done]
        rate = self.done["verify"] / max(self._said - self._began, 0.001)
        left = (self.total["verify"] or 0) - self.done["verify"]
        eta = f", ETA {left / rate:.0f} s" if rate and left > 0 else ""
        click.echo(f"{', '.join(parts)}; {self._rate() / 1e6:.1f} MB/s{eta}", err=True)
