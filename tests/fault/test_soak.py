"""Some seconds of what `make soak` does for an hour."""

from __future__ import annotations

from pathlib import Path

from tests.fault.soak import Soak
from tests.s3_server import S3Server


def test_some_seconds_of_kills_and_faults(tmp_path: Path, server: S3Server) -> None:
    """Killed, disturbed and restarted, a migration ends as the generator knows it must; a run beside it goes on all the while."""
    count = Soak(server, tmp_path, seconds=4, seed=2, studies=8, first=20).run()
    print(count.text())
    assert count.wrong == []
    assert count.kills >= 1
    assert count.checks == count.restarts > count.kills
    assert count.objects > 50
    assert count.long_run_verified > 0
    assert len(count.course.samples) > 5
