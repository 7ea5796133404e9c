"""The receiver while an allowed address misbehaves: who means it gets in at once, and nothing of the abuse stays."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from migrate.config import ReceiverSettings
from migrate.dicom import dimse, negotiation
from migrate.dicom.receiver import Receiver, ReceiverLimits
from migrate.dicom.upper_layer import Association, ProposedContext, Rejected, UpperLayerError
from migrate.model import Received
from migrate.staging.area import Staging
from tests.dicom_peers import HOST, store
from tests.waiting import until

CT = Path(pydicom.__file__).parent / "data" / "test_files" / "CT_small.dcm"
OFFER = ProposedContext("1.2.840.10008.5.1.4.1.1.2", (dimse.EXPLICIT_LE,))
ECHO = ProposedContext(dimse.VERIFICATION, (dimse.EXPLICIT_LE,))
REQUEST = negotiation.encode_request("ABUSER", "X", negotiation.numbered((OFFER,)), 16384)
MOST_MEMORY_KIB = 300 << 10


def resident_kib() -> int:
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))


class Bench:
    """A receiver, and what it had before anybody came."""

    def __init__(self, folder: Path, **limits: Any) -> None:
        self.folder, self.got = folder, list[Received]()
        self.staging = Staging(folder / "staging", reserve_bytes=1)
        self.receiver = Receiver(ReceiverSettings(host=HOST, port=0), self.staging, self._keep, ReceiverLimits(**limits))
        self.receiver.start()
        self.port = self.receiver.port
        self.served()
        self.idle()
        self.threads, self.descriptors, self.memory_kib = threading.active_count(), self._descriptors(), resident_kib()

    def _keep(self, received: Received) -> None:
        self.got.append(received)

    @staticmethod
    def _descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    def idle(self) -> None:
        until(lambda: not self.receiver._sockets and not self.receiver._associations)

    def served(self) -> None:
        """A real association stores an image within a second."""
        before, began = len(self.got), time.monotonic()
        store(HOST, self.port, "X", [CT])
        assert time.monotonic() - began < 1
        assert len(self.got) == before + 1

    def nothing_stays(self) -> None:
        """Threads and descriptors are back, memory has not grown much, and there is no file but those delivered."""
        self.idle()
        until(lambda: threading.active_count() <= self.threads and self._descriptors() <= self.descriptors)
        assert resident_kib() - self.memory_kib < MOST_MEMORY_KIB
        files = {path for path in self.folder.rglob("*") if path.is_file()}
        assert files == {received.path for received in self.got}


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.receiver.close()
    made.staging.close()


def connected(bench: Bench) -> socket.socket:
    return socket.create_connection((HOST, bench.port), timeout=5)


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (1000, b""),
        (300, REQUEST[:40]),
        (100, struct.pack(">BBI", 1, 0, 0xFFFFFFFF)),
        (100, b"GET / HTTP/1.1\r\n\r\n"),
        (100, b"\x16\x03\x01\x02\x00\x01"),
        (100, bytes(range(256)) * 16),
    ],
    ids=["silence", "half-a-request", "4-GiB", "http", "tls", "garbage"],
)
def test_connections_without_end_keep_nobody_out(bench: Bench, count: int, said: bytes) -> None:
    """Those that say nothing, or nonsense, come from the address of the PACS: its association gets in within a second."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            sock = stack.enter_context(connected(bench))
            with contextlib.suppress(OSError):
                sock.sendall(said)
        assert threading.active_count() <= bench.threads + 70
        for _ in range(3):
            bench.served()
        assert resident_kib() - bench.memory_kib < MOST_MEMORY_KIB
    bench.nothing_stays()


def test_slow_loris_ends_in_time(tmp_path: Path) -> None:
    """A byte now and then does not prolong the time that a request may take."""
    bench = Bench(tmp_path, negotiate_s=0.5)
    began = time.monotonic()
    with connected(bench) as sock:
        sock.settimeout(0.05)
        for byte in REQUEST:
            with contextlib.suppress(TimeoutError, BrokenPipeError, ConnectionResetError):
                sock.sendall(bytes((byte,)))
                if sock.recv(1) == b"":
                    break
        assert time.monotonic() - began < 2
    bench.served()
    bench.nothing_stays()
    bench.receiver.close()
    bench.staging.close()


def test_a_data_set_that_drips_ends_in_time(tmp_path: Path) -> None:
    """Bytes that keep coming do not prolong the time that one data set may take; nothing of it stays."""
    bench = Bench(tmp_path, dataset_s=0.5)
    association = Association.request(HOST, bench.port, calling="DRIPS", called="X", contexts=[OFFER], timeout_s=5)
    association.send_command(1, dimse.encode_command({dimse.COMMAND_FIELD: dimse.C_STORE, dimse.MESSAGE_ID: 1, dimse.DATASET_TYPE: 1, dimse.PRIORITY: 0,
                                                      dimse.SOP_CLASS: OFFER.abstract_syntax, dimse.SOP_INSTANCE: "1.2.3"}))  # fmt: skip
    began = time.monotonic()
    with pytest.raises(UpperLayerError):
        while time.monotonic() - began < 10:
            association._send(struct.pack(">BBIIBB", 4, 0, 7, 3, 1, 0) + b"\0")
            if association.wait(0.02):
                association.read()
    assert 0.5 <= time.monotonic() - began < 5
    bench.served()
    bench.nothing_stays()
    bench.receiver.close()
    bench.staging.close()


def test_one_address_cannot_take_every_association(tmp_path: Path) -> None:
    """A flood of whole associations is turned down for now at the limit of one address, and exactly there."""
    bench = Bench(tmp_path, max_per_address=5)
    held, turned_down = [], []
    for _ in range(20):
        try:
            held.append(Association.request(HOST, bench.port, calling="FLOOD", called="X", contexts=[OFFER], timeout_s=5))
        except Rejected as error:
            turned_down.append(error.transient)
    assert (len(held), turned_down) == (5, [True] * 15)
    for association in held:
        association.abort()
    bench.idle()
    bench.served()
    bench.nothing_stays()
    bench.receiver.close()
    bench.staging.close()


def test_silent_associations_give_way(tmp_path: Path) -> None:
    """Whoever holds every place of the PACS's own address and says nothing keeps it out no longer than for a moment; an
    association with a data set on its way stays."""
    bench = Bench(tmp_path, max_associations=6, max_per_address=5, silent_s=0.05)
    held = [Association.request(HOST, bench.port, calling="HOLDS", called="X", contexts=[OFFER], timeout_s=5) for _ in range(5)]
    busy = held[0]
    command = dimse.encode_command({dimse.COMMAND_FIELD: dimse.C_STORE, dimse.MESSAGE_ID: 1, dimse.DATASET_TYPE: 1, dimse.PRIORITY: 0,
                                    dimse.SOP_CLASS: OFFER.abstract_syntax, dimse.SOP_INSTANCE: "1.2.3"})  # fmt: skip
    busy.send_command(1, command)
    until(lambda: any(session.receiving for session in bench.receiver._sessions.values()))
    until(lambda: all(time.monotonic() - session.last_byte_at > 0.1 for session in bench.receiver._sessions.values()))
    for _ in range(3):
        bench.served()
    assert [session.receiving for session in bench.receiver._sessions.values()].count(True) == 1
    for association in held:
        association.abort()
    bench.nothing_stays()
    bench.receiver.close()
    bench.staging.close()


def test_a_disk_that_fills_up_takes_no_new_association(bench: Bench) -> None:
    """Near the end of its budget the receiver turns new associations down for now; one that is open goes on and is served."""
    association = Association.request(HOST, bench.port, calling="A", called="X", contexts=[ECHO], timeout_s=5)
    room, bench.staging.max_bytes = bench.staging.max_bytes, 0
    with pytest.raises(Rejected) as rejected:
        Association.request(HOST, bench.port, calling="B", called="X", contexts=[ECHO], timeout_s=5)
    assert rejected.value.transient and bench.staging.turned_away == 1
    association.send_command(1, dimse.encode_command({dimse.COMMAND_FIELD: dimse.C_ECHO, dimse.MESSAGE_ID: 1, dimse.DATASET_TYPE: 0x0101,
                                                      dimse.SOP_CLASS: dimse.VERIFICATION}))  # fmt: skip
    answer = dimse.receive(association)
    assert answer is not None and answer.command.number(dimse.STATUS) == dimse.SUCCESS
    association.release()
    bench.staging.max_bytes = room
    bench.served()
    bench.nothing_stays()


def test_a_flood_at_once_is_admitted_to_the_limit_only(tmp_path: Path) -> None:
    """Associations that ask at the same time do not slip past the limit together."""
    bench = Bench(tmp_path, max_associations=4)
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(connected(bench)) for _ in range(30)]
        for sock in socks:
            sock.sendall(REQUEST)
        kinds = [sock.recv(1)[0] for sock in socks]
        assert kinds.count(negotiation.AC) == 4
        assert kinds.count(negotiation.RJ) == 26
    bench.nothing_stays()
    bench.receiver.close()
    bench.staging.close()


def test_more_than_128_contexts(bench: Bench) -> None:
    """Of a request with more contexts than PS3.8 knows, 128 are taken."""
    offers = tuple(ProposedContext(OFFER.abstract_syntax, OFFER.transfer_syntaxes, number % 256) for number in range(1000))
    with connected(bench) as sock:
        sock.sendall(negotiation.encode_request("A", "X", offers, 16384))
        head = sock.recv(6, socket.MSG_WAITALL)
        answer = negotiation.decode_accept(sock.recv(int.from_bytes(head[2:], "big"), socket.MSG_WAITALL))
    assert sum(result == 0 for _, result, _ in answer.results) == 128
    bench.nothing_stays()


def test_endless_command_set(bench: Bench) -> None:
    """A command set that never ends is cut off, long before it costs memory."""
    association = Association.request(HOST, bench.port, calling="A", called="X", contexts=[OFFER], timeout_s=5)
    piece = struct.pack(">BBIIBB", 4, 0, 16006, 16002, 1, 1) + bytes(16000)
    with pytest.raises(UpperLayerError):
        for _ in range(4096):
            association._send(piece)
    association.close()
    bench.served()
    bench.nothing_stays()


pieces = st.one_of(
    st.binary(max_size=200),
    st.builds(lambda kind, body: struct.pack(">BBI", kind, 0, len(body)) + body, st.integers(0, 9), st.binary(max_size=300)),
    st.builds(lambda kind, length: struct.pack(">BBI", kind, 0, length), st.integers(0, 9), st.integers(0, 2**32 - 1)),
    st.builds(lambda at, byte: REQUEST[:at] + bytes((byte,)) + REQUEST[at + 1 :], st.integers(0, len(REQUEST) - 1), st.integers(0, 255)),
    st.builds(lambda control, body: struct.pack(">BBIIBB", 4, 0, len(body) + 6, len(body) + 2, 1, control) + body,
              st.integers(0, 3), st.binary(max_size=300)),
)  # fmt: skip


@given(asked=st.booleans(), said=st.lists(pieces, min_size=1, max_size=6))
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_pdus_do_no_harm(bench: Bench, asked: bool, said: list[bytes]) -> None:
    """Whatever comes before or in an association, nothing of it stays and no defect shows."""
    with connected(bench) as sock, contextlib.suppress(OSError):
        if asked:
            sock.sendall(REQUEST)
        for piece in said:
            sock.sendall(piece)
        sock.shutdown(socket.SHUT_WR)
    bench.idle()
    bench.nothing_stays()
