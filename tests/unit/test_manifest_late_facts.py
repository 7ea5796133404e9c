"""Facts that come late, again, or against each other: what is better known stands, and what is new is noticed."""

from __future__ import annotations

from pathlib import Path

import pytest

from migrate.errors import UsageError
from migrate.manifest import Manifest
from migrate.manifest.decisions import accept
from migrate.manifest.file import now_ms
from migrate.model import (
    DestinationLost,
    Failed,
    InstanceRef,
    InstanceStaged,
    InstanceStored,
    InstanceVerified,
    Item,
    Proof,
    Receipt,
    Received,
    RetrieveEnded,
    SeriesPlan,
    StudyConfirmed,
    StudyFound,
    StudyPlanned,
    StudyRef,
    Window,
    WindowAnswered,
    WindowsPlanned,
)
from tests.filled import came, fixity, migrated, planned, read, received, swept

STUDY = StudyRef("1.1")
REF = InstanceRef("1.1", "1.1.1", "1.1.1.1")


def instance(manifest: Manifest, *columns: str) -> tuple[object, ...]:
    return tuple(manifest.one(f"SELECT {', '.join(columns)} FROM instance WHERE sop_uid = ?", REF.sop))


def study(manifest: Manifest, *columns: str) -> tuple[object, ...]:
    return tuple(manifest.one(f"SELECT {', '.join(columns)} FROM studies WHERE study = ?", STUDY.study))


def test_a_file_in_quarantine_reopens_a_study_that_is_done(manifest: Manifest) -> None:
    """What comes of a migrated study and cannot be read has it wait for a person, and nothing is complete before."""
    swept(manifest, STUDY.study)
    migrated(manifest, STUDY.study, REF.sop)
    assert read(manifest)["complete"] is True
    unreadable = Received(Path("/q/1"), None, fixity("?").rolled, "", "", quarantine="cut short", claimed=(STUDY.study, "1.1.1", "1.1.1.2"))
    manifest.commit([InstanceStaged(unreadable, fixity("?"))])
    assert study(manifest, "state", "error") == ("parked", "Quarantined")
    assert read(manifest)["complete"] is False


def test_a_second_content_that_comes_again_takes_no_step_back(manifest: Manifest) -> None:
    """It is put already: its row stays stored, under the seal that it was received under."""
    planned(manifest, STUDY.study, REF.sop)
    manifest.commit([came(received(STUDY.study, REF.sop, "a")), came(received(STUDY.study, REF.sop, "b")), RetrieveEnded(STUDY, 0)])
    manifest.commit([InstanceStored(Item(REF, fixity(REF.sop + "b"), beside=True, copy=True), Receipt("k"))])
    before = manifest.one("SELECT state, staged_seal, stored_seal FROM copy")
    assert before[0] == 2
    manifest.commit([came(received(STUDY.study, REF.sop, "b"))])
    assert manifest.one("SELECT state, staged_seal, stored_seal FROM copy") == before


def test_a_weaker_proof_takes_nothing_from_a_stronger_one(manifest: Manifest) -> None:
    """What was read back stays read back when the store attests it later; the other way round the proof is raised."""
    swept(manifest, STUDY.study)
    migrated(manifest, STUDY.study, REF.sop, proof=Proof.ATTESTED)
    item = Item(REF, fixity(REF.sop))
    for proof in (Proof.READ_BACK, Proof.ATTESTED):
        manifest.commit([InstanceVerified(item, proof)])
        assert instance(manifest, "proof") == (Proof.READ_BACK,)


def test_a_taken_key_sends_a_staged_file_beside_it(manifest: Manifest) -> None:
    """Other bytes stand under its key before it was ever put: it stays staged, goes beside them, and is in conflict."""
    planned(manifest, STUDY.study, REF.sop)
    manifest.commit([came(received(STUDY.study, REF.sop)), RetrieveEnded(STUDY, 0)])
    manifest.commit([DestinationLost(Item(REF, fixity(REF.sop)), True, "other bytes", file_kept=True)])
    assert instance(manifest, "state", "beside", "conflict") == (1, 1, 1)


def test_only_a_window_that_blocks_is_signed_for(manifest: Manifest) -> None:
    """A signature for one that was answered whole is refused, and leaves no trace."""
    window = swept(manifest, STUDY.study)
    with pytest.raises(UsageError, match="does not block"):
        accept(manifest, [f"w{window}"], "why not", "J. Doe")
    assert manifest.one("SELECT accepted_by FROM window WHERE id = ?", window) == (None,)


@pytest.mark.parametrize("claims", [(3, 2), (2, 3)])
def test_of_two_claims_in_one_sweep_the_larger_counts(manifest: Manifest, claims: tuple[int, int]) -> None:
    """Rows of one study that contradict each other: the list is held against the larger number, whichever came first."""
    manifest.commit([WindowsPlanned(1, (Window("20200101", "20201231"), Window(None, None, "all")))])
    manifest.commit([StudyFound(STUDY, "20200505", ("CT",), claims[0], 1), WindowAnswered(1, 1)])
    manifest.commit([StudyFound(STUDY, "20200505", ("CT",), claims[1], 2), WindowAnswered(2, 1)])
    assert study(manifest, "claimed_instances") == (3,)


def test_a_wait_that_a_clock_set_back_has_made_too_long_is_over(manifest: Manifest) -> None:
    """What is put off for longer than the policy ever does is due at once; an ordinary wait goes on."""
    swept(manifest, "1.1", "1.2")
    soon, never = now_ms() + 1000, now_ms() + 10 * round(manifest.policy.max_wait_s * 1000)
    for uid, due in (("1.1", never), ("1.2", soon)):
        manifest.execute("UPDATE study SET not_before = ? WHERE uid = ?", due, uid)
    manifest.shorten_waits()
    assert manifest.execute("SELECT not_before FROM study ORDER BY uid").fetchall() == [(1,), (soon,)]


def test_a_plan_that_comes_again_changes_nothing(manifest: Manifest) -> None:
    """An answer for a study that is planned already, as after a kill between commit and reply, neither adds images nor wipes an attempt."""
    swept(manifest, STUDY.study)
    planned(manifest, STUDY.study, REF.sop)
    manifest.commit([StudyPlanned(STUDY, (SeriesPlan("1.1.1", "CT", (REF.sop, "1.1.1.9")),))])
    assert manifest.one("SELECT count(*) FROM instance") == (1,)


def test_a_last_look_that_comes_too_late_changes_nothing(manifest: Manifest) -> None:
    """The study is migrated meanwhile: what that answer shows is asked for by the next sweep, if it is still so."""
    swept(manifest, STUDY.study)
    migrated(manifest, STUDY.study, REF.sop)
    manifest.commit([StudyConfirmed(StudyPlanned(STUDY, (SeriesPlan("1.1.1", "CT", (REF.sop, "1.1.1.9")),)))])
    assert study(manifest, "state") == ("migrated",)
    assert manifest.one("SELECT count(*) FROM instance") == (1,)


def test_what_no_other_try_can_mend_is_parked_at_once(manifest: Manifest) -> None:
    """A failure that is not to be tried again uses up no further attempts, however many there are."""
    manifest.policy = type(manifest.policy)(attempts=5)
    swept(manifest, STUDY.study)
    manifest.commit([Failed(STUDY, "plan", "SourceRefused", "no", retryable=False)])
    assert study(manifest, "state", "attempts") == ("parked", 1)
