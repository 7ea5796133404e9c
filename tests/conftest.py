"""What tests of any kind share: one real S3 server a test process, and the keys that it takes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.s3_server import ENVIRONMENT, S3Server, seaweedfs


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with seaweedfs(tmp_path_factory.mktemp("weed")) as running:
        yield running


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
