"""Real S3 servers on loopback for tests: SeaweedFS (a careful store) and `rclone serve s3` (a careless one)."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

ACCESS_KEY = "AKTESTTESTTESTTEST00"
SECRET_KEY = "test-secret-for-loopback-only"
ENVIRONMENT = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY, "AWS_DEFAULT_REGION": "us-east-1"}
_START_LIMIT_S = 60.0


@dataclass(frozen=True)
class S3Server:
    """A running server; its credentials are `ENVIRONMENT`."""

    endpoint_url: str
    pid: int

    def client(self) -> Any:
        """A raw boto3 client, for what the package itself must not do (overwrite, delete)."""
        return boto3.client(
            "s3", endpoint_url=self.endpoint_url, aws_access_key_id=ACCESS_KEY, aws_secret_access_key=SECRET_KEY,
            region_name="us-east-1",
            config=Config(s3={"addressing_style": "path"}, retries={"mode": "standard", "max_attempts": 3}),
        )  # fmt: skip

    def bucket(self, name: str, *, versioned: bool = False) -> str:
        """Make a bucket and return its name."""
        client = self.client()
        client.create_bucket(Bucket=name)
        if versioned:
            client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
        return name


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextmanager
def seaweedfs(folder: Path) -> Iterator[S3Server]:
    """SeaweedFS in one process, its data under `folder`; yields when it stores and answers.

    All ports are chosen here: it would derive some from others, and parallel runs would clash.
    """
    ports = free_ports(10)
    (folder / "data").mkdir(parents=True, exist_ok=True)
    identity = {
        "name": "test",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
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
    with _running(command, folder / "weed.log", f"http://127.0.0.1:{ports[0]}") as server:
        yield server


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
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _await_storing(server: S3Server, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until an object can be put: a listening port alone does not mean that there is a volume to write to."""
    client, deadline = server.client(), time.monotonic() + _START_LIMIT_S
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
