"""The manifest's file between processes: who may write, who may read, and what a kill leaves behind."""

from __future__ import annotations

import os
import select
import signal
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from migrate.errors import ManifestError, ManifestLocked, NoManifest, UsageError
from migrate.host import MOUNTS, network_file_system
from migrate.manifest import Lock, Manifest, Queue, decisions
from migrate.manifest.file import open_reader
from migrate.model import RetryPolicy, StudyFound, StudyRef
from tests.filled import IDENTITY

HOLD = "import sys; from pathlib import Path; from migrate.manifest import Lock\nwith Lock(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
MOUNT = """
import ctypes, os, sys
device = os.open("/dev/fuse", os.O_RDWR)
said = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
assert ctypes.CDLL(None).mount(b"nas:/images", sys.argv[1].encode(), b"fuse.sshfs", 0, said) == 0
os.close(device)
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""
CONFIGURATION = """
[migration]
name = "test"
manifest = "share/manifests/m.db"
[source]
host = "127.0.0.1"
port = 104
ae_title = "PRACTICE"
[receiver]
[destination]
kind = "folder"
path = "bucket"
"""
COMMIT = """
import sys
from pathlib import Path
from migrate.manifest import Manifest
from migrate.model import RetryPolicy, StudyFound, StudyRef
manifest = Manifest(Path(sys.argv[1]), identity={"source": "A@127.0.0.1:1", "destination": "folder:/x", "migration": "m"}, policy=RetryPolicy())
batch = int(sys.argv[2])
while True:
    manifest.commit([StudyFound(StudyRef(f"1.{batch}.{n}")) for n in range(20)])
    print(batch, flush=True)
    batch += 1
"""


def opened(folder: Path) -> Manifest:
    return Manifest(folder / "m.db", identity=IDENTITY, policy=RetryPolicy())


def test_another_process_is_named_by_host_and_pid_until_it_dies(tmp_path: Path) -> None:
    """The lock of a live process is refused with its name; a killed one leaves no lock behind."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "m.db")], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout and other.stdout.readline() == b"held\n"
        with pytest.raises(ManifestLocked, match=f"host {socket.gethostname()}, pid {other.pid}") as refused:
            Lock(tmp_path / "m.db")
        assert refused.value.exit_code == 11
        other.kill()
    with Lock(tmp_path / "m.db"):
        assert f"pid {os.getpid()}" in (tmp_path / "m.db.lock").read_text()


def test_the_writer_is_durable(tmp_path: Path) -> None:
    """WAL, synchronous=FULL, no automatic checkpoints, no triggers of triggers, and nobody else may read the file."""
    manifest = opened(tmp_path)
    asked = [manifest.one(f"PRAGMA {name}")[0] for name in ("journal_mode", "synchronous", "wal_autocheckpoint", "foreign_keys", "recursive_triggers")]
    assert asked == ["wal", 2, 0, 1, 0]
    assert (tmp_path / "m.db").stat().st_mode & 0o077 == 0
    manifest.close()


def test_a_reader_neither_locks_nor_writes(tmp_path: Path) -> None:
    """While a reader is in the middle of a read, the writer commits; the reader itself cannot write."""
    manifest = opened(tmp_path)
    manifest.commit([StudyFound(StudyRef("1.1"))])
    queue = Queue(tmp_path / "m.db")
    queue.connection.execute("BEGIN")
    assert queue.studies_to_plan(9) == [StudyRef("1.1")]
    manifest.commit([StudyFound(StudyRef("1.2"))])
    assert queue.studies_to_plan(9) == [StudyRef("1.1")]
    queue.connection.execute("COMMIT")
    assert len(queue.studies_to_plan(9)) == 2
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        queue.connection.execute("UPDATE study SET state = 1")
    queue.close()
    with Lock(tmp_path / "m.db"):
        open_reader(tmp_path / "m.db").close()
    manifest.close()


@pytest.mark.parametrize("create", [True, False])
def test_what_is_no_manifest_is_refused_unchanged(tmp_path: Path, create: bool) -> None:
    """A foreign file is never taken over."""
    (tmp_path / "m.db").write_bytes(b"no database at all, but long enough to look like one " * 40)
    before = (tmp_path / "m.db").read_bytes()
    with pytest.raises(ManifestError, match="not a manifest"):
        Manifest(tmp_path / "m.db", identity=IDENTITY, policy=RetryPolicy(), create=create)
    assert (tmp_path / "m.db").read_bytes() == before


def test_no_manifest_is_made_where_none_is_wanted(tmp_path: Path) -> None:
    """Verbs that only go on say so, and leave no file."""
    with pytest.raises(NoManifest):
        Manifest(tmp_path / "m.db", identity=IDENTITY, policy=RetryPolicy(), create=False)
    with pytest.raises(NoManifest):
        open_reader(tmp_path / "m.db")
    assert list(tmp_path.iterdir()) == []


def test_a_kill_loses_no_committed_batch(tmp_path: Path) -> None:
    """SIGKILL in the middle of commits, six times: what was said to be committed is there, batches are whole, the file is sound."""
    said = -1
    for round_ in range(6):
        command = [sys.executable, "-c", COMMIT, str(tmp_path / "m.db"), str(said + 1)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
            assert child.stdout
            for _ in range(5 + 7 * round_):
                said = int(child.stdout.readline())
            child.send_signal(signal.SIGKILL)
            child.wait()
            while select.select([child.stdout], [], [], 0)[0] and (line := child.stdout.readline()):
                said = int(line)
        plain = sqlite3.connect(tmp_path / "m.db")
        batches = dict(plain.execute("SELECT CAST(substr(uid, 3) AS INTEGER), count(*) FROM study GROUP BY 1").fetchall())
        assert set(range(said + 1)) <= set(batches) <= set(range(said + 2))
        assert set(batches.values()) == {20}
        assert plain.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        plain.close()


def test_decisions_about_what_is_not_there_change_nothing(tmp_path: Path) -> None:
    """Unknown and unparked studies, windows and files are refused by name, and nothing is written."""
    manifest = opened(tmp_path)
    manifest.commit([StudyFound(StudyRef("1.1"))])
    before = manifest.connection.total_changes
    with pytest.raises(UsageError, match=r"1\.1: the study is not parked but found; 1\.9: the study is not known"):
        decisions.accept(manifest, ["1.1", "1.9"], "r", "j.doe")
    for name in ("w1", "q1", "12", "w1 OR 1=1"):
        with pytest.raises(UsageError):
            decisions.accept(manifest, [name], "r", "j.doe")
    with pytest.raises(UsageError, match=r"1\.1"):
        decisions.retry(manifest, None, ["1.1"])
    assert decisions.retry(manifest, None, []) == 0
    assert (manifest.connection.total_changes, manifest.connection.in_transaction) == (before, False)
    manifest.close()


def test_a_network_file_system_is_told_by_the_longest_mount_point(tmp_path: Path) -> None:
    """What lies on NFS or SMB is named, also under a mount point with a space; what lies on a local disk is not; of two on one point the later counts."""
    mounts = tmp_path / "mountinfo"
    mounts.write_text("22 1 8:1 / / rw - ext4 /dev/sda1 rw\n31 22 0:40 / /srv/my\\040share rw shared:1 - nfs4 nas:/x rw\n"
                      "32 31 8:2 / /srv/my\\040share/local rw - xfs /dev/sdb rw\n33 22 0:50 / /mnt rw - ext4 /dev/sdc rw\n34 33 0:51 / /mnt rw - cifs //nas/x rw\n")  # fmt: skip
    kinds = [network_file_system(Path(path), mounts) for path in ("/srv/my share/a/m.db", "/srv/my share/local/m.db", "/mnt/m.db", "/mnt2/m.db", "/")]
    assert kinds == ["nfs4", None, "cifs", None, None]
    assert network_file_system(tmp_path, tmp_path / "none") is None


def test_no_lock_is_taken_on_a_network_file_system(tmp_path: Path) -> None:
    """What the mount table calls a network file system is refused by its kind before a file or a folder is made there."""
    table = tmp_path / "mountinfo"
    table.write_text(f"{MOUNTS.read_text()}99 22 0:99 / {tmp_path / 'share'} rw,relatime - nfs4 nas:/images rw,vers=4.2\n")
    with pytest.raises(UsageError, match=r"network file system \(nfs4\)") as refused:
        Lock(tmp_path / "share" / "manifests" / "m.db", table)
    assert refused.value.exit_code == 2
    assert list(tmp_path.iterdir()) == [table]
    with Lock(tmp_path / "m.db", table):
        assert (tmp_path / "m.db.lock").exists()


def test_a_manifest_on_a_network_file_system_is_refused(tmp_path: Path) -> None:
    """A real mount of sshfs's kind, whose server is gone: the command ends with 2 and the kind, and asks the file system nothing."""
    point = tmp_path / "share"
    point.mkdir()
    (tmp_path / "migrate.toml").write_text(CONFIGURATION)
    command = ["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-c", MOUNT, str(point), "-m", "migrate", "run", "--config", str(tmp_path / "migrate.toml")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2, f"no user namespace, or no /dev/fuse, to mount in? {ended.stderr}"
    assert "lies on a network file system (fuse.sshfs)" in ended.stderr
