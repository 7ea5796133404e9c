"""Whole runs against a PACS with one bad manner for each study: every end state is right, every image that is lacking is named."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from migrate.practice.holdings import PATH
from migrate.practice.pacs import PracticePacs
from migrate.practice.records import StudyRecord
from migrate.practice.studies import Archive
from tests.ports import free_port
from tests.runs import command, configure, data_sets

NONE, LAST, MIDDLE, ALL = "", "last", "middle", "all"


@dataclass(frozen=True)
class Misdeed:
    """What a PACS does with one study (faults of the practice PACS), and how that study must end."""

    name: str
    faults: str
    state: str = "migrated"
    error: str | None = None
    missing: str = NONE
    conflict: str = NONE
    quarantined: int = 0


MISDEEDS = (  # the longest first
    Misdeed("one byte at a time", "drip=0.2", "parked", "SourceStalled", missing=MIDDLE),
    Misdeed("a C-MOVE that is never answered", "never-answers", "parked", "SourceStalled", missing=ALL),
    Misdeed("headers rewritten at each retrieval", "rewrites-headers whole-study skip-first"),
    Misdeed("one image left out twice", "skip-first=2"),
    Misdeed("abort amid a store", "abort-store"),
    Misdeed("abort amid a store, twice", "abort-store=2"),
    Misdeed("reset amid a store", "reset-store"),
    Misdeed("half a PDU, then silence", "half-pdu"),
    Misdeed("every image twice", "twice"),
    Misdeed("final answer before the stores", "early-success"),
    Misdeed("final answer before the stores, without counters", "early-success null-counters"),
    Misdeed("final answer before the stores, counters zero", "early-success zero-counters"),
    Misdeed("stores after we gave up", "late-stores=1.2"),
    Misdeed("never a final answer", "never-final"),
    Misdeed("counters absent", "null-counters"),
    Misdeed("counters zero", "zero-counters"),
    Misdeed("counters wrong", "wrong-counters"),
    Misdeed("counters beyond 16 bits", "wrapped-counters"),
    Misdeed("stores that name no C-MOVE", "no-move-originator"),
    Misdeed("out of resources for now (A702)", "move-busy"),
    Misdeed("even and repeated context IDs", "even-contexts"),
    Misdeed("private SOP class and transfer syntax", "private-class"),
    Misdeed("200 SOP classes, several associations", "many-classes"),
    Misdeed("one SOP UID under two studies", "shared-sop"),
    Misdeed("a multi-frame image of 32 MiB", "huge-image=32"),
    Misdeed("study grows meanwhile", "growing"),
    Misdeed("Success, nothing sent", "success-nothing-sent", "parked", "SourceIncomplete", missing=ALL),
    Misdeed("one image never sent", "skip-one", "parked", "SourceIncomplete", missing=LAST),
    Misdeed("B000, failed image named", "failed-image", "parked", "SourceIncomplete", missing=LAST),
    Misdeed("B000, failed image not named", "failed-unnamed", "parked", "SourceIncomplete", missing=LAST),
    Misdeed("B000, another image named", "failed-misnamed", "parked", "SourceIncomplete", missing=LAST),
    Misdeed("A702", "move-status=A702", "parked", "SourceBusy", missing=ALL),
    Misdeed("A801, for this study only", "move-unknown", "parked", "MoveFailed", missing=ALL),
    Misdeed("A900", "move-status=A900", "parked", "MoveRefused", missing=ALL),
    Misdeed("C001", "move-status=C001", "parked", "MoveRefused", missing=ALL),
    Misdeed("0110", "move-status=0110", "parked", "MoveRefused", missing=ALL),
    Misdeed("FE00 unasked", "move-status=FE00", "parked", "MoveRefused", missing=ALL),
    Misdeed("B000, nothing sent", "move-status=B000", "parked", "SourceIncomplete", missing=ALL),
    Misdeed("same three UIDs, other bytes", "other-bytes", "parked", "Conflict", conflict=LAST),
    Misdeed("truncated data set", "truncated", "parked", "SourceIncomplete", missing=LAST, quarantined=1),
    Misdeed("a path for a UID in the data set", "path-uids", "parked", "SourceIncomplete", missing=LAST, quarantined=1),
    Misdeed("a path for a UID in the list", "path-rows", "parked", "Quarantined", quarantined=1),
    Misdeed("command UID unlike the data set's", "other-command-uid", "parked", "SourceIncomplete", missing=LAST, quarantined=1),
    Misdeed("command class unlike the data set's", "other-command-class", "parked", "SourceIncomplete", missing=LAST, quarantined=1),
    Misdeed("study loses an image meanwhile", "shrinking", "parked", "SourceIncomplete", missing="lost"),
    Misdeed("study vanishes before it is listed", "vanishing", "parked", "VanishedAtSource"),
    Misdeed("an image that breaks every association", "abort-store-always", "parked", "SourceIncomplete", missing=MIDDLE),
    Misdeed("study vanishes before it is sent", "vanishing-later", "parked", "VanishedAtSource", missing=ALL),
)
ARCHIVE = Archive(110)
_ENOUGH = sorted(
    (study for study in ARCHIVE if study.instance_count >= 4 and ARCHIVE.study(max(study.number - 1, 0)).shape), key=lambda study: study.instance_count
)
STUDIES: dict[str, StudyRecord] = {misdeed.name: study for misdeed, study in zip(MISDEEDS, _ENOUGH, strict=False)}
assert len(STUDIES) == len(MISDEEDS)
SOURCE = "associations = 6\nsettle_s = 0.3\nstall_s = 1\nattempt_s = 10"
RETRY = "attempts = 2\nfirst_wait_s = 0.05\nmax_wait_s = 0.1"


@dataclass
class Ended:
    """What a run left behind."""

    folder: Path
    code: int
    said: str
    report: Any
    pacs: PracticePacs
    objects: dict[tuple[str, str, str], bytes]


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ended]:
    """One run in which each misdeed is done to a study of its own, and none to the others."""
    folder = tmp_path_factory.mktemp("misdeeds")
    faults = [f"{fault}@{STUDIES[misdeed.name].number}" for misdeed in MISDEEDS for fault in misdeed.faults.split()]
    receiver = free_port()
    with PracticePacs(ARCHIVE, destinations={"PACSMIGRATE": ("127.0.0.1", receiver)}, faults=faults) as pacs:
        configure(folder, pacs.port, receiver, source=SOURCE, retry=RETRY)
        done = command(folder, "run", "--json")
        report = json.loads(command(folder, "report", "--json").stdout)
        yield Ended(folder, done.returncode, done.stdout + done.stderr, report, pacs, data_sets(folder))


def named(misdeed: Misdeed, what: str, pacs: PracticePacs) -> list[str]:
    """The SOP Instance UIDs of a study that a word stands for."""
    study = STUDIES[misdeed.name]
    sops = [image.sop for series in study.series for image in series.instances]
    return {NONE: [], LAST: sops[-1:], MIDDLE: [sops[len(sops) // 2]], ALL: sops, "lost": sorted(pacs.holdings.lost & set(sops))}[what]


@pytest.mark.parametrize("misdeed", MISDEEDS, ids=lambda misdeed: misdeed.name)
def test_each_ends_as_it_must(ended: Ended, misdeed: Misdeed) -> None:
    """The state, the error and the names are right; what is proven is, byte for byte, what the PACS has."""
    study = STUDIES[misdeed.name]
    entries = [entry for entry in ended.report["exceptions"] if entry["study"] == study.uid]
    state, error = (entries[0]["state"], entries[0]["error"]) if entries else ("migrated", None)
    assert (state, error) == (misdeed.state, misdeed.error), entries
    missing, conflict = (named(misdeed, what, ended.pacs) for what in (misdeed.missing, misdeed.conflict))
    if misdeed.faults == "path-rows":
        assert json.dumps(PATH) in entries[0]["detail"]
    if entries:
        (entry,) = entries
        assert (sorted(entry["missing"]), sorted(entry["conflict"])) == (sorted(missing), sorted(conflict))
        assert len(entry["quarantined"]) == misdeed.quarantined
    truth = {}
    record = ended.pacs.holdings.study(study.number)
    for series in record.series:
        for image in series.instances:
            if image.sop == PATH:  # kept in quarantine
                continue
            more = {0x00080080: ("LO", "PRACTICE 1")} if "rewrites-headers" in misdeed.faults else {}
            digest = hashlib.sha256(b"".join(ended.pacs.holdings.pieces(image, more))).digest()
            truth[study.uid, series.uid, image.sop] = digest
    if misdeed.missing == ALL or misdeed.error == "VanishedAtSource":
        truth = {}
    objects = {uids: digest for uids, digest in ended.objects.items() if uids[0] == study.uid}
    beside = {uids: objects.pop(uids) for uids in list(objects) if "~" in uids[2]}
    assert len(beside) == len(conflict)
    assert objects == {uids: digest for uids, digest in truth.items() if uids[2] not in missing}


def test_the_run_goes_on(ended: Ended) -> None:
    """The studies to which nothing is done arrive whole, nothing false is claimed, no file lies where a hostile UID points."""
    assert ended.code == 3, ended.said
    assert "Traceback" not in ended.said
    assert ended.report["complete"] is False
    struck = {study.uid for study in STUDIES.values()}
    assert {uids: digest for uids, digest in ended.objects.items() if uids[0] not in struck} == {
        (study, series, sop): digest for study, series, sop, digest in ARCHIVE.truth() if study not in struck
    }
    parked = {STUDIES[misdeed.name].uid for misdeed in MISDEEDS if misdeed.state == "parked"}
    assert {entry["study"] for entry in ended.report["exceptions"] if entry["state"] == "parked"} == parked
    assert not list(ended.folder.rglob("*escaped*")) and not Path(PATH).exists()


def documented(misdeed: Misdeed) -> str:
    """The misdeed's line in docs/reliability.md."""
    ends = "all arrives"
    if misdeed.state == "parked":
        named = {LAST: "the last image", MIDDLE: "that image alone", ALL: "all its images", "lost": "the lost image"}
        what = [f"{named[misdeed.missing]} missing"] if misdeed.missing else []
        what += [f"{named[misdeed.conflict]} in conflict"] if misdeed.conflict else []
        what += ["its file in quarantine"] if misdeed.quarantined else []
        ends = f"`{misdeed.error}`: {', '.join(what) or 'nothing is known of its images'}"
    return f"| {misdeed.name} | `{misdeed.faults}` | {ends} |"


def test_the_table_in_the_manual_has_each() -> None:
    """docs/reliability.md says of each misdeed which fault it is and how it ends, and of no other."""
    text = (Path(__file__).parents[2] / "docs" / "reliability.md").read_text(encoding="utf-8")
    table = text.partition("| Misdeed | Fault | Its study ends |\n|---|---|---|\n")[2].partition("\n\n")[0]
    assert table.splitlines() == [documented(misdeed) for misdeed in MISDEEDS]


def run_with(folder: Path, archive: Archive, *faults: str, port: int, retry: str, source: str = "associations = 2\nsettle_s = 0.1") -> tuple[int, str, Any]:
    """A run and where things stand then, against a PACS that ends with it."""
    receiver = free_port()
    with PracticePacs(archive, destinations={"PACSMIGRATE": ("127.0.0.1", receiver)}, faults=faults, port=port) as pacs:
        configure(folder, pacs.port, receiver, source=source, retry=retry)
        done = command(folder, "run", "--json")
        return done.returncode, done.stderr, json.loads(done.stdout or command(folder, "status", "--json").stdout)


@pytest.mark.parametrize(
    ("fault", "error"),
    [("busy=1000000", "takes no association for now"), ("stops-sending=4", "has sent nothing of the last")],
    ids=["rejected for an hour", "nothing is sent any more"],
)
def test_a_pacs_that_has_had_enough(tmp_path: Path, fault: str, error: str) -> None:
    """After `unreachable_s` the run ends with 20; no study is given up for it, and the next run goes on to the end."""
    archive, port = Archive(9), free_port()
    retry = "attempts = 2\nfirst_wait_s = 2\nmax_wait_s = 2\nunreachable_s = 0.2"
    code, said, status = run_with(tmp_path, archive, fault, port=port, retry=retry)
    assert code == 20 and error in said and "Hint" in said, said
    assert status["studies"]["parked"] == 0
    code, said, _ = run_with(tmp_path, archive, port=port, retry=retry)
    assert code == 0, said
    assert data_sets(tmp_path) == {(study, series, sop): digest for study, series, sop, digest in archive.truth()}


@pytest.mark.parametrize("fault", ["busy=2", "association-limit=1"], ids=["rejected for a while", "one association at a time"])
def test_a_pacs_that_is_busy(tmp_path: Path, fault: str) -> None:
    """Associations that are rejected for now are asked for again, and use up no attempt."""
    archive = Archive(6)
    code, said, _ = run_with(tmp_path, archive, fault, port=0, retry="attempts = 1")
    assert code == 0, said
    assert data_sets(tmp_path) == {(study, series, sop): digest for study, series, sop, digest in archive.truth()}


def test_a_pacs_that_ends_its_associations_between_two_questions(tmp_path: Path) -> None:
    """An association may end before any question: what was asked is asked over another one, and uses up no attempt."""
    archive = Archive(6)
    code, said, _ = run_with(tmp_path, archive, "few-questions", port=0, retry="attempts = 1")
    assert code == 0, said
    assert data_sets(tmp_path) == {(study, series, sop): digest for study, series, sop, digest in archive.truth()}


def test_an_attempt_has_an_end_while_images_keep_coming(tmp_path: Path) -> None:
    """A PACS that sends on and on, an image now and then, is cut off after `attempt_s`; what came is kept and proven, and only the rest is asked for again."""
    archive, port = Archive(1, shapes={0: (("CT", 12),)}), free_port()
    source, retry = "associations = 1\nsettle_s = 0.1\nattempt_s = 3", "attempts = 1"
    code, said, status = run_with(tmp_path, archive, "slow-answers=0.5", port=port, source=source, retry=retry)
    assert code == 3, said
    assert [(entry["error"], "longer than 3 s" in entry["detail"]) for entry in status["parked"]] == [("SourceStalled", True)], status
    came = data_sets(tmp_path)
    assert 0 < len(came) < 12 and status["instances"]["verified"] == len(came)
    assert command(tmp_path, "retry").returncode == 0
    assert run_with(tmp_path, archive, port=port, source=source, retry=retry)[0] == 0
    assert data_sets(tmp_path) == {(study, series, sop): digest for study, series, sop, digest in archive.truth()}


@pytest.mark.parametrize("fault", ["never-answers@1", "half-pdu=9@1"], ids=["no answer", "half a PDU"])
def test_silence_ends_an_attempt_long_before_its_time_is_over(tmp_path: Path, fault: str) -> None:
    """Nothing at all for `stall_s` is enough, be it before the first image or amid one; the other study is not kept waiting."""
    archive = Archive(2, shapes={0: (("CR", 1),), 1: (("CR", 1),)})
    code, said, status = run_with(tmp_path, archive, fault, port=0, source="settle_s = 0.1\nstall_s = 1\nattempt_s = 600", retry="attempts = 1")
    assert code == 3, said
    assert [(entry["study"], entry["error"]) for entry in status["parked"]] == [(archive.study(1).uid, "SourceStalled")], status
    assert "Nothing came from the PACS for 1 s" in status["parked"][0]["detail"]
    assert status["studies"]["migrated"] == 1


def test_many_dead_studies_are_not_a_dead_pacs(tmp_path: Path) -> None:
    """Half a dozen studies in a row that are never sent are parked one by one, in a first run and in one that has nothing else to do."""
    archive, dead, port = Archive(9), range(6), free_port()
    faults = [f"success-nothing-sent@{number}" for number in dead]
    parked = {archive.study(number).uid for number in dead}
    for again in (False, True):
        if again:
            assert command(tmp_path, "retry").returncode == 0
        code, said, status = run_with(tmp_path, archive, *faults, port=port, retry="attempts = 1")
        assert code == 3, said
        assert {entry["study"] for entry in status["parked"]} == parked
        assert status["studies"]["migrated"] == len(archive) - len(parked)
