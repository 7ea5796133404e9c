"""Signatures and time stamps of a dossier, by ssh-keygen and openssl themselves."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from migrate.errors import ProgramMissing, UsageError
from migrate.evidence import signing
from migrate.reports import write_dossier
from tests.filled import fresh_manifest, migrated, read, swept

SIGNER = "compliance@hospital"


@pytest.fixture
def dossier(tmp_path: Path) -> Path:
    """The dossier of a manifest with one study."""
    with fresh_manifest(tmp_path) as manifest:
        swept(manifest, "1.1")
        migrated(manifest, "1.1", "1.1.1.1")
        page: Path = read(manifest, write_dossier, tmp_path / "dossier", prefix="")
    return page.parent


def new_key(folder: Path, name: str = "key") -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(folder / name)], check=True)
    return folder / name


def signers(key: Path) -> Path:
    path = key.with_name("signers")
    path.write_text(f"{SIGNER} {key.with_suffix('.pub').read_text()}")
    return path


def ssh_keygen_says(dossier: Path, who: Path) -> int:
    """What `ssh-keygen -Y verify` returns, without anything of ours."""
    command = ["ssh-keygen", "-Y", "verify", "-f", str(who), "-I", SIGNER, "-n", "pacs-migrate", "-s", "dossier.sig"]
    with (dossier / "contents.sha256").open("rb") as content:
        return subprocess.run(command, cwd=dossier, stdin=content, capture_output=True).returncode


def cli(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "migrate", *map(str, words)], capture_output=True, text=True, env=os.environ | environment)


def test_a_signed_dossier_is_checked_by_ssh_keygen(dossier: Path, tmp_path: Path) -> None:
    """sign and verify-signature agree with `ssh-keygen -Y verify`; without a list of signers it stays open whose key it is."""
    key = new_key(tmp_path)
    done = cli("sign", dossier, "--key", key)
    assert done.returncode == 0, done.stderr
    assert ssh_keygen_says(dossier, signers(key)) == 0
    done = cli("verify-signature", dossier, "--signers", signers(key))
    assert (done.returncode, SIGNER in done.stdout, "SHA256:" in done.stdout) == (0, True, True), done.stdout
    done = cli("verify-signature", dossier)
    assert done.returncode == 3 and "Whose key" in done.stdout
    with pytest.raises(UsageError, match="signed already"):
        signing.sign(dossier, key)


def test_a_key_that_only_an_agent_holds_signs(dossier: Path, tmp_path: Path) -> None:
    """With the public key's file, the agent signs; the private key is nowhere on the disk."""
    key = new_key(tmp_path)
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(tmp_path / "agent")], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert agent.stdout is not None and agent.stdout.readline()  # it says where it listens once it does
        environment = {"SSH_AUTH_SOCK": str(tmp_path / "agent")}
        subprocess.run(["ssh-add", "-q", str(key)], env=os.environ | environment, check=True)
        key.unlink()
        done = cli("sign", dossier, "--key", key.with_suffix(".pub"), **environment)
    finally:
        agent.terminate()
        agent.communicate()
    assert done.returncode == 0, done.stderr
    assert ssh_keygen_says(dossier, signers(key)) == 0
    assert signing.verify(dossier, signers(key)).wrong == []


def test_what_was_changed_after_signing_is_named(dossier: Path, tmp_path: Path) -> None:
    """A changed, a missing and an added file, changed contents.sha256, a changed signature and another's key are told apart."""
    key = new_key(tmp_path)
    signing.sign(dossier, key)

    def wrong(change: str, content: bytes | None) -> list[str]:
        path = dossier / change
        before = path.read_bytes() if path.exists() else None
        path.unlink() if content is None else path.write_bytes(content)
        found = signing.verify(dossier, signers(key)).wrong
        path.unlink(missing_ok=True)
        if before is not None:
            path.write_bytes(before)
        return found

    sums, table = (dossier / "contents.sha256").read_bytes(), (dossier / "studies.csv").read_bytes()
    assert wrong("studies.csv", table.replace(b"migrated", b"accepted")) == ["studies.csv differs from contents.sha256"]
    assert wrong("bag/bagit.txt", None) == ["bag/bagit.txt is missing"]
    assert wrong("more.csv", b"") == ["more.csv is not listed in contents.sha256"]
    assert wrong("bag/data/object.dcm", b"linked here for bagit.py") == []
    assert "dossier.sig is no signature over it" in wrong("contents.sha256", sums[: sums.rindex(b"\n", 0, -1) + 1])[-1]
    lines = (dossier / "dossier.sig").read_text().splitlines()
    lines[-3] = lines[-3][::-1]
    assert "dossier.sig is no signature over it" in wrong("dossier.sig", "\n".join(lines).encode())[0]
    assert wrong("dossier.sig", signing.signature(sums, new_key(tmp_path, "other")))[0].startswith("dossier.sig is by a key that signers does not name")
    assert signing.verify(dossier, signers(key)).wrong == []


def test_a_spoilt_dossier_is_not_signed(dossier: Path, tmp_path: Path) -> None:
    """What is not as it was written gets no signature, and neither does a folder that is no dossier."""
    (dossier / "report.json").write_text("{}")
    with pytest.raises(UsageError, match=r"report\.json differs"):
        signing.sign(dossier, new_key(tmp_path))
    with pytest.raises(UsageError, match="no dossier"):
        signing.sign(tmp_path, tmp_path / "key")
    assert not (dossier / "dossier.sig").exists()


def test_a_missing_program_and_a_useless_key_are_said(dossier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is no key is a mistake of the user; a machine without ssh-keygen says what to install."""
    (tmp_path / "nokey").write_text("hello")
    with pytest.raises(UsageError, match="cannot sign"):
        signing.sign(dossier, tmp_path / "nokey")
    key = new_key(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ProgramMissing, match="ssh-keygen") as caught:
        signing.sign(dossier, key)
    assert "OpenSSH" in caught.value.hint


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A time stamping authority of openssl's: `ca.pem`, `tsa.key`, `tsa.cnf`."""
    folder = tmp_path_factory.mktemp("authority")
    (folder / "tsa.cnf").write_text(
        f"[tsa]\ndefault_tsa = t\n[t]\nserial = {folder}/serial\nsigner_cert = {folder}/ca.pem\nsigner_key = {folder}/tsa.key\n"
        "signer_digest = sha256\ndefault_policy = 1.2.3\ndigests = sha256\n"
    )
    (folder / "serial").write_text("01\n")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", str(folder / "tsa.key"),
                    "-out", str(folder / "ca.pem"), "-subj", "/CN=authority", "-days", "2", "-addext", "extendedKeyUsage=critical,timeStamping",
                    ], check=True, capture_output=True)  # fmt: skip
    return folder


def test_a_time_stamp_is_asked_for_and_checked_offline(dossier: Path, tmp_path: Path, authority: Path) -> None:
    """Request and answer are files; an answer for another signature is refused, and openssl itself agrees with what is kept."""
    key = new_key(tmp_path)
    signing.sign(dossier, key)
    done = cli("sign", dossier, "--time-stamp-request")
    assert done.returncode == 0, done.stderr
    answer = tmp_path / "answer.tsr"
    subprocess.run(["openssl", "ts", "-reply", "-config", str(authority / "tsa.cnf"), "-queryfile", str(dossier / "dossier.tsq"), "-out", str(answer)],
                   check=True, capture_output=True)  # fmt: skip
    done = cli("sign", dossier, "--time-stamp-answer", answer, "--time-stamp-ca", authority / "ca.pem")
    assert done.returncode == 0, done.stderr
    checked = signing.verify(dossier, signers(key), authority / "ca.pem")
    assert (checked.wrong, checked.signer) == ([], SIGNER) and "GMT" in (checked.time_stamp or "")
    theirs = ["openssl", "ts", "-verify", "-data", "dossier.sig", "-in", "dossier.tsr", "-CAfile", str(authority / "ca.pem")]
    assert subprocess.run(theirs, cwd=dossier, capture_output=True).returncode == 0
    shutil.copy(tmp_path / "signers", dossier / "dossier.sig")
    with pytest.raises(UsageError, match="does not hold"):
        signing.time_stamp_answer(dossier, answer, authority / "ca.pem")


def answered(authority: Path, request: Path, answer: Path) -> Path:
    """What the authority says to a request, also if that is no."""
    subprocess.run(["openssl", "ts", "-reply", "-config", str(authority / "tsa.cnf"), "-queryfile", str(request), "-out", str(answer)], capture_output=True)
    return answer


def test_a_wrong_answer_of_an_authority_is_refused_and_not_kept(dossier: Path, tmp_path: Path, authority: Path) -> None:
    """For another signature, refused by the authority, by one that the CA does not name, cut short, empty, the token alone, without the certificate: each by its reason."""
    signing.sign(dossier, new_key(tmp_path))
    request = signing.time_stamp_request(dossier)
    good = answered(authority, request, tmp_path / "good")
    for name, what in (("other", ["-data", str(dossier / "contents.sha256"), "-sha256", "-cert"]), ("refused", ["-data", str(dossier / "dossier.sig"), "-sha512"]),
                       ("bare", ["-data", str(dossier / "dossier.sig"), "-sha256"])):  # fmt: skip
        subprocess.run(["openssl", "ts", "-query", *what, "-out", str(tmp_path / f"{name}.tsq")], check=True, capture_output=True)
        answered(authority, tmp_path / f"{name}.tsq", tmp_path / name)
    (tmp_path / "cut").write_bytes(good.read_bytes()[:300])
    (tmp_path / "empty").write_bytes(b"")
    subprocess.run(["openssl", "ts", "-reply", "-in", str(good), "-token_out", "-out", str(tmp_path / "token")], check=True, capture_output=True)
    stranger = subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "/dev/null",
                               "-subj", "/CN=stranger", "-days", "2"], check=True, capture_output=True).stdout  # fmt: skip
    (tmp_path / "stranger.pem").write_bytes(stranger)
    for name, reason in (("other", "message imprint mismatch"), ("refused", "status text: Message digest algorithm is not supported"), ("cut", "not enough data"),
                         ("empty", "."), ("token", "nested asn1 error"), ("bare", "signer certificate not found"), ("good", "certificate verify error")):  # fmt: skip
        ca = tmp_path / "stranger.pem" if name == "good" else authority / "ca.pem"
        done = cli("sign", dossier, "--time-stamp-answer", tmp_path / name, "--time-stamp-ca", ca)
        assert (done.returncode, reason in done.stderr, "routines" in done.stderr, (dossier / "dossier.tsr").exists()) == (2, True, False, False), (name, done.stderr)
