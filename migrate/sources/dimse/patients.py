"""A PACS that answers nothing below the level PATIENT without a single PatientID (PS3.4 C.6.1): which patient has which study.

PatientIDs live here, in memory, and stand in no error, log or manifest.
"""

from __future__ import annotations

import datetime
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from migrate.dicom import dimse
from migrate.dicom.scu import FindSession, QueryRefused
from migrate.errors import QueryFailed
from migrate.model import StudyFound
from migrate.sources.dimse.patient_list import Listed, Listing, is_askable, stop_if

_PATIENT_ID, _STUDY_UID, _STUDY_DATE = dimse.PATIENT_ID, dimse.STUDY_UID, 0x00080020
_COMPARED = 5  # of the patients whose answers are the largest and agree with the PACS's own number
Ask = Callable[[Mapping[int, str], int], Iterable[StudyFound]]
"""The studies that these keys find; the number tells C-FINDs apart."""


class Patients:
    """Who has which study, as of the last time that each patient was asked. One lock: whoever asks has others wait."""

    def __init__(self, stopped: threading.Event) -> None:
        self._stopped = stopped
        self._insists: bool | None = None
        self._lock = threading.RLock()
        self._listed: Listed | None = None
        self._rows: dict[str, int | None] = {}  # of each patient's answer, None where it was no whole one
        self._found: dict[str, int] = {}  # different studies in it
        self._doubtful: list[str] | None = None
        self._of: dict[str, tuple[str, ...]] = {}
        self._given_away: set[str] = set()  # studies whose patients no longer have them
        self._looked_again = False

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

    def some(self, session: FindSession, count: int) -> Iterator[str]:
        """A few that can be asked for."""
        for row in session.find("PATIENT", {_PATIENT_ID: "*"}, (_PATIENT_ID,)):
            if is_askable(row.get(_PATIENT_ID, "")):
                yield row[_PATIENT_ID]
                count -= 1
                if not count:
                    return

    def list_anew(self, session: FindSession) -> Listed:
        """Ask who all the patients are; what was known of their answers is of the past."""
        with self._lock:
            self._listed = Listing(session, self._stopped).run()
            self._rows, self._found, self._doubtful, self._looked_again = {}, {}, None, False
            return self._listed

    def listed(self, session: FindSession) -> Listed:
        """The list as it was made last; made if there is none."""
        with self._lock:
            return self._listed or self.list_anew(session)

    # -- asking them one by one
    def one_by_one(self, session: FindSession, share: tuple[int, int], ask: Ask) -> Iterator[StudyFound]:
        """The studies of every patient of a share. What the PACS refuses is left to narrower questions (see `doubtful`). Raises what asking raises."""
        number, count = share
        yield from self._each([patient for patient in self.listed(session).studies if zlib.crc32(patient.encode()) % count == number - 1], ask)

    def _each(self, left: Sequence[str], ask: Ask) -> Iterator[StudyFound]:
        """The studies of these patients, and on record here what each of their answers was."""

        def noted(patient: str, number: int) -> Iterator[StudyFound]:
            rows, studies = 0, set[str]()
            try:
                for study in ask({_PATIENT_ID: patient}, number):
                    rows += 1
                    studies.add(study.study.study)
                    yield study
            except QueryRefused:
                self._rows[patient], self._found[patient] = None, 0
            else:
                self._rows[patient], self._found[patient] = rows, len(studies)

        yield from self.in_turn(left, noted)

    def in_turn(self, left: Sequence[str], ask: Callable[[str, int], Iterable[StudyFound]]) -> Iterator[StudyFound]:
        """One question for each of these patients, with its number; where an answer breaks off, that patient is asked again after the
        others, as long as that helps. Raises what asking raises."""
        asked = 0
        while left:
            broken: list[str] = []
            for patient in left:
                stop_if(self._stopped)
                asked += 1
                try:
                    yield from ask(patient, asked)
                except QueryFailed as error:
                    broken.append(patient)
                    trouble = error
            if len(broken) == len(left):
                raise trouble
            left = broken

    def doubtful(self, session: FindSession, ask: Ask) -> list[str]:
        """The patients whose answers may have been cut off, so that their studies are asked for in narrower questions, too.

        The PACS once answered with as many rows as the largest answer has: each with fewer is whole. Of those with as many, one
        of which the PACS itself counts as many studies is believed; unless that is so, too, of one that shows more when its days
        are asked for in halves, so that these numbers mean nothing. Raises what asking raises.
        """
        with self._lock:
            if self._doubtful is None:
                self._ask_the_rest(session, ask)
                listed = self.listed(session).studies
                most = max([2, *(rows for rows in self._rows.values() if rows is not None)])
                largest = [patient for patient in listed if (self._rows.get(patient) or 0) >= most]
                counted = [patient for patient in largest if listed[patient] == self._found.get(patient)]
                believed = set(counted[_COMPARED:])
                if believed and any(_shows_more(patient, ask) for patient in counted[:_COMPARED]):
                    believed = set()
                unasked = [patient for patient in listed if self._rows.get(patient) is None]
                self._doubtful = unasked + [patient for patient in largest if patient not in believed]
            return self._doubtful

    # -- who has what
    def shown(self, study: str, patient: str) -> bool:
        """Remember that this patient has this study; True if another one was known to have it, or had it, and this one was not."""
        of = self._of.get(study, ())
        if patient in of:
            return False
        self._of[study] = (*of, patient)
        was_given_away = study in self._given_away
        self._given_away.discard(study)
        return bool(of) or was_given_away

    def remembered(self, study: str) -> tuple[str, ...]:
        """Who has the study, as far as that has been shown; without asking."""
        return self._of.get(study, ())

    def of(self, session: FindSession, study: str, ask: Ask) -> tuple[str, ...]:
        """Everybody who has the study; nobody where the PACS shows it to nobody. Raises what asking raises.

        All patients are asked, unless they have been since the list was made; and once more for one that nobody has.
        """
        with self._lock:
            self._ask_the_rest(session, ask)
            if study not in self._of:
                self.look_again(session, ask)
            return self.remembered(study)

    def look_again(self, session: FindSession, ask: Ask) -> bool:
        """Ask everybody once more, and who has come since; False, and nothing is asked, where that was done since the last sweep began."""
        with self._lock:
            if self._looked_again:
                return False
            self.list_anew(session)
            self._ask_the_rest(session, ask)
            self._looked_again = True
            return True

    def known(self, study: str) -> tuple[str, ...]:
        """The same without asking; nobody, too, where it takes a question to tell."""
        with self._lock:
            whole = self._listed is not None and all(patient in self._rows for patient in self._listed.studies)
            return self.remembered(study) if whole else ()

    def _ask_the_rest(self, session: FindSession, ask: Ask) -> None:
        """Ask who has not been asked since the list was made. Who cannot be asked is left out: the question of a sweep says so and blocks."""
        left = [patient for patient in self.listed(session).studies if patient not in self._rows]
        try:
            for _ in self._each(left, ask):
                pass
        except QueryFailed:
            self._rows |= {patient: None for patient in left if patient not in self._rows}

    def gave_away(self, session: FindSession, study: str, patient: str) -> bool:
        """Whether the patient no longer has this study, which is forgotten then; a study without images is still shown."""
        rows = session.find("STUDY", {_STUDY_UID: study, _PATIENT_ID: patient}, (_STUDY_UID,))
        if any(row.get(_STUDY_UID) == study for row in list(rows)):
            return False
        with self._lock:
            self._of[study] = tuple(one for one in self._of.get(study, ()) if one != patient)
            if not self._of[study]:
                del self._of[study]
                self._given_away.add(study)
        return True

    @property
    def known_to_insist(self) -> bool | None:
        """What `insists` has found; None before it was asked."""
        return self._insists


def _shows_more(patient: str, ask: Ask) -> bool:
    """Whether two halves of all days show more of a patient's studies than the question without a day."""
    try:
        shown = {study.study.study: study.date for study in ask({_PATIENT_ID: patient}, 0)}
        days = sorted(date for date in shown.values() if date is not None)
        if not days:
            return False
        middle = datetime.datetime.strptime(days[(len(days) - 1) // 2], "%Y%m%d")
        halves = (f"19000101-{middle:%Y%m%d}", f"{middle + datetime.timedelta(1):%Y%m%d}-21001231")
        return any(study.study.study not in shown for half in halves for study in ask({_PATIENT_ID: patient, _STUDY_DATE: half}, 0))
    except (QueryFailed, ValueError):
        return False  # questions by date fail for the others, too, and say so
