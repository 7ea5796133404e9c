"""What tests of any kind share: one real S3 server a test process, the keys that it takes, and an empty manifest."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from migrate.manifest import Manifest
from tests.filled import fresh_manifest
from tests.s3_server import ENVIRONMENT, S3Server, seaweedfs

settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no failure
settings.load_profile("busy")

_MEMORY, _ROOM_BYTES = Path("/dev/shm"), 6 << 30


def pytest_configure() -> None:
    """How long a sync takes is not what is looked at: where there is room, the folders of tests stand in memory. TMPDIR names another place.
    Peers are those that the system has: pynetdicom brings a `storescp` and a `findscu` of its own into each environment."""
    os.environ["PATH"] = os.pathsep.join(("/usr/bin", "/usr/sbin", os.environ.get("PATH", "")))
    if "TMPDIR" not in os.environ and os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > _ROOM_BYTES:
        os.environ["TMPDIR"], tempfile.tempdir = str(_MEMORY), None


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with seaweedfs(tmp_path_factory.mktemp("weed")) as running:
        yield running


@pytest.fixture
def manifest(tmp_path: Path) -> Iterator[Manifest]:
    """An empty one, whose work is parked at the first failure."""
    with fresh_manifest(tmp_path) as opened:
        yield opened


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
