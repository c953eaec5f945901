"""Hashes of the Xet protocol (the specification of xet-core): of a chunk, and of a xorb over its chunks."""

import re
from collections.abc import Iterable, Sequence

from blake3 import blake3

_CHUNK_KEY = bytes.fromhex("6697f5775b9550de3135cbaca597181c9de421109beb2b58b4d0b04b93adf229")
_NODE_KEY = bytes.fromhex("017ec5c7a5472996fd946666b48a02e65ddd536f37c76dd2f86352e64a53713f")
_GROUP_LIMIT = 9
_TEXT = re.compile(r"[0-9a-f]{64}\Z")
Node = tuple[bytes, int]
"""The hash of a chunk or of a group, and how many bytes of data it covers."""


def chunk_hash(data: bytes) -> bytes:
    """Return the hash of a chunk."""
    return blake3(data, key=_CHUNK_KEY).digest()


def xorb_hash(chunks: Iterable[Node]) -> bytes:
    """Return the hash of a xorb with these chunks, at least one.

    The tree is built in levels: a group ends after the third or a later node whose last eight bytes are, as a
    little-endian number, divisible by four, at the latest after the ninth.
    """
    nodes = list(chunks)
    while len(nodes) > 1:
        level, start = [], 0
        while start < len(nodes):
            end = _group_end(nodes, start)
            level.append(_merge(nodes[start:end]))
            start = end
        nodes = level
    return nodes[0][0]


def _group_end(nodes: Sequence[Node], start: int) -> int:
    end = min(start + _GROUP_LIMIT, len(nodes))
    return next((at + 1 for at in range(start + 2, end) if nodes[at][0][24] % 4 == 0), end)


def _merge(nodes: Sequence[Node]) -> Node:
    lines = "".join(f"{to_text(digest)} : {size_bytes}\n" for digest, size_bytes in nodes)
    return blake3(lines.encode(), key=_NODE_KEY).digest(), sum(size_bytes for _, size_bytes in nodes)


def to_text(digest: bytes) -> str:
    """Return the text of a hash: the bytes of each group of eight reversed, in hex."""
    return "".join(digest[at : at + 8][::-1].hex() for at in range(0, 32, 8))


def is_text(text: str) -> bool:
    """Whether this is the text of a hash."""
    return _TEXT.match(text) is not None
