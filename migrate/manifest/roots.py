"""The Merkle trees over what is proven: a root for each study, which is kept until something of the study moves, and one for the migration."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from migrate.evidence.merkle import EMPTY, Tree, leaf, path, root_of, study_entry
from migrate.manifest.file import telling_disk
from migrate.manifest.sealed import Row, rows_of
from migrate.manifest.store import Manifest
from migrate.model import InstanceState

_ROOTS = "SELECT study.id, uid, leaves, sha256 FROM study LEFT JOIN study_root ON study_id = study.id ORDER BY uid"
_NOT_KEPT = """
SELECT id, uid, (SELECT sum(verified) FROM series WHERE study_id = study.id) AS proven FROM study
WHERE id > ? AND NOT EXISTS (SELECT 1 FROM study_root WHERE study_id = study.id) AND proven > 0 ORDER BY id
"""
_AT_ONCE = 20_000  # instances a transaction, or one study: nobody else commits meanwhile


@dataclass(frozen=True, slots=True)
class Root:
    """The migration's Merkle root, and how many studies and instances are under it."""

    sha256: bytes
    studies: int
    instances: int


NO_ROOT = Root(EMPTY, 0, 0)


def entries(study: str, rows: list[Row], prefix: str) -> list[tuple[tuple[str, str, str], bytes]]:
    """The entries of a study's tree in their order, each with what it is sorted by."""
    return sorted(row.entry(study, prefix) for row in rows if row.state == InstanceState.VERIFIED)


def study_root(study: str, rows: list[Row], prefix: str) -> tuple[int, bytes]:
    """(leaves, root) of a study's tree; no leaves where nothing of it is proven."""
    found = entries(study, rows, prefix)
    return len(found), root_of([leaf(entry) for _, entry in found])


class KeptRoots:
    """The roots of studies of which none is kept, computed and kept, some in a transaction.

    They are left out of the seals, since they follow from what is sealed: `audit` compares them.
    """

    def __init__(self, manifest: Manifest, prefix: str) -> None:
        self._manifest, self._prefix, self._last = manifest, prefix, 0
        self.done = False

    def some(self) -> None:
        """Keep some more; `done` once none is left. Raises DiskFull, DiskFailing."""
        manifest = self._manifest
        with telling_disk(manifest.path), manifest.transaction():
            studies, instances = [], 0
            for number, uid, proven in manifest.execute(_NOT_KEPT, self._last):
                studies.append((number, uid))
                instances += proven
                if instances >= _AT_ONCE:
                    break
            manifest.connection.executemany(
                "INSERT INTO study_root(study_id, leaves, sha256) VALUES (?, ?, ?)",
                [(number, *study_root(uid, rows_of(manifest.connection, number), self._prefix)) for number, uid in studies],
            )
        manifest.checkpoint()
        self._last, self.done = studies[-1][0] if studies else self._last, not studies


def study_roots(connection: sqlite3.Connection, prefix: str) -> Iterator[tuple[str, int, bytes]]:
    """(study, leaves, root) of each study with proven instances, in the order of UIDs; what is not kept is computed."""
    for number, uid, leaves, root in connection.execute(_ROOTS):
        if leaves is None:
            leaves, root = study_root(uid, rows_of(connection, number), prefix)
        if leaves:
            yield uid, leaves, root


def migration_root(connection: sqlite3.Connection, prefix: str) -> Root:
    """The Merkle root over everything that is proven now."""
    tree, instances = Tree(), 0
    for study, leaves, root in study_roots(connection, prefix):
        tree.add(study_entry(study, leaves, root))
        instances += leaves
    return Root(tree.root(), tree.leaves, instances)


def inclusion_proofs(connection: sqlite3.Connection, sop: str, prefix: str) -> list[dict[str, Any]]:
    """An inclusion proof for each object proven under this SOP Instance UID: of other instances it holds nothing but hashes."""
    holders = dict(connection.execute(
        "SELECT DISTINCT study.uid, study.id FROM study JOIN series ON series.study_id = study.id JOIN instance ON series_id = series.id "
        "WHERE sop_uid = ?", (sop,)
    ).fetchall())  # fmt: skip
    if not holders:
        return []
    studies = [(uid, study_entry(uid, leaves, root)) for uid, leaves, root in study_roots(connection, prefix)]
    hashes = [leaf(entry) for _, entry in studies]
    root = root_of(hashes).hex()
    proofs = []
    for index, (study, in_migration) in enumerate(studies):
        if study not in holders:
            continue
        found = entries(study, rows_of(connection, holders[study]), prefix)
        leaves = [leaf(entry) for _, entry in found]
        for place, ((_, found_sop, _), entry) in enumerate(found):
            if found_sop == sop:
                proofs.append({
                    "leaf": entry.decode(), "index": place, "leaves": len(leaves), "path": [each.hex() for each in path(place, leaves)],
                    "study_leaf": in_migration.decode(), "study_index": index, "studies": len(hashes),
                    "study_path": [each.hex() for each in path(index, hashes)], "root": root,
                })  # fmt: skip
    return proofs
