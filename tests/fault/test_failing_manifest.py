"""Real runs whose manifest's disk fails below SQLite: a sentence, nothing false on record, and the next run goes on to the end.

`CRASH_LOOP=all` takes every operation of one study's life instead of some.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.fault.test_failpoints import Rig, rig_for

ALL = os.environ.get("CRASH_LOOP") == "all"
STRIDE = 1 if ALL else 71


@pytest.fixture(scope="module")
def small() -> Iterator[Rig]:
    """One image: its life has few operations."""
    with rig_for(1998, 1998) as made:
        assert len(made.truth) == 1
        yield made


@pytest.mark.timeout(0)
@pytest.mark.parametrize(("kind", "lasting"), [("full", "+"), ("io", ""), *([("full", ""), ("io", "+")] if ALL else [])])
def test_each_operation_on_the_manifest_fails(small: Rig, kind: str, lasting: str) -> None:
    """The nth write, truncation, sync, opening or deletion of SQLite fails, or it and all that follow: 22 and a sentence, or survived;
    `status` reads what is left, or says that no manifest was made."""
    ends: Counter[tuple[str, int | None]] = Counter()
    number = 1
    while True:
        folder, at = small.begin(), f"{kind}:{number}{lasting}"
        ended = small.struck(folder, below_sqlite=at)
        struck = [line.split()[2] for line in ended.err.splitlines() if line.startswith("failpoint sqlite ")]
        if not struck:
            break
        ends[struck[0], ended.code] += 1
        assert ended.code in (0, 22), f"{at}: exit {ended.code}, {ended.err}"
        assert "Traceback" not in ended.err, f"{at}: {ended.err}"
        assert ended.code == 0 or "Error: " in ended.err, f"{at}: {ended.err}"
        looked = small.forks.run(folder, "status")
        assert looked.code in (0, 10) and "Traceback" not in looked.err, f"{at}: status ends with {looked.code}, {looked.err}"
        small.finish(folder, at)
        number += STRIDE
    print(f"{kind}{lasting}: {number - 1} operations, how runs ended: {dict(ends)}")
    assert number > 300
