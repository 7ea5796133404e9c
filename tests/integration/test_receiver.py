"""The receiver against DCMTK's and pynetdicom's senders, and against senders that break the rules."""

from __future__ import annotations

import hashlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pydicom
import pytest
from awscrt.checksums import crc64nvme
from pydicom.dataset import Dataset, FileMetaDataset
from pynetdicom import AE

from migrate.config import ReceiverSettings
from migrate.dicom import dimse, negotiation, part10
from migrate.dicom.receiver import Receiver, ReceiverLimits, is_storage_class
from migrate.dicom.upper_layer import Aborted, Association, Lost, ProposedContext, Rejected
from migrate.errors import DiskFull, PortInUse
from migrate.model import Received, Rolled
from migrate.staging.area import Staging
from tests import dicom_peers
from tests.dicom_peers import HOST, run
from tests.waiting import until

SAMPLES = Path(pydicom.__file__).parent / "data" / "test_files"
NAMES = (
    "CT_small.dcm", "MR_small_implicit.dcm", "MR_small_bigendian.dcm", "JPEG2000.dcm", "SC_rgb_jpeg_gdcm.dcm",
    "JPEGLSNearLossless_16.dcm", "MR_small_RLE.dcm", "image_dfl.dcm", "rtplan.dcm", "test-SR.dcm",
)  # fmt: skip
CT = SAMPLES / "CT_small.dcm"
CT_CLASS, SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.7"
EXPLICIT, IMPLICIT = dimse.EXPLICIT_LE, dimse.IMPLICIT_LE


class Bench:
    """A receiver with what it delivered, and its staging."""

    def __init__(
        self, folder: Path, deliver: Callable[[Received], Any] | None, reserve: int, limits: ReceiverLimits | None, **settings: Any
    ) -> None:
        self.staging = Staging(folder, reserve_bytes=reserve)
        self.got: list[Received] = []
        self.receiver = Receiver(ReceiverSettings(host=HOST, port=0, **settings), self.staging, deliver or self._keep, limits)
        self.receiver.start()
        self.port = self.receiver.port

    def _keep(self, received: Received) -> None:
        self.got.append(received)

    @property
    def files(self) -> list[Path]:
        return list(self.staging.incoming.iterdir())

    def associate(self, *contexts: ProposedContext, calling: str = "SENDER") -> Association:
        offers = contexts or (ProposedContext(CT_CLASS, (EXPLICIT,)),)
        return Association.request(HOST, self.port, calling=calling, called="X", contexts=offers, timeout_s=10)

    def idle(self) -> None:
        until(lambda: not self.receiver._associations and not self.receiver._sockets)


Open = Callable[..., Bench]


@pytest.fixture
def receiving(tmp_path: Path) -> Iterator[Open]:
    benches: list[Bench] = []

    def open_bench(
        deliver: Callable[[Received], Any] | None = None, reserve: int = 1 << 20, limits: ReceiverLimits | None = None, **settings: Any
    ) -> Bench:
        benches.append(Bench(tmp_path / f"staging{len(benches)}", deliver, reserve, limits, **settings))
        return benches[-1]

    yield open_bench
    for bench in benches:
        bench.receiver.close()
        bench.staging.close()


def dataset_of(path: Path) -> tuple[str, bytes]:
    content = path.read_bytes()
    _, _, syntax, offset = part10.read_header(content)
    return syntax, content[offset:]


def store_rq(sop_class: str, sop: str, message_id: int = 1) -> bytes:
    fields: dict[int, int | str] = {dimse.COMMAND_FIELD: dimse.C_STORE, dimse.MESSAGE_ID: message_id, dimse.PRIORITY: 0}
    return dimse.encode_command({**fields, dimse.DATASET_TYPE: 1, dimse.SOP_CLASS: sop_class, dimse.SOP_INSTANCE: sop})


def status_of(association: Association) -> int | None:
    message = dimse.receive(association)
    return message.command.number(dimse.STATUS) if message else None


def ct() -> tuple[str, bytes]:
    return part10.read_header(CT.read_bytes())[1], dataset_of(CT)[1]


def test_bytes_are_those_that_storescp_writes(receiving: Open, tmp_path: Path) -> None:
    """Ten syntaxes and classes from dcmsend arrive with the very bytes that DCMTK's bit-preserving receiver writes."""
    bench = receiving()
    files = [SAMPLES / name for name in NAMES]
    with dicom_peers.storescp(tmp_path / "scp") as scp:
        run("dcmsend", "-dn", "--no-uid-checks", HOST, str(scp.port), *files)
        theirs = sorted(dataset_of(path) for path in scp.folder.iterdir())
    run("dcmsend", "-dn", "--no-uid-checks", HOST, str(bench.port), *files)
    assert sorted(dataset_of(received.path) for received in bench.got) == theirs
    assert len(theirs) == len(NAMES)
    assert [received.quarantine for received in bench.got if received.ref is None] == [
        "the Study Instance UID is missing"  # in one of the samples
    ]
    for received in bench.got:
        content = received.path.read_bytes()
        dataset = content[part10.read_header(content)[3] :]
        assert received.rolled == Rolled(len(content), hashlib.sha256(dataset).digest(), crc64nvme(content))


def test_storescu_and_echoscu(receiving: Open) -> None:
    """DCMTK's plain tools are served: C-ECHO, and a C-STORE whose UIDs become the reference."""
    bench = receiving()
    run("echoscu", HOST, str(bench.port))
    run("storescu", HOST, str(bench.port), CT)
    (received,) = bench.got
    expected = pydicom.dcmread(CT, stop_before_pixels=True)
    assert received.ref is not None
    assert (received.ref.study, received.ref.sop) == (expected.StudyInstanceUID, expected.SOPInstanceUID)
    assert (received.sop_class, received.transfer_syntax) == (CT_CLASS, EXPLICIT)


def test_pynetdicom_with_128_contexts_and_a_private_class(receiving: Open) -> None:
    """All 128 contexts of a request are accepted, and an instance of a private SOP class is stored like any other."""
    bench = receiving()
    private = "1.2.826.0.1.3680043.99.1"
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = private, "1.2.3.4"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3", "1.2.3.1"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = IMPLICIT
    entity = AE("PYNETDICOM")
    for number in range(127):
        entity.add_requested_context(f"1.2.826.0.1.3680043.98.{number}", EXPLICIT)
    entity.add_requested_context(private, IMPLICIT)
    association = entity.associate(HOST, bench.port)
    assert len(association.accepted_contexts) == 128
    assert association.send_c_store(dataset).Status == 0
    association.release()
    assert [received.sop_class for received in bench.got if received.ref] == [private]


def test_context_choice(receiving: Open) -> None:
    """The first syntax proposed is taken, or the configured one; a query service is refused."""
    contexts = (ProposedContext(CT_CLASS, (EXPLICIT, IMPLICIT)), ProposedContext(dimse.STUDY_ROOT_FIND, (IMPLICIT,)))
    for order, chosen in (((), EXPLICIT), ((IMPLICIT,), IMPLICIT)):
        association = receiving(transfer_syntaxes=order).associate(*contexts)
        assert {c.abstract_syntax: c.transfer_syntax for c in association.contexts.values()} == {CT_CLASS: chosen}
        association.release()
    assert is_storage_class("1.2.840.10008.5.1.1.27") and not is_storage_class("1.2.840.10008.1.20.1")


def test_wrong_title_and_address(receiving: Open) -> None:
    """A calling AE title that is not allowed is rejected for good, an address that is not allowed gets no answer."""
    titles = receiving(allow_ae=("PACS",))
    titles.associate(calling="PACS").release()
    with pytest.raises(Rejected) as caught:
        titles.associate(calling="OTHER")
    assert (caught.value.result, caught.value.source, caught.value.reason) == (1, 1, 3)
    with pytest.raises(Lost):
        receiving(allow=("10.0.0.0/8",)).associate()
    receiving(allow=("127.0.0.0/8",)).associate().release()


def test_limit_and_stop_are_told_as_temporary(receiving: Open) -> None:
    """Too many associations, and a receiver that is stopping, reject for now, while open associations go on."""
    bench = receiving(limits=ReceiverLimits(max_associations=1))
    association = bench.associate()
    for reason, before in ((2, lambda: None), (1, bench.receiver.stop_accepting)):
        before()
        with pytest.raises(Rejected) as caught:
            bench.associate()
        assert caught.value.transient and caught.value.reason == reason
    sop, dataset = ct()
    association.send_command(1, store_rq(CT_CLASS, sop))
    association.send_dataset(1, dataset)
    assert status_of(association) == 0
    association.release()


def test_what_breaks_off_leaves_nothing(receiving: Open) -> None:
    """An association that is aborted, or cut, in the middle of a data set delivers nothing and leaves no file."""
    bench = receiving()
    sop, dataset = ct()
    for end in ("abort", "close"):
        association = bench.associate()
        association.send_command(1, store_rq(CT_CLASS, sop))
        association._send(struct.pack(">BBIIBB", 4, 0, 1006, 1002, 1, 0) + dataset[:1000])
        until(lambda: len(bench.files) == 1)
        getattr(association, end)()
        bench.idle()
        assert (bench.got, bench.files) == ([], [])


def test_half_a_pdu_and_silence_end_in_time(receiving: Open) -> None:
    """A sender that stops in the middle of a PDU is dropped after `idle_s`; nothing of it stays."""
    bench = receiving(limits=ReceiverLimits(idle_s=0.3))
    sop, dataset = ct()
    association = bench.associate()
    association.send_command(1, store_rq(CT_CLASS, sop))
    association._send(struct.pack(">BBIIBB", 4, 0, 10006, 10002, 1, 2) + dataset[:1000])
    started = time.monotonic()
    bench.idle()
    assert time.monotonic() - started < 3
    assert (bench.got, bench.files) == ([], [])
    association.close()


def test_longer_pdu_than_announced_is_streamed_and_noted(receiving: Open) -> None:
    """A PDU of twice what we announced is received whole and noted; one that claims 1 GiB ends the association."""
    bench = receiving(max_pdu=16384)
    sop, dataset = ct()
    association = bench.associate()
    association.send_command(1, store_rq(CT_CLASS, sop))
    association._send(struct.pack(">BBIIBB", 4, 0, len(dataset) + 6, len(dataset) + 2, 1, 2) + dataset)
    assert status_of(association) == 0
    assert bench.got[0].ref is not None and "long-pdu" in bench.got[0].notes
    association.send_command(1, store_rq(CT_CLASS, sop))
    association._send(struct.pack(">BBIIBB", 4, 0, 1 << 30, (1 << 30) - 4, 1, 2))
    with pytest.raises(Aborted):
        status_of(association)
    assert len(bench.got) == 1


@pytest.mark.parametrize(
    "raw",
    [
        struct.pack(">BBIIBB", 4, 0, 10, 99, 1, 3) + bytes(4),
        struct.pack(">BBIIBB", 4, 0, 10, 6, 1, 2) + bytes(4),
        struct.pack(">BBIIBB", 4, 0, 10, 6, 9, 3) + bytes(4),
        struct.pack(">BBI", 4, 0, 3) + bytes(3),
        struct.pack(">BBI", 9, 0, 4) + bytes(4),
    ],
    ids=["fragment-beyond-pdu", "data-without-command", "garbage-command", "too-short", "unknown-type"],
)
def test_broken_protocol_aborts_and_the_next_is_served(receiving: Open, raw: bytes) -> None:
    """Each way to break PS3.8 ends in an abort, and the receiver serves on."""
    bench = receiving()
    association = bench.associate()
    association._send(raw)
    with pytest.raises((Aborted, Lost)):
        dimse.receive(association)
    run("echoscu", HOST, str(bench.port))


def test_huge_request_is_not_read(receiving: Open) -> None:
    """A first PDU that claims 4 GiB is dropped at its header."""
    bench = receiving()
    with socket.create_connection((HOST, bench.port), timeout=5) as sock:
        sock.sendall(struct.pack(">BBI", 1, 0, 0xFFFFFFFF))
        assert sock.recv(100) in (b"", negotiation.pdu(negotiation.ABORT, bytes((0, 0, 2, 0))))
    bench.idle()


def test_repeated_and_even_context_ids(receiving: Open) -> None:
    """An even ID works; of two contexts with one ID but different syntaxes the first one counts."""
    bench = receiving()
    offers = tuple(ProposedContext(CT_CLASS, (syntax,), 2) for syntax in (EXPLICIT, IMPLICIT))
    with socket.create_connection((HOST, bench.port), timeout=5) as sock:
        sock.sendall(negotiation.encode_request("A", "B", offers, 16384))
        answer = negotiation.decode_accept(sock.recv(4096)[6:])
    assert [result[:2] for result in answer.results] == [(2, 0), (2, 3)]


def test_foreign_uids_are_quarantined(receiving: Open) -> None:
    """UIDs that are not the command's, or no UIDs, are kept with a reason and without a reference, and answered."""
    bench = receiving()
    sop, dataset = ct()
    association = bench.associate()
    cases = [(CT_CLASS, "1.2.3"), (SECONDARY_CAPTURE, sop), (CT_CLASS, "../../etc"), (CT_CLASS, "\xe9"), (CT_CLASS, "")]
    for sop_class, uid in cases:
        association.send_command(1, store_rq(sop_class, uid))
        association.send_dataset(1, dataset)
        assert status_of(association) == 0
    association.send_command(1, store_rq(CT_CLASS, sop))
    association.send_dataset(1, dataset[:-1])
    assert status_of(association) == 0
    association.release()
    assert all(received.ref is None and received.quarantine for received in bench.got)
    assert [dataset_of(r.path)[1] if r.path else b"" for r in bench.got[:2]] == [dataset, dataset]
    assert bench.got[0].claimed[2] == sop
    assert len(bench.got) == len(cases) + 1


def test_no_room_is_refused_and_the_association_lives(receiving: Open) -> None:
    """With the disk down to the reserve a data set is taken off the wire, not stored, and answered A700."""
    bench = receiving()
    sop, dataset = ct()
    association = bench.associate()
    bench.staging._reserve = 1 << 62
    for _ in range(2):
        association.send_command(1, store_rq(CT_CLASS, sop))
        association.send_dataset(1, dataset)
        assert status_of(association) == dimse.OUT_OF_RESOURCES
    association.release()
    bench.idle()
    assert (bench.got, bench.files) == ([], [])


def test_durable_answers_after_the_promise(receiving: Open) -> None:
    """With ack = durable nothing is answered until the future is done; its failure is refused, not answered 0000."""
    promises: list[Future[None]] = []
    promised = threading.Semaphore(0)

    def deliver(_: Received) -> Future[None]:
        promises.append(Future())
        promised.release()
        return promises[-1]

    bench = receiving(deliver, ack="durable")
    sop, dataset = ct()
    association = bench.associate()
    for error, status in ((None, 0), (DiskFull("full"), 0xA700), (ValueError(), 0x0110)):
        association.send_command(1, store_rq(CT_CLASS, sop))
        association.send_dataset(1, dataset)
        assert promised.acquire(timeout=5)
        assert not association.wait(0.05)
        if error is None:
            promises[-1].set_result(None)
        else:
            promises[-1].set_exception(error)
        assert status_of(association) == status
    association.release()


def test_what_nobody_takes_is_refused_and_leaves_no_file(receiving: Open) -> None:
    """Where a data set cannot be handed over, the answer says so and its file goes; the association lives."""

    troubles = {DiskFull("full"): dimse.OUT_OF_RESOURCES, ValueError(): dimse.PROCESSING_FAILURE}
    coming = iter(troubles)

    def deliver(_: Received) -> None:
        raise next(coming)

    bench = receiving(deliver)
    sop, dataset = ct()
    association = bench.associate()
    for status in troubles.values():
        association.send_command(1, store_rq(CT_CLASS, sop))
        association.send_dataset(1, dataset)
        assert status_of(association) == status
    association.release()
    bench.idle()
    assert bench.files == []


def test_a_data_set_in_another_context_than_its_command_is_none(receiving: Open) -> None:
    """Its transfer syntax would be another one than what the bytes are kept under: the association ends, and nothing is delivered."""
    bench = receiving()
    sop, dataset = ct()
    association = bench.associate(ProposedContext(CT_CLASS, (EXPLICIT,)), ProposedContext(CT_CLASS, (IMPLICIT,)))
    association.send_command(1, store_rq(CT_CLASS, sop))
    association.send_dataset(3, dataset)
    with pytest.raises((Aborted, Lost)):
        dimse.receive(association)
    bench.idle()
    assert (bench.got, bench.files) == ([], [])


def test_unknown_operation_is_answered(receiving: Open) -> None:
    """A C-FIND sent to the receiver is answered "unrecognized operation", its identifier is taken off the wire."""
    bench = receiving()
    association = bench.associate()
    fields: dict[int, int | str] = {dimse.COMMAND_FIELD: dimse.C_FIND, dimse.MESSAGE_ID: 5, dimse.DATASET_TYPE: 1}
    association.send_command(1, dimse.encode_command(fields))
    association.send_dataset(1, bytes(10))
    assert status_of(association) == dimse.UNRECOGNIZED_OPERATION
    run("echoscu", HOST, str(bench.port))
    association.release()


def test_asking_whether_we_are_there_is_no_sign_of_images(receiving: Open) -> None:
    """Who holds an association for C-ECHO keeps nobody waiting for images; once one was sent over it, its bytes count."""
    bench = receiving()
    association = bench.associate(ProposedContext(dimse.VERIFICATION, (EXPLICIT,)), ProposedContext(CT_CLASS, (EXPLICIT,)))
    echo: dict[int, int | str] = {dimse.COMMAND_FIELD: dimse.C_ECHO, dimse.MESSAGE_ID: 1, dimse.SOP_CLASS: dimse.VERIFICATION}
    until(lambda: bench.receiver.last_byte_at() > 0)
    association.send_command(1, dimse.encode_command(echo))
    assert status_of(association) == dimse.SUCCESS
    assert bench.receiver.last_byte_at() == bench.receiver.last_byte_at(7) == 0
    sop, dataset = ct()
    association.send_command(3, store_rq(CT_CLASS, sop))
    association.send_dataset(3, dataset)
    assert status_of(association) == dimse.SUCCESS
    assert bench.receiver.last_byte_at() > 0
    association.release()


def test_port_in_use(receiving: Open) -> None:
    """A second receiver on the same port says so."""
    bench = receiving()
    with pytest.raises(PortInUse):
        Receiver(ReceiverSettings(host=HOST, port=bench.port), bench.staging, lambda _: None).start()


def test_close_ends_open_associations(receiving: Open) -> None:
    """Closing aborts what is open and leaves no thread and no half file behind."""
    bench = receiving()
    association = bench.associate()
    association.send_command(1, store_rq(CT_CLASS, "1.2"))
    association._send(struct.pack(">BBIIBB", 4, 0, 10, 6, 1, 0) + bytes(4))
    until(lambda: len(bench.files) == 1)
    bench.receiver.close()
    with pytest.raises((Aborted, Lost)):
        dimse.receive(association)
    assert bench.files == []
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("receive-")]
