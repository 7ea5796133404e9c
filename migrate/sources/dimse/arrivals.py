"""What has come from the PACS of the studies that are being retrieved."""

from __future__ import annotations

import threading
import time

from migrate.model import InstanceRef, Received

_RECENT = 3


class Arrivals:
    """What has come of the studies being retrieved, by UID."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.by_study: dict[str, set[tuple[str, str]]] = {}
        self.counts: dict[str, int] = {}  # repeats included
        self.last_at: dict[str, float] = {}
        self.total = 0
        self.any_at = 0.0  # when the last one came
        self.recent: dict[str, InstanceRef] = {}  # one image each of the studies that came last

    def add(self, received: Received) -> None:
        with self.lock:
            self.total += 1
            self.any_at = time.monotonic()
            ref = received.ref
            if ref is not None and ref.study not in self.recent:
                self.recent[ref.study] = ref
                if len(self.recent) > _RECENT:
                    del self.recent[next(iter(self.recent))]
            study = ref.study if ref is not None else received.claimed[0]
            if study in self.by_study:
                self.counts[study] += 1
                self.last_at[study] = time.monotonic()
                if ref is not None:
                    self.by_study[study].add((ref.series, ref.sop))

    def begin(self, study: str) -> None:
        """Keep account of what comes of this study, until `end`."""
        with self.lock:
            self.by_study[study], self.counts[study], self.last_at[study] = set(), 0, 0.0

    def end(self, study: str) -> None:
        with self.lock:
            for table in (self.by_study, self.counts, self.last_at):
                table.pop(study, None)
