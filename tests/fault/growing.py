"""A practice PACS that goes on working: `python -m tests.fault.growing PORT RECEIVER STUDIES FIRST A_SECOND`.

Its `FIRST` studies are mammograms, which the migration leaves out: a long list, which costs nothing but to be asked for.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator

from migrate.practice.faults import Conduct
from migrate.practice.holdings import Holdings
from migrate.practice.pacs import PracticePacs
from migrate.practice.records import StudyRecord
from migrate.practice.studies import Archive


class Growing(Holdings):
    """Of an archive the studies that have come by now."""

    def __init__(self, archive: Archive, has_come: Callable[[StudyRecord], bool]) -> None:
        super().__init__(archive, Conduct(()))
        self._has_come = has_come

    def find(self, uid: str) -> StudyRecord | None:
        study = super().find(uid)
        return study if study is not None and self._has_come(study) else None

    def numbered(self, numbers: Iterable[int]) -> Iterator[StudyRecord]:
        return filter(self._has_come, super().numbered(numbers))

    def ranked(self, span: range) -> Iterator[StudyRecord]:
        return filter(self._has_come, super().ranked(span))


def main(port: int, receiver: int, studies: int, first: int, a_second: float) -> None:
    archive = Archive(studies, shapes=dict.fromkeys(range(first), (("MG", 1),)))
    pacs = PracticePacs(archive, port=port, destinations={"PACSMIGRATE": ("127.0.0.1", receiver)})
    began = time.monotonic()
    pacs.holdings = Growing(archive, lambda study: study.number < first + a_second * (time.monotonic() - began))
    with pacs:
        print("listens", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:5]), float(sys.argv[5]))
