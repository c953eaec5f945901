"""The arithmetic of a transparency log: hashes of leaves and nodes, roots, and the proofs that verify against them.

Hashes are those of RFC 6962 §2.1: a leaf is SHA-256(0x00 ‖ entry), a node SHA-256(0x01 ‖ left ‖ right). Proofs run from
the leaf upwards. Verifying recomputes: a wrong proof is False, never an exception.

>>> verify_inclusion(leaf_hash(b"one"), 0, 2, [leaf_hash(b"two")], node_hash(leaf_hash(b"one"), leaf_hash(b"two")))
True
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence

HASH_BYTES = 32
EMPTY_ROOT = hashlib.sha256(b"").digest()

Nodes = Callable[[int, int], bytes]
"""(level, index) → the hash of the complete subtree of 2^level leaves that begins at index · 2^level."""


def leaf_hash(entry: bytes) -> bytes:
    """The hash of an entry's bytes as a leaf."""
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left_hash: bytes, right_hash: bytes) -> bytes:
    """The hash of the node over two subtrees."""
    return hashlib.sha256(b"\x01" + left_hash + right_hash).digest()


def root_of(leaves: Iterable[bytes]) -> bytes:
    """The root over leaf hashes, in one pass and with memory for the right edge only."""
    edge: list[tuple[int, bytes]] = []
    for leaf in leaves:
        level, node = 0, leaf
        while edge and edge[-1][0] == level:
            node = node_hash(edge.pop()[1], node)
            level += 1
        edge.append((level, node))
    return _folded([node for _, node in edge])


# ------------------------------------------------------------------ proofs, made
def root(size: int, nodes: Nodes) -> bytes:
    """The root of the first `size` leaves."""
    return _folded([nodes(level, index) for level, index in _cover(0, size)])


def inclusion(index: int, size: int, nodes: Nodes) -> list[bytes]:
    """The hashes that lead from leaf `index` to the root of the first `size` leaves (RFC 6962 §2.1.1)."""
    if not 0 <= index < size:
        raise ValueError(f"leaf {index} is not in a tree of {size}")
    return [_range(low, high, nodes) for low, high in reversed(list(_siblings(index, size)))]


def consistency(old: int, new: int, nodes: Nodes) -> list[bytes]:
    """The hashes that show that the tree of `old` leaves is the beginning of that of `new` (RFC 6962 §2.1.2)."""
    if not 0 <= old <= new:
        raise ValueError(f"a tree of size {old} is no prefix of a tree of size {new}")
    if old in (0, new):
        return []
    proof: list[bytes] = []
    low, high, whole = 0, new, True
    path: list[tuple[int, int]] = []
    while high - low > 1:
        middle = low + _split(high - low)
        if old == high:
            break
        if old <= middle:
            path.append((middle, high))
            high = middle
        else:
            path.append((low, middle))
            low, whole = middle, False
    if not whole:
        proof.append(_range(low, high, nodes))
    proof += [_range(a, b, nodes) for a, b in reversed(path)]
    return proof


# ------------------------------------------------------------------ proofs, verified
def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], expected_root: bytes) -> bool:
    """Whether `proof` leads from this leaf hash at `index` to the root of `size` leaves (RFC 9162 §2.1.3.2)."""
    if not 0 <= index < size or not _sound([leaf, expected_root, *proof]):
        return False
    at, last, node = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            return False
        if at & 1 or at == last:
            node = node_hash(sibling, node)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            node = node_hash(node, sibling)
        at, last = at >> 1, last >> 1
    return last == 0 and node == expected_root


def verify_consistency(old: int, old_root: bytes, new: int, new_root: bytes, proof: Sequence[bytes]) -> bool:
    """Whether `proof` shows that the old tree is the beginning of the new one (RFC 9162 §2.1.4.2)."""
    if not 0 <= old <= new or not _sound([old_root, new_root, *proof]):
        return False
    if old == 0:
        return not proof and old_root == EMPTY_ROOT
    if old == new:
        return not proof and old_root == new_root
    path = list(proof)
    if old & (old - 1) == 0:
        path.insert(0, old_root)
    if not path:
        return False
    at, last = old - 1, new - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    first = second = path[0]
    for sibling in path[1:]:
        if last == 0:
            return False
        if at & 1 or at == last:
            first, second = node_hash(sibling, first), node_hash(sibling, second)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            second = node_hash(second, sibling)
        at, last = at >> 1, last >> 1
    return last == 0 and first == old_root and second == new_root


# ------------------------------------------------------------------ inside
def _sound(hashes: Iterable[bytes]) -> bool:
    return all(len(digest) == HASH_BYTES for digest in hashes)


def _split(size: int) -> int:
    """The largest power of two that is smaller than `size`."""
    return 1 << ((size - 1).bit_length() - 1)


def _cover(low: int, high: int) -> Iterator[tuple[int, int]]:
    """The complete subtrees (level, index) that lie side by side from `low` to `high`, the largest first."""
    while low < high:
        level = (high - low).bit_length() - 1
        if low:
            level = min(level, (low & -low).bit_length() - 1)
        yield level, low >> level
        low += 1 << level


def _range(low: int, high: int, nodes: Nodes) -> bytes:
    """The hash over leaves `low` to `high`, which is a subtree of RFC 6962's recursion."""
    return _folded([nodes(level, index) for level, index in _cover(low, high)])


def _folded(hashes: list[bytes]) -> bytes:
    if not hashes:
        return EMPTY_ROOT
    node = hashes[-1]
    for left_hash in reversed(hashes[:-1]):
        node = node_hash(left_hash, node)
    return node


def _siblings(index: int, size: int) -> Iterator[tuple[int, int]]:
    """The ranges beside the path from the root down to leaf `index`."""
    low, high = 0, size
    while high - low > 1:
        middle = low + _split(high - low)
        if index < middle:
            yield middle, high
            high = middle
        else:
            yield low, middle
            low = middle
