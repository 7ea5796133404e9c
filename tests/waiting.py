"""Waiting for what is to come true, instead of for time to pass."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable


def until(condition: Callable[[], object], limit_s: float = 30.0, *, during: subprocess.Popen[str] | subprocess.Popen[bytes] | None = None) -> None:
    """Look a hundred times a second. Fails where it does not come true in time, or only after the process has ended that it was to come true during."""
    pause, give_up = threading.Event(), time.monotonic() + limit_s
    while not condition():
        assert during is None or during.poll() is None, "the process ended before"
        assert time.monotonic() < give_up, "waited in vain"
        pause.wait(0.01)
