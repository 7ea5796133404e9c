"""Samples of the proven objects, and what may be concluded from them. Standard library only; nothing is asked here.

A sample is drawn per stratum, a year of the study and a modality: so many of each that its share of the sample is nowhere smaller
than asked for, and at least one. Within a stratum every object has the same chance, without replacement, in one pass over the
population in the order of its UIDs (Knuth, The Art of Computer Programming 2, 3.4.2, Algorithm S), so that the same
population and seed give the same sample.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

CONFIDENCE = 0.95


class Stratum(NamedTuple):
    """What samples are drawn from: `year` of the StudyDate, or `undated`; `modality` of the series, or `none`."""

    year: str
    modality: str


@dataclass(frozen=True, slots=True)
class Slice:
    """Part `k` of `n`: the studies whose UID falls into it, whatever else there is. 1 <= k <= n."""

    k: int
    n: int

    def holds(self, study_uid: str) -> bool:
        """SHA-256 of the UID, its first eight bytes as a big-endian number, modulo n."""
        number = int.from_bytes(hashlib.sha256(study_uid.encode()).digest()[:8], "big")
        return number % self.n == self.k - 1

    def __str__(self) -> str:
        return f"{self.k}/{self.n}"


def allocate(strata: Mapping[Stratum, int], share: Fraction) -> dict[Stratum, int]:
    """How many to draw from each: `share` of it, rounded up, so that there is at least one of each. 0 < share <= 1."""
    return {stratum: math.ceil(count * share) for stratum, count in strata.items() if count}


class Draw:
    """One pass over a population: says of each member, in order, whether it belongs to the sample.

    Each stratum has dice of its own, seeded with `{seed}/{year}/{modality}`: Python's Mersenne Twister, `random()`.
    """

    def __init__(self, strata: Mapping[Stratum, int], wanted: Mapping[Stratum, int], seed: int) -> None:
        self._left, self._wanted = dict(strata), dict(wanted)
        self._dice = {stratum: random.Random(f"{seed}/{stratum.year}/{stratum.modality}") for stratum in strata}

    def takes(self, stratum: Stratum) -> bool:
        wanted, left = self._wanted[stratum], self._left[stratum]
        self._left[stratum] = left - 1
        if self._dice[stratum].random() * left >= wanted:
            return False
        self._wanted[stratum] = wanted - 1
        return True


def upper_limit(bad: int, checked: int, confidence: float = CONFIDENCE) -> float:
    """The exact one-sided upper confidence limit of a proportion (Clopper and Pearson 1934): 1 - (1 - confidence)^(1/n) where none is bad."""
    if not 0 <= bad <= checked or checked < 1:
        raise ValueError("of so many, so many cannot be bad")
    if bad == checked:
        return 1.0
    if bad == 0:
        return -math.expm1(math.log1p(-confidence) / checked)
    low, high = bad / checked, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _at_most(bad, checked, middle) > 1 - confidence else (low, middle)
    return high


def _at_most(bad: int, checked: int, rate: float) -> float:
    """The chance of at most `bad` of `checked` at this rate (binomial)."""
    if rate >= 1:
        return 0.0
    term = checked * math.log1p(-rate)
    total = math.exp(term)
    for k in range(1, bad + 1):
        term += math.log((checked - k + 1) / k) + math.log(rate) - math.log1p(-rate)
        total += math.exp(term)
    return total


def most_unseen(strata: Mapping[Stratum, int], checked: Mapping[Stratum, int], confidence: float = CONFIDENCE) -> int:
    """How many of the population may be bad at most, where none of a stratified sample is: exact, without replacement.

    Of D bad ones, wherever they lie, a sample misses all with at most the chance of their worst distribution: n_h of N_h drawn miss
    d_h with the product of (N_h - i - n_h) / (N_h - i), i < d_h. These factors fall with i, so that the worst distribution of D takes the
    D largest of all strata. The answer is the largest D whose product is above 1 - confidence. Nothing drawn of a stratum: all of it.
    """
    drawn = {stratum: (count, checked.get(stratum, 0)) for stratum, count in strata.items() if count}
    bound = math.log1p(-confidence) + 1e-9  # a product that is the very chance is not above it

    def above(factor: float) -> dict[Stratum, int]:
        """How many factors of each stratum are at least so large."""
        return {stratum: max(0, min(count, count - math.ceil(taken / (1 - factor)) + 1)) if taken else count for stratum, (count, taken) in drawn.items()}

    def chance(bad: Mapping[Stratum, int]) -> float:
        """The logarithm of that of seeing none of them."""
        return sum(_log_missed(*drawn[stratum], number) for stratum, number in bad.items())

    low, high = 0.0, 1.0 - 1e-12
    for _ in range(60):  # all factors down to `high` are still likely enough, all down to `low` are not, unless everything is
        middle = (low + high) / 2
        low, high = (low, middle) if chance(above(middle)) > bound else (middle, high)
    bad = above(high)
    reached = chance(bad)
    while True:  # the few that lie between
        factor, stratum = max(((count - bad[each] - taken) / (count - bad[each]) if count > bad[each] else 0.0, each) for each, (count, taken) in drawn.items())
        if factor <= 0 or (reached := reached + math.log(factor)) <= bound:
            return sum(bad.values())
        bad[stratum] += 1


def _log_missed(count: int, taken: int, bad: int) -> float:
    """The logarithm of the chance that `taken` of `count` have none of `bad` among them."""
    if count - bad < taken:
        return -math.inf
    return math.lgamma(count - bad + 1) - math.lgamma(count - bad - taken + 1) - math.lgamma(count + 1) + math.lgamma(count - taken + 1)


def effective(strata: Mapping[Stratum, int], checked: Mapping[Stratum, int]) -> int:
    """The size of the simple random sample that a stratified one is at least worth.

    With n_h of N_h drawn in stratum h and N in all, it is the least N n_h / N_h: what a stratum has more than that only makes
    the limit more careful, and so do strata that differ (Hoeffding 1956).
    """
    total = sum(strata.values())
    return min(total * checked.get(stratum, 0) // count for stratum, count in strata.items() if count)


def percent(rate: float) -> str:
    """A rate in per cent, rounded up to two significant digits, so that "fewer than" stays true."""
    if not rate:
        return "0 %"
    digits = 1 - math.floor(math.log10(rate * 100))
    return f"{math.ceil(rate * 100 * 10**digits - 1e-9) / 10**digits:.{max(digits, 0)}f} %"
