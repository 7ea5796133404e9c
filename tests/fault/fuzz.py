"""Coverage-guided fuzzing of what reads foreign bytes, by atheris: `python -m tests.fault.fuzz KIND [libFuzzer's options]`.

Begins with `tests/fault/corpus/KIND`; what reaches new code lands in `build/fuzz/KIND`, and input that breaks something beside it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris  # type: ignore[import-not-found,import-untyped,unused-ignore]

with atheris.instrument_imports(include=["migrate"]):
    import migrate.config
    from migrate.config import ReceiverSettings
    from migrate.dicom import dimse, negotiation
    from migrate.dicom.framing import DEFLATED_LE, EXPLICIT_BE, EXPLICIT_LE, IMPLICIT_LE, Limits
    from migrate.dicom.receiver import ReceiverLimits
    from migrate.dicom.scanner import scan
    from migrate.dicom.storing import Session
    from migrate.dicom.upper_layer import Association, ProposedContext
    from migrate.dicom.wire import UpperLayerError
    from migrate.errors import ConfigError
    from migrate.model import Received
    from migrate.staging.area import Staging

CORPUS, FOUND = Path(__file__).with_name("corpus"), Path("build") / "fuzz"
SYNTAXES = (EXPLICIT_LE, IMPLICIT_LE, EXPLICIT_BE, DEFLATED_LE, "1.2.840.10008.1.2.4.50")
OFFER = ProposedContext("1.2.840.10008.5.1.4.1.1.2", (EXPLICIT_LE,))
REQUEST = negotiation.encode_request("FUZZ", "X", negotiation.numbered((OFFER,)), 16384)
IMPATIENT = ReceiverLimits(idle_s=0.2, dataset_s=1, negotiate_s=0.2)
LIMITS = Limits(inflated_bytes=1 << 20)
_MOST_BYTES = 100_000  # what a pair of sockets holds without anybody reading


def dataset(raw: bytes) -> None:
    """The scanner, in each family of transfer syntaxes."""
    for syntax in SYNTAXES:
        found = scan(memoryview(raw), 0, syntax, limits=LIMITS)
        assert found.error is None or found.error.isprintable()


def identifier(raw: bytes) -> None:
    """The rows of a C-FIND answer."""
    for syntax in (EXPLICIT_LE, IMPLICIT_LE):
        with contextlib.suppress(dimse.BadIdentifier):
            dimse.decode_identifier(raw, syntax)


def toml(raw: bytes) -> None:
    """A migrate.toml: read, or refused with sentences that can be printed."""
    path = _folder / "migrate.toml"
    path.write_bytes(raw)
    try:
        migrate.config.load(path)
    except ConfigError as refused:
        str(refused).encode()


def pdu(raw: bytes) -> None:
    """The receiver's side of an association: what comes before it is open, what comes then, and what answers ours."""
    for decode in (negotiation.decode_request, negotiation.decode_accept, negotiation.decode_reject):
        with contextlib.suppress(UpperLayerError):
            decode(raw[6:])
    for said in (raw, REQUEST + raw):
        _spoken(said[:_MOST_BYTES])
    assert not [path for path in (_folder / "staging" / "in").rglob("*") if path.is_file()]


class _End(socket.socket):
    """One of a pair of sockets that know no addresses: TCP's ports would run out in seconds."""

    def getpeername(self) -> tuple[str, int]:
        return "127.0.0.1", 0


def _spoken(said: bytes) -> None:
    ours, theirs = (_End(fileno=end.detach()) for end in socket.socketpair())
    session: Session | None = None
    with ours, theirs:
        theirs.sendall(said)
        theirs.shutdown(socket.SHUT_WR)
        try:
            association = Association.accept(ours, choose=lambda offer: next(iter(offer.transfer_syntaxes), None), negotiate_s=0.2, timeout_s=0.2)
            session = Session(ReceiverSettings(), IMPATIENT, _staging, _thrown_away, association)
            session.run()
        except (UpperLayerError, dimse.BadCommand):
            pass
        finally:
            if session is not None:
                session.discard()


def _thrown_away(received: Received) -> None:
    received.path.unlink()


KINDS: dict[str, Callable[[bytes], None]] = {each.__name__: each for each in (dataset, identifier, pdu, toml)}

if __name__ == "__main__":
    logging.disable()
    kind = sys.argv[1]
    found = FOUND / kind
    found.mkdir(parents=True, exist_ok=True)
    _folder = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    _staging = Staging(_folder / "staging", reserve_bytes=1)
    corpora = [str(found), *(str(folder) for folder in (CORPUS / kind,) if folder.is_dir())]
    limits = [f"-artifact_prefix={found}-", "-timeout=5", "-rss_limit_mb=600", "-max_len=4096"]
    try:
        atheris.Setup([sys.argv[0], *limits, *sys.argv[2:], *corpora], KINDS[kind])
        atheris.Fuzz()
    finally:
        shutil.rmtree(_folder, ignore_errors=True)
