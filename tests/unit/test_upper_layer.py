"""PDUs and command sets: what we encode is read back, and foreign bytes raise only what is documented."""

from __future__ import annotations

import socket
import struct
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ

from migrate.dicom import dimse, negotiation
from migrate.dicom.upper_layer import Association, Lost, Malformed, ProposedContext, UpperLayerError

IMPLICIT, EXPLICIT = dimse.IMPLICIT_LE, dimse.EXPLICIT_LE
OFFERS = negotiation.numbered((ProposedContext("1.2.3", (IMPLICIT, EXPLICIT)), ProposedContext("1.2.4", (EXPLICIT,))))


def connected() -> tuple[socket.socket, socket.socket]:
    """Both ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        left = socket.create_connection(listener.getsockname(), timeout=5)
        return left, listener.accept()[0]


def pair() -> tuple[socket.socket, Association]:
    """A raw socket, and the association of ours at its other end, as if negotiated."""
    theirs, ours = connected()
    return theirs, Association(ours, max_pdu=16384, timeout_s=5)


@pytest.mark.parametrize(
    ("said", "like"),
    [(b"GET / HTTP/1.1\r\n\r\n", "HTTP"), (b"\x16\x03\x01\x02\x00\x01", "TLS"), (b"SSH-2.0-OpenSSH_9.2\r\n", "SSH"), (b"\xff\x00\x00\x00\x00\x00", "of type 255")],
)
def test_who_speaks_something_else_is_told_from_dicom(said: bytes, like: str) -> None:
    """What comes in place of an association request is named where it is known, and its type where it is not."""
    theirs, ours = connected()
    theirs.sendall(said)
    with theirs, pytest.raises(Malformed, match=like):
        Association.accept(ours, choose=lambda _: None, negotiate_s=5)


def test_a_web_server_in_place_of_a_pacs_is_named() -> None:
    """An association that is asked for at the port of a web server fails with a sentence that says what it is."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def refuse() -> None:
            theirs = listener.accept()[0]
            theirs.recv(4096)
            theirs.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
            theirs.close()

        threading.Thread(target=refuse, daemon=True).start()
        with pytest.raises(Malformed, match="not DICOM: it looks like HTTP"):
            Association.request("127.0.0.1", listener.getsockname()[1], calling="A", called="B", contexts=OFFERS, timeout_s=5)


def test_request_is_what_pynetdicom_reads() -> None:
    """An independent decoder reads the contexts, titles and maximum length that we wrote, and so do we."""
    raw = negotiation.encode_request("CALLING", "CALLED", OFFERS, 131072)
    theirs = A_ASSOCIATE_RQ()
    theirs.decode(raw)
    primitive = theirs.to_primitive()
    contexts = primitive.presentation_context_definition_list
    assert [(c.context_id, c.abstract_syntax, tuple(c.transfer_syntax)) for c in contexts] == [
        (c.id, c.abstract_syntax, c.transfer_syntaxes) for c in OFFERS
    ]
    assert negotiation.decode_request(raw[6:]) == negotiation.AssociateRequest("CALLED", "CALLING", OFFERS, 131072)


def test_accept_is_what_pynetdicom_reads() -> None:
    """An independent decoder reads our answer, and so do we."""
    request = negotiation.AssociateRequest("CALLED", "CALLING", OFFERS, 0)
    raw = negotiation.encode_accept(request, ((1, 0, EXPLICIT), (3, 3, EXPLICIT)), 65536)
    theirs = A_ASSOCIATE_AC()
    theirs.decode(raw)
    results = theirs.to_primitive().presentation_context_definition_results_list
    assert [(r.context_id, r.result) for r in results] == [(1, 0), (3, 3)]
    assert negotiation.decode_accept(raw[6:]) == negotiation.AssociateAccept(((1, 0, EXPLICIT), (3, 3, "")), 65536)


@given(st.binary(max_size=400))
def test_any_bytes_as_association_pdus(raw: bytes) -> None:
    """The A-ASSOCIATE decoders raise Malformed or return, whatever they are given."""
    for decode in (negotiation.decode_request, negotiation.decode_accept, negotiation.decode_reject):
        for body in (raw, bytes(68) + raw):
            try:
                decode(body)
            except Malformed:
                continue


@given(st.integers(0, 400), st.integers(0, 255))
def test_one_changed_byte_in_a_request(position: int, value: int) -> None:
    """A request with one wrong byte is read or Malformed."""
    raw = bytearray(negotiation.encode_request("A", "B", OFFERS, 131072)[6:])
    raw[position % len(raw)] = value
    try:
        negotiation.decode_request(bytes(raw))
    except Malformed:
        return


@settings(max_examples=60)
@given(st.binary(max_size=200), st.integers(0, 255))
def test_any_bytes_in_an_association(raw: bytes, kind: int) -> None:
    """Reading an association of any bytes ends, with a documented error or a release, and closes the socket."""
    for data in (raw, bytes((kind % 8, 0)) + len(raw).to_bytes(4, "big") + raw):
        theirs, ours = pair()
        with theirs:
            theirs.sendall(data)
            theirs.shutdown(socket.SHUT_WR)
            try:
                for _ in ours.fragments():
                    pass
            except UpperLayerError:
                pass
            assert not ours.open


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.booleans(), st.binary(max_size=3000)), min_size=1, max_size=6),
    st.integers(0, 3000),
    st.integers(1, 700),
)
def test_fragments_come_as_sent(parts: list[tuple[bool, bytes]], peer_max: int, piece: int) -> None:
    """Whatever the maximum PDU and the pieces are, the other side reads the same bytes with the same ends."""
    left, right = connected()
    sender, reader = (Association(sock, max_pdu=0, timeout_s=5) for sock in (left, right))
    sender.peer_max_pdu = peer_max

    def send() -> None:
        for is_command, data in parts:
            if is_command:
                sender.send_command(5, data)
            else:
                sender.send_dataset(5, (data[i : i + piece] for i in range(0, len(data), piece)))
        sender.close()

    thread = threading.Thread(target=send)
    thread.start()
    got, collected = [], b""
    with pytest.raises(Lost):
        for context_id, is_command, last, view in reader.fragments():
            assert context_id == 5
            collected += view
            if last:
                got.append((is_command, collected))
                collected = b""
    thread.join()
    assert got == parts
    assert reader.longest_pdu <= max(peer_max or 1 << 17, 128)


def test_release_is_answered_and_crossing_releases_end() -> None:
    """A release is answered by A-RELEASE-RP; two that cross end both sides."""
    theirs, ours = pair()
    with theirs:
        theirs.sendall(negotiation.pdu(negotiation.RELEASE_RQ, bytes(4)))
        assert ours.read() is None
        assert theirs.recv(100) == negotiation.pdu(negotiation.RELEASE_RP, bytes(4))
    theirs, ours = pair()
    with theirs:
        theirs.sendall(negotiation.pdu(negotiation.RELEASE_RQ, bytes(4)))
        ours.release(wait_s=1)
        assert theirs.recv(100)[0] == negotiation.RELEASE_RQ
        assert not ours.open


def test_idle_hook_ends_a_wait_without_losing_its_place() -> None:
    """A hook that raises ends the read; the next read goes on where the first one waited."""
    theirs, ours = pair()

    def stop() -> None:
        raise KeyError

    with theirs:
        ours.idle, ours.poll_s = stop, 0.01
        message = struct.pack(">BBIIBB", 4, 0, 10, 6, 1, 3) + b"abcd"
        theirs.sendall(message[:9])
        with pytest.raises(KeyError):
            ours.read()
        theirs.sendall(message[9:])
        fragment = ours.read()
        assert fragment is not None and bytes(fragment[3]) == b"abcd"
        ours.close()


def test_command_set_is_read_back() -> None:
    """A command set comes back with its numbers and texts, and its group length is right."""
    raw = dimse.encode_command({dimse.COMMAND_FIELD: 0x21, dimse.MESSAGE_ID: 7, dimse.SOP_CLASS: "1.2", 0x0600: "ODD"})
    command = dimse.decode_command(raw)
    assert (command.field, command.number(dimse.MESSAGE_ID), command.has_dataset) == (0x21, 7, False)
    assert (command.text(dimse.SOP_CLASS), command.text(0x0600)) == ("1.2", "ODD")
    assert struct.unpack("<I", command.elements[0])[0] == len(raw) - 12
    assert command.number(dimse.STATUS) is None


@given(st.binary(max_size=100))
def test_any_bytes_as_command_set(raw: bytes) -> None:
    """Any bytes decode or raise BadCommand, and so does what is read from them."""
    try:
        command = dimse.decode_command(raw)
        command.text(dimse.SOP_CLASS)
        dimse.response(command, 0)
    except dimse.BadCommand:
        return


def test_statuses() -> None:
    """Each status is classified as the standard's tables say, and described with its number."""
    kinds = {
        0x0000: "SUCCESS", 0xFF00: "PENDING", 0xFF01: "PENDING", 0xFE00: "CANCELLED", 0xB000: "WARNING",
        0xA700: "REFUSED", 0xA702: "REFUSED", 0xA801: "UNKNOWN_DESTINATION", 0xA900: "FAILED", 0xC123: "FAILED",
    }  # fmt: skip
    assert {status: dimse.classify(status).name for status in kinds} == kinds
    assert dimse.describe(dimse.C_MOVE, 0xA801) == "A801 (refused: move destination unknown)"
    assert dimse.describe(dimse.C_FIND, 0xC123) == "C123 (unable to process)"
