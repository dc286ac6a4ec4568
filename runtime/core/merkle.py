"""Merkle trees as RFC 6962 defines them: one root over many entries, and short proofs that one is among them.

Leaves and inner nodes are hashed under different prefixes (RFC 6962, section 2.1), so that no inner node can
be passed off as an entry. The tree over n entries is the one in which a level's last node, where it has no
neighbour, moves up as it is; that is the split at the largest power of two below n.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

EMPTY_ROOT = hashlib.sha256().digest()
"""The root over no entries (RFC 6962, section 2.1)."""


def leaf_hash(entry: bytes) -> bytes:
    """The hash under which an entry stands in the tree."""
    return hashlib.sha256(b"\x00" + entry).digest()


def _node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


class Tree:
    """The tree over some entries, kept whole so that a proof is a walk up.

    Args:
        leaves: `leaf_hash` of each entry, in order.
    """

    def __init__(self, leaves: Sequence[bytes]) -> None:
        self._levels: list[list[bytes]] = [list(leaves)]
        while len(level := self._levels[-1]) > 1:
            above = [_node_hash(level[k], level[k + 1]) for k in range(0, len(level) - 1, 2)]
            self._levels.append(above + level[len(level) - len(level) % 2 :])

    @property
    def root(self) -> bytes:
        """The hash that stands for all entries and their order."""
        top = self._levels[-1]
        return top[0] if top else EMPTY_ROOT

    def path(self, index: int) -> list[bytes]:
        """The audit path of one entry (RFC 6962, section 2.1.1): its neighbours on the way up."""
        found = []
        for level in self._levels[:-1]:
            if (index ^ 1) < len(level):
                found.append(level[index ^ 1])
            index //= 2
        return found


def root_from_path(leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes | None:
    """The root to which an audit path leads (RFC 9162, section 2.1.3.2).

    Args:
        leaf: `leaf_hash` of the entry.
        index: Where it is said to stand, from 0.
        size: How many entries the tree has.
        path: The audit path.

    Returns:
        The root, or ``None`` if a path of that length leads nowhere in a tree of that size.
    """
    if not 0 <= index < size:
        return None
    place, last, found = index, size - 1, leaf
    for neighbour in path:
        if last == 0:
            return None
        if place & 1 or place == last:
            found = _node_hash(neighbour, found)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            found = _node_hash(found, neighbour)
        place, last = place >> 1, last >> 1
    return found if last == 0 else None
