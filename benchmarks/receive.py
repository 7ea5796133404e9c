"""C-MOVE from an Orthanc into a folder: our receiver, DCMTK's storescp and pynetdicom's storescp, in turn.

    python -m benchmarks.receive [--scale 0.1] [--rounds 3] [--as-shipped] [--associations 1]

Orthanc, as shipped, sends with Nagle's algorithm on: it waits up to 40 ms, more than once an instance, for receivers that
delay their acknowledgements (ours does not). That would measure nothing but waiting, so it is switched off (TCP_NODELAY)
for Orthanc and the peers unless `--as-shipped` is given; take a small scale then.

The same instances and a PDU limit of 131072 for everybody. The objects lie in two studies (`--associations N`: in N), and ours
asks for all of them at once, as a migration does for two by default. DCMTK is shown twice: movescu asking for one study after
the other, and N of it at once, with a storescp that forks. A turn lasts from the C-MOVE request to its
final answer. Ours hashes and scans what comes, the others only write it; nobody's turn includes syncing the disk. Ours
then settles what came (reads it back, takes the SHA-256 of the whole file, syncs and renames), which is shown apart and
in the last column: the peers have nothing like it. A migration settles while more is coming.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from benchmarks.turns import (
    Shape,
    Turn,
    alternate,
    arguments,
    children_cpu_s,
    cpu_s_of,
    heading,
    make_files,
    put_away,
    report,
    serving,
    shapes,
    timed_run,
    work_folder,
)
from migrate.config import ReceiverSettings
from migrate.dicom import scu
from migrate.dicom.move import move
from migrate.dicom.receiver import Receiver
from migrate.model import Received
from migrate.staging.area import Staging
from tests import dicom_peers
from tests.dicom_peers import HOST, PeerServer
from tests.ports import free_port

MAX_PDU = 131072
PEERS = {
    "DCMTK storescp": ("DCMTK", ["storescp", "-aet", "DCMTK", "+uf", "+xa", "-pm", "+B"]),
    "pynetdicom storescp": ("PYNETDICOM", [sys.executable, "-m", "pynetdicom", "storescp", "-q", "-aet", "PYNETDICOM"]),
}


class Ours:
    """Our receiver in this process; its CPU time is the whole process's, C-MOVE client included."""

    name, ae_title = "pacs-migrate", "OURS"

    def __init__(self, folder: Path) -> None:
        self._folder, self._got = folder, list[Received]()
        self._staging = Staging(folder, reserve_bytes=0)
        self._receiver = Receiver(ReceiverSettings(host=HOST, port=0, max_pdu=MAX_PDU), self._staging, self._got.append)
        self._receiver.start()
        self.port = self._receiver.port

    def turn(self, pacs: PeerServer, shape: Shape) -> Turn:
        self._got.clear()
        cpu_s, began = time.process_time(), time.monotonic()
        peer = scu.Peer(HOST, pacs.port, pacs.ae_title, self.ae_title)
        with ThreadPoolExecutor(shape.parts) as pool:
            asked = [pool.submit(move, peer, self.ae_title, study=study, message_id=number, should_stop=lambda: None)
                     for number, study in enumerate(shape.studies, 1)]  # fmt: skip
            statuses = [each.result().status for each in asked]
        wall_s, cpu_s = time.monotonic() - began, time.process_time() - cpu_s
        if any(statuses) or len(self._got) != shape.count or any(each.ref is None for each in self._got):
            raise RuntimeError(f"C-MOVE answered {statuses}, {len(self._got)} of {shape.count} came")
        settle_cpu_s, began = time.process_time(), time.monotonic()
        self._staging.settle(
            (each.path, self._staging.path_of(each.ref, each.rolled.dataset_sha256), each.rolled)
            for each in self._got
            if each.ref
        )
        settle_s, settle_cpu_s = time.monotonic() - began, time.process_time() - settle_cpu_s
        put_away(self._staging.ready)
        self._staging.ready.mkdir()
        return Turn(wall_s, cpu_s, settle_s, settle_cpu_s)

    def close(self) -> None:
        self._receiver.close()
        self._staging.close()


def peer_turn(pacs: PeerServer, ae_title: str, pid: int, folder: Path, shape: Shape, at_once: int) -> Turn:
    """movescu asks, a study a call, the storage server at `pid` receives; the CPU time is that of both."""

    def ask(study: str) -> None:
        keys = ["-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={study}"]
        timed_run(["movescu", "-S", "-aec", pacs.ae_title, "-aem", ae_title, *keys, HOST, str(pacs.port)])

    before, asked_before, began = cpu_s_of(pid), children_cpu_s(), time.monotonic()
    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(ask, shape.studies))
    wall_s = time.monotonic() - began
    cpu_s = children_cpu_s() - asked_before + cpu_s_of(pid) - before
    came = [path.stat().st_size for path in folder.iterdir()]
    if len(came) != shape.count or min(came) < shape.size_bytes:
        raise RuntimeError(f"{ae_title}: {len(came)} of {shape.count} came")
    put_away(folder)
    folder.mkdir()
    return Turn(wall_s, cpu_s)


def answers(ae_title: str, port: int) -> Callable[[], bool]:
    """A question whether a DICOM server is up."""
    echo = ["echoscu", "-to", "2", "-aec", ae_title, HOST, str(port)]
    return lambda: not subprocess.run(echo, capture_output=True, check=False).returncode


def main() -> None:
    parser = arguments(str(__doc__).splitlines()[0])
    parser.add_argument("--as-shipped", action="store_true", help="leave Nagle's algorithm on where a peer has it on")
    parser.add_argument("--associations", type=int, default=2, help="studies, and C-MOVEs of ours at once (default 2)")
    options = parser.parse_args()
    os.environ["TCP_NODELAY"] = "0" if options.as_shipped else "1"  # read by DCMTK, in Orthanc too
    with work_folder(options.folder) as folder, ExitStack() as stack:
        ours = Ours(folder / "ours")
        stack.callback(ours.close)
        moves, pids, folders = {Ours.ae_title: (HOST, ours.port)}, {}, {}
        for name, (ae_title, command) in PEERS.items():
            folders[name] = folder / ae_title.lower()
            folders[name].mkdir()
            port = free_port()
            forks = ["--fork"] if command[0] == "storescp" and options.associations > 1 else []
            full = [*command, *forks, "-od", str(folders[name]), "-pdu", str(MAX_PDU), str(port)]
            log = folder / f"{ae_title}.log"
            pids[name] = stack.enter_context(serving(full, answers(ae_title, port), log))
            moves[ae_title] = (HOST, port)
        pacs = stack.enter_context(dicom_peers.orthanc(folder / "pacs", moves=moves))
        heading("Settle")
        for shape in shapes(options.scale, options.associations):
            files = make_files(folder / "made", shape)
            dicom_peers.store(HOST, pacs.port, pacs.ae_title, files)
            put_away(folder / "made")
            tools: dict[str, Callable[[], Turn]] = {Ours.name: lambda shape=shape: ours.turn(pacs, shape)}  # type: ignore[misc]
            for name, (ae_title, _) in PEERS.items():
                for at_once in sorted({1, options.associations if name == "DCMTK storescp" else 1}):
                    place = (ae_title, pids[name], folders[name], shape, at_once)
                    shown = name if at_once == 1 else f"{name}, {at_once} at once"
                    tools[shown] = lambda place=place: peer_turn(pacs, *place)  # type: ignore[misc]
            report(shape, alternate(tools, options.rounds), "Settle")


if __name__ == "__main__":
    main()
