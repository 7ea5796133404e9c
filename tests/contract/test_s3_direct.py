"""How small objects get to a store: the signature, answers of all shapes, limits, kept connections, TLS and proxies."""

from __future__ import annotations

import contextlib
import datetime
import http.client
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import botocore.auth
import pytest
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given, settings
from hypothesis import strategies as st

from migrate.config import S3Settings
from migrate.destinations import open_destination
from migrate.destinations.s3.answers import NoAnswer, StoreSaid
from migrate.destinations.s3.http import Answer, Road
from migrate.destinations.s3.signature import sign
from migrate.destinations.s3.transport import Transport
from migrate.errors import DestinationUnreachable
from migrate.model import Fixity, Proof
from tests.places import staged
from tests.s3_server import Deed, S3Server, meddling

BYTES = bytes(range(1, 256)) * 100
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"

_words = st.text("abcXYZ059-._~ ", min_size=1, max_size=20)


@given(
    key=st.text("aZ0/-._~%+ &=ä", max_size=20), values=st.lists(_words, max_size=4), token=st.none() | _words.map(str.strip).filter(bool),
    secret=st.text("aZ0/+", min_size=1), sha256=st.binary(min_size=32, max_size=32),
)  # fmt: skip
def test_signatures_are_botocores(key: str, values: list[str], token: str | None, secret: str, sha256: bytes) -> None:
    """Whatever is signed, botocore's own signer comes to the same signature at the same second."""
    path = "/" + quote(key, safe="/~")
    headers = {"host": "store:8333", "content-length": "3"} | {f"x-amz-meta-{at}": value for at, value in enumerate(values)}

    class Known(botocore.auth.S3SigV4Auth):
        def payload(self, request: AWSRequest) -> str:
            return sha256.hex()

    request = AWSRequest("PUT", f"http://store:8333{path}", headers=headers)
    Known(Credentials("AK", secret, token), "s3", "eu-central-1").add_auth(request)
    now = datetime.datetime.strptime(request.context["timestamp"] + "+0000", "%Y%m%dT%H%M%SZ%z")
    ours = sign("PUT", path, headers, sha256, Credentials("AK", secret, token), "eu-central-1", now)
    assert ours["Authorization"] == request.headers["Authorization"]


@contextlib.contextmanager
def answering(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that does as it is told with each connection; yields its host and port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection, contextlib.suppress(OSError):
                    serve(connection)

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)


def whole_request(connection: socket.socket) -> bytes:
    """The next request with its body; b"" where none comes any more."""
    came = b""
    while b"\r\n\r\n" not in came:
        if not (piece := connection.recv(1 << 16)):
            return b""
        came += piece
    head, _, body = came.partition(b"\r\n\r\n")
    length = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
    while len(body) < length:
        if not (piece := connection.recv(1 << 16)):
            return b""
        body += piece
    return head + b"\r\n\r\n" + body


def small(folder: Path) -> tuple[str, Path, Fixity]:
    """A key, a file and its fixity."""
    item, file = staged(folder, BYTES)
    return "key", file, item.fixity


def asked(host: str, method: str = "PUT") -> Answer:
    with contextlib.closing(Road(host, None, None, {}).connection()) as connection:
        connection.connect()
        return connection.ask(method, "/key", {"host": host, "content-length": "4"}, [b"body"])


ANSWERS = {
    b"HTTP/1.1 403 Forbidden\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n<Code\r\n8;x=y\r\n>A</Code\r\n1\r\n>\r\n0\r\nT: x\r\n\r\n": b"<Code>A</Code>",
    b"HTTP/1.1 403 Forbidden\r\nContent-Length: 14\r\n\r\n<Code>A</Code>": b"<Code>A</Code>",
    b"HTTP/1.0 403 Forbidden\r\n\r\n<Code>A</Code>": b"<Code>A</Code>",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 403 \r\nContent-Length: 14\r\n\r\n<Code>A</Code>": b"<Code>A</Code>",
}


@pytest.mark.parametrize("raw", ANSWERS, ids=["chunked", "length", "until the end", "after 100"])
def test_answers_come_in_all_shapes(raw: bytes) -> None:
    """Chunked, with a length, without one, after a 100: the body is what the store said, however it is cut into packets."""

    def serve(connection: socket.socket) -> None:
        whole_request(connection)
        for at in range(0, len(raw), 7):
            connection.sendall(raw[at : at + 7])

    with answering(serve) as host:
        answer = asked(host)
    assert (answer.status, answer.content) == (403, ANSWERS[raw])


@pytest.mark.parametrize(
    "raw", [b"", b"HTTP/1.1 20", b"HTTP/1.1 200 OK\r\nETag: ab", b"HTTP/1.1 200 OK\r\nETag: abcd\r\n", b"HTTP/1.1 403 No\r\nContent-Length: 9\r\n\r\n<Code>"]
)
def test_half_an_answer_is_none(raw: bytes) -> None:
    """A connection that ends within an answer leaves nothing of it that could be believed."""

    def serve(connection: socket.socket) -> None:
        whole_request(connection)
        connection.sendall(raw)

    with answering(serve) as host, pytest.raises((ConnectionError, http.client.IncompleteRead)):
        asked(host)


_HEADERS = st.sampled_from([
    b"", b"Content-Length: 5\r\n", b"Content-Length: -1\r\n", b"Content-Length: 99999999999\r\n", b"Content-Length: 5_0\r\n",
    b"Transfer-Encoding: chunked\r\n", b":\r\n", b"\xff\xfe: \x00\r\n", b"Connection: close\r\n",
])  # fmt: skip


_ODD_ANSWERS = st.binary(max_size=60) | st.builds(
    lambda status, headers, body: b"HTTP/1.1 %d X\r\n" % status + b"".join(headers) + b"\r\n" + body,
    st.integers(0, 999), st.lists(_HEADERS, max_size=4), st.binary(max_size=40) | st.sampled_from([b"fffffff\r\n", b"5\r\nabcdefgh", b"0\r\n\r\n"]),
)  # fmt: skip


def test_no_answer_breaks_the_client() -> None:
    """Whatever comes back, it is an answer, or a fault of the network or of the store: nothing else, and in time."""
    now = b""

    def serve(connection: socket.socket) -> None:
        whole_request(connection)
        connection.sendall(now)

    with answering(serve) as host:

        @settings(max_examples=300)
        @given(_ODD_ANSWERS)
        def check(raw: bytes) -> None:
            nonlocal now
            now = raw
            with contextlib.suppress(ConnectionError, http.client.HTTPException):
                assert 200 <= asked(host).status < 1000

        check()


@pytest.mark.timeout(30)
@pytest.mark.parametrize(("way", "begin"), [
    ("plain", b"HTTP/1.1 200 OK\r\n"), ("plain", b"HTTP/1.1 403 No\r\n\r\n"), ("TLS", b"HTTP/1.1 403 No\r\n\r\n"), ("tunnel", b"HTTP/1.1 200 OK\r\n"),
])  # fmt: skip
def test_an_answer_that_drips_has_an_end(
    way: str, begin: bytes, certified: ssl.SSLContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A byte at a time, each well within a time-out: the whole has a limit, in TLS and before it, too."""
    ended = threading.Event()

    def drip(connection: socket.socket) -> None:
        whole_request(connection)
        connection.sendall(begin)
        while not ended.wait(0.05):
            connection.sendall(b"x")

    def wrapped(connection: socket.socket) -> None:
        with certified.wrap_socket(connection, server_side=True) as inner:
            drip(inner)

    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    with answering(wrapped if way == "TLS" else drip) as host:
        if way == "tunnel":
            monkeypatch.setenv("https_proxy", f"http://{host}")
        transport = Transport(S3Settings("bucket", endpoint_url=f"{'http' if way == 'plain' else 'https'}://{host}"), patience_s=0.5)
        begun = time.monotonic()
        with pytest.raises(NoAnswer, match="nothing was finished within"):
            transport.put(*small(tmp_path), {}, multipart=False)
        assert time.monotonic() - begun < 5
        ended.set()
        transport.close()


def test_an_answer_without_an_end_is_not_held(tmp_path: Path) -> None:
    """A head without an end is no answer; a body without one does not keep what the store said from us."""

    def flood(connection: socket.socket) -> None:
        whole_request(connection)
        connection.sendall(begin)
        while True:
            connection.sendall(b"x" * 65536)

    with answering(flood) as host:
        transport = Transport(S3Settings("bucket", endpoint_url=f"http://{host}", retries=0))
        begin = b"HTTP/1.1 403 Forbidden\r\n\r\n<Code>A</Code>"
        with pytest.raises(StoreSaid, match="A"):
            transport.put(*small(tmp_path), {}, multipart=False)
        begin = b""
        with pytest.raises(NoAnswer, match="not what an S3 store says"):
            transport.put(*small(tmp_path), {}, multipart=False)
        transport.close()


def test_a_connection_that_ended_meanwhile_is_no_failure(tmp_path: Path) -> None:
    """Stores close what waits for too long, without a word or with a 408, even while the next request is on its way: it is sent again at once."""
    served: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        for last in (False, True):
            if request := whole_request(connection):
                served.append(request)
                if last and len(served) % 4 == 0:
                    return  # without an answer
                connection.sendall(OK + (b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n" if last else b""))

    item, file = staged(tmp_path, BYTES)
    with answering(serve) as host:
        transport = Transport(S3Settings("bucket", endpoint_url=f"http://{host}", retries=0))
        for number in range(12):
            transport.put(str(number), file, item.fixity, {}, multipart=False)
        transport.close()
    assert {request.split()[1] for request in served} == {b"/bucket/%d" % number for number in range(12)}
    assert all(request.endswith(BYTES) for request in served)


def test_closing_ends_what_waits(tmp_path: Path) -> None:
    """Whoever waits for a silent store is told at once when the destination is closed."""
    waiting, ended = threading.Event(), threading.Event()

    def hang(connection: socket.socket) -> None:
        whole_request(connection)
        waiting.set()
        ended.wait(30)

    item, file = staged(tmp_path, BYTES)
    with answering(hang) as host:
        transport = Transport(S3Settings("bucket", endpoint_url=f"http://{host}"))
        threading.Thread(target=lambda: waiting.wait(30) and transport.close(), daemon=True).start()
        with pytest.raises(NoAnswer):
            transport.put("key", file, item.fixity, {}, multipart=False)
        ended.set()


def test_a_file_that_shrinks_is_told_from_the_network(tmp_path: Path) -> None:
    """A staged file that is shorter than it was, or gone, is our own trouble and not the store's."""
    item, file = staged(tmp_path, BYTES)
    with answering(lambda connection: whole_request(connection) and None) as host:
        transport = Transport(S3Settings("bucket", endpoint_url=f"http://{host}"))
        for _ in range(2):
            file.write_bytes(BYTES[:-1]) if file.stat().st_size == len(BYTES) else file.unlink()
            with pytest.raises(NoAnswer) as raised:
                transport.put("key", file, item.fixity, {}, multipart=False)
            assert raised.value.kind == "file"
        transport.close()


@pytest.fixture
def certified(tmp_path: Path) -> ssl.SSLContext:
    """A server's side of TLS for 127.0.0.1; its certificate stands in ca.pem."""
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=store"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "ca.pem")]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "ca.pem", tmp_path / "key.pem")
    return context


def test_a_private_certificate_authority(
    server: S3Server, certified: ssl.SSLContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over TLS an object is put and proven where the bundle names the authority; without it the error says what to do, at once."""
    item, file = staged(tmp_path, BYTES)
    with meddling(lambda *_: None, server, tls=certified) as store:
        place = S3Settings(server.new_bucket(), endpoint_url=store.endpoint_url)
        with pytest.raises(NoAnswer) as raised:
            Transport(place).put("key", file, item.fixity, {}, multipart=False)
        assert raised.value.reason == "SSL CERTIFICATE_VERIFY_FAILED"
        with pytest.raises(DestinationUnreachable) as told:
            open_destination(place).prepare()
        assert "AWS_CA_BUNDLE" in told.value.hint
        monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "ca.pem"))
        destination = open_destination(place)
        receipt = destination.put(item, file)
        assert destination.verify(replace(item, receipt=receipt)) is Proof.ATTESTED
        destination.close()


def test_proxies_of_the_environment_are_used(
    server: S3Server, certified: ssl.SSLContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HTTP_PROXY takes the requests whole, HTTPS_PROXY as a tunnel, both with its user and password; NO_PROXY goes past it."""
    heads: list[bytes] = []

    def tunnel(connection: socket.socket) -> None:
        heads.append(whole_request(connection))
        host, _, port = heads[-1].split()[1].partition(b":")
        with socket.create_connection((host, int(port))) as there:
            connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            threading.Thread(target=pipe, args=(there, connection), daemon=True).start()
            pipe(connection, there)

    item, file = staged(tmp_path, BYTES)
    paths: list[str] = []

    def take_down(method: str, path: str, count: int) -> Deed | None:
        paths.append(path)
        return None

    bucket = server.new_bucket()
    with meddling(take_down, server) as proxy, meddling(lambda *_: None, server, tls=certified) as store, answering(tunnel) as gate:
        monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "ca.pem"))
        for name, value in (("http_proxy", proxy.endpoint_url), ("https_proxy", f"http://us%20er:pass@{gate}"), ("no_proxy", "")):
            monkeypatch.setenv(name, value)
            monkeypatch.setenv(name.upper(), value)
        places = [S3Settings(bucket, prefix, endpoint_url=each.endpoint_url) for prefix, each in (("a/", server), ("b/", store))]
        for place in places:
            transport = Transport(place)
            assert transport.put(f"{place.prefix}key", file, item.fixity, {}, multipart=False)["etag"]
            transport.close()
        assert paths == [f"{server.endpoint_url}/{bucket}/a/key"]
        assert [head.split()[0] for head in heads] == [b"CONNECT"]
        assert b"proxy-authorization: basic dxmgzxi6cgfzcw==" in heads[0].lower()
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        transport = Transport(places[0])
        with pytest.raises(StoreSaid, match="PreconditionFailed"):
            transport.put("a/key", file, item.fixity, {}, multipart=False)
        transport.close()
        assert len(paths) == 1


def test_a_proxy_that_passes_requests_on_is_told_the_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without TLS there is no tunnel: each request has the store's whole address, and the proxy's user and password."""
    heads: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        heads.append(whole_request(connection))
        connection.sendall(OK)

    with answering(serve) as host:
        monkeypatch.setenv("http_proxy", f"http://us%20er:pass@{host}")
        monkeypatch.setenv("no_proxy", "")
        transport = Transport(S3Settings("bucket", endpoint_url="http://127.0.0.1:9"))
        transport.put(*small(tmp_path), {}, multipart=False)
        transport.close()
    assert heads[0].startswith(b"PUT http://127.0.0.1:9/bucket/key HTTP/1.1\r\n")
    assert b"\r\nproxy-authorization: basic dxmgzxi6cgfzcw==\r\n" in heads[0].lower()


def pipe(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while piece := source.recv(1 << 16):
            sink.sendall(piece)
        sink.shutdown(socket.SHUT_WR)
