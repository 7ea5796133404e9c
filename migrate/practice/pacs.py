"""The practice PACS: C-ECHO, C-FIND and C-MOVE over a synthetic archive, honest unless it is given faults."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
from collections.abc import Callable, Collection, Iterator
from types import TracebackType

from migrate.dicom import dimse
from migrate.dicom.identifier import decode_identifier
from migrate.dicom.upper_layer import (
    AcceptedContext,
    AssociateRequest,
    Association,
    ProposedContext,
    Rejected,
    UpperLayerError,
)
from migrate.practice.faults import Conduct
from migrate.practice.finding import Find
from migrate.practice.holdings import Holdings
from migrate.practice.matching import BadQuery, Match, Query
from migrate.practice.moving import CANNOT_SEND, Move, Work
from migrate.practice.records import InstanceRecord
from migrate.practice.studies import Archive

_FIND_MODELS = frozenset((dimse.STUDY_ROOT_FIND, dimse.PATIENT_ROOT_FIND))
_MOVE_MODELS = frozenset((dimse.STUDY_ROOT_MOVE, dimse.PATIENT_ROOT_MOVE))
_STUDY_ROOT = frozenset((dimse.STUDY_ROOT_FIND, dimse.STUDY_ROOT_MOVE))
_MODELS = _FIND_MODELS | _MOVE_MODELS | {dimse.VERIFICATION}
_UNTIL_BUSY = 10  # associations


class PracticePacs:
    """A PACS on a socket of its own, between `start` and `close`.

    `destinations` says where an AE title's C-MOVEs go: {title: (host, port)}, read anew for every C-MOVE. `port` 0
    takes a free one; afterwards `port` is the one in use. `counts` tells what it was asked and what it sent, by name
    ("find STUDY", "move SERIES", "store", "echo" ...). `faults` are `NAME` or `NAME=VALUE`; `holdings` is what a PACS
    that has them holds and shows. Raises ValueError for an unknown fault or a bad value, OSError from `start` when the
    port is taken.
    """

    def __init__(
        self,
        archive: Archive,
        *,
        ae_title: str = "PRACTICE",
        host: str = "127.0.0.1",
        port: int = 0,
        destinations: dict[str, tuple[str, int]] | None = None,
        faults: Collection[str] = (),
    ) -> None:
        self.archive, self.ae_title, self.host, self.port = archive, ae_title, host, port
        self.destinations = {} if destinations is None else destinations
        self._conduct = Conduct(faults)
        self.counts = self._conduct.counts
        self.holdings = Holdings(archive, self._conduct)
        self._room = threading.Condition()
        self._inside = 0  # associations that have been taken
        self._lock = threading.RLock()
        self._listener: socket.socket | None = None
        self._threads: set[threading.Thread] = set()
        self._late: list[threading.Thread] = []  # sending after the final answer
        self._open: set[Association] = set()
        self._sockets: set[socket.socket] = set()
        self._closing = threading.Event()

    # -- life
    def start(self) -> PracticePacs:
        """Listen; returns at once, itself."""
        self._listener = socket.create_server((self.host, self.port), backlog=128)
        self._listener.settimeout(0.2)
        self.port = self._listener.getsockname()[1]
        self._run(self._listen, self._listener)
        return self

    def close(self) -> None:
        """Stop listening, cut all associations, wait for the threads."""
        self._closing.set()
        if self._listener is not None:
            self._listener.close()
        with self._lock:
            associations, sockets, threads = list(self._open), list(self._sockets), list(self._threads)
        for association in associations:
            association.close()
        for sock in sockets:  # still negotiating: wakes the thread that reads
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(10)

    def drain(self, limit_s: float = 30.0) -> None:
        """Wait until everything that was promised early has been sent."""
        with self._lock:
            late = list(self._late)
        for thread in late:
            thread.join(limit_s)

    def __enter__(self) -> PracticePacs:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _run(self, target: Callable[..., None], *args: object) -> threading.Thread:
        def body() -> None:
            try:
                with contextlib.suppress(UpperLayerError, dimse.BadCommand):
                    target(*args)
            finally:
                with self._lock:
                    self._threads.discard(threading.current_thread())

        thread = threading.Thread(target=body, name="practice-pacs", daemon=True)
        with self._lock:
            self._threads.add(thread)
        thread.start()
        return thread

    def _listen(self, listener: socket.socket) -> None:
        while not self._closing.is_set():
            try:
                sock, _ = listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            self._run(self._serve, sock)

    @contextlib.contextmanager
    def _kept(self, association: Association) -> Iterator[Association]:
        """Known to `close` as long as it lives."""
        with self._lock:
            self._open.add(association)
        try:
            if self._closing.is_set():
                association.close()
            yield association
        finally:
            with self._lock:
                self._open.discard(association)

    # -- the accepting side
    def _admit(self, request: AssociateRequest) -> Rejected | None:
        if request.called != self.ae_title:
            return Rejected(1, 1, 7)
        limit = self._conduct.number("association-limit")
        busy = self._conduct.number("busy")
        if busy and _UNTIL_BUSY < self._conduct.tried("busy") <= _UNTIL_BUSY + busy:
            self._conduct.count("association rejected")
            return Rejected(2, 3, 1)
        with self._room:
            # A peer that has just released finds its place free, however late that is noticed here.
            if limit is not None and not self._room.wait_for(lambda: self._inside < limit, 0.2):
                self._conduct.count("association rejected")
                return Rejected(2, 3, 2)
            self._inside += 1
        return None

    def _choose(self, offer: ProposedContext) -> str | None:
        model = offer.abstract_syntax
        if model not in _MODELS or (model in _STUDY_ROOT and "patient-root-only" in self._conduct):
            return None
        known = (syntax for syntax in offer.transfer_syntaxes if syntax in (dimse.IMPLICIT_LE, dimse.EXPLICIT_LE))
        return next(known, None)

    def _serve(self, sock: socket.socket) -> None:
        taken = []

        def admit(request: AssociateRequest) -> Rejected | None:
            rejected = self._admit(request)
            taken.append(rejected is None)
            return rejected

        try:
            with self._lock:
                self._sockets.add(sock)
            try:
                association = Association.accept(sock, choose=self._choose, admit=admit)
            finally:
                with self._lock:
                    self._sockets.discard(sock)
            self._conduct.count("association")
            with self._kept(association):
                for answered in itertools.count(1):
                    if not association.open or (message := dimse.receive(association)) is None:
                        break
                    self._answer(association, message)
                    if answered == self._conduct.number("few-questions"):
                        association.close()
        finally:
            if any(taken):
                with self._room:
                    self._inside -= 1
                    self._room.notify_all()

    def _answer(self, association: Association, message: dimse.Message) -> None:
        command, context = message.command, association.contexts.get(message.context_id)
        if context is None:
            association.abort()
        elif command.field == dimse.C_ECHO:
            self._conduct.count("echo")
            association.send_command(context.id, dimse.response(command, dimse.SUCCESS))
        elif command.field == dimse.C_FIND and context.abstract_syntax in _FIND_MODELS:
            self._find(association, message, context)
        elif command.field == dimse.C_MOVE and context.abstract_syntax in _MOVE_MODELS:
            self._move(association, message, context)
        elif command.field != dimse.C_CANCEL:  # one that comes too late is nothing to answer
            association.send_command(context.id, dimse.response(command, dimse.UNRECOGNIZED_OPERATION))

    def _query(self, message: dimse.Message, syntax: str, model: str) -> Query | None:
        try:
            return Query(
                decode_identifier(message.dataset or b"", syntax),
                patient_root=model not in _STUDY_ROOT,
                strict="patient-root-only" in self._conduct,
                relational="relational" in self._conduct and message.command.field == dimse.C_FIND,
            )
        except (dimse.BadIdentifier, BadQuery):
            return None

    def _find(self, association: Association, message: dimse.Message, context: AcceptedContext) -> None:
        syntax, pause = context.transfer_syntax, self._closing.wait
        find = Find(self.holdings, self._conduct, self.ae_title, pause, association, message, syntax)
        find.run(self._query(message, syntax, context.abstract_syntax))

    # -- C-MOVE
    def _move(self, association: Association, message: dimse.Message, context: AcceptedContext) -> None:
        command, query = message.command, self._query(message, context.transfer_syntax, context.abstract_syntax)
        self._conduct.count(f"move {query.level}" if query else "move refused")
        move = Move(self.holdings, self.ae_title, self._conduct, self._kept, self._closing.wait, association, message)
        try:
            if query is None:
                raise BadQuery
            query.require_uids()
            if query.level == "PATIENT":
                query.level = "STUDY"
            matches = list(query.matches(self.holdings))
        except BadQuery:
            return move.end(dimse.IDENTIFIER_MISMATCH)
        destination = self.destinations.get(command.text(dimse.MOVE_DESTINATION))
        if destination is None:
            return move.end(dimse.DESTINATION_UNKNOWN)
        work = [(match.study, instance) for match in matches for instance in _instances(match)]
        if matches:
            move.study = matches[0].study.number
            if move.fault("whole-study"):
                work = [(match.study, instance) for match in dict.fromkeys(Match(match.study) for match in matches) for instance in _instances(match)]
        move.remaining = len(work)
        if (status := self._refusal(move, matches)) is not None:
            return move.end(status)
        if move.fault("never-answers"):
            return None
        sends = self._conduct.number("stops-sending")
        if move.fault("success-nothing-sent") or (sends is not None and self._conduct.tried("move") > sends):
            move.remaining, move.completed = 0, len(work)
            return move.end(dimse.SUCCESS)
        if move.fault("early-success") or move.fault("late-stores"):
            move.remaining, move.completed = 0, len(work)
            with self._lock:  # so that whoever has the answer can `drain`
                move.end(dimse.SUCCESS)
                move.told = True
                self._late = [thread for thread in self._late if thread.is_alive()]
                self._late.append(self._run(self._send_late, move, work, destination))
            return None
        return move.send(work, destination)

    def _refusal(self, move: Move, matches: list[Match]) -> int | None:
        """The status by which a C-MOVE ends before anything is sent."""
        if move.fault("move-unknown"):
            return dimse.DESTINATION_UNKNOWN
        if status := move.fault("move-status"):
            return int(status)
        times = move.fault("move-busy")
        return CANNOT_SEND if times and self._conduct.tried(f"busy {matches[0].study.uid}") <= times else None

    def _send_late(self, move: Move, work: Work, destination: tuple[str, int]) -> None:
        self._closing.wait(move.fault("late-stores"))
        move.send(work, destination)


def _instances(match: Match) -> Iterator[InstanceRecord]:
    if match.instance:
        yield match.instance
    else:
        for series in (match.series,) if match.series else match.study.series:
            yield from series.instances
