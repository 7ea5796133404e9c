"""The probe names each habit of the practice PACS, and of Orthanc and dcmqrscp, in time and without patient data."""

from __future__ import annotations

import contextlib
import json
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from migrate.config import ReceiverSettings, SourceSettings
from migrate.dicom.upper_layer import Association, UpperLayerError
from migrate.sources.probe.asking import NAMES, TOTAL_S
from migrate.sources.probe.habits import DimseProbe
from tests.dicom_peers import dcmqrscp, orthanc
from tests.integration.test_real_peers import archive_files
from tests.ports import free_port
from tests.runs import command, configure, data_sets, practice, truth

HONEST = {
    "study_root": "FIND MOVE", "patient_root": "FIND MOVE", "insists_on_patient_id": "no", "relational": "no", "associations": "3+",
    "keyless": "answered", "cap": "none", "ignores_date": "no", "ignores_time": "no", "ignores_modality": "no",
    "ignores_patient_id": "no", "ignores_accession": "no", "day_range": "yes", "open_range": "yes",
    "undated": "without a key, PatientID, AccessionNumber", "counters": "honest", "breaks_off": "no", "unreadable_rows": "no",
    "padded_uids": "no", "ff01": "no", "same_uids": "yes", "same_bytes": "yes", "move_originator": "yes",
}  # fmt: skip


def probe(folder: Path) -> dict[str, str]:
    """The values of a `probe --json`; also: they are on record, unless they are unknown."""
    done = command(folder, "probe", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert [habit["name"] for habit in document["habits"]] == list(NAMES)
    values = {habit["name"]: habit["value"] for habit in document["habits"]}
    (manifest,) = (folder / "manifests").glob("*.db")
    recorded = dict(sqlite3.connect(manifest).execute("SELECT name, value FROM habit"))
    assert recorded == {name: value for name, value in values.items() if value != "unknown" and not (name.startswith("cap") and value == "none")}
    assert [path for path in (folder / "staging").rglob("*") if path.is_file()] == []
    return values


def test_an_honest_pacs_has_no_bad_habit_and_the_page_names_nobody(tmp_path: Path) -> None:
    """All habits are told; table, page and manifest hold no ID, name or UID of a study."""
    with practice(tmp_path, studies=60) as archive:
        assert HONEST.items() <= probe(tmp_path).items()
        table = command(tmp_path, "probe").stdout
    page = (tmp_path / "report" / "probe.md").read_text()
    assert all(f"`{name}`" in page and name in table for name in NAMES)
    assert "## What to ask your PACS vendor" in page
    dump = "\n".join(sqlite3.connect(tmp_path / "manifests" / "test.db").iterdump())
    for study in archive:
        for secret in (study.patient_id, study.patient_name, study.accession, study.uid):
            assert secret not in page + table + dump


@pytest.mark.parametrize(
    ("faults", "found"),
    [
        (("silent-cap=20",), {"cap": "20"}),
        (("refuse-many",), {"keyless": "refused"}),
        (("refuse-wide=31",), {"keyless": "refused", "open_range": "refused"}),
        (("ignore-date",), {"ignores_date": "yes", "day_range": "unknown", "open_range": "unknown"}),
        (("ignore-time",), {"ignores_time": "yes"}),
        (("ignore-modality",), {"ignores_modality": "yes"}),
        (("ignore-patient-id",), {"ignores_patient_id": "yes"}),
        (("null-dates", "hidden-undated"), {"undated": "ModalitiesInStudy, PatientID, AccessionNumber"}),
        (("patient-root-only",), {"study_root": "none", "insists_on_patient_id": "yes", "same_bytes": "yes"}),
        (("patient-root-only", "silent-cap=3"), {"insists_on_patient_id": "yes", "cap_patients": "3"}),
        (("patient-root-only", "ignore-patient-id"), {"ignores_patient_id": "yes"}),
        (("relational",), {"relational": "yes"}),
        (("wrong-counts",), {"counters": "wrong"}),
        (("no-counts",), {"same_uids": "yes"}),
        (("padded-uids",), {"padded_uids": "yes", "same_uids": "yes"}),
        (("nul-uids",), {"padded_uids": "yes"}),
        (("ff01",), {"ff01": "yes"}),
        (("slow-answers=0.02",), {"cancel": "yes"}),
        (("slow-answers=0.02", "ignore-cancel"), {"cancel": "no"}),
        (("abort-find",), {"breaks_off": "yes"}),
        (("undecodable-row",), {"unreadable_rows": "yes"}),
        (("association-limit=1",), {"associations": "1", "same_bytes": "yes"}),
        (("association-limit=2",), {"associations": "2"}),
        (("move-unknown",), {"same_uids": "unknown", "transfer_syntaxes": "unknown"}),
        (("early-success",), {"same_uids": "yes"}),
        (("no-move-originator",), {"move_originator": "no"}),
        (("rewrites-headers",), {"same_uids": "yes", "same_bytes": "no"}),
    ],
)
def test_each_habit_is_found(tmp_path: Path, faults: tuple[str, ...], found: dict[str, str]) -> None:
    """A habit is told by its name, and no other habit is told wrongly for it."""
    with practice(tmp_path, *faults, studies=60):
        values = probe(tmp_path)
    assert found.items() <= values.items()
    others = {name: value for name, value in values.items() if name in ("ignores_date", "ignores_time", "day_range", "open_range") and name not in found}
    assert set(others.values()) <= {HONEST[name] for name in others} | {"unknown"}


def test_rewritten_headers_are_named_by_tag_without_values(tmp_path: Path) -> None:
    """The element that differs between two retrievals is named, what stands in it is not."""
    with practice(tmp_path, "rewrites-headers"):
        done = command(tmp_path, "probe", "--json")
    (habit,) = (habit for habit in json.loads(done.stdout)["habits"] if habit["name"] == "same_bytes")
    assert "(0008,0080)" in habit["detail"] and "the pixels are the same" in habit["detail"]
    assert "PRACTICE" not in done.stdout


@contextlib.contextmanager
def silent_pacs() -> Iterator[int]:
    """Takes every association and never says anything in it."""
    listener = socket.create_server(("127.0.0.1", 0))
    open_: list[Association] = []

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                with contextlib.suppress(UpperLayerError):
                    open_.append(Association.accept(sock, choose=lambda offer: offer.transfer_syntaxes[0]))

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)
        for association in open_:
            association.close()


def test_a_silent_pacs_costs_no_more_than_the_time_there_is() -> None:
    """Where nothing is answered, everything that an answer would tell is unknown, within the limit, which is below two minutes."""
    assert TOTAL_S < 110
    with silent_pacs() as port:
        began = time.monotonic()
        habits = DimseProbe(SourceSettings("127.0.0.1", port, "SILENT"), ReceiverSettings(port=free_port()), total_s=6.0).run(None)
        took_s = time.monotonic() - began
    assert took_s < 16
    told = {habit.name for habit in habits if habit.value != "unknown"}
    assert told <= {"study_root", "patient_root", "associations"}


def test_a_slow_pacs_keeps_within_the_limit(tmp_path: Path) -> None:
    """One row a second: the time is kept, and what could be told is told."""
    with practice(tmp_path, "slow-answers=1", studies=60):
        from migrate.config import load

        config = load(tmp_path / "migrate.toml")
        began = time.monotonic()
        habits = {habit.name: habit.value for habit in DimseProbe(config.source, config.receiver, total_s=15.0).run(None)}
        took_s = time.monotonic() - began
    assert took_s < 25
    assert habits["study_root"] == "FIND MOVE" and habits["ff01"] == "no"


def test_nobody_there_ends_with_20(tmp_path: Path) -> None:
    """A PACS that takes no connection is an error of the source with a hint."""
    configure(tmp_path, free_port(), free_port())
    done = command(tmp_path, "probe")
    assert done.returncode == 20
    assert "Hint" in done.stderr and "Traceback" not in done.stderr


def test_orthanc(tmp_path: Path) -> None:
    """Orthanc: both models, GET too, every key matched, same bytes twice."""
    receiver = free_port()
    files = archive_files(tmp_path / "files")
    with orthanc(tmp_path / "pacs", moves={"PACSMIGRATE": ("127.0.0.1", receiver)}, files=files) as pacs:
        configure(tmp_path, pacs.port, receiver, ae_title=pacs.ae_title)
        values = probe(tmp_path)
    assert values["study_root"] == "FIND MOVE GET"
    assert {values[name] for name in ("ignores_date", "ignores_time", "ignores_modality", "ignores_patient_id", "ignores_accession")} == {"no"}
    assert (values["day_range"], values["open_range"], values["same_uids"], values["cap"]) == ("yes", "yes", "yes", "none")


def test_dcmqrscp(tmp_path: Path) -> None:
    """dcmqrscp: both models, and what it ignores is told as ignored."""
    receiver = free_port()
    files = archive_files(tmp_path / "files")
    with dcmqrscp(tmp_path / "pacs", moves={"PACSMIGRATE": ("127.0.0.1", receiver)}, files=files) as pacs:
        configure(tmp_path, pacs.port, receiver, ae_title=pacs.ae_title)
        values = probe(tmp_path)
    assert values["study_root"].startswith("FIND MOVE")
    assert (values["ignores_date"], values["day_range"], values["open_range"]) == ("no", "yes", "yes")


@pytest.mark.parametrize("limit", [1, 2])
def test_a_run_keeps_to_the_associations_that_are_allowed(tmp_path: Path, limit: int) -> None:
    """Once the limit is on record no association is rejected any more, and everything arrives; `check` says what is known."""
    with practice(tmp_path, f"association-limit={limit}", studies=30) as archive:
        assert probe(tmp_path)["associations"] == str(limit)
        checked = json.loads(command(tmp_path, "check", "--json").stdout)["findings"]
        done = command(tmp_path, "run", "-v")
    assert [finding["level"] for finding in checked if finding["name"] == "associations"] == ["warn"]
    assert done.returncode == 0, done.stderr
    assert "Trying again" not in done.stderr
    assert data_sets(tmp_path) == truth(archive)


def test_check_tells_the_recorded_habits_and_stays_quick(tmp_path: Path) -> None:
    """Before a probe it is named as the thing to do; afterwards, habits with consequences are told, and nothing fails by them."""
    with practice(tmp_path, "ignore-time", studies=30):
        first = command(tmp_path, "check", "--json")
        probe(tmp_path)
        began = time.monotonic()
        second = command(tmp_path, "check", "--json")
        took_s = time.monotonic() - began
    assert (first.returncode, second.returncode) == (0, 0), first.stdout + second.stdout
    assert any(finding["name"] == "habits" and "probe" in finding["hint"] for finding in json.loads(first.stdout)["findings"])
    assert any(finding["name"] == "ignores_time" and finding["level"] == "warn" for finding in json.loads(second.stdout)["findings"])
    assert took_s < 20


def test_one_study_that_does_not_come_fails_no_check(tmp_path: Path) -> None:
    """The PACS refuses to send the study that is tried first: another one shows that it sends to us, and the first is named in a warning."""
    with practice(tmp_path, "move-status=C000@3", studies=20) as archive:
        done = command(tmp_path, "check", "--json")
    (found,) = [finding for finding in json.loads(done.stdout)["findings"] if finding["name"] == "C-MOVE"]
    assert (done.returncode, found["level"], f"nothing of study {archive.study(3).uid} (C-MOVE ended with C000" in found["detail"]) == (0, "warn", True), done.stdout
