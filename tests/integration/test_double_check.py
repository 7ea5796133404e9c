"""Double check: what a PACS sends the second time is compared with what it sent first."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from migrate.evidence.sampling import Stratum
from migrate.jobs.double_check import Found, Original, judge
from migrate.model import Item
from migrate.practice.studies import Archive
from tests import filled
from tests.runs import changing, command, data_sets, here, left_over

STUDIES = 5


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int]]:
    """A folder with a finished migration, and the port at which its PACS was: another one may stand there now."""
    folder = tmp_path_factory.mktemp("double")
    with changing(folder, Archive(STUDIES)) as pacs:
        port = pacs.port
        assert here(folder, "run")[0] == 0
    yield folder, port


def compared(folder: Path, *words: str, code: int) -> dict[str, Any]:
    before = data_sets(folder)
    done, said = here(folder, "double-check", "--json", *words)
    assert done == code
    assert data_sets(folder) == before
    assert left_over(folder) == []
    return json.loads(said)  # type: ignore[no-any-return]


def test_an_honest_pacs_sends_the_same_again(migrated: tuple[Path, int]) -> None:
    """All images come with the same bytes; nothing is left in staging, and the destination is as it was."""
    folder, port = migrated
    with changing(folder, Archive(STUDIES), port=port):
        found = compared(folder, "--sample", "100%", code=0)
    assert (found["same"], found["header"], found["content"], found["not_sent"]) == (len(data_sets(folder)), 0, 0, 0)


def test_rewritten_headers_are_counted_with_their_tags(migrated: tuple[Path, int]) -> None:
    """A PACS that writes another InstitutionName each time: the tag is named and counted, no value is anywhere, and it is no alarm."""
    folder, port = migrated
    with changing(folder, Archive(STUDIES), "rewrites-headers", port=port):
        found = compared(folder, "--sample-size", "10", "--seed", "1", code=0)
        assert compared(folder, "--sample-size", "10", "--seed", "1", code=0)["sample"] == found["sample"]
    assert found["header"] == found["sample"] - found["same"] > 0
    assert found["tags"] == {"(0008,0080)": found["header"]}
    assert "with other headers and the same pixels" in found["statement"]
    assert here(folder, "report", "--out", str(folder / "report"))[0] == 0
    table = (folder / "report" / "report.html").read_text(encoding="utf-8").partition('id="comparisons"')[2].partition("</table>")[0]
    assert f"(0008,0080) in {found['header']}" in table and found["statement"] in table


def conflicts(folder: Path) -> dict[str, list[str]]:
    """Instances in conflict by the state of their study, as the report names them."""
    assert here(folder, "report", "--out", str(folder / "report"))[0] == 0
    report = json.loads((folder / "report" / "report.json").read_text())
    assert report["complete"] == all(entry["state"] == "accepted" for entry in report["exceptions"])
    found: dict[str, list[str]] = {}
    for entry in report["exceptions"]:
        found.setdefault(entry["state"], []).extend(entry["conflict"])
    return {state: sorted(sops) for state, sops in found.items()}


def test_other_pixels_are_a_conflict(tmp_path: Path) -> None:
    """A PACS that sends other pixel data under the same UIDs: exit 3, each image is named, and blocks until a person has accepted it.

    What came first stays, and the next run puts the second content beside it. A second comparison is an alarm, too, but nothing new.
    """
    folder = tmp_path
    with changing(folder, Archive(STUDIES)) as pacs:
        assert here(folder, "run")[0] == 0
    first = data_sets(folder)
    with changing(folder, Archive(STUDIES, pixels=32), port=pacs.port):
        done, said = here(folder, "double-check", "--json", "--sample", "100%")
        named = json.loads(said)["other_content"]
        assert (done, len(named) > 0, data_sets(folder)) == (3, True, first)
        assert len(left_over(folder)) == len(named)
        assert conflicts(folder) == {"retrieved": named}
        assert here(folder, "run")[0] == 3
        assert conflicts(folder) == {"parked": named}
        kept = data_sets(folder)
        assert first.items() <= kept.items()
        assert sorted(sop.partition("~")[0] for _, _, sop in kept.keys() - first.keys()) == named
        assert left_over(folder) == []
        studies = [entry["study"] for entry in json.loads((folder / "report" / "report.json").read_text())["exceptions"]]
        assert here(folder, "accept", *studies, "--code", "two-contents", "--reason", "both are kept", "--by", "j.doe")[0] == 0
        assert here(folder, "run")[0] == 0
        assert here(folder, "double-check", "--sample", "100%")[0] == 3
        assert (left_over(folder), data_sets(folder)) == ([], kept)
        assert conflicts(folder) == {"accepted": named}
        assert here(folder, "audit")[0] == 0


def test_what_no_longer_comes_is_named(migrated: tuple[Path, int]) -> None:
    """Images that the PACS has lost are counted apart, and nothing is concluded from the rest."""
    folder, port = migrated
    with changing(folder, Archive(STUDIES), "skip-one", port=port):
        found = compared(folder, "--sample", "100%", code=3)
    assert found["not_sent"] == len(found["missing"]) > 0
    assert (found["header"], found["content"]) == (0, 0)
    assert "confidence" not in found["statement"]


def test_an_unreachable_pacs_is_told_as_such(migrated: tuple[Path, int]) -> None:
    """Exit 20, and nothing is said to have vanished."""
    folder, _ = migrated
    done = command(folder, "double-check", "--json")
    assert (done.returncode, done.stdout) == (20, "")
    assert left_over(folder) == []


@pytest.mark.parametrize(
    ("syntax", "pixels", "tags", "kind"),
    [
        ("1.2.1", 7, [], Found.HEADER), ("1.2.1", 8, ["(0008,0080)"], Found.CONTENT), ("1.2.4", 8, [], Found.TRANSCODED),
        ("1.2.1", None, [], Found.CONTENT),
    ],
)  # fmt: skip
def test_what_an_image_with_pixels_turned_out_to_be(syntax: str, pixels: int | None, tags: list[str], kind: Found) -> None:
    """The pixels decide, unless another transfer syntax makes their bytes incomparable."""
    first = filled.received("1.1", "1.1.1.1")
    original = Original(Item(first.ref, filled.fixity("a")), Stratum("2020", "CT"), "1.2.1", 7)  # type: ignore[arg-type]
    assert judge(original, replace(first, transfer_syntax=syntax, pixel_crc64=pixels), tags) is kind


@pytest.mark.parametrize(("tags", "kind"), [(["(0008,0080)", "(0010,0010)"], Found.HEADER), (["(0008,0080)", "(0040,A730)"], Found.CONTENT), ([], Found.CONTENT)])
def test_what_an_object_without_pixels_turned_out_to_be(tags: list[str], kind: Found) -> None:
    """Elements that only identify it are a header; anything else, or what nobody knows, is an alarm."""
    first = filled.received("1.1", "1.1.1.1")
    original = Original(Item(first.ref, filled.fixity("a")), Stratum("2020", "SR"), first.transfer_syntax, None)  # type: ignore[arg-type]
    assert judge(original, first, tags) is kind
