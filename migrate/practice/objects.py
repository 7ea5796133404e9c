"""The data sets of the synthetic archive, made from its records: the same bytes every time."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping

from migrate.practice import codestreams
from migrate.practice.encoding import Element, encode, native_frame
from migrate.practice.records import CLASSES, JPEG_2000, JPEG_BASELINE, JPEG_LOSSLESS, InstanceRecord, SeriesRecord, StudyRecord

_FRAMES = {
    JPEG_BASELINE: codestreams.JPEG_BASELINE,
    JPEG_LOSSLESS: codestreams.JPEG_LOSSLESS,
    JPEG_2000: codestreams.JPEG_2000,
}


def make_dataset(
    study: StudyRecord,
    series: SeriesRecord,
    instance: InstanceRecord,
    *,
    seed: int,
    pixels: int,
    more: Mapping[int, Element],
) -> bytes:
    """An image's data set in its own transfer syntax; `pixels` is the edge of native images, `more` is put in."""
    place = series.uid.rsplit(".", 1)[1]
    name = study.patient_name.encode({"ISO_IR 100": "latin-1", "ISO_IR 192": "utf-8"}.get(study.charset, "ascii"))
    elements: dict[int, Element] = {
        0x00080008: ("CS", "ORIGINAL\\PRIMARY"),
        0x00080016: ("UI", instance.sop_class),
        0x00080018: ("UI", instance.sop),
        0x00080020: ("DA", study.date),
        0x00080023: ("DA", study.date),
        0x00080030: ("TM", study.time),
        0x00080033: ("TM", study.time),
        0x00080050: ("SH", study.accession),
        0x00080060: ("CS", series.modality),
        0x00080070: ("LO", "PRACTICE"),
        0x00080090: ("PN", ""),
        0x00081030: ("LO", study.description),
        0x00090010: ("LO", "PRACTICE ARCHIVE"),
        0x00091001: ("UN", f"{seed}/{study.number}/{place}/{instance.number}".encode()),
        0x00100010: ("PN", name),
        0x00100020: ("LO", study.patient_id),
        0x00100030: ("DA", study.birth_date),
        0x00100040: ("CS", study.sex),
        0x0020000D: ("UI", study.uid),
        0x0020000E: ("UI", series.uid),
        0x00200010: ("SH", str(study.number)),
        0x00200011: ("IS", place),
        0x00200013: ("IS", str(instance.number)),
    }
    if study.charset:
        elements[0x00080005] = ("CS", study.charset)
    elements |= more
    if series.modality in ("SR", "PR", "KO"):
        return encode(elements | _references(study, series.modality), instance.transfer_syntax)
    tomosynthesis = instance.sop_class == CLASSES["DBT"]
    frames = 15 if tomosynthesis else 8 if series.modality == "US" else 1
    packed = _FRAMES.get(instance.transfer_syntax)
    elements |= _image(pixels if packed is None else codestreams.EDGE, frames, 16 if packed is None else 8)
    if tomosynthesis:
        measures: Element = ("SQ", ({0x00280030: ("DS", "0.1\\0.1"), 0x00180050: ("DS", "1")},))
        elements[0x52009229] = ("SQ", ({0x00289110: measures},))
    turn = instance.number * 3 + study.number
    frames_made = (packed or native_frame(pixels, turn + frame) for frame in range(frames))
    return encode(elements, instance.transfer_syntax, frames_made)


def huge_dataset(
    study: StudyRecord, series: SeriesRecord, instance: InstanceRecord, *, seed: int, mib: int, more: Mapping[int, Element]
) -> Iterator[bytes | memoryview]:
    """A multi-frame image with `mib` frames of one MiB each (not real code streams), made piece by piece."""
    head = make_dataset(study, series, instance, seed=seed, pixels=2, more={**more, 0x00280008: ("IS", str(mib))})
    yield head[: -len(codestreams.JPEG_LOSSLESS) - 16]  # but for its only frame and the delimiter
    frame = bytes(range(256)) * 4096
    for number in range(mib):
        yield struct.pack("<HHLL", 0xFFFE, 0xE000, len(frame), number)
        yield memoryview(frame)[4:]
    yield struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)


def _references(study: StudyRecord, modality: str) -> dict[int, Element]:
    """What a report, presentation state or key object says of the study's first image."""
    first = study.series[0].instances[0]
    image: dict[int, Element] = {0x00081150: ("UI", first.sop_class), 0x00081155: ("UI", first.sop)}
    if modality == "PR":
        images: Element = ("SQ", (image,))
        return {
            0x00080008: ("CS", ""),
            0x00081115: ("SQ", ({0x0020000E: ("UI", study.series[0].uid), 0x00081140: images},)),
            0x00700080: ("CS", "PRACTICE"),
            0x20500020: ("CS", "IDENTITY"),
        }
    text = "Nothing of note in this practice study." if modality == "SR" else "Of interest"
    return {
        0x00080008: ("CS", ""),
        0x0040A040: ("CS", "CONTAINER"),
        0x0040A050: ("CS", "SEPARATE"),
        0x0040A730: (
            "SQ",
            (
                {0x0040A010: ("CS", "CONTAINS"), 0x0040A040: ("CS", "TEXT"), 0x0040A160: ("UT", text)},
                {0x0040A010: ("CS", "CONTAINS"), 0x0040A040: ("CS", "IMAGE"), 0x00081199: ("SQ", (image,))},
            ),
        ),
    }


def _image(edge: int, frames: int, bits: int) -> dict[int, Element]:
    stored = 12 if bits == 16 else 8
    elements: dict[int, Element] = {
        0x00280002: ("US", 1),
        0x00280004: ("CS", "MONOCHROME2"),
        0x00280010: ("US", edge),
        0x00280011: ("US", edge),
        0x00280100: ("US", bits),
        0x00280101: ("US", stored),
        0x00280102: ("US", stored - 1),
        0x00280103: ("US", 0),
    }
    if frames > 1:
        elements[0x00280008] = ("IS", str(frames))
    return elements
