"""A naive tree after the recursion of RFC 6962, and changed proofs that must be rejected."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

from registry import tlog


def split(size: int) -> int:
    k = 1
    while k * 2 < size:
        k *= 2
    return k


def naive_root(leaves: Sequence[bytes]) -> bytes:
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    k = split(len(leaves))
    return hashlib.sha256(b"\x01" + naive_root(leaves[:k]) + naive_root(leaves[k:])).digest()


def naive_path(index: int, leaves: Sequence[bytes]) -> list[bytes]:
    if len(leaves) == 1:
        return []
    k = split(len(leaves))
    if index < k:
        return [*naive_path(index, leaves[:k]), naive_root(leaves[k:])]
    return [*naive_path(index - k, leaves[k:]), naive_root(leaves[:k])]


def naive_consistency(old: int, leaves: Sequence[bytes], whole: bool = True) -> list[bytes]:
    if old == len(leaves):
        return [] if whole else [naive_root(leaves)]
    k = split(len(leaves))
    if old <= k:
        return [*naive_consistency(old, leaves[:k], whole), naive_root(leaves[k:])]
    return [*naive_consistency(old - k, leaves[k:], False), naive_root(leaves[:k])]


class Nodes:
    """The nodes of a tree over these leaves, as `registry.tlog` asks for them."""

    def __init__(self, leaves: Sequence[bytes]) -> None:
        self.levels = [list(leaves)]
        while len(self.levels[-1]) > 1:
            below = self.levels[-1]
            self.levels.append([tlog.node_hash(below[i], below[i + 1]) for i in range(0, len(below) - 1, 2)])

    def __call__(self, level: int, index: int) -> bytes:
        return self.levels[level][index]


def mutated(draw: random.Random, hashes: Sequence[bytes]) -> list[bytes]:
    """These hashes, changed in one way: a bit, an order, one less, one more, one twice, one cut."""
    changed = list(hashes)
    way = draw.randrange(6)
    if not changed or way == 0:
        changed.insert(draw.randrange(len(changed) + 1), draw.randbytes(32))
    elif way == 1:
        changed.pop(draw.randrange(len(changed)))
    elif way == 2:
        at = draw.randrange(len(changed))
        changed.insert(at, changed[at])
    elif way == 3:
        at = draw.randrange(len(changed))
        changed[at] = changed[at][:-1]
    elif way == 4 and len(set(changed)) > 1:
        first, second = draw.sample(range(len(changed)), 2)
        changed[first], changed[second] = changed[second], changed[first]
        if changed == list(hashes):
            return mutated(draw, hashes)
    else:
        at, bit = draw.randrange(len(changed)), draw.randrange(256)
        flipped = bytearray(changed[at])
        flipped[bit // 8] ^= 1 << (bit % 8)
        changed[at] = bytes(flipped)
    return changed
