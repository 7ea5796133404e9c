"""Verify again: levels, samples, slices, and what is put on record of them."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from migrate.config import load
from migrate.errors import UsageError
from migrate.manifest.file import open_reader
from migrate.reports import report
from tests.ports import free_port
from tests.runs import bucket, configure, data_sets, here, practice

from migrate.practice.pacs import PracticePacs  # isort: skip
from migrate.practice.studies import Archive  # isort: skip
from tests.s3_server import S3Server  # isort: skip


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a finished migration into a folder, its PACS still there."""
    folder = tmp_path_factory.mktemp("verify")
    with practice(folder):
        assert here(folder, "run")[0] == 0
        yield folder


def verified(folder: Path, *words: str, code: int = 0) -> dict[str, Any]:
    done, said = here(folder, "verify", "--json", *words)
    assert done == code
    return json.loads(said)  # type: ignore[no-any-return]


def results(folder: Path) -> list[dict[str, Any]]:
    with closing(sqlite3.connect(folder / "manifests" / "test.db")) as manifest:
        rows = manifest.execute("SELECT detail FROM event WHERE kind = 'destination verified' ORDER BY id").fetchall()
    return [json.loads(detail) for (detail,) in rows]


def reported(folder: Path) -> dict[str, Any]:
    with closing(open_reader(load(folder / "migrate.toml").manifest)) as reader:
        return report(reader)["checks"]  # type: ignore[no-any-return]


def test_a_sample_is_on_record_and_says_what_follows_from_it(migrated: Path) -> None:
    """Every year and modality is drawn from; the event names population, sample, seed and level; the statement is exact."""
    everything = len(data_sets(migrated))
    found = verified(migrated, "--sample-size", "20", "--seed", "7")
    assert (found["missing"], found["differs"], found["unchecked"]) == ([], [], [])
    assert (found["population"], found["sample"], found["checked"]) == (everything, found["checked"], found["sample"])
    event = results(migrated)[-1]
    assert (event["seed"], event["level"], event["ended"]) == (7, "attested", True)
    assert all(1 <= checked <= count for _, _, count, checked, _ in event["strata"])
    assert sum(count for _, _, count, *_ in event["strata"]) == everything
    # a folder attests nothing: what is asked for as attested is read back there
    assert found["statement"].startswith(f"0 of {found['checked']} re-read objects differ: with 95 % confidence fewer than ")
    assert verified(migrated, "--sample-size", "20", "--seed", "7") == found


def test_slices_together_are_everything(migrated: Path) -> None:
    """The populations of all slices add up to that of a whole verification."""
    parts = [verified(migrated, "--slice", f"{k}/3", "--level", "listed") for k in (1, 2, 3)]
    assert sum(part["checked"] for part in parts) == len(data_sets(migrated))
    assert [part["slice"] for part in parts] == ["1/3", "2/3", "3/3"]
    assert sum(part["proof"].get("listed", 0) for part in parts) == len(data_sets(migrated))
    (told,) = reported(migrated)["slices"]
    assert (told["level"], told["of"], told["done"]) == ("listed", 3, [1, 2, 3])


@pytest.mark.parametrize(
    "words",
    [("--sample", "0%"), ("--sample", "101%"), ("--sample", "x"), ("--slice", "4/3"), ("--slice", "0/3"), ("--slice", "1/2", "--sample", "5%"),
     ("--seed", "1"), ("--sample", "5%", "--sample-size", "5"), ("--deep", "--level", "listed")],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(migrated: Path, words: tuple[str, ...]) -> None:
    """As an error of usage; nothing is on record then."""
    before = len(results(migrated))
    with pytest.raises(UsageError) as raised:
        here(migrated, "verify", *words)
    assert (raised.value.exit_code, len(results(migrated))) == (2, before)


def test_what_each_level_sees_on_s3_and_run_heals(server: S3Server, tmp_path: Path) -> None:
    """A listing sees what is gone or has another size, not other bytes; attesting sees these too; the next run puts things right."""
    name, receiver = server.new_bucket(), free_port()
    client = server.client()
    with PracticePacs(Archive(3), destinations={"PACSMIGRATE": ("127.0.0.1", receiver)}) as pacs:
        configure(tmp_path, pacs.port, receiver, destination=bucket(name, server.endpoint_url))
        assert here(tmp_path, "run")[0] == 0
        keys = sorted(each["Key"] for each in client.list_objects_v2(Bucket=name, Prefix="studies/")["Contents"])
        gone, other, short = keys[0], keys[1], keys[2]
        content = client.get_object(Bucket=name, Key=other)["Body"].read()
        client.delete_object(Bucket=name, Key=gone)
        client.put_object(Bucket=name, Key=other, Body=content[:-1] + bytes([content[-1] ^ 1]))
        client.put_object(Bucket=name, Key=short, Body=content[:200])
        seen = verified(tmp_path, "--level", "listed", code=3)
        assert (seen["missing"], seen["differs"], seen["checked"]) == ([gone], [short], len(keys))
        seen = verified(tmp_path, code=3)
        assert (seen["missing"], seen["differs"], seen["checked"]) == ([], [other], len(keys) - 2)
        assert seen["statement"] == f"All {len(keys) - 2} objects, attested: 0 missing, 1 different. 2 objects were missing or different before, and not proven again since."
        seen = verified(tmp_path, "--sample-size", "2", code=3)
        assert (seen["missing"], seen["differs"], seen["open"]) == ([], [], [gone, other, short])
        assert here(tmp_path, "run")[0] == 3  # other bytes stand under a key: a person decides
        healed = verified(tmp_path, "--deep")
        assert (healed["checked"], healed["proof"], healed["open"]) == (len(keys), {"read_back": len(keys)}, [])


def test_a_signal_ends_a_verification_and_what_was_checked_is_on_record(migrated: Path) -> None:
    """SIGINT: exit 130, no statement about a sample that was cut short, and nothing left locked."""
    start = [sys.executable, "-c", HELD, "verify", "--deep", "--sample", "90%", "--config", str(migrated / "migrate.toml")]
    with subprocess.Popen(start, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        assert "looking" in running.stderr.readline()
        running.send_signal(signal.SIGINT)
        assert running.wait(30) == 130
    event = results(migrated)[-1]
    assert not event["ended"] and event["checked"] < sum(count for _, _, count, *_ in event["strata"])
    assert event["statement"].startswith("Cut short")
    assert verified(migrated, "--sample", "1%")["missing"] == []


HELD = """
import select, signal, socket, sys
from migrate.cli import main
from migrate.stages import checking
came, wakes = socket.socketpair()
wakes.setblocking(False)
signal.set_wakeup_fd(wakes.fileno())
check = checking.check
def held(job):
    print("looking", file=sys.stderr, flush=True)
    select.select([came], [], [], 30)  # until a signal has come, of which nobody takes the byte away
    return check(job)
checking.check = held
main()
"""


def test_results_are_in_the_report(migrated: Path) -> None:
    """report.json has every result with its statement; no object's key is among it."""
    verified(migrated, "--sample", "50%", "--seed", "3")
    document = reported(migrated)
    last = document["verifications"][-1]
    assert (last["seed"], last["level"], last["missing"], last["differs"]) == (3, "attested", 0, 0)
    assert "with 95 % confidence" in last["statement"]
    assert "studies/" not in json.dumps(document)


def test_results_are_on_the_page(migrated: Path, tmp_path: Path) -> None:
    """The statement, the seed, and how far the slices have come; the edition without names tells them, too."""
    verified(migrated, "--sample", "50%", "--seed", "77")
    verified(migrated, "--slice", "2/5")
    assert here(migrated, "report", "--dossier", str(tmp_path / "dossier"))[0] == 0
    for name in ("report.html", "report-anonymous.html"):
        page = (tmp_path / "dossier" / name).read_text(encoding="utf-8").partition('id="verifications"')[2].partition("<h2>")[0]
        assert "re-read objects differ: with 95 % confidence fewer than" in page and "(seed 77)" in page
        assert "Of 5 slices, looked at as <i>attested</i>, 1 was sound when looked at last" in page
