"""The states of studies, instances and windows, and the law of their transitions."""

from __future__ import annotations

from enum import IntEnum


class StudyState(IntEnum):
    """Where a study stands; `STUDY_TRANSITIONS` has the steps. The numbers are those in the manifest."""

    FOUND = 0
    PLANNED = 1
    RETRIEVED = 2
    MIGRATED = 3
    EXCLUDED = 4
    PARKED = 5
    ACCEPTED = 6


class InstanceState(IntEnum):
    """Where an instance stands; `INSTANCE_TRANSITIONS` has the steps. The numbers are those in the manifest."""

    EXPECTED = 0
    STAGED = 1
    STORED = 2
    VERIFIED = 3


class WindowState(IntEnum):
    """What has become of a question; the numbers are those in the manifest."""

    PLANNED = 0
    ANSWERED = 1
    FAILED = 2
    SPLIT = 3
    DROPPED = 4  # not asked: the PACS ignores its key


class Proof(IntEnum):
    """How an instance's presence at the destination is known; a higher one proves more."""

    ACKNOWLEDGED = 1
    LISTED = 2
    ATTESTED = 3  # the store reported the checksum of what it holds, read after the upload
    READ_BACK = 4  # fetched and hashed again


_S, _I = StudyState, InstanceState
STUDY_TRANSITIONS: frozenset[tuple[StudyState, StudyState]] = frozenset(
    {
        (_S.FOUND, _S.PLANNED),
        (_S.FOUND, _S.EXCLUDED),
        (_S.FOUND, _S.PARKED),
        (_S.PLANNED, _S.RETRIEVED),
        (_S.PLANNED, _S.PARKED),
        (_S.PLANNED, _S.EXCLUDED),
        (_S.PLANNED, _S.FOUND),  # a later sweep saw it change: it is planned anew
        (_S.RETRIEVED, _S.MIGRATED),
        (_S.RETRIEVED, _S.PARKED),
        (_S.RETRIEVED, _S.PLANNED),  # heal: an instance fell back to expected
        (_S.RETRIEVED, _S.FOUND),
        (_S.MIGRATED, _S.PLANNED),  # heal: an object was lost at the destination
        (_S.MIGRATED, _S.FOUND),
        (_S.MIGRATED, _S.RETRIEVED),  # something unlisted came late and is to be proven, too
        (_S.PARKED, _S.FOUND),
        (_S.PARKED, _S.ACCEPTED),
        (_S.PARKED, _S.EXCLUDED),
        (_S.ACCEPTED, _S.FOUND),  # something new that the acceptance does not cover
        (_S.EXCLUDED, _S.FOUND),
    }
)
INSTANCE_TRANSITIONS: frozenset[tuple[InstanceState, InstanceState]] = frozenset(
    {
        (_I.EXPECTED, _I.STAGED),
        (_I.STAGED, _I.STORED),
        (_I.STORED, _I.VERIFIED),
        (_I.STAGED, _I.EXPECTED),  # staged file lost or corrupt
        (_I.STORED, _I.STAGED),  # the destination lost or spoilt it and the staged file is still here
        (_I.STORED, _I.EXPECTED),
        (_I.VERIFIED, _I.EXPECTED),  # a later audit found it lost or spoilt
    }
)
