"""What `check` makes of what it measures."""

from __future__ import annotations

from migrate.jobs.preflight import fsync_told
from migrate.model import Finding


def test_a_disk_that_syncs_slowly_is_told() -> None:
    """A warning with a hint where a sync takes long under staging or under the manifest; both costs are named."""
    assert fsync_told(4.0, 2.5) == Finding("fsync", "ok", "4.0 ms for staging, 2.5 ms for the manifest.", "", "local")
    for staging_ms, manifest_ms in ((80.0, 1.0), (1.0, 80.0)):
        told = fsync_told(staging_ms, manifest_ms)
        assert told.level == "warn" and "SSD" in told.hint and f"{staging_ms:.1f} ms for staging" in told.detail
