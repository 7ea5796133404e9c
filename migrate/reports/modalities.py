"""DICOM's abbreviations for kinds of machines and documents (PS3.3 C.7.3.1.1.1), in words for people."""

from __future__ import annotations

from collections.abc import Iterable

WORDS = {
    "AU": "audio", "BI": "biomagnetic imaging", "BMD": "bone density", "CR": "X-ray (imaging plate)", "CT": "computed tomography",
    "DOC": "document", "DX": "X-ray (digital)", "ECG": "electrocardiogram", "ES": "endoscopy", "GM": "microscopy", "HD": "heart measurements",
    "IO": "X-ray within the mouth", "IVUS": "ultrasound within vessels", "KO": "selection of images", "MG": "mammography", "MR": "magnetic resonance",
    "NM": "nuclear medicine", "OCT": "optical tomography", "OP": "photography of the eye", "OT": "other", "PR": "way of displaying images",
    "PT": "positron emission tomography", "PX": "panoramic X-ray", "REG": "registration of images", "RF": "fluoroscopy", "RG": "X-ray (film)",
    "RTDOSE": "radiotherapy dose", "RTIMAGE": "radiotherapy image", "RTPLAN": "radiotherapy plan", "RTRECORD": "radiotherapy record",
    "RTSTRUCT": "radiotherapy structures", "SC": "secondary capture", "SEG": "segmentation", "SM": "slide microscopy", "SR": "report or measurements",
    "US": "ultrasound", "XA": "angiography", "XC": "photography",
}  # fmt: skip


def in_words(names: Iterable[str]) -> str:
    """CT computed tomography, MR magnetic resonance; those without words are left out."""
    return ", ".join(f"{name} {WORDS[name]}" for name in names if name in WORDS)
