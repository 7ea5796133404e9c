"""The same few images retrieved twice: what a PACS sends, and whether it sends the same again."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.tag import Tag

from migrate.config import ReceiverSettings
from migrate.counted import counted
from migrate.dicom.move import move
from migrate.dicom.receiver import Receiver
from migrate.dicom.scu import Peer
from migrate.dicom.trial import Clock
from migrate.errors import PacsMigrateError
from migrate.model import HabitLearned, InstanceRef, Received
from migrate.sources.dimse.peer import with_addresses
from migrate.staging.area import Staging

_MOVE_S, _LATE_S = 12.0, 2.0


@dataclass
class _Taken:
    """What the PACS sent during one retrieval of the sample."""

    received: dict[InstanceRef, Received] = field(default_factory=dict)
    odd: int = 0  # came without sound UIDs


class Sample:
    """C-MOVEs of single images to a receiver of its own; `patient_of` gives the PatientID that a C-MOVE must name."""

    def __init__(self, peer: Peer, receiver: ReceiverSettings, clock: Clock, patient_of: Callable[[str], str | None]) -> None:
        self._peer, self._receiver, self._clock, self._patient_of = peer, receiver, clock, patient_of
        self._lock = threading.Lock()
        self._taken = _Taken()
        self._new = threading.Event()

    def _received(self, received: Received) -> Future[None] | None:
        with self._lock:
            if received.ref is None:
                self._taken.odd += 1
                received.path.unlink(missing_ok=True)
            elif received.ref in self._taken.received:
                received.path.unlink(missing_ok=True)
            else:
                self._taken.received[received.ref] = received
        self._new.set()
        return None

    def retrieve(self, sample: Sequence[InstanceRef], staging: Staging) -> list[HabitLearned]:
        """What two retrievals of these tell, as far as anything comes. Raises PortInUse."""
        receiver = Receiver(replace(with_addresses(self._receiver), ack="received"), staging, self._received)
        receiver.start()
        taken: list[_Taken] = []
        try:
            for _ in range(2):
                with self._lock:
                    self._taken = _Taken()
                taken.append(self._taken)
                for ref in sample:
                    self._move(ref)
        finally:
            receiver.close()
        try:
            return list(self._judge(sample, *taken))
        finally:
            for one in taken:
                for received in one.received.values():
                    received.path.unlink(missing_ok=True)

    def _move(self, ref: InstanceRef) -> None:
        clock = Clock(min(_MOVE_S, max(self._clock.left_s - 3, 0.0)))
        before = len(self._taken.received)
        self._new.clear()
        patient = self._patient_of(ref.study)
        with contextlib.suppress(PacsMigrateError):
            move(self._peer, self._receiver.ae_title, study=ref.study, series=ref.series, sops=(ref.sop,), patient=patient,
                 should_stop=lambda: None if clock.left_s else "The probe's time is over.")  # fmt: skip
            if len(self._taken.received) == before:
                self._new.wait(min(_LATE_S, self._clock.left_s))

    def _judge(self, sample: Sequence[InstanceRef], first: _Taken, second: _Taken) -> Iterator[HabitLearned]:
        everything = [*first.received.values(), *second.received.values()]
        if not everything:
            return
        syntaxes = dict.fromkeys(received.transfer_syntax for received in everything)
        yield HabitLearned("transfer_syntaxes", " ".join(syntaxes), f"{counted(len(syntaxes), 'transfer syntax', 'transfer syntaxes')} came in the sample.")
        named = all(received.move is not None for received in everything)
        yield HabitLearned("move_originator", "yes" if named else "no",
                    "The C-STOREs name the C-MOVE they belong to." if named else "C-STOREs do not name the C-MOVE they belong to.")  # fmt: skip
        both = first.received.keys() & second.received.keys()
        came, asked = first.received.keys() | second.received.keys(), set(sample)
        if came - asked and asked - came:
            yield HabitLearned("same_uids", "no", "Images come under other UIDs than they were asked for by.")
        elif both & asked:
            more = " More came than was asked for." if came - asked else ""
            yield HabitLearned("same_uids", "yes", f"{counted(len(both & asked), 'image')} came under the same UIDs twice.{more}")
        if not both:
            return
        differing = [ref for ref in both if first.received[ref].rolled.dataset_sha256 != second.received[ref].rolled.dataset_sha256]
        if not differing:
            yield HabitLearned("same_bytes", "yes", f"{counted(len(both), 'image')} came with the same bytes twice.")
            return
        tags = sorted({tag for ref in differing for tag in differing_tags(first.received[ref].path, second.received[ref].path)})
        pixels = any(first.received[ref].pixel_crc64 != second.received[ref].pixel_crc64 for ref in differing)
        where = ", ".join(tags) or "the encoding alone"
        yield HabitLearned("same_bytes", "no", f"{len(differing)} of {counted(len(both), 'image')} came with other bytes the second time, in {where}"
                    f"{'; the pixels differ too' if pixels else '; the pixels are the same'}.")  # fmt: skip


def differing_tags(one: Path, other: Path) -> list[str]:
    """The elements of the top level in which two files differ, as (gggg,eeee); never a value."""
    try:
        first, second = (dcmread(path, stop_before_pixels=True, force=True) for path in (one, other))
        tags = sorted({*first.keys(), *second.keys()})
        return [f"({tag >> 16:04X},{tag & 0xFFFF:04X})" for tag in map(int, tags) if _raw(first, tag) != _raw(second, tag)]
    except Exception:  # pydicom raises all sorts on what old archives hold, and its words may hold values
        return []


def _raw(dataset: Any, tag: int) -> object:
    element = dataset.get_item(Tag(tag)) if Tag(tag) in dataset else None
    return getattr(element, "value", None)
