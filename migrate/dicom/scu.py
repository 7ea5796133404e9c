"""Asking a PACS: C-ECHO and C-FIND (PS3.4 A, C), with every ending told apart; `move` is beside it.

An answer counts only when it ended with Success and every identifier in it could be decoded. Of an answer only the
attributes that were asked for are handed on; nobody here asks for patient names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal

from migrate import errors
from migrate.config import TlsSettings
from migrate.dicom import dimse
from migrate.dicom.dimse import BadCommand, BadIdentifier, Kind, Message
from migrate.dicom.negotiation import UNKNOWN_CALLED
from migrate.dicom.pdata import command_pdu
from migrate.dicom.upper_layer import Aborted, AcceptedContext, Association, Lost, NoConnection, ProposedContext, Rejected
from migrate.dicom.wire import UpperLayerError
from migrate.errors import QueryFailed, SourceRefused, SourceUnreachable

Level = Literal["PATIENT", "STUDY", "SERIES", "IMAGE"]
_SYNTAXES = (dimse.IMPLICIT_LE, dimse.EXPLICIT_LE)
_SAME_ROWS = 20_000  # so often in a row is no row repeated: some PACSs send one of a study for each of its images


class QueryRefused(errors.QueryRefused):
    """The same error, with the C-FIND `status` that said so."""

    def __init__(self, message: str, status: int, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status = status

    @property
    def keys_refused(self) -> bool:
        """True unless it says that there would be too much to answer (A7xx): these keys are not taken (A9xx, Cxxx)."""
        return self.status >> 8 != 0xA7


@dataclass(frozen=True, slots=True)
class Peer:
    """A PACS as we call it. `connect_s` bounds TCP connection and association, `answer_s` the wait for each answer."""

    host: str
    port: int
    ae_title: str
    calling_ae_title: str
    connect_s: float = 15.0
    answer_s: float = 600.0
    tls: TlsSettings | None = None

    def __str__(self) -> str:
        return f"{self.ae_title}@{self.host}:{self.port}"


def clean_text(raw: bytes) -> str:
    """A value as text: padding, NULs included, is taken off here and nowhere else; any bytes decode. A NUL within, at which SQLite's quote() ends, becomes U+FFFD."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    return text.strip("\0 \t\r\n").replace("\0", "\ufffd")


def associate(peer: Peer, *abstract_syntaxes: str, timeout_s: float | None) -> Association:
    """An association in which at least one of these is accepted. Raises SourceUnreachable, SourceRefused."""
    offers = [ProposedContext(syntax, _SYNTAXES) for syntax in abstract_syntaxes]
    try:
        association = Association.request(
            peer.host, peer.port, calling=peer.calling_ae_title, called=peer.ae_title, contexts=offers,
            connect_s=peer.connect_s, timeout_s=timeout_s, tls=peer.tls,
        )  # fmt: skip
    except Rejected as error:
        if error.transient:
            raise SourceUnreachable(f"The PACS {peer} takes no association for now: {error.text}.") from error
        hint = f"Is {peer.ae_title} its AE title (ae_title under [source])? Capitals count." if error.text == UNKNOWN_CALLED else None
        raise SourceRefused(f"The PACS {peer} rejects our association: {error.text}.", hint=hint) from error
    except NoConnection as error:
        raise SourceUnreachable(f"No connection to the PACS {peer}: {error}.") from error
    except UpperLayerError as error:
        raise SourceUnreachable(f"The PACS {peer} does not answer an association request: {error}.") from error
    if not association.contexts:
        association.release()
        raise SourceRefused(
            f"The PACS {peer} does not offer us the service ({abstract_syntaxes[0]}).",
            hint="Ask the PACS administrator to allow query and retrieve (C-FIND, C-MOVE) for our AE title.",
        )
    return association


def echo(peer: Peer) -> None:
    """C-ECHO. Raises SourceUnreachable, SourceRefused."""
    association = associate(peer, dimse.VERIFICATION, timeout_s=peer.connect_s)
    try:
        (context,) = association.contexts.values()
        fields: dict[int, int | str] = {dimse.COMMAND_FIELD: dimse.C_ECHO, dimse.MESSAGE_ID: 1}
        fields[dimse.SOP_CLASS] = dimse.VERIFICATION
        association.send_command(context.id, dimse.encode_command(fields))
        status = answer(dimse.receive(association), dimse.C_ECHO, 1)[1]
    except (UpperLayerError, BadCommand) as error:
        association.abort()
        raise SourceUnreachable(f"The PACS {peer} does not answer C-ECHO: {error}.") from error
    association.release()
    if status != dimse.SUCCESS:
        raise SourceRefused(f"The PACS {peer} answers C-ECHO with {dimse.describe(dimse.C_ECHO, status)}.")


class FindSession:
    """Queries over one association, which is opened anew after one that broke. For one thread.

    Study Root is used where the PACS accepts it, else Patient Root: `patient_root` is then true, and the PACS may
    insist on a Patient ID key. `saw_ff01`: it said that it does not support some of the keys.
    """

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.saw_ff01 = self.patient_root = False
        self._association: Association | None = None
        self._has_served = False  # the association has answered a question
        self._message_id = 0

    def __enter__(self) -> FindSession:
        """Associate. Raises SourceUnreachable, SourceRefused."""
        self._open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._association is not None:
            self._association.release()

    def _open(self) -> tuple[Association, AcceptedContext]:
        if self._has_served and self._association is not None and self._association.open and self._association.wait(0):
            self._association.abort()  # what comes before it was asked for is no answer to it
        if self._association is None or not self._association.open:
            self._association = associate(
                self.peer, dimse.STUDY_ROOT_FIND, dimse.PATIENT_ROOT_FIND, timeout_s=self.peer.answer_s
            )
            self._has_served = False
        context = self._association.context_for(dimse.STUDY_ROOT_FIND, dimse.PATIENT_ROOT_FIND)
        assert context is not None
        self.patient_root = context.abstract_syntax == dimse.PATIENT_ROOT_FIND
        return self._association, context

    def find(self, level: Level, keys: Mapping[int, str], wanted: Sequence[int]) -> Iterator[dict[int, str]]:
        """The answers one by one, with the attributes in `keys` and `wanted` that are there; ends only after Success.

        Whoever stops in the middle aborts the association. Raises QueryRefused (A7xx, A9xx, Cxxx: may be answered if it
        is narrower), QueryFailed (anything else that is no whole answer), SourceUnreachable, SourceRefused.
        """
        self._open()
        self._message_id = self._message_id % 0xFFFF + 1
        query = {**dict.fromkeys(wanted, ""), **keys, dimse.QUERY_LEVEL: level}
        association: Association | None = None
        whole = False
        last, alike = b"", 0
        usual: bytes | None = None  # what the last row's command came as: mostly the next one's is the same
        try:
            association, syntax, came = self._asked(query)
            while True:
                row = None if usual is None else association.dataset_after(usual)
                if row is None:
                    came = came if usual is None else dimse.receive(association)
                    message, status = answer(came, dimse.C_FIND, self._message_id)
                    if not is_pending(status):
                        break
                    self.saw_ff01 |= status == dimse.PENDING_WARNING
                    row = message.dataset
                    if row is None:
                        raise BadCommand("an answer comes without its identifier")
                    usual = command_pdu(message.context_id, message.command.encoded)
                alike = alike + 1 if row == last else 0
                if alike == _SAME_ROWS:
                    raise BadCommand("one row comes again and again")
                last = row
                values = dimse.decode_identifier(row, syntax)
                yield {tag: clean_text(raw) for tag, raw in values.items() if tag in query}
            whole = self._has_served = True
            if status != dimse.SUCCESS:
                said = dimse.describe(dimse.C_FIND, status)
                if status >> 8 in (0xA7, 0xA9) or status >> 12 == 0xC:
                    raise QueryRefused(f"The PACS {self.peer} refuses a {level} query: {said}.", status)
                raise QueryFailed(f"A {level} query ended without success: {said}.")
        except (UpperLayerError, BadCommand, BadIdentifier) as error:
            raise QueryFailed(f"The answer to a {level} query is not whole: {error}.") from error
        finally:
            if association is not None and not whole:
                association.abort()

    def _asked(self, query: Mapping[int, str]) -> tuple[Association, str, Message | None]:
        """Ask, and wait for the first answer; returns the association and its transfer syntax, too.

        An association that has answered before and ends instead, as one may after so many questions or so much time, says nothing of
        this question: it is asked over another one, once.
        """
        while True:
            association, context = self._open()
            try:
                ask(association, context, dimse.C_FIND, self._message_id, dimse.encode_identifier(query, context.transfer_syntax))
                message = dimse.receive(association)
            except (UpperLayerError, BadCommand) as error:
                association.abort()
                if not (self._has_served and isinstance(error, Lost | Aborted)):
                    raise
            else:
                if message is not None or not self._has_served:
                    return association, context.transfer_syntax, message


def is_pending(status: int) -> bool:
    """True for FF00 and FF01."""
    return dimse.classify(status) is Kind.PENDING


def ask(
    association: Association, context: AcceptedContext, service: int, id_: int, identifier: bytes, destination: str = ""
) -> None:
    """Send a request with its identifier. Raises Lost, TimedOut."""
    fields: dict[int, int | str] = {
        dimse.COMMAND_FIELD: service,
        dimse.SOP_CLASS: context.abstract_syntax,
        dimse.MESSAGE_ID: id_,
        dimse.PRIORITY: 0,
        dimse.DATASET_TYPE: 1,
    }
    if destination:
        fields[dimse.MOVE_DESTINATION] = destination
    association.send_command(context.id, dimse.encode_command(fields))
    association.send_dataset(context.id, identifier)


def answer(message: Message | None, service: int, id_: int) -> tuple[Message, int]:
    """The response and its status. Raises BadCommand unless it answers our request."""
    if message is None:
        raise BadCommand("the PACS released the association instead of answering")
    if message.command.field != service | dimse.RESPONSE or message.command.number(dimse.RESPONDED_TO) not in (
        None,
        id_,
    ):
        raise BadCommand("the PACS answers something that was not asked")
    return message, message.command.required(dimse.STATUS)
