"""A state machine over the manifest: facts in any order, repeated, with decisions of people and restarts in between."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from migrate.errors import UsageError
from migrate.manifest import Manifest, decisions
from migrate.model import (
    INSTANCE_TRANSITIONS,
    STUDY_TRANSITIONS,
    DestinationLost,
    Failed,
    Fixity,
    InstanceRef,
    InstanceStaged,
    InstanceStored,
    InstanceVerified,
    Item,
    Outcome,
    Proof,
    Receipt,
    Received,
    RetrieveEnded,
    RetryPolicy,
    SeriesPlan,
    StagedLost,
    StudyFound,
    StudyPlanned,
    StudyRef,
    StudyState,
    Window,
    WindowsPlanned,
)
from tests.filled import IDENTITY

REFS = st.builds(lambda s, r, i: InstanceRef(f"1.{s}", f"1.{s}.{r}", f"1.{s}.{r}.{i}"), *[st.integers(1, 2)] * 3)
STUDIES = st.builds(lambda s: StudyRef(f"1.{s}"), st.integers(1, 2))
CONTENTS = st.integers(1, 3)
COLUMNS = {
    "study": "uid, state, claimed_instances, listed_instances, retrieve_ended",
    "series": "id, study_id, uid, modality, expected, staged, stored, verified",
    "instance": "series_id, sop_uid, state, listed, conflict, beside, size_bytes, dataset_sha256, file_sha256, crc64nvme, proof, version",
    "copy": "series_id, sop_uid, dataset_sha256, state, proof",
    "quarantine": "file, study_uid, sop_uid, accepted_by",
    "acceptance": "study_id, covers, accepted_by",
}


def is_attempt(fact: Outcome) -> bool:
    """One more attempt counts as one more, so that its repeat is no replay; an empty answer may be one."""
    return isinstance(fact, (Failed, RetrieveEnded)) or (isinstance(fact, StudyPlanned) and not fact.series)


def fixity(content: int) -> Fixity:
    return Fixity(100 + content, bytes([content]) * 32, bytes([content + 9]) * 32, content)


def plan(study: StudyRef, series: int, sops: int) -> StudyPlanned:
    listed = tuple(f"{study.study}.{series}.{number}" for number in range(1, sops + 1))
    return StudyPlanned(study, (SeriesPlan(f"{study.study}.{series}", "CT", listed),) if sops else ())


def came(ref: InstanceRef, content: int) -> InstanceStaged:
    return InstanceStaged(
        Received(Path(f"/x/{content}"), ref, fixity(content).rolled, "1.2", "1.2.1", pixel_crc64=content // 2), fixity(content)
    )


def spoilt(ref: InstanceRef, content: int) -> InstanceStaged:
    claimed = (ref.study, ref.series, ref.sop)
    return InstanceStaged(
        Received(Path(f"/q/{ref.sop}-{content}"), None, fixity(content).rolled, "", "", quarantine="cut", claimed=claimed), fixity(content)
    )


ITEMS = st.builds(lambda ref, content, copy: Item(ref, fixity(content), copy, copy), REFS, CONTENTS, st.booleans())
FACTS: st.SearchStrategy[Outcome] = st.one_of(
    st.builds(lambda study, claimed, window: StudyFound(study, "20200101", ("CT",), claimed, window), STUDIES,
              st.sampled_from([None, 0, 2]), st.sampled_from([None, 1, 2])),
    st.builds(plan, STUDIES, st.integers(1, 2), st.integers(0, 2)),
    st.builds(came, REFS, CONTENTS),
    st.builds(spoilt, REFS, CONTENTS),
    st.builds(lambda study: RetrieveEnded(study, 0), STUDIES),
    st.builds(lambda item: InstanceStored(item, Receipt("k", "v1")), ITEMS),
    st.builds(InstanceVerified, ITEMS, st.sampled_from([Proof.ATTESTED, Proof.READ_BACK])),
    st.builds(lambda item: StagedLost(item, "gone"), ITEMS),
    st.builds(lambda item, differs, kept: DestinationLost(item, differs, "gone", kept), ITEMS, st.booleans(), st.booleans()),
    st.builds(lambda study, stage, again: Failed(study, stage, "PutFailed", "no", again), STUDIES,
              st.sampled_from(["plan", "retrieve", "upload"]), st.booleans()),
)  # fmt: skip


class Law(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="law-"))
        self.manifest = self.opened()
        for sweep in (1, 2):
            self.manifest.commit([WindowsPlanned(sweep, (Window(None, None, "all"),))])
        # every step that any code takes is seen by a trigger of the test's own
        self.manifest.connection.executescript(
            "CREATE TABLE step(entity, a, b); "
            "CREATE TRIGGER t1 AFTER UPDATE OF state ON study WHEN OLD.state <> NEW.state BEGIN "
            "INSERT INTO step VALUES ('study', OLD.state, NEW.state); END; "
            "CREATE TRIGGER t2 AFTER UPDATE OF state ON instance WHEN OLD.state <> NEW.state BEGIN "
            "INSERT INTO step VALUES ('instance', OLD.state, NEW.state); END;"
        )

    def opened(self) -> Manifest:
        manifest = Manifest(self.folder / "m.db", identity=IDENTITY, policy=RetryPolicy(attempts=2, first_wait_s=0, max_wait_s=0))
        manifest.begin_run("run", "op", "")
        manifest.own_sweep = 2
        manifest.connection.execute("PRAGMA synchronous=OFF")  # thousands of commits; durability is shown elsewhere
        return manifest

    def rows(self) -> dict[str, list[tuple[object, ...]]]:
        return {t: self.manifest.connection.execute(f"SELECT {c} FROM {t} ORDER BY 1, 2").fetchall() for t, c in COLUMNS.items()}

    @rule(batch=st.lists(FACTS, min_size=1, max_size=5))
    def commit(self, batch: list[Outcome]) -> None:
        self.manifest.commit(batch)

    @rule(ref=REFS, content=CONTENTS)
    def the_regular_way(self, ref: InstanceRef, content: int) -> None:
        item = Item(ref, fixity(content))
        self.manifest.commit([came(ref, content)])
        self.manifest.commit([InstanceStored(item, Receipt("k")), InstanceVerified(item, Proof.ATTESTED)])
        self.manifest.commit([RetrieveEnded(StudyRef(ref.study), 0)])

    @rule(fact=FACTS)
    def replay(self, fact: Outcome) -> None:
        self.manifest.commit([fact])
        if not is_attempt(fact):
            before = self.rows()
            self.manifest.commit([fact])
            assert self.rows() == before

    @rule(study=STUDIES)
    def accept(self, study: StudyRef) -> None:
        before = self.rows()
        parked = (study.study, int(StudyState.PARKED)) in [row[:2] for row in before["study"]]
        try:
            done = decisions.accept(self.manifest, [study.study], "known", "j.doe")
            assert parked and done == [study.study]
        except UsageError:
            assert not parked and self.rows() == before

    @rule(error=st.sampled_from([None, "PutFailed", "NoSuchError"]))
    def retry(self, error: str | None) -> None:
        parked = self.manifest.one("SELECT count(*) FROM study WHERE state = 5 AND (? IS NULL OR error = ?)", error, error)[0]
        assert decisions.retry(self.manifest, error, []) == parked

    @rule()
    def restart(self) -> None:
        before = self.rows()
        self.manifest.close()
        self.manifest = self.opened()
        assert self.rows() == before

    @invariant()
    def tallies_equal_a_recount(self) -> None:
        wrong = self.manifest.connection.execute(
            "SELECT id FROM series LEFT JOIN instance ON series_id = id GROUP BY id HAVING "
            "expected <> total(state = 0) OR staged <> total(state = 1) OR stored <> total(state = 2) OR verified <> total(state = 3)"
        ).fetchall()
        assert wrong == []

    @invariant()
    def migrated_means_proven(self) -> None:
        unproven = self.manifest.connection.execute(
            "SELECT study.uid FROM study JOIN series ON study_id = study.id JOIN instance ON series_id = series.id "
            "WHERE study.state = 3 AND (instance.state < 3 OR conflict = 1)"
        ).fetchall()
        spoilt = self.manifest.connection.execute(
            "SELECT file FROM quarantine JOIN study ON study.uid = study_uid WHERE study.state = 3 AND accepted_by IS NULL AND NOT EXISTS "
            "(SELECT 1 FROM instance JOIN series ON series.id = series_id WHERE study_id = study.id AND sop_uid = quarantine.sop_uid "
            "AND instance.state = 3)"
        ).fetchall()
        assert (unproven, spoilt) == ([], [])

    @invariant()
    def nothing_rests_unnamed(self) -> None:
        """A retrieved study has something under way, or it would wait for ever without a name."""
        idle = self.manifest.connection.execute(
            "SELECT uid FROM study WHERE state = 2 AND NOT EXISTS (SELECT 1 FROM series WHERE study_id = study.id AND staged + stored > 0) "
            "AND NOT EXISTS (SELECT 1 FROM copy JOIN series ON series.id = series_id WHERE study_id = study.id AND copy.state IN (1, 2))"
        ).fetchall()
        assert idle == []

    @invariant()
    def only_lawful_steps(self) -> None:
        steps = set(self.manifest.connection.execute("SELECT * FROM step").fetchall())
        lawful = {("study", int(a), int(b)) for a, b in STUDY_TRANSITIONS}
        lawful |= {("instance", int(a), int(b)) for a, b in INSTANCE_TRANSITIONS}
        assert steps <= lawful

    def teardown(self) -> None:
        self.manifest.close()
        shutil.rmtree(self.folder)


TestLaw = Law.TestCase
TestLaw.settings = settings(max_examples=150, stateful_step_count=40)
