"""Runs of the command line against the practice PACS, and what they leave behind."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from migrate import cli as verbs
from migrate import failpoints
from migrate.cli import cli
from migrate.dicom.part10 import read_header
from migrate.practice.pacs import PracticePacs
from migrate.practice.studies import Archive
from tests.ports import free_port

FOLDER = 'kind = "folder"\npath = "bucket"'


def bucket(name: str, endpoint_url: str) -> str:
    """The [destination] of a bucket of a real S3 server."""
    return f'kind = "s3"\nbucket = "{name}"\nendpoint_url = "{endpoint_url}"\nworkers = 2'


def configure(
    folder: Path, pacs: int, receiver: int, *, ae_title: str = "PRACTICE", migration: str = "", source: str = "settle_s = 0.3",
    destination: str = FOLDER, retry: str = "attempts = 6\nfirst_wait_s = 0.05\nmax_wait_s = 0.1",
) -> Path:  # fmt: skip
    """Write `migrate.toml` for a PACS on this machine, with short waits; what is given stands in its table."""
    path = folder / "migrate.toml"
    path.write_text(f"""[migration]
name = "test"
{migration}
[source]
host = "127.0.0.1"
port = {pacs}
ae_title = "{ae_title}"
{source}
[receiver]
host = "127.0.0.1"
port = {receiver}
[destination]
{destination}
[retry]
{retry}
""")
    return path


def command(folder: Path, *words: str, failpoint: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "migrate", *words, "--config", str(folder / "migrate.toml")], capture_output=True, text=True, timeout=120,
        env={**os.environ, failpoints.VARIABLE: failpoint} if failpoint else None,
    )  # fmt: skip


def document(folder: Path, *words: str, code: int = 0) -> dict[str, Any]:
    """What a command with --json says."""
    done = command(folder, *words, "--json")
    assert done.returncode == code, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def here(folder: Path, *words: str) -> tuple[int, str]:
    """The same within this process, which is quicker: (exit code, stdout). Raises what the command raises."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = cli.main([*words, "--config", str(folder / "migrate.toml")], standalone_mode=False)
    return int(code or 0), out.getvalue()


def called(folder: Path, *words: str) -> tuple[int, str, str]:
    """Within this process, too, errors said as the command says them: exit code, stdout, stderr with what was logged."""
    out, err = io.StringIO(), io.StringIO()
    said = logging.StreamHandler(err)
    log = logging.getLogger("migrate")
    log.addHandler(said)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = verbs.called([*words, "--config", str(folder / "migrate.toml")])
    finally:
        log.removeHandler(said)
    return code, out.getvalue(), err.getvalue()


@contextlib.contextmanager
def practice(folder: Path, *faults: str, studies: int = 12) -> Iterator[Archive]:
    """A practice PACS and a configuration for it; the archive as it was at the start."""
    archive = Archive(studies)
    with changing(folder, archive, *faults):
        yield archive


@contextlib.contextmanager
def changing(folder: Path, archive: Archive, *faults: str, source: str = "", port: int = 0) -> Iterator[PracticePacs]:
    """The same as the PACS itself, whose `holdings` are what it has now. `source`: more lines for [source]."""
    receiver = free_port()
    with PracticePacs(archive, destinations={"PACSMIGRATE": ("127.0.0.1", receiver)}, faults=faults, port=port) as pacs:
        configure(folder, pacs.port, receiver, source=f"settle_s = 0.3\n{source}")
        yield pacs


def data_sets(folder: Path) -> dict[tuple[str, str, str], bytes]:
    found = {}
    for path in (folder / "bucket").glob("studies/*/series/*/instances/*.dcm"):
        raw = path.read_bytes()
        offset = read_header(raw)[3]
        found[path.parts[-5], path.parts[-3], path.stem] = hashlib.sha256(raw[offset:]).digest()
    return found


def truth(archive: Archive) -> dict[tuple[str, str, str], bytes]:
    return {(study, series, sop): digest for study, series, sop, digest in archive.truth()}


def left_over(folder: Path) -> list[Path]:
    return [path for path in (folder / "staging").rglob("*") if path.is_file()]


@contextlib.contextmanager
def practice_process(folder: Path, port: int, receiver: int, *words: str) -> Iterator[subprocess.Popen[str]]:
    """The practice PACS as a process of its own, which can be killed."""
    start = [sys.executable, "-m", "migrate", "practice-pacs", "--port", str(port), "--studies", "60",
             "--move-to", f"PACSMIGRATE=127.0.0.1:{receiver}", *words]  # fmt: skip
    with subprocess.Popen(start, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert "listens" in process.stdout.readline()
            yield process
        finally:
            process.kill()
