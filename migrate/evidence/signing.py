"""Signatures (SSHSIG, by ssh-keygen) and time stamps (RFC 3161, by openssl) over a dossier, and their check; signatures of anchors, too.

Both programs are called as they are: what this module says, anybody can repeat on a command line without it.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from migrate.errors import DiskFailing, ProgramMissing, UsageError

NAMESPACE = "pacs-migrate"
"""What `ssh-keygen -Y` takes with -n, so that a signature for another purpose never passes for one of a dossier."""

CONTENTS, SIGNATURE, REQUEST, ANSWER = "contents.sha256", "dossier.sig", "dossier.tsq", "dossier.tsr"
_BESIDE = {CONTENTS, SIGNATURE, REQUEST, ANSWER}
_PACKAGES = {"ssh-keygen": "the OpenSSH client, 8.1 or later", "openssl": "OpenSSL"}


def signature(content: bytes, key: Path) -> bytes:
    """The SSHSIG over `content`, armored. `key`: a private key, or a public key whose private half an SSH agent holds.

    Raises UsageError if the key cannot sign, ProgramMissing.
    """
    if not key.is_file():
        raise UsageError(f"There is no key {key}.", hint="`ssh-keygen -t ed25519 -f FILE` makes one; with an agent, name the public key's file.")
    done = _run(["ssh-keygen", "-Y", "sign", "-f", str(key), "-n", NAMESPACE], content)
    if done.returncode or not done.stdout.startswith(b"-----BEGIN SSH SIGNATURE-----"):
        raise UsageError(f"{key} cannot sign: {_said(done)}.", hint="Is it a key, unlocked or in the agent (`ssh-add -l`)?")
    return done.stdout


def sign(folder: Path, key: Path) -> Path:
    """Sign a dossier once, after its files were found as listed. Raises UsageError, ProgramMissing, DiskFailing."""
    content = _contents(folder)
    if (folder / SIGNATURE).exists():
        raise UsageError(f"{folder} is signed already.", hint="`verify-signature` checks it. A second signature needs a copy of the folder.")
    wrong = differences(folder)
    if wrong:
        raise UsageError(f"{folder} is not as it was written, and is not signed: {'; '.join(wrong[:20])}.", hint="Write it anew.")
    made = signature(content, key)
    _write(folder / SIGNATURE, made)
    return folder / SIGNATURE


@dataclass
class Checked:
    """What was found: `wrong` is empty if all that could be checked holds; `signer` is the name in the list of signers."""

    signer: str | None = None
    key: str = ""
    time_stamp: str | None = None
    wrong: list[str] = field(default_factory=list)


def verify(folder: Path, signers: Path | None, time_stamp_ca: Path | None = None) -> Checked:
    """Check a dossier's files, its signature and its time stamp. `signers`: lines as in ssh-keygen(1), ALLOWED SIGNERS.

    Without `signers` it stays open whose key it is: `signer` is None then. Raises UsageError, ProgramMissing.
    """
    content, checked = _contents(folder), Checked()
    checked.wrong += differences(folder)
    if not (folder / SIGNATURE).is_file():
        raise UsageError(f"{folder} is not signed.", hint="`pacs-migrate sign DIR --key FILE` signs it.")
    try:
        checked.signer, checked.key = signed_by(content, folder / SIGNATURE, signers)
    except ValueError as error:
        checked.wrong.append(f"{SIGNATURE} {error}")
    if time_stamp_ca is not None:
        _check_time(folder, time_stamp_ca, checked)
    return checked


def signed_by(content: bytes, signature: Path, signers: Path | None) -> tuple[str | None, str]:
    """(whose signature over `content` this is, by which key). Without `signers` it stays open whose key that is: None.

    Raises ValueError where it is none, or none of theirs, which says what it is instead; UsageError, ProgramMissing.
    """
    if signers is not None and not signers.is_file():
        raise UsageError(f"There is no list of signers {signers}.", hint="A line is: NAME ssh-ed25519 AAAA...; see ssh-keygen(1).")
    path = str(signature)
    done = _run(["ssh-keygen", "-Y", "check-novalidate", "-n", NAMESPACE, "-s", path], content)
    key = done.stdout.decode("utf-8", "replace").strip().rpartition(" with ")[2]
    if done.returncode:
        raise ValueError(f"is no signature over it: {_said(done)}")
    if signers is None:
        return None, key
    named = _run(["ssh-keygen", "-Y", "find-principals", "-s", path, "-f", str(signers)])
    name = (named.stdout.decode("utf-8", "replace").splitlines() or [""])[0]
    verify = ["ssh-keygen", "-Y", "verify", "-f", str(signers), "-I", name, "-n", NAMESPACE, "-s", path]
    if named.returncode or not name or _run(verify, content).returncode:
        raise ValueError(f"is by a key that {signers.name} does not name for this: {key}")
    return name, key


def differences(folder: Path) -> list[str]:
    """Each file of a dossier that differs, is missing, or is not listed; objects linked below bag/data/ are no part of it."""
    listed: dict[str, str] = {}
    wrong = []
    for number, line in enumerate(_contents(folder).decode("utf-8", "replace").splitlines(), 1):
        digest, mark, name = line.partition("  ")
        if not mark or len(digest) != 64 or name.startswith("/") or ".." in name.split("/"):
            wrong.append(f"{CONTENTS} line {number} is no such line")
        else:
            listed[name] = digest
    for name, digest in listed.items():
        path = folder / name
        if not path.is_file():
            wrong.append(f"{name} is missing")
        elif _sha256(path) != digest:
            wrong.append(f"{name} differs from {CONTENTS}")
    for parent, folders, names in os.walk(folder):
        here = Path(parent).relative_to(folder).as_posix()
        folders[:] = [] if here == "bag/data" else folders
        found = {name if here == "." else f"{here}/{name}" for name in names} if here != "bag/data" else set()
        wrong += [f"{name} is not listed in {CONTENTS}" for name in sorted(found - set(listed) - _BESIDE)]
    return wrong


def time_stamp_request(folder: Path) -> Path:
    """Write the question to a time stamping authority (RFC 3161) about the signature. Raises UsageError, ProgramMissing, DiskFailing."""
    if not (folder / SIGNATURE).is_file():
        raise UsageError(f"{folder} is not signed.", hint="Sign it first: the time stamp is of the signature.")
    done = _run(["openssl", "ts", "-query", "-data", str(folder / SIGNATURE), "-sha256", "-cert"])
    if done.returncode or not done.stdout:
        raise UsageError(f"openssl made no request: {_said(done)}.", hint="Does `openssl ts` work on this machine?")
    _write(folder / REQUEST, done.stdout)
    return folder / REQUEST


def time_stamp_answer(folder: Path, answer: Path, ca: Path) -> Path:
    """Check an authority's answer and keep it in the dossier. `ca`: its certificates, PEM. Raises UsageError, ProgramMissing, DiskFailing."""
    if not answer.is_file():
        raise UsageError(f"There is no answer {answer}.", hint="It is what the authority sent for the request.")
    done = _time_verified(folder, answer, ca)
    if done.returncode:
        raise UsageError(f"{answer} does not hold for this signature: {_said(done)}.", hint="Is it the answer to this dossier's request, and the right CA?")
    _write(folder / ANSWER, answer.read_bytes())
    return folder / ANSWER


def _check_time(folder: Path, ca: Path, checked: Checked) -> None:
    if not (folder / ANSWER).is_file():
        checked.wrong.append(f"there is no time stamp {ANSWER}")
        return
    done = _time_verified(folder, folder / ANSWER, ca)
    if done.returncode:
        checked.wrong.append(f"{ANSWER} does not hold for {SIGNATURE}: {_said(done)}")
        return
    text = _run(["openssl", "ts", "-reply", "-in", str(folder / ANSWER), "-text"]).stdout.decode("utf-8", "replace")
    checked.time_stamp = next((line.partition(": ")[2].strip() for line in text.splitlines() if line.startswith("Time stamp:")), "a time that openssl does not name")


def _time_verified(folder: Path, answer: Path, ca: Path) -> subprocess.CompletedProcess[bytes]:
    if not ca.is_file():
        raise UsageError(f"There is no file of certificates {ca}.", hint="The time stamping authority publishes them, as PEM.")
    return _run(["openssl", "ts", "-verify", "-data", str(folder / SIGNATURE), "-in", str(answer), "-CAfile", str(ca)])


def _contents(folder: Path) -> bytes:
    try:
        return (folder / CONTENTS).read_bytes()
    except OSError as error:
        raise UsageError(f"{folder} is no dossier: {CONTENTS} cannot be read.", hint="`pacs-migrate report --dossier DIR` writes one.") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _run(command: Sequence[str], content: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run it; without `content` it reads nothing. A passphrase is asked for on the terminal."""
    try:
        return subprocess.run(command, input=b"" if content is None else content, capture_output=True, check=False)
    except FileNotFoundError as error:
        raise ProgramMissing(f"The program {command[0]} is not installed.", hint=f"Install {_PACKAGES[command[0]]}.") from error


def _said(done: subprocess.CompletedProcess[bytes]) -> str:
    """The program's last line, without its end; of an error of openssl's, the reason."""
    lines = [line.strip() for line in (done.stderr or done.stdout).decode("utf-8", "replace").splitlines()]
    last = next((line for line in reversed(lines) if line and not line.startswith("Using configuration")), f"it ended with {done.returncode}")
    if ":error:" in last:  # thread:error:code:library:function:reason:file:line:more
        *_, reason, _, _, more = last.split(":", 8)[-4:]
        last = f"{reason}: {more}" if more else reason
    return last.rstrip(".")


def _write(path: Path, content: bytes) -> None:
    try:
        temporary = path.with_name(f".{path.name}.new")
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        raise DiskFailing(f"{path} cannot be written: {error.strerror}.", hint="Check the folder's rights and the disk.") from error
