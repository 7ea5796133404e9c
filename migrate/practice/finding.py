"""C-FIND's answers: rows made from the asked keys alone, sent many at a time, and spoilt as the faults say (PS3.4 C.4.1)."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, repeat

from migrate.dicom import dimse
from migrate.dicom.identifier import encode_identifier
from migrate.dicom.negotiation import DATA
from migrate.dicom.upper_layer import Association
from migrate.practice import matching
from migrate.practice.faults import Conduct
from migrate.practice.holdings import Holdings, is_broken, odd_text
from migrate.practice.matching import BadQuery, Match, Query
from migrate.practice.moving import cancelled

_FLUSH_BYTES, _FLUSH_S = 16 << 10, 0.05
_CODECS = {"ISO_IR 100": "latin-1", "ISO_IR 192": "utf-8"}
_GARBAGE = struct.pack("<HHI", 0x0008, 0x0020, 0xFEFFFFFE) + b"\xff\xfe no element at all"
_SPOILT: tuple[tuple[str, Callable[[bytes], bytes]], ...] = (
    ("undecodable-row", lambda _: _GARBAGE),
    ("truncated-row", lambda row: row[:-4]),
)
"""(fault, what it makes of a row): fragments of even length (PS3.8 E.2), whose elements do not fit."""
_IGNORED = {"ignore-date": matching.DATE, "ignore-time": matching.TIME, "ignore-modality": matching.MODALITIES}
_ODD = frozenset((matching.NAME, matching.DESCRIPTION))


class Rows:
    """Encodes the rows of one answer: the keys that were asked for, and what every answer has (PS3.4 C.4.1.1.3.2)."""

    def __init__(self, query: Query, syntax: str, ae_title: str, conduct: Conduct) -> None:
        values = matching.VALUES[query.level]
        fixed = {dimse.QUERY_LEVEL: query.level, matching.RETRIEVE_AE: ae_title, matching.AVAILABILITY: "ONLINE"}
        tags = set(query.keys) | {tag for tag in matching.UID_OF_LEVEL.values() if tag in values} | set(fixed)
        self._named = bool(tags & _ODD)
        self._odd = "odd-names" in conduct
        if self._named:
            tags.add(matching.CHARSET)
        pad = b"\0\0" if "nul-uids" in conduct else b"  " if "padded-uids" in conduct else b""
        self._plan: list[tuple[int, bytes, str, bytes, bytes, Callable[[Match], str] | bytes]] = []
        for tag in sorted(tags):
            head = encode_identifier({tag: b""}, syntax)
            short = syntax == dimse.EXPLICIT_LE and len(head) == 8
            filler = encode_identifier({tag: b"x"}, syntax)[-1:]
            value: Callable[[Match], str] | bytes = values.get(tag) or fixed.get(tag, "").encode()
            self._plan.append((tag, head[: -2 if short else -4], "<H" if short else "<I", filler,
                               pad if tag in matching.UIDS else b"", value))  # fmt: skip

    def encode(self, match: Match) -> bytes:
        charset = match.study.charset if self._named else ""
        codec = _CODECS.get(charset, "ascii")
        declared, odd = charset.encode(), b""
        if self._odd:
            declared, odd = odd_text(match.study)
        parts = []
        for tag, head, form, filler, pad, value in self._plan:
            if tag == matching.CHARSET:
                if not declared:
                    continue
                raw = declared
            elif odd and tag in _ODD:
                raw = odd
            elif isinstance(value, bytes):
                raw = value
            else:
                raw = value(match).encode(codec, "replace")
            if pad and raw:
                raw += pad
            if len(raw) & 1:
                raw += filler
            parts.append(head + struct.pack(form, len(raw)))
            parts.append(raw)
        return b"".join(parts)


class _Outbox:
    """Rows on their way: sent many at a time, because each sending costs more than making a row, but never kept long."""

    def __init__(self, association: Association) -> None:
        self._association = association
        self._out, self._flushed = bytearray(), time.monotonic()

    def add(self, data: bytes) -> None:
        self._out += data

    def is_due(self) -> bool:
        return len(self._out) > _FLUSH_BYTES or time.monotonic() - self._flushed > _FLUSH_S

    def flush(self) -> None:
        if self._out:
            self._association._send(self._out)
        self._out, self._flushed = bytearray(), time.monotonic()


@dataclass(slots=True)
class Find:
    """One C-FIND: `run` answers it."""

    holdings: Holdings
    conduct: Conduct
    ae_title: str
    pause: Callable[[float], object]
    association: Association
    message: dimse.Message
    syntax: str

    def run(self, query: Query | None) -> None:
        asked = self.conduct.count(f"find {query.level}" if query else "find refused")
        if query is None:
            return self._end(dimse.IDENTIFIER_MISMATCH)
        at_study = query.level == "STUDY"
        if at_study:
            self.holdings.asked_for_studies(asked)
        try:
            widest = self.conduct.number("refuse-wide")
            if at_study and widest is not None and query.is_wider(widest):
                return self._end(dimse.OUT_OF_RESOURCES)
            if at_study and self.conduct.strikes("hang-find", asked):
                return self._hang()
            endless = at_study and self.conduct.strikes("endless-find", asked)
            self._ignore_keys(query)
            matches = query.matches(self.holdings)
            most = None
            if query.level in ("PATIENT", "STUDY"):
                matches = islice(self._shown(query, matches), self.conduct.number("silent-cap"))
                most = self.conduct.number("refuse-many")
            else:
                matches = islice(matches, self.conduct.number("image-cap"))
                if "no-image-rows" in self.conduct and query.level == "IMAGE":
                    matches = iter(())
            if endless and (first := next(matches, None)):
                matches = repeat(first)
            status = self._send(query, matches, most, asked)
        except BadQuery:
            status = dimse.IDENTIFIER_MISMATCH
        if status is not None:
            self._end(status)

    def _end(self, status: int) -> None:
        self.association.send_command(self.message.context_id, dimse.response(self.message.command, status))

    def _hang(self) -> None:
        """Say nothing until the other side has had enough, or the PACS closes."""
        while self.association.open and not self.pause(0.05):
            if self.association.wait(0.05):
                return  # an abort, a release or the end of the connection: whoever reads next deals with it

    def _break_ranges(self, query: Query) -> None:
        """What is made of a StudyDate range that is open at one end, or of a single day. Raises BadQuery."""
        asked = query.day_range
        if asked is None:
            return
        day, is_range = asked[0] or asked[1], "-" in query.keys[matching.DATE]
        if is_range and "no-ranges" in self.conduct:
            query.keys[matching.DATE] = "00010101"
        elif not all(asked):
            if "refuse-open-ranges" in self.conduct:
                raise BadQuery("an open range")
            if "ignore-open-ranges" in self.conduct:
                query.ignore(matching.DATE)
            elif "open-range-as-day" in self.conduct:
                query.keys[matching.DATE] = day
        elif is_range and asked[0] == asked[1] and "no-day-range" in self.conduct:
            query.keys[matching.DATE] = "00010101"

    def _ignore_keys(self, query: Query) -> None:
        self._break_ranges(query)
        for fault, tag in _IGNORED.items():
            if fault in self.conduct:
                query.ignore(tag)
        if "ignore-patient-id" in self.conduct and query.has_pattern(matching.PATIENT_ID):
            query.ignore(matching.PATIENT_ID)

    def _shown(self, query: Query, matches: Iterator[Match]) -> Iterator[Match]:
        """What of its matches a query brings to light."""
        ways = (dimse.STUDY_UID, matching.PATIENT_ID, matching.ACCESSION, matching.MODALITIES)
        if "hidden-undated" not in self.conduct or query.level != "STUDY" or query.is_asked(*ways):
            return matches
        return (match for match in matches if match.study.date)

    def _send(self, query: Query, matches: Iterator[Match], most: int | None, asked: int) -> int | None:
        """Send the rows; the final status, or None when the association is over. Raises BadQuery."""
        at_study = query.level == "STUDY"
        breaks = [fault for fault in ("abort-find", "release-find", "cut-find") if self.conduct.strikes(fault, asked)]
        rows = Rows(query, self.syntax, self.ae_title, self.conduct)
        spoil = self._spoiler(query) if at_study else None
        pending = dimse.PENDING_WARNING if "ff01" in self.conduct else dimse.PENDING
        command = _pdu(self.message.context_id, 1, dimse.response(self.message.command, pending, {dimse.DATASET_TYPE: 1}))
        slow_s = self.conduct.seconds("slow-answers")
        out = _Outbox(self.association)
        listed = None  # the study whose images are being listed
        for count, match in enumerate(self._repeated(matches) if at_study else matches):
            if slow_s:
                self.pause(slow_s)
            if slow_s or out.is_due():
                out.flush()
                if self._is_cancelled():
                    return dimse.CANCELLED
            if most is not None and count >= most:
                out.flush()
                return dimse.OUT_OF_RESOURCES
            row = sound = rows.encode(self._nameless(match))
            if spoil:
                row = spoil(count, match, row)
            if at_study and breaks:
                self._break_off(breaks[0], command, row)
                return None
            out.add(command)
            out.add(self._data(row))
            if at_study and row is sound:
                self.holdings.showed_study(match.study)
            if listed and listed.number != match.study.number:
                self.holdings.showed_images(listed)
            listed = match.study if match.instance else None
        if at_study and breaks:
            self._break_off(breaks[0], b"", b"")
            return None
        if listed:
            self.holdings.showed_images(listed)
        out.flush()
        return dimse.CANCELLED if self._is_cancelled() else dimse.SUCCESS

    def _nameless(self, match: Match) -> Match:
        """The match as it is told: some image rows lack the UID."""
        if match.instance is None or not self.conduct.of("nameless-rows", match.study.number) or match.instance != match.study.series[-1].instances[-1]:
            return match
        return match._replace(instance=replace(match.instance, sop=""))

    def _is_cancelled(self) -> bool:
        return "ignore-cancel" not in self.conduct and cancelled(self.association, self.message.command)

    def _data(self, row: bytes) -> bytes:
        """A data set as PDUs that the peer takes."""
        most = max(self.association.peer_max_pdu or 1 << 17, 128) - 6
        if len(row) <= most:
            return _pdu(self.message.context_id, 0, row)
        pieces = [row[at : at + most] for at in range(0, len(row), most)]
        return b"".join(_pdu(self.message.context_id, 0, piece, last=piece is pieces[-1]) for piece in pieces)

    def _repeated(self, matches: Iterable[Match]) -> Iterator[Match]:
        """Every third row a second time, every second one of these with other values."""
        if "repeat-rows" not in self.conduct:
            yield from matches
            return
        for count, match in enumerate(matches):
            yield match
            if count % 6 == 5:
                study = match.study
                other = self.holdings.day_of((study.number + 1) % len(self.holdings))
                yield Match(study.but(date=other, claimed_off_by=None if study.claimed_off_by is None else 7))
            elif count % 3 == 2:
                yield match

    def _spoiler(self, query: Query) -> Callable[[int, Match, bytes], bytes] | None:
        """What makes rows undecodable: (which row of the answer, its match, its bytes) to the bytes that are sent."""
        for name, spoilt in _SPOILT:
            if f"{name}-always" in self.conduct:
                return partial(_spoil_broken, spoilt)
            times = self.conduct.number(name)
            if times is None or self.conduct.place(query.question) % 3 != 1:  # the first, the fourth, ...
                continue
            if self.conduct.tried(f"{name} {query.question}") <= times:
                return partial(_spoil_first, spoilt)
        return None

    def _break_off(self, fault: str, command: bytes, row: bytes) -> None:
        """End the association as told, after (or amid) a first row."""
        data = self._data(row) if row else b""
        self.association._send(command + (data[: len(data) // 2] if fault == "cut-find" else data))
        if fault == "abort-find":
            self.association.abort()
        elif fault == "release-find":
            self.association.release()
        else:
            self.association.close()


def _spoil_broken(spoilt: Callable[[bytes], bytes], _count: int, match: Match, row: bytes) -> bytes:
    return spoilt(row) if is_broken(match.study) else row


def _spoil_first(spoilt: Callable[[bytes], bytes], count: int, _match: Match, row: bytes) -> bytes:
    return row if count else spoilt(row)


def _pdu(context_id: int, control: int, data: bytes, *, last: bool = True) -> bytes:
    """A command (control 1) or data set (0), or the last piece of it, in a PDU of its own (PS3.8 9.3.5, E.2)."""
    flags = control | (2 if last else 0)
    return struct.pack(">BBIIBB", DATA, 0, len(data) + 6, len(data) + 2, context_id, flags) + data
