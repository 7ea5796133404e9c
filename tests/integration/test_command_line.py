"""The command as a shell and a script meet it: what it does with odd streams, numbers and names, and that all of it is documented."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import IO

import click
import pytest

from migrate.cli import cli
from migrate.cli.frame import EXIT_CODES
from migrate.manifest import Manifest
from tests.runs import called, command, configure
from tests.small_disk import small_disk
from tests.waiting import until

CLI_PAGE = Path(__file__).parents[2] / "docs" / "cli.md"


@pytest.fixture
def folder(tmp_path: Path, manifest: Manifest) -> Path:
    """A configuration whose manifest knows no study."""
    configure(tmp_path, 104, 11112, migration='manifest = "m.db"')
    (tmp_path / "list.csv").write_text("StudyInstanceUID\n1.2.3\n")
    return tmp_path


def said_to(stdout: int | IO[bytes] | None, folder: Path, *words: str, shut: str = "") -> subprocess.CompletedProcess[bytes]:
    """The command with this stdout; `shut`: with these streams closed, as a shell does it."""
    start = [sys.executable, "-m", "migrate", *words, "--config", str(folder / "migrate.toml")]
    if shut:
        start = ["sh", "-c", f'exec "$@" {shut}', "sh", *start]
    return subprocess.run(start, stdout=stdout, stderr=subprocess.PIPE, timeout=60)


def test_a_reader_that_leaves_changes_no_exit_code(folder: Path) -> None:
    """What `reconcile` finds ends it with 3, also where nobody reads it any more."""
    reading, writing = os.pipe()
    os.close(reading)
    done = said_to(writing, folder, "reconcile", str(folder / "list.csv"))
    os.close(writing)
    assert (done.returncode, done.stderr) == (3, b"")


def test_tables_are_as_wide_as_the_terminal(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `check` and `status` say fits into sixty columns."""
    monkeypatch.setenv("COLUMNS", "60")
    for verb in ("check", "status"):
        lines = said_to(subprocess.PIPE, folder, verb).stdout.decode().splitlines()
        assert lines and max(map(len, lines)) <= 60


def test_output_that_finds_no_room_is_an_error_of_its_own(folder: Path) -> None:
    """A document that could not be written is no answer: exit 22, and no word of the disk under staging."""
    with open("/dev/full", "wb") as full:
        done = said_to(full, folder, "status", "--json")
    assert done.returncode == 22
    assert b"The output cannot be written: No space left on device." in done.stderr
    assert b"staging" not in done.stderr


@pytest.mark.parametrize("shut", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_error(folder: Path, shut: str) -> None:
    """Started without stdin, stdout or stderr, a command does its work, and no file of its own gets their numbers."""
    assert said_to(subprocess.PIPE, folder, "retry", shut=shut).returncode == 0
    assert (folder / "m.db").read_bytes().startswith(b"SQLite format 3\0")


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """Linux allows file names that are no UTF-8; a manifest and a report do not: exit 2, and the name in the sentence."""
    odd = tmp_path / os.fsdecode(b"\xff")
    odd.mkdir()
    configure(odd, 104, 11112)
    done = command(odd, "status")
    assert done.returncode == 2 and r"\udcff" in done.stderr and "UTF-8" in done.stderr


@pytest.mark.parametrize("minutes", ["nan", "inf", "0", "-1", "1e9"])
def test_rounds_have_a_time_between_them(folder: Path, minutes: str) -> None:
    """--every takes minutes that a clock can count, and never none: the PACS would be asked without a pause."""
    code, _, said = called(folder, "run", "--watch", "--every", minutes)
    assert code == 2 and "--every takes more than 0 minutes" in said


@pytest.mark.parametrize("words", ["verify", "retry", "accept 1.2.3 --reason r --by n", "revoke 1.2.3 --reason r --by n", "audit", "double-check", "prove 1.2", "report"])
def test_without_a_manifest_nothing_is_made(tmp_path: Path, words: str) -> None:
    """Exit 10, and no folder, file or lock where perhaps another configuration was meant."""
    configure(tmp_path, 104, 11112)
    code, out, said = called(tmp_path, *words.split())
    assert (code, out) == (10, "") and "There is no manifest" in said
    assert [path.name for path in tmp_path.iterdir()] == ["migrate.toml"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("accept --file list.csv 1.2.3", "--file stands alone"),
        ("accept --file list.csv --window w1", "--file stands alone"),
        ("accept --reason r --by n", "Nothing to accept was named"),
        ("accept 1.2.3 1.2.4 --instance 1.2.3.4 --reason r --by n", "--instance belongs to one study"),
        ("accept --window w1 --instance 1.2.3.4 --reason r --by n", "--instance belongs to one study"),
        ("accept 1.2.3 --reason r", "needs a reason and a name"),
        ("revoke 1.2.3 --by n --reason ' '", "needs a reason and a name"),
        ("exclude 1.2.3 --reason r --by ' '", "needs a reason and a name"),
        ("exclude --reason r --by n", "No study was named"),
        ("enumerate --out x.csv", "--out belongs to --list"),
        ("run --every 5", "--every belongs to --watch"),
        ("report --out a --dossier b", "both given"),
        ("report --parquet", "--parquet belongs to a dossier"),
        ("audit --offline --signers list.csv", "--signers is for anchors"),
    ],
)
def test_options_that_do_not_go_together_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch, words: str, said: str) -> None:
    """Exit 2 and a sentence that names the option, before anything is asked or written."""
    monkeypatch.chdir(folder)
    before = sorted(folder.iterdir())
    code, out, complaint = called(folder, *shlex.split(words))
    assert (code, out, said in complaint) == (2, "", True), complaint
    assert sorted(folder.iterdir()) == before


def test_every_verb_is_documented_and_tells_its_exit_codes() -> None:
    """docs/cli.md has a row for each verb and no other, with options that exist; every help ends with the exit codes."""
    rows = re.findall(r"^\| `([a-z-]+)([^`|]*(?:\|[^`|]*)*)` \|", CLI_PAGE.read_text(), re.MULTILINE)
    assert {verb for verb, _ in rows} == set(cli.commands)
    for verb, usage in rows:
        assert set(re.findall(r"--[a-z-]+", usage)) <= options(cli.commands[verb]), verb
    assert [verb for verb, each in cli.commands.items() if not (each.epilog or "").endswith(EXIT_CODES)] == []
    codes = re.findall(r"^ +(\d+) ", EXIT_CODES, re.MULTILINE)
    assert codes == re.findall(r"^\| (\d+) \|", CLI_PAGE.read_text(), re.MULTILINE)


@pytest.mark.parametrize("verb", sorted(cli.commands))
def test_every_option_says_what_it_is_for(verb: str) -> None:
    """No option of any verb is without help, and the verb's first line fits a list."""
    each = cli.commands[verb]
    assert [option.name for option in each.params if isinstance(option, click.Option) and not option.help] == []
    assert (each.get_short_help_str(limit=62)).endswith(".") and "..." not in each.get_short_help_str(limit=62)


def options(verb: click.Command) -> set[str]:
    return {name for option in verb.params for name in option.opts}


def test_an_interruption_while_it_loads_is_no_traceback(tmp_path: Path) -> None:
    """Ctrl-C before the first line of a verb ends with 130 and a word."""
    (tmp_path / "click.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    done = subprocess.run([sys.executable, "-m", "migrate", "status"], capture_output=True, text=True, timeout=60,
                          env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{CLI_PAGE.parents[1]}"})  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "Interrupted.\n")


def test_a_full_disk_leaves_no_half_configuration(tmp_path: Path) -> None:
    """`init` on a full disk says so, and nothing is in the way of the next try."""
    with small_disk(tmp_path, 1 << 20) as disk:
        disk.fill(0)
        said = disk.run(sys.executable, "-m", "migrate", "init", str(tmp_path / "migrate.toml"))
        assert said.returncode == 2 and "No space left on device" in said.stderr
        disk.free()
        assert disk.run(sys.executable, "-m", "migrate", "init", str(tmp_path / "migrate.toml")).returncode == 0


def test_a_preflight_on_a_full_disk_has_findings(tmp_path: Path) -> None:
    """`check` tells what else it found, too, where the lock and staging cannot be written; the destination stands on that disk as well."""
    text = configure(tmp_path, 1, 11112).read_text()
    with small_disk(tmp_path, 1 << 20) as disk:
        disk.run("sh", "-c", 'echo "$1" > "$2"/migrate.toml', "sh", text, str(tmp_path))
        disk.fill(0)
        said = disk.run(sys.executable, "-m", "migrate", "check", "--json", "--config", str(tmp_path / "migrate.toml"))
    findings = {each["name"]: each for each in json.loads(said.stdout)["findings"]}
    assert [findings[name]["level"] for name in ("disk", "manifest")] == ["fail", "fail"]
    assert "full" in findings["manifest"]["detail"] and findings["manifest"]["hint"] and "clock" in findings


def test_of_a_demo_without_a_folder_the_report_stays(tmp_path: Path) -> None:
    """The path that it ends with is there, and the rest of it is gone."""
    done = subprocess.run([sys.executable, "-m", "migrate", "demo", "--studies", "2"], capture_output=True, text=True, timeout=60,
                          env={**os.environ, "TMPDIR": str(tmp_path)})  # fmt: skip
    assert done.returncode == 0, done.stderr
    page = Path(done.stdout.splitlines()[-1].removeprefix("Report: "))
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    (folder,) = tmp_path.iterdir()
    assert list(folder.iterdir()) == [page.parent]


def test_an_interrupted_demo_says_how_to_begin_anew(tmp_path: Path) -> None:
    """Its practice PACS is gone with it, so that the same command could not go on."""
    start = [sys.executable, "-m", "migrate", "demo", "--studies", "3000", "--keep", str(tmp_path / "demo")]
    with subprocess.Popen(start, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        until(lambda: any((tmp_path / "demo" / "bucket" / "studies").glob("*/series/*/instances/*")), 60.0, during=process)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"remove {tmp_path / 'demo'}, and begin anew" in said and "same command" not in said


def test_a_port_in_use_is_said_once(tmp_path: Path) -> None:
    """Exit 22, with the address and what the system says, and nothing of Python's words for it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert called_plainly("practice-pacs", "--port", port) == (22, f"Error: Port {port} on 127.0.0.1 cannot be used: Address already in use.\n"
                                                                        "Hint:  Choose another --port.\n")  # fmt: skip


def called_plainly(*words: str) -> tuple[int, str]:
    """A verb without a configuration: exit code and stderr."""
    done = subprocess.run([sys.executable, "-m", "migrate", *words], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stderr


DEFECT = """
import threading
from concurrent.futures import ThreadPoolExecutor
from migrate import cli

def called():
    ThreadPoolExecutor(1).submit(threading.Event().wait)
    raise ZeroDivisionError

cli.called = called
cli.main()
"""


def test_a_defect_ends_the_process_though_a_worker_waits_for_a_peer() -> None:
    """It is told as one, with exit 1, and does not wait until the PACS answers."""
    done = subprocess.run([sys.executable, "-c", DEFECT], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr


def test_a_fault_of_a_study_that_is_not_there_is_refused() -> None:
    """Else the PACS would be honest, and the rehearsal about nothing."""
    code, said = called_plainly("practice-pacs", "--studies", "5", "--fault", "skip-one@4", "--fault", "drip@5")
    assert (code, said.splitlines()[0]) == (2, "Error: --fault: there is no such study for drip@5: they count from 0 to 4.")
