"""C-MOVE's sub-operations: associations to the destination, a C-STORE an image, an answer each (PS3.4 C.4.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from migrate.dicom import dimse
from migrate.dicom.identifier import encode_identifier
from migrate.dicom.upper_layer import Association, ProposedContext, UpperLayerError
from migrate.practice.faults import Conduct
from migrate.practice.holdings import Holdings
from migrate.practice.records import InstanceRecord, StudyRecord
from migrate.practice.storing import Kind, Sender, planned_deeds

CANNOT_SEND = 0xA702
_MOST_KINDS = 120  # presentation contexts of one association: no more than 128 (PS3.8 9.3.2.2), and room for odd ones
_WRAPPED = 65_530

Work = list[tuple[StudyRecord, InstanceRecord]]


def cancelled(association: Association, command: dimse.Command) -> bool:
    """True when the peer has sent a C-CANCEL for this request (PS3.7 9.3.2.3); never waits."""
    if not association.wait(0):
        return False
    message = dimse.receive(association)
    if message is None or message.command.field != dimse.C_CANCEL:
        association.abort()
        raise dimse.BadCommand("something else than C-CANCEL comes while a request is answered")
    return message.command.number(dimse.RESPONDED_TO) == command.required(dimse.MESSAGE_ID)


class Move:
    """One C-MOVE: its counters, its answers, and its associations to the destination (PS3.4 C.4.2.3)."""

    def __init__(
        self,
        holdings: Holdings,
        ae_title: str,
        conduct: Conduct,
        kept: Callable[[Association], AbstractContextManager[Association]],
        pause: Callable[[float], object],
        association: Association,
        message: dimse.Message,
    ) -> None:
        self._holdings, self._ae_title, self._conduct, self._kept, self._pause = holdings, ae_title, conduct, kept, pause
        self._association, self._message = association, message
        self.study = -1  # the number of the first study that is asked for
        self.remaining = self.completed = self.failed = self.warned = 0
        self.told = False  # the final answer is out already, or is never to be given
        self._failures: list[str] = []

    def fault(self, name: str) -> int | float:
        """The fault's value if it strikes what is asked for."""
        return self._conduct.of(name, self.study)

    def _tell(self, status: int) -> None:
        if self.told:
            return
        fields: dict[int, int | str] = {}
        if not self.fault("null-counters"):
            extra = 3 if self.fault("wrong-counters") else _WRAPPED if self.fault("wrapped-counters") else 0
            counters = {dimse.COMPLETED: self.completed + extra, dimse.FAILED: self.failed, dimse.WARNING: self.warned}
            if status in (dimse.PENDING, dimse.CANCELLED):
                counters[dimse.REMAINING] = self.remaining
            for element, count in counters.items():
                wrapped = count & 0xFFFF if self.fault("wrapped-counters") else min(count, 0xFFFF)
                fields[element] = 0 if self.fault("zero-counters") else wrapped
        context = self._association.contexts[self._message.context_id]
        named = self._named()
        listed = bool(named) and status not in (dimse.PENDING, dimse.SUCCESS)
        if listed:
            fields[dimse.DATASET_TYPE] = 1
        self._association.send_command(context.id, dimse.response(self._message.command, status, fields))
        if listed:
            uids = "\\".join(named[:900])  # what fits into an explicit UI
            answer = encode_identifier({dimse.FAILED_SOPS: uids}, context.transfer_syntax)
            self._association.send_dataset(context.id, answer)

    def _named(self) -> list[str]:
        """The failed images as they are told."""
        if self._failures and self.fault("failed-unnamed"):
            return []
        if self._failures and self.fault("failed-misnamed"):
            return [self._holdings.study(self.study).series[0].instances[0].sop]
        return self._failures

    def end(self, status: int) -> None:
        """The final answer."""
        if self.fault("never-final"):
            self.told = True
        self._tell(status)

    def send(self, work: Work, destination: tuple[str, int]) -> None:
        """Send everything, telling after each, then the final answer."""
        if not work:
            return self.end(dimse.SUCCESS)
        deeds = planned_deeds(self._conduct, work)
        for share in _shares(work):
            store = self._connect(share, destination)
            if store is None:
                left = [instance.sop for _, instance in work][self.completed + self.warned + self.failed :]
                self.failed, self.remaining = self.failed + len(left), 0
                self._failures += left
                return self.end(CANNOT_SEND)
            with self._kept(store):
                try:
                    stopped = self._send_all(store, share, deeds)
                except (UpperLayerError, dimse.BadCommand):
                    store.close()
                    raise
                store.release()
            if stopped:
                return self.end(dimse.CANCELLED)
        return self.end(dimse.SUBOPERATIONS_FAILED if self.failed or self.warned else dimse.SUCCESS)

    def _connect(self, share: Work, destination: tuple[str, int]) -> Association | None:
        kinds = dict.fromkeys((instance.sop_class, instance.transfer_syntax) for _, instance in share)
        contexts = [ProposedContext(sop_class, (syntax,)) for sop_class, syntax in kinds]
        if self.fault("even-contexts"):
            contexts = [ProposedContext(one.abstract_syntax, one.transfer_syntaxes, 2 * number) for number, one in enumerate(contexts, 1)]
            contexts.append(ProposedContext(dimse.VERIFICATION, (dimse.IMPLICIT_LE,), 2))
        called = self._message.command.text(dimse.MOVE_DESTINATION)
        try:
            return Association.request(*destination, calling=self._ae_title, called=called, contexts=contexts)
        except UpperLayerError:
            return None

    def _send_all(self, store: Association, share: Work, deeds: dict[str, str]) -> bool:
        """Send all; True when the peer cancelled. Raises UpperLayerError when the asking peer is gone."""
        sender = Sender(self._holdings, self._conduct, self._pause, store, self._association.calling, self._message.command)
        slow_s = self._conduct.seconds("slow-answers")
        for study, instance in share:
            if slow_s:
                self._pause(slow_s)
            if not self.told and "ignore-cancel" not in self._conduct and cancelled(self._association, self._message.command):
                return True
            deed = deeds.get(instance.sop, "")
            status = dimse.PROCESSING_FAILURE if deed == "fail" else dimse.SUCCESS
            if deed not in ("skip", "fail"):
                for again in range(2 if self._conduct.of("twice", study.number) or deed == "other-bytes" else 1):
                    status = sender.store(study, instance, deed, again=bool(again))
            self.remaining = max(self.remaining - 1, 0)
            kind = dimse.classify(status)
            if kind is dimse.Kind.SUCCESS:
                self.completed += 1
            elif kind is dimse.Kind.WARNING:
                self.warned += 1
            else:
                self.failed += 1
                self._failures.append(instance.sop)
            self._tell(dimse.PENDING)
        return False


def _shares(work: Work) -> Iterator[Work]:
    """What goes over one association each: no more kinds than it can have presentation contexts."""
    share: Work = []
    kinds: set[Kind] = set()
    for study, instance in work:
        kind = (instance.sop_class, instance.transfer_syntax)
        if kind not in kinds and len(kinds) == _MOST_KINDS:
            yield share
            share, kinds = [], set()
        share.append((study, instance))
        kinds.add(kind)
    yield share
