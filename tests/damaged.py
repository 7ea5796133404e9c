"""A small dossier with all kinds of irregularities and its objects, and ways to damage it: by accident, and on purpose."""

from __future__ import annotations

import base64
import contextlib
import csv
import gzip
import hashlib
import io
import json
import random
import shutil
import textwrap
from collections.abc import Callable
from pathlib import Path

from migrate.manifest import Manifest
from migrate.manifest.decisions import accept
from migrate.manifest.file import open_reader
from migrate.reports import write_dossier
from tests.filled import items, swept

from migrate.model import (  # isort: skip
    DestinationLost, Fixity, InstanceRef, InstanceStaged, InstanceState, InstanceStored, InstanceVerified, Item, Proof, Receipt, Received,
    RetrieveEnded, RetryPolicy, SeriesPlan, StagedLost, StudyFound, StudyPlanned, StudyRef, object_key,
)

SEALED = {
    "instances.csv.gz": ("study", "series", "sop", "copy", "state", "size_bytes", "dataset_sha256", "file_sha256", "crc64nvme", "sop_class",
                         "transfer_syntax", "key", "version", "proof", "notes", "staged_at", "stored_at", "verified_at", "staged_seal",
                         "stored_seal", "verified_seal", "pixel_crc64", "checksum", "beside", "listed", "conflict", "modality"),
    "events.csv.gz": ("id", "at", "run", "kind", "study", "series", "sop", "detail"),
    "seals.csv.gz": ("id", "at", "run", "operator", "host", "version", "last_event", "steps", "sha256"),
    "studies.csv": ("study", "state", "date", "modalities", "claimed_instances", "listed_instances", "expected", "staged", "stored", "verified",
                    "attempts", "error", "detail", "found_at", "changed_at"),
    "exceptions.csv": ("study", "state", "error", "detail", "attempts", "missing", "unexpected", "conflict", "quarantined", "accepted_by", "reason"),
}  # fmt: skip
"""Columns whose change must be found even by whoever believes contents.sha256."""


CHECKED = (*SEALED, "merkle.json", "report.json", "SHA256SUMS", "bag/manifest-sha256.txt")
"""Files whose content follows from the sealed tables, so that an older one is found by whoever believes contents.sha256."""


LOST = "000000000007-0123456789ab"


def build(folder: Path, prefix: str = "", words: str = "") -> Path:
    """`dossier` and `bucket` in the folder, and under `older` two dossiers as they were on the way; returns the dossier. `words`: what the PACS and people say."""
    place = f"folder:{folder}/bucket" + (f" prefix {prefix}" if prefix else "")
    manifest = Manifest(folder / "m.db", identity={"source": "a", "destination": place, "migration": "damaged"}, policy=RetryPolicy(attempts=1))
    manifest.begin_run("run", "öperator", "0" * 64)
    manifest.log("manifest restored", f"1,'{'0' * 64}','{LOST}'")  # that anchor is of what was lost then
    window = swept(manifest, "1.1", "1.2", "1.3", "1.4", "1.6", claimed=7)
    manifest.commit([StudyFound(StudyRef("1.5"), "20200505", ("SR",), 1, window, excluded=words or "None of its modalities is to be migrated.")])
    proven: list[Item] = []
    for study, count in (("1.1", 5), ("1.2", 3), ("1.3", 1)):
        _plan(manifest, study, count)
        _receive(manifest, [_came(study, number) for number in range(count)])
        manifest.commit([RetrieveEnded(StudyRef(study), 0)])
        proven += _prove(manifest, folder / "bucket" / prefix, Proof.ATTESTED)
    _leave(manifest, folder, prefix, "older/0")
    _plan(manifest, "1.4", 3)
    lost = _came("1.4", 0)
    _receive(manifest, [lost, _came("1.4", 1), _came("1.4", 1, "other"), _came("1.4", 9), _quarantined()])
    manifest.commit([StagedLost(next(item for item in items(manifest, InstanceState.STAGED) if item.ref.sop.endswith(".0")), "gone")])
    manifest.commit([RetrieveEnded(StudyRef("1.4"), 0, "SourceIncomplete", words or "2 of 3 instances did not come; it's said")])
    _prove(manifest, folder / "bucket" / prefix, Proof.READ_BACK)
    manifest.commit([InstanceVerified(item, Proof.READ_BACK) for item in proven if item.ref.study == "1.1"])  # proof raised
    again, spoilt = [item for item in proven if item.ref.study == "1.2"][:2]
    manifest.commit([DestinationLost(again, False, "not there", file_kept=False), DestinationLost(spoilt, True, "other bytes", file_kept=False)])
    _receive(manifest, [_came("1.2", int(item.ref.sop.rpartition(".")[2])) for item in (again, spoilt)])  # the second one goes beside
    _prove(manifest, folder / "bucket" / prefix, Proof.READ_BACK)
    _leave(manifest, folder, prefix, "older/1")
    accept(manifest, ["1.4"], words or "the tape is lost", words or "J. Doe", role=words)
    _plan(manifest, "1.6", 3)  # is on its way: expected, staged, stored
    _receive(manifest, [_came("1.6", 0), _came("1.6", 1)])
    stored = items(manifest, InstanceState.STAGED)[0]
    manifest.commit([InstanceStored(stored, Receipt(_key(stored), version="v", checksum="sha256:x"))])
    manifest.end_run(3)
    anchors = _leave(manifest, folder, prefix, "dossier")
    manifest.close()
    (anchors / f"{LOST}.json").write_text(json.dumps({"migration": "damaged", "seal": 7, "head": "0123456789ab" + "0" * 52, "root": None}))
    (anchors / "000000000099-ffffffffffff.json").write_text(json.dumps({"migration": "another", "seal": 99, "head": "f" * 64, "root": None}))
    return folder / "dossier"


def _leave(manifest: Manifest, folder: Path, prefix: str, name: str) -> Path:
    """A dossier of this moment, and its anchor; the folder of anchors."""
    with contextlib.closing(open_reader(manifest.path)) as reader:
        page = write_dossier(reader, folder / name, prefix=prefix)
    merkle = json.loads(page.with_name("merkle.json").read_text())
    anchors = folder / "bucket" / prefix / "_pacs-migrate" / "anchors"
    anchors.mkdir(parents=True, exist_ok=True)
    said = {"migration": "damaged", "seal": merkle["seal"], "head": merkle["head"], "root": merkle["root"]}
    (anchors / f"{merkle['seal']:012d}-{merkle['head'][:12]}.json").write_text(json.dumps(said))
    return anchors


def own_anchors(folder: Path) -> list[Path]:
    """Those of the dossier's migration that have to fit, the newest last."""
    return sorted(path for path in folder.rglob("bucket/**/anchors/*.json") if path.stem != LOST and "another" not in path.read_text())


def _content(sop: str, more: str) -> bytes:
    return f"the data set of {sop}{more}".encode() * 3


def _fixity(content: bytes) -> Fixity:
    digest = hashlib.sha256(content).digest()
    return Fixity(len(content), digest, hashlib.sha256(content[1:]).digest(), int.from_bytes(digest[:8], "big"))


def _came(study: str, number: int, more: str = "") -> InstanceStaged:
    ref = InstanceRef(study, f"{study}.1", f"{study}.1.{number}")
    fixity = _fixity(_content(ref.sop, more))
    received = Received(Path("/x"), ref, fixity.rolled, "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.1", ("=odd\tlength",) if number == 2 else ())
    return InstanceStaged(received, fixity)


def _quarantined() -> InstanceStaged:
    fixity = _fixity(b"garbage")
    return InstanceStaged(Received(Path("/x/q"), None, fixity.rolled, "", "", quarantine="cannot be walked", claimed=("1.4", "'", "")), fixity)


def _plan(manifest: Manifest, study: str, count: int) -> None:
    manifest.commit([StudyPlanned(StudyRef(study), (SeriesPlan(f"{study}.1", "CT", tuple(f"{study}.1.{number}" for number in range(count))),))])


def _receive(manifest: Manifest, arrivals: list[InstanceStaged]) -> None:
    for arrival in arrivals:  # a commit each, so that there are seals with one step, too
        manifest.commit([arrival])


def _prove(manifest: Manifest, folder: Path, proof: Proof) -> list[Item]:
    staged = items(manifest, InstanceState.STAGED)
    for item in staged:
        more = "other" if item.copy else ""
        path = folder / _key(item)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_content(item.ref.sop, more))
    manifest.commit([InstanceStored(item, Receipt(_key(item), version=f"=v{number}" if number else None)) for number, item in enumerate(staged)])
    manifest.commit([InstanceVerified(item, proof) for item in staged])
    return staged


def _key(item: Item) -> str:
    return object_key(item.ref, beside=item.fixity.dataset_sha256 if item.beside else None)


# -- damage

Rows = list[list[str]]


def read(path: Path) -> Rows:
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return list(csv.reader(io.StringIO(raw.decode(), newline="")))


def write(path: Path, rows: Rows) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    raw = text.getvalue().encode()
    path.write_bytes(gzip.compress(raw, mtime=0) if path.suffix == ".gz" else raw)


def believe(dossier: Path) -> None:
    """Make contents.sha256 and the bag's list fit whatever the files are now, as somebody would who wants to hide a change."""
    for folder, sums in ((dossier / "bag", "tagmanifest-sha256.txt"), (dossier, "contents.sha256")):
        names = [line.partition("  ")[2] for line in (folder / sums).read_text().splitlines()]
        (folder / sums).write_text("".join(f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names))


def flip(path: Path, dice: random.Random) -> None:
    raw = bytearray(path.read_bytes())
    raw[dice.randrange(len(raw))] ^= 1 << dice.randrange(8)
    path.write_bytes(raw)


def cut(path: Path, dice: random.Random) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[: dice.randrange(len(raw))])


def byte(path: Path, dice: random.Random) -> None:
    raw = path.read_bytes()
    at = dice.randrange(len(raw) + 1)
    path.write_bytes(raw[:at] + dice.randbytes(1) + raw[at:])


def lose(path: Path, _: random.Random) -> None:
    path.unlink()


def lines(path: Path, dice: random.Random) -> None:
    """Two different lines of a text change places."""
    rows = path.read_bytes().splitlines(keepends=True)
    a, b = dice.sample(range(len(rows)), 2) if len(set(rows)) > 1 else (0, 0)
    rows[a], rows[b] = rows[b], rows[a]
    path.write_bytes(b"".join(rows) if rows[a] != rows[b] else b"")


BLIND: tuple[Callable[[Path, random.Random], None], ...] = (flip, cut, byte, lose, lines)


def by_accident(folder: Path, dice: random.Random) -> str:
    """Damage one file of the dossier or one object, or put an older one in its place; its name."""
    dossier, bucket = folder / "dossier", folder / "bucket"
    proven = [bucket / line.partition("  ")[2] for line in (dossier / "SHA256SUMS").read_text().splitlines()]  # others are foreign
    files = sorted(path for path in (*dossier.rglob("*"), *proven) if path.is_file())
    path = dice.choice(files)
    if path.suffix == ".dcm" and dice.random() < 0.2 and path.parent.parent.parent.name != "dossier" and bucket in path.parents:
        other = dice.choice([file for file in files if bucket in file.parents and file != path])
        shutil.copyfile(other, path)  # another object's bytes
    elif dossier in path.parents and dice.random() < 0.2 and (other := _older(folder, path, dice)):
        shutil.copyfile(other, path)
    else:
        before = path.read_bytes()
        while path.exists() and path.read_bytes() == before:
            dice.choice(BLIND)(path, dice)
    return path.relative_to(dossier if dossier in path.parents else bucket).as_posix()


def _older(folder: Path, path: Path, dice: random.Random) -> Path | None:
    """The same file of an older dossier, if it was another then."""
    name, now = path.relative_to(folder / "dossier"), path.read_bytes()
    others = [other for each in ("0", "1") if (other := folder / "older" / each / name).is_file() and other.read_bytes() != now]
    return dice.choice(others) if others else None


def rolled_back(folder: Path, dice: random.Random) -> str:
    """Put older files, all of them or some that fit, in the place of the newest, or change what an anchor says; what was done."""
    dossier = folder / "dossier"
    what = dice.choice(("whole", "files", "anchor"))
    if what == "whole":
        what = dice.choice(("older/0", "older/1"))
        shutil.copytree(folder / what, dossier, dirs_exist_ok=True)
    elif what == "files":
        older = {name: path for name in dice.sample(CHECKED, dice.randint(1, 3)) if (path := _older(folder, dossier / name, dice))}
        older = older or {"merkle.json": folder / "older" / "0" / "merkle.json"}
        for name, path in older.items():
            shutil.copyfile(path, dossier / name)
        believe(dossier)
        what = f"older {', '.join(older)}"
    else:
        anchors = own_anchors(folder)
        path = dice.choice(anchors)
        said = json.loads(path.read_text())
        name = dice.choice(("seal", "head", "root") if path == anchors[-1] else ("seal", "head"))
        said[name] = said[name] + dice.choice((-1, 1, 100)) if name == "seal" else _flipped(said[name], dice)
        path.write_text(json.dumps(said))
        what = f"{name} of {path.name}"
    return what


def _flipped(digest: str, dice: random.Random) -> str:
    raw = bytearray(bytes.fromhex(digest))
    raw[dice.randrange(len(raw))] ^= 1 << dice.randrange(8)
    return raw.hex()


def on_purpose(folder: Path, dice: random.Random) -> str:
    """Change what a table says, so that every file is sound in itself and listed as it is; what was done."""
    dossier = folder / "dossier"
    name = dice.choice(sorted((*SEALED, "report.json", "report.html", "report-anonymous.html")))
    if name not in SEALED:
        return _said_otherwise(dossier / name, dice)
    path = dossier / name
    head, *rows = read(path)
    before = [list(row) for row in rows]
    while rows == before:
        what, at = dice.choice(("cell", "cell", "delete", "swap", "repeat", "cut")), dice.randrange(len(rows))
        if what == "cell":
            column = head.index(dice.choice(SEALED[name]))
            rows[at][column] = _another(rows[at][column], [row[column] for row in before], dice)
        elif what == "delete":
            del rows[at]
        elif what == "swap":
            other = dice.randrange(len(rows))
            rows[at], rows[other] = rows[other], rows[at]
        elif what == "repeat":
            rows.insert(at, list(rows[at]))
        else:
            del rows[at:]
    write(path, [head, *rows])
    believe(dossier)
    return f"{what} in {name}, row {at + 1}"


def _said_otherwise(path: Path, dice: random.Random) -> str:
    """Another verdict or count in a report; the same in all hashes."""
    said = json.loads(path.with_name("report.json").read_text())
    of = dice.choice(("studies", "instances", "proof"))
    name = dice.choice(sorted(said[of]))
    text, count = path.read_text(encoding="utf-8"), said[of][name]
    if path.suffix == ".json":
        what = dice.choice(("count", "verdict", "time", "exception"))
        said[of][name] += dice.choice((1, -1, 1000)) if what == "count" else 0
        said["complete"] ^= what == "verdict"
        said["generated_at"] = said["generated_at"].replace("-", "/") if what == "time" else said["generated_at"]
        said["exceptions"] = said["exceptions"][1:] if what == "exception" else said["exceptions"]
        text = json.dumps({key: value for key, value in said.items() if key != "exceptions"}, indent=1)[:-2]
        text += ',\n "exceptions": [\n' + ",\n".join(textwrap.indent(json.dumps(each, indent=1), "  ") for each in said["exceptions"]) + "\n ]\n}\n"
    elif dice.random() < 0.3:
        what, text = "verdict", text.replace('id="verdict">Not complete:', 'id="verdict">Complete:')
    else:
        row = f'<th scope="row">{name.replace("_", " ")}</th><td class="n">'
        what, text = "count", text.replace(f"{row}{count:,}</td>", f"{row}{count + 1:,}</td>")
    path.write_text(text, encoding="utf-8", newline="")
    believe(path.parent)
    return f"{what} {of} {name} in {path.name}"


def _another(cell: str, others: list[str], dice: random.Random) -> str:
    if dice.random() < 0.4:
        return dice.choice(others)
    if cell.isdigit():
        return str(int(cell) + dice.choice((-1, 1, 1000)))
    if not cell:
        return "1"
    at = dice.randrange(len(cell))
    return cell[:at] + dice.choice("0123456789abcdef") + cell[at + 1 :] if dice.random() < 0.8 else ""


def other_signature(armored: bytes, dice: random.Random) -> bytes:
    """With a changed bit in the signature itself, not in its armor."""
    first, *middle, last = armored.decode().strip().splitlines()
    raw = bytearray(base64.b64decode("".join(middle)))
    raw[dice.randrange(len(raw))] ^= 1 << dice.randrange(8)
    text = base64.b64encode(bytes(raw)).decode()
    return "\n".join([first, *(text[at : at + 70] for at in range(0, len(text), 70)), last, ""]).encode()
