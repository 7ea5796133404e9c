"""What happens to a study's row: found, planned, an attempt ended, an attempt failed."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from migrate.manifest.file import now_ms
from migrate.model import Failed, RetrieveEnded, StudyFound, StudyPlanned, StudyState

if TYPE_CHECKING:
    from migrate.manifest.store import Manifest


def found(manifest: Manifest, row_shown: StudyFound) -> None:
    """A STUDY row: a new study, or one whose claim changed and that is planned anew."""
    sweep = None
    if row_shown.window_id is not None:
        sweep = manifest.one("SELECT sweep FROM window WHERE id = ?", row_shown.window_id)[0]
    modalities = "\\".join(row_shown.modalities)
    row = manifest.one("SELECT id, state, claimed_instances, seen_sweep FROM study WHERE uid = ?", row_shown.study.study)
    if row is None:
        now = now_ms()
        manifest.execute(
            "INSERT INTO study(uid, date, modalities, claimed_instances, found_sweep, seen_sweep, found_at, changed_at) VALUES (?,?,?,?,?,?,?,?)",
            row_shown.study.study, row_shown.date, modalities, row_shown.claimed_instances, sweep, sweep, now, now,
        )  # fmt: skip
        return
    study_id, state, claimed, seen = row
    manifest.execute(
        "UPDATE study SET seen_sweep = max(coalesce(seen_sweep, 0), ?), found_sweep = coalesce(found_sweep, ?), "
        "date = coalesce(?, date), modalities = CASE WHEN ? = '' THEN modalities ELSE ? END, claimed_instances = coalesce(?, claimed_instances) WHERE id = ?",
        sweep or 0, sweep, row_shown.date, modalities, modalities, row_shown.claimed_instances, study_id,
    )  # fmt: skip
    changed = row_shown.claimed_instances is not None and row_shown.claimed_instances != claimed
    unclaimed = row_shown.claimed_instances is None and sweep is not None and sweep == manifest.first_sweep and seen != sweep
    if ((changed or unclaimed) and state in (
        StudyState.PLANNED,
        StudyState.RETRIEVED,
        StudyState.MIGRATED,
        StudyState.ACCEPTED,
    )) or (changed and state == StudyState.PARKED):
        manifest.set_state(study_id, StudyState.FOUND)


def planned(manifest: Manifest, plan: StudyPlanned) -> None:
    """All IMAGE rows: what was listed once stays on the list, an empty answer is empty only where nothing was claimed."""
    study_id = manifest.study_id(plan.study.study)
    state, claimed, found_sweep = manifest.one(
        "SELECT state, claimed_instances, found_sweep FROM study WHERE id = ?", study_id
    )
    if state != StudyState.FOUND:
        return  # replayed
    listed = sum(len(series.sops) for series in plan.series)
    before = manifest.one(
        "SELECT count(*) FROM instance JOIN series ON series.id = series_id WHERE study_id = ? AND listed = 1",
        study_id,
    )[0]
    open_before = manifest.one("SELECT coalesce(sum(expected), 0) FROM series WHERE study_id = ?", study_id)[0]
    if listed == 0 and (claimed or open_before):
        said = f"its row claims {claimed} instances" if claimed else f"{before} instances were listed before"
        failed(manifest,
            Failed(plan.study, "plan", "VanishedAtSource", f"The PACS lists no image of this study, though {said}.")
        )
        return
    for series in plan.series:
        series_id = manifest.series_id(plan.study.study, series.series, series.modality)
        manifest.connection.executemany(
            "INSERT INTO instance(series_id, sop_uid) VALUES (?, ?) ON CONFLICT DO UPDATE SET listed = 1 WHERE listed = 0",
            [(series_id, sop) for sop in series.sops],
        )
    if before > listed:
        manifest.log("study shrank", f"{before} instances were listed before, {listed} now", study=plan.study.study)
    for note in plan.notes:
        manifest.log("counts differ", note, study=plan.study.study)
    claims = [series.claimed_instances for series in plan.series if series.claimed_instances is not None]
    empty = listed == 0 and before == 0
    manifest.execute(
        "UPDATE study SET listed_instances = ?, claimed_by_series = ?, attempts = 0, not_before = 0, stage = NULL, detail = NULL, error = ?, "
        "retrieve_ended = max(retrieve_ended, ?) WHERE id = ?",
        listed, sum(claims) if claims else None, "EmptyAtSource" if empty and found_sweep is not None else None, int(empty), study_id,
    )  # fmt: skip
    manifest.set_state(study_id, StudyState.PLANNED)


def retrieve_ended(manifest: Manifest, ended: RetrieveEnded) -> None:
    """An attempt ended and all that came is durable: the UID sets decide."""
    uid = ended.study.study
    study_id = manifest.study_id(uid)
    manifest.arrived.pop(uid, None)
    manifest.execute("UPDATE study SET retrieve_ended = 1 WHERE id = ?", study_id)
    manifest.touched.add(study_id)
    missing, total = manifest.one(
        "SELECT coalesce(sum(expected), 0), coalesce(sum(expected + staged + stored + verified), 0) FROM series WHERE study_id = ?", study_id
    )  # fmt: skip
    state = manifest.one("SELECT state FROM study WHERE id = ?", study_id)[0]
    if missing and state == StudyState.PLANNED:
        detail = f"{missing} of {total} instances did not come. {ended.detail}".strip()
        failed(manifest, Failed(ended.study, "retrieve", ended.error or "SourceIncomplete", detail))


def failed(manifest: Manifest, failure: Failed) -> None:
    """One more attempt used: later again, or parked."""
    study_id = manifest.study_id(failure.study.study)
    attempts, state = manifest.one("SELECT attempts + 1, state FROM study WHERE id = ?", study_id)
    wait_s = min(manifest.policy.first_wait_s * 2 ** (attempts - 1), manifest.policy.max_wait_s) * random.uniform(0.8, 1.2)
    manifest.execute(
        "UPDATE study SET attempts = ?, not_before = ?, stage = ?, error = ?, detail = ? WHERE id = ?",
        attempts, now_ms() + int(wait_s * 1000), failure.stage, failure.error, failure.detail, study_id,
    )  # fmt: skip
    if state in (StudyState.FOUND, StudyState.PLANNED, StudyState.RETRIEVED) and (
        attempts >= manifest.policy.attempts or not failure.retryable
    ):
        manifest.set_state(study_id, StudyState.PARKED)
    manifest.touched.add(study_id)
