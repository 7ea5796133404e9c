"""What runs leave to be proven: the verbs audit and prove; anchors and copies of the manifest at the destination."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from migrate.practice.pacs import PracticePacs
from migrate.practice.studies import Archive
from tests.proof_reader import proof_holds, recomputed
from tests.runs import changing, command, data_sets, here, truth
from tests.waiting import until


def manifest_of(folder: Path) -> Path:
    return folder / "manifests" / "test.db"


def own(folder: Path, what: str) -> list[Path]:
    """What the tool keeps for itself at the destination."""
    return sorted((folder / "bucket" / "_pacs-migrate" / what).glob("*"))


def die(folder: Path) -> None:
    """The disk with manifest and staging is gone."""
    for name in ("manifests", "staging"):
        shutil.rmtree(folder / name, ignore_errors=True)


def audit(folder: Path, *words: str) -> tuple[int, list[str]]:
    """The verb's exit code and what it found wrong."""
    code, said = here(folder, "audit", "--json", *words)
    return code, [f"{each['place']}: {each['what']}" for each in json.loads(said)["troubles"]]


@contextlib.contextmanager
def pacs(folder: Path, *faults: str, proof: str = "", port: int = 0, studies: int = 3) -> Iterator[PracticePacs]:
    """A practice PACS with the same studies each time; `proof`: the table [proof]."""
    with changing(folder, Archive(studies), *faults, port=port) as opened:
        with (folder / "migrate.toml").open("a") as toml:
            toml.write(f"[proof]\n{proof}\n")
        yield opened


@pytest.fixture(scope="module")
def ran_twice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, the first against a PACS that keeps an image back; `older.db` is the manifest as it was in between."""
    folder = tmp_path_factory.mktemp("ran")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "practice", "-f", str(folder / "key")], check=True)
    signing = 'signing_key = "key"'
    with pacs(folder, "skip-one", proof=signing) as opened:
        assert command(folder, "run").returncode == 3
    shutil.copy(manifest_of(folder), folder / "older.db")
    with pacs(folder, proof=signing, port=opened.port):
        assert command(folder, "retry").returncode == 0
        assert command(folder, "run").returncode == 0
    (folder / "port").write_text(str(opened.port))
    (folder / "signers").write_text(f"compliance@hospital {(folder / 'key.pub').read_text()}")
    return folder


@pytest.fixture
def spoilable(ran_twice: Path, tmp_path: Path) -> Iterator[Path]:
    """The same folder, put back afterwards: a manifest knows its destination by its path."""
    shutil.copytree(ran_twice, tmp_path / "kept")
    yield ran_twice
    shutil.rmtree(ran_twice)
    shutil.move(tmp_path / "kept", ran_twice)


def test_a_run_holds(ran_twice: Path) -> None:
    """What a run has sealed is computed again, by the verb and by a page of code."""
    done = command(ran_twice, "audit")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "Everything holds."), done.stdout
    assert f"Last seal:   {recomputed(manifest_of(ran_twice))[-1]}\n" in done.stdout


def test_an_image_is_proven_by_a_page_of_code(ran_twice: Path) -> None:
    """What `prove` prints leads from the image to the root in the newest anchor; an unknown image has no proof."""
    root = json.loads([path for path in own(ran_twice, "anchors") if path.suffix == ".json"][-1].read_bytes())["root"]
    with contextlib.closing(sqlite3.connect(manifest_of(ran_twice))) as database:
        sop = database.execute("SELECT sop_uid FROM instance").fetchone()[0]
    proof = json.loads(command(ran_twice, "prove", sop).stdout)["proofs"][0]
    assert proof_holds(proof)
    assert (proof["root"], json.loads(proof["leaf"])[2]) == (root, sop)
    unknown = command(ran_twice, "prove", "1.2.3")
    assert (unknown.returncode, unknown.stdout) == (3, "")


def test_the_anchors_of_another_destination_are_refused(spoilable: Path) -> None:
    """An audit beside a copy of the bucket under another name says whose manifest this is, with exit 2; offline it needs no destination."""
    path = spoilable / "migrate.toml"
    shutil.copytree(spoilable / "bucket", spoilable / "elsewhere")
    path.write_text(path.read_text().replace('path = "bucket"', 'path = "elsewhere"'))
    done = command(spoilable, "audit")
    assert (done.returncode, "This manifest belongs to the destination" in done.stderr, "elsewhere" in done.stderr) == (2, True, True), done.stderr
    assert command(spoilable, "audit", "--offline").returncode == 0


READ_ONLY = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && shift && exec "$@"'


def in_read_only(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The command where nobody can write beside the manifest, its folder being mounted so in a namespace of its own."""
    enter = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", READ_ONLY, "sh", str(folder / "manifests")]
    return subprocess.run([*enter, sys.executable, "-m", "migrate", *words, "--config", str(folder / "migrate.toml")], capture_output=True, text=True, timeout=120)


def test_who_may_only_read_beside_the_manifest_is_told_how(spoilable: Path) -> None:
    """With SQLite's files there an audit is pointed to --offline, which holds; without them every reader is told to take a copy."""
    with contextlib.closing(sqlite3.connect(manifest_of(spoilable))) as database:  # its log and shared memory stay as long as it is open
        database.execute("SELECT count(*) FROM study").fetchone()
        online, offline = in_read_only(spoilable, "audit"), in_read_only(spoilable, "audit", "--offline")
    assert (online.returncode, "`audit --offline` writes nothing" in online.stderr, offline.returncode) == (22, True, 0), online.stderr + offline.stderr
    for end in ("-wal", "-shm"):
        manifest_of(spoilable).with_name(f"test.db{end}").unlink(missing_ok=True)
    bare = in_read_only(spoilable, "status")
    assert (bare.returncode, "copy the manifest into a folder of your own" in bare.stderr) == (22, True), bare.stderr


def test_what_was_changed_ends_with_3_and_is_named(spoilable: Path) -> None:
    """A changed size is named by seal and study; the audit changes nothing of the file and needs no key."""
    file = manifest_of(spoilable)
    (spoilable / "key").unlink()
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as database:
        database.execute("DROP TRIGGER instance_keeps_its_bytes")
        study, series, sop, seal = database.execute(
            "SELECT study.uid, series_id, sop_uid, staged_seal FROM instance JOIN series ON series.id = series_id JOIN study ON study.id = study_id"
        ).fetchone()
        database.execute("UPDATE instance SET size_bytes = size_bytes + 1 WHERE series_id = ? AND sop_uid = ?", (series, sop))
    before = file.read_bytes()
    done = command(spoilable, "audit")
    assert done.returncode == 3
    assert f"WRONG: seal {seal}:" in done.stdout
    assert study in done.stdout
    assert "WRONG: trigger instance_keeps_its_bytes: is missing" in done.stdout
    assert file.read_bytes() == before
    refused = command(spoilable, "accept", "w1", "--reason", "none", "--by", "nobody")
    assert (refused.returncode, "There is no key" in refused.stderr) == (2, True)


def test_each_run_leaves_a_signed_anchor_and_a_copy_of_what_changed(ran_twice: Path) -> None:
    """The anchor holds the last seal and the Merkle root, ssh-keygen checks its signature, and the copy is the manifest."""
    anchors = [path for path in own(ran_twice, "anchors") if path.suffix == ".json"]
    assert len(anchors) == 2 == len(own(ran_twice, "manifest"))
    newest = json.loads(anchors[-1].read_bytes())
    document = json.loads(command(ran_twice, "audit", "--json").stdout)
    assert (document["holds"], document["seals"], document["head"], document["root"]) == (True, newest["seal"], newest["head"], newest["root"])
    signature = anchors[-1].with_suffix(".json.sig")
    checked = subprocess.run(["ssh-keygen", "-Y", "check-novalidate", "-n", "pacs-migrate", "-s", str(signature)],
                             input=anchors[-1].read_bytes(), capture_output=True)  # fmt: skip
    assert checked.returncode == 0, checked.stderr
    copy = ran_twice / "copy.db"
    copy.write_bytes(gzip.decompress(own(ran_twice, "manifest")[-1].read_bytes()))
    with contextlib.closing(sqlite3.connect(copy)) as ours, contextlib.closing(sqlite3.connect(manifest_of(ran_twice))) as theirs:
        for table in ("event", "seal", "instance", "study"):
            assert ours.execute(f"SELECT * FROM {table}").fetchall() == theirs.execute(f"SELECT * FROM {table}").fetchall()
    copy.unlink()


def test_an_older_copy_in_the_manifests_place_is_found(spoilable: Path) -> None:
    """It holds in itself, and only the anchor of a later seal tells of the rest."""
    folder = spoilable
    for path in (folder / "manifests").iterdir():
        path.unlink()
    shutil.copy(folder / "older.db", manifest_of(folder))
    code, troubles = audit(folder)
    assert code == 3
    assert len(troubles) == 1 and "an older copy stands in its place" in troubles[0]
    assert command(folder, "audit", "--offline").returncode == 0


def test_a_spoilt_anchor_and_a_chain_written_anew_are_found(spoilable: Path) -> None:
    """An anchor whose hash is another than the chain's is named; so is one that is no anchor any more."""
    folder = spoilable
    first, _, last, _ = own(folder, "anchors")
    first.write_bytes(first.read_bytes()[:-20])
    said = json.loads(last.read_bytes())
    forged = said | {"head": "00" * 32, "snapshot": None}
    last.with_name(f"{said['seal']:012d}-{'00' * 6}.json").write_text(json.dumps(forged))
    last.write_text(json.dumps(said | {"root": "11" * 32}))
    code, troubles = audit(folder)
    assert code == 3
    assert {trouble.split(": ")[0] for trouble in troubles} == {f"anchor {first.stem}", f"anchor {last.stem}", f"anchor {said['seal']:012d}-{'00' * 6}"}


def test_signatures_of_anchors_are_checked(spoilable: Path) -> None:
    """With a list of signers each anchor has to be signed by one of them; without, a signature has to fit. Any changed byte is found."""
    folder, who = spoilable, str(spoilable / "signers")
    first, first_signature, last, last_signature = own(folder, "anchors")
    assert audit(folder, "--signers", who) == (0, [])
    assert "2 anchors are signed by compliance@hospital." in here(folder, "audit", "--signers", who)[1]
    assert "Whose keys have signed was not checked" in here(folder, "audit")[1]

    stranger = folder / "stranger"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(stranger)], check=True)
    (folder / "others").write_text(f"somebody@else {stranger.with_suffix('.pub').read_text()}")
    code, troubles = audit(folder, "--signers", str(folder / "others"))
    assert (code, len(troubles), all("does not name" in each for each in troubles)) == (3, 2, True)

    def spoilt(found: tuple[int, list[str]]) -> bool:
        return found[0] == 3 and [each.split(" over it")[0] for each in found[1]] == [f"anchor {last.stem}: its signature is no signature"]

    said = last.read_bytes()
    last.write_bytes(said.replace(b'"size_bytes": ', b'"size_bytes":  '))  # the same anchor in other bytes
    assert spoilt(audit(folder))
    last.write_bytes(said.replace(b'"test"', b'"tesT"'))  # as if it were another migration's
    assert spoilt(audit(folder))
    last.write_bytes(said)

    last_signature.unlink()
    assert audit(folder, "--signers", who) == (3, [f"anchor {last.stem}: is not signed"])
    assert (audit(folder), "1 anchor is not signed." in here(folder, "audit")[1]) == ((0, []), True)
    subprocess.run(["ssh-keygen", "-q", "-Y", "sign", "-f", str(stranger), "-n", "pacs-migrate", str(last)], check=True, capture_output=True)
    (found,) = audit(folder, "--signers", who)[1]
    assert found.startswith(f"anchor {last.stem}: its signature is by a key that signers does not name")
    last_signature.write_bytes(first_signature.read_bytes())
    assert audit(folder)[0] == 3
    last_signature.unlink()
    first_signature.unlink()
    assert audit(folder, "--signers", who) == (3, [f"anchor {path.stem}: is not signed" for path in (first, last)])


def test_signing_that_began_later_holds(spoilable: Path) -> None:
    """Anchors from before the first signed one need no signature: they are counted, and the chain of the signed one covers them."""
    _, first_signature, *_ = own(spoilable, "anchors")
    first_signature.unlink()
    done = command(spoilable, "audit", "--signers", str(spoilable / "signers"))
    assert (done.returncode, "1 anchor is not signed." in done.stdout) == (0, True), done.stdout


def test_a_key_that_cannot_sign_leaves_the_anchor_unsigned(tmp_path: Path) -> None:
    """A run whose key is no key ends as it would; its anchor stands without a signature, and a warning says so."""
    (tmp_path / "key").write_text("no key\n")
    with pacs(tmp_path, proof='signing_key = "key"', studies=1):
        done = command(tmp_path, "run")
    assert (done.returncode, "cannot sign" in done.stderr) == (0, True), done.stderr
    assert [path.suffix for path in own(tmp_path, "anchors")] == [".json"]


def test_a_manifest_that_is_gone_comes_back_from_the_newest_sound_copy(spoilable: Path) -> None:
    """A spoilt copy is passed over; that later anchors are lost is on record, and the run goes on to the end."""
    folder = spoilable
    refused = command(folder, "restore-manifest")
    assert refused.returncode == 2
    die(folder)
    assert "A migration named test has left" in command(folder, "check", "--json").stdout
    newest = own(folder, "manifest")[-1]
    newest.write_bytes(newest.read_bytes()[:-1] + b"?")
    restored = command(folder, "restore-manifest")
    assert restored.returncode == 0, restored.stderr
    assert f"Passed over: manifest/{newest.name}" in restored.stderr
    assert audit(folder) == (0, [])
    assert "the manifest was restored" in here(folder, "audit")[1]
    with pacs(folder, port=int((folder / "port").read_text())):
        assert command(folder, "retry").returncode == 0
        assert command(folder, "run").returncode == 0
    assert data_sets(folder) == truth(Archive(3))
    assert audit(folder) == (0, [])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda newest, older: older, "does not end with the seal of anchor"),
        (lambda newest, older: b"no archive", "cannot be unpacked"),
        (lambda newest, older: newest[: len(newest) // 2], "cannot be unpacked"),
        (lambda newest, older: newest[:100] + bytes(100) + newest[200:], "cannot be unpacked"),
        (lambda newest, older: gzip.compress(b"no manifest"), "is no manifest"),
    ],
    ids=["an older one", "no archive", "a part", "amid it", "something else"],
)  # fmt: skip
def test_a_copy_that_only_its_anchor_vouches_for_is_passed_over(spoilable: Path, spoil: Callable[[bytes, bytes], bytes], said: str) -> None:
    """Where whoever spoilt the newest copy wrote its hash into the anchor, the copy still has to be the manifest that ends with the anchor's seal."""
    *_, older, newest = own(spoilable, "manifest")
    content = spoil(newest.read_bytes(), older.read_bytes())
    anchor = next(path for path in own(spoilable, "anchors") if path.suffix == ".json" and newest.name in path.read_text())
    anchor.write_text(anchor.read_text().replace(hashlib.sha256(newest.read_bytes()).hexdigest(), hashlib.sha256(content).hexdigest()))
    newest.write_bytes(content)
    die(spoilable)
    restored = command(spoilable, "restore-manifest")
    assert restored.returncode == 0, restored.stderr
    assert f"Passed over: manifest/{newest.name}" in restored.stderr and said in restored.stderr


def test_who_begins_anew_by_mistake_is_told(spoilable: Path) -> None:
    """Without its manifest a run says that one of this name was there, and how it comes back; of the manifest that came back, and of its own next run, it does not."""
    die(spoilable)
    with pacs(spoilable, port=int((spoilable / "port").read_text()), proof='signing_key = "key"'):
        anew = command(spoilable, "run")
        again = command(spoilable, "run")
        die(spoilable)
        assert command(spoilable, "restore-manifest").returncode == 0
        back = command(spoilable, "run")
    assert [("restore-manifest" in done.stderr, done.returncode) for done in (anew, again, back)] == [(True, 0), (False, 0), (False, 0)], anew.stderr


def test_a_manifest_without_a_study_leaves_no_anchor(spoilable: Path) -> None:
    """Whoever begins anew by mistake, while the PACS is away, finds the old manifest's copy still the newest one, and it holds."""
    anchors = own(spoilable, "anchors")
    die(spoilable)
    assert command(spoilable, "run").returncode == 20  # the PACS has gone
    assert own(spoilable, "anchors") == anchors
    die(spoilable)
    assert command(spoilable, "restore-manifest").returncode == 0
    assert audit(spoilable) == (0, [])


def test_a_run_that_was_killed_and_lost_its_disk_goes_on_from_the_copy_made_on_the_way(tmp_path: Path) -> None:
    """Long runs copy the manifest while they go on; from such a copy the next run ends complete."""
    with pacs(tmp_path, "slow-answers=0.02", proof="snapshot_hours = 0.0001", studies=4):
        run = subprocess.Popen([sys.executable, "-m", "migrate", "run", "--config", str(tmp_path / "migrate.toml")], stderr=subprocess.DEVNULL)
        until(lambda: len(own(tmp_path, "anchors")) >= 2, 60, during=run)
        run.send_signal(signal.SIGKILL)
        run.wait()
        die(tmp_path)
        assert command(tmp_path, "restore-manifest").returncode == 0
        assert command(tmp_path, "run").returncode == 0
        assert data_sets(tmp_path) == truth(Archive(4))
    assert audit(tmp_path) == (0, [])
