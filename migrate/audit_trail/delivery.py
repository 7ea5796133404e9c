"""Where audit messages go: a file, a message a line, or syslog over TLS (RFC 5424, RFC 5425; PS3.15 A.6). Opt-in, `[audit]`.

A file that cannot be written stops the run; a syslog server that is away does not: what it misses is held, sent when it is
back, and what never reaches it is counted.
"""

from __future__ import annotations

import contextlib
import datetime
import getpass
import logging
import os
import socket
import ssl
import threading
import time
from collections import deque
from typing import Any, Protocol

from migrate.audit_trail.messages import (
    APPLICATION,
    APPLICATION_ACTIVITY,
    BEGIN_TRANSFERRING,
    DESTINATION,
    LAUNCHER,
    QUERY,
    SERIOUS_FAILURE,
    SOURCE,
    START,
    STOP,
    SUCCESS,
    TRANSFERRED,
    Event,
    Participant,
    Query,
    Study,
    message,
)
from migrate.config import AuditSettings, Config
from migrate.dicom.tls import HandshakeFailed, context, shake_hands, wrap
from migrate.staging.area import local_error

log = logging.getLogger(__name__)

_PRIORITY = 10 * 8 + 5  # security and authorization, notice (RFC 5424 6.2.1)
_HELD = 10_000
_TIMEOUT_S, _PAUSE_S = 5.0, 30.0


class Sink(Protocol):
    def send(self, text: bytes) -> None:
        """Take one message. Raises LocalError."""

    def close(self) -> int:
        """Returns how many messages never arrived."""


class File:
    """A line a message, appended at once. Raises LocalError."""

    def __init__(self, settings: AuditSettings) -> None:
        assert settings.file is not None
        try:
            settings.file.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(settings.file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as error:
            raise local_error(error, "opening the audit file") from error

    def send(self, text: bytes) -> None:
        try:
            os.write(self._fd, text + b"\n")  # one write: lines of several threads stay whole
        except OSError as error:
            raise local_error(error, "writing the audit file") from error

    def close(self) -> int:
        os.close(self._fd)
        return 0


class Syslog:
    """One TLS connection to a syslog server, made anew where it broke; 10,000 messages are held while it is away."""

    def __init__(self, settings: AuditSettings) -> None:
        assert settings.tls is not None and settings.syslog is not None
        self._host, self._port = settings.syslog
        self._tls, self._pin = context(settings.tls, server=False), settings.tls.pin
        self._lock = threading.Lock()
        self._sock: ssl.SSLSocket | None = None
        self._waiting: deque[bytes] = deque()
        self._lost = 0
        self._not_before = 0.0
        self._name = socket.gethostname()

    def send(self, text: bytes) -> None:
        at = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        head = f"<{_PRIORITY}>1 {at} {self._name} pacs-migrate {os.getpid()} DICOM+RFC3881 - "
        record = head.encode() + b"\xef\xbb\xbf" + text
        with self._lock:
            if len(self._waiting) >= _HELD:
                self._waiting.popleft()
                self._lost += 1
            self._waiting.append(b"%d %b" % (len(record), record))  # RFC 5425 4.3: octet counting
            self._flush()

    def _flush(self, *, at_last: bool = False) -> None:
        if time.monotonic() < self._not_before and not at_last:
            return
        try:
            while self._waiting:
                if self._sock is None:
                    self._sock = self._connected()
                self._sock.sendall(self._waiting[0])
                self._waiting.popleft()
        except (OSError, HandshakeFailed) as error:
            log.warning("the syslog server for audit messages cannot be reached: %s; %d wait", type(error).__name__, len(self._waiting))
            self._not_before = time.monotonic() + _PAUSE_S
            self._drop()

    def _connected(self) -> ssl.SSLSocket:
        plain = socket.create_connection((self._host, self._port), _TIMEOUT_S)
        wrapped = wrap(plain, self._tls, host=self._host)
        shake_hands(wrapped, self._pin, _TIMEOUT_S)
        wrapped.settimeout(_TIMEOUT_S)
        return wrapped

    def _drop(self) -> None:
        sock, self._sock = self._sock, None
        if sock is not None:
            sock.close()

    def close(self) -> int:
        with self._lock:
            self._flush(at_last=True)
            if self._sock is not None:
                with contextlib.suppress(OSError):
                    self._sock.unwrap()  # close_notify: RFC 5425 4.4
            self._drop()
            lost, self._lost = self._lost + len(self._waiting), 0
            self._waiting.clear()
            return lost


class AuditTrail:
    """Says what this process does, in the words of PS3.15 A.5. May be used by several threads. Raises LocalError, ConfigError."""

    def __init__(self, config: Config) -> None:
        assert config.audit is not None
        self._config, self._site = config, config.audit.site
        self._sink: Sink = File(config.audit) if config.audit.file is not None else Syslog(config.audit)
        self._us = config.receiver.ae_title
        self._host = socket.gethostname()

    def _say(self, event: Event, participants: list[Participant], **objects: Any) -> None:
        self._sink.send(message(event, participants, source_id=self._us, site=self._site, **objects))

    def _ends(self, *, sends_us: bool) -> list[Participant]:
        """The PACS and we: where images go, we are the destination; where a question goes, the source."""
        source = self._config.source
        theirs, ours = (SOURCE, DESTINATION) if sends_us else (DESTINATION, SOURCE)
        return [Participant(theirs, source.ae_title, False, source.host), Participant(ours, self._us, True, self._host, str(os.getpid()))]

    def application(self, *, started: bool, outcome: int = 0) -> None:
        """This command starts or stops (Application Activity)."""
        event = Event(APPLICATION_ACTIVITY, "E", _now(), outcome, kind=START if started else STOP)
        self._say(event, [Participant(APPLICATION, str(os.getpid()), False, self._host, f"AETITLES={self._us}"),
                          Participant(LAUNCHER, self._config.operator or getpass.getuser(), True)])  # fmt: skip

    def queried(self, query: Query, outcome: int = 0, words: str = "") -> None:
        """A C-FIND was asked (Query)."""
        self._say(Event(QUERY, "E", _now(), outcome, words), self._ends(sends_us=False), query=query)

    def begins(self, study: str) -> None:
        """A C-MOVE to us is about to be asked for (Begin Transferring DICOM Instances)."""
        self._say(Event(BEGIN_TRANSFERRING, "E", _now()), self._ends(sends_us=True), study=Study(study, {}, self._encrypted))

    def transferred(self, study: str, sop_classes: dict[str, int], outcome: int = 0, words: str = "") -> None:
        """An attempt at a study ended (DICOM Instances Transferred)."""
        event = Event(TRANSFERRED, "C", _now(), outcome, words)
        self._say(event, self._ends(sends_us=True), study=Study(study, sop_classes, self._encrypted))

    @property
    def _encrypted(self) -> bool:
        return self._config.receiver.tls is not None

    def end(self, exit_code: int) -> int:
        """This command stops; returns how many messages never arrived."""
        self.application(started=False, outcome=SUCCESS if exit_code in (0, 3) else SERIOUS_FAILURE)
        return self._sink.close()


def open_trail(config: Config) -> AuditTrail | None:
    """The trail that the configuration asks for. Raises LocalError, ConfigError."""
    return None if config.audit is None else AuditTrail(config)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


__all__ = ["AuditTrail", "open_trail"]
