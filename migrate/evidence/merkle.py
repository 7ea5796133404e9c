"""Merkle trees as in RFC 9162 2.1: leaf SHA-256(0x00 || entry), node SHA-256(0x01 || left || right), the empty tree SHA-256 of nothing.

A tree for each study over its proven instances, and one for the migration over its studies. docs/proof.md has the entries.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

EMPTY = hashlib.sha256(b"").digest()


def leaf(entry: bytes) -> bytes:
    """The hash of an entry."""
    return hashlib.sha256(b"\0" + entry).digest()


def node(left: bytes, right: bytes) -> bytes:
    """The hash of two subtrees."""
    return hashlib.sha256(b"\1" + left + right).digest()


def entry(values: Sequence[object]) -> bytes:
    """Values as an entry: a JSON array in ASCII without spaces."""
    return json.dumps(list(values), separators=(",", ":")).encode("ascii")


def instance_entry(study: str, series: str, sop: str, size_bytes: int, dataset_sha256: str, file_sha256: str, key: str,
                   version: str | None, proof: str) -> bytes:  # fmt: skip
    """The entry of a proven instance or copy in its study's tree, which is in the order of series, SOP Instance UID, key."""
    return entry((study, series, sop, size_bytes, dataset_sha256, file_sha256, key, version, proof))


def study_entry(study: str, leaves: int, root: bytes) -> bytes:
    """The entry of a study with proven instances in the migration's tree, which is in the order of Study Instance UIDs."""
    return entry((study, leaves, root.hex()))


class Tree:
    """A tree whose entries come one after the other; holds as many hashes as the tree is high."""

    def __init__(self) -> None:
        self.leaves = 0
        self._peaks: list[tuple[int, bytes]] = []  # whole subtrees from the left: (leaves, hash)

    def add(self, entry: bytes) -> None:
        """Append an entry."""
        self.leaves += 1
        size, right = 1, leaf(entry)
        while self._peaks and self._peaks[-1][0] == size:
            right = node(self._peaks.pop()[1], right)
            size *= 2
        self._peaks.append((size, right))

    def root(self) -> bytes:
        """The hash of the tree as it stands."""
        if not self._peaks:
            return EMPTY
        root = self._peaks[-1][1]
        for _, left in reversed(self._peaks[:-1]):
            root = node(left, root)
        return root


def root_of(hashes: Sequence[bytes]) -> bytes:
    """The root over the hashes of entries."""
    if not hashes:
        return EMPTY
    level = list(hashes)
    while len(level) > 1:
        pairs = [node(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
        level = pairs + level[len(pairs) * 2 :]
    return level[0]


def path(index: int, hashes: Sequence[bytes]) -> list[bytes]:
    """PATH(index, hashes) of RFC 9162 2.1.3.1: what the hash of that entry is joined with, from the leaf to the root."""
    found: list[bytes] = []
    level, at = list(hashes), index
    while len(level) > 1:
        beside = at ^ 1
        if beside < len(level):
            found.append(level[beside])
        pairs = [node(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
        level = pairs + level[len(pairs) * 2 :]
        at //= 2
    return found
