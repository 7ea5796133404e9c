"""The habits of a PACS in words: what was found, what this tool does about it, and what to ask the vendor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from migrate.model import HabitLearned


class Words(NamedTuple):
    """What follows of one value of a habit: what we do, and what to ask; empty where nothing does."""

    effect: str = ""
    ask: str = ""


_BY_OTHER_KEYS = "Answers are compared with their parts; what this key cannot cut is cut by other keys."
_WORDS: dict[tuple[str, str], Words] = {
    ("study_root", "none"): Words("Patient Root is used instead.", "Can Study Root be switched on for C-FIND and C-MOVE?"),
    ("insists_on_patient_id", "yes"): Words(
        "Patients are listed first, by prefixes of PatientID, and then asked for one by one; nothing is retrieved before all have been asked.",
        "Can studies be asked for without a PatientID (Study Root)? Are there studies whose PatientID is empty, and how many?",
    ),
    ("keyless", "refused"): Words(
        "Studies are asked for by date and other keys.", "Which limit leads to a refusal, and can it be raised for our AE title?"
    ),
    ("ignores_date", "yes"): Words(
        "Sweeps walk by PatientID, AccessionNumber and modality.", "Why is StudyDate not matched in C-FIND, and can that be repaired?"
    ),
    ("ignores_time", "yes"): Words(_BY_OTHER_KEYS, "Can StudyTime be matched in C-FIND? Days with many studies cannot be cut by it now."),
    ("ignores_modality", "yes"): Words(_BY_OTHER_KEYS),
    ("ignores_patient_id", "yes"): Words(_BY_OTHER_KEYS, "Can PatientID be matched with wildcards in C-FIND?"),
    ("ignores_accession", "yes"): Words(_BY_OTHER_KEYS),
    ("ignores_date", "finds nothing"): Words(ask="Why does a StudyDate that the PACS itself gives find nothing?"),
    ("ignores_time", "finds nothing"): Words(_BY_OTHER_KEYS),
    ("ignores_modality", "finds nothing"): Words(_BY_OTHER_KEYS),
    ("ignores_patient_id", "finds nothing"): Words(_BY_OTHER_KEYS),
    ("ignores_accession", "finds nothing"): Words(_BY_OTHER_KEYS),
    ("day_range", "no"): Words(ask="Why does a StudyDate range of one day show other studies than the day itself?"),
    ("day_range", "refused"): Words(ask="Which range syntax does StudyDate take?"),
    ("open_range", "no"): Words(
        "Closed ranges are asked for in their place, from the year 1 and up to 9999.", "How are StudyDate ranges with an open end matched?"
    ),
    ("open_range", "refused"): Words("Studies before 1970 are asked for in a closed range, or shown by the question without a key."),
    ("counters", "wrong"): Words(
        "What is listed counts; numbers that differ are in the report.", "Why do numbers of images differ from what is listed? Is there a repair run?"
    ),
    ("counters", "absent"): Words("What is listed counts; a study that hides images from its list cannot be told from its numbers."),
    ("breaks_off", "yes"): Words("A broken answer counts as none and is asked again, then in parts.", "What ends associations amid an answer?"),
    ("unreadable_rows", "yes"): Words(
        "An answer with such a row counts as none and is asked again, then in parts.", "Which studies have damaged database entries? Can they be repaired?"
    ),
    ("padded_uids", "yes"): Words("The padding is taken off."),
    ("ff01", "yes"): Words("FF01 counts as FF00; keys of which the PACS says so may be ignored, which is checked by the rows."),
    ("cancel", "no"): Words("The association is aborted instead.", "Is it safe for the PACS if we abort an association to end an answer?"),
    ("same_uids", "no"): Words(
        "Nothing can be shown complete while UIDs change.", "Why do images come under other UIDs than they are listed under? Please switch that off."
    ),
    ("same_bytes", "no"): Words(
        "The first content is kept; a later one whose pixels are the same counts as rewritten, not as a conflict.",
        "Which header elements are rewritten on retrieval, and can the originals be sent?",
    ),
    ("move_originator", "no"): Words("What arrives is told apart by its UIDs, never by the C-MOVE it names."),
    ("undated", "none seen"): Words(ask="Are there studies without a StudyDate, how many, and which query shows them?"),
}
_ANY: dict[str, Words] = {
    "cap": Words(
        "Every answer with so many rows is cut into parts until each has fewer.",
        "At how many rows are C-FIND answers cut off, and can the limit be lifted for our AE title?",
    ),
    "cap_patients": Words(
        "Lists of patients are cut by prefixes of PatientID; whoever has none, or an odd one, may be hidden behind the cap, which blocks until it is accepted.", "At how many rows are lists of patients cut off, and can the limit be lifted for our AE title?"
    ),
    "associations": Words("No more are opened at once.", "How many associations may we open at once, and can there be more at night?"),
}
"""For habits whose value is a number."""
_ALWAYS = (
    "How many patients, studies, series and images does the database count, by year?",
    "Are there studies that C-FIND does not show: hidden, deleted, unassigned, on media off line?",
)


def words(habit: HabitLearned) -> Words:
    """What follows of this value."""
    if habit.value.isdigit() and habit.name in _ANY:
        return _ANY[habit.name]
    return _WORDS.get((habit.name, habit.value), Words())


def questions(habits: Sequence[HabitLearned]) -> list[str]:
    """What to ask the vendor."""
    asked = [words(habit).ask for habit in habits]
    return [*dict.fromkeys(ask for ask in asked if ask), *_ALWAYS]


def habits_page(habits: Sequence[HabitLearned], pacs: str, at: str) -> str:
    """The page `probe.md`."""
    lines = [f"# Habits of {pacs}", "", f"As found on {at} by `pacs-migrate probe`, with a few small questions. It holds no patient data.", "",
             "| Habit | Value | What was found | What we do about it |", "|---|---|---|---|"]  # fmt: skip
    lines += [f"| `{habit.name}` | {_cell(habit.value)} | {_cell(habit.detail)} | {words(habit).effect} |" for habit in habits]
    lines += ["", "## What to ask your PACS vendor", ""]
    lines += [f"{number}. {ask}" for number, ask in enumerate(questions(habits), 1)]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
