"""A strict walk over a data set's framing: can every element, item and fragment be found where the lengths say?

No value is decoded but the four UIDs and what tells the size of native pixels. The walk keeps its own stack, jumps over
values, and never raises for what it reads (PS3.5 7.1-7.5, A.4).
"""

from __future__ import annotations

import mmap
import os
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from awscrt.checksums import combine_crc64nvme, crc64nvme

from migrate.dicom.framing import (
    BITS,
    COLUMNS,
    DEFLATED_LE,
    EXPLICIT_BE,
    EXPLICIT_LE,
    FRAMES,
    LIMITS,
    PHOTOMETRIC,
    PIECE,
    ROWS,
    SAMPLES,
    SERIES,
    SOP,
    SOP_CLASS,
    STUDY,
    CannotWalk,
    Limits,
    Seen,
    walk,
)

_READ_WHOLE_BYTES = 256 << 10

Buffer = bytes | bytearray | memoryview | mmap.mmap


@dataclass(frozen=True, slots=True)
class Scan:
    """What the framing of a data set tells; `error` is None where all of it can be walked.

    The UIDs are those of the top level without trailing padding, unchecked, "" when absent. `notes` are short stable
    names of deviations, each once, sorted. `pixel_offset` is where the top-level pixel data element begins (None in a
    deflated data set), `pixel_crc64` covers everything from there to the end (inflated, if it was deflated).
    """

    sop_class: str = ""
    sop: str = ""
    study: str = ""
    series: str = ""
    notes: tuple[str, ...] = ()
    error: str | None = None
    pixel_offset: int | None = None
    pixel_crc64: int | None = None


def scan_file(path: Path, offset: int, transfer_syntax: str, crc: int | None = None) -> Scan:
    """Walk the data set that begins at `offset` of a file. Raises OSError; content never raises.

    Where the CRC64NVME of the whole file is known, that of the pixels follows from it and what stands before them, and the
    pixels need not be read.
    """
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if size <= _READ_WHOLE_BYTES:
            return scan(file.read(), offset, transfer_syntax, crc, scratch=path.parent)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            # The checksum reads the file instead of the map: touched pages of a map count as our memory.
            return _scan(mapped, offset, transfer_syntax, crc, lambda start, end: _crc_of_file(file.fileno(), start, end), path.parent)


def scan(buffer: Buffer, offset: int, transfer_syntax: str, crc: int | None = None, *, scratch: Path | None = None, limits: Limits = LIMITS) -> Scan:
    """Walk the data set that begins at `offset` of a buffer; `crc` as above. Never raises for what stands in the buffer.

    `scratch`: the folder in which a deflated data set, which is an image of a patient, may stand inflated in an unnamed file; None: TMPDIR.
    """
    return _scan(buffer, offset, transfer_syntax, crc, lambda start, end: _crc_of_buffer(buffer, start, end), scratch, limits)


def _scan(buffer: Buffer, offset: int, transfer_syntax: str, whole: int | None, crc_of: Callable[[int, int], int], scratch: Path | None,
          limits: Limits = LIMITS) -> Scan:  # fmt: skip
    seen = Seen(big=transfer_syntax == EXPLICIT_BE, limits=limits)
    if transfer_syntax == DEFLATED_LE:
        return _scan_deflated(buffer, offset, seen, scratch)
    try:
        with memoryview(buffer) as view:
            walk(view, offset, transfer_syntax, seen)
    except CannotWalk as broken:
        return _result(seen, str(broken), None, None)
    start, size = seen.pixel_offset, len(buffer)
    if start is None:
        crc = None
    elif whole is None:
        crc = crc_of(start, size)
    else:  # a CRC of two parts is that of the first, moved on by the length of the second, XOR that of the second
        crc = whole ^ combine_crc64nvme(crc_of(0, start), 0, size - start)
    return _result(seen, None, start, crc)


def _scan_deflated(buffer: Buffer, offset: int, seen: Seen, scratch: Path | None) -> Scan:
    """Inflate into an unnamed temporary file, never beyond the cap, and walk that (PS3.5 A.5)."""
    with tempfile.TemporaryFile(dir=scratch) as plain:
        try:
            with memoryview(buffer) as view:
                size = _inflate(view, offset, plain.write, seen)
            plain.flush()
            if not size:
                return _result(seen, "the data set is empty", None, None)
            with mmap.mmap(plain.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                with memoryview(mapped) as view:
                    walk(view, 0, EXPLICIT_LE, seen)
                crc = None if seen.pixel_offset is None else _crc_of_file(plain.fileno(), seen.pixel_offset, size)
        except CannotWalk as broken:
            return _result(seen, str(broken), None, None)
    return _result(seen, None, None, crc)


def _inflate(view: memoryview, offset: int, write: Callable[[bytes], int], seen: Seen) -> int:
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    position, size = offset, 0
    pending = b""
    try:
        while not stream.eof:
            if not pending:
                if position >= len(view):
                    raise CannotWalk("the deflated stream is cut")
                pending = bytes(view[position : position + PIECE])
                position += len(pending)
            piece = stream.decompress(pending, PIECE)
            pending = stream.unconsumed_tail
            size += len(piece)
            if size > seen.limits.inflated_bytes:
                raise CannotWalk(f"the deflated stream inflates to more than {seen.limits.inflated_bytes} bytes")
            write(piece)
    except zlib.error as error:
        raise CannotWalk("the deflated stream is damaged") from error
    rest = len(stream.unused_data) + max(len(view) - position, 0)
    if rest > 8:
        raise CannotWalk(f"{rest} bytes follow the deflated stream")
    if rest > 1:  # one byte makes the length even; some writers leave gzip's trailer of eight
        seen.notes.add("trailing-padding")
    return size


def _crc_of_buffer(buffer: Buffer, start: int, end: int) -> int:
    crc = 0
    with memoryview(buffer) as view:
        for position in range(start, end, PIECE):
            with view[position : min(position + PIECE, end)] as piece:
                crc = crc64nvme(piece, crc)
    return crc


def _crc_of_file(fd: int, start: int, end: int) -> int:
    crc = 0
    while start < end and (piece := os.pread(fd, min(PIECE, end - start), start)):
        crc = crc64nvme(piece, crc)
        start += len(piece)
    return crc


def _result(seen: Seen, error: str | None, pixel_offset: int | None, crc: int | None) -> Scan:
    if error is None:
        _judge_pixels(seen)
    sop_class, sop, study, series = (
        seen.kept.get(tag, b"").decode("latin-1").rstrip("\0 ") for tag in (SOP_CLASS, SOP, STUDY, SERIES)
    )
    return Scan(sop_class, sop, study, series, tuple(sorted(seen.notes)), error, pixel_offset, crc)


def _judge_pixels(seen: Seen) -> None:
    """Note where an image lacks its pixels, or has fewer than its size says (PS3.3 C.7.6.3)."""
    if ROWS not in seen.kept:
        return
    if seen.pixel_offset is None:
        if not seen.provider:
            seen.notes.add("no-pixels")
        return
    if seen.pixel_bytes is None:
        return
    rows, columns = _number(seen, ROWS, 0), _number(seen, COLUMNS, 0)
    samples, bits = _number(seen, SAMPLES, 1), _number(seen, BITS, 8)
    photometric = seen.kept.get(PHOTOMETRIC, b"")
    if samples == 3 and b"42" in photometric:  # subsampled chrominance: 422 takes two thirds, 420 half
        bits = bits * 2 // 3 if b"422" in photometric else bits // 2
    try:
        frames = int(seen.kept.get(FRAMES, b"1").strip(b"\0 ") or b"1")
    except ValueError:
        frames = 1
    if seen.pixel_bytes < (rows * columns * samples * bits * frames + 7) // 8:
        seen.notes.add("short-pixels")


def _number(seen: Seen, tag: int, absent: int) -> int:
    value = seen.kept.get(tag, b"")
    return int.from_bytes(value[:2], "big" if seen.big else "little") if len(value) >= 2 else absent
