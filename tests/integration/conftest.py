"""A real Storage SCP for a file of tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.dicom_peers import PeerServer, storescp


@pytest.fixture(scope="module")
def receiver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PeerServer]:
    with storescp(tmp_path_factory.mktemp("storescp"), ae_title="DEST") as server:
        yield server
