"""The practice PACS's faults of retrieval: what DCMTK's storescp and pynetdicom's get is what each line says."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pydicom
import pynetdicom
import pytest

from migrate.practice.pacs import PracticePacs
from migrate.practice.records import JPEG_LOSSLESS
from tests.dicom_peers import HOST, PeerServer, run
from tests.practice_scu import ARCHIVE, STUDIES, moved, sops


def bad(receiver: PeerServer, *faults: str) -> PracticePacs:
    return PracticePacs(ARCHIVE, destinations={"DEST": (HOST, receiver.port)}, faults=faults)


def test_rewritten_headers_and_no_originator(tmp_path: Path) -> None:
    """Two retrievals differ in one element outside of the pixels; C-STOREs name their C-MOVE unless told not to."""
    got: list[tuple[pydicom.Dataset, str | None]] = []

    def keep(event: pynetdicom.events.Event) -> int:
        got.append((event.dataset, event.request.MoveOriginatorApplicationEntityTitle))
        return 0

    entity = pynetdicom.AE("DEST")
    entity.supported_contexts = pynetdicom.AllStoragePresentationContexts
    entity.add_supported_context("1.2.840.10008.5.1.4.1.1.1", JPEG_LOSSLESS)
    server = entity.start_server((HOST, 0), block=False, evt_handlers=[(pynetdicom.evt.EVT_C_STORE, keep)])
    try:
        destinations = {"DEST": server.server_address[:2]}
        key = f"StudyInstanceUID={STUDIES[0].uid}"
        for faults in (["rewrites-headers", "no-move-originator"], []):
            with PracticePacs(ARCHIVE, destinations=destinations, faults=faults) as pacs:
                for _ in range(2):
                    command = ("movescu", "-S", "-aec", "PRACTICE", "-aem", "DEST", "-k", "QueryRetrieveLevel=STUDY")
                    run(*command, "-k", key, HOST, str(pacs.port))
    finally:
        server.shutdown()
    by_sop: dict[str, list[tuple[pydicom.Dataset, str | None]]] = {}
    for dataset, originator in got:
        by_sop.setdefault(dataset.SOPInstanceUID, []).append((dataset, originator))
    assert sops(STUDIES[0]) == set(by_sop)
    for first, second, third, fourth in by_sop.values():
        assert [one.InstitutionName for one, _ in (first, second)] == ["PRACTICE 1", "PRACTICE 2"]
        for dataset, _ in (first, second):
            del dataset.InstitutionName
        assert first[0] == second[0] == third[0] == fourth[0]
        assert [originator for _, originator in (first, second, third, fourth)] == [None, None, "MOVESCU", "MOVESCU"]


@pytest.mark.parametrize(
    ("fault", "number", "missing", "status"),
    [
        ("move-unknown", 1, 32, "0xa801"),
        ("success-nothing-sent", 1, 32, "0x0000"),
        ("skip-one", 3, 1, "0x0000"),
        ("skip-one", 1, 0, "0x0000"),
        ("skip-first", 1, 1, "0x0000"),
        ("null-counters", 1, 0, "0x0000"),
        ("wrong-counters", 1, 0, "0x0000"),
    ],
)
def test_move_faults(receiver: PeerServer, fault: str, number: int, missing: int, status: str) -> None:
    """Each fault leaves out what its line says, under the status that it says."""
    study = STUDIES[number]
    with bad(receiver, fault) as pacs:
        result = moved(pacs, receiver, study)
        assert missing == len(sops(study) - result.got)
        assert status in result.said.rsplit("Final Move Response", 1)[1]
        final = result.said.rsplit("Final Move Response", 1)[1]
        counters = re.findall(r"Completed Suboperations\s*: (\w+)", final)
        expected = {"null-counters": "none", "wrong-counters": str(study.instance_count + 3), "move-unknown": "0"}
        assert counters == [expected.get(fault, str(study.instance_count))]
        if fault == "skip-first":
            assert sops(study) == moved(pacs, receiver, study).got
        if fault == "skip-one":
            assert missing == len(sops(study) - moved(pacs, receiver, study).got)


def test_abort_amid_a_data_set(receiver: PeerServer) -> None:
    """The first C-MOVE of an even study breaks off with failures counted and named, the second one is whole."""
    study = STUDIES[2]
    with bad(receiver, "abort-store") as pacs:
        first = moved(pacs, receiver, study)
        assert 0 < len(first.got) < study.instance_count
        assert "0xb000" in first.said
        assert all(sop in first.said for sop in sops(study) - first.got)
        assert sops(study) == moved(pacs, receiver, study).got
        assert sops(STUDIES[1]) == moved(pacs, receiver, STUDIES[1]).got


def test_twice_and_early(receiver: PeerServer) -> None:
    """Images that come twice or after the final answer do come, all of them."""
    study = STUDIES[2]
    with bad(receiver, "twice") as pacs:
        assert sops(study) == moved(pacs, receiver, study).got
        assert 2 * study.instance_count == pacs.counts["store"]
    with bad(receiver, "early-success", "skip-first") as pacs:
        result = moved(pacs, receiver, study)
        assert "0x0000" in result.said.rsplit("Final Move Response", 1)[1]
        assert "(Pending)" not in result.said
        assert study.instance_count - 1 == pacs.counts["store"] == len(result.got)
        assert isinstance(pacs.counts, Counter)
