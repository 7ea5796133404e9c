"""DICOM servers for tests, DCMTK's and Orthanc's: on free ports, up when the context begins, gone when it ends."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from migrate.dicom import dimse, part10, scanner
from migrate.dicom.upper_layer import Association, ProposedContext
from tests.ports import free_port

HOST = "127.0.0.1"

# pynetdicom brings programs with DCMTK's names: in an activated virtual environment they would be found first.
_BESIDE_PYTHON = str(Path(sys.executable).parent)
os.environ["PATH"] = os.pathsep.join(each for each in os.environ["PATH"].split(os.pathsep) if each != _BESIDE_PYTHON)


@dataclass(frozen=True, slots=True)
class PeerServer:
    """A server that answers C-ECHO; `folder` is where it keeps its files."""

    port: int
    ae_title: str
    folder: Path
    host: str = HOST


def run(*command: str | Path, ok: bool = True, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Run a DCMTK client; with `ok`, a failure raises with what it said."""
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout_s,
        check=False,
    )
    if ok and done.returncode:
        raise AssertionError(f"{command[0]} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done


@contextlib.contextmanager
def _serving(command: list[str], port: int, ae_title: str, log: Path, stop_s: float = 10.0, tls: Sequence[str] = ()) -> Iterator[None]:
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    try:
        give_up = time.monotonic() + 30
        echo = ["echoscu", *tls, "-to", "2", "-aec", ae_title, HOST, str(port)]
        while subprocess.run(echo, capture_output=True, check=False).returncode:
            if process.poll() is not None or time.monotonic() > give_up:
                raise AssertionError(f"{command[0]} does not answer:\n{log.read_text(errors='replace')[-2000:]}")
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.05)
        yield
    finally:
        process.terminate()
        try:
            process.wait(stop_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def storescp(folder: Path, *, bit_preserving: bool = True, ae_title: str = "STORESCP") -> Iterator[PeerServer]:
    """DCMTK's Storage SCP writing into `folder`/files, byte for byte as received unless told otherwise."""
    files = folder / "files"
    files.mkdir(parents=True)
    port = free_port()
    command = ["storescp", "-aet", ae_title, "-od", str(files), "+uf", "+xa", "-pm"]
    command += ["+B"] if bit_preserving else []
    with _serving([*command, str(port)], port, ae_title, folder / "storescp.log"):
        yield PeerServer(port, ae_title, files)


@contextlib.contextmanager
def dcmqrscp(
    folder: Path,
    port: int | None = None,
    moves: Mapping[str, tuple[str, int]] | None = None,
    *,
    files: Sequence[Path] = (),
    ae_title: str = "QRSCP",
) -> Iterator[PeerServer]:
    """DCMTK's query/retrieve server holding `files`; `moves` are the destinations it knows, by AE title."""
    port = port or free_port()
    storage = folder / "db"
    storage.mkdir(parents=True)
    hosts = "\n".join(f"h{n} = ({ae}, {host}, {p})" for n, (ae, (host, p)) in enumerate((moves or {}).items()))
    config = folder / "dcmqrscp.cfg"
    config.write_text(
        f"NetworkTCPPort = {port}\nMaxPDUSize = 131072\nMaxAssociations = 16\n"
        f"HostTable BEGIN\n{hosts}\nHostTable END\nVendorTable BEGIN\nVendorTable END\n"
        f"AETable BEGIN\n{ae_title} {storage} RW (2000, 1024mb) ANY\nAETable END\n"
    )
    for number, file in enumerate(files):
        shutil.copyfile(file, storage / f"{number}.dcm")
    if files:
        run("dcmqridx", storage, *(storage / f"{number}.dcm" for number in range(len(files))))
    with _serving(["dcmqrscp", "-c", str(config)], port, ae_title, folder / "dcmqrscp.log"):
        yield PeerServer(port, ae_title, storage)


@contextlib.contextmanager
def orthanc(
    folder: Path,
    *,
    moves: Mapping[str, tuple[str, int]] | None = None,
    files: Sequence[Path] = (),
    ae_title: str = "ORTHANC",
    options: Mapping[str, object] | None = None,
    tls: Sequence[str] = (),
) -> Iterator[PeerServer]:
    """An Orthanc holding `files`, with SQLite in `folder`; `moves` are the destinations it knows, by AE title. `tls`: what DCMTK's
    clients must be told to reach it."""
    storage = folder / "orthanc"
    storage.mkdir(parents=True)
    port = free_port()
    config = folder / "orthanc.json"
    settings: dict[str, object] = {
        "Name": "test",
        "StorageDirectory": str(storage),
        "IndexDirectory": str(storage),
        "Plugins": [],
        "HttpServerEnabled": False,
        "DicomAet": ae_title,
        "DicomPort": port,
        "DicomModalities": {ae.lower(): [ae, host, p] for ae, (host, p) in (moves or {}).items()},
        "DicomAlwaysAllowEcho": True,
        "DicomAlwaysAllowFind": True,
        "DicomAlwaysAllowMove": True,
        "DicomAlwaysAllowStore": True,
        "DicomCheckModalityHost": False,
        "UnknownSopClassAccepted": True,
        "OverwriteInstances": True,
        "SynchronousCMove": True,
        "StorageCompression": False,
        "LuaScripts": [],
    }
    config.write_text(json.dumps({**settings, **(options or {})}))
    command = "/usr/sbin/Orthanc" if os.path.exists("/usr/sbin/Orthanc") else "Orthanc"
    with _serving([command, str(config)], port, ae_title, folder / "orthanc.log", tls=tls):
        if files:
            store(HOST, port, ae_title, files)
        yield PeerServer(port, ae_title, storage)


def store(host: str, port: int, ae_title: str, files: Sequence[Path]) -> None:
    """Send Part 10 files, each in its own transfer syntax, in one association; raises for one that is not taken.

    By our own upper layer: DCMTK's senders need 40 ms for each instance into a peer that delays its acknowledgements.
    """
    headers = {}
    for path in files:
        with path.open("rb") as file:
            _, _, syntax, offset = part10.read_header(file)
        scan = scanner.scan_file(path, offset, syntax)  # some samples have other UIDs in their file meta
        headers[path] = (scan.sop_class, scan.sop, syntax, offset)
    kinds = sorted({(sop_class, syntax) for sop_class, _, syntax, _ in headers.values()})
    association = Association.request(
        host, port, calling="TEST", called=ae_title, contexts=[ProposedContext(c, (syntax,)) for c, syntax in kinds]
    )
    ids = {(c.abstract_syntax, c.transfer_syntax): c.id for c in association.contexts.values()}
    for path, (sop_class, sop, syntax, offset) in headers.items():
        fields = {dimse.COMMAND_FIELD: dimse.C_STORE, dimse.MESSAGE_ID: 1, dimse.DATASET_TYPE: 1, dimse.PRIORITY: 0}
        command = dimse.encode_command({**fields, dimse.SOP_CLASS: sop_class, dimse.SOP_INSTANCE: sop})
        association.send_command(ids[sop_class, syntax], command)
        with path.open("rb") as file:
            file.seek(offset)
            association.send_dataset(ids[sop_class, syntax], iter(lambda file=file: file.read(1 << 20), b""))
        answer = dimse.receive(association)
        assert answer is not None and answer.command.number(dimse.STATUS) == dimse.SUCCESS, path
    association.release()
