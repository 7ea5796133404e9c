"""What `check` makes of what it measures."""

from __future__ import annotations

import pytest

from migrate.jobs.preflight import exit_code, fsync_told
from migrate.model import Finding


@pytest.mark.parametrize(
    ("failing", "code"),
    [((), 0), (("local",), 22), (("local", "destination"), 21), (("destination", "source", "local"), 20), (("local", "source", "config", "destination"), 2)],
)  # fmt: skip
def test_the_exit_code_is_that_of_what_has_to_be_mended_first(failing: tuple[str, ...], code: int) -> None:
    """The configuration goes before the PACS, the PACS before the destination, and that before this machine, whatever order they were found in; warnings count for nothing."""
    warned = [Finding("any", "warn", "", part=part) for part in ("config", "source", "destination", "local")]
    assert exit_code([*warned, *(Finding("any", "fail", "", part=part) for part in failing)]) == code


def test_a_disk_that_syncs_slowly_is_told() -> None:
    """A warning with a hint where a sync takes long under staging or under the manifest; both costs are named."""
    assert fsync_told(4.0, 2.5) == Finding("fsync", "ok", "4.0 ms for staging, 2.5 ms for the manifest.", "", "local")
    for staging_ms, manifest_ms in ((80.0, 1.0), (1.0, 80.0)):
        told = fsync_told(staging_ms, manifest_ms)
        assert told.level == "warn" and "SSD" in told.hint and f"{staging_ms:.1f} ms for staging" in told.detail
