"""Lists of exceptions to sign: hundreds of studies or images, each with its reason, as CSV."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path

from migrate.counted import counted
from migrate.errors import UsageError
from migrate.lists.studies import plain, read_text, rows
from migrate.manifest.decisions import REASONS, Exempted, Signature
from migrate.model import is_uid

_COLUMNS = {
    "study": ("study", "studyinstanceuid", "studyuid"),
    "instance": ("instance", "sopinstanceuid", "sop", "sopuid"),
    "code": ("code",),
    "reason": ("reason",),
    "by": ("by", "name", "acceptedby"),
    "role": ("role",),
    "state": ("state",),
}
_HINT = "Its first line names the columns: study, instance, code, reason, by, role; the first is needed."
_MOST = 50


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the list; or what is wrong with it."""

    line: int
    exempted: Exempted | None
    mistake: str = ""


def read_exemptions(path: Path, *, reason: str, by: str, role: str = "", code: str = "other") -> list[Row]:
    """Every line of a CSV file (comma, semicolon or tab); what a cell leaves out is taken from the parameters. Where there is a
    column `state`, as in the report's exceptions.csv, only lines that say parked count.

    Raises UsageError for a file that cannot be read, or has no column of studies.
    """
    text, first = read_text(path)
    delimiter, columns = _layout(first, path)
    given = {"reason": reason, "by": by, "role": role, "code": code}
    found: list[Row] = []
    known: dict[tuple[str, str], int] = {}
    for line, cells in [*rows(text, delimiter, path)][1:]:
        values = {name: plain(cells[column]) if column < len(cells) else "" for name, column in columns.items()}
        if values.get("state", "parked") not in ("", "parked"):
            continue  # a line of the report that asks nobody for a decision
        study, sop = values.get("study", ""), values.get("instance", "")
        signature = {name: values.get(name) or default for name, default in given.items()}
        mistake = _mistake(study, sop, signature)
        before = known.setdefault((study, sop), line)
        if not mistake and (before != line or (sop and (study, "") in known)):
            mistake = f"the same as line {before if before != line else known[study, '']}"
        found.append(Row(line, None if mistake else Exempted(study, Signature(**signature), sop or None), mistake))
    if not found:
        raise UsageError(f"The list {path} names nothing.", hint=_HINT)
    return found


def _layout(first: str, path: Path) -> tuple[str, dict[str, int]]:
    """(delimiter, columns by name). Raises UsageError."""
    for delimiter in ",;\t":
        heads = [re.sub(r"[^a-z0-9]", "", plain(cell).casefold()) for cell in next(csv.reader([first], delimiter=delimiter), [])]
        columns = {name: heads.index(head) for name, heads_ in _COLUMNS.items() for head in heads_ if head in heads}
        if "study" in columns:
            return delimiter, columns
    raise UsageError(f"The list {path} has no column of studies.", hint=_HINT)


def _mistake(study: str, sop: str, signature: dict[str, str]) -> str:
    if not is_uid(study):
        return "the study is no UID" if study else "no study"
    if sop and not is_uid(sop):
        return "the instance is no UID"
    if signature["code"] not in REASONS:
        return f"the code is none of {', '.join(REASONS)}"
    missing = [name for name, what in (("reason", "no reason"), ("by", "no name")) if not signature[name].strip()]
    return " and ".join({"reason": "no reason", "by": "no name"}[name] for name in missing)


def refuse(path: Path, wrong: dict[int, str]) -> None:
    """Raises UsageError that names every mistake with its line, if there is one."""
    if not wrong:
        return
    named = [f"  line {line}: {mistake}" for line, mistake in sorted(wrong.items())]
    more = [f"  and {len(named) - _MOST} more"] if len(named) > _MOST else []
    raise UsageError("\n".join([f"Nothing was accepted, because of {counted(len(wrong), 'line')} of {path}:", *named[:_MOST], *more]),
                     hint="Put these right, or take them out; then give the file again. --reason and --by stand in for cells that are empty.")  # fmt: skip
