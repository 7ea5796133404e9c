"""The whole job out of an Orthanc into an S3 server on loopback: one `pacs-migrate run`, and the peers' programs one after the other.

    python -m benchmarks.job [--studies 100] [--images 20] [--kib 512] [--rounds 3]

By hand the job is findscu for the list of studies, a movescu for each into DCMTK's storescp, `rclone copy` of what came, and `rclone check`
(sizes and MD5). Nothing of it is on record, nobody compares what came with what is listed, and it cannot be resumed. Ours sweeps
twice, lists the images of each study before and after, takes three checksums, syncs the disk and has the store attest each object.

Both ask as they do by default: ours for two studies at once, movescu for one. Starts of all processes are in the times.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.receive import PEERS, answers
from benchmarks.turns import (
    ROOT,
    Shape,
    Turn,
    alternate,
    children_cpu_s,
    cpu_s_of,
    heading,
    make_files,
    put_away,
    report,
    serving,
    work_folder,
)
from benchmarks.upload import WORKERS, rclone_command
from tests import dicom_peers
from tests.dicom_peers import HOST, PeerServer
from tests.ports import free_port
from tests.s3_server import ENVIRONMENT, S3Server, seaweedfs


def ours(pacs: PeerServer, port: int, server: S3Server, folder: Path, shape: Shape) -> Turn:
    """`pacs-migrate run` with a fresh manifest into a fresh bucket."""
    home = folder / "ours"
    home.mkdir()
    (home / "migrate.toml").write_text(f"""
[migration]
name = "job"
[source]
host = "{HOST}"
port = {pacs.port}
ae_title = "{pacs.ae_title}"
[receiver]
host = "{HOST}"
port = {port}
[destination]
kind = "s3"
bucket = "{server.new_bucket()}"
endpoint_url = "{server.endpoint_url}"
workers = {WORKERS}
""")
    cpu_s, began = children_cpu_s(), time.monotonic()
    done = subprocess.run([sys.executable, "-m", "migrate", "run", "--config", str(home / "migrate.toml")], capture_output=True, text=True, check=False)
    turn = Turn(time.monotonic() - began, children_cpu_s() - cpu_s)
    if done.returncode or f"{shape.count:,}" not in done.stdout:
        raise RuntimeError(f"run ended with {done.returncode}: {done.stdout[-1500:]}{done.stderr[-1500:]}")
    put_away(home)
    return turn


def by_hand(pacs: PeerServer, ae_title: str, pid: int, came: Path, server: S3Server, shape: Shape) -> Turn:
    """findscu, movescu for each study, rclone copy, rclone check."""
    before, cpu_s, began = cpu_s_of(pid), children_cpu_s(), time.monotonic()
    level, where = ["-S", "-aec", pacs.ae_title, "-k", "QueryRetrieveLevel=STUDY"], [HOST, str(pacs.port)]
    listed = subprocess.run(["findscu", *level, "-k", "StudyInstanceUID", *where], capture_output=True, text=True, check=True)
    studies = sorted(set(re.findall(rf"{re.escape(shape.study)}[.0-9]*", listed.stdout + listed.stderr)))
    for study in studies:
        subprocess.run(["movescu", *level, "-aem", ae_title, "-k", f"StudyInstanceUID={study}", *where], capture_output=True, check=True)
    bucket = server.new_bucket()
    for verb in (["copy", "--no-check-dest"], ["check"]):
        command, environment = rclone_command(server, verb, came, f"store:{bucket}")
        subprocess.run(command, capture_output=True, check=True, env=os.environ | environment)
    turn = Turn(time.monotonic() - began, children_cpu_s() - cpu_s + cpu_s_of(pid) - before)
    count = sum(1 for _ in came.iterdir())
    if count != shape.count or len(studies) != shape.parts:
        raise RuntimeError(f"{count} of {shape.count} images of {len(studies)} studies came")
    put_away(came)
    came.mkdir()
    return turn


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--studies", type=int, default=100)
    parser.add_argument("--images", type=int, default=20, help="of each study (default 20)")
    parser.add_argument("--kib", type=int, default=512, help="size of an image (default 512)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each (default 3)")
    parser.add_argument("--folder", type=Path, help="where the data goes meanwhile (default: the temporary folder)")
    options = parser.parse_args()
    os.environ.update(ENVIRONMENT, TCP_NODELAY="1")  # the latter is read by DCMTK, in Orthanc too
    shape = Shape(options.studies * options.images, options.kib << 10, f"{ROOT}.7.1", options.studies)
    with work_folder(options.folder) as folder:
        ae_title, command = PEERS["DCMTK storescp"]
        came, port, receiver = folder / "came", free_port(), free_port()
        came.mkdir()
        (folder / "server").mkdir()
        storescp = [*command, "-od", str(came), "-pdu", "131072", str(port)]
        moves = {ae_title: (HOST, port), "PACSMIGRATE": (HOST, receiver)}
        with (
            serving(storescp, answers(ae_title, port), folder / "storescp.log") as pid,
            dicom_peers.orthanc(folder / "pacs", moves=moves) as pacs,
            seaweedfs(folder / "server") as server,
        ):
            dicom_peers.store(HOST, pacs.port, pacs.ae_title, make_files(folder / "made", shape))
            put_away(folder / "made")
            heading()
            tools = {
                "pacs-migrate run": lambda: ours(pacs, receiver, server, folder, shape),
                "findscu, movescu, storescp, rclone": lambda: by_hand(pacs, ae_title, pid, came, server, shape),
            }
            report(shape, alternate(tools, options.rounds))


if __name__ == "__main__":
    main()
