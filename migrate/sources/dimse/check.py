"""The preflight of a PACS: it answers, it shows studies, and it sends to us."""

from __future__ import annotations

import contextlib
import datetime
import itertools
from collections.abc import Collection, Iterator

from migrate.dicom.scu import FindSession, echo
from migrate.errors import MoveFailed, NothingSent, PacsMigrateError, QueryFailed
from migrate.model import Finding, StudyPlanned, Wanted, Window
from migrate.sources.dimse.attempt import Attempt
from migrate.sources.dimse.pacs import DimsePacs
from migrate.sources.dimse.study_rows import PATIENT_ID

_TRIED = 3


def check(source: DimsePacs) -> list[Finding]:
    """C-ECHO, C-FIND, and a C-MOVE of one instance to ourselves."""
    findings: list[Finding] = []
    try:
        echo(source.peer)
        findings.append(Finding("C-ECHO", "ok", f"{source.settings.ae_title} answers.", part="source"))
        study = next(samples(source), None)
        if study is None:
            findings.append(Finding("C-FIND", "warn", "The PACS shows no study at all.", "Look at from and to under [source], and ask the PACS administrator whether our AE title may see its studies.", "source"))
            return findings
        findings.append(Finding("C-FIND", "ok", "The PACS shows studies and their images.", part="source"))
        findings.append(_check_move(source, study))
    except PacsMigrateError as error:
        findings.append(Finding("PACS", "fail", str(error), error.hint, "source"))
    return findings


def samples(source: DimsePacs, besides: Collection[str] = ()) -> Iterator[StudyPlanned]:
    """Studies with images, of one year (or patient) each, the newest first; the first rows are enough. `besides`: none of these."""
    with source.asking() as session:
        if source.patients.insists(session):
            yield from _samples_of_patients(source, session, besides)
            return
    today = datetime.date.today()
    windows = [Window(f"{year}0101", f"{year}1231") for year in range(today.year, today.year - 40, -1)]
    for window in [*windows, Window(None, None, "all")]:
        with contextlib.suppress(QueryFailed):
            with contextlib.closing(source.studies(window)) as found:
                others = (row for row in found if row.study.study not in besides)
                rows = [row for _, row in zip(range(5), others, strict=False)]
            plans = (source.instances(row.study) for row in rows)
            yield from itertools.islice((plan for plan in plans if any(series.sops for series in plan.series)), 1)


def _samples_of_patients(source: DimsePacs, session: FindSession, besides: Collection[str]) -> Iterator[StudyPlanned]:
    for patient in list(source.patients.some(session, 5)):
        for row in list(source.rows(session, Window(None, None, "all"), {PATIENT_ID: patient}, 0)):
            plan = source.listed(session, row.study, {PATIENT_ID: patient})
            if row.study.study not in besides and any(series.sops for series in plan.series):
                yield plan
                break


def _check_move(source: DimsePacs, plan: StudyPlanned | None) -> Finding:
    """One instance; where it does not come, one of another study: the first may be of those that this PACS cannot send."""
    said: dict[str, str] = {}
    while plan is not None and len(said) < _TRIED:
        sent, said[plan.study.study] = _sent_one(source, plan)
        if sent and len(said) == 1:
            return Finding("C-MOVE", "ok", "The PACS sends to us.", part="source")
        if sent:
            study, why = next(iter(said.items()))
            return Finding("C-MOVE", "warn", f"The PACS sends to us, but nothing of study {study} ({why}).",
                           "A run goes on with the others, and names what does not come. Look at the PACS's log for that study.", "source")  # fmt: skip
        plan = next(samples(source, said), None)
    return Finding("C-MOVE", "fail", f"The PACS sent nothing ({next(iter(said.values()))}).", NothingSent.default_hint, "source")


def _sent_one(source: DimsePacs, plan: StudyPlanned) -> tuple[bool, str]:
    """(whether an instance of it came, how the C-MOVE ended). Raises SourceError, but for what may be this study's alone."""
    series = next(series for series in plan.series if series.sops)
    with Attempt(source, plan.study, Wanted()) as attempt:
        try:
            attempt.ask(source.one_patient_of(plan.study), series.series, series.sops[:1])
        except MoveFailed as error:
            return bool(attempt.arrived()), str(error).removesuffix(".")
        return bool(attempt.arrived()), attempt.ended().detail.removesuffix(".")
