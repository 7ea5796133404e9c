"""A bucket of its own for a test."""

from __future__ import annotations

import pytest

from migrate.config import S3Settings
from tests.s3_server import S3Server


@pytest.fixture
def bucket(server: S3Server) -> S3Settings:
    return S3Settings(server.new_bucket(), "pacs/", endpoint_url=server.endpoint_url)
