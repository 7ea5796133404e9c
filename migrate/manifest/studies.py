"""What happens to a study's row: found, planned, an attempt ended, an attempt failed."""

from __future__ import annotations

import hashlib
import json
import random
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

from migrate.counted import counted
from migrate.errors import Interrupted, SourceIncomplete, VanishedAtSource, wait_factor
from migrate.manifest import unreadable
from migrate.manifest.announcements import AT_ONCE, announce
from migrate.manifest.file import now_ms
from migrate.manifest.numbers import numbers_of
from migrate.manifest.seals import text
from migrate.manifest.windows import AXIS_BITS
from migrate.manifest.writer import Writer
from migrate.model import Failed, RetrieveEnded, StudyFound, StudyPlanned, StudyState

_AT_ONCE, _LOOKED_UP = 20_000, 500
_KNOWN = "SELECT uid, id, state, date, claimed_instances, seen_sweep FROM study WHERE uid IN"
_ADD = (
    "INSERT INTO study(id, uid, date, time, modalities, claimed_instances, axes, found_sweep, seen_sweep, found_event, found_at, changed_at) "
    "VALUES (?,?,?,?,?,?,?,?,?,?,?,?)"
)
_MERGED = "ON CONFLICT DO UPDATE SET outside = min(outside, excluded.outside)"
_SEEN = (
    "INSERT INTO sighting SELECT ?, id, ? FROM study WHERE uid = ? AND seen_sweep = ? AND claimed_instances IS ? "
    f"AND (? IS NULL OR date = ?) AND state <> {int(StudyState.EXCLUDED)} {_MERGED}"
)


def found(manifest: Writer, rows: Sequence[StudyFound]) -> None:
    """STUDY rows, many at once: new studies, and known ones whose claim changed and that are planned anew."""
    asked = {row.window_id for row in rows if row.window_id is not None}
    windows = {window_id: manifest.one("SELECT sweep, axis FROM window WHERE id = ?", window_id) for window_id in asked}
    first = 0
    while first < len(rows):
        some = rows[first : first + _LOOKED_UP]
        if not (manifest.repeats and _only_seen(manifest, some, windows)):
            some = rows[first : first + _AT_ONCE]
            manifest.repeats = _found(manifest, some, windows)
        first += len(some)


def _only_seen(manifest: Writer, rows: Sequence[StudyFound], windows: Mapping[int, tuple[Any, ...]]) -> bool:
    """Note that they were shown again; False, with nothing lost, where one is new, differs, or is shown for the first time in its sweep."""
    shown = []
    for row in rows:
        sweep = windows.get(row.window_id or 0)
        if sweep is None or row.excluded or row.shared:
            return False
        shown.append((row.window_id, int(row.outside), row.study.study, sweep[0], row.claimed_instances, row.date, row.date))
    return manifest.connection.executemany(_SEEN, shown).rowcount == len(shown)


def _found(manifest: Writer, rows: Sequence[StudyFound], windows: Mapping[int, tuple[Any, ...]]) -> bool:
    """True if all of them were known and unchanged."""
    known = _known(manifest, rows)
    next_id = manifest.one("SELECT coalesce(max(id), 0) + 1 FROM study")[0]
    new: dict[str, int] = {}
    added, sightings, left_out = [], [], 0
    unchanged: dict[tuple[int, int], list[int]] = {}
    differing: list[tuple[StudyFound, int | None, int]] = []
    for row in rows:
        uid, window_id = row.study.study, row.window_id
        sweep, axis = windows.get(window_id or 0) or (None, "")
        bit = 0 if row.outside and axis != "date" else AXIS_BITS.get(axis, 0)
        before = known.get(uid)
        if before is not None:
            _, study_id, state, date, claimed, seen = before
            if (
                claimed != row.claimed_instances or (claimed is None and seen != sweep) or (row.date is not None and date != row.date)
                or row.excluded or row.shared or state == _EXCLUDED or (state in _GIVEN_UP and _was_gone(seen, sweep))
            ):  # fmt: skip
                differing.append((row, sweep, bit))
            elif seen != sweep and sweep is not None:  # the axis alone is noted when the window has been answered, for all at once
                unchanged.setdefault((sweep, bit), []).append(study_id)
        elif uid in new:
            study_id = new[uid]
            differing.append((row, sweep, bit))
        elif row.later:
            continue
        else:
            study_id = new[uid] = next_id + len(new)
            added.append((study_id, uid, row.date, row.time, "\\".join(row.modalities), row.claimed_instances, bit, sweep, None if row.excluded else sweep))
            if row.excluded:
                left_out += 1
                differing.append((row, sweep, bit))
        if sweep is not None:
            sightings.append((window_id, study_id, int(row.outside)))
    if added:
        _add(manifest, added)
        manifest.studies_found += len(added) - left_out
    for (sweep, bit), study_ids in unchanged.items():  # first: a row that contradicts one of these is known by it
        manifest.execute(
            "UPDATE study SET seen_sweep = max(coalesce(seen_sweep, 0), ?), found_sweep = coalesce(found_sweep, ?), axes = axes | ? "
            "WHERE id IN (SELECT value FROM json_each(?))", sweep, sweep, bit, json.dumps(study_ids),
        )  # fmt: skip
    for each in differing:
        _seen_again(manifest, *each)
    manifest.connection.executemany(f"INSERT INTO sighting VALUES (?, ?, ?) {_MERGED}", sightings)
    return not added and not differing


def _add(manifest: Writer, studies: Sequence[tuple[Any, ...]]) -> None:
    """New rows, up to and with `seen_sweep`, and the events that tell of them."""
    now = now_ms()
    for first in range(0, len(studies), AT_ONCE):
        some = studies[first : first + AT_ONCE]
        event = announce(manifest.connection, manifest.run_id, (study[1:6] for study in some), now)
        manifest.connection.executemany(_ADD, [(*study, event, now, now) for study in some])


def _known(manifest: Writer, rows: Sequence[StudyFound]) -> dict[str, tuple[Any, ...]]:
    """What the manifest holds of these studies, by UID; looked up in the order of the index, which spares it half the way."""
    uids = sorted({row.study.study for row in rows})
    known: dict[str, tuple[Any, ...]] = {}
    for first in range(0, len(uids), _LOOKED_UP):
        some = uids[first : first + _LOOKED_UP]
        known |= {row[0]: row for row in manifest.connection.execute(f"{_KNOWN} ({','.join('?' * len(some))})", some)}
    return known


_EXCLUDED, _GIVEN_UP = int(StudyState.EXCLUDED), (int(StudyState.PARKED), int(StudyState.ACCEPTED))


def _was_gone(seen: int | None, sweep: int | None) -> bool:
    """Whether a sweep has passed that did not show the study which this one shows."""
    return seen is not None and sweep is not None and seen < sweep - 1


def _seen_again(manifest: Writer, row: StudyFound, sweep: int | None, bit: int) -> None:
    """A known study: what differs is written down; a changed claim has it planned anew."""
    known: tuple[Any, ...] = manifest.one(
        "SELECT id, state, date, claimed_instances, seen_sweep, error FROM study WHERE uid = ?", row.study.study
    )
    study_id, state, date, claimed, seen, error = known
    modalities = "\\".join(row.modalities)
    same_sweep = sweep is not None and seen == sweep
    claim = row.claimed_instances
    if same_sweep and date and row.date and date != row.date:
        manifest.log("attributes differ", f"StudyDate {date} in one row, {row.date} in another", study=row.study.study)
    if same_sweep and claim is not None and claimed is not None and claim != claimed:
        manifest.log("attributes differ", f"{counted(claimed, 'instance')} claimed in one row, {claim} in another", study=row.study.study)
        claim = max(claim, claimed)
    excluded = None if same_sweep and state != StudyState.EXCLUDED else row.excluded  # of rows that contradict each other one that fits is enough
    if excluded and state in (StudyState.RETRIEVED, StudyState.MIGRATED, StudyState.ACCEPTED):
        claim = None  # once it is selected again, the number that it is compared with is the one it was planned by
    manifest.execute(
        "UPDATE study SET seen_sweep = max(coalesce(seen_sweep, 0), ?), found_sweep = coalesce(found_sweep, ?), axes = axes | ?, "
        "date = coalesce(?, date), time = coalesce(?, time), modalities = CASE WHEN ? = '' THEN modalities ELSE ? END, "
        "claimed_instances = coalesce(?, claimed_instances) WHERE id = ?",
        sweep or 0, sweep, bit, date if same_sweep and date else row.date, row.time, modalities, modalities, claim, study_id,
    )  # fmt: skip
    if excluded:
        if state in (StudyState.FOUND, StudyState.PLANNED, StudyState.PARKED):
            exclude(manifest, study_id, _BY_SELECTION, excluded)
        return
    if state == StudyState.EXCLUDED and error == _BY_SELECTION:
        manifest.set_state(study_id, StudyState.FOUND)
        manifest.execute("UPDATE study SET error = NULL, detail = NULL WHERE id = ?", study_id)
        return
    if row.shared:
        manifest.log("attributes differ", "it stands under more than one patient, or has gone from one to another", study=row.study.study)
    changed = row.shared or (claim is not None and claim != claimed)
    unclaimed = row.claimed_instances is None and sweep is not None and sweep == manifest.own_sweep and seen != sweep
    returned = error == VanishedAtSource.__name__ and state in _GIVEN_UP and _was_gone(seen, sweep)  # it was given up, or signed for, as gone
    at_rest = state in (StudyState.PLANNED, StudyState.RETRIEVED, StudyState.MIGRATED, StudyState.ACCEPTED)
    if ((changed or unclaimed) and at_rest) or (changed and state == StudyState.PARKED) or returned:
        manifest.set_state(study_id, StudyState.FOUND)


_BY_SELECTION = "OutsideSelection"
BY_PERSON = "ExcludedByPerson"
"""Why a study is excluded: by the configuration, which later sweeps may undo, or by a person, which only a person undoes."""


def exclude(manifest: Writer, study_id: int, error: str, why: str) -> None:
    """Leave a study out, with the reason on record. Its state must be found, planned or parked."""
    manifest.execute("UPDATE study SET error = ?, detail = ? WHERE id = ?", error, why, study_id)
    manifest.set_state(study_id, StudyState.EXCLUDED)


def planned(manifest: Writer, plan: StudyPlanned) -> None:
    """All IMAGE rows: what was listed once stays on the list, an empty answer is empty only where nothing was claimed."""
    study_id = manifest.study_id(plan.study.study)
    state, claimed, found_sweep = manifest.one("SELECT state, claimed_instances, found_sweep FROM study WHERE id = ?", study_id)
    if state != StudyState.FOUND:
        return  # replayed
    listed = sum(len(series.sops) for series in plan.series)
    before = manifest.one(
        "SELECT count(*) FROM instance JOIN series ON series.id = series_id WHERE study_id = ? AND listed = 1",
        study_id,
    )[0]
    open_before = manifest.one("SELECT coalesce(sum(expected), 0) FROM series WHERE study_id = ?", study_id)[0]
    unreadable.note(manifest, plan.study.study, plan.unreadable)
    if listed == 0 and (claimed or open_before) and not plan.unreadable:
        said = f"its row claims {counted(claimed, 'instance')}" if claimed else f"{counted(before, 'instance was', 'instances were')} listed before"
        failed(manifest, Failed(plan.study, "plan", "VanishedAtSource", f"The PACS lists no image of this study, though {said}."))
        return
    _list(manifest, plan)
    if before > listed:
        manifest.log("study shrank", f"{counted(before, 'instance was', 'instances were')} listed before, {listed} now", study=plan.study.study)
    for note in plan.notes:
        manifest.log("counts differ", note, study=plan.study.study)
    claims = [series.claimed_instances for series in plan.series if series.claimed_instances is not None]
    empty = listed == 0 and before == 0 and not plan.unreadable
    believed_empty = empty and claimed == 0 and not plan.series
    rebuilt = listed > 0 and manifest.one("SELECT count(*) FROM meta WHERE key = 'rebuilt'")[0] > 0
    here = rebuilt and not manifest.one("SELECT coalesce(sum(expected), 0) FROM series WHERE study_id = ?", study_id)[0]
    manifest.execute(
        "UPDATE study SET listed_instances = ?, claimed_by_series = ?, attempts = 0, not_before = 0, stage = NULL, detail = NULL, error = ?, "
        "retrieve_ended = max(retrieve_ended, ?) WHERE id = ?",
        listed, sum(claims) if claims else None, "EmptyAtSource" if empty and found_sweep is not None else None, int(believed_empty or here), study_id,
    )  # fmt: skip
    numbers = numbers_of(manifest, study_id)
    if not believed_empty and numbers.list_in_doubt():  # what the study as a whole brings tells more
        manifest.execute("UPDATE study SET retrieve_ended = 0 WHERE id = ?", study_id)
    manifest.set_state(study_id, StudyState.PLANNED)


def _list(manifest: Writer, plan: StudyPlanned) -> None:
    """What an answer lists is expected; what was listed once stays on the list. A list that has changed is put on record by its hash."""
    before = manifest.connection.total_changes
    for series in plan.series:
        series_id = manifest.series_id(plan.study.study, series.series, series.modality)
        manifest.connection.executemany(
            "INSERT INTO instance(series_id, sop_uid) VALUES (?, ?) ON CONFLICT DO UPDATE SET listed = 1 WHERE listed = 0",
            [(series_id, sop) for sop in series.sops],
        )
    if manifest.connection.total_changes > before:
        count, digest = listing(manifest.connection, manifest.study_id(plan.study.study))
        manifest.log("study listed", f"{count},'{digest}'", study=plan.study.study)


def listing(connection: sqlite3.Connection, study_id: int) -> tuple[int, str]:
    """How many instances of a study are listed, and the SHA-256 in hex over a line "series<tab>modality<tab>sop" for each, by UIDs."""
    rows = connection.execute(
        "SELECT series.uid, modality, sop_uid FROM series CROSS JOIN instance ON series_id = series.id "
        "WHERE study_id = ? AND listed = 1 ORDER BY series.uid, sop_uid", (study_id,),
    )  # fmt: skip
    lines = [f"{series}\t{text(modality)}\t{sop}\n" for series, modality, sop in rows]
    return len(lines), hashlib.sha256("".join(lines).encode()).hexdigest()


def confirmed(manifest: Writer, plan: StudyPlanned) -> None:
    """The last look before a study closes: what it shows anew is expected, what it no longer shows is proven already."""
    study_id = manifest.study_id(plan.study.study)
    if manifest.one("SELECT state FROM study WHERE id = ?", study_id)[0] != StudyState.RETRIEVED:
        return  # replayed, or something came in between
    count = "SELECT count(*) FROM instance JOIN series ON series.id = series_id WHERE study_id = ? AND listed = 1"
    before = manifest.one(count, study_id)[0]
    _list(manifest, plan)
    unreadable.note(manifest, plan.study.study, plan.unreadable)
    listed, after = sum(len(series.sops) for series in plan.series), manifest.one(count, study_id)[0]
    if after > before:
        manifest.log("study grew", f"{counted(before, 'instance was', 'instances were')} listed before, {after} now", study=plan.study.study)
    if listed < after:
        said = f"{counted(after, 'instance was', 'instances were')} listed before, {listed} now; all of them are proven" if listed else "no image is listed any more"
        manifest.log("study shrank" if listed else "study vanished", said, study=plan.study.study)
    manifest.execute(
        "UPDATE study SET confirmed = ?, listed_instances = max(coalesce(listed_instances, 0), ?), stage = NULL, attempts = 0, "
        "not_before = 0 WHERE id = ?", int(after == before), listed, study_id,
    )  # fmt: skip
    if numbers_of(manifest, study_id).is_short():  # what came since the attempt ended tells that the list is no whole one
        manifest.execute("UPDATE study SET retrieve_ended = 0 WHERE id = ?", study_id)
        manifest.set_state(study_id, StudyState.FOUND)
    manifest.touched.add(study_id)


def retrieve_ended(manifest: Writer, ended: RetrieveEnded) -> None:
    """An attempt ended and all that came is durable: the UID sets decide, as far as the list can be believed.

    A list may be cut short, or empty. Where the PACS claims more than it lists and sends, that is an old archive's wrong number
    as long as the study as a whole has come without a failure, and nothing came that no answer lists. Where it claims nothing, only
    such a C-MOVE shows that nothing unlisted was left behind.
    """
    uid = ended.study.study
    study_id = manifest.study_id(uid)
    manifest.arrived.pop(uid, None)
    manifest.touched.add(study_id)
    state, ended_before = manifest.one("SELECT state, retrieve_ended FROM study WHERE id = ?", study_id)
    numbers = numbers_of(manifest, study_id)
    believed = not numbers.is_short() and (bool(ended_before) or numbers.shown_whole_by(ended))
    manifest.execute(
        "UPDATE study SET retrieve_ended = ?, error = CASE WHEN error = 'EmptyAtSource' AND ? THEN NULL ELSE error END WHERE id = ?",
        int(believed), numbers.known > 0, study_id,
    )  # fmt: skip
    missing = manifest.one("SELECT coalesce(sum(expected), 0) FROM series WHERE study_id = ?", study_id)[0]
    if state != StudyState.PLANNED or (believed and not missing):
        return
    if ended.error == Interrupted.__name__:  # by us: it uses up no attempt, and the next one asks for what is missing
        manifest.execute("UPDATE study SET stage = 'retrieve' WHERE id = ?", study_id)
        return
    detail = f"{missing} of {counted(numbers.known, 'instance')} did not come." if missing else ""
    if not believed:
        said = f"claims {counted(numbers.claimed, 'instance')} and lists" if numbers.claimed else "lists"
        more = f", {numbers.unlisted} more came" if numbers.unlisted else ""
        detail += f" The PACS {said} {numbers.known - numbers.unlisted}{more}, and has not sent the whole study without a failure: its list may be cut short."
    failed(manifest, Failed(ended.study, "retrieve", ended.error or SourceIncomplete.__name__, f"{detail} {ended.detail}".strip()))


def failed(manifest: Writer, failure: Failed) -> None:
    """One more attempt used: later again, or parked."""
    study_id = manifest.study_id(failure.study.study)
    attempts, state = manifest.one("SELECT attempts + 1, state FROM study WHERE id = ?", study_id)
    wait_s = manifest.policy.wait_s(attempts, wait_factor(failure.error)) * random.uniform(0.8, 1.2)
    manifest.execute(
        "UPDATE study SET attempts = ?, not_before = ?, stage = ?, error = ?, detail = ? WHERE id = ?",
        attempts, now_ms() + int(wait_s * 1000), failure.stage, failure.error, failure.detail, study_id,
    )  # fmt: skip
    if state in (StudyState.FOUND, StudyState.PLANNED, StudyState.RETRIEVED) and (
        attempts >= manifest.policy.attempts or not failure.retryable
    ):
        manifest.set_state(study_id, StudyState.PARKED)
    manifest.touched.add(study_id)
