"""The practice PACS: C-ECHO, C-FIND and C-MOVE over a synthetic archive, honest unless it is given faults."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
from collections.abc import Callable, Collection, Iterator
from datetime import date
from types import TracebackType

from migrate.dicom import dimse
from migrate.dicom.identifier import decode_identifier, encode_identifier
from migrate.dicom.upper_layer import (
    AssociateRequest,
    Association,
    ProposedContext,
    Rejected,
    UpperLayerError,
)
from migrate.practice.faults import SILENT_CAP_ROWS, WIDEST_DAYS, Conduct
from migrate.practice.matching import BadQuery, Match, Query
from migrate.practice.moving import Move, cancelled
from migrate.practice.studies import Archive, InstanceRecord

_FIND_MODELS = frozenset((dimse.STUDY_ROOT_FIND, dimse.PATIENT_ROOT_FIND))
_MOVE_MODELS = frozenset((dimse.STUDY_ROOT_MOVE, dimse.PATIENT_ROOT_MOVE))
_MODELS = _FIND_MODELS | _MOVE_MODELS | {dimse.VERIFICATION}


class PracticePacs:
    """A PACS on a socket of its own, between `start` and `close`.

    `destinations` says where an AE title's C-MOVEs go: {title: (host, port)}, read anew for every C-MOVE. `port` 0
    takes a free one; afterwards `port` is the one in use. `counts` tells what it was asked and what it sent, by name
    ("find STUDY", "move SERIES", "store", "echo" ...). Raises ValueError for an unknown fault, OSError from `start`
    when the port is taken.
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
        return None if request.called == self.ae_title else Rejected(1, 1, 7)

    @staticmethod
    def _choose(offer: ProposedContext) -> str | None:
        if offer.abstract_syntax not in _MODELS:
            return None
        known = (syntax for syntax in offer.transfer_syntaxes if syntax in (dimse.IMPLICIT_LE, dimse.EXPLICIT_LE))
        return next(known, None)

    def _serve(self, sock: socket.socket) -> None:
        with self._lock:
            self._sockets.add(sock)
        try:
            association = Association.accept(sock, choose=self._choose, admit=self._admit)
        finally:
            with self._lock:
                self._sockets.discard(sock)
        self._conduct.count("association")
        with self._kept(association):
            while (message := dimse.receive(association)) is not None:
                self._answer(association, message)

    def _answer(self, association: Association, message: dimse.Message) -> None:
        command, context = message.command, association.contexts.get(message.context_id)
        if context is None:
            association.abort()
        elif command.field == dimse.C_ECHO:
            self._conduct.count("echo")
            association.send_command(context.id, dimse.response(command, dimse.SUCCESS))
        elif command.field == dimse.C_FIND and context.abstract_syntax in _FIND_MODELS:
            self._find(association, message, context.transfer_syntax)
        elif command.field == dimse.C_MOVE and context.abstract_syntax in _MOVE_MODELS:
            self._move(association, message, context.transfer_syntax)
        elif command.field != dimse.C_CANCEL:  # one that comes too late is nothing to answer
            association.send_command(context.id, dimse.response(command, dimse.UNRECOGNIZED_OPERATION))

    @staticmethod
    def _query(message: dimse.Message, syntax: str) -> Query | None:
        try:
            return Query(decode_identifier(message.dataset or b"", syntax))
        except (dimse.BadIdentifier, BadQuery):
            return None

    # -- C-FIND
    def _find(self, association: Association, message: dimse.Message, syntax: str) -> None:
        command, query = message.command, self._query(message, syntax)
        asked = self._conduct.count(f"find {query.level}" if query else "find refused")

        def end(status: int) -> None:
            association.send_command(message.context_id, dimse.response(command, status))

        if query is None:
            return end(dimse.IDENTIFIER_MISMATCH)
        at_study = query.level == "STUDY"
        try:
            if at_study and "refuse-wide" in self._conduct and _too_wide(query):
                return end(dimse.OUT_OF_RESOURCES)
        except ValueError:  # no such day
            return end(dimse.IDENTIFIER_MISMATCH)
        if "ignore-date" in self._conduct:
            query.keys = {tag: "" if tag == 0x00080020 else key for tag, key in query.keys.items()}
        matches = query.matches(self.archive)
        if at_study and "silent-cap" in self._conduct:
            matches = itertools.islice(matches, SILENT_CAP_ROWS)
        breaks = at_study and "abort-find" in self._conduct and asked % 3 == 0
        pending = dimse.PENDING_WARNING if "ff01" in self._conduct else dimse.PENDING
        row = dimse.response(command, pending, {dimse.DATASET_TYPE: 1})
        pad = "  " if "padded-uids" in self._conduct else ""
        try:
            for match in matches:
                if cancelled(association, command):
                    return end(dimse.CANCELLED)
                association.send_command(message.context_id, row)
                answer = encode_identifier(query.answer(match, self.ae_title, pad), syntax)
                association.send_dataset(message.context_id, answer)
                if breaks:
                    break
        except BadQuery:
            return end(dimse.IDENTIFIER_MISMATCH)
        if breaks:
            return association.abort()
        return end(dimse.SUCCESS)

    # -- C-MOVE
    def _move(self, association: Association, message: dimse.Message, syntax: str) -> None:
        command, query = message.command, self._query(message, syntax)
        self._conduct.count(f"move {query.level}" if query else "move refused")
        move = Move(self.archive, self.ae_title, self._conduct, self._kept, association, message)
        try:
            if query is None:
                raise BadQuery
            query.require_uids()
            matches = list(query.matches(self.archive))
        except BadQuery:
            return move.end(dimse.IDENTIFIER_MISMATCH)
        destination = self.destinations.get(command.text(dimse.MOVE_DESTINATION))
        if destination is None or "move-unknown" in self._conduct:
            return move.end(dimse.DESTINATION_UNKNOWN)
        work = [(match.study, instance) for match in matches for instance in _instances(match)]
        move.remaining = len(work)
        if "success-nothing-sent" in self._conduct:
            move.remaining, move.completed = 0, len(work)
            return move.end(dimse.SUCCESS)
        if "early-success" in self._conduct:
            move.remaining, move.completed = 0, len(work)
            with self._lock:  # so that whoever has the answer can `drain`
                move.end(dimse.SUCCESS)
                move.told = True
                self._late = [thread for thread in self._late if thread.is_alive()]
                self._late.append(self._run(move.send, work, destination))
            return None
        return move.send(work, destination)


def _instances(match: Match) -> Iterator[InstanceRecord]:
    if match.instance:
        yield match.instance
    else:
        for series in (match.series,) if match.series else match.study.series:
            yield from series.instances


def _too_wide(query: Query) -> bool:
    if query.keys.get(dimse.STUDY_UID):
        return False
    days = query.day_range
    if days is None or not all(days):
        return True
    first, last = (date(int(day[:4]), int(day[4:6]), int(day[6:])) for day in days)
    return (last - first).days + 1 > WIDEST_DAYS
