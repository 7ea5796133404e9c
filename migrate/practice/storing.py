"""One C-STORE of the practice PACS, with the manners that it is given for that image (PS3.4 B)."""

from __future__ import annotations

import contextlib
import itertools
import socket
import struct
from collections.abc import Callable, Iterable

from migrate.dicom import dimse, pdata
from migrate.dicom.negotiation import DATA, pdu
from migrate.dicom.upper_layer import Association, UpperLayerError
from migrate.practice.encoding import Element
from migrate.practice.faults import Conduct
from migrate.practice.holdings import PATH, Holdings
from migrate.practice.records import InstanceRecord, StudyRecord

Kind = tuple[str, str]
"""SOP class and transfer syntax: what a presentation context is of."""
_INSTITUTION, _SOP = 0x00080080, 0x00080018
_CUT_BYTES = 10  # even, as every fragment is (PS3.8 E.2), and within the last element of every image
_BREAKS = {"abort-store": "abort", "reset-store": "reset", "half-pdu": "half"}
_OF_THE_LAST = ("failed-image", "failed-unnamed", "failed-misnamed", "other-bytes", "truncated", "path-uids", "other-command-uid",
                "other-command-class")  # fmt: skip


def planned_deeds(conduct: Conduct, work: Iterable[tuple[StudyRecord, InstanceRecord]]) -> dict[str, str]:
    """What is to be done to which image of one C-MOVE: deeds by SOP Instance UID."""
    pairs = list(work)
    asked = {instance.sop for _, instance in pairs}
    deeds: dict[str, str] = {}
    for study in {study.number: study for study, _ in pairs}.values():
        sops = [instance.sop for series in study.series for instance in series.instances]
        middle = len(sops) // 2
        for fault in _OF_THE_LAST:
            if conduct.of(fault, study.number):
                deeds[sops[-1]] = "fail" if fault.startswith("failed") else fault
        if conduct.of("skip-one", study.number):
            deeds[sops[-1]] = "skip"
        if (times := conduct.of("skip-first", study.number)) and conduct.tried(f"skip {study.uid}") <= times:
            deeds[sops[-1]] = "skip"
        if conduct.of("abort-store-always", study.number):
            deeds[sops[middle]] = "abort"
        if conduct.of("drip", study.number):
            deeds[sops[middle]] = "drip"
        for fault, deed in _BREAKS.items():
            if (times := conduct.of(fault, study.number)) and conduct.tried(f"{fault} {study.uid}") <= times:
                deeds[next(sop for sop in sops[middle:] + sops if sop in asked)] = deed
    return deeds


class Sender:
    """Sends over one association to the destination; `calling` and `request` are those of the C-MOVE."""

    def __init__(
        self,
        holdings: Holdings,
        conduct: Conduct,
        pause: Callable[[float], object],
        store: Association,
        calling: str,
        request: dimse.Command,
    ) -> None:
        self._holdings, self._conduct, self._pause, self._store = holdings, conduct, pause, store
        self._calling, self._request = calling, request
        self._contexts = {(context.abstract_syntax, context.transfer_syntax): context.id for context in store.contexts.values()}
        self._numbers = itertools.count(1)

    def store(self, study: StudyRecord, instance: InstanceRecord, deed: str, *, again: bool) -> int:
        """One C-STORE (`again`: the same image once more); its status, or one of failure when it could not be done."""
        context = self._contexts.get((instance.sop_class, instance.transfer_syntax))
        if context is None or not self._store.open:
            return dimse.SOP_CLASS_NOT_SUPPORTED
        more: dict[int, Element] = {}
        if self._conduct.of("rewrites-headers", study.number):
            more[_INSTITUTION] = ("LO", f"PRACTICE {self._conduct.tried(f'rewrite {instance.sop}')}")
        if deed == "path-uids":
            more[_SOP] = ("UI", PATH)
        command = self._command(study, instance, deed)
        pieces = self._holdings.pieces(instance, more)
        if deed == "truncated":
            pieces = (b"".join(pieces)[:-_CUT_BYTES],)
        elif deed == "other-bytes" and again:
            whole = b"".join(pieces)
            pieces = (whole[:-_CUT_BYTES] + bytes((whole[-_CUT_BYTES] ^ 1,)) + whole[1 - _CUT_BYTES :],)
        try:
            self._store.send_command(context, command)
            if deed in ("abort", "reset", "half"):
                self._break_off(deed, context, b"".join(pieces))
                return dimse.PROCESSING_FAILURE
            if deed == "drip":
                self._drip(context, pieces, self._conduct.of("drip", study.number))
            else:
                self._store.send_dataset(context, pieces)
            answer = dimse.receive(self._store)
            self._conduct.count("store")
            return dimse.PROCESSING_FAILURE if answer is None else answer.command.required(dimse.STATUS)
        except (UpperLayerError, dimse.BadCommand):
            self._store.close()
            return dimse.PROCESSING_FAILURE

    def _command(self, study: StudyRecord, instance: InstanceRecord, deed: str) -> bytes:
        named = {"path-uids": PATH, "other-command-uid": instance.sop + ".1"}.get(deed, instance.sop)
        fields: dict[int, int | str] = {
            dimse.COMMAND_FIELD: dimse.C_STORE,
            dimse.MESSAGE_ID: next(self._numbers) & 0xFFFF,
            dimse.SOP_CLASS: dimse.VERIFICATION if deed == "other-command-class" else instance.sop_class,
            dimse.SOP_INSTANCE: named,
            dimse.PRIORITY: 0,
            dimse.DATASET_TYPE: 1,
        }
        if not self._conduct.of("no-move-originator", study.number):
            fields[dimse.ORIGINATOR] = self._calling
            fields[dimse.ORIGINATOR_ID] = self._request.required(dimse.MESSAGE_ID)
        return dimse.encode_command(fields)

    def _break_off(self, deed: str, context: int, dataset: bytes) -> None:
        """End in the middle of a data set, or fall silent there until the peer has had enough."""
        half = dataset[: min(len(dataset) // 2, 8192)]
        sent = pdu(DATA, struct.pack(">LBB", len(half) + 2, context, 0) + half)
        self._store._send(sent[: len(sent) // 2] if deed == "half" else sent)
        if deed == "abort":
            self._store.abort()
        elif deed == "reset":
            self._store._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._store.open = False
            self._store._sock.close()
        else:
            with contextlib.suppress(UpperLayerError):
                self._store.read()
            self._store.close()

    def _drip(self, context: int, pieces: Iterable[bytes | memoryview], every_s: float) -> None:
        for block in pdata.framed(context, 0, pieces, 4096):
            for at in range(len(block)):
                self._store._send(block[at : at + 1])
                self._pause(every_s)
