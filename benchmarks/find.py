"""Asking with C-FIND: our SCU, DCMTK's findscu and pynetdicom's SCU, in turn, each over one association.

    python -m benchmarks.find [--scale 0.1] [--rounds 3] [--server orthanc|practice|recorded] [--as-shipped]

Three servers, the same for all tools. An Orthanc with 100 studies of one series of 100 images is swept from STUDY to
SERIES to IMAGE, a query for each study and series. The practice PACS answers one STUDY query with 100,000 rows. And
the rows of that answer, recorded beforehand, come once more as fast as a socket takes them.

findscu gets all queries of a sweep as files in one call, hence over one association, and is spared walking the tree:
the files name the series already. `-sr` lets it decode the rows and throw them away; with `-Xs` it hands them on, as
one XML file. Ours and pynetdicom's run in this process, so that only findscu's turns hold a start.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import statistics
import struct
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, _config
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind as STUDY_ROOT

from benchmarks.turns import ROOT, Shape, Turn, alternate, arguments, make_files, timed_run, work_folder
from migrate.dicom import dimse, scu
from migrate.dicom.upper_layer import Association, UpperLayerError
from migrate.practice.pacs import PracticePacs
from migrate.practice.studies import Archive
from tests import dicom_peers
from tests.dicom_peers import HOST

MAX_PDU = 131072
STUDIES, IMAGES, ROWS = 100, 100, 100_000
# What a migration asks for at each level.
WANTED: Mapping[scu.Level, tuple[int, ...]] = {
    "STUDY": (dimse.STUDY_UID, 0x00080020, 0x00080061, 0x00201208),
    "SERIES": (dimse.SERIES_UID, 0x00080060, 0x00201209),
    "IMAGE": (dimse.SOP_UID,),
}
Rows = list[dict[int, str]]


@dataclass(frozen=True, slots=True)
class Server:
    """Who is asked; `images` is how many each series of its must show, None where only studies are asked for."""

    name: str
    port: int
    ae_title: str
    rows: int
    images: int | None = None


Find = Callable[[scu.Level, Mapping[int, str]], Rows]


def sweep(find: Find, server: Server) -> int:
    """Ask level by level, no further than the server is meant for; returns how many rows came."""
    studies = find("STUDY", {})
    count = len(studies)
    if server.images is None:
        return count
    for study in studies:
        above = {dimse.STUDY_UID: study[dimse.STUDY_UID]}
        series = find("SERIES", above)
        count += len(series)
        for each in series:
            images = find("IMAGE", {**above, dimse.SERIES_UID: each[dimse.SERIES_UID]})
            if len({image[dimse.SOP_UID] for image in images}) != server.images:
                raise RuntimeError(f"{server.name} shows {len(images)} of {server.images} images")
            count += len(images)
    return count


def timed(work: Callable[[], int]) -> tuple[Turn, int]:
    """A turn in this process, and how many rows came."""
    cpu_s, began = time.process_time(), time.monotonic()
    count = work()
    return Turn(time.monotonic() - began, time.process_time() - cpu_s), count


def ours(server: Server) -> Turn:
    def work() -> int:
        with scu.FindSession(scu.Peer(HOST, server.port, server.ae_title, "BENCH")) as session:
            return sweep(lambda level, keys: list(session.find(level, keys, WANTED[level])), server)

    turn, count = timed(work)
    if count != server.rows:
        raise RuntimeError(f"{server.name} answered {count} of {server.rows} rows")
    return turn


def by_pynetdicom(server: Server) -> Turn:
    ae = AE(ae_title="BENCH")
    ae.maximum_pdu_size, ae.dimse_timeout, ae.network_timeout = MAX_PDU, 600, 600
    ae.add_requested_context(STUDY_ROOT, [dimse.IMPLICIT_LE, dimse.EXPLICIT_LE])

    def work() -> int:
        association = ae.associate(HOST, server.port, ae_title=server.ae_title, max_pdu=MAX_PDU)

        def find(level: scu.Level, keys: Mapping[int, str]) -> Rows:
            rows, last = [], None
            for status, identifier in association.send_c_find(_query(level, keys), STUDY_ROOT):
                last = status.get("Status")
                if identifier is not None:
                    rows.append({tag: str(identifier[tag].value) for tag in WANTED[level] if tag in identifier})
            if last != dimse.SUCCESS:
                raise RuntimeError(f"pynetdicom: the query ended with {last}")
            return rows

        try:
            return sweep(find, server)
        finally:
            association.release()

    turn, count = timed(work)
    if count != server.rows:  # seen now and then on a busy machine, after Success: it is told and the turn counts
        print(f"\npynetdicom brought {count:,} of {server.rows:,} rows\n", file=sys.stderr, flush=True)
    return turn


def by_findscu(server: Server, queries: Sequence[Path], *options: str | Path) -> Turn:
    command = ["findscu", "-S", "-xi", "-pdu", str(MAX_PDU), "-aec", server.ae_title, *map(str, options)]
    return timed_run([*command, HOST, str(server.port), *map(str, queries)])


def _query(level: scu.Level, keys: Mapping[int, str]) -> Dataset:
    query = Dataset()
    for tag, value in {**dict.fromkeys(WANTED[level], ""), **keys, dimse.QUERY_LEVEL: level}.items():
        query.add_new(tag, pydicom.datadict.dictionary_VR(tag), value)
    return query


def write_queries(folder: Path, server: Server) -> list[Path]:
    """The queries of a sweep as files, in the order in which the others come to ask them."""
    folder.mkdir()
    files: list[Path] = []

    def write(level: scu.Level, keys: Mapping[int, str]) -> None:
        files.append(folder / f"{len(files):06}.dcm")
        query = _query(level, keys)
        query.file_meta = FileMetaDataset()
        query.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        query.file_meta.MediaStorageSOPClassUID, query.file_meta.MediaStorageSOPInstanceUID = STUDY_ROOT, ROOT
        pydicom.dcmwrite(files[-1], query, enforce_file_format=True)

    with scu.FindSession(scu.Peer(HOST, server.port, server.ae_title, "BENCH")) as session:

        def find(level: scu.Level, keys: Mapping[int, str]) -> Rows:
            write(level, keys)
            return list(session.find(level, keys, WANTED[level]))

        sweep(find, server)
    return files


# -- the servers
@contextmanager
def orthanc(folder: Path, studies: int) -> Iterator[Server]:
    """Orthanc as it is, with `studies` studies of one series of small images."""
    with dicom_peers.orthanc(folder) as there:
        for number in range(1, studies + 1):
            files = make_files(folder / "made", Shape(IMAGES, 4096, f"{ROOT}.8.{number}"))
            dicom_peers.store(HOST, there.port, there.ae_title, files)
            for file in files:
                file.unlink()
            (folder / "made").rmdir()
        yield Server("Orthanc", there.port, there.ae_title, studies * (2 + IMAGES), IMAGES)


def _practice(tell: Connection, rows: int) -> None:
    with PracticePacs(Archive(rows), ae_title="PRACTICE") as pacs:
        tell.send(pacs.port)
        tell.recv()  # until the benchmark ends


def _playback(tell: Connection, recorded_from: int) -> None:
    """Answer every C-FIND with the rows that the practice PACS at this port gave: made into PDUs once a message ID."""
    with socket.create_server((HOST, 0)) as listener:
        datasets = _record(recorded_from)
        tell.send(listener.getsockname()[1])
        answers: dict[bytes, list[bytes]] = {}
        while True:
            sock, _ = listener.accept()
            try:
                there = Association.accept(sock, choose=_implicit)
                while (message := dimse.receive(there)) is not None:
                    command = dimse.response(message.command, dimse.PENDING, {dimse.DATASET_TYPE: 1})
                    if command not in answers:
                        answers[command] = _as_pdus(message.context_id, command, datasets)
                    for piece in answers[command]:
                        sock.sendall(piece)
                    there.send_command(message.context_id, dimse.response(message.command, dimse.SUCCESS))
            except (UpperLayerError, OSError):
                sock.close()


def _implicit(offer: object) -> str | None:
    return dimse.IMPLICIT_LE


def _record(port: int) -> list[bytes]:
    query: dict[int, str | bytes] = {**dict.fromkeys(WANTED["STUDY"], ""), dimse.QUERY_LEVEL: "STUDY"}
    association = scu.associate(scu.Peer(HOST, port, "PRACTICE", "BENCH"), dimse.STUDY_ROOT_FIND, timeout_s=600)
    (context,) = association.contexts.values()
    fields: dict[int, int | str] = {dimse.COMMAND_FIELD: dimse.C_FIND, dimse.SOP_CLASS: dimse.STUDY_ROOT_FIND}
    fields |= {dimse.MESSAGE_ID: 1, dimse.PRIORITY: 0, dimse.DATASET_TYPE: 1}
    association.send_command(context.id, dimse.encode_command(fields))
    association.send_dataset(context.id, dimse.encode_identifier(query, dimse.IMPLICIT_LE))
    datasets = []
    while (message := dimse.receive(association)) is not None and message.dataset is not None:
        datasets.append(message.dataset)
    association.release()
    return datasets


def _as_pdus(context: int, command: bytes, datasets: Sequence[bytes]) -> list[bytes]:
    """Two PDUs a row, as most PACSs send them, joined to pieces of a thousand rows."""

    def pdu(control: int, data: bytes) -> bytes:
        return struct.pack(">BBIIBB", 4, 0, len(data) + 6, len(data) + 2, context, control) + data

    rows = [pdu(3, command) + pdu(2, dataset) for dataset in datasets]
    return [b"".join(rows[at : at + 1000]) for at in range(0, len(rows), 1000)]


@contextmanager
def child(serve: Callable[[Connection, int], None], argument: int) -> Iterator[int]:
    """A server in a process of its own; yields its port."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(there, argument), daemon=True)
    process.start()
    try:
        if not here.poll(300):
            raise RuntimeError("the server does not start")
        yield here.recv()
    finally:
        process.terminate()
        process.join()


# -- the table
def measure(folder: Path, server: Server, rounds: int) -> None:
    """All tools in turn against one server; prints their lines. Ratios are to ours in the same round, then the median."""
    queries = write_queries(folder / server.name.replace(" ", "-"), server)
    seen = folder / "rows.xml"
    by_findscu(server, queries, "-Xs", seen)
    if (count := seen.read_bytes().count(b"<data-set ")) != server.rows:
        raise RuntimeError(f"findscu shows {count} of {server.rows} rows")
    tools: dict[str, Callable[[], Turn]] = {
        "pacs-migrate": lambda: ours(server),
        "DCMTK findscu -sr": lambda: by_findscu(server, queries, "-sr"),
        "DCMTK findscu -Xs": lambda: by_findscu(server, queries, "-Xs", seen),
        "pynetdicom": lambda: by_pynetdicom(server),
    }
    turns = alternate(tools, rounds)
    first = turns["pacs-migrate"]
    for name, own in turns.items():
        wall_s, cpu_s = (statistics.median(getattr(turn, what) for turn in own) for what in ("wall_s", "cpu_s"))
        ratios = sorted(a.wall_s / b.wall_s for a, b in zip(own, first, strict=True))
        cpu_ratio = statistics.median(a.cpu_s / b.cpu_s for a, b in zip(own, first, strict=True))
        line = f"| {server.name}, {server.rows:,} | {name} | {wall_s:.2f} | {server.rows / wall_s:,.0f} | {cpu_s:.2f} "
        line += f"| {statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f}) | {cpu_ratio:.1f} |"
        print(line, flush=True)


def main() -> None:
    parser = arguments(str(__doc__).splitlines()[0])
    parser.add_argument("--as-shipped", action="store_true", help="leave Nagle's algorithm on where a peer has it on")
    parser.add_argument("--server", choices=("orthanc", "practice", "recorded"), help="only this one")
    options = parser.parse_args()
    chosen = (options.server,) if options.server else ("orthanc", "practice", "recorded")
    os.environ["TCP_NODELAY"] = "0" if options.as_shipped else "1"  # read by DCMTK, in Orthanc too
    _config.LOG_HANDLER_LEVEL = "none"
    _config.LOG_REQUEST_IDENTIFIERS = _config.LOG_RESPONSE_IDENTIFIERS = False
    columns = ["Server, rows", "Tool", "Wall s", "Rows/s", "CPU s", "Wall, ours = 1", "CPU, ours = 1"]
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns), flush=True)
    rows = max(1, round(ROWS * options.scale))
    with work_folder(options.folder) as folder:
        if "orthanc" in chosen:
            with orthanc(folder / "pacs", max(1, round(STUDIES * options.scale))) as server:
                measure(folder, server, options.rounds)
        if chosen == ("orthanc",):
            return
        with child(_practice, rows) as port:
            if "practice" in chosen:
                measure(folder, Server("practice PACS", port, "PRACTICE", rows), options.rounds)
            if "recorded" in chosen:
                with child(_playback, port) as played:
                    measure(folder, Server("recorded rows", played, "PRACTICE", rows), options.rounds)


if __name__ == "__main__":
    main()
