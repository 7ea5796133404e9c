"""Where a study stands after odd but real sequences: what reopens it, what a signature covers, what the file refuses."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from migrate.errors import wait_factor
from migrate.manifest import Manifest, Queue, decisions
from migrate.manifest.file import now_ms
from migrate.model import (
    DestinationLost,
    Failed,
    Fixity,
    InstanceRef,
    InstanceStaged,
    InstanceState,
    InstanceStored,
    InstanceVerified,
    Item,
    Proof,
    Receipt,
    Received,
    RetrieveEnded,
    RetryPolicy,
    SeriesPlan,
    StagedLost,
    StudyConfirmed,
    StudyFound,
    StudyPlanned,
    StudyRef,
    Wanted,
    Window,
    WindowAnswered,
    WindowFailed,
    WindowJudged,
    WindowsPlanned,
)
from migrate.reports.status import is_complete
from tests.filled import IDENTITY

STUDY = StudyRef("1.2")
REF = InstanceRef("1.2", "1.2.1", "1.2.1.1")
_files = itertools.count()


@pytest.fixture
def manifest(tmp_path: Path) -> Iterator[Manifest]:
    opened = Manifest(tmp_path / "m.db", identity=IDENTITY, policy=RetryPolicy(attempts=2, first_wait_s=0, max_wait_s=0))
    opened.begin_run("run", "op", "")
    yield opened
    opened.close()


def fixity(content: int) -> Fixity:
    return Fixity(100, bytes([content]) * 32, bytes([content]) * 32, content)


def came(content: int, ref: InstanceRef = REF, *, pixels: int = 7) -> InstanceStaged:
    return InstanceStaged(
        Received(Path(f"/x/{next(_files)}"), ref, fixity(content).rolled, "1.2.3", "1.2.1", pixel_crc64=pixels), fixity(content)
    )


def quarantined(ref: InstanceRef = REF, *, content: int = 99, why: str = "cut short") -> InstanceStaged:
    claimed = (ref.study, ref.series, ref.sop)
    file = Path(f"/q/{next(_files)}-{fixity(content).dataset_sha256.hex()[:24]}.dcm")
    return InstanceStaged(Received(file, None, fixity(content).rolled, "", "", quarantine=why, claimed=claimed), fixity(content))


def proven(content: int, ref: InstanceRef = REF, *, copy: bool = False) -> list[InstanceStored | InstanceVerified]:
    item = Item(ref, fixity(content), beside=copy, copy=copy)
    return [InstanceStored(item, Receipt("k")), InstanceVerified(item, Proof.ATTESTED)]


def planned(*sops: str, claimed: int | None = None) -> list[StudyFound | StudyPlanned]:
    series = (SeriesPlan("1.2.1", "CT", sops),) if sops else ()
    return [StudyFound(STUDY, "20200101", ("CT",), claimed), StudyPlanned(STUDY, series)]


def stands(manifest: Manifest) -> tuple[str, str | None]:
    row = manifest.connection.execute("SELECT state, error FROM studies WHERE study = ?", (STUDY.study,)).fetchone()
    return (row[0], row[1])


def conflict_of(manifest: Manifest) -> int:
    return int(manifest.one("SELECT conflict FROM instance WHERE sop_uid = ?", REF.sop)[0])


def migrated(manifest: Manifest) -> None:
    manifest.commit([*planned(REF.sop, claimed=1), came(1), RetrieveEnded(STUDY, 0), *proven(1)])
    assert stands(manifest) == ("migrated", None)


def test_a_claimed_study_without_images_vanished(manifest: Manifest) -> None:
    """A row that claims instances over an empty IMAGE answer is asked again, then parked; never taken for empty."""
    manifest.commit(planned(claimed=3))
    assert stands(manifest) == ("found", "VanishedAtSource")
    manifest.commit(planned(claimed=3))
    assert stands(manifest) == ("parked", "VanishedAtSource")


def test_an_empty_study_is_migrated_by_name(manifest: Manifest) -> None:
    """No claim and no image: nothing to move, and the report can name it."""
    manifest.commit([WindowsPlanned(1, (Window(None, None, "all"),))])
    manifest.commit([StudyFound(STUDY, None, (), 0, 1), StudyPlanned(STUDY, ())])
    assert stands(manifest) == ("migrated", "EmptyAtSource")


@pytest.mark.parametrize(("date", "outside"), [(None, 0), ("19990101", 1)])
def test_only_another_date_tells_that_the_date_is_ignored(manifest: Manifest, date: str | None, outside: int) -> None:
    """Some PACSs show what has no date for every range; such a row is found, and no sign of a habit."""
    manifest.commit([WindowsPlanned(1, (Window("20200101", "20201231"),))])
    manifest.commit([StudyFound(STUDY, date, window_id=1, outside=True), WindowAnswered(1, 1)])
    assert manifest.one("SELECT study_count, outside_count FROM window") == (1, outside)


def test_an_unlisted_instance_is_proven_and_does_not_block(manifest: Manifest) -> None:
    """What comes unasked is held back until it is proven, then the study closes with it."""
    extra = InstanceRef("1.2", "1.2.9", "1.2.9.9")
    manifest.commit([*planned(REF.sop), came(1), came(2, extra), RetrieveEnded(STUDY, 0), *proven(1)])
    assert stands(manifest)[0] == "retrieved"
    manifest.commit(proven(2, extra))
    assert stands(manifest) == ("migrated", None)


def test_a_lost_object_is_fetched_again(manifest: Manifest) -> None:
    """An audit that misses an object takes `migrated` back."""
    migrated(manifest)
    manifest.commit([DestinationLost(Item(REF, fixity(1)), False, "gone")])
    assert stands(manifest)[0] == "planned"
    manifest.commit([came(1), *proven(1)])
    assert stands(manifest)[0] == "migrated"


def test_a_rewrite_that_comes_twice_is_no_conflict(manifest: Manifest) -> None:
    """A PACS that sends the same rewritten header twice in one C-MOVE has still sent one content."""
    migrated(manifest)
    manifest.commit([came(2), came(2)])
    assert (conflict_of(manifest), stands(manifest)[0]) == (0, "migrated")


def test_two_contents_within_one_move_are_a_conflict(manifest: Manifest) -> None:
    """The same pixels under two headers in one C-MOVE: both are kept, and a person has to decide."""
    manifest.commit([*planned(REF.sop), came(1), came(2), RetrieveEnded(STUDY, 0), *proven(1), *proven(2, copy=True)])
    assert (conflict_of(manifest), *stands(manifest)) == (1, "parked", "Conflict")
    assert decisions.accept(manifest, [STUDY.study], "both are kept", "j.doe") == [STUDY.study]
    assert stands(manifest)[0] == "accepted"


def test_a_kept_second_content_keeps_its_file(manifest: Manifest) -> None:
    """The second content comes again before it is stored: the file that its row promises is not taken for a repeat."""
    manifest.commit([*planned(REF.sop), came(1), came(2), RetrieveEnded(STUDY, 0), *proven(1)])
    assert manifest.commit([came(2)]).drop == []


def test_a_second_content_whose_staged_file_is_lost_is_named(manifest: Manifest) -> None:
    """Nobody can fetch that content again, so the study is parked instead of resting unnamed as retrieved."""
    lost = StagedLost(Item(REF, fixity(2), beside=True, copy=True), "gone")
    manifest.commit([*planned(REF.sop), came(1), came(2), RetrieveEnded(STUDY, 0), *proven(1), lost])
    assert stands(manifest) == ("parked", "Conflict")


def test_a_quarantined_file_blocks_until_a_sound_copy_is_proven(manifest: Manifest) -> None:
    """The sound copy alone takes the study out of parking; nobody has to say `retry`."""
    other = InstanceRef("1.2", "1.2.1", "1.2.1.2")
    manifest.commit([*planned(other.sop), came(1, other), quarantined(), RetrieveEnded(STUDY, 0), *proven(1, other)])
    assert stands(manifest) == ("parked", "Quarantined")
    manifest.commit([came(2), *proven(2)])
    assert stands(manifest)[0] == "found"
    manifest.commit([planned(other.sop, REF.sop)[1]])
    assert stands(manifest)[0] == "migrated"


def test_accepting_the_only_quarantined_file_unparks_its_study(manifest: Manifest) -> None:
    """Once every file that blocks is signed for, the study goes on by itself."""
    other = InstanceRef("1.2", "1.2.1", "1.2.1.2")
    manifest.commit([*planned(other.sop), came(1, other), quarantined(), RetrieveEnded(STUDY, 0), *proven(1, other)])
    decisions.accept(manifest, ["q1"], "a broken duplicate", "j.doe")
    assert stands(manifest)[0] == "found"
    manifest.commit([planned(other.sop)[1]])
    assert stands(manifest)[0] == "migrated"


def test_retrieve_failures_park_though_nothing_is_expected(manifest: Manifest) -> None:
    """Failures of a study that has everything park it at most once a plan; the run does not turn in circles."""
    manifest.commit([*planned(REF.sop), came(1)])
    for _ in range(2):
        manifest.commit([Failed(STUDY, "retrieve", "SourceStalled", "nothing came")])
    assert stands(manifest) == ("parked", "SourceStalled")


def test_a_stop_uses_up_no_attempt(manifest: Manifest, tmp_path: Path) -> None:
    """However often we end an attempt ourselves, the study is not parked; the next one asks for what is missing, and no more."""
    manifest.commit([*planned(REF.sop, "1.2.1.2"), came(1)])
    for _ in range(3):
        manifest.commit([RetrieveEnded(STUDY, error="Interrupted", clean=False, whole=False)])
    assert stands(manifest) == ("planned", None)
    queue = Queue(tmp_path / "m.db")
    assert queue.studies_to_retrieve(1) == [(STUDY, Wanted(False, {"1.2.1": ("1.2.1.2",)}, frozenset({"1.2.1"}), 0))]
    queue.close()


def test_an_acceptance_of_a_vanished_study_covers_only_that(manifest: Manifest) -> None:
    """When the PACS claims images again and cannot list them, the old signature does not stand for them."""
    for _ in range(2):
        manifest.commit(planned(claimed=3))
    decisions.accept(manifest, [STUDY.study], "deleted at source", "j.doe")
    manifest.commit([StudyFound(STUDY, "20200101", ("CT",), 10)])
    for _ in range(2):
        manifest.commit([Failed(STUDY, "plan", "QueryFailed", "broke off")])
    assert stands(manifest) == ("parked", "QueryFailed")


def test_an_acceptance_of_a_vanished_study_lasts_while_nothing_changes(manifest: Manifest) -> None:
    """The same claim and the same emptiness in a later sweep are what was signed."""
    for _ in range(2):
        manifest.commit(planned(claimed=3))
    decisions.accept(manifest, [STUDY.study], "deleted at source", "j.doe")
    manifest.connection.execute("UPDATE study SET state = 0, attempts = 0, stage = NULL WHERE uid = ?", (STUDY.study,))
    for _ in range(2):
        manifest.commit(planned(claimed=3))
    assert stands(manifest)[0] == "accepted"


@pytest.mark.parametrize("signed", [False, True])
def test_a_vanished_study_that_is_shown_again_is_taken_up(manifest: Manifest, signed: bool) -> None:
    """Given up, or signed for, as gone: rows that never went away change nothing, one that comes back after a sweep without it has it found again."""
    for sweep in (1, 2, 3, 4):
        manifest.commit([WindowsPlanned(sweep, (Window(None, None, "all"),))])
        if sweep == 3:
            manifest.commit([WindowAnswered(sweep, 0)])
            continue
        manifest.commit([StudyFound(STUDY, None, (), 3, sweep), WindowAnswered(sweep, 1)])
        if sweep == 1:
            manifest.commit([StudyPlanned(STUDY, ())])
            manifest.commit([StudyPlanned(STUDY, ())])
            if signed:
                decisions.accept(manifest, [STUDY.study], "deleted in 2019", "j.doe")
        assert stands(manifest)[0] == ("found" if sweep == 4 else "accepted" if signed else "parked")


def test_something_new_reopens_an_accepted_study(manifest: Manifest) -> None:
    """What the signature does not name puts the study back to work."""
    manifest.commit(planned(REF.sop))
    for _ in range(2):
        manifest.commit([RetrieveEnded(STUDY, 0)])
    decisions.accept(manifest, [STUDY.study], "the PACS cannot send it", "j.doe")
    manifest.commit([RetrieveEnded(STUDY, 0)])
    assert stands(manifest)[0] == "accepted"
    manifest.commit([quarantined(InstanceRef("1.2", "1.2.1", "1.2.1.8"))])
    assert stands(manifest)[0] == "found"


@pytest.mark.parametrize("answer", ["none", "failed", "worse"])
def test_a_windows_acceptance_is_not_carried_to_other_trouble(manifest: Manifest, answer: str) -> None:
    """A later sweep over the same dates is complete only if the signed trouble, and no other, shows again."""
    window = Window("20200101", "20200101")
    manifest.commit([WindowsPlanned(1, (window,))])
    manifest.commit([WindowAnswered(1, 500), WindowJudged(1, "caps at 500 rows", True)])
    decisions.accept(manifest, ["w1"], "checked by hand", "j.doe")
    manifest.set_meta("closed_sweep", "1")
    assert is_complete(manifest.connection)
    manifest.commit([WindowsPlanned(2, (window,))])
    manifest.set_meta("closed_sweep", "2")
    if answer == "failed":
        manifest.commit([WindowFailed(2, "QueryFailed", "broke off", retryable=False)])
    elif answer == "worse":
        manifest.commit([WindowAnswered(2, 200), WindowJudged(2, "caps at 200 rows", True)])
    assert not is_complete(manifest.connection)


def test_a_windows_acceptance_lasts_for_the_same_trouble(manifest: Manifest) -> None:
    """The next sweep shows what was signed: nobody is asked twice."""
    window = Window("20200101", "20200101")
    for sweep in (1, 2):
        manifest.commit([WindowsPlanned(sweep, (window,))])
        manifest.commit([WindowAnswered(sweep, 500), WindowJudged(sweep, "caps at 500 rows", True)])
        if sweep == 1:
            decisions.accept(manifest, ["w1"], "checked by hand", "j.doe")
    manifest.set_meta("closed_sweep", "2")
    assert is_complete(manifest.connection)


def test_planned_windows_are_planned_once(manifest: Manifest) -> None:
    """The same questions of the same sweep, committed twice, are asked once."""
    facts = [WindowsPlanned(1, (Window("20200101", "20201231"), Window(None, None, "all")))]
    manifest.commit(facts)
    manifest.commit(facts)
    assert manifest.one("SELECT count(*) FROM window") == (2,)


@pytest.mark.parametrize(
    "statement",
    [
        "REPLACE INTO event(id, kind) VALUES (1, 'nothing happened')",
        "UPDATE OR REPLACE event SET id = 2 WHERE id = 1",
        "DELETE FROM acceptance",
        "DELETE FROM revocation",
        "UPDATE revocation SET revoked_by = 'somebody'",
        "REPLACE INTO revocation SELECT id, acceptance_id, reason, 'somebody', role, revoked_at FROM revocation",
        "UPDATE acceptance SET covers = '[\"missing:1.2.1.8\"]'",
        "REPLACE INTO acceptance SELECT id, study_id, sop_uid, covers, code, reason, 'somebody', role, accepted_at FROM acceptance",
        "INSERT INTO study(uid, state, found_event, found_at, changed_at) SELECT '1.9', 3, max(found_event), 0, 0 FROM study",
        "REPLACE INTO study(uid, found_event, found_at, changed_at) SELECT '1.2', max(found_event), 0, 0 FROM study",
        "INSERT INTO study(uid, found_event, found_at, changed_at) VALUES ('1.9', 1, 0, 0)",
    ],
)
def test_signatures_and_the_log_cannot_be_rewritten(manifest: Manifest, statement: str) -> None:
    """Plain SQL by anyone neither replaces a line of the log nor a signature, and makes no study that is born migrated."""
    manifest.commit(planned(REF.sop))
    for _ in range(2):
        manifest.commit([RetrieveEnded(STUDY, 0)])
    decisions.accept(manifest, [STUDY.study], "the PACS cannot send it", "j.doe")
    decisions.revoke(manifest, [STUDY.study], "it can", "m.roe")
    plain = sqlite3.connect(manifest.path, isolation_level=None)
    try:
        with pytest.raises(sqlite3.IntegrityError, match="law"):
            plain.execute(statement)
    finally:
        plain.close()


def test_an_idle_manifest_has_nothing_under_way(manifest: Manifest) -> None:
    """A migrated study leaves no item for any stage, and its staged file may go."""
    migrated(manifest)
    queue = Queue(manifest.path)
    for state in (InstanceState.STAGED, InstanceState.STORED):
        assert list(queue.items(state, skip_series=set(), limit=9)) == []
    assert list(queue.in_staging()) == []
    queue.close()


def test_queues_of_studies_ask_by_index(manifest: Manifest) -> None:
    """What is ready, and when something falls due, is found without walking all studies."""
    manifest.commit(planned(REF.sop))
    queue = Queue(manifest.path)
    questions: list[str] = []
    queue.connection.set_trace_callback(questions.append)
    assert (queue.studies_to_plan(9), [ref for ref, _ in queue.studies_to_retrieve(9)], queue.studies_to_confirm(9)) == ([], [STUDY], [])
    queue.next_due_ms()
    queue.connection.set_trace_callback(None)
    plans = [row[3] for question in questions for row in queue.connection.execute(f"EXPLAIN QUERY PLAN {question}")]
    queue.close()
    assert sum("USING INDEX study_queue" in plan for plan in plans) == 3
    assert [plan for plan in plans if plan.startswith("SCAN study") and "INDEX" not in plan] == []


def test_an_upload_that_failed_once_does_not_keep_the_rest_from_coming(manifest: Manifest) -> None:
    """A study is asked for again once what was here of it is proven, whatever failed last."""
    other, manifest.policy = "1.2.1.2", RetryPolicy(first_wait_s=0, max_wait_s=0)
    manifest.commit([*planned(REF.sop, other, claimed=2), came(1), RetrieveEnded(STUDY, 0)])
    manifest.commit([Failed(STUDY, "upload", "PutFailed", "once")])
    queue = Queue(manifest.path)
    try:
        assert queue.studies_to_retrieve(9) == []
        manifest.commit(proven(1))
        assert [(study, list(wanted.series.values())) for study, wanted in queue.studies_to_retrieve(9)] == [(STUDY, [(other,)])]
    finally:
        queue.close()


def accepted(manifest: Manifest) -> None:
    decisions.accept(manifest, [STUDY.study], "r", "j.doe")
    assert stands(manifest)[0] == "accepted"


def test_a_third_content_is_not_what_was_signed_for(manifest: Manifest) -> None:
    """An acceptance covers the contents that there were; another one reopens the study, and is proven before anybody can sign again."""
    manifest.commit([*planned(REF.sop, claimed=1), came(1), came(2, pixels=8), RetrieveEnded(STUDY, 0), *proven(1), *proven(2, copy=True)])
    assert stands(manifest) == ("parked", "Conflict")
    accepted(manifest)
    manifest.commit([came(3, pixels=9)])
    assert stands(manifest)[0] == "found"
    manifest.commit([*planned(REF.sop, claimed=1), *proven(3, copy=True)])
    assert stands(manifest) == ("parked", "Conflict")


def test_what_was_proven_after_a_signature_is_not_covered_when_it_is_lost(manifest: Manifest) -> None:
    """Somebody signed that the PACS cannot send an image. It came after all; that the destination lost it is another matter."""
    manifest.commit([*planned(REF.sop, claimed=1), RetrieveEnded(STUDY, 0)])
    manifest.commit([RetrieveEnded(STUDY, 0)])
    accepted(manifest)
    manifest.commit([came(1), *proven(1)])
    manifest.commit([DestinationLost(Item(REF, fixity(1)), False, "gone")])
    assert stands(manifest)[0] == "found"
    manifest.commit(planned(REF.sop, claimed=1))
    for _ in range(2):
        manifest.commit([RetrieveEnded(STUDY, 0)])
    assert stands(manifest) == ("parked", "SourceIncomplete")


def test_a_study_that_grew_while_it_was_left_out_is_asked_for_again(manifest: Manifest) -> None:
    """A selection that leaves a migrated study out, and later takes it in again, does not hide what came in between."""
    migrated(manifest)
    manifest.commit([StudyFound(STUDY, "20200101", ("CT",), 2, excluded="not this year")])
    assert stands(manifest)[0] == "migrated"
    manifest.commit([StudyFound(STUDY, "20200101", ("CT",), 2)])
    assert stands(manifest)[0] == "found"


@pytest.mark.parametrize("error", ["SourceIncomplete", "SourceBusy", "MoveRefused", "ObjectRefused"])
def test_waits_fit_the_error(tmp_path: Path, error: str) -> None:
    """The first wait is as many times the usual one as the error asks for, the second twice that, none longer than the longest."""
    opened = Manifest(tmp_path / "m.db", identity=IDENTITY, policy=RetryPolicy(attempts=5, first_wait_s=100, max_wait_s=1500))
    opened.begin_run("run", "op", "")
    opened.commit([StudyFound(STUDY, None, (), None, None)])
    for usual_s in (100, 200):
        before = now_ms()
        opened.commit([Failed(STUDY, "retrieve", error, "")])
        wait_s = (opened.one("SELECT not_before FROM study")[0] - before) / 1000
        expected_s = min(usual_s * wait_factor(error), 1500)
        assert expected_s * 0.79 < wait_s < expected_s * 1.21 + 5
    opened.close()


def test_a_study_that_is_left_out_is_not_counted_as_work(manifest: Manifest) -> None:
    """The totals of a run's progress are made of what is found and not left out."""
    other = StudyRef("1.2.9")
    manifest.commit([StudyFound(STUDY, "20200101", ("CT",), 2), StudyFound(other, "20200101", ("MG",), 2, excluded="no mammograms")])
    assert manifest.studies_found == 1
@pytest.mark.parametrize(("content", "state"), [(1, "migrated"), (9, "parked")])
def test_a_file_under_another_images_uid_is_no_twin_of_that_image(manifest: Manifest, content: int, state: str) -> None:
    """The command named another image than the data set: unless it is the same data set, something else may be in quarantine only."""
    odd = quarantined(content=content, why="the SOP Instance UID is not the command's")
    manifest.commit([*planned(REF.sop, claimed=1), came(1), odd, RetrieveEnded(STUDY, 0), *proven(1)])
    assert stands(manifest)[0] == state


def test_a_study_that_turns_out_to_be_larger_is_asked_for_again(manifest: Manifest) -> None:
    """Images that no answer lists and that come after the attempt ended tell that its list is short: what is claimed and still lacking is asked for."""
    manifest.asks_again = True
    manifest.commit([*planned(REF.sop, claimed=3), came(1), RetrieveEnded(STUDY, 0), *proven(1)])
    assert stands(manifest)[0] == "retrieved"
    other = InstanceRef("1.2", "1.2.1", "1.2.1.2")
    manifest.commit([came(2, other), *proven(2, other)])
    manifest.commit([StudyConfirmed(StudyPlanned(STUDY, (SeriesPlan("1.2.1", "CT", (REF.sop,)),)))])
    assert stands(manifest)[0] == "found"


def test_a_disk_that_spoils_every_file_is_not_fed_without_end(manifest: Manifest) -> None:
    """The same image lost in staging as often as there are attempts: the study is parked, though each time the PACS has sent all of it."""
    manifest.commit(planned(REF.sop, claimed=1))
    for state in ("planned", "parked"):
        manifest.commit([came(1), RetrieveEnded(STUDY, 0)])
        manifest.commit([StagedLost(Item(REF, fixity(1)), "other bytes")])
        assert stands(manifest)[0] == state
    assert stands(manifest)[1] == "StagedFileLost"
