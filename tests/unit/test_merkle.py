"""Merkle trees against the definitions of RFC 9162, written down once more as they stand there."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from migrate.evidence.merkle import EMPTY, Tree, leaf, node, path, root_of


def defined_root(entries: list[bytes]) -> bytes:
    """MTH of RFC 9162 2.1.1."""
    if not entries:
        return hashlib.sha256().digest()
    if len(entries) == 1:
        return hashlib.sha256(b"\x00" + entries[0]).digest()
    split = 1 << (len(entries) - 1).bit_length() - 1
    return hashlib.sha256(b"\x01" + defined_root(entries[:split]) + defined_root(entries[split:])).digest()


def defined_path(index: int, entries: list[bytes]) -> list[bytes]:
    """PATH of RFC 9162 2.1.3.1."""
    if len(entries) == 1:
        return []
    split = 1 << (len(entries) - 1).bit_length() - 1
    if index < split:
        return [*defined_path(index, entries[:split]), defined_root(entries[split:])]
    return [*defined_path(index - split, entries[split:]), defined_root(entries[:split])]


def climbed(leaf_hash: bytes, index: int, size: int, walked: Sequence[bytes]) -> bytes | None:
    """The root that a path leads to by RFC 9162 2.1.3.2; None where the path is no path in a tree of that size."""
    if not 0 <= index < size:
        return None
    number, last, root = index, size - 1, leaf_hash
    for beside in walked:
        if last == 0:
            return None
        if number & 1 or number == last:
            root = node(beside, root)
            while not number & 1 and number:
                number, last = number >> 1, last >> 1
        else:
            root = node(root, beside)
        number, last = number >> 1, last >> 1
    return root if last == 0 else None


def test_roots_are_those_of_the_rfc() -> None:
    """Streamed or whole, for every size up to 70."""
    tree, entries = Tree(), []
    assert tree.root() == EMPTY == root_of([]) == defined_root([])
    for number in range(70):
        entries.append(b"%d" % number)
        tree.add(entries[-1])
        assert defined_root(entries) == tree.root() == root_of([leaf(entry) for entry in entries])


def test_every_path_is_that_of_the_rfc_and_leads_to_the_root() -> None:
    """And leads nowhere from another leaf, index or size, nor when a hash of it is another."""
    for size in range(1, 34):
        entries = [b"%d" % number for number in range(size)]
        hashes, root = [leaf(entry) for entry in entries], defined_root(entries)
        for index in range(size):
            found = path(index, hashes)
            assert defined_path(index, entries) == found
            assert climbed(hashes[index], index, size, found) == root
            assert climbed(leaf(b"x"), index, size, found) != root
            assert size == 1 or climbed(hashes[index], (index + 1) % size, size, found) != root
            assert climbed(hashes[index], index, size, [*found, EMPTY]) != root
            for place in range(len(found)):
                assert climbed(hashes[index], index, size, [*found[:place], EMPTY, *found[place + 1 :]]) != root
        assert climbed(hashes[0], size, size, []) is None
