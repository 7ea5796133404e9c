"""Questions that try a PACS out: each with a limit of rows and of time, whose ending is told and never raised.

`scu` asks in earnest and believes only whole answers; here a broken, refused or endless answer is what one wants to know of.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from migrate.dicom import dimse
from migrate.dicom.dimse import BadCommand, BadIdentifier
from migrate.dicom.scu import Level, Peer, clean_text
from migrate.dicom.upper_layer import AcceptedContext, Association, ProposedContext, Rejected
from migrate.dicom.wire import TimedOut, UpperLayerError

STUDY_ROOT_GET, PATIENT_ROOT_GET = "1.2.840.10008.5.1.4.1.2.2.3", "1.2.840.10008.5.1.4.1.2.1.3"
MODELS: Mapping[str, Mapping[str, str]] = {
    "study_root": {"FIND": dimse.STUDY_ROOT_FIND, "MOVE": dimse.STUDY_ROOT_MOVE, "GET": STUDY_ROOT_GET},
    "patient_root": {"FIND": dimse.PATIENT_ROOT_FIND, "MOVE": dimse.PATIENT_ROOT_MOVE, "GET": PATIENT_ROOT_GET},
}
"""The information models of Query/Retrieve and their SOP classes (PS3.4 C.6)."""
_SYNTAXES = (dimse.IMPLICIT_LE, dimse.EXPLICIT_LE)
_CANCEL_S, _CANCEL_ROWS = 3.0, 5000
_TOLD_S, _TOLD_ROWS = 0.5, 1000  # so long, or so much, after C-CANCEL shows that it is ignored


@dataclass(slots=True)
class Answer:
    """What came of a question. `status` is the final one, None where none came; `cut`: we stopped it at a limit.

    `cancelled`: True: C-CANCEL ended it, False: it went on regardless, None: not sent, or over too soon to tell. `broken`: the
    association ended under it. `unreadable`: rows that could not be decoded.
    """

    rows: list[dict[int, str]] = field(default_factory=list)
    status: int | None = None
    cut: bool = False
    cancelled: bool | None = None
    saw_ff01: bool = False
    broken: bool = False
    unreadable: int = 0
    padded: bool | None = None  # UIDs padded with more than the one NUL that makes them even (PS3.5 9.1); None: no UID seen

    @property
    def whole(self) -> bool:
        return self.status == dimse.SUCCESS and not self.cut and not self.unreadable

    @property
    def refused(self) -> bool:
        """A7xx, A9xx, Cxxx."""
        return self.status is not None and (self.status >> 8 in (0xA7, 0xA9) or self.status >> 12 == 0xC)

    @property
    def mismatched(self) -> bool:
        """A9xx or Cxxx: the keys are not taken, however few rows they would give."""
        return self.refused and self.status is not None and self.status >> 8 != 0xA7


class Clock:
    """The time that all questions have together."""

    def __init__(self, total_s: float) -> None:
        self._until = time.monotonic() + total_s

    @property
    def left_s(self) -> float:
        return max(self._until - time.monotonic(), 0.0)


def request(peer: Peer, clock: Clock, *abstract_syntaxes: str) -> Association | Rejected | None:
    """An association, the rejection of it, or None where nothing comes of it in time."""
    limit_s = min(peer.connect_s, clock.left_s)
    if limit_s <= 0:
        return None
    try:
        return Association.request(
            peer.host, peer.port, calling=peer.calling_ae_title, called=peer.ae_title,
            contexts=[ProposedContext(syntax, _SYNTAXES) for syntax in abstract_syntaxes],
            connect_s=limit_s, timeout_s=limit_s,
        )  # fmt: skip
    except Rejected as rejection:
        return rejection
    except UpperLayerError:
        return None


def models(peer: Peer, clock: Clock) -> dict[str, tuple[str, ...]] | None:
    """Which services of which information model are accepted; None where no association is to be had."""
    association = request(peer, clock, *(uid for services in MODELS.values() for uid in services.values()))
    if not isinstance(association, Association):
        return None
    accepted = {context.abstract_syntax for context in association.contexts.values()}
    association.release(min(2.0, clock.left_s))
    return {model: tuple(name for name, uid in services.items() if uid in accepted) for model, services in MODELS.items()}


def associations(peer: Peer, clock: Clock, most: int) -> tuple[int, bool]:
    """(how many associations are open at once, whether the next one was rejected), trying `most`."""
    held: list[Association] = []
    try:
        while len(held) < most:
            answer = request(peer, clock, dimse.VERIFICATION)
            if not isinstance(answer, Association):
                return len(held), isinstance(answer, Rejected)
            held.append(answer)
        return len(held), False
    finally:
        for association in held:
            association.release(min(2.0, max(clock.left_s, 0.1)))


class Questioner:
    """Asks one question after the other over one association of one information model, opened anew when it broke."""

    def __init__(self, peer: Peer, clock: Clock, abstract_syntax: str) -> None:
        self._peer, self._clock, self._abstract_syntax = peer, clock, abstract_syntax
        self._association: Association | None = None
        self._message_id = 0

    def close(self) -> None:
        if self._association is not None:
            self._association.release(1.0)

    def ask(
        self, level: Level, keys: Mapping[int, str], wanted: Sequence[int], *, most: int, limit_s: float, cancel_after: int | None = None
    ) -> Answer:
        """At most `most` rows within `limit_s`; beyond, or after `cancel_after` rows, C-CANCEL, and an abort if that is ignored."""
        answer = Answer()
        until = time.monotonic() + min(limit_s, self._clock.left_s)
        opened = self._opened(until)
        if opened is None:
            return answer
        association, context = opened
        self._message_id = self._message_id % 0xFFFF + 1
        query = {**dict.fromkeys(wanted, ""), **keys, dimse.QUERY_LEVEL: level}
        try:
            association.timeout_s = max(until - time.monotonic(), 0.1)
            association._deadline = until
            _send(association, context, self._message_id, dimse.encode_identifier(query, context.transfer_syntax))
            most = most if cancel_after is None else min(most, cancel_after)
            while (message := _next(association)) is not None:
                if not _take(answer, message, context.transfer_syntax, query):
                    association._deadline = None
                    return answer
                if len(answer.rows) >= most:
                    answer.cut = True
                    answer.cancelled = self._cancel(association, context)
                    break
            else:
                answer.broken = True  # released
        except TimedOut:
            answer.cut = True
        except (UpperLayerError, BadCommand, ValueError):
            answer.broken = True
        if not (association.open and answer.cancelled):
            association.abort()
        return answer

    def _opened(self, until: float) -> tuple[Association, AcceptedContext] | None:
        if self._association is None or not self._association.open:
            answer = request(self._peer, self._clock, self._abstract_syntax)
            if not isinstance(answer, Association):
                return None
            self._association = answer
        context = self._association.context_for(self._abstract_syntax)
        return None if context is None or time.monotonic() >= until else (self._association, context)

    def _cancel(self, association: Association, context: AcceptedContext) -> bool | None:
        """C-CANCEL (PS3.7 9.3.2.3), and what comes after it for a while. Raises as reading does."""
        began = time.monotonic()
        association._deadline = began + min(_CANCEL_S, max(self._clock.left_s, 0.1))
        fields = {dimse.COMMAND_FIELD: dimse.C_CANCEL, dimse.RESPONDED_TO: self._message_id}
        association.send_command(context.id, dimse.encode_command(fields))
        rows = 0
        status: int | None = None
        with contextlib.suppress(UpperLayerError, BadCommand):
            while rows < _CANCEL_ROWS and (message := _next(association)) is not None:
                status = message.command.required(dimse.STATUS)
                if dimse.classify(status) is not dimse.Kind.PENDING:
                    association._deadline = None
                    if status == dimse.CANCELLED:
                        return True
                    break
                rows += 1
        went_on = rows >= _TOLD_ROWS or (rows > 0 and time.monotonic() - began >= _TOLD_S)
        if went_on or status is None:
            association.abort()
        return False if went_on else None


def _send(association: Association, context: AcceptedContext, message_id: int, identifier: bytes) -> None:
    fields: dict[int, int | str] = {
        dimse.COMMAND_FIELD: dimse.C_FIND,
        dimse.SOP_CLASS: context.abstract_syntax,
        dimse.MESSAGE_ID: message_id,
        dimse.PRIORITY: 0,
        dimse.DATASET_TYPE: 1,
    }
    association.send_command(context.id, dimse.encode_command(fields))
    association.send_dataset(context.id, identifier)


def _next(association: Association) -> dimse.Message | None:
    message = dimse.receive(association)
    if message is not None and message.command.field != dimse.C_FIND | dimse.RESPONSE:
        raise BadCommand("the PACS answers something that was not asked")
    return message


def _take(answer: Answer, message: dimse.Message, syntax: str, query: Mapping[int, str]) -> bool:
    """Take a response in; False for the final one."""
    status = message.command.required(dimse.STATUS)
    if dimse.classify(status) is not dimse.Kind.PENDING:
        answer.status = status
        return False
    answer.saw_ff01 |= status == dimse.PENDING_WARNING
    try:
        raw = dimse.decode_identifier(message.dataset or b"", syntax)
    except BadIdentifier:
        answer.unreadable += 1
        return True
    for tag in (dimse.STUDY_UID, dimse.SERIES_UID, dimse.SOP_UID):
        if value := raw.get(tag):
            uid = clean_text(value).encode()
            answer.padded = bool(answer.padded) or value != uid + b"\0" * (len(uid) % 2)
    answer.rows.append({tag: clean_text(value) for tag, value in raw.items() if tag in query})
    return True
