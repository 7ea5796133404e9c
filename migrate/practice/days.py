"""When the synthetic studies were made, by arithmetic both ways: of a number its day, of some days their numbers.

Archives grow over the years, weekends are quiet, and no two days are alike.
"""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_left, bisect_right
from datetime import date, timedelta
from functools import lru_cache
from itertools import accumulate, count
from math import gcd

FIRST_DAY, LAST_DAY = date(1998, 1, 1), date(2026, 6, 30)
_COUNT = (LAST_DAY - FIRST_DAY).days + 1


@lru_cache(1)
def _names() -> list[str]:
    return [(FIRST_DAY + timedelta(day)).strftime("%Y%m%d") for day in range(_COUNT)]


@lru_cache(4)
def _weights(seed: int) -> array[int]:
    """The sum of the weights of all days up to each day, that day included."""

    def weight(day: int) -> int:
        noise = hashlib.blake2b(f"{seed}/{day}/busy".encode(), digest_size=2).digest()
        weekend = (FIRST_DAY + timedelta(day)).weekday() >= 5
        return (_COUNT + 3 * day) * (40 + noise[0] % 121) * (3 if weekend else 20)

    return array("Q", accumulate(map(weight, range(_COUNT))))


class Days:
    """Every study number below `studies` has a rank, and the ranks are in the order of days."""

    def __init__(self, studies: int, seed: int) -> None:
        self._count, self._seed = studies, seed
        # Neighbours in number are far from each other in time: a step near the golden ratio, without common factor.
        self._step = next(step for step in count(int(studies * 0.618) + 1) if gcd(step, studies) == 1) if studies else 1
        self._back = pow(self._step, -1, studies) if studies > 1 else 0

    def day(self, number: int) -> str:
        """The day as YYYYMMDD."""
        weights = _weights(self._seed)
        rank = number * self._step % self._count
        return _names()[bisect_right(weights, (2 * rank + 1) * weights[-1] // (2 * self._count))]

    def number(self, rank: int) -> int:
        return rank * self._back % self._count

    def span(self, lo: str, hi: str) -> range:
        """The ranks of these days (YYYYMMDD, both included, "" for an open end)."""
        names = _names()
        return range(self._first(bisect_left(names, lo)), self._first(bisect_right(names, hi) if hi else _COUNT))

    def _first(self, day: int) -> int:
        """The first rank that is not before a day."""
        if not day:
            return 0
        if day >= _COUNT:
            return self._count
        weights = _weights(self._seed)
        return -(-2 * self._count * weights[day - 1] // weights[-1]) // 2
