"""What people decide: exceptions they sign, and parked work they put back. Each is one transaction with its events."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from migrate.errors import UsageError
from migrate.manifest import settlement, studies, windows
from migrate.manifest.file import now_ms
from migrate.manifest.store import Manifest
from migrate.model import StudyState, is_uid

REASONS = {
    "vanished-at-source": "the PACS no longer has it",
    "corrupt-at-source": "the PACS cannot send it, or sends what cannot be read",
    "two-contents": "the PACS sent two contents under the same UIDs, and both are kept",
    "duplicate": "the same images exist under other UIDs",
    "test-data": "test images, no patient's",
    "out-of-retention": "the time for which it has to be kept is over",
    "patient-request": "the patient asked for it",
    "other": "as the text says",
}
"""The codes of `accept`. What is released stays."""
_MOST = 20


@dataclass(frozen=True, slots=True)
class Signature:
    """Who answers for an exception, as what, and why. Raises UsageError without a reason, without a name, with an unknown code."""

    reason: str
    by: str
    role: str = ""
    code: str = "other"

    def __post_init__(self) -> None:
        if not self.reason.strip() or not self.by.strip():
            raise UsageError("A signature needs a reason and a name.", hint="Give --reason and --by.")
        if "\0" in self.reason + self.by + self.role:
            raise UsageError("A signature holds a NUL character.", hint="Give it as text.")
        if self.code not in REASONS:
            raise UsageError("That is no code for a reason.", hint=f"Known are {', '.join(REASONS)}.")

    @property
    def signer(self) -> str:
        return f"{self.by} ({self.role})" if self.role else self.by

    @property
    def why(self) -> str:
        return self.reason if self.code == "other" else f"{self.code}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Exempted:
    """What somebody signs for: a study, one instance of it, or, in the place of a study, a window (w12) or a quarantined file (q3)."""

    study: str
    signature: Signature
    sop: str | None = None


def accept(manifest: Manifest, study_uids: Sequence[str], reason: str, by: str, *, role: str = "", code: str = "other") -> list[str]:
    """Sign an exception for parked studies: it covers exactly what is missing, in conflict or quarantined now. So for windows (w12)
    whose completeness cannot be shown, and files (q3) that stay where they are.

    Returns what was accepted. Raises UsageError, and accepts nothing, if one of them is unknown, not parked, or does not block.
    """
    wanted = [Exempted(uid, Signature(reason, by, role, code)) for uid in study_uids]
    accept_each(manifest, wanted)
    return list(dict.fromkeys(study_uids))


def accept_each(manifest: Manifest, wanted: Sequence[Exempted]) -> None:
    """Sign all of these exceptions, in one transaction. A study of which only instances are signed for stays parked while more is open.

    Raises UsageError, and accepts nothing, if there is a mistake in one of them.
    """
    wrong = mistakes(manifest, wanted)
    if wrong:
        named: dict[str, list[str]] = {}
        for number, why in wrong.items():
            named.setdefault(why, []).append(wanted[number].sop or wanted[number].study)
        raise UsageError(f"Nothing was accepted: {'; '.join(f'{_shown(names)}: {why}' for why, names in named.items())}.",
                         hint="`pacs-migrate status` lists what is parked, the report what is missing of it and what else blocks.")  # fmt: skip

    with manifest.transaction():
        for entry in dict.fromkeys(wanted):
            signature = entry.signature
            if _ROW.fullmatch(entry.study):
                _accept_row(manifest, entry.study, signature)
                continue
            study_id = manifest.study_id(entry.study)
            manifest.execute(
                "INSERT INTO acceptance(study_id, sop_uid, covers, code, reason, accepted_by, role, accepted_at) VALUES (?,?,?,?,?,?,?,?)",
                study_id, entry.sop, json.dumps(sorted(_open(manifest, entry))), signature.code, signature.reason, signature.by,
                signature.role, now_ms(),
            )  # fmt: skip
            if entry.sop is None:
                manifest.set_state(study_id, StudyState.ACCEPTED)
        for study in dict.fromkeys(entry.study for entry in wanted if not _ROW.fullmatch(entry.study)):
            settlement.settle(manifest, manifest.study_id(study))


def mistakes(manifest: Manifest, wanted: Sequence[Exempted]) -> dict[int, str]:
    """What keeps exceptions from being signed, by their position; nothing is written."""
    wrong: dict[int, str] = {}
    for number, entry in enumerate(wanted):
        if _ROW.fullmatch(entry.study):
            if manifest.one(f"SELECT count(*) FROM {_BLOCKING[entry.study[0]]}", int(entry.study[1:])) == (0,):
                wrong[number] = "not known, or does not block"
            continue
        row = manifest.one("SELECT state FROM study WHERE uid = ?", entry.study)
        if row is None:
            wrong[number] = "the study is not known"
        elif row[0] != StudyState.PARKED:
            wrong[number] = f"the study is not parked but {StudyState(row[0]).name.lower()}"
        elif entry.sop is not None and not _open(manifest, entry):
            wrong[number] = "nothing of it is missing, in conflict or quarantined"
    return wrong


def _open(manifest: Manifest, entry: Exempted) -> set[str]:
    """What is open about a study, or about that instance of it, as `settlement.exceptions` names it."""
    found = settlement.exceptions(manifest.connection, manifest.study_id(entry.study), entry.study)
    if entry.sop is None:
        return found
    files = manifest.execute("SELECT file FROM quarantine WHERE study_uid = ? AND sop_uid = ?", entry.study, entry.sop)
    names = {f"missing:{entry.sop}", f"conflict:{entry.sop}", *(f"quarantined:{file}" for (file,) in files)}
    return {each for each in found if each in names or each.startswith((f"lost:{entry.sop}~", f"content:{entry.sop}~"))}


_ROW = re.compile(r"[wq]\d{1,15}")
_TABLES = {"w": "window", "q": "quarantine"}
_BLOCKING = {"w": "window WHERE id = ? AND (blocks = 1 OR state = 2)", "q": "quarantine WHERE id = ?"}


def _accept_row(manifest: Manifest, name: str, signature: Signature) -> None:
    """Sign for a window, or for a quarantined file, which stays where it is."""
    table = _TABLES[name[0]]
    manifest.execute(f"UPDATE {table} SET accepted_by = ?, accepted_reason = ? WHERE id = ?", signature.signer, signature.why, int(name[1:]))
    _signed(manifest, "exception accepted", name, signature)


def _signed(manifest: Manifest, kind: str, name: str, signature: Signature) -> None:
    """The event of a window's or a file's signature, and what follows from it for the file's study."""
    uid = manifest.one("SELECT study_uid FROM quarantine WHERE id = ?", int(name[1:]))[0] if name[0] == "q" else None
    manifest.log(kind, f"{name} by {signature.signer}: {signature.why}", study=str(uid) if uid else None)
    if uid:
        settlement.settle(manifest, manifest.study_id(str(uid)))


def revoke(manifest: Manifest, names: Sequence[str], reason: str, by: str, *, role: str = "") -> int:
    """Take back what was signed for studies (by UID), windows (w12) and quarantined files (q3), in one transaction.

    An accepted study is found again, and the next `run` tries it; its signatures stay on record and cover nothing any more.
    Returns of how many of them something was taken back. Raises UsageError, and changes nothing, if nobody signed for one of them.
    """
    signature, names = Signature(reason, by, role), list(dict.fromkeys(names))
    signed = {name: _signatures(manifest, name) for name in names}
    wrong = [name for name in names if not signed[name]]
    if wrong:
        raise UsageError(f"Nothing was done, because nobody has signed for {_shown(wrong)}.", hint="The report lists what was accepted.")

    with manifest.transaction():
        for name, rows in signed.items():
            if _ROW.fullmatch(name):
                manifest.connection.executemany(f"UPDATE {_TABLES[name[0]]} SET accepted_by = NULL, accepted_reason = NULL WHERE id = ?", rows)
                _signed(manifest, "exception revoked", name, signature)
                continue
            manifest.connection.executemany(
                "INSERT INTO revocation(acceptance_id, reason, revoked_by, role, revoked_at) VALUES (?, ?, ?, ?, ?)",
                [(number, signature.reason, signature.by, signature.role, now_ms()) for (number,) in rows],
            )
            study_id = manifest.study_id(name)
            if manifest.one("SELECT state FROM study WHERE id = ?", study_id)[0] == StudyState.ACCEPTED:
                manifest.set_state(study_id, StudyState.FOUND)
    return len(signed)


def _signatures(manifest: Manifest, name: str) -> list[tuple[int]]:
    """The rows whose signatures go when this name's goes: acceptances of a study; of a window, those that it was carried over from, too."""
    if re.fullmatch(r"w\d{1,15}", name):
        return windows.accepted_alike(manifest.connection, int(name[1:]))
    if re.fullmatch(r"q\d{1,15}", name):
        return manifest.execute("SELECT id FROM quarantine WHERE id = ? AND accepted_by IS NOT NULL", int(name[1:])).fetchall()
    return manifest.execute(
        "SELECT acceptance.id FROM acceptance JOIN study ON study.id = study_id WHERE uid = ? "
        "AND acceptance.id NOT IN (SELECT acceptance_id FROM revocation) ORDER BY acceptance.id", name,
    ).fetchall()  # fmt: skip


def readdress(manifest: Manifest, source: str, evidence: str, signature: Signature) -> None:
    """The PACS goes by another title, host or port from now on; `evidence` says why it is the same one."""
    with manifest.transaction():
        manifest.log("source readdressed", f"{evidence}; by {signature.signer}: {signature.why}")
        manifest.execute("UPDATE meta SET value = ? WHERE key = 'source'", source)


def retry(manifest: Manifest, error: str | None, study_uids: Sequence[str]) -> int:
    """Put parked studies back, all of them or those named or parked with that error. Returns how many.

    Raises UsageError if a named study is not parked.
    """
    parked = {
        uid: study_id
        for study_id, uid, why in manifest.connection.execute("SELECT id, uid, error FROM study WHERE state = 5")
        if error is None or why == error
    }
    wrong = [uid for uid in study_uids if uid not in parked]
    if wrong:
        raise UsageError(f"Not parked{f' with the error {error}' if error else ''}: {_shown(wrong)}.", hint="`pacs-migrate status` lists what is parked.")
    chosen = {uid: parked[uid] for uid in study_uids} if study_uids else parked

    with manifest.transaction():
        for study_id in chosen.values():
            manifest.set_state(study_id, StudyState.FOUND)
    return len(chosen)


def exclude(manifest: Manifest, study_uids: Sequence[str], reason: str, by: str) -> int:
    """Leave studies out, on record by whom and why; no later sweep brings them back. Returns how many.

    Raises UsageError, and excludes nothing, if one of them is unknown, or its images are with the destination already.
    """
    rows = _known(manifest, study_uids)
    free = (StudyState.FOUND, StudyState.PLANNED, StudyState.PARKED, StudyState.EXCLUDED)
    _refuse([uid for uid, (_, state, _) in rows.items() if state not in free], "are migrated already, about to be, or accepted",
            "What is at the destination is never taken back: take them off the list. Of accepted ones take the signature back first (`revoke`).")  # fmt: skip

    with manifest.transaction():
        for uid, (study_id, state, _) in rows.items():
            if state == StudyState.EXCLUDED:
                manifest.execute("UPDATE study SET error = ?, detail = ? WHERE id = ?", studies.BY_PERSON, f"{reason} (by {by})", study_id)
            else:
                studies.exclude(manifest, study_id, studies.BY_PERSON, f"{reason} (by {by})")
            manifest.log("exclusion signed", f"by {by}: {reason}", study=uid)
    return len(rows)


def include(manifest: Manifest, study_uids: Sequence[str], reason: str, by: str) -> int:
    """Undo exclusions that people have signed. Returns how many studies are found again.

    Raises UsageError, and undoes nothing, if one of them is unknown, not excluded, or left out by the configuration.
    """
    rows = _known(manifest, study_uids)
    _refuse([uid for uid, (_, state, error) in rows.items() if state != StudyState.EXCLUDED or error != studies.BY_PERSON],
            "are not excluded by a person", "What [source] from, to and modalities leave out comes back when these are changed.")  # fmt: skip

    with manifest.transaction():
        for uid, (study_id, _, _) in rows.items():
            manifest.execute("UPDATE study SET error = NULL, detail = NULL WHERE id = ?", study_id)
            manifest.set_state(study_id, StudyState.FOUND)
            manifest.log("exclusion undone", f"by {by}: {reason}", study=uid)
    return len(rows)


def _known(manifest: Manifest, study_uids: Sequence[str]) -> dict[str, tuple[int, StudyState, str | None]]:
    """(row, state, error) of studies by UID. Raises UsageError if one is unknown."""
    rows: dict[str, tuple[int, StudyState, str | None]] = {}
    for uid in study_uids:
        row: tuple[Any, ...] | None = manifest.one("SELECT id, state, error FROM study WHERE uid = ?", uid)
        if row is not None:
            rows[uid] = (row[0], StudyState(row[1]), row[2])
    _refuse([uid for uid in study_uids if uid not in rows], "are not known", "`enumerate` finds them, `enumerate --list` adds them by UID.")
    return rows


def _refuse(uids: Sequence[str], why: str, hint: str) -> None:
    if uids:
        raise UsageError(f"Nothing was done, because these studies {why}: {_shown(uids)}.", hint=hint)


def _shown(names: Sequence[str]) -> str:
    """UIDs and names of rows for a sentence; what is neither may be a patient's name, and is not repeated."""
    shown = [name if is_uid(name) or _ROW.fullmatch(name) else "something that is no UID" for name in names[:_MOST]]
    return ", ".join(shown) + (f" and {len(names) - _MOST} more" if len(names) > _MOST else "")
