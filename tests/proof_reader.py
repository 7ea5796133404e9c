"""docs/proof.md read independently: seals and inclusion proofs checked by code that has seen nothing of the package."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from pathlib import Path
from typing import Any


def escaped(value: object) -> str:
    return "\\N" if value is None else str(value).replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


def unquoted(literals: str) -> list[Any]:
    return list(sqlite3.connect(":memory:").execute(f"SELECT {literals}").fetchone())


def recomputed(file: Path) -> list[str]:
    """Every seal by docs/proof.md, written without a look at the package; hashes in hex."""
    database = sqlite3.connect(file)
    database.row_factory = sqlite3.Row
    lines: dict[int, list[str]] = {}
    for table, copy in (("instance", "''"), ("copy", "lower(hex(dataset_sha256))")):
        beside = "beside" if table == "instance" else "1"
        own = ("pixel_crc64", "(SELECT uid FROM uid_name WHERE id = sop_class_id)", "(SELECT uid FROM uid_name WHERE id = transfer_syntax_id)", "notes")
        pixel, sop_class, syntax, notes = own if table == "instance" else ("NULL",) * 4
        for row in database.execute(
            f"SELECT study.uid AS study, series.uid AS series, sop_uid AS sop, {copy} AS copy, {pixel} AS pixel, {sop_class} AS class, {syntax} AS syntax, "
            f"{notes} AS note, {beside} AS lies, {table}.* FROM {table} JOIN series ON series.id = series_id JOIN study ON study.id = study_id"
        ):
            begin = ["step", row["study"], row["series"], row["sop"], row["copy"]]
            pixels = None if row["pixel"] is None else f"{row['pixel'] % 2**64:016x}"
            if row["staged_seal"]:
                lines.setdefault(row["staged_seal"], []).append("\t".join(map(escaped, [
                    *begin, "staged", row["size_bytes"], row["dataset_sha256"].hex(), row["file_sha256"].hex(), f"{row['crc64nvme'] % 2**64:016x}",
                    pixels, row["class"], row["syntax"], row["note"], row["staged_at"]])))  # fmt: skip
            if row["stored_seal"]:
                lines.setdefault(row["stored_seal"], []).append("\t".join(map(escaped, [
                    *begin, "stored", row["stored_at"], row["version"], row["checksum"], row["lies"]])))  # fmt: skip
            if row["verified_seal"]:
                proof = {3: "attested", 4: "read_back"}[row["proof"]]
                lines.setdefault(row["verified_seal"], []).append("\t".join(map(escaped, [*begin, "verified", proof, row["verified_at"]])))
    for row in database.execute("SELECT * FROM event WHERE kind IN ('instance fell back', 'copy fell back', 'proof raised')"):
        values = unquoted(row["detail"])
        for step, at, count in (("staged", 3, 9), ("stored", 13, 4), ("verified", 18, 2)):
            if values[at] is not None:
                lines.setdefault(values[at], []).append("\t".join(map(escaped, [
                    "step", row["study_uid"], row["series_uid"], row["sop_uid"], values[2] or "", step, *values[at + 1 : at + 1 + count]])))  # fmt: skip
    heads, before, last = [], bytes(32), 0
    for seal in database.execute("SELECT seal.*, operator, host, version FROM seal LEFT JOIN run ON run.id = run_id ORDER BY id").fetchall():
        text = "\t".join(map(escaped, ["seal", seal["id"], seal["at"], seal["run_id"], seal["operator"], seal["host"], seal["version"]])) + "\n"
        for event in database.execute("SELECT * FROM event WHERE id > ? AND id <= ? ORDER BY id", (last, seal["last_event"])):
            text += "event\t" + json.dumps(list(event), separators=(",", ":")) + "\n"
        text += "".join(line + "\n" for line in sorted(lines.get(seal["id"], [])))
        before = hashlib.sha256(before + text.encode()).digest()
        heads.append(before.hex())
        last = seal["last_event"]
    database.close()
    return heads


def proof_holds(proof: dict[str, Any]) -> bool:
    """An inclusion proof by RFC 9162 2.1.3.2, for the image and then for its study."""

    def climb(entry: str, index: int, size: int, path: list[str]) -> str | None:
        number, last, root = index, size - 1, hashlib.sha256(b"\0" + entry.encode()).digest()
        for beside in map(bytes.fromhex, path):
            if last == 0:
                return None
            if number % 2 or number == last:
                root = hashlib.sha256(b"\1" + beside + root).digest()
                while number % 2 == 0 and number:
                    number, last = number // 2, last // 2
            else:
                root = hashlib.sha256(b"\1" + root + beside).digest()
            number, last = number // 2, last // 2
        return root.hex() if last == 0 else None

    study, leaves, root = json.loads(proof["study_leaf"])
    return (
        json.loads(proof["leaf"])[0] == study and leaves == proof["leaves"]
        and climb(proof["leaf"], proof["index"], proof["leaves"], proof["path"]) == root
        and climb(proof["study_leaf"], proof["study_index"], proof["studies"], proof["study_path"]) == proof["root"]
    )  # fmt: skip
