"""The streaming Storage SCP (PS3.4 B): what a peer sends goes from the socket into a staging file, hashed on the way.

A data set is never decoded, re-encoded or held in memory. Of each one that came whole a `model.Received` is delivered,
and only then is it answered. What breaks off leaves nothing behind, what cannot be walked is delivered as quarantined.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import ipaddress
import itertools
import logging
import os
import socket
import ssl
import threading
import time

from pydicom.uid import UID

from migrate.config import ReceiverSettings
from migrate.dicom import dimse, tls
from migrate.dicom.storing import Deliver as Deliver
from migrate.dicom.storing import ReceiverLimits as ReceiverLimits
from migrate.dicom.storing import Session
from migrate.dicom.upper_layer import AssociateRequest, Association, ProposedContext, Rejected
from migrate.dicom.wire import UpperLayerError
from migrate.errors import PortInUse
from migrate.failpoints import reach
from migrate.host import reason
from migrate.model import is_uid
from migrate.staging.area import Staging

log = logging.getLogger(__name__)

_MOST_NEGOTIATING = 128  # connections without an association: each has a thread and a small buffer
_MOST_NEGOTIATING_PER_ADDRESS = 64


@functools.lru_cache(maxsize=1024)
def is_storage_class(abstract_syntax: str) -> bool:
    """True for every SOP class whose instances are stored, private and unknown ones included."""
    if not is_uid(abstract_syntax):
        return False
    uid = UID(abstract_syntax)
    if uid.name == abstract_syntax:  # in no dictionary: private, or newer than we are
        return True
    name = str(uid.name)
    return uid.type == "SOP Class" and "Storage" in name and "Commitment" not in name and "Directory" not in name


class Receiver:
    """Listens from `start` to `close`, one thread for each association. `deliver` is called in these threads."""

    def __init__(
        self, settings: ReceiverSettings, staging: Staging, deliver: Deliver, limits: ReceiverLimits | None = None
    ) -> None:
        """`settings.allow` holds addresses and networks, no names."""
        self.settings, self._limits = settings, limits or ReceiverLimits()
        self._staging, self._deliver = staging, deliver
        self._networks = [ipaddress.ip_network(text, strict=False) for text in settings.allow]
        self._tls = tls.context(settings.tls, server=True) if settings.tls else None
        self._lock = threading.Lock()
        self._sockets: dict[int, socket.socket] = {}
        self._negotiating: dict[int, str] = {}  # the addresses of those without an association, the oldest first
        self._admitted: dict[int, str] = {}
        self._associations: dict[int, Association] = {}
        self._sessions: dict[int, Session] = {}
        self._threads: dict[int, threading.Thread] = {}
        self._numbers = itertools.count(1)
        self._accepting = True
        self._closing = threading.Event()
        self._listener: socket.socket | None = None
        self.port = settings.port

    def start(self) -> None:
        """Listen. Raises PortInUse."""
        host, port = self.settings.host, self.settings.port
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._listener = socket.create_server((host, port), family=family, backlog=128)
        except OSError as error:
            hint = None if error.errno == errno.EADDRINUSE else "Choose another host or port under [receiver]."
            raise PortInUse(f"Cannot listen on {host}:{port}: {reason(error)}.", hint=hint) from error
        self.port = self._listener.getsockname()[1]
        self._listener.settimeout(0.5)
        listen = threading.Thread(target=self._listen, name="receive-listen", daemon=True)
        self._threads[0] = listen
        listen.start()

    def last_byte_at(self, move_id: int | None = None) -> float:
        """time.monotonic() of the last byte on an open association that serves this C-MOVE (None: any), or may, as it does not say; else 0.

        One that has done nothing but ask whether we are there serves none, however often it asks.
        """
        with self._lock:
            serving = [session for session in self._sessions.values() if session.stores is not False]
        return max((each.last_byte_at for each in serving if move_id is None or each.move_id in (None, move_id)), default=0.0)

    def drop(self, move_id: int) -> None:
        """Abort the associations that say that they serve this C-MOVE: nobody waits for the rest of it any more."""
        with self._lock:
            sessions = [session for session in self._sessions.values() if session.move_id == move_id]
        for session in sessions:
            session.abort()

    def stop_accepting(self) -> None:
        """Turn new associations down (for now, as the peer is told); those that are open go on."""
        self._accepting = False

    def close(self) -> None:
        """Stop listening and abort what is open; waits for the threads, 5 s at most."""
        self._closing.set()
        with self._lock:
            associations, sockets = list(self._associations.values()), list(self._sockets.values())
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
        for association in associations:
            association.abort()
        for sock in sockets:
            _cut(sock)
        give_up = time.monotonic() + 5.0
        for thread in list(self._threads.values()):
            if thread is not threading.current_thread():
                thread.join(max(give_up - time.monotonic(), 0.0))

    def _listen(self) -> None:
        assert self._listener is not None
        while not self._closing.is_set():
            try:
                sock, address = self._listener.accept()
            except TimeoutError:
                continue
            except OSError as error:
                if not self._closing.is_set():
                    log.warning("cannot take a connection: %s", error.strerror or error)
                    self._closing.wait(0.2)
                continue
            if not self._may_connect(str(address[0])):
                log.warning("connection from %s closed: the address is not under allow", address[0])
                sock.close()
            else:
                self._take(sock, str(address[0]))

    def _take(self, sock: socket.socket, address: str) -> None:
        """A thread for this connection. Where too many negotiate, the oldest gives way: a peer that means it is quick."""
        if self._tls is not None:
            try:
                sock = tls.wrap(sock, self._tls, host=None)
            except OSError:  # gone already
                sock.close()
                return
        number = next(self._numbers)
        thread = threading.Thread(target=self._serve, args=(number, sock, address), name=f"receive-{number}", daemon=True)
        with self._lock:
            same = [other for other, where in self._negotiating.items() if where == address]
            oldest = None
            if len(same) >= _MOST_NEGOTIATING_PER_ADDRESS:
                oldest = same[0]
            elif len(self._negotiating) >= _MOST_NEGOTIATING:
                oldest = next(iter(self._negotiating))
            if oldest is not None:
                del self._negotiating[oldest]
                _cut(self._sockets[oldest])
            leaving = self._threads.get(oldest) if oldest is not None else None
            self._sockets[number], self._threads[number], self._negotiating[number] = sock, thread, address
        if leaving is not None:
            leaving.join(1.0)  # in a flood the threads must not come faster than they go
        try:
            thread.start()
        except RuntimeError:  # the system gives us no more threads
            log.warning("connection from %s closed: no thread can be had", address)
            sock.close()
            with self._lock:
                for table in (self._sockets, self._threads, self._negotiating):
                    table.pop(number, None)

    def _may_connect(self, address: str) -> bool:
        if not self._networks:
            return True
        ip = ipaddress.ip_address(address.partition("%")[0])
        ip = getattr(ip, "ipv4_mapped", None) or ip
        return any(ip in network for network in self._networks)

    def _serve(self, number: int, sock: socket.socket, address: str) -> None:
        association: Association | None = None
        session: Session | None = None
        ending = "released"
        try:
            if isinstance(sock, ssl.SSLSocket) and self.settings.tls is not None:
                tls.shake_hands(sock, self.settings.tls.pin, self._limits.negotiate_s)
            association = Association.accept(
                sock,
                choose=self._choose,
                admit=functools.partial(self._admit, number, address),
                max_pdu=self.settings.max_pdu,
                negotiate_s=self._limits.negotiate_s,
                timeout_s=self._limits.idle_s,
            )
            with self._lock:
                self._associations[number] = association
            reach("receive-associated")
            log.info("association %d from %a at %s", number, association.calling, association.peer_address)
            session = Session(self.settings, self._limits, self._staging, self._deliver, association)
            with self._lock:
                self._sessions[number] = session
            session.run()
        except (UpperLayerError, dimse.BadCommand) as error:
            ending = str(error)
        except Exception as error:  # a defect of ours must not kill the receiver, nor show anyone's data
            ending = f"defect: {type(error).__name__}"
            log.error("association %d: %s in the receiver", number, type(error).__name__)
        finally:
            if session is not None:
                session.discard()
            if association is not None:
                association.abort()
            sock.close()
            with self._lock:
                self._negotiating.pop(number, None)
                self._admitted.pop(number, None)
                self._associations.pop(number, None)
                self._sessions.pop(number, None)
                self._sockets.pop(number, None)
                self._threads.pop(number, None)
            stored = session.stored if session else 0
            log.info("association %d ended: %s; %d data sets received", number, ending, stored)

    def _admit(self, number: int, address: str, request: AssociateRequest) -> Rejected | None:
        if not self._accepting or self._closing.is_set():
            return Rejected(2, 3, 1)
        if self.settings.allow_ae and request.calling not in self.settings.allow_ae:
            return Rejected(1, 1, 3)
        if not self._staging.takes_more():
            self._staging.turn_away(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
            return Rejected(2, 3, 2)
        with self._lock:
            crowd = [other for other, where in self._admitted.items() if where == address]
            if len(crowd) < self._limits.max_per_address:
                crowd = list(self._admitted) if len(self._admitted) >= self._limits.max_associations else []
            if crowd:
                silent = self._longest_silent(crowd)
                if silent is None:
                    return Rejected(2, 3, 2)
                log.warning("association %d ends: it is silent, and there is no place for another from %s", silent, address)
                del self._admitted[silent]
                _cut(self._sockets[silent])
            self._negotiating.pop(number, None)
            self._admitted[number] = address
        return None

    def _longest_silent(self, numbers: list[int]) -> int | None:
        """The association that has said nothing for the longest time, and for long enough to give way; needs the lock."""
        now, limits = time.monotonic(), self._limits
        silent = [(session.last_byte_at, number) for number in numbers if (session := self._sessions.get(number)) is not None
                  and now - session.last_byte_at > (limits.stalled_s if session.receiving else limits.silent_s)]  # fmt: skip
        return min(silent)[1] if silent else None

    def _choose(self, offer: ProposedContext) -> str | None:
        if offer.abstract_syntax != dimse.VERIFICATION and not is_storage_class(offer.abstract_syntax):
            return None
        for syntax in self.settings.transfer_syntaxes:
            if syntax in offer.transfer_syntaxes:
                return syntax
        return next((syntax for syntax in offer.transfer_syntaxes if is_uid(syntax)), None)


def _cut(sock: socket.socket) -> None:
    """End a connection that another thread reads from: that thread notices, and closes it."""
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)  # not that of a TLS socket, which would go on in clear text
