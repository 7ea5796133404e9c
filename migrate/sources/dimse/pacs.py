"""What all that talks to a PACS shares: where it is, how it is asked, and what has come from it."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TypeVar

from migrate.config import ReceiverSettings, SourceSettings
from migrate.dicom.receiver import Receiver, ReceiverLimits
from migrate.dicom.scu import FindSession
from migrate.model import Received, SeriesPlan, StudyFound, StudyPlanned, StudyRef, Window, is_uid
from migrate.sources.dimse import study_rows
from migrate.sources.dimse.arrivals import Arrivals
from migrate.sources.dimse.association_limit import AssociationLimit
from migrate.sources.dimse.patients import Patients
from migrate.sources.dimse.peer import peer_of, with_addresses
from migrate.staging.area import Staging

_STUDY_UID, _SERIES_UID, _SOP_UID = 0x0020000D, 0x0020000E, 0x00080018
_MODALITY, _SERIES_COUNT, _PATIENT_ID = 0x00080060, 0x00201209, study_rows.PATIENT_ID
_HIDING_PATIENTS = "Lists of patients are cut off after {rows} rows: ask the vendor for the number of patients."
_INSISTS = "Below the level PATIENT nothing is answered without one PatientID."
_ANY = Window(None, None, "patient")
Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


class DimsePacs:
    """One PACS: questions to it, the receiver that it sends to, and the account of what has come."""

    def __init__(
        self,
        settings: SourceSettings,
        receiver: ReceiverSettings,
        staging: Staging,
        deliver: Callable[[Received], Future[None] | None],
        associations: int | None = None,
    ) -> None:
        """`associations`: no more are opened to the PACS at once, C-FINDs and C-MOVEs together; None: as many as there is work for."""
        self.settings = settings
        self.habits: dict[str, tuple[str, str]] = {}
        self.arrivals = Arrivals()
        self._deliver = deliver
        self.staging = staging
        self.stopped = threading.Event()
        self.places = AssociationLimit(associations, self.stopped)
        self.title = receiver.ae_title
        self.peer = peer_of(settings, receiver)
        self._move_ids = itertools.count()
        self.patients = Patients(self.stopped)
        # Whoever waits for the study has to notice the silence first.
        limits = ReceiverLimits(idle_s=2 * settings.stall_s, dataset_s=settings.attempt_s)
        self.receiver = Receiver(with_addresses(receiver), staging, self._received, limits)

    def open(self) -> None:
        self.receiver.start()

    def quiet_in_s(self) -> float:
        """See `Source.quiet_in_s`."""
        last = max(self.arrivals.any_at, self.receiver.last_byte_at())
        return max(last + self.settings.settle_s - time.monotonic(), 0.0) if self.arrivals.total else 0.0

    def close(self) -> None:
        self.receiver.close()

    def cut(self) -> None:
        self.stopped.set()
        self.receiver.stop_accepting()

    def _received(self, received: Received) -> Future[None] | None:
        answer = self._deliver(received)
        self.arrivals.add(received)
        return answer

    @contextlib.contextmanager
    def asking(self) -> Iterator[FindSession]:
        with self.places.one(), FindSession(self.peer) as session:
            yield session

    # -- questions
    def by_patient(self) -> bool:
        """Whether it answers nothing below the level PATIENT without one PatientID."""
        if self.patients.known_to_insist is None:
            with self.asking() as session:
                return self.patients.insists(session)
        return self.patients.known_to_insist

    def count_patients(self) -> tuple[int, str]:
        """How many patients can be asked for, listed anew; and why there may be more, "" where that is all."""
        with self.asking() as session:
            listed = self.patients.list_anew(session)
        self.habits["insists_on_patient_id"] = ("yes", _INSISTS)
        if listed.cut_at:
            self.habits["cap_patients"] = (str(listed.cut_at), _HIDING_PATIENTS.format(rows=listed.cut_at))
        return len(listed.studies), listed.trouble

    def studies(self, window: Window) -> Generator[StudyFound]:
        """Those of one window, over an association of its own; see `Source.questions`."""
        with self.asking() as session:
            yield from self._studies(session, window)

    def questions(self) -> AbstractContextManager[Callable[[Window], Generator[StudyFound]]]:
        """See `Source.questions`; associates with the first one."""
        return self._one_after_the_other(self._studies)

    def _studies(self, session: FindSession, window: Window) -> Generator[StudyFound]:
        ask = functools.partial(self.rows, session, window)
        if not self.patients.insists(session):
            yield from () if window.share else ask(study_rows.keys(window))
        elif window.share:
            yield from self.patients.one_by_one(session, window.share, ask)
        else:
            doubtful, prefix = self.patients.doubtful(session, functools.partial(self.rows, session, _ANY)), window.patient or ""
            keys = study_rows.keys(window)
            asked = [patient for patient in doubtful if study_rows.begins(patient, prefix)]
            yield from self.patients.in_turn(asked, lambda patient, number: ask(keys | {_PATIENT_ID: patient}, number))
        if session.saw_ff01:
            self.habits["ff01"] = ("yes", "Rows come with FF01: some optional keys are not supported.")

    def rows(self, session: FindSession, window: Window, keys: Mapping[int, str], query: int | None = None) -> Iterator[StudyFound]:
        """The rows of one C-FIND, told by its number `query` from others that are asked for the same window."""
        patient = keys.get(_PATIENT_ID) if self.patients.known_to_insist else None
        for row in session.find("STUDY", keys, study_rows.WANTED):
            study = study_rows.study_found(row)
            shared = patient is not None and self.patients.shown(study.study.study, patient)
            of_several = patient is not None and len(self.patients.remembered(study.study.study)) > 1  # what one counts is not all
            claimed = None if of_several else study.claimed_instances
            yield replace(study, outside=not study_rows.fits(window, row, study), claimed_instances=claimed, query=query, shared=shared)

    def instances(self, study: StudyRef) -> StudyPlanned:
        with self.asking() as session:
            return self._instances(session, study)

    def listing(self) -> AbstractContextManager[Callable[[StudyRef], StudyPlanned]]:
        """See `Source.listing`; associates with the first study."""
        return self._one_after_the_other(self._instances)

    @contextlib.contextmanager
    def _one_after_the_other(self, ask: Callable[[FindSession, Asked], Answer]) -> Iterator[Callable[[Asked], Answer]]:
        with contextlib.ExitStack() as stack:
            opened: list[FindSession] = []

            def over_one_association(what: Asked) -> Answer:
                if not opened:
                    opened.append(stack.enter_context(self.asking()))
                return ask(opened[0], what)

            yield over_one_association

    def _instances(self, session: FindSession, study: StudyRef) -> StudyPlanned:
        if not self.patients.insists(session):
            return self.listed(session, study, {})
        for again in (True, False):
            plans = {patient: self.listed(session, study, {_PATIENT_ID: patient}) for patient in self._patients_of(session, study)}
            hollow = [patient for patient, plan in plans.items() if not plan.series]
            gone = [patient for patient in hollow if self.patients.gave_away(session, study.study, patient)]
            if not (gone and again and self.patients.look_again(session, functools.partial(self.rows, session, _ANY))):
                break  # else somebody else may have what they gave away
        return united(study, [plan for patient, plan in plans.items() if patient not in gone])

    def _patients_of(self, session: FindSession, study: StudyRef) -> tuple[str, ...]:
        return self.patients.of(session, study.study, functools.partial(self.rows, session, _ANY))

    def listed(self, session: FindSession, study: StudyRef, patient: dict[int, str]) -> StudyPlanned:
        """What SERIES and IMAGE rows list; a row without a valid UID is kept apart, and the others count."""
        series: dict[str, tuple[str, int | None]] = {}
        plans, notes = [], []
        unreadable: list[str] = []
        keys = {_STUDY_UID: study.study, **patient}
        for row in session.find("SERIES", keys, (_SERIES_UID, _MODALITY, _SERIES_COUNT)):
            uid = row.get(_SERIES_UID, "")
            if is_uid(uid):
                series[uid] = (row.get(_MODALITY, ""), study_rows.number(row.get(_SERIES_COUNT, "")))
            else:
                unreadable.append(f"a series: {json.dumps(uid[:64])}")
        for uid, (modality, claimed) in series.items():
            sops = [row.get(_SOP_UID, "") for row in session.find("IMAGE", keys | {_SERIES_UID: uid}, (_SOP_UID,))]
            unreadable += [f"an image of series {uid}: {json.dumps(sop[:64])}" for sop in sops if not is_uid(sop)]
            valid = tuple(dict.fromkeys(filter(is_uid, sops)))
            if claimed is not None and claimed != len(valid):
                notes.append(f"series {uid}: {claimed} instances claimed, {len(valid)} listed")
            plans.append(SeriesPlan(uid, modality, valid, claimed))
        return StudyPlanned(study, tuple(plans), tuple(notes), tuple(sorted(unreadable)))

    # -- what a C-MOVE needs
    def patients_of(self, study: StudyRef) -> tuple[str | None, ...]:
        """The PatientIDs that C-MOVEs must name, one each, to bring all of a study; (None,) where the PACS does without."""
        if self.patients.known_to_insist is False:
            return (None,)
        if known := self.patients.known(study.study):
            return known
        with self.asking() as session:
            return (self.patients.insists(session) and self._patients_of(session, study)) or (None,)

    def one_patient_of(self, study: StudyRef) -> str | None:
        """The PatientID that a C-MOVE may name to bring any image that was just listed; None where the PACS does without."""
        return next(iter(self.patients.remembered(study.study) or self.patients_of(study)))

    def next_move_id(self) -> int:
        """A message ID for a C-MOVE: what comes of it can name it (PS3.7 9.1.1.1.11)."""
        return next(self._move_ids) % 0xFFFF + 1


def united(study: StudyRef, plans: Sequence[StudyPlanned]) -> StudyPlanned:
    """What several answers list of a study, each of one of its patients. What one claims beyond what it lists stays a claim."""
    if len(plans) == 1:
        return plans[0]
    series: dict[str, SeriesPlan] = {}
    short: Counter[str] = Counter()
    for one in (each for plan in plans for each in plan.series):
        before = series.get(one.series)
        short[one.series] += max((one.claimed_instances or 0) - len(one.sops), 0)
        sops = tuple(dict.fromkeys((*(before.sops if before else ()), *one.sops)))
        claimed = None if one.claimed_instances is None and (before is None or before.claimed_instances is None) else len(sops) + short[one.series]
        series[one.series] = SeriesPlan(one.series, one.modality, sops, claimed)
    notes, unreadable = (tuple(itertools.chain.from_iterable(lines)) for lines in ([plan.notes for plan in plans], [plan.unreadable for plan in plans]))
    return StudyPlanned(study, tuple(series.values()), notes, tuple(sorted(unreadable)))
