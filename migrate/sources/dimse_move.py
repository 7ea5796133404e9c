"""A PACS that answers C-FIND and sends by C-MOVE to the Storage SCP in this process."""

from __future__ import annotations

import contextlib
import datetime
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from dataclasses import replace

from migrate.config import ReceiverConfig, SourceSettings
from migrate.dicom.receiver import Receiver, ReceiverSettings
from migrate.dicom.scu import MAX_SOPS, FindSession, MoveResult, Peer, echo, move
from migrate.errors import NothingSent, PacsMigrateError, QueryFailed, QueryRefused, SourceError, SourceStalled, SourceUnreachable
from migrate.model import (
    Finding,
    Received,
    RetrieveEnded,
    SeriesPlan,
    StudyFound,
    StudyPlanned,
    StudyRef,
    Wanted,
    Window,
)
from migrate.sources import study_rows
from migrate.sources.patients import Patients
from migrate.staging import Staging, local_error

_STUDY_UID, _SERIES_UID, _SOP_UID = 0x0020000D, 0x0020000E, 0x00080018
_MODALITY, _SERIES_COUNT, _PATIENT_ID = 0x00080060, 0x00201209, study_rows.PATIENT_ID
_WAITS = 0.05
_EMPTY_SUCCESSES = 3
_ROOM_S = 30.0  # how long uploads may take to release the next staged file


class _Arrivals:
    """What has come of the studies being retrieved, by UID."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.by_study: dict[str, set[tuple[str, str]]] = {}
        self.total = 0
        self.last_at = time.monotonic()

    def add(self, received: Received) -> None:
        with self.lock:
            self.total += 1
            self.last_at = time.monotonic()
            ref = received.ref
            if ref is not None and ref.study in self.by_study:
                self.by_study[ref.study].add((ref.series, ref.sop))


class DimseMove:
    """C-FIND and C-MOVE against one PACS, with the receiver that it sends to."""

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
        self._places = None if associations is None else threading.BoundedSemaphore(associations)
        self.habits: dict[str, tuple[str, str]] = {}
        self._arrivals = _Arrivals()
        self._deliver = deliver
        self._staging = staging
        self._stopped = threading.Event()
        self._title = receiver.ae_title
        self._peer = peer_of(settings, receiver)
        self._empty_successes: set[str] = set()
        self._patients = Patients(self._stopped)
        self._receiver = Receiver(
            ReceiverSettings(
                receiver.ae_title,
                receiver.host,
                receiver.port,
                tuple(address for name in receiver.allow for address in addresses(name)),
                receiver.allow_ae,
                receiver.max_pdu,
                "durable" if receiver.ack == "durable" else "received",
                idle_s=settings.stall_s,
                transfer_syntax_order=receiver.transfer_syntaxes,
                tls=receiver.tls,
            ),
            staging,
            self._received,
        )

    def open(self) -> None:
        self._receiver.start()

    def close(self) -> None:
        self._receiver.close()

    def cut(self) -> None:
        self._stopped.set()
        self._receiver.stop_accepting()

    def _received(self, received: Received) -> Future[None] | None:
        answer = self._deliver(received)
        self._arrivals.add(received)
        return answer

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """One of the associations that the PACS allows. Raises SourceStalled when the run is being stopped."""
        while self._places is not None and not self._places.acquire(timeout=0.2):
            if self._stopped.is_set():
                raise SourceStalled("The run is being stopped.")
        try:
            yield
        finally:
            if self._places is not None:
                self._places.release()

    @contextlib.contextmanager
    def _asking(self) -> Iterator[FindSession]:
        with self.place(), FindSession(self._peer) as session:
            yield session

    # -- questions
    def studies(self, window: Window) -> Generator[StudyFound]:
        keys, trouble = study_rows.keys(window), ""
        with self._asking() as session:
            questions = [keys]
            if self._patients.insists(session):
                listed, prefix = self._patients.for_question(session, window), window.patient or ""
                questions = [keys | {_PATIENT_ID: patient} for patient in listed.ids if study_rows.begins(patient, prefix)]
                trouble = listed.trouble
            for number, question in enumerate(questions):
                yield from self._rows(session, window, question, number if self._patients.known_to_insist else None)
            if session.saw_ff01:
                self.habits["ff01"] = ("yes", "Rows come with FF01: some optional keys are not supported.")
        if trouble:
            raise QueryRefused(f"The PACS insists on a PatientID with every question, and {trouble}.")

    def _rows(self, session: FindSession, window: Window, keys: dict[int, str], query: int | None) -> Iterator[StudyFound]:
        for row in session.find("STUDY", keys, study_rows.WANTED):
            study = study_rows.study_found(row)
            if self._patients.known_to_insist:
                self._patients.shown(study.study.study, keys[_PATIENT_ID])
            yield replace(study, outside=not study_rows.fits(window, row, study), query=query)

    def instances(self, study: StudyRef) -> StudyPlanned:
        with self._asking() as session:
            if not self._patients.insists(session):
                return self._instances(session, study, {})
            plan = StudyPlanned(study, ())
            for _ in range(2):
                patient = self._patients.of(session, study.study)
                if patient is not None:
                    plan = self._instances(session, study, {_PATIENT_ID: patient})
                if plan.series or patient is None or not self._patients.gave_away(session, study.study):
                    break
            return plan

    def _instances(self, session: FindSession, study: StudyRef, patient: dict[int, str]) -> StudyPlanned:
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

    # -- retrieval
    def patient_of(self, study: StudyRef) -> str | None:
        """The PatientID that a C-MOVE must name; None where the PACS does without."""
        known = self._patients.remembered(study.study)
        if known is not None or self._patients.known_to_insist is False:
            return known
        with self._asking() as session:
            return self._patients.of(session, study.study) if self._patients.insists(session) else None

    def retrieve(self, study: StudyRef, wanted: Wanted) -> RetrieveEnded:
        """Ask for the whole study, then for what is still missing by series and by instance, within one attempt.

        What our own disk turned away is asked for again, within the same attempt, as uploads make room. Raises LocalError
        where they do not: a full disk is no failure of the study.
        """
        attempt = _Attempt(self, study, wanted)
        with attempt:
            error, detail = self._asked(attempt, whole=wanted.whole)
            while attempt.was_turned_away():
                taken, seen = self._arrivals.total, self._staging.turned_away
                self._await_room()
                error, detail = self._asked(attempt, whole=False)
                if self._arrivals.total == taken and self._staging.turned_away > seen and self._staging.trouble:
                    raise local_error(self._staging.trouble, "receiving images") from self._staging.trouble
            if attempt.status == 0 and not attempt.arrived() and attempt.missing():
                self._nothing_came(study)
            return RetrieveEnded(study, attempt.status, error, detail or attempt.said())

    def _asked(self, attempt: _Attempt, *, whole: bool) -> tuple[str | None, str]:
        """Ask once; (error, detail) of a failure that reaches no further than the study."""
        try:
            if whole:
                attempt.ask()
            attempt.ask_missing()
        except SourceError as failure:
            if failure.scope == "run":
                raise
            attempt.settle()
            return failure.name, str(failure)
        return None, ""

    def _await_room(self) -> None:
        """Wait while uploads release staged files, until nothing is staged any more."""
        held, since = self._staging.held_bytes, time.monotonic()
        while held > 0 and time.monotonic() - since < _ROOM_S and not self._stopped.wait(_WAITS):
            if self._staging.held_bytes < held:
                since = time.monotonic()
            held = self._staging.held_bytes

    def _nothing_came(self, study: StudyRef) -> None:
        """Success with nothing sent, for three studies, while nothing has ever come: a wrong address at the PACS."""
        if self._arrivals.total:
            return
        self._empty_successes.add(study.study)
        if len(self._empty_successes) >= _EMPTY_SUCCESSES:
            raise NothingSent("The PACS reported Success for three studies and has not sent a single image.")

    # -- preflight
    def check(self) -> list[Finding]:
        """C-ECHO, C-FIND, and a C-MOVE of one instance to ourselves."""
        findings: list[Finding] = []
        try:
            echo(self._peer)
            findings.append(Finding("C-ECHO", "ok", f"{self.settings.ae_title} answers.", part="source"))
            study = self._sample()
            if study is None:
                findings.append(Finding("C-FIND", "warn", "The PACS shows no study at all.", "Look at from and to.", "source"))
                return findings
            findings.append(Finding("C-FIND", "ok", "The PACS shows studies and their images.", part="source"))
            findings.append(self._check_move(study))
        except PacsMigrateError as error:
            findings.append(Finding("PACS", "fail", str(error), error.hint, "source"))
        return findings

    def _sample(self) -> StudyPlanned | None:
        """A study with images, from the newest months back; the first rows are enough."""
        with self._asking() as session:
            if self._patients.insists(session):
                return self._sample_of_patients(session)
        today = datetime.date.today()
        windows = [Window(f"{year}0101", f"{year}1231") for year in range(today.year, today.year - 40, -1)]
        for window in [*windows, Window(None, None, "all")]:
            with contextlib.suppress(QueryFailed):
                with contextlib.closing(self.studies(window)) as found:
                    rows = [row for _, row in zip(range(5), found, strict=False)]
                for row in rows:
                    plan = self.instances(row.study)
                    if any(series.sops for series in plan.series):
                        return plan
        return None

    def _sample_of_patients(self, session: FindSession) -> StudyPlanned | None:
        for patient in list(self._patients.some(session, 5)):
            for row in list(self._rows(session, Window(None, None, "all"), {_PATIENT_ID: patient}, 0)):
                plan = self._instances(session, row.study, {_PATIENT_ID: patient})
                if any(series.sops for series in plan.series):
                    return plan
        return None

    def _check_move(self, plan: StudyPlanned) -> Finding:
        series = next(series for series in plan.series if series.sops)
        attempt = _Attempt(self, plan.study, Wanted())
        with attempt:
            attempt.ask(series.series, series.sops[:1])
            if attempt.arrived():
                return Finding("C-MOVE", "ok", "The PACS sends to us.", part="source")
        hint = NothingSent.default_hint
        return Finding("C-MOVE", "fail", f"The PACS sent nothing ({attempt.said()}).", hint, "source")


class _Attempt:
    """One attempt at a study: its C-MOVEs, their time limits, and what came meanwhile."""

    def __init__(self, source: DimseMove, study: StudyRef, wanted: Wanted) -> None:
        self._source, self.study, self._wanted = source, study, wanted
        self._began = time.monotonic()
        self._asked = self._began
        self._turned_away = source._staging.turned_away
        self.status: int | None = None
        self._results: list[MoveResult] = []

    def __enter__(self) -> _Attempt:
        with self._source._arrivals.lock:
            self._source._arrivals.by_study[self.study.study] = set()
        return self

    def __exit__(self, *_: object) -> None:
        with self._source._arrivals.lock:
            self._source._arrivals.by_study.pop(self.study.study, None)

    def arrived(self) -> set[tuple[str, str]]:
        with self._source._arrivals.lock:
            return set(self._source._arrivals.by_study.get(self.study.study, ()))

    def missing(self) -> dict[str, tuple[str, ...]]:
        """What of the wanted has not come in this attempt."""
        arrived = self.arrived()
        left = {series: tuple(sop for sop in sops if (series, sop) not in arrived) for series, sops in self._wanted.series.items()}
        return {series: sops for series, sops in left.items() if sops}

    def was_turned_away(self) -> bool:
        """True if something is missing and our disk has turned data sets away since this was asked last."""
        before, self._turned_away = self._turned_away, self._source._staging.turned_away
        return self._turned_away > before and bool(self.missing()) and not self._too_long()

    def ask_missing(self) -> None:
        """By series where nothing of it is here, else by instance."""
        arrived = {series for series, _ in self.arrived()} | self._wanted.begun
        for series, sops in self.missing().items():
            if series not in arrived:
                self.ask(series)
                continue
            for first in range(0, len(sops), MAX_SOPS):
                self.ask(series, sops[first : first + MAX_SOPS])

    def ask(self, series: str | None = None, sops: tuple[str, ...] = ()) -> None:
        """One C-MOVE and its late stores. Raises SourceError."""
        patient = self._source.patient_of(self.study)
        with self._source.place():
            self._asked = time.monotonic()
            result = move(
                self._source._peer,
                self._source._title,
                study=self.study.study,
                series=series,
                sops=sops,
                patient=patient,
                should_stop=self._too_long,
            )
        self.status = result.status
        self._results.append(result)
        self.settle()

    def settle(self) -> None:
        """Wait for late C-STOREs until `settle_s` passes without a byte, or all that is wanted is here."""
        settle_s = self._source.settings.settle_s
        result = self._results[-1] if self._results else None
        if result is not None and result.status == 0 and result.completed is not None and result.completed <= len(self.arrived()):
            return
        while self.missing() and not self._source._stopped.wait(_WAITS):
            if time.monotonic() - max(self._last_sign(), self._asked) >= settle_s or self._too_long():
                return

    def _last_sign(self) -> float:
        return max(self._source._receiver.last_byte_at or 0.0, self._source._arrivals.last_at)

    def _too_long(self) -> str | None:
        now = time.monotonic()
        if self._source._stopped.is_set():
            return "The run is being stopped."
        if now - self._began > self._source.settings.attempt_s:
            return f"The attempt took longer than {self._source.settings.attempt_s:g} s."
        if now - max(self._last_sign(), self._asked) > self._source.settings.stall_s:
            return f"Nothing came from the PACS for {self._source.settings.stall_s:g} s."
        return None

    def said(self) -> str:
        """What the PACS's last answer said, in numbers only."""
        if not self._results:
            return "No answer."
        result = self._results[-1]
        return f"C-MOVE ended with status {result.status:04X}, {result.completed} completed, {result.failed} failed."


def peer_of(settings: SourceSettings, receiver: ReceiverConfig) -> Peer:
    """The PACS as we call it: by the receiver's AE title, which is the one that it knows us by."""
    return Peer(settings.host, settings.port, settings.ae_title, receiver.ae_title, answer_s=settings.stall_s, tls=settings.tls)


def addresses(name: str) -> list[str]:
    """The addresses behind a host name; a network or an address stands for itself."""
    if "/" in name:
        return [name]
    try:
        return sorted({str(info[4][0]) for info in socket.getaddrinfo(name, None)})
    except OSError as error:
        raise SourceUnreachable(f"The host name {name} cannot be resolved.") from error
