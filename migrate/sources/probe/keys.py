"""Which keys a PACS matches, how it takes ranges of dates, and which questions show a study without a date."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Callable

from migrate.sources.probe.asking import ACCESSION, DATE, IGNORES, KEY_NAMES, MODALITIES, PATIENT, STUDY, TIME, Asking, Row


def _reference(asking: Asking) -> Row | None:
    """A study that has a value under as many keys as possible."""
    keys = (DATE, TIME, MODALITIES, PATIENT, ACCESSION)
    return max(asking.seen.values(), key=lambda row: sum(bool(row.get(tag)) for tag in keys), default=None)


def _begins(tag: int, prefix: str) -> Callable[[Row], bool]:
    return lambda row: row.get(tag, "").casefold().startswith(prefix.casefold())


def ask_keys(asking: Asking) -> None:
    """For each key: a question that finds a certain study, and one that must not find it."""
    study = _reference(asking)
    if study is None:
        return
    day = study.get(DATE, "")
    near: Row = {DATE: day} if is_day(day) else {}
    if near:
        others = [row[DATE] for row in asking.seen.values() if is_day(row.get(DATE, "")) and row[DATE] != day]
        other = others[0] if others else next_day(day, 1)
        _key(asking, DATE, study, near, {DATE: other}, lambda row: row.get(DATE) == other)
    time_ = _clock_time(study.get(TIME, ""))
    if near and time_:
        lo, hi = ("000000", f"{int(time_[:2]) - 1:02}5959") if time_ >= "120000" else (f"{int(time_[:2]) + 1:02}0000", "235959")
        _key(asking, TIME, study, near | {TIME: f"{time_[:2]}0000-{time_[:2]}5959"}, near | {TIME: f"{lo}-{hi}"},
         lambda row: lo <= (_clock_time(row.get(TIME, "")) or "") <= hi)  # fmt: skip
    mine = _values(study.get(MODALITIES, ""))
    if mine:
        other = next(code for code in ("CT", "MR", "US", "CR", "MG", "XA", "NM", "PT") if code not in mine)
        _key(asking, MODALITIES, study, near | {MODALITIES: mine[0]}, near | {MODALITIES: other},
         lambda row: other in _values(row.get(MODALITIES, "")))  # fmt: skip
    elif not any(row.get(MODALITIES) for row in asking.seen.values()):
        asking.learn("ignores_modality", "unknown", "The PACS gives no ModalitiesInStudy.")
    for tag in (PATIENT, ACCESSION):
        value = study.get(tag, "")
        if not value or not value.isascii() or set(value) & set("*?\\") or tag in asking.base:
            continue
        prefix, other = value[:3], ("0" if value[0] != "0" else "Z")
        _key(asking, tag, study, near | {tag: f"{prefix}*"}, near | {tag: f"{other}{value[1:3]}*"},
             _begins(tag, other))


def _key(asking: Asking, tag: int, study: Row, finds: Row, excludes: Row, fits: Callable[[Row], bool]) -> None:
    name, key = KEY_NAMES[tag], IGNORES[tag]
    strangers = asking.ask("STUDY", excludes)
    if any(not fits(row) for row in strangers.rows):
        asking.learn(key, "yes", f"{name} is ignored: studies are shown that do not fit it.")
        return
    friends = asking.ask("STUDY", finds)
    if strangers.refused or friends.refused:
        asking.learn(key, "refused", f"Questions with {name} are refused.")
    elif any(row.get(STUDY) == study[STUDY] for row in friends.rows):
        asking.learn(key, "no", f"{name} is matched.")
    elif friends.whole:
        asking.learn(key, "finds nothing", f"{name} does not find a study by the value that the PACS itself gives for it.")


def ask_ranges(asking: Asking) -> None:
    """A day against a range of just that day, and ranges without a first or a last day."""
    days = sorted(row[DATE] for row in asking.seen.values() if is_day(row.get(DATE, "")))
    date = asking.habits.get("ignores_date")
    if not days or date is None or date.value != "no":
        return
    middle = days[len(days) // 2]
    one, span = asking.ask("STUDY", {DATE: middle}), asking.ask("STUDY", {DATE: f"{middle}-{middle}"})
    if one.whole and span.refused:
        asking.learn("day_range", "refused", "A range of a single day is refused.")
    elif one.whole and span.whole:
        same = {row.get(STUDY) for row in one.rows} == {row.get(STUDY) for row in span.rows}
        asking.learn("day_range", "yes" if same else "no",
                     f"A day and a range of just that day show {'the same' if same else 'different studies'}.")  # fmt: skip
    newer, older = asking.ask("STUDY", {DATE: f"{days[-1]}-"}), asking.ask("STUDY", {DATE: f"-{days[0]}"})
    if newer.refused or older.refused:
        asking.learn("open_range", "refused", "Ranges with an open end are refused.")
    elif (newer.cut or newer.whole) and (older.cut or older.whole):
        right = all(row.get(DATE, "") >= days[-1] for row in newer.rows) and all(row.get(DATE, "") <= days[0] for row in older.rows)
        found = (newer.cut or any(row.get(DATE) == days[-1] for row in newer.rows)) and (
            older.cut or any(row.get(DATE) == days[0] for row in older.rows)
        )
        asking.learn("open_range", "yes" if right and found else "no",
                     "Ranges with an open end are matched." if right and found else "Ranges with an open end are not matched as they should.")  # fmt: skip


def ask_undated(asking: Asking) -> None:
    """Which questions show a study without a date; only as far as one is seen."""
    if not asking.seen:
        return
    ways = ["without a key"] if any(not row.get(DATE) for row in asking.baseline.rows) else []
    study = _reference(asking) or {}
    modality = Counter(code for row in asking.seen.values() for code in _values(row.get(MODALITIES, ""))).most_common(1)
    questions: list[tuple[str, Row]] = [("ModalitiesInStudy", {MODALITIES: modality[0][0]})] if modality else []
    for tag in (PATIENT, ACCESSION):
        value = study.get(tag, "")
        if value.isascii() and value and value[0] not in "*?\\" and tag not in asking.base:
            questions.append((KEY_NAMES[tag], {tag: f"{value[0]}*"}))
    for name, keys in questions:
        if any(not row.get(DATE) for row in asking.ask("STUDY", keys).rows):
            ways.append(name)
    if ways:
        asking.learn("undated", ", ".join(ways), f"Questions that show a study without a date: {', '.join(ways)}.")
    else:
        asking.learn("undated", "none seen", "No study without a date was seen.")



def is_day(text: str) -> bool:
    """Whether it is a date as YYYYMMDD."""
    try:
        datetime.datetime.strptime(text, "%Y%m%d")
    except ValueError:
        return False
    return len(text) == 8


def next_day(day: str, by: int) -> str:
    """So many days later."""
    return f"{datetime.datetime.strptime(day, '%Y%m%d') + datetime.timedelta(by):%Y%m%d}"


def _clock_time(text: str) -> str | None:
    digits = text.strip().replace(":", "").partition(".")[0]
    return digits.ljust(6, "0")[:6] if len(digits) >= 2 and digits.isdigit() else None


def _values(text: str) -> list[str]:
    return [part.strip() for part in text.split("\\") if part.strip()]
