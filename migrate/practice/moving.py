"""C-MOVE's sub-operations: one association to the destination, a C-STORE an image, an answer each (PS3.4 C.4.2)."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable
from contextlib import AbstractContextManager

from migrate.dicom import dimse
from migrate.dicom.identifier import encode_identifier
from migrate.dicom.negotiation import DATA, pdu
from migrate.dicom.upper_layer import Association, ProposedContext, UpperLayerError
from migrate.practice.encoding import Element
from migrate.practice.faults import Conduct
from migrate.practice.records import InstanceRecord, StudyRecord
from migrate.practice.studies import Archive

CANNOT_SEND = 0xA702
_INSTITUTION = 0x00080080


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
    """One C-MOVE: its counters, its answers, and its association to the destination (PS3.4 C.4.2.3)."""

    def __init__(
        self,
        archive: Archive,
        ae_title: str,
        conduct: Conduct,
        kept: Callable[[Association], AbstractContextManager[Association]],
        pause: Callable[[float], object],
        association: Association,
        message: dimse.Message,
    ) -> None:
        self._archive, self._ae_title, self._conduct, self._kept, self._pause = archive, ae_title, conduct, kept, pause
        self._association, self._message = association, message
        self.remaining = self.completed = self.failed = self.warned = 0
        self.told = False  # the final answer is out already
        self._failures: list[str] = []

    def _tell(self, status: int) -> None:
        if self.told:
            return
        fields: dict[int, int | str] = {}
        if "null-counters" not in self._conduct:
            extra = 3 if "wrong-counters" in self._conduct else 0
            counters = {dimse.COMPLETED: self.completed + extra, dimse.FAILED: self.failed, dimse.WARNING: self.warned}
            if status in (dimse.PENDING, dimse.CANCELLED):
                counters[dimse.REMAINING] = self.remaining
            fields.update((element, min(count, 0xFFFF)) for element, count in counters.items())
        context = self._association.contexts[self._message.context_id]
        listed = bool(self._failures) and status not in (dimse.PENDING, dimse.SUCCESS)
        if listed:
            fields[dimse.DATASET_TYPE] = 1
        self._association.send_command(context.id, dimse.response(self._message.command, status, fields))
        if listed:
            uids = "\\".join(self._failures[:900])  # what fits into an explicit UI
            answer = encode_identifier({dimse.FAILED_SOPS: uids}, context.transfer_syntax)
            self._association.send_dataset(context.id, answer)

    def end(self, status: int) -> None:
        """The final answer."""
        self._tell(status)

    def send(self, work: list[tuple[StudyRecord, InstanceRecord]], destination: tuple[str, int]) -> None:
        """Send everything over one association, telling after each, then the final answer."""
        if not work:
            return self.end(dimse.SUCCESS)
        command = self._message.command
        kinds = dict.fromkeys((instance.sop_class, instance.transfer_syntax) for _, instance in work)
        contexts = [ProposedContext(sop_class, (syntax,)) for sop_class, syntax in kinds][:128]
        called = command.text(dimse.MOVE_DESTINATION)
        host, port = destination
        try:
            store = Association.request(host, port, calling=self._ae_title, called=called, contexts=contexts)
        except UpperLayerError:
            self.failed, self.remaining = len(work), 0
            self._failures = [instance.sop for _, instance in work]
            return self.end(CANNOT_SEND)
        with self._kept(store):
            try:
                cancelled = self._send_all(store, work)
            except (UpperLayerError, dimse.BadCommand):
                store.close()
                raise
            store.release()
        if cancelled:
            return self.end(dimse.CANCELLED)
        return self.end(dimse.SUBOPERATIONS_FAILED if self.failed or self.warned else dimse.SUCCESS)

    def _send_all(self, store: Association, work: list[tuple[StudyRecord, InstanceRecord]]) -> bool:
        """Send all; True when the peer cancelled. Raises UpperLayerError when the asking peer is gone."""
        skipped, broken = self._planned_faults(work)
        ids = {(context.abstract_syntax, context.transfer_syntax): context.id for context in store.contexts.values()}
        numbers = itertools.count(1)
        slow_s = self._conduct.seconds("slow-answers")
        for _, instance in work:
            if slow_s:
                self._pause(slow_s)
            if not self.told and "ignore-cancel" not in self._conduct and cancelled(self._association, self._message.command):
                return True
            context = ids.get((instance.sop_class, instance.transfer_syntax))
            status = dimse.SUCCESS
            if instance.sop not in skipped:
                for _ in range(2 if "twice" in self._conduct else 1):
                    status = self._store(store, context, instance, next(numbers), instance.sop in broken)
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

    def _planned_faults(self, work: list[tuple[StudyRecord, InstanceRecord]]) -> tuple[set[str], set[str]]:
        """(SOP UIDs that are silently left out, SOP UIDs amid which the association is aborted)."""
        skipped, broken = set(), set()
        asked = {instance.sop for _, instance in work}
        for study in {study.number: study for study, _ in work}.values():
            sops = [instance.sop for series in study.series for instance in series.instances]
            if "skip-one" in self._conduct and study.number % 3 == 0:
                skipped.add(sops[-1])
            if "skip-first" in self._conduct and self._conduct.first_try(f"skip {study.uid}"):
                skipped.add(sops[-1])
            if "abort-store" in self._conduct and study.number % 2 == 0:
                first = next(sop for sop in sops[len(sops) // 2 :] + sops if sop in asked)
                if self._conduct.first_try(f"abort {study.uid}"):
                    broken.add(first)
        return skipped, broken

    def _store(self, store: Association, context: int | None, instance: InstanceRecord, number: int, broken: bool) -> int:
        """One C-STORE; its status, or one of failure when it could not be done."""
        if context is None or not store.open:
            return dimse.SOP_CLASS_NOT_SUPPORTED
        more: dict[int, Element] = {}
        if "rewrites-headers" in self._conduct:
            more[_INSTITUTION] = ("LO", f"PRACTICE {self._conduct.tried(f'rewrite {instance.sop}')}")
        dataset = self._archive.dataset(instance, more)
        fields: dict[int, int | str] = {
            dimse.COMMAND_FIELD: dimse.C_STORE,
            dimse.MESSAGE_ID: number & 0xFFFF,
            dimse.SOP_CLASS: instance.sop_class,
            dimse.SOP_INSTANCE: instance.sop,
            dimse.PRIORITY: 0,
            dimse.DATASET_TYPE: 1,
        }
        if "no-move-originator" not in self._conduct:
            fields[dimse.ORIGINATOR] = self._association.calling
            fields[dimse.ORIGINATOR_ID] = self._message.command.required(dimse.MESSAGE_ID)
        request = dimse.encode_command(fields)
        try:
            store.send_command(context, request)
            if broken:
                half = dataset[: min(len(dataset) // 2, 8192)]
                store._send(pdu(DATA, struct.pack(">LBB", len(half) + 2, context, 0) + half))
                store.abort()
                return dimse.PROCESSING_FAILURE
            store.send_dataset(context, dataset)
            answer = dimse.receive(store)
            self._conduct.count("store")
            return dimse.PROCESSING_FAILURE if answer is None else answer.command.required(dimse.STATUS)
        except (UpperLayerError, dimse.BadCommand):
            store.close()
            return dimse.PROCESSING_FAILURE
