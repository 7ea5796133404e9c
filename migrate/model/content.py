"""What is known of an instance's bytes: rolled at receipt, durable in staging, said by the destination."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from migrate.model.references import InstanceRef


@dataclass(frozen=True, slots=True)
class Rolled:
    """What was taken of a Part 10 file while it came, from the bytes in memory.

    The data-set hash covers only the bytes that the PACS sent, the CRC the whole file.
    """

    size_bytes: int
    dataset_sha256: bytes
    crc64nvme: int


@dataclass(frozen=True, slots=True)
class Fixity:
    """All that is known of a durable Part 10 file: what was rolled at its receipt, and the SHA-256 of the file.

    The latter was taken of the file as it lay in staging, whose size and CRC were those rolled at its receipt.
    """

    size_bytes: int
    file_sha256: bytes
    dataset_sha256: bytes
    crc64nvme: int

    @property
    def rolled(self) -> Rolled:
        """The part that is known at the receipt."""
        return Rolled(self.size_bytes, self.dataset_sha256, self.crc64nvme)


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a destination said of an object it stored; checksums only as the store itself reported them."""

    key: str
    version: str | None = None
    checksum: str | None = None


@dataclass(frozen=True, slots=True)
class Received:
    """One data set that came whole: closed, hashed and scanned, not yet read back and synced.

    `ref` is None where the data set could not be walked or its UIDs are not the command's; `quarantine` says why.
    `notes` are the scanner's deviations (ordinary in old archives). `pixel_crc64` covers everything from PixelData on, so
    that a header rewritten by the PACS can be told from other pixels. `move`: the message ID of the C-MOVE that the C-STORE
    named as its origin, if it named one.
    """

    path: Path
    ref: InstanceRef | None
    rolled: Rolled
    sop_class: str
    transfer_syntax: str
    notes: tuple[str, ...] = ()
    quarantine: str | None = None
    claimed: tuple[str, str, str] = ("", "", "")  # study, series, SOP UIDs as said, unchecked: for the report's detail only
    pixel_crc64: int | None = None
    move: int | None = None


@dataclass(frozen=True, slots=True)
class Item:
    """An instance (or one of its copies) on its way to or at the destination."""

    ref: InstanceRef
    fixity: Fixity
    beside: bool = False  # lies under its ~ name
    copy: bool = False  # a row of `copy`: a further content under the same three UIDs
    receipt: Receipt | None = None
