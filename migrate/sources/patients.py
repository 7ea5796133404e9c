"""A PACS that answers nothing below the level PATIENT without a single PatientID (PS3.4 C.6.1): who its patients are.

PatientIDs are needed as keys. They live here, in memory, and stand in no error, log or manifest.
"""

from __future__ import annotations

import string
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from migrate.dicom import dimse
from migrate.dicom.scu import FindSession, QueryRefused
from migrate.errors import Interrupted
from migrate.model import Window

_PATIENT_ID, _STUDY_UID, _STUDY_DATE = dimse.PATIENT_ID, dimse.STUDY_UID, 0x00080020
_WILDCARDS = frozenset("*?\\")
_FIRST = string.digits + string.ascii_uppercase + string.ascii_lowercase + string.punctuation + " "
_CHARACTERS = "".join(character for character in _FIRST if character not in _WILDCARDS)
_LONGEST = 64  # characters of an ID (LO, PS3.5 6.2)


@dataclass(slots=True)
class Listed:
    """All patients that can be asked for, and why there may be more; "" where the list is known to be whole.

    `cut_at`: so many rows the PACS shows of a list that is longer. Nobody whose PatientID cannot be asked for is shown beyond them.
    """

    ids: list[str]
    trouble: str = ""
    cut_at: int | None = None


class Patients:
    """The patients of one PACS, as of the last time that the same question was asked, and which of them has which study."""

    def __init__(self, stopped: threading.Event) -> None:
        self._stopped = stopped
        self._insists: bool | None = None
        self._lock = threading.RLock()
        self._listed: Listed | None = None
        self._answered: set[Window] = set()  # questions that this list has served
        self._of: dict[str, str] = {}
        self._all_looked_up = False

    def insists(self, session: FindSession) -> bool:
        """Whether it wants a PatientID with every question; found out once, by a question that is narrow in every other way."""
        with self._lock:
            if not session.patient_root:
                self._insists = False
            if self._insists is None:
                try:
                    for _ in session.find("STUDY", {_STUDY_DATE: "19000101"}, (_STUDY_UID,)):
                        pass
                    self._insists = False
                except QueryRefused as refusal:
                    self._insists = refusal.keys_refused
            return self._insists

    def for_question(self, session: FindSession, window: Window) -> Listed:
        """The patients among whom a question is asked: a new list for one that this list has served already.

        So all questions of a sweep share a list, and the next sweep, or the same question once more, sees who has come since.
        """
        with self._lock:
            if self._listed is None or window in self._answered:
                self._listed, self._answered, self._all_looked_up = _Listing(session, self._stopped).run(), set(), False
            self._answered.add(window)
            return self._listed

    def some(self, session: FindSession, count: int) -> Iterator[str]:
        """A few that can be asked for."""
        for row in session.find("PATIENT", {_PATIENT_ID: "*"}, (_PATIENT_ID,)):
            if _askable(row.get(_PATIENT_ID, "")):
                yield row[_PATIENT_ID]
                count -= 1
                if not count:
                    return

    def shown(self, study: str, patient: str) -> None:
        """Remember whose study it is."""
        self._of[study] = patient

    def remembered(self, study: str) -> str | None:
        """Whose study it is, without asking."""
        return self._of.get(study)

    def of(self, session: FindSession, study: str) -> str | None:
        """Whose study it is, or None where the PACS shows it to nobody. Raises what asking raises."""
        with self._lock:
            if study not in self._of and not self._all_looked_up:  # a run that goes on has not asked for studies itself
                listed = self._listed or _Listing(session, self._stopped).run()
                self._listed = listed
                for patient in listed.ids:
                    self._note(session, patient, {})
                self._all_looked_up = True
            if study not in self._of:  # behind a cap, or new
                self._listed, self._answered = _Listing(session, self._stopped).run(), set()
                for patient in self._listed.ids:
                    self._note(session, patient, {_STUDY_UID: study})
                    if study in self._of:
                        break
            return self._of.get(study)

    def gave_away(self, session: FindSession, study: str) -> bool:
        """Whether the patient no longer has this study, which is forgotten then; a study without images is still shown."""
        patient = self._of.pop(study, None)
        if patient is not None:
            self._note(session, patient, {_STUDY_UID: study})
        return study not in self._of

    @property
    def known_to_insist(self) -> bool | None:
        """What `insists` has found; None before it was asked."""
        return self._insists

    def _note(self, session: FindSession, patient: str, keys: dict[int, str]) -> None:
        _stop_if(self._stopped)
        for row in session.find("STUDY", {**keys, _PATIENT_ID: patient}, (_STUDY_UID,)):
            self._of[row.get(_STUDY_UID, "")] = patient


class _Listing:
    """One walk through all patients by prefixes of PatientID.

    A PACS that caps its answers says Success all the same. But it once answered with as many rows as the largest of its answers
    has, so that every answer with fewer is whole; only one with just as many may be cut off, and is asked again in parts: the ID
    that ends there, and one more character, whichever it is. That ends with the largest answer even where nothing is capped: its
    parts are smaller. A part that shows patients who do not fit it proves nothing.
    """

    def __init__(self, session: FindSession, stopped: threading.Event) -> None:
        self._session, self._stopped = session, stopped
        self._most = 2  # nobody caps at a single row
        self._ids: set[str] = set()
        self._trouble = ""

    def run(self) -> Listed:
        rows, first = self._ask("*")
        self._walk("", rows)
        odd = sum(not _askable(patient) for patient in self._ids)
        if odd and not self._trouble:
            self._trouble = f"{odd} patients have a PatientID that cannot be asked for (empty, or with a wildcard or a letter that is not ASCII)"
        return Listed(sorted(filter(_askable, self._ids)), self._trouble, len(first) if self._ids - first else None)

    def _ask(self, key: str) -> tuple[int | None, set[str]]:
        """(rows, None where they were too many for the PACS; the IDs) of one answer."""
        _stop_if(self._stopped)
        shown: list[str] = []
        refused = False
        try:
            for row in self._session.find("PATIENT", {_PATIENT_ID: key}, (_PATIENT_ID,)):
                shown.append(row.get(_PATIENT_ID, ""))
        except QueryRefused as refusal:
            if refusal.keys_refused:
                raise
            refused = True
        ids = set(shown)
        self._ids |= ids
        if refused:
            return None, ids
        self._most = max(self._most, len(shown))
        return len(shown), ids

    def _walk(self, prefix: str, rows: int | None) -> None:
        """Ask in parts, unless the answer with so many rows is whole."""
        if self._trouble or (rows is not None and rows < self._most):
            return
        if len(prefix) >= _LONGEST:
            self._trouble = "its answers are cut off where no PatientID can be longer"
            return
        if prefix:
            self._ask(prefix)  # the one that ends here
        parts: dict[str, tuple[int | None, set[str]]] = {}
        for character in _CHARACTERS if prefix else _CHARACTERS.replace(" ", ""):  # leading spaces do not count (PS3.5 6.2)
            part = prefix + character
            rows, ids = self._ask(f"{part}*")
            if any(not patient.casefold().startswith(part.casefold()) for patient in ids):
                self._trouble = "it does not match PatientID with a wildcard, so that its list of patients cannot be shown to be whole"
                return
            if character.islower() and parts.get(prefix + character.upper()) == (rows, ids):
                continue  # it does not tell small letters from capitals, and has shown the same already
            parts[part] = rows, ids
        for part, (rows, _) in parts.items():
            self._walk(part, rows)


def _askable(patient: str) -> bool:
    return bool(patient) and patient.isascii() and patient.isprintable() and not set(patient) & _WILDCARDS


def _stop_if(stopped: threading.Event) -> None:
    if stopped.is_set():
        raise Interrupted("The run is being stopped.")
