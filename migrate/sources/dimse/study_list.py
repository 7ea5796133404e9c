"""Asking a PACS by C-FIND for the studies that a list names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from migrate.dicom.scu import FindSession, Peer
from migrate.errors import QueryFailed, SourceError
from migrate.lists.studies import Entry, Key, StudyList
from migrate.model import StudyFound
from migrate.sources.dimse import study_rows

UIDS_A_QUESTION = 50
_TAGS = {Key.STUDY: study_rows.STUDY_UID, Key.ACCESSION: study_rows.ACCESSION, Key.PATIENT: study_rows.PATIENT_ID}
_STRANGERS = 1000  # rows that do not fit, after which the rest of an answer is not waited for


@dataclass(frozen=True, slots=True)
class Answer:
    """What the PACS shows of one value of a list. With an `error` it may hold more: then nothing is known to be missing."""

    entry: Entry
    studies: tuple[StudyFound, ...] = ()
    error: str | None = None
    detail: str = ""


def ask_list(peer: Peer, listed: StudyList, *, cap: int | None = None) -> Iterator[list[Answer]]:
    """One answer for each value, some at a time. `cap`: at so many rows an answer may be cut short.

    UIDs are asked for up to 50 at a time (PS3.4 C.2.2.2.2); what is not shown then is asked for alone, since many a PACS does
    not match lists or caps its answers. A question that fails is asked once more. Only rows that fit exactly are taken.
    Raises SourceUnreachable, SourceRefused.
    """
    with FindSession(peer) as session:
        questions = _Questions(session, listed.key, cap)
        if listed.key is not Key.STUDY:
            for entry in listed.entries:
                yield [questions.alone(entry)]
            return
        for first in range(0, len(listed.entries), UIDS_A_QUESTION):
            yield questions.together(listed.entries[first : first + UIDS_A_QUESTION])


class _Questions:
    def __init__(self, session: FindSession, key: Key, cap: int | None) -> None:
        self._session, self._key, self._cap = session, key, cap

    def together(self, entries: Sequence[Entry]) -> list[Answer]:
        shown: dict[str, list[StudyFound]] = {}
        if len(entries) > 1:
            try:
                shown = self._ask(entries)[0]
            except SourceError as error:
                if error.scope == "run":
                    raise
        return [Answer(entry, tuple(shown[entry.value])) if entry.value in shown else self.alone(entry) for entry in entries]

    def alone(self, entry: Entry) -> Answer:
        try:
            shown, strangers = self._ask([entry])
        except SourceError as error:
            if error.scope == "run":
                raise
            try:
                shown, strangers = self._ask([entry])
            except SourceError as again:
                if again.scope == "run":
                    raise
                return Answer(entry, error=again.name, detail=str(again))
        studies = tuple(shown.get(entry.value, ()))
        if strangers and not studies:
            detail = f"The PACS answered only with studies of another {self._key.value}: it seems to ignore the key, or to match it loosely."
            return Answer(entry, error=QueryFailed.__name__, detail=detail)
        if self._cap is not None and self._key is not Key.STUDY and len(studies) + strangers >= self._cap:
            detail = f"The PACS caps its answers at {self._cap} rows, and this one has as many."
            return Answer(entry, studies, QueryFailed.__name__, detail)
        return Answer(entry, studies)

    def _ask(self, entries: Sequence[Entry]) -> tuple[dict[str, list[StudyFound]], int]:
        """(studies by value, number of rows that do not fit). Raises as `FindSession.find`."""
        tag = _TAGS[self._key]
        wanted = {entry.value for entry in entries}
        shown: dict[str, dict[str, StudyFound]] = {}
        strangers = 0
        for row in self._session.find("STUDY", {tag: "\\".join(entry.value for entry in entries)}, study_rows.WANTED):
            value = row.get(tag, "")
            if value in wanted:
                study = study_rows.study_found(row)
                shown.setdefault(value, {}).setdefault(study.study.study, study)
                continue
            strangers += 1
            if strangers >= _STRANGERS:
                raise QueryFailed(f"The PACS answers with studies of another {self._key.value}: it ignores the key.")
        return {value: list(studies.values()) for value, studies in shown.items()}, strangers
