"""The list of all patients of a PACS, and whether it can be shown to be whole (PS3.4 C.6.1, level PATIENT).

PatientIDs are needed as keys; of names only a first letter is one, and none is asked for. They live in memory, and stand in no error, log or manifest.
"""

from __future__ import annotations

import contextlib
import string
import threading
from collections import Counter
from dataclasses import dataclass, field

from migrate.counted import counted
from migrate.dicom import dimse
from migrate.dicom.scu import FindSession, QueryRefused
from migrate.errors import Interrupted, QueryFailed

_PATIENT_ID, _NAME, _STUDIES = dimse.PATIENT_ID, 0x00100010, 0x00201200
_WILDCARDS = frozenset("*?\\")
_FIRST = string.digits + string.ascii_uppercase + string.ascii_lowercase + string.punctuation + " "
_CHARACTERS = "".join(character for character in _FIRST if character not in _WILDCARDS)
_LONGEST = 64  # characters of an ID (LO, PS3.5 6.2)
_ODD = "{who} a PatientID that cannot be asked for (empty, or with a wildcard or a letter that is not ASCII)"
_CUT = (
    "it {cuts}; whoever has no PatientID, or one with a wildcard or a letter beyond ASCII, is in no "
    "part of such a list and may be hidden: ask the vendor for the number of patients"
)
_NO_WILDCARDS = "it does not match PatientID with a wildcard, so that its list of patients cannot be shown to be whole"


@dataclass(slots=True)
class Listed:
    """All patients that can be asked for, with how many studies the PACS says that they have (None: it does not say).

    `trouble`: why there may be more patients; "" where the list is known to be whole. `cut_at`: so many rows the PACS shows of a
    longer list.
    """

    studies: dict[str, int | None] = field(default_factory=dict)
    trouble: str = ""
    cut_at: int | None = None


class Listing:
    """One walk through all patients by prefixes of PatientID.

    A PACS that caps its answers says Success all the same. But it once answered with as many rows as the largest of its answers
    has, so that every answer with fewer is whole; only one with just as many may be cut off, and is asked again in parts: the ID
    that ends there, and one more character, whichever it is. That ends with the largest answer even where nothing is capped: its
    parts are smaller. A part of which as many patients are known already is cut at once. A part that shows patients who do not
    fit it proves nothing.
    """

    def __init__(self, session: FindSession, stopped: threading.Event) -> None:
        self._session, self._stopped = session, stopped
        self._most = 2  # nobody caps at a single row
        self._studies: dict[str, int | None] = {}
        self._trouble = ""
        self._folds = False  # it does not tell small letters from capitals

    def run(self) -> Listed:
        """Raises what asking raises, but for answers that are refused because they are too long; Interrupted."""
        rows, first = self._ask("*")
        self._walk("", rows)
        if not self._trouble and self._studies.keys() <= first:
            self._ask_names()
        later = self._studies.keys() - first
        if later and rows is not None and first | later <= self._ask("*")[1]:
            later = set()  # they have come meanwhile
        cut_at = len(first) if later else None
        odd = sum(not is_askable(patient) for patient in self._studies)
        troubles = [self._trouble, _ODD.format(who=counted(odd, "patient has", "patients have")) if odd else "", _CUT.format(cuts=_cuts(cut_at)) if cut_at is not None else ""]
        askable = {patient: studies for patient, studies in sorted(self._studies.items()) if is_askable(patient)}
        return Listed(askable, ", and ".join(filter(None, troubles)), cut_at)

    def _ask_names(self) -> None:
        """By the first letters of names: a cap that is as large as all that PatientIDs can ask for still hides whoever has none that can."""
        with contextlib.suppress(QueryRefused, QueryFailed):
            for letter in string.ascii_uppercase:
                self._ask(f"{letter}*", _NAME)

    def _ask(self, key: str, tag: int = _PATIENT_ID) -> tuple[int | None, set[str]]:
        """(rows, None where they were too many for the PACS; the IDs) of one answer."""
        stop_if(self._stopped)
        rows, ids, refused = 0, set[str](), False
        try:
            for row in self._session.find("PATIENT", {tag: key}, (_PATIENT_ID, _STUDIES)):
                patient, studies = row.get(_PATIENT_ID, ""), row.get(_STUDIES, "").strip()
                rows += 1
                ids.add(patient)
                self._studies[patient] = int(studies) if studies.isdigit() else None
        except QueryRefused as refusal:
            if refusal.keys_refused:
                raise
            refused = True
        if refused:
            return None, ids
        self._most = max(self._most, rows)
        return rows, ids

    def _walk(self, prefix: str, rows: int | None) -> None:
        """Ask in parts, unless the answer with so many rows is whole."""
        if self._trouble or (rows is not None and rows < self._most):
            return
        if len(prefix) >= _LONGEST:
            self._trouble = "its answers are cut off where no PatientID can be longer"
            return
        if prefix:
            self._ask(prefix)  # the one that ends here
        known = Counter(patient[: len(prefix) + 1] for patient in self._studies if patient.startswith(prefix))
        parts: dict[str, int | None] = {}
        for character in _CHARACTERS if prefix else _CHARACTERS.replace(" ", ""):  # leading spaces do not count (PS3.5 6.2)
            part = prefix + character
            if character.islower() and self._folds:
                continue  # the part by the capital shows the same
            if known[part] >= self._most:  # it would be cut anyway, whatever it answers
                parts[part] = None
                continue
            rows, ids = self._ask(f"{part}*")
            if any(not patient.casefold().startswith(part.casefold()) for patient in ids):
                self._trouble = _NO_WILDCARDS
                return
            self._folds = self._folds or any(not patient.startswith(part) for patient in ids)
            if not (character.islower() and self._folds):
                parts[part] = rows
        for part, answered in parts.items():
            self._walk(part, answered)


def _cuts(rows: int) -> str:
    return f"cuts lists of patients off after {rows} rows" if rows else "refuses to list all patients"


def is_askable(patient: str) -> bool:
    """Whether a PatientID serves as the key of a single value (PS3.4 C.2.2.2.1, C.2.2.2.4)."""
    return bool(patient) and patient.isascii() and patient.isprintable() and not set(patient) & _WILDCARDS


def stop_if(stopped: threading.Event) -> None:
    """Raises Interrupted once the run is being stopped."""
    if stopped.is_set():
        raise Interrupted("The run is being stopped.")
