"""The completeness report: what it counts, what it names, when it says complete, and that a browser shows it."""

from __future__ import annotations

import csv
import json
import sqlite3
from pathlib import Path

import pytest

from migrate.manifest import Manifest
from migrate.manifest.decisions import Exempted, Signature, accept, accept_each, revoke
from migrate.manifest.file import open_reader

from migrate.model import (  # isort: skip
    DestinationLost, Failed, InstanceState, InstanceStored, Proof, Receipt, Received, RetrieveEnded, StudyFound,
    StudyRef, Window, WindowAnswered, WindowJudged, WindowsPlanned,
)
from migrate.reports import report, status, status_text, write_report
from migrate.reports.history import history
from migrate.reports.pictures import by_year_and_modality
from tests.filled import (
    HOSTILE,
    came,
    fixity,
    in_browser,
    items,
    migrated,
    planned,
    proven,
    read,
    received,
    swept,
    verdict,
    written,
)


def test_everything_proven_is_complete(manifest: Manifest) -> None:
    """Two studies, one attested and one read back: complete, each instance counted once by its strongest proof."""
    swept(manifest, "1.1", "1.2")
    migrated(manifest, "1.1", "1.1.1.1", proof=Proof.ATTESTED)
    migrated(manifest, "1.2", "1.2.1.1", "1.2.1.2")
    document = read(manifest)
    assert document["complete"] is True
    assert document["proof"] == {"acknowledged": 0, "listed": 0, "attested": 1, "read_back": 2}
    assert document["bytes"] == {"staged": 0, "verified": 300}
    assert document["exceptions"] == []
    assert document["enumeration"] == {"from": "2020-01-01", "to": "2020-12-31", "windows": 1, "suspicious": []}


def test_the_documents_have_the_documented_keys(manifest: Manifest) -> None:
    """An empty manifest shows every key of both documents, and is not complete."""
    reader = open_reader(manifest.path)
    document = status(reader)
    states = ["found", "planned", "retrieved", "migrated", "excluded", "parked", "accepted"]
    kinds = ["expected", "staged", "stored", "verified", "unexpected", "conflict", "quarantined"]
    assert document == {"studies": dict.fromkeys(states, 0), "instances": dict.fromkeys(kinds, 0),
                        "bytes": {"staged": 0, "verified": 0}, "complete": False, "parked": [],
                        "throughput": document["throughput"], "eta_s": None}  # fmt: skip
    assert list(document["throughput"]) == ["instances_per_s", "bytes_per_s", "window_s"]
    assert "NOT COMPLETE" in status_text(document)
    assert list(report(reader)) == ["schema", "migration", "generated_at", "complete", "studies", "instances", "bytes",
                                    "proof", "enumeration", "checks", "custody", "coverage", "reconciliation", "excluded", "exceptions"]  # fmt: skip
    reader.close()


def test_no_study_at_all_makes_a_page(manifest: Manifest, tmp_path: Path) -> None:
    """A PACS that shows nothing gets a report like any other."""
    swept(manifest)
    page = written(manifest, tmp_path / "out")
    assert verdict(page).startswith("Complete: nothing was found.")
    assert sorted(path.name for path in page.parent.iterdir()) == ["exceptions.csv", "report.html", "report.json", "studies.csv"]


def test_an_empty_study_is_migrated_and_listed(manifest: Manifest) -> None:
    """A study without images at the source is migrated with nothing, and named as EmptyAtSource."""
    swept(manifest, "1.1", claimed=0)
    planned(manifest, "1.1")
    document = read(manifest)
    assert (document["complete"], document["studies"]["migrated"]) == (True, 1)
    assert [(entry["study"], entry["state"], entry["error"]) for entry in document["exceptions"]] == [("1.1", "migrated", "EmptyAtSource")]


def test_excluded_studies_are_counted_apart(manifest: Manifest, tmp_path: Path) -> None:
    """What the selection leaves out is named with its reason, counted by reason on the page, and does not stand in the way."""
    window = swept(manifest, "1.1")
    left_out = [StudyFound(StudyRef(f"1.9.{number}"), "20200505", ("SR",), 1, window, excluded="None of its modalities is to be migrated.") for number in (1, 2)]
    manifest.commit(left_out)
    migrated(manifest, "1.1", "1.1.1.1")
    document = read(manifest)
    assert (document["complete"], document["studies"]["excluded"]) == (True, 2)
    assert document["excluded"] == [{"error": "OutsideSelection", "detail": "None of its modalities is to be migrated.", "studies": 2}]
    assert [(entry["study"], entry["state"], entry["error"]) for entry in document["exceptions"]] == [
        (f"1.9.{number}", "excluded", "OutsideSelection") for number in (1, 2)
    ]
    source = written(manifest, tmp_path / "out").read_text()
    assert "<td>None of its modalities is to be migrated.</td><td class=\"n\">2</td>" in source and "1.9.1" not in source


def test_studies_are_counted_by_year_and_modality(manifest: Manifest) -> None:
    """A study of two modalities counts under both; listed series say which, and before that the row of the study does."""
    window = swept(manifest, "1.1")
    migrated(manifest, "1.1", "1.1.1.1")
    manifest.commit([StudyFound(StudyRef("1.2"), "20210505", ("MR", "SR"), 1, window), StudyFound(StudyRef("1.3"), None, (), 1, window)])
    table = read(manifest, by_year_and_modality)
    assert table["heads"] == ["CT", "MR", "SR", "unknown"]
    assert table["rows"] == [("2020", 1, [1, 0, 0, 0]), ("2021", 1, [0, 1, 1, 0]), ("no date", 1, [0, 0, 0, 1])]
    assert [(bar["label"], bar["count"], bar["done"]) for bar in table["modalities"]] == [("CT", 1, 1), ("MR", 1, 0), ("SR", 1, 0), ("unknown", 1, 0)]


def test_exceptions_csv_tells_who_accepted(manifest: Manifest, tmp_path: Path) -> None:
    """The last two columns of exceptions.csv are the signature: who, and why."""
    swept(manifest, "1.1", "1.2")
    for uid in ("1.1", "1.2"):
        manifest.commit([Failed(StudyRef(uid), "plan", "QueryFailed", "no", retryable=False)])
    accept(manifest, ["1.1"], "tape is lost", "J. Doe")
    with (written(manifest, tmp_path / "out").parent / "exceptions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[-2:] == ["accepted_by", "reason"]
    assert [(row["study"], row["state"], row["accepted_by"], row["reason"]) for row in rows] == [
        ("1.1", "accepted", "J. Doe", "tape is lost"), ("1.2", "parked", "", "")
    ]  # fmt: skip


def test_the_page_is_about_what_needs_a_person(manifest: Manifest, tmp_path: Path) -> None:
    """Studies that are merely not finished are counted on the page and named in the files."""
    swept(manifest, "1.1", "1.2")
    planned(manifest, "1.1", "1.1.1.1")
    page = written(manifest, tmp_path / "out")
    assert "2 studies are not finished" in page.read_text() and "1.1.1.1" not in page.read_text()
    assert "1.1.1.1" in (page.parent / "exceptions.csv").read_text()


def test_each_instance_counts_once(manifest: Manifest) -> None:
    """Missing, unexpected, conflicting and quarantined instances are counted once each, conflict before all others."""
    swept(manifest, "1.1")
    planned(manifest, "1.1", "1.1.1.1", "1.1.1.2", "1.1.1.3")
    bad = Received(Path("/x/q"), None, fixity("q").rolled, "", "", quarantine="cannot be walked", claimed=("1.1", "1.1.1", "1.1.1.9"))
    arrivals = [received("1.1", "1.1.1.1"), received("1.1", "1.1.1.2"), received("1.1", "1.1.1.2", "other"), received("1.1", "1.1.1.7"), bad]
    manifest.commit([*(came(one) for one in arrivals), RetrieveEnded(StudyRef("1.1"), 0)])
    proven(manifest)
    document = read(manifest)
    assert document["instances"] == {"expected": 1, "staged": 0, "stored": 0, "verified": 1, "unexpected": 1, "conflict": 1, "quarantined": 1}
    (entry,) = document["exceptions"]
    assert (entry["missing"], entry["unexpected"], entry["conflict"], entry["quarantined"]) == (["1.1.1.3"], ["1.1.1.7"], ["1.1.1.2"], ["1.1.1.9"])
    assert document["complete"] is False


def test_an_exception_names_every_signature_that_stands(manifest: Manifest) -> None:
    """What is signed for one image says so; what was taken back is not told any more."""
    planned(manifest, "1.1", "1.1.1", "1.1.2", "1.1.3")
    manifest.commit([RetrieveEnded(StudyRef("1.1"), 0)])
    accept(manifest, ["1.1"], "all of it", "J. Doe")
    revoke(manifest, ["1.1"], "not all", "J. Doe")
    planned(manifest, "1.1", "1.1.1", "1.1.2", "1.1.3")
    manifest.commit([RetrieveEnded(StudyRef("1.1"), 0)])
    for sop, by in (("1.1.1", "J. Doe"), ("1.1.2", "M. Roe")):
        accept_each(manifest, [Exempted("1.1", Signature("broken disk", by, "head", "corrupt-at-source"), sop)])
    (entry,) = read(manifest)["exceptions"]
    assert (entry["state"], entry["accepted_by"]) == ("parked", "J. Doe (head); M. Roe (head)")
    assert entry["reason"] == "1.1.1: corrupt-at-source: broken disk; 1.1.2: corrupt-at-source: broken disk"
    told = [decision["detail"] for decision in history(manifest.connection)["decisions"]]
    assert told[0] == "by J. Doe: all of it (covers 3 entries)"
    assert told[-1] == "by M. Roe (head): corrupt-at-source: broken disk (covers 1 entry)"


def test_a_quarantined_file_can_be_named_to_accept(manifest: Manifest) -> None:
    """The name that `accept` takes, the reason and the hostile UIDs stand in the detail of the study's exception."""
    swept(manifest, "1.1")
    bad = Received(Path("/x/q"), None, fixity("q").rolled, "", "", quarantine="cannot be walked", claimed=("1.1", "../../x", "1.9"))
    manifest.commit([came(bad)])
    migrated(manifest, "1.1", "1.1.1.1")
    (entry,) = read(manifest)["exceptions"]
    assert "q1" in entry["detail"] and "cannot be walked" in entry["detail"] and "../../x" in entry["detail"]


@pytest.mark.parametrize("differs", [False, True])
def test_what_the_store_spoils_is_named(manifest: Manifest, differs: bool) -> None:
    """An instance that the destination never holds is missing, one with other bytes under its key in conflict: parked or accepted."""
    swept(manifest, "1.1")
    planned(manifest, "1.1", "1.1.1.1")
    manifest.commit([came(received("1.1", "1.1.1.1")), RetrieveEnded(StudyRef("1.1"), 0)])
    (item,) = items(manifest, InstanceState.STAGED)
    manifest.commit([InstanceStored(item, Receipt("k"))])
    error = "ObjectDiffers" if differs else "ObjectMissing"
    manifest.commit([DestinationLost(item, differs, "not there", file_kept=True), Failed(StudyRef("1.1"), "verify", error, "not there")])
    for state in ("parked", "accepted"):
        (entry,) = read(manifest)["exceptions"]
        assert (entry["state"], entry["error"]) == (state, error)
        assert (entry["missing"], entry["conflict"]) == (([], ["1.1.1.1"]) if differs else (["1.1.1.1"], []))
        if state == "parked":
            accept(manifest, ["1.1"], "the store is broken", "J. Doe")


def test_wrong_numbers_are_suspicious_and_block_nothing(manifest: Manifest) -> None:
    """Claims of the STUDY row and of SERIES rows that differ from the IMAGE rows are listed once each, as of the last plan."""
    swept(manifest, "1.1", claimed=5)
    planned(manifest, "1.1", "1.1.1.1", notes=("series 1.1.1: 7 instances claimed, 1 listed",))
    manifest.commit([came(received("1.1", "1.1.1.1")), RetrieveEnded(StudyRef("1.1"), 0)])
    proven(manifest)
    document = read(manifest)
    reasons = [entry["reason"] for entry in document["enumeration"]["suspicious"]]
    assert len(reasons) == 2 and "5 instances claimed, 1 listed" in reasons[0] and "7 instances claimed, 1 listed" in reasons[1]
    assert document["complete"] is True
    swept(manifest, "1.1", claimed=1)
    planned(manifest, "1.1", "1.1.1.1")
    assert read(manifest)["enumeration"]["suspicious"] == []


def test_a_window_blocks_until_somebody_signs(manifest: Manifest, tmp_path: Path) -> None:
    """A window that cannot be shown to be whole makes the report incomplete, with its name, until it is accepted."""
    window = swept(manifest)
    manifest.commit([WindowJudged(window, "capped", blocks=True)])
    assert read(manifest)["enumeration"]["suspicious"] == [{"window": f"w{window}", "question": "20200101-20201231", "reason": "capped", "blocks": True, "accepted_by": None}]
    assert f"w{window}" in verdict(written(manifest, tmp_path / "out"))
    accept(manifest, [f"w{window}"], "known", "J. Doe")
    document = read(manifest)
    assert (document["complete"], document["enumeration"]["suspicious"][0]["accepted_by"]) == (True, "J. Doe")


def test_an_older_sweep_no_longer_blocks_and_a_newer_one_must_close(manifest: Manifest, tmp_path: Path) -> None:
    """Only the latest sweep is judged, and one that has not closed is never complete: the verdict says so."""
    manifest.commit([WindowJudged(swept(manifest), "capped", blocks=True)])
    swept(manifest)
    assert read(manifest)["complete"] is True
    manifest.commit([WindowsPlanned(3, (Window("20200101", "20201231"),))])
    assert read(manifest)["complete"] is False
    assert "not been answered" in verdict(written(manifest, tmp_path / "a"))
    manifest.commit([WindowAnswered(manifest.one("SELECT max(id) FROM window")[0], 0)])
    assert read(manifest)["complete"] is False
    assert "sweep" in verdict(written(manifest, tmp_path / "b"))


def test_a_quarantined_file_without_a_study_blocks_until_signed(manifest: Manifest, tmp_path: Path) -> None:
    """Hostile UIDs stand JSON-escaped in an exception without a study; its acceptance is named."""
    swept(manifest)
    bad = Received(Path("/x/q"), None, fixity("q").rolled, "", "", quarantine="UIDs are no UIDs", claimed=("\n\u202e", HOSTILE, ""))
    manifest.commit([came(bad)])
    document = read(manifest)
    (entry,) = document["exceptions"]
    assert (document["complete"], entry["study"], entry["quarantined"]) == (False, None, ["q1"])
    assert "\\n\\u202e" in entry["detail"] and "\n" not in entry["detail"]
    assert "quarantine" in verdict(written(manifest, tmp_path / "out"))
    accept(manifest, ["q1"], "noise", "J. Doe")
    (entry,) = read(manifest)["exceptions"]
    assert read(manifest)["complete"] is True
    assert (entry["state"], entry["accepted_by"], entry["reason"]) == ("accepted", "J. Doe", "noise")


def test_tallies_are_recounted(manifest: Manifest, tmp_path: Path) -> None:
    """A tally that differs from a recount is named, blocks, and the verdict does not blame the PACS for it."""
    swept(manifest, "1.1")
    migrated(manifest, "1.1", "1.1.1.1")
    manifest.connection.execute("UPDATE series SET verified = 2")
    document = read(manifest)
    (entry,) = document["enumeration"]["suspicious"]
    assert (document["complete"], entry["blocks"]) == (False, True)
    assert "1.1.1" in entry["reason"]
    said = verdict(written(manifest, tmp_path / "out"))
    assert "recount" in said and "answer" not in said


def test_a_report_is_of_one_moment(manifest: Manifest, tmp_path: Path) -> None:
    """A commit that lands between two questions of a report changes nothing in it, in any of its files."""
    swept(manifest, "1.1")
    planned(manifest, "1.1", "1.1.1.1")
    manifest.commit([came(received("1.1", "1.1.1.1")), RetrieveEnded(StudyRef("1.1"), 0)])
    reader, asked = open_reader(manifest.path), [0]

    def meanwhile(sql: str) -> None:
        asked[0] += sql.startswith("SELECT")
        if asked[0] == 2 and sql.startswith("SELECT"):
            proven(manifest)

    reader.set_trace_callback(meanwhile)
    page = write_report(reader, tmp_path / "out")
    reader.set_trace_callback(None)
    document = json.loads((page.parent / "report.json").read_text())
    with (page.parent / "studies.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert document["studies"]["retrieved"] == document["instances"]["staged"] == 1
    assert (document["complete"], document["bytes"], row["state"]) == (False, {"staged": 100, "verified": 0}, "retrieved")
    assert report(reader)["complete"] is True
    reader.close()


def test_the_report_only_reads(manifest: Manifest, tmp_path: Path) -> None:
    """No question of the reports writes: SQLite itself refuses everything else on that connection."""
    swept(manifest, "1.1")
    migrated(manifest, "1.1", "1.1.1.1")
    before = manifest.connection.total_changes
    reader = open_reader(manifest.path)
    refused = []

    def guard(action: int, *names: str | None) -> int:
        allowed = (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_TRANSACTION)
        if action not in allowed:
            refused.append((action, names))
        return sqlite3.SQLITE_OK if action in allowed else sqlite3.SQLITE_DENY

    reader.set_authorizer(guard)
    write_report(reader, tmp_path / "out")
    assert (refused, manifest.connection.total_changes, reader.in_transaction) == ([], before, False)
    reader.close()


def test_spreadsheets_do_not_calculate(manifest: Manifest, tmp_path: Path) -> None:
    """A text of the PACS that begins like a formula is a text in the CSV files."""
    swept(manifest, "1.1")
    formula = '=HYPERLINK("http://127.0.0.1","x")'
    manifest.commit([Failed(StudyRef("1.1"), "plan", "QueryFailed", formula, retryable=False)])
    folder = written(manifest, tmp_path / "out").parent
    for name in ("studies.csv", "exceptions.csv"):
        with (folder / name).open(newline="") as file:
            (row,) = csv.DictReader(file)
        assert (row["study"], row["detail"]) == ("1.1", "'" + formula)


def test_a_browser_shows_verdict_and_exceptions(manifest: Manifest, tmp_path: Path) -> None:
    """Chromium shows the verdict, each exception with its reason, the bars as words; hostile text runs nothing and loads nothing."""
    window = swept(manifest, "1.1", "1.2")
    manifest.commit([WindowJudged(window, "capped at 2", blocks=True)])
    migrated(manifest, "1.1", "1.1.1.1")
    planned(manifest, "1.2", "1.2.1.1")
    manifest.commit([RetrieveEnded(StudyRef("1.2"), 0, "SourceIncomplete", HOSTILE)])
    page = written(manifest, tmp_path / "out")
    dom = in_browser(page, tmp_path / "profile")
    assert 'id="verdict">Not complete' in dom
    for word in ("1.2.1.1", "SourceIncomplete", "capped at 2", f"w{window}", "2020: 1 of 2 migrated", "CT: 1 of 2 migrated"):
        assert word in dom
    assert "<script" not in dom and "&lt;script&gt;" in dom
    source = page.read_text(encoding="utf-8")
    assert not any(word in source for word in ("http:", "https:", "src=", "@import", "url(", "<link"))


def test_what_agrees_is_one_number(manifest: Manifest, tmp_path: Path) -> None:
    """On the page of what is complete no cell is red and none has three numbers."""
    swept(manifest, "1.1")
    migrated(manifest, "1.1", "1.1.1.1")
    source = written(manifest, tmp_path / "out").read_text()
    assert '<td class="n">1</td>' in source.partition('id="by-both"')[2] and ' differ"' not in source


def test_said_received_and_proven_are_reconciled(manifest: Manifest) -> None:
    """By year and modality: what is listed, what of it came, what of that is proven; unlisted ones apart, conflicts not proven; sums as counted."""
    swept(manifest, "1.1", "1.2", "1.3")
    migrated(manifest, "1.1", "1.1.1.1", "1.1.1.2")
    planned(manifest, "1.2", "1.2.1.1", "1.2.1.2", "1.2.1.3")
    arrivals = [received("1.2", "1.2.1.1"), received("1.2", "1.2.1.2"), received("1.2", "1.2.1.2", "other"), received("1.2", "1.2.1.9")]
    manifest.commit([*(came(one) for one in arrivals), RetrieveEnded(StudyRef("1.2"), 0)])
    proven(manifest)
    document = read(manifest)
    (row,) = document["reconciliation"]["rows"]
    assert row == {"year": "2020", "modality": "CT", "said": 5, "received": 4, "proven": 3, "unlisted": 1}
    assert row["proven"] == document["instances"]["verified"]
    assert document["reconciliation"]["unasked_studies"] == 1
