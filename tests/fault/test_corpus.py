"""Kept corpora of bad PDUs and bad data sets, as they are and changed at random: nothing raises, hangs or stays.

`make fuzz` changes them as often as asked (FUZZ, FUZZ_SEED); what breaks something is written into `tests/fault/corpus/` and stays there.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import socket
import struct
import time
from pathlib import Path

import pytest

from migrate.dicom import dimse
from migrate.dicom.framing import DEFLATED_LE, EXPLICIT_BE, EXPLICIT_LE, IMPLICIT_LE
from migrate.dicom.scanner import scan
from migrate.dicom.upper_layer import Association
from tests.fault.test_abuse import OFFER, REQUEST, Bench, connected
from tests.fault.test_abuse import bench as bench

CORPUS = Path(__file__).with_name("corpus")
PDUS = sorted((CORPUS / "pdu").glob("*.bin"))
DATA_SETS = sorted((CORPUS / "dataset").glob("*.bin"))
IDENTIFIERS = sorted((CORPUS / "identifier").glob("*.bin"))
SYNTAXES = (EXPLICIT_LE, IMPLICIT_LE, EXPLICIT_BE, DEFLATED_LE, "1.2.840.10008.1.2.4.50")
ROUNDS, SEED = int(os.environ.get("FUZZ", 1500)), int(os.environ.get("FUZZ_SEED", 1))
LENGTHS = (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)


def changed(dice: random.Random, seeds: list[bytes]) -> bytes:
    """One of the seeds with some bytes turned, a length in it replaced, cut off, or gone on with another one."""
    raw = bytearray(dice.choice(seeds)[:20_000])
    for _ in range(dice.randint(1, 4)):
        at, what = dice.randrange(len(raw) + 1), dice.randrange(5)
        if what == 0 and raw:
            raw[at % len(raw)] ^= 1 << dice.randrange(8)
        elif what == 1:
            raw[at : at + 4] = struct.pack(dice.choice("<>") + "L", dice.choice(LENGTHS))
        elif what == 2:
            del raw[at:]
        elif what == 3:
            raw[at:at] = dice.choice(seeds)[: dice.randrange(400)]
        else:
            del raw[at : at + dice.randrange(20)]
    return bytes(raw)


def keep(kind: str, raw: bytes) -> None:
    """What broke something belongs to the corpus from now on."""
    (CORPUS / kind / f"found-{hash(raw) & 0xFFFFFFFF:08x}.bin").write_bytes(raw)


def scanned(raw: bytes) -> None:
    for syntax in SYNTAXES:
        began = time.process_time()
        found = scan(memoryview(raw), 0, syntax)
        assert time.process_time() - began < 2, syntax
        assert found.error is None or found.error.isprintable()


def test_data_sets_are_scanned() -> None:
    """Every seed in every transfer syntax, and as many changed ones as are asked for: an answer, never an exception or a hang."""
    seeds = [path.read_bytes() for path in DATA_SETS]
    dice = random.Random(SEED)
    for raw in (*seeds, *(changed(dice, seeds) for _ in range(ROUNDS))):
        try:
            scanned(raw)
        except BaseException:
            keep("dataset", raw)
            raise


def test_rows_are_decoded() -> None:
    """Every seed of a C-FIND row in both syntaxes: decoded, or refused as what it is."""
    refused = 0
    for raw in [path.read_bytes() for path in IDENTIFIERS]:
        for syntax in (EXPLICIT_LE, IMPLICIT_LE):
            try:
                dimse.decode_identifier(raw, syntax)
            except dimse.BadIdentifier:
                refused += 1
    assert 0 < refused < 2 * len(IDENTIFIERS)


def test_data_sets_are_received(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """Every seed by C-STORE is kept or quarantined and answered, in one association that lives on; no file is anywhere else."""
    association = Association.request(bench.receiver.settings.host, bench.port, calling="F", called="X", contexts=[OFFER], timeout_s=10)
    before = len(bench.got)
    for path in DATA_SETS:
        command = {dimse.COMMAND_FIELD: dimse.C_STORE, dimse.MESSAGE_ID: 1, dimse.DATASET_TYPE: 1, dimse.PRIORITY: 0}
        association.send_command(1, dimse.encode_command({**command, dimse.SOP_CLASS: OFFER.abstract_syntax, dimse.SOP_INSTANCE: "1.2.3"}))
        association.send_dataset(1, iter((path.read_bytes(),)))
        answer = dimse.receive(association)
        assert answer is not None and answer.command.number(dimse.STATUS) == dimse.SUCCESS, path.name
    association.release()
    got = {path.name: received for path, received in zip(DATA_SETS, bench.got[before:], strict=True)}
    assert got["sound.bin"].quarantine is None
    for name in ("truncated.bin", "length-4gib.bin", "no-uids.bin", "uid-path.bin", "sequence-without-end.bin", "fragments-without-end.bin"):
        assert got[name].quarantine is not None, name
    bench.nothing_stays()
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_pdus_do_no_harm(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """Every seed, and some changed ones, before an association and within one: no defect, nothing stays, the next is served."""
    seeds = [path.read_bytes() for path in PDUS]
    dice = random.Random(SEED)
    for number, raw in enumerate((*seeds, *(changed(dice, seeds) for _ in range(ROUNDS // 10)))):
        with connected(bench) as sock, contextlib.suppress(OSError):
            sock.sendall(REQUEST + raw if number % 2 else raw)
            sock.shutdown(socket.SHUT_WR)
        defects = [record for record in caplog.records if record.levelno >= logging.ERROR]
        if defects:
            keep("pdu", raw)
        assert defects == []
    bench.served()
    bench.nothing_stays()
