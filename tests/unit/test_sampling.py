"""Samples, slices, and what may be concluded from them."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrate.evidence.sampling import Draw, Slice, Stratum, allocate, effective, most_unseen, percent, upper_limit
from migrate.jobs.verification import Choice, Result

STRATA = st.dictionaries(
    st.builds(Stratum, st.sampled_from(["1999", "2020", "undated"]), st.sampled_from(["CT", "MR", "none"])), st.integers(1, 60), min_size=1
)
SHARES = st.fractions(min_value=Fraction(1, 200), max_value=1, max_denominator=200)


def drawn(strata: dict[Stratum, int], share: Fraction, seed: int) -> list[tuple[Stratum, int]]:
    """The sample as (stratum, number within it), in the order of the population."""
    draw = Draw(strata, allocate(strata, share), seed)
    return [(stratum, number) for stratum, count in strata.items() for number in range(count) if draw.takes(stratum)]


@given(STRATA, SHARES, st.integers(0, 2**32))
def test_a_sample_is_a_reproducible_subset_of_the_size_that_was_said(strata: dict[Stratum, int], share: Fraction, seed: int) -> None:
    """Of every stratum so many come as were allocated, at least one and at least the share, and the seed alone decides which."""
    sample = drawn(strata, share, seed)
    counts = Counter(stratum for stratum, _ in sample)
    assert counts == allocate(strata, share)
    assert all(1 <= counts[stratum] <= count and counts[stratum] >= share * count for stratum, count in strata.items())
    assert len(set(sample)) == len(sample)
    assert drawn(strata, share, seed) == sample
    assert effective(strata, counts) >= math.floor(share * sum(strata.values()))


def test_every_member_has_the_same_chance() -> None:
    """3 of 10, 3,000 times: each member is drawn 900 times on average; six standard deviations are allowed."""
    stratum = Stratum("2020", "CT")
    counts = Counter(number for seed in range(3000) for _, number in drawn({stratum: 10}, Fraction(3, 10), seed))
    assert all(abs(counts[number] - 900) < 6 * math.sqrt(3000 * 0.3 * 0.7) for number in range(10))


@given(st.lists(st.integers(0, 2**63), min_size=1, max_size=50, unique=True), st.integers(1, 40))
def test_slices_are_a_partition(numbers: list[int], n: int) -> None:
    """Every study belongs to exactly one of the n slices, whatever else there is."""
    for number in numbers:
        assert sum(Slice(k, n).holds(f"1.2.{number}") for k in range(1, n + 1)) == 1


def test_slices_are_about_equal() -> None:
    """Of 12,000 studies each of twelve slices has a twelfth, give or take six standard deviations."""
    counts = Counter(k for number, k in itertools.product(range(12_000), range(1, 13)) if Slice(k, 12).holds(f"1.2.826.{number}"))
    assert all(abs(counts[k] - 1000) < 6 * math.sqrt(1000 * 11 / 12) for k in range(1, 13))


@given(st.integers(1, 100_000))
def test_the_limits_with_a_closed_form_are_exact(checked: int) -> None:
    """None bad: 1 - 0.05^(1/n), about 3/n; all but one: 0.95^(1/n); all: 1."""
    assert upper_limit(0, checked) == pytest.approx(1 - 0.05 ** (1 / checked), rel=1e-9)
    assert upper_limit(checked, checked) == 1
    if 1 < checked < 300:
        assert upper_limit(checked - 1, checked) == pytest.approx(0.95 ** (1 / checked), rel=1e-6)


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n - 1), st.just(n))))
def test_at_the_limit_so_few_are_found_once_in_twenty(case: tuple[int, int]) -> None:
    """The definition, by summing the binomial distribution up in whole numbers and fractions."""
    bad, checked = case
    rate = Fraction(upper_limit(bad, checked)).limit_denominator(10**9)
    chance = sum(math.comb(checked, k) * rate**k * (1 - rate) ** (checked - k) for k in range(bad + 1))
    assert float(chance) == pytest.approx(0.05, abs=1e-4)


@given(st.lists(st.integers(1, 9).flatmap(lambda count: st.tuples(st.just(count), st.integers(0, count))), min_size=1, max_size=3))
def test_no_more_can_be_unseen_than_the_worst_spread_hides(sizes: list[tuple[int, int]]) -> None:
    """The limit where none is bad is that of trying out every way in which bad ones can lie, counted in whole numbers."""
    strata = {Stratum(str(number), "CT"): size for number, size in enumerate(sizes)}
    hidden = 0
    for bad in itertools.product(*(range(count + 1) for count, _ in sizes)):
        chance = math.prod(Fraction(math.comb(count - d, taken), math.comb(count, taken)) for (count, taken), d in zip(sizes, bad, strict=True))
        hidden = max(hidden, sum(bad)) if chance > Fraction(1, 20) else hidden
    assert most_unseen({key: count for key, (count, _) in strata.items()}, {key: taken for key, (_, taken) in strata.items()}) == hidden


def test_of_a_large_archive_the_limit_is_that_of_a_simple_sample() -> None:
    """460 of ten million, as one stratum or as 400 equal ones, say what 1 - 0.05^(1/n) says; all drawn leaves nothing unseen."""
    for number in (1, 400):
        strata = {Stratum(str(each), "CT"): 10_000_000 // number for each in range(number)}
        checked = allocate(strata, Fraction(460, 10_000_000))
        assert (most_unseen(strata, checked) + 1) / 10_000_000 == pytest.approx(upper_limit(0, sum(checked.values())), rel=1e-3)
    assert most_unseen({Stratum("2020", "CT"): 7}, {Stratum("2020", "CT"): 7}) == 0


@pytest.mark.parametrize(("rate", "said"), [(0.0064914, "0.65 %"), (0.00001234, "0.0013 %"), (0.5, "50 %"), (1.0, "100 %"), (0.05001, "5.1 %")])
def test_a_limit_is_rounded_up(rate: float, said: str) -> None:
    """So that "fewer than" stays true."""
    assert percent(rate) == said


@pytest.mark.parametrize("kind", ["missing", "differs", "unchecked"])
def test_what_could_not_be_checked_is_no_good_result(kind: str) -> None:
    """One object that is missing, differs or could not be asked for: `verify` ends with 3."""
    strata = {Stratum("2020", "CT"): 1}
    assert Result(Choice(), strata, strata).good
    assert not Result(Choice(), strata, strata, **{kind: ["key"]}).good
