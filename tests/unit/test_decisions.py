"""What people sign for, and take back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from migrate.cli import cli
from migrate.config import load
from migrate.destinations import open_destination
from migrate.errors import UsageError
from migrate.lists.exceptions import Row, read_exemptions, refuse
from migrate.manifest import Manifest, decisions
from migrate.model import RetrieveEnded, StudyRef, StudyState, Window, WindowAnswered, WindowJudged, WindowsPlanned
from tests.filled import planned, swept
from tests.runs import called, configure

STUDY = "1.2"


def stands(manifest: Manifest) -> str:
    return StudyState(manifest.one("SELECT state FROM study WHERE uid = ?", STUDY)[0]).name.lower()


def short_of(manifest: Manifest, *sops: str) -> None:
    """The study parked, with all of these missing."""
    planned(manifest, STUDY, *sops)
    for _ in range(2):
        manifest.commit([RetrieveEnded(StudyRef(STUDY), 0)])
    assert stands(manifest) == "parked"


def configured(folder: Path, manifest: Manifest) -> Path:
    """A configuration to which this manifest belongs."""
    path = configure(folder, 1, 1, migration=f'manifest = "{manifest.path}"')
    config = load(path)
    for key, value in (("source", config.source_identity), ("destination", open_destination(config.destination).identity)):
        manifest.connection.execute("UPDATE meta SET value = ? WHERE key = ?", (value, key))
    return path


def test_one_instance_can_be_signed_for(manifest: Manifest) -> None:
    """The study stays parked until each image that is missing is signed for; then it is accepted, by code, name and role."""
    sops = ("1.2.1.1", "1.2.1.2")
    short_of(manifest, *sops)
    for sop, then in zip(sops, ("parked", "accepted"), strict=True):
        signature = decisions.Signature("the disk is broken", "j.doe", "head of radiology", "corrupt-at-source")
        decisions.accept_each(manifest, [decisions.Exempted(STUDY, signature, sop)])
        assert stands(manifest) == then
    assert manifest.connection.execute("SELECT sop_uid, covers, code, role FROM acceptance").fetchall() == [
        (sop, f'["missing:{sop}"]', "corrupt-at-source", "head of radiology") for sop in sops
    ]
    said = manifest.connection.execute("SELECT sop_uid, detail FROM event WHERE kind = 'exception accepted'").fetchall()
    assert said == [(sop, f'by j.doe (head of radiology): corrupt-at-source: the disk is broken; covers ["missing:{sop}"]') for sop in sops]


def test_an_instance_of_which_nothing_is_open_cannot_be_signed_for(manifest: Manifest) -> None:
    """One mistake among several exceptions: none of them is signed."""
    short_of(manifest, "1.2.1.1")
    signature = decisions.Signature("r", "j.doe")
    with pytest.raises(UsageError, match=r"1\.2\.1\.9"):
        decisions.accept_each(manifest, [decisions.Exempted(STUDY, signature, sop) for sop in ("1.2.1.1", "1.2.1.9")])
    assert manifest.one("SELECT count(*) FROM acceptance") == (0,)


def test_studies_and_windows_are_signed_for_together_or_not_at_all(manifest: Manifest) -> None:
    """One window that does not block: the study beside it stays parked, too; without it both signatures are one transaction."""
    short_of(manifest, "1.2.1.1")
    manifest.commit([WindowsPlanned(1, (Window("20200101", "20200101"), Window("20200102", "20200102")))])
    manifest.commit([WindowAnswered(1, 500), WindowJudged(1, "caps at 500 rows", True), WindowAnswered(2, 3)])
    with pytest.raises(UsageError, match=r"w2: not known, or does not block\."):
        decisions.accept(manifest, [STUDY, "w1", "w2"], "r", "j.doe")
    assert (stands(manifest), manifest.one("SELECT count(accepted_by) FROM window")) == ("parked", (0,))
    decisions.accept(manifest, [STUDY, "w1"], "r", "j.doe")
    assert (stands(manifest), manifest.one("SELECT id FROM window WHERE accepted_by = 'j.doe'")) == ("accepted", (1,))


@pytest.mark.parametrize("decide", [decisions.accept, decisions.revoke, decisions.exclude, decisions.include])
def test_what_is_no_uid_is_not_repeated(manifest: Manifest, decide: Callable[..., object]) -> None:
    """Somebody who types a patient's name where a UID belongs does not find it in logs."""
    with pytest.raises(UsageError) as raised:
        decide(manifest, ["DOE^JANE"], "r", "j.doe")
    assert "DOE" not in f"{raised.value} {raised.value.hint}"


def test_a_revoked_signature_stays_on_record_and_covers_nothing(manifest: Manifest) -> None:
    """The study is found again, fails again and is parked again; a second revocation finds nothing to take back."""
    short_of(manifest, "1.2.1.1")
    decisions.accept(manifest, [STUDY], "it is gone", "j.doe")
    assert decisions.revoke(manifest, [STUDY], "it was found on a tape", "m.roe", role="archivist") == 1
    assert stands(manifest) == "found"
    short_of(manifest, "1.2.1.1")
    assert manifest.one("SELECT count(*) FROM acceptance") == (1,)
    with pytest.raises(UsageError, match="nobody has signed"):
        decisions.revoke(manifest, [STUDY], "again", "m.roe")
    (said,) = manifest.connection.execute("SELECT detail FROM event WHERE kind = 'exception revoked'").fetchone()
    assert said == "by m.roe (archivist): it was found on a tape; was accepted by j.doe"


def test_a_revoked_window_blocks_in_later_sweeps_too(manifest: Manifest) -> None:
    """The signature is taken from every sweep that it was carried to, so that none hands it on."""
    for sweep in (1, 2, 3):
        manifest.commit([WindowsPlanned(sweep, (Window("20200101", "20200101"),))])
        manifest.commit([WindowAnswered(sweep, 500), WindowJudged(sweep, "caps at 500 rows", True)])
        if sweep == 1:
            decisions.accept(manifest, ["w1"], "checked by hand", "j.doe")
        if sweep == 2:
            decisions.revoke(manifest, ["w2"], "it was not", "m.roe")
    assert manifest.one("SELECT count(accepted_by) FROM window") == (0,)


@pytest.mark.parametrize(("reason", "by", "code"), [("", "j.doe", "other"), ("r", " ", "other"), ("r", "j.doe", "because"), ("r\0", "j.doe", "other"), ("r", "j\0d", "other")])
def test_a_signature_needs_a_reason_and_a_name(reason: str, by: str, code: str) -> None:
    """Without them, with a code that is not on the list, or with a NUL, at which its event would end, there is no signature."""
    with pytest.raises(UsageError):
        decisions.Signature(reason, by, "", code)


def read(folder: Path, text: str, **given: str) -> list[Row]:
    (folder / "list.csv").write_text(text, encoding="utf-8")
    return read_exemptions(folder / "list.csv", **{"reason": "", "by": "", **given})


def test_a_list_says_why_and_by_whom(tmp_path: Path) -> None:
    """Cells go before options; the report's own exceptions.csv, filled in, is such a list: only its parked lines count."""
    rows = read(tmp_path, "study;state;instance;code;reason;accepted_by;role\n1.2;parked;;duplicate;twice there;m.roe;archivist\n1.3;;1.3.1;;;;\n"
                "1.4;migrated;;;;;\n1.5;accepted;;other;said before;j.doe;\n",
                reason="lost", by="j.doe", role="head")  # fmt: skip
    assert [row.exempted for row in rows] == [
        decisions.Exempted("1.2", decisions.Signature("twice there", "m.roe", "archivist", "duplicate")),
        decisions.Exempted("1.3", decisions.Signature("lost", "j.doe", "head"), "1.3.1"),
    ]


def test_every_mistake_of_a_list_is_told_with_its_line(tmp_path: Path) -> None:
    """No UID, no reason, no name, an unknown code, and the same again, all in one go."""
    rows = read(tmp_path, "study,instance,code,reason,by\n1.2,,,r,me\nx,,,r,me\n1.3,y,,r,me\n1.4,,because,r,me\n1.5,,,,\n1.2,,,r,me\n1.2,1.2.1,,r,me\n,,,r,me\n")
    assert {row.line: row.mistake for row in rows if row.exempted is None} == {
        3: "the study is no UID", 4: "the instance is no UID", 5: f"the code is none of {', '.join(decisions.REASONS)}",
        6: "no reason and no name", 7: "the same as line 2", 8: "the same as line 2", 9: "no study",
    }  # fmt: skip
    with pytest.raises(UsageError, match=r"(?s)2 lines.*line 3: a\n  line 12: b"):
        refuse(tmp_path / "list.csv", {12: "b", 3: "a"})


def test_a_list_without_studies_is_none(tmp_path: Path) -> None:
    """An empty file, one without a header, one without lines."""
    for text in ("", "1.2,r\n", "study,reason\n"):
        with pytest.raises(UsageError):
            read(tmp_path, text)


def test_a_list_is_signed_whole_or_not_at_all(manifest: Manifest, tmp_path: Path) -> None:
    """A study that is not parked keeps the other one from being accepted; without it both lines of the other are."""
    short_of(manifest, "1.2.1.1", "1.2.1.2")
    swept(manifest, "1.9")
    manifest.end_run(0)
    signature = ["--reason", "gone", "--by", "j.doe", "--config", str(configured(tmp_path, manifest))]
    (tmp_path / "list.csv").write_text("study,instance\n1.2,1.2.1.1\n1.2,1.2.1.2\n1.9,\n1.2,1.2.1.9\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"(?s)line 4: the study is not parked but found.*line 5: nothing of it is missing"):
        cli.main(["accept", "--file", str(tmp_path / "list.csv"), *signature], standalone_mode=False)
    assert manifest.one("SELECT count(*) FROM acceptance") == (0,)
    (tmp_path / "list.csv").write_text("study,instance\n1.2,1.2.1.1\n1.2,1.2.1.2\n", encoding="utf-8")
    cli.main(["accept", "--file", str(tmp_path / "list.csv"), *signature], standalone_mode=False)
    assert (manifest.one("SELECT count(*) FROM acceptance"), stands(manifest)) == ((2,), "accepted")


def test_an_error_with_which_nothing_is_parked_is_answered_with_those_that_are(tmp_path: Path, manifest: Manifest) -> None:
    """Who mistypes a class reads which there are; the study stays parked until the right one is named."""
    short_of(manifest, "1.2.1.1")
    manifest.end_run(0)
    configured(tmp_path, manifest)
    assert called(tmp_path, "retry", "--error", "SourceIncomplet") == (
        0, "Nothing is parked with the error SourceIncomplet, but with SourceIncomplete (1).\n", "")  # fmt: skip
    assert stands(manifest) == "parked"
    assert called(tmp_path, "retry", "--error", "SourceIncomplete")[1] == "1 study put back.\n"
    assert called(tmp_path, "retry", "--error", "SourceIncomplete")[1] == "Nothing is parked with the error SourceIncomplete.\n"
