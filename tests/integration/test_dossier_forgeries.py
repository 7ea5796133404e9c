"""Forgeries as somebody would make them who has the dossier, knows its formats and rewrites every hash: what finds each of them."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from migrate.evidence import signing
from tests import damaged, second_verifier
from tests.shipped_verifier import copy, repaired, verify

Forgery = Callable[[Path], object]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a dossier and a bucket."""
    folder = tmp_path_factory.mktemp("sound")
    damaged.build(folder)
    return folder


def cells(folder: Path, name: str, change: Callable[[list[dict[str, str]]], object]) -> None:
    """Change the rows of a table as dicts."""
    head, *rows = damaged.read(folder / "dossier" / name)
    table = [dict(zip(head, row, strict=True)) for row in rows]
    change(table)
    damaged.write(folder / "dossier" / name, [[*table[0]], *([*row.values()] for row in table)])


def exchange(column: str, a: int, b: int) -> Callable[[list[dict[str, str]]], object]:
    def change(rows: list[dict[str, str]]) -> None:
        rows[a][column], rows[b][column] = rows[b][column], rows[a][column]

    return change


def everywhere(folder: Path, old: str, new: str, *names: str) -> None:
    for name in names:
        path = folder / "dossier" / name
        raw = gzip.decompress(path.read_bytes()) if name.endswith(".gz") else path.read_bytes()
        assert old.encode() in raw, (name, old)
        raw = raw.replace(old.encode(), new.encode())
        path.write_bytes(gzip.compress(raw, mtime=0) if name.endswith(".gz") else raw)


def lines(folder: Path, name: str, change: Callable[[list[str]], list[str]]) -> None:
    path = folder / "dossier" / name
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))), newline="")


def another_dossier(folder: Path, *names: str) -> None:
    """Files of a dossier of another migration, sound in itself."""
    with_other = folder.parent / "other"
    shutil.rmtree(with_other, ignore_errors=True)
    with_other.mkdir()
    damaged.build(with_other)
    for name in names:
        shutil.copyfile(with_other / "dossier" / name, folder / "dossier" / name)


def more_data(folder: Path) -> None:
    path = folder / "dossier" / "instances.csv.gz"
    last = gzip.decompress(path.read_bytes()).splitlines(keepends=True)[-1]
    path.write_bytes(path.read_bytes() + gzip.compress(last, mtime=0))  # a second member


def anchor(folder: Path, number: int, **said: object) -> None:
    path = damaged.own_anchors(folder)[number]
    path.write_text(json.dumps(json.loads(path.read_text()) | said))


def column(folder: Path, name: str, drop: str = "", add: str = "") -> None:
    def change(rows: list[dict[str, str]]) -> None:
        for row in rows:
            if drop:
                del row[drop]
            if add:
                row[add] = "approved"

    cells(folder, name, change)


def without_signature(rows: list[dict[str, str]]) -> None:
    for row in rows:
        row["accepted_by"] = row["reason"] = ""


FOUND: dict[str, Forgery] = {
    "two studies exchange their dates": lambda f: cells(f, "studies.csv", lambda rows: (exchange("modalities", 0, 4)(rows), exchange("date", 0, 4)(rows))),
    "a study was found earlier": lambda f: cells(f, "studies.csv", lambda rows: rows[0].update(found_at="2001-01-01T00:00:00Z")),
    "a study changed its state later": lambda f: cells(f, "studies.csv", lambda rows: rows[1].update(changed_at="2099-01-01T00:00:00Z")),
    "a column is gone": lambda f: column(f, "studies.csv", drop="claimed_instances"),
    "an instance moves to another study": lambda f: cells(f, "instances.csv.gz", lambda rows: rows[0].update(study="1.0")),
    "an instance moves to another series": lambda f: everywhere(f, "1.1.1,1.1.1.0", "1.1.9,1.1.1.0", "instances.csv.gz"),
    "two hashes of files exchange places, in all lists": lambda f: (
        cells(f, "instances.csv.gz", exchange("file_sha256", 0, 1)), lines(f, "SHA256SUMS", lambda rows: [*reversed(rows[:2]), *rows[2:]])),
    "what came unlisted is called listed": lambda f: cells(f, "instances.csv.gz", lambda rows: [row.update(listed="1") for row in rows if row["listed"] == "0"]),
    "a conflict is called none": lambda f: cells(f, "instances.csv.gz", lambda rows: [row.update(conflict="0") for row in rows if row["conflict"] == "1"]),
    "a flag is neither 0 nor 1": lambda f: cells(f, "instances.csv.gz", lambda rows: [row.update(listed="2") for row in rows if row["listed"] == "0"]),
    "attested is called read back": lambda f: everywhere(f, ",attested,", ",read_back,", "instances.csv.gz"),
    "a key has another prefix": lambda f: everywhere(f, ",studies/1.1/", ",elsewhere/studies/1.1/", "instances.csv.gz"),
    "events are gone, the rest counts on": lambda f: cells(f, "events.csv.gz", lambda rows: [rows.pop(30), *[row.update(id=str(int(row["id"]) - 1)) for row in rows[30:]]]),
    "a seal and its events are gone, the rest counts on": lambda f: cells(
        f, "seals.csv.gz", lambda rows: [rows.pop(20), *[row.update(id=str(int(row["id"]) - 1)) for row in rows[20:]]]),
    "another operator sealed": lambda f: everywhere(f, "öperator", "operator", "seals.csv.gz"),
    "a number that is none": lambda f: lines(f, "report.json", lambda rows: [re.sub(r'"verified": \d+', '"verified": NaN', row) for row in rows]),
    "a huge number": lambda f: lines(f, "merkle.json", lambda rows: [re.sub(r'"leaves": \d+', f'"leaves": {"9" * 400}', row) for row in rows]),
    "the verdict stands twice": lambda f: everywhere(f, ' "complete": false', ' "complete": true,\n "complete": false', "report.json"),
    "the verdict says complete": lambda f: everywhere(f, ' "complete": false', ' "complete": true', "report.json"),
    "the page says complete": lambda f: everywhere(f, 'id="verdict">Not complete', 'id="verdict">Complete', "report.html", "report-anonymous.html"),
    "a line stands twice in the bag": lambda f: lines(f, "bag/manifest-sha256.txt", lambda rows: [rows[0], *rows]),
    "an object is not in the list of checksums": lambda f: lines(f, "SHA256SUMS", lambda rows: rows[1:]),
    "an exception is gone": lambda f: cells(f, "exceptions.csv", lambda rows: rows.pop(1)),
    "an exception was accepted": lambda f: cells(f, "exceptions.csv", lambda rows: rows[0].update(accepted_by="Dr. No", reason="none")),
    "a signature is gone": lambda f: cells(f, "exceptions.csv", without_signature),
    "a missing image is not named": lambda f: cells(f, "exceptions.csv", lambda rows: rows[1].update(missing=rows[1]["missing"].split()[0])),
    "the exceptions end with one more": lambda f: cells(f, "exceptions.csv", lambda rows: rows.append(rows[-1] | {"study": "1.9"})),
    "tables of another migration": lambda f: another_dossier(f, "instances.csv.gz", "studies.csv", "exceptions.csv", "SHA256SUMS", "bag/manifest-sha256.txt"),
    "the log of another migration": lambda f: another_dossier(f, "events.csv.gz", "seals.csv.gz"),
    "a compressed file with a second member": more_data,
    "an anchor of another chain": lambda f: anchor(f, 0, head=hashlib.sha256(b"other").hexdigest()),
    "an anchor of a later seal": lambda f: anchor(f, -1, seal=10**30),
    "the newest anchor has another root": lambda f: anchor(f, -1, root="0" * 64),
}  # fmt: skip

SIGNATURE_ONLY: dict[str, Forgery] = {
    "words of the page": lambda f: lines(f, "report.html", lambda rows: [row.replace("no hash at the source", "a hash at the source") for row in rows]),
    "an entry of report.json": lambda f: everywhere(f, "the tape is lost", "nothing was lost", "report.json"),
    "the inventory": lambda f: (f / "dossier" / "inventory.dcm").write_bytes(b"DICM"),
    "the verifier itself": lambda f: (f / "dossier" / "verify_dossier.py").write_text("print('All of it holds.')\n"),
    "the bag's own words": lambda f: everywhere(f, "Payload-Oxum: ", "Payload-Oxum: 1", "bag/bag-info.txt"),
    "one more column": lambda f: column(f, "seals.csv.gz", add="approved"),
}  # fmt: skip


def test_forgeries_are_found_though_every_hash_fits(sound: Path, tmp_path: Path) -> None:
    """Whoever rewrites contents.sha256, too, is found by the verifier, and by the second one."""
    folder = copy(sound, tmp_path / "copy")
    assert len(FOUND) > 30
    for what, forge in FOUND.items():
        forge(repaired(sound, folder))
        damaged.believe(folder / "dossier")
        code, said = verify(folder)
        assert (code, "WRONG" in said) == (1, True), f"{what}\n{said}"
        assert not second_verifier.holds(folder / "dossier", folder / "bucket"), what


def test_what_only_the_signature_finds(sound: Path, tmp_path: Path) -> None:
    """Texts that follow from no table: the verifier believes contents.sha256, whose signature holds no more."""
    folder = copy(sound, tmp_path / "copy")
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(key)], check=True)
    (tmp_path / "signers").write_text(f"somebody {key.with_suffix('.pub').read_text()}")
    signing.sign(folder / "dossier", key)
    for what, forge in SIGNATURE_ONLY.items():
        forge(repaired(sound, folder))
        damaged.believe(folder / "dossier")
        assert verify(folder)[0] == 0, what
        assert any("no signature" in wrong for wrong in signing.verify(folder / "dossier", tmp_path / "signers").wrong), what


def test_a_chain_written_anew_is_told_by_its_anchors(sound: Path, tmp_path: Path) -> None:
    """A whole dossier of another chain under the same name is sound in itself; the anchors beside the objects know the old one."""
    folder = copy(sound, tmp_path / "copy")
    another_dossier(folder, *(path.relative_to(sound / "dossier").as_posix() for path in (sound / "dossier").rglob("*") if path.is_file()))
    code, said = verify(folder)
    assert (code, said.count("is older, cut off or rewritten"), said.count("WRONG")) == (1, 3, 3), said
    for path in damaged.own_anchors(folder):
        path.unlink()
    code, said = verify(folder)
    assert (code, "anchors compared: 0; without any, a chain that was written anew as a whole could not be told." in said) == (0, True), said


def test_hostile_texts_stay_within_their_cells(tmp_path: Path) -> None:
    """Formulas, quotes, line breaks and control characters in what the PACS and people say are written, and found as they were."""
    hostile = '=HYPERLINK("http://x","y")\r\n"a","b"\n\'; DROP TABLE\x01 ü \u2028'
    folder = tmp_path / "hostile"
    folder.mkdir()
    damaged.build(folder, words=hostile)
    code, said = verify(folder)
    assert code == 0, said
    assert second_verifier.holds(folder / "dossier", folder / "bucket")
    raw = (folder / "dossier" / "studies.csv").read_bytes() + (folder / "dossier" / "exceptions.csv").read_bytes()
    assert b"\"'=HYPERLINK" in raw and not re.search(rb'(^|,)"?[=+@-]', raw, re.M)
    for number in range(20):
        damaged.on_purpose(repaired(folder, copy(folder, tmp_path / f"copy{number}")), random.Random(number))
        assert verify(tmp_path / f"copy{number}")[0] == 1


def test_a_link_in_the_folder_of_objects_is_followed(sound: Path, tmp_path: Path) -> None:
    """What counts is which bytes a key gives: a link to the same bytes holds, one to others or to nothing does not."""
    folder = copy(sound, tmp_path / "copy")
    first, second = ((folder / "bucket" / line.partition("  ")[2].rstrip()) for line in (folder / "dossier" / "SHA256SUMS").open().readlines()[:2])
    kept = first.rename(tmp_path / "kept")
    for target, code in ((kept, 0), (second, 1), (tmp_path / "nothing", 1)):
        first.unlink(missing_ok=True)
        first.symlink_to(target)
        assert verify(folder)[0] == code
