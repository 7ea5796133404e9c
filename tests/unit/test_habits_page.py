"""Habits have words: a documented name, a page, and questions to the vendor that follow from them."""

from __future__ import annotations

from pathlib import Path

from migrate.model import HabitLearned
from migrate.reports import habits
from migrate.sources.probe.asking import NAMES

DOCUMENT = Path(__file__).parents[2] / "docs" / "probe.md"


def test_every_habit_is_documented() -> None:
    """docs/probe.md names all of them."""
    text = DOCUMENT.read_text(encoding="utf-8")
    assert [name for name in NAMES if f"`{name}`" not in text] == []


def test_every_word_belongs_to_a_habit() -> None:
    """No effect or question is kept for a habit that nobody asks for."""
    assert {name for name, _ in habits._WORDS} | set(habits._ANY) <= set(NAMES)


def test_the_page_ends_with_what_follows() -> None:
    """A cap is asked about once, and what always matters is asked last."""
    page = habits.habits_page([HabitLearned("cap", "500", "500 rows | no more"), HabitLearned("ff01", "no", "Fine.")], "PACS", "2026-01-01")
    assert "| `cap` | 500 | 500 rows \\| no more |" in page
    assert page.count("1. At how many rows") == 1
    assert page.rstrip().endswith(habits._ALWAYS[-1])
