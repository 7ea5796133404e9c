"""What later checks are drawn from: every proven object once, in the order of the dossier's table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from migrate.evidence.sampling import Slice, Stratum
from migrate.manifest import Manifest
from migrate.manifest.population import Population
from migrate.model import RetrieveEnded, StudyRef
from migrate.reports.tables import INSTANCE_COLUMNS, instances
from tests.filled import came, fresh_manifest, migrated, planned, proven, received, swept

KEY, PROOF = (INSTANCE_COLUMNS.index(name) for name in ("key", "proof"))


@pytest.fixture
def manifest(tmp_path: Path) -> Iterator[Manifest]:
    """Five studies, one of them with a second content of an image; and one whose image has come and is not proven."""
    with fresh_manifest(tmp_path) as opened:
        swept(opened, *(f"1.{number}" for number in range(1, 6)))
        for number in (10, 3, 2, 5):
            migrated(opened, f"1.{number}", f"1.{number}.9", f"1.{number}.10")
        planned(opened, "1.1", "1.1.1", "1.1.2")
        opened.commit([came(received("1.1", "1.1.1")), came(received("1.1", "1.1.1", "other")), came(received("1.1", "1.1.2")), RetrieveEnded(StudyRef("1.1"), 0)])
        proven(opened)
        planned(opened, "1.4", "1.4.1")
        opened.commit([came(received("1.4", "1.4.1"))])
        yield opened


def keys(population: Population) -> list[str]:
    return [item.receipt.key for _, items in population.series() for item in items if item.receipt]


def test_the_population_is_the_proven_part_of_the_table(manifest: Manifest) -> None:
    """The same objects in the same order, second contents among them; those without are one fewer."""
    rows = [row[KEY] for row in instances(manifest.connection, "p/") if row[PROOF]]
    assert keys(Population(manifest.connection, prefix="p/")) == rows
    assert len(rows) == 11 and sum("~" in key for key in rows) == 1
    assert keys(Population(manifest.connection, prefix="p/", copies=False)) == [key for key in rows if "~" not in key]


@pytest.mark.parametrize("part", [None, Slice(1, 2), Slice(2, 2)])
def test_strata_count_what_the_walk_meets(manifest: Manifest, part: Slice | None) -> None:
    """The year of the study and the modality of the series; a study that came without being listed has no date."""
    population = Population(manifest.connection, part=part)
    met = Counter[Stratum]()
    asked = Counter[Stratum]()

    def takes(stratum: Stratum) -> bool:
        asked[stratum] += 1
        return True

    for stratum, items in population.series(takes):
        met[stratum] += len(items)
    assert population.strata() == dict(met) == dict(asked)
    if part is None:
        assert met == {Stratum("2020", "CT"): 9, Stratum("undated", "CT"): 2}


def test_slices_share_nothing_and_leave_nothing_out(manifest: Manifest) -> None:
    """Whatever the number of slices."""
    everything = sorted(keys(Population(manifest.connection)))
    for n in (1, 2, 3, 7):
        assert sorted(key for k in range(1, n + 1) for key in keys(Population(manifest.connection, part=Slice(k, n)))) == everything
    assert not any("1.4.1" in key for key in everything)
