"""C-ECHO, C-FIND and C-MOVE against DCMTK's dcmqrscp and Orthanc, and against a peer with bad manners."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from migrate import errors
from migrate.config import ReceiverSettings
from migrate.dicom import dimse, scu
from migrate.dicom.move import MAX_SOPS, MoveResult, move
from migrate.dicom.receiver import Receiver
from migrate.dicom.upper_layer import Association, UpperLayerError
from migrate.model import Received
from migrate.staging.area import Staging
from tests import dicom_peers
from tests.dicom_peers import HOST, PeerServer
from tests.ports import free_port
from tests.waiting import until

SAMPLES = Path(pydicom.__file__).parent / "data" / "test_files"
NAMES = ("CT_small.dcm", "MR_small.dcm", "rtplan.dcm", "JPEG2000.dcm", "SC_rgb_jpeg_gdcm.dcm")
STUDY_DATE, STUDY_INSTANCES = 0x00080020, 0x00201208
CT = pydicom.dcmread(SAMPLES / "CT_small.dcm", stop_before_pixels=True)


def never() -> None:
    return None


@pytest.fixture(scope="module")
def receiver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Receiver, list[Received]]]:
    got: list[Received] = []
    staging = Staging(tmp_path_factory.mktemp("staging"))
    settings = ReceiverSettings(ae_title="MIGRATE", host=HOST, port=0)
    ours = Receiver(settings, staging, lambda received: got.append(received))
    ours.start()
    yield ours, got
    ours.close()
    staging.close()


@pytest.fixture(scope="module", params=["dcmqrscp", "orthanc"])
def pacs(
    request: pytest.FixtureRequest, receiver: tuple[Receiver, list[Received]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PeerServer]:
    folder = tmp_path_factory.mktemp(request.param)
    start = getattr(dicom_peers, request.param)
    moves = {"MIGRATE": (HOST, receiver[0].port)}
    with start(folder, moves=moves, files=[SAMPLES / name for name in NAMES]) as server:
        yield server


def peer_of(server: PeerServer, **more: float) -> scu.Peer:
    return scu.Peer(server.host, server.port, server.ae_title, "MIGRATE", **more)


def test_echo(pacs: PeerServer) -> None:
    """A PACS that is up answers C-ECHO, and nothing is raised."""
    scu.echo(peer_of(pacs))


def test_find_lists_every_study_series_and_image(pacs: PeerServer) -> None:
    """Walking STUDY, SERIES and IMAGE over one association finds exactly the instances that were put in."""
    found = set()
    with scu.FindSession(peer_of(pacs)) as session:
        for study in list(session.find("STUDY", {}, [dimse.STUDY_UID])):
            uid = {dimse.STUDY_UID: study[dimse.STUDY_UID]}
            for series in list(session.find("SERIES", uid, [dimse.SERIES_UID])):
                keys = {**uid, dimse.SERIES_UID: series[dimse.SERIES_UID]}
                found |= {row[dimse.SOP_UID] for row in session.find("IMAGE", keys, [dimse.SOP_UID])}
        assert not session.patient_root
    assert {pydicom.dcmread(SAMPLES / name).SOPInstanceUID for name in NAMES} == found


def test_find_hands_on_only_what_was_asked_for(pacs: PeerServer) -> None:
    """A row holds the asked attributes and no other, whatever the PACS adds."""
    with scu.FindSession(peer_of(pacs)) as session:
        (row,) = session.find("STUDY", {dimse.STUDY_UID: CT.StudyInstanceUID}, [STUDY_DATE])
    assert {dimse.STUDY_UID: CT.StudyInstanceUID, STUDY_DATE: CT.StudyDate, dimse.QUERY_LEVEL: "STUDY"} == row


def test_session_goes_on_after_an_answer_left_in_the_middle(pacs: PeerServer) -> None:
    """Whoever stops reading an answer gets a whole one from the next question."""
    with scu.FindSession(peer_of(pacs)) as session:
        next(iter(session.find("STUDY", {}, [dimse.STUDY_UID])))
        assert len({row[dimse.STUDY_UID] for row in session.find("STUDY", {}, [dimse.STUDY_UID])}) >= 4


@pytest.mark.parametrize("level", ["STUDY", "SERIES", "IMAGE"])
def test_move_brings_the_instance(pacs: PeerServer, receiver: tuple[Receiver, list[Received]], level: str) -> None:
    """At each level the PACS sends the instance to our receiver and ends with Success and its count."""
    got = receiver[1]
    got.clear()
    result = move(
        peer_of(pacs), "MIGRATE", study=CT.StudyInstanceUID, series=None if level == "STUDY" else CT.SeriesInstanceUID,
        sops=(CT.SOPInstanceUID,) if level == "IMAGE" else (), should_stop=never,
    )  # fmt: skip
    assert (result.status, result.completed) == (dimse.SUCCESS, 1)
    assert [CT.SOPInstanceUID] == [received.ref.sop for received in got if received.ref]


def test_unknown_destination(tmp_path: Path) -> None:
    """A801 becomes MoveDestinationUnknown, whose hint says what to ask the administrator for."""
    with (
        dicom_peers.dcmqrscp(tmp_path, files=[SAMPLES / "CT_small.dcm"]) as server,
        pytest.raises(errors.MoveDestinationUnknown) as caught,
    ):
        move(peer_of(server), "NOBODY", study=CT.StudyInstanceUID, should_stop=never)
    assert "destination" in caught.value.hint


def test_wrong_title_is_refused_for_good(tmp_path: Path) -> None:
    """An AE title that the PACS does not know is SourceRefused, not something to wait for."""
    with (
        dicom_peers.orthanc(tmp_path, options={"DicomCheckCalledAet": True}) as server,
        pytest.raises(errors.SourceRefused),
    ):
        scu.echo(scu.Peer(HOST, server.port, "SOMEONE", "MIGRATE"))


def test_nobody_listens() -> None:
    """A refused TCP connection is SourceUnreachable."""
    with pytest.raises(errors.SourceUnreachable):
        scu.echo(scu.Peer(HOST, free_port(), "PACS", "MIGRATE"))


def test_silent_peer_is_unreachable_in_time() -> None:
    """A peer that takes the connection and says nothing costs `connect_s`, not for ever."""
    with socket.create_server((HOST, 0)) as listener, pytest.raises(errors.SourceUnreachable):
        scu.echo(scu.Peer(HOST, listener.getsockname()[1], "PACS", "MIGRATE", connect_s=0.3))


Script = Callable[[Association, dimse.Message], None]


@contextmanager
def scripted(script: Script, refuse: str = "") -> Iterator[scu.Peer]:
    """A real peer on a real socket whose answer to each message is `script`'s."""
    with socket.create_server((HOST, 0)) as listener:
        listener.settimeout(0.1)
        over = threading.Event()

        def serve() -> None:
            while not over.is_set():
                try:
                    sock, _ = listener.accept()
                    there = Association.accept(
                        sock,
                        choose=lambda c: None if c.abstract_syntax == refuse else c.transfer_syntaxes[0],
                        timeout_s=5,
                    )
                    while (message := dimse.receive(there)) is not None:
                        script(there, message)
                except (TimeoutError, UpperLayerError, dimse.BadCommand):
                    continue

        thread = threading.Thread(target=serve)
        thread.start()
        yield scu.Peer(HOST, listener.getsockname()[1], "PACS", "MIGRATE", answer_s=1.0)
        over.set()
        thread.join()


ROW = dimse.encode_identifier({dimse.STUDY_UID: "1.2.3"}, dimse.IMPLICIT_LE)


def answers(*parts: tuple[int, bytes | None]) -> Script:
    def script(there: Association, message: dimse.Message) -> None:
        for status, dataset in parts:
            fields: dict[int, int | str] = {} if dataset is None else {dimse.DATASET_TYPE: 1}
            there.send_command(message.context_id, dimse.response(message.command, status, fields))
            if dataset is not None:
                there.send_dataset(message.context_id, dataset)

    return script


def abort_after_a_row(there: Association, message: dimse.Message) -> None:
    answers((0xFF00, ROW))(there, message)
    there.abort()


@pytest.mark.parametrize(
    "script",
    [
        abort_after_a_row,
        answers((0xFF00, ROW)),
        answers((0xFF00, ROW[:-1]), (0, None)),
        answers((0xFF00, ROW + b"\0"), (0, None)),
        answers((0xFF00, None), (0, None)),
        answers((0xFF00, ROW), (0xFE00, None)),
        answers((0xFF00, ROW), (0x0110, None)),
        lambda there, message: there.send_command(message.context_id, b"\0\0\0"),
        lambda there, message: there.send_command(message.context_id, dimse.response(message.command, 0, {dimse.RESPONDED_TO: 99})),
    ],
    ids=["abort", "no-end", "cut", "too-long", "no-identifier", "cancelled", "failure", "garbage", "to-another"],
)
def test_an_answer_that_is_not_whole_fails(script: Script) -> None:
    """Abort, silence, a cut or overlong identifier, cancel, garbage and a Success for another question all fail the query instead of shortening it."""
    with scripted(script) as peer, scu.FindSession(peer) as session, pytest.raises(errors.QueryFailed):
        list(session.find("STUDY", {}, [dimse.STUDY_UID]))


def test_an_echo_that_is_answered_with_a_failure_is_no_success() -> None:
    """A PACS that answers C-ECHO, and says that it does not serve us, is SourceRefused with its status."""
    with scripted(answers((0x0122, None))) as peer, pytest.raises(errors.SourceRefused, match="0122"):
        scu.echo(peer)


@pytest.mark.parametrize("more", [{"sops": ("1.2.3.4",)}, {"series": "1.2.3", "sops": ("1.2.3.4",) * (MAX_SOPS + 1)}])
def test_a_move_that_no_pacs_could_understand_is_not_asked_for(more: dict[str, Any]) -> None:
    """Instances without their series, or more than fit into one request, are a mistake of ours; nobody is called."""
    with pytest.raises(ValueError, match="one series"):
        move(scu.Peer(HOST, free_port(), "PACS", "MIGRATE"), "MIGRATE", study="1.2", should_stop=never, **more)


@pytest.mark.parametrize("command", [False, True], ids=["row", "command-set"])
def test_an_answer_without_an_end_is_not_held(command: bool) -> None:
    """A row, or a command set, that goes on for ever fails the query before it costs memory."""
    sent: list[int] = []

    def pieces(piece: bytes, count: int) -> Iterator[bytes]:
        for _ in range(count):
            sent.append(len(piece))
            yield piece

    def script(there: Association, message: dimse.Message) -> None:
        sent.clear()
        if command:
            there._send_fragments(message.context_id, 1, pieces(bytes(16 << 10), 4096))
        there.send_command(message.context_id, dimse.response(message.command, 0xFF00, {dimse.DATASET_TYPE: 1}))
        there.send_dataset(message.context_id, pieces(bytes(1 << 20), 256))

    with scripted(script) as peer, scu.FindSession(peer) as session, pytest.raises(errors.QueryFailed, match="not whole"):
        list(session.find("STUDY", {}, [dimse.STUDY_UID]))
    assert sum(sent) < 3 * dimse.MAX_IDENTIFIER_BYTES


@pytest.mark.parametrize("status", [0xA700, 0xA900, 0xC001])
def test_refused_query_says_its_status(status: int) -> None:
    """A700, A9xx and Cxxx are refusals that a narrower question may get around; the association lives on."""
    with scripted(answers((status, None))) as peer, scu.FindSession(peer) as session:
        for _ in range(2):
            with pytest.raises(errors.QueryRefused) as caught:
                list(session.find("STUDY", {}, []))
            assert status == getattr(caught.value, "status", None)


def test_what_came_before_its_question_is_no_answer() -> None:
    """A PACS that ends each answer twice, and does not say which question it means: the second end is not taken for the next answer."""
    ended = pdu([(3, dimse.encode_command({dimse.COMMAND_FIELD: dimse.C_FIND | dimse.RESPONSE, dimse.DATASET_TYPE: 0x0101, dimse.STATUS: 0}))])

    def script(there: Association, message: dimse.Message) -> None:
        answers((0xFF00, ROW))(there, message)
        there._send(2 * ended)

    with scripted(script) as peer, scu.FindSession(peer) as session:
        assert [len(list(session.find("STUDY", {}, [dimse.STUDY_UID]))) for _ in range(3)] == [1, 1, 1]


@pytest.mark.parametrize("end", [Association.release, Association.abort, Association.close], ids=["release", "abort", "close"])
def test_an_association_that_ends_instead_of_an_answer_says_nothing_of_the_question(end: Callable[[Association], None]) -> None:
    """After so many questions a PACS may have had enough, in whichever way: the next one is asked over another association, once."""
    asked: list[Association] = []

    def script(there: Association, message: dimse.Message) -> None:
        asked.append(there)
        if asked.count(there) == 2:
            end(there)
        else:
            answers((0xFF00, ROW), (0, None))(there, message)

    with scripted(script) as peer, scu.FindSession(peer) as session:
        assert [len(list(session.find("STUDY", {}, [dimse.STUDY_UID]))) for _ in range(3)] == [1, 1, 1]
        assert len(asked) == 5
    with scripted(lambda there, _: end(there)) as peer, scu.FindSession(peer) as session, pytest.raises(errors.QueryFailed):
        list(session.find("STUDY", {}, [dimse.STUDY_UID]))


def test_ff01_counts_as_an_answer() -> None:
    """Rows with FF01 are rows, and the session remembers that the PACS does not support some keys."""
    padded = dimse.encode_identifier({dimse.STUDY_UID: b"1.2.3\0 ", STUDY_INSTANCES: b"\xe9 "}, dimse.IMPLICIT_LE)
    with scripted(answers((0xFF01, padded), (0, None))) as peer, scu.FindSession(peer) as session:
        (row,) = session.find("STUDY", {}, [dimse.STUDY_UID, STUDY_INSTANCES])
        assert session.saw_ff01
    assert row == {dimse.STUDY_UID: "1.2.3", STUDY_INSTANCES: "é"}


CUTS = ("whole", "data set in pieces", "command in pieces", "empty piece last")
USUALLY_NOT = st.sampled_from((False, False, False, True))
ROWS = st.lists(
    st.tuples(
        st.sampled_from((0xFF00, 0xFF00, 0xFF01)),  # status
        st.sampled_from(("whole", "whole", *CUTS)),
        st.lists(USUALLY_NOT, min_size=3, max_size=3),  # which fragments share the PDU of the one before
        st.integers(0, 300),  # bytes of some value
    ),
    max_size=12,
)
Plan = list[tuple[int, str, list[bool], int]]


def fragments(cut: str, command: bytes, dataset: bytes) -> list[tuple[int, bytes]]:
    """A message in one of the ways that PS3.8 E.2 leaves open: (control byte, bytes) each."""
    half = len(dataset) // 2
    if cut == "data set in pieces":
        return [(3, command), (0, dataset[:half]), (2, dataset[half:])]
    if cut == "command in pieces":
        return [(1, command[:20]), (3, command[20:]), (2, dataset)]
    if cut == "empty piece last":
        return [(3, command), (0, dataset), (2, b"")]
    return [(3, command), (2, dataset)]


def pdu(parts: list[tuple[int, bytes]]) -> bytes:
    """One P-DATA PDU of these fragments."""
    body = b"".join(struct.pack(">IBB", len(data) + 2, 1, control) + data for control, data in parts)
    return struct.pack(">BBI", 4, 0, len(body)) + body


def streamed(rows: Plan, request: dimse.Command) -> bytes:
    """The whole answer to a request, in PDUs as planned."""
    pdus: list[list[tuple[int, bytes]]] = []
    for number, (status, cut, joined, size) in enumerate(rows):
        keys: dict[int, str | bytes] = {dimse.STUDY_UID: f"1.{number}", 0x00081030: bytes(size)}
        command = dimse.response(request, status, {dimse.DATASET_TYPE: 1})
        parts = fragments(cut, command, dimse.encode_identifier(keys, dimse.IMPLICIT_LE))
        for part, joins in zip(parts, joined, strict=False):
            if joins and pdus:
                pdus[-1].append(part)
            else:
                pdus.append([part])
    return b"".join(map(pdu, [*pdus, [(3, dimse.response(request, 0))]]))


def test_rows_come_however_they_are_laid_out() -> None:
    """Every row comes once and in order, however its message is cut into fragments, PDUs and packets; of a stream that
    ends early the rows until then, and then the failure."""
    plan: tuple[Plan, int, float] = ([], 1, 2.0)

    def script(there: Association, message: dimse.Message) -> None:
        rows, step, share = plan
        whole = streamed(rows, message.command)
        stream = whole[: int(len(whole) * share)]
        for at in range(0, len(stream), step):
            there._send(stream[at : at + step])
        if stream != whole:
            there.close()

    with scripted(script) as peer, scu.FindSession(peer) as session:

        @settings(max_examples=100)
        @given(ROWS, st.integers(7, 3000), st.one_of(st.just(2.0), st.floats(0, 1, exclude_max=True)))
        def check(rows: Plan, step: int, share: float) -> None:
            nonlocal plan
            plan, session.saw_ff01 = (rows, step, share), False
            came, expected = [], [f"1.{number}" for number in range(len(rows))]
            try:
                for row in session.find("STUDY", {}, [dimse.STUDY_UID]):
                    came.append(row[dimse.STUDY_UID])
            except errors.QueryFailed:
                assert share < 1 and expected[: len(came)] == came
                return
            assert share == 2 and expected == came
            assert session.saw_ff01 == any(status == 0xFF01 for status, *_ in rows)

        check()


def test_patient_root_where_study_root_is_refused() -> None:
    """A PACS with only Patient Root is asked by that."""
    with scripted(answers((0, None)), dimse.STUDY_ROOT_FIND) as peer, scu.FindSession(peer) as session:
        assert list(session.find("STUDY", {}, [])) == []
        assert session.patient_root


@pytest.mark.parametrize("obeys", [True, False])
def test_stopping_a_move_cancels_and_raises(obeys: bool) -> None:
    """The reason to stop is sent as C-CANCEL and raised, whether the PACS obeys or not, within about two seconds."""
    seen: list[int] = []
    request: list[dimse.Message] = []

    def script(there: Association, message: dimse.Message) -> None:
        seen.append(message.command.field)
        if message.command.field == dimse.C_MOVE:
            request.append(message)
            answers((0xFF00, None))(there, message)
        elif obeys:
            answers((0xFE00, None))(there, request[0])

    started = time.monotonic()
    with scripted(script) as peer:
        with pytest.raises(errors.SourceStalled, match="too slow"):
            move(
                peer, "MIGRATE", study="1.2", poll_s=0.05,
                should_stop=lambda: "too slow" if time.monotonic() - started > 0.3 else None,
            )  # fmt: skip
        until(lambda: dimse.C_CANCEL in seen)
    assert time.monotonic() - started < 5


def test_absent_numbers_are_none_and_failed_uids_are_told() -> None:
    """A final answer without counts has None for them, and its list of failed UIDs comes along."""
    failed = dimse.encode_identifier({dimse.FAILED_SOPS: "1.2\\1.3"}, dimse.IMPLICIT_LE)
    with scripted(answers((0xB000, failed))) as peer:
        result = move(peer, "MIGRATE", study="1.2", should_stop=never)
    assert MoveResult(0xB000, failed_sops=("1.2", "1.3")) == result


def test_abort_in_a_move() -> None:
    """An association that breaks in the middle of a move is MoveFailed."""
    with scripted(lambda there, _: there.abort()) as peer, pytest.raises(errors.MoveFailed):
        move(peer, "MIGRATE", study="1.2", should_stop=never)
