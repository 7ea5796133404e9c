"""S3 servers on loopback for tests: SeaweedFS (a careful store), `rclone serve s3` (a careless one), and a rude one."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs

import boto3
from botocore.config import Config

from tests.ports import free_ports

ACCESS_KEY = "AKTESTTESTTESTTEST00"
SECRET_KEY = "test-secret-for-loopback-only"
ENVIRONMENT = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY, "AWS_DEFAULT_REGION": "us-east-1"}
SECOND_ACCESS_KEY = "AKTESTTESTTESTTEST99"  # has the same secret and the same rights
_START_LIMIT_S = 60.0


@dataclass(frozen=True)
class S3Server:
    """A running server; its credentials are `ENVIRONMENT`."""

    endpoint_url: str
    pid: int

    def client(self, *, attempts: int = 3) -> Any:
        """A raw boto3 client, for what the package itself must not do (overwrite, delete)."""
        return boto3.client(
            "s3", endpoint_url=self.endpoint_url, aws_access_key_id=ACCESS_KEY, aws_secret_access_key=SECRET_KEY,
            region_name="us-east-1",
            config=Config(s3={"addressing_style": "path"}, retries={"mode": "standard", "total_max_attempts": attempts}),
        )  # fmt: skip

    def new_bucket(self, *, versioned: bool = False) -> str:
        """Make a bucket with a name of its own."""
        return self.bucket(f"bucket-{uuid.uuid4().hex}", versioned=versioned)

    def bucket(self, name: str, *, versioned: bool = False) -> str:
        """Make a bucket and return its name."""
        client = self.client()
        client.create_bucket(Bucket=name)
        if versioned:
            client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
        return name

    def remove_bucket(self, name: str) -> None:
        """Remove a bucket with all that is in it, and give its room back: each bucket of SeaweedFS takes volumes of its own, which are not without number."""
        client = self.client()
        for page in client.get_paginator("list_object_versions").paginate(Bucket=name):
            versions = [{"Key": each["Key"], "VersionId": each["VersionId"]} for kind in ("Versions", "DeleteMarkers") for each in page.get(kind, ())]
            if versions:
                client.delete_objects(Bucket=name, Delete={"Objects": versions, "Quiet": True})
        client.delete_bucket(Bucket=name)


SEAWEEDFS_PORTS = 10


@contextmanager
def seaweedfs(folder: Path, ports: Sequence[int] = ()) -> Iterator[S3Server]:
    """SeaweedFS in one process, its data under `folder`; yields when it stores and answers.

    All ports are chosen here: it would derive some from others, and parallel runs would clash. The same folder and
    `ports` (SEAWEEDFS_PORTS of them) again are the same store again. The sockets that it makes in /tmp, wherever its data lie, are removed.
    """
    ports = ports or free_ports(SEAWEEDFS_PORTS)
    (folder / "data").mkdir(parents=True, exist_ok=True)
    identity = {
        "name": "test",
        "credentials": [{"accessKey": key, "secretKey": SECRET_KEY} for key in (ACCESS_KEY, SECOND_ACCESS_KEY)],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    names = [f"{part}.port{kind}" for part in ("s3", "master", "volume", "filer", "admin") for kind in ("", ".grpc")]
    command = [
        str(Path(sys.executable).parent / "weed"), "mini", f"-dir={folder / 'data'}",
        "-ip=127.0.0.1", "-ip.bind=127.0.0.1", *(f"-{name}={port}" for name, port in zip(names, ports, strict=True)),
        "-admin.ui=false", "-webdav=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.autoCreateBucket=false",
        "-master.telemetry=false", f"-s3.config={folder / 's3.json'}", "-master.volumeSizeLimitMB=256",
    ]  # fmt: skip
    try:
        with _running(command, folder / "weed.log", f"http://127.0.0.1:{ports[0]}") as server:
            yield server
    finally:
        for path in (path for port in ports for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock")):
            path.unlink(missing_ok=True)


@contextmanager
def rclone_serve(folder: Path) -> Iterator[S3Server]:
    """`rclone serve s3`: accepts wrong checksums, echoes them, and overwrites whatever If-None-Match says."""
    (port,) = free_ports(1)
    (folder / "data").mkdir(parents=True, exist_ok=True)
    command = [
        str(Path(sys.executable).parent / "rclone"), "serve", "s3", str(folder / "data"), "--addr", f"127.0.0.1:{port}",
        "--auth-key", f"{ACCESS_KEY},{SECRET_KEY}", "--config", str(folder / "none.conf"), "--vfs-cache-mode", "off",
    ]  # fmt: skip
    with _running(command, folder / "rclone.log", f"http://127.0.0.1:{port}") as server:
        yield server


@contextmanager
def _running(command: list[str], log: Path, endpoint_url: str) -> Iterator[S3Server]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=log.parent)
        try:
            server = S3Server(endpoint_url, process.pid)
            _await_storing(server, process, log)
            yield server
        finally:
            process.kill()  # what it holds is thrown away anyway
            process.wait()


def _await_storing(server: S3Server, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until an object can be put: a listening port alone does not mean that there is a volume to write to."""
    client, deadline = server.client(attempts=1), time.monotonic() + _START_LIMIT_S
    while True:
        try:
            if "warm-up" not in {bucket["Name"] for bucket in client.list_buckets().get("Buckets", [])}:
                client.create_bucket(Bucket="warm-up")
            client.put_object(Bucket="warm-up", Key="object", Body=b"object")
            return
        except Exception as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server did not start: {log.read_text()[-2000:]}") from error
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.05)


Answer = tuple[int, bytes]
Passed = tuple[int, list[tuple[str, str]], bytes]
Deed = Answer | Passed | Literal["lose", "hang", "reset", "drop"] | Callable[[Passed], Passed]
Meddle = Callable[[str, str, int], Deed | None]


@dataclass(frozen=True)
class Asked:
    """A request that came to a meddling store: its method, or for the steps of a multipart upload BEGIN, PART, COMPLETE, ABORT."""

    method: str
    path: str
    query: str
    create_only: bool
    access_key: str


def _step(method: str, query: str) -> str:
    words = parse_qs(query, keep_blank_values=True)
    if "uploadId" in words:
        return {"PUT": "PART", "POST": "COMPLETE", "DELETE": "ABORT"}.get(method, method)
    return "BEGIN" if method == "POST" and "uploads" in words else method


class _Listener(ThreadingHTTPServer):
    """The store that `meddling` opens."""

    daemon_threads = True

    def __init__(self, meddle: Meddle, server: S3Server | None, asked: list[Asked] | None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.meddle, self.server, self.asked = meddle, server, asked
        self.counts: Counter[tuple[str, str]] = Counter()
        self.lock, self.ended = threading.Lock(), threading.Event()

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients that give up are what is tested here


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Listener

    def handle_any(self) -> None:
        path, _, query = self.path.partition("?")
        method = _step(self.command, query)
        what = self.deed(method, path, query)
        if what == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if what == "hang":
            self.server.ended.wait()
        elif isinstance(what, tuple):
            self.answer(what[0], what[1] if len(what) == 3 else [], what[-1])
        elif what != "drop":
            passed = self.passed_on(body)
            if what != "lose":
                self.answer(*(what(passed) if callable(what) else passed))
        self.close_connection = self.close_connection or what in ("lose", "hang", "drop")

    def deed(self, method: str, path: str, query: str) -> Deed | None:
        """What is to be done with this request, which is taken down."""
        key = self.headers.get("Authorization", "").partition("Credential=")[2].partition("/")[0]
        listener = self.server
        with listener.lock:
            listener.counts[method, path] += 1
            if listener.asked is not None:
                listener.asked.append(Asked(method, path, query, "If-None-Match" in self.headers, key))
            return listener.meddle(method, path, listener.counts[method, path])

    def passed_on(self, body: bytes) -> Passed:
        assert self.server.server is not None
        upstream = http.client.HTTPConnection(self.server.server.endpoint_url.removeprefix("http://"))
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() != "expect":
                    upstream.putheader(name, value)
            upstream.endheaders(body)
            answer = upstream.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            upstream.close()

    def answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
        self.send_response_only(status)
        names = [name.lower() for name, _ in headers]
        for name, value in headers:
            if name.lower() not in ("transfer-encoding", "connection"):
                self.send_header(name, value)
        if "content-length" not in names:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def meddling(
    meddle: Meddle, server: S3Server | None = None, asked: list[Asked] | None = None, *, tls: ssl.SSLContext | None = None
) -> Iterator[S3Server]:
    """A store with bad manners: asks `meddle(method as in Asked, path, nth request like this)` what to do with each request.

    It answers by itself, passes the request on to `server` and loses the answer, never answers, resets the connection
    before it has read the body, drops the request once it has, changes the server's answer, or (None) passes on.
    `asked` takes down every request. With `tls` it is spoken to over TLS.
    """
    with _Listener(meddle, server, asked) as listener:
        if tls is not None:
            listener.socket = tls.wrap_socket(listener.socket, server_side=True)
        thread = threading.Thread(target=listener.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield S3Server(f"http{'s' if tls else ''}://127.0.0.1:{listener.server_address[1]}", 0)
        finally:
            listener.ended.set()
            listener.shutdown()
            thread.join()
