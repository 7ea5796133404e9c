"""C-MOVE (PS3.4 C.4.2): have a PACS send, wait as long as there is a reason to, and hear how it ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from migrate.dicom import dimse
from migrate.dicom.dimse import BadCommand, BadIdentifier, Message
from migrate.dicom.scu import Level, Peer, answer, ask, associate, clean_text, is_pending
from migrate.dicom.upper_layer import AcceptedContext, Association
from migrate.dicom.wire import UpperLayerError
from migrate.errors import MoveDestinationUnknown, MoveFailed, SourceStalled

MAX_SOPS = 900
"""So many UIDs fit into one IMAGE-level request in an explicit VR (65,534 bytes)."""
_CANCEL_S = 0.5
_GATHER_S = 0.05
"""So long pending answers gather at most, before they are read: read one by one, each would stop the receiver for an image."""


@dataclass(frozen=True, slots=True)
class MoveResult:
    """The final C-MOVE response (PS3.4 C.4.2.1.6); numbers that the PACS does not give are None, never 0."""

    status: int
    completed: int | None = None
    failed: int | None = None
    warning: int | None = None
    remaining: int | None = None
    failed_sops: tuple[str, ...] = ()


def move(
    peer: Peer,
    destination_ae: str,
    *,
    study: str,
    series: str | None = None,
    sops: Sequence[str] = (),
    patient: str | None = None,
    message_id: int = 1,
    should_stop: Callable[[], str | None],
    heard: Callable[[], None] = lambda: None,
    poll_s: float = 0.5,
) -> MoveResult:
    """Have the PACS send a study, a series of it or up to `MAX_SOPS` instances of that; returns its final answer.

    `patient` is the study's PatientID, which a PACS that knows only Patient Root may insist on (PS3.4 C.6.1.1); it is in no error.
    C-STOREs may name `message_id`. `heard` is called with each answer that is not the final one.
    Waits as long as `should_stop`, asked about every `poll_s`, returns None. Its reason cancels, aborts after half a second at
    most, and is raised as SourceStalled. Raises also MoveDestinationUnknown (A801), MoveFailed (the association broke),
    SourceUnreachable, SourceRefused; ValueError for too many instances, or some without their series.
    """
    if len(sops) > MAX_SOPS or (sops and series is None):
        raise ValueError(f"at most {MAX_SOPS} instances of one series")
    keys: dict[int, str] = {dimse.STUDY_UID: study}
    level: Level = "STUDY"
    if series is not None:
        keys[dimse.SERIES_UID], level = series, "SERIES"
    if sops:
        keys[dimse.SOP_UID], level = "\\".join(sops), "IMAGE"
    if patient is not None:
        keys[dimse.PATIENT_ID] = patient
    association = associate(peer, dimse.STUDY_ROOT_MOVE, dimse.PATIENT_ROOT_MOVE, timeout_s=peer.answer_s)
    context = association.context_for(dimse.STUDY_ROOT_MOVE, dimse.PATIENT_ROOT_MOVE)
    assert context is not None
    identifier = dimse.encode_identifier({**keys, dimse.QUERY_LEVEL: level}, context.transfer_syntax)
    try:
        ask(association, context, dimse.C_MOVE, message_id, identifier, destination_ae)
        message, status = _final_move_answer(association, context, message_id, should_stop, heard, poll_s)
        result = _move_result(message, status, context)
    except (UpperLayerError, BadCommand) as error:
        association.abort()
        raise MoveFailed(f"C-MOVE of study {study} broke off: {error}.") from error
    except BaseException:
        association.abort()
        raise
    association.release()
    if status == dimse.DESTINATION_UNKNOWN:
        raise MoveDestinationUnknown(f"The PACS {peer} does not know {destination_ae} as a C-MOVE destination (A801).")
    return result


class _Stop(Exception):
    """The wait is over; carries the reason."""


def _final_move_answer(
    association: Association,
    context: AcceptedContext,
    message_id: int,
    should_stop: Callable[[], str | None],
    heard: Callable[[], None],
    poll_s: float,
) -> tuple[Message, int]:
    asked_at = began = time.monotonic()

    def ask_whether_to_stop() -> None:
        nonlocal asked_at
        asked_at = time.monotonic()
        if reason := should_stop():
            raise _Stop(reason)

    # While images flow a PACS may say nothing for hours; whether that is too long is for `should_stop` to say.
    association.timeout_s, association.idle, association.poll_s = None, ask_whether_to_stop, poll_s
    try:
        while True:
            message, status = answer(dimse.receive(association), dimse.C_MOVE, message_id)
            if not is_pending(status):
                return message, status
            heard()
            if not association.read_ahead:
                time.sleep(min(_GATHER_S, (time.monotonic() - began) / 20))
            if time.monotonic() - asked_at >= poll_s:
                ask_whether_to_stop()
    except _Stop as stop:
        _cancel(association, context, message_id)
        raise SourceStalled(f"{stop}") from None


def _cancel(association: Association, context: AcceptedContext, message_id: int) -> None:
    """C-CANCEL (PS3.7 9.3.2.3), and a short wait for the answer; many PACSs ignore it, so the caller aborts."""
    give_up = time.monotonic() + _CANCEL_S
    association.idle = None
    try:
        fields = {dimse.COMMAND_FIELD: dimse.C_CANCEL, dimse.RESPONDED_TO: message_id}
        association.timeout_s = _CANCEL_S
        association.send_command(context.id, dimse.encode_command(fields))
        while (left := give_up - time.monotonic()) > 0 and association.wait(left):
            association.timeout_s = max(left, 0.1)
            _, status = answer(dimse.receive(association), dimse.C_MOVE, message_id)
            if not is_pending(status):
                return
    except (UpperLayerError, BadCommand):
        return


def _move_result(message: Message, status: int, context: AcceptedContext) -> MoveResult:
    failed_sops: tuple[str, ...] = ()
    if message.dataset:
        try:
            row = dimse.decode_identifier(message.dataset, context.transfer_syntax)
        except BadIdentifier:
            row = {}  # only a hint: what is missing is told by the UIDs that came
        failed_sops = tuple(uid for part in row.get(dimse.FAILED_SOPS, b"").split(b"\\") if (uid := clean_text(part)))
    number = message.command.number
    return MoveResult(
        status,
        completed=number(dimse.COMPLETED),
        failed=number(dimse.FAILED),
        warning=number(dimse.WARNING),
        remaining=number(dimse.REMAINING),
        failed_sops=failed_sops,
    )
