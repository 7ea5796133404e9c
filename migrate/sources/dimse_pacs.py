"""What all that talks to a PACS shares: where it is, how it is asked, and what has come from it."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from dataclasses import replace

from migrate.config import ReceiverConfig, SourceSettings
from migrate.dicom.receiver import Receiver, ReceiverSettings
from migrate.dicom.scu import FindSession
from migrate.errors import QueryRefused
from migrate.model import Received, SeriesPlan, StudyFound, StudyPlanned, StudyRef, Window
from migrate.sources import study_rows
from migrate.sources.arrivals import Arrivals
from migrate.sources.patients import Patients
from migrate.sources.peers import addresses, peer_of
from migrate.sources.places import Places
from migrate.staging.area import Staging

_STUDY_UID, _SERIES_UID, _SOP_UID = 0x0020000D, 0x0020000E, 0x00080018
_MODALITY, _SERIES_COUNT, _PATIENT_ID = 0x00080060, 0x00201209, study_rows.PATIENT_ID
_HIDING_PATIENTS = (
    "Lists of patients are cut off after {rows} rows. They were asked for in parts; whoever has no PatientID, or one with a wildcard or a "
    "letter beyond ASCII, is in no part and may be hidden: ask the vendor for the number of patients."
)


class DimsePacs:
    """One PACS: questions to it, the receiver that it sends to, and the account of what has come."""

    def __init__(
        self,
        settings: SourceSettings,
        receiver: ReceiverConfig,
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
        self.places = Places(associations, self.stopped)
        self.title = receiver.ae_title
        self.peer = peer_of(settings, receiver)
        self._move_ids = itertools.count()
        self.patients = Patients(self.stopped)
        self.receiver = Receiver(
            ReceiverSettings(
                receiver.ae_title,
                receiver.host,
                receiver.port,
                tuple(address for name in receiver.allow for address in addresses(name)),
                receiver.allow_ae,
                receiver.max_pdu,
                "durable" if receiver.ack == "durable" else "received",
                idle_s=settings.stall_s,
                dataset_s=settings.attempt_s,
                transfer_syntax_order=receiver.transfer_syntaxes,
                tls=receiver.tls,
            ),
            staging,
            self._received,
        )

    def open(self) -> None:
        self.receiver.start()

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
    def studies(self, window: Window) -> Generator[StudyFound]:
        keys, trouble = study_rows.keys(window), ""
        with self.asking() as session:
            questions = [keys]
            if self.patients.insists(session):
                listed, prefix = self.patients.for_question(session, window), window.patient or ""
                questions = [keys | {_PATIENT_ID: patient} for patient in listed.ids if study_rows.begins(patient, prefix)]
                trouble = listed.trouble
                if listed.cut_at is not None:
                    self.habits["cap_patients"] = (str(listed.cut_at), _HIDING_PATIENTS.format(rows=listed.cut_at))
            for number, question in enumerate(questions):
                yield from self.rows(session, window, question, number if self.patients.known_to_insist else None)
            if session.saw_ff01:
                self.habits["ff01"] = ("yes", "Rows come with FF01: some optional keys are not supported.")
        if trouble:
            raise QueryRefused(f"The PACS insists on a PatientID with every question, and {trouble}.")

    def rows(self, session: FindSession, window: Window, keys: dict[int, str], query: int | None) -> Iterator[StudyFound]:
        for row in session.find("STUDY", keys, study_rows.WANTED):
            study = study_rows.study_found(row)
            if self.patients.known_to_insist:
                self.patients.shown(study.study.study, keys[_PATIENT_ID])
            yield replace(study, outside=not study_rows.fits(window, row, study), query=query)

    def instances(self, study: StudyRef) -> StudyPlanned:
        with self.asking() as session:
            if not self.patients.insists(session):
                return self.listed(session, study, {})
            plan = StudyPlanned(study, ())
            for _ in range(2):
                patient = self.patients.of(session, study.study)
                if patient is not None:
                    plan = self.listed(session, study, {_PATIENT_ID: patient})
                if plan.series or patient is None or not self.patients.gave_away(session, study.study):
                    break
            return plan

    def listed(self, session: FindSession, study: StudyRef, patient: dict[int, str]) -> StudyPlanned:
        series: dict[str, tuple[str, int | None]] = {}
        plans, notes = [], []
        keys = {_STUDY_UID: study.study, **patient}
        for row in session.find("SERIES", keys, (_SERIES_UID, _MODALITY, _SERIES_COUNT)):
            series[study_rows.uid(row, _SERIES_UID)] = (row.get(_MODALITY, ""), study_rows.number(row.get(_SERIES_COUNT, "")))
        for uid, (modality, claimed) in series.items():
            rows = session.find("IMAGE", keys | {_SERIES_UID: uid}, (_SOP_UID,))
            sops = tuple(dict.fromkeys(study_rows.uid(row, _SOP_UID) for row in rows))
            if claimed is not None and claimed != len(sops):
                notes.append(f"series {uid}: {claimed} instances claimed, {len(sops)} listed")
            plans.append(SeriesPlan(uid, modality, sops, claimed))
        return StudyPlanned(study, tuple(plans), tuple(notes))

    # -- what a C-MOVE needs
    def patient_of(self, study: StudyRef) -> str | None:
        """The PatientID that a C-MOVE must name; None where the PACS does without."""
        known = self.patients.remembered(study.study)
        if known is not None or self.patients.known_to_insist is False:
            return known
        with self.asking() as session:
            return self.patients.of(session, study.study) if self.patients.insists(session) else None

    def next_move_id(self) -> int:
        """A message ID for a C-MOVE: what comes of it can name it (PS3.7 9.1.1.1.11)."""
        return next(self._move_ids) % 0xFFFF + 1
