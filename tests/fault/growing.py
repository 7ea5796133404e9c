"""A practice PACS that goes on working: `python -m tests.fault.growing PORT RECEIVER STUDIES FIRST A_SECOND`.

Its `FIRST` studies are mammograms, which the migration leaves out: a long list, which costs nothing but to be asked for.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

from migrate.practice.faults import Conduct
from migrate.practice.holdings import Holdings
from migrate.practice.pacs import PracticePacs
from migrate.practice.records import StudyRecord
from migrate.practice.studies import Archive


class Growing(Holdings):
    """Of an archive the `first` studies by number, and `a_second` more with every second."""

    def __init__(self, archive: Archive, first: int, a_second: float) -> None:
        super().__init__(archive, Conduct(()))
        self._first, self._a_second, self._began = first, a_second, time.monotonic()

    def find(self, uid: str) -> StudyRecord | None:
        study = super().find(uid)
        return study if study is not None and self._has_come(study) else None

    def numbered(self, numbers: range) -> Iterator[StudyRecord]:
        return filter(self._has_come, super().numbered(numbers))

    def ranked(self, span: range) -> Iterator[StudyRecord]:
        return filter(self._has_come, super().ranked(span))

    def _has_come(self, study: StudyRecord) -> bool:
        return study.number < self._first + self._a_second * (time.monotonic() - self._began)


def main(port: int, receiver: int, studies: int, first: int, a_second: float) -> None:
    archive = Archive(studies, shapes=dict.fromkeys(range(first), (("MG", 1),)))
    pacs = PracticePacs(archive, port=port, destinations={"PACSMIGRATE": ("127.0.0.1", receiver)})
    pacs.holdings = Growing(archive, first, a_second)
    with pacs:
        print("listens", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:5]), float(sys.argv[5]))
