"""A proof that an entry is in a log, as one text that is verified offline (C2SP tlog-proof).

    c2sp.org/tlog-proof@v1
    index 73894
    gSKyXoYZUgZ6jduWYrkDOARinOMGJveXjgMkBTcdPlQ=       from the leaf's sibling up
    …

    registry.example.org/3f9c                           the checkpoint, as it was signed
    …

A proof holds no key: the verifier brings the ones that it trusts.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence

from registry.tlog import leaf_hash, verify_inclusion
from registry.tlog.notes import Checkpoint, Verifier

HEADER = "c2sp.org/tlog-proof@v1"
HASHES_LIMIT = 64


def text_of(index: int, hashes: Sequence[bytes], note: str) -> str:
    """The text of a proof: `index` counts from 0, `note` is the signed checkpoint."""
    lines = [HEADER, f"index {index}", *(base64.b64encode(held).decode() for held in hashes)]
    return "\n".join(lines) + "\n\n" + note


def index_of(proof: str) -> int:
    """The index that a proof speaks of; -1 for what is no proof."""
    lines = proof.partition("\n\n")[0].split("\n")
    lines = lines[:1] + [line for line in lines[1:] if not line.startswith("extra ")]
    number = lines[1].removeprefix("index ") if len(lines) > 1 and lines[1].startswith("index ") else ""
    return int(number) if number.isascii() and number.isdigit() and str(int(number[:15])) == number else -1


def verify(proof: str, entry: bytes, *verifiers: Verifier) -> Checkpoint | None:
    """The checkpoint that holds this entry, if the proof shows so and one of these keys signed it; else None."""
    head, _, note = proof.partition("\n\n")
    lines = head.split("\n")
    index = index_of(proof)
    checkpoint = Checkpoint.of_note(note, *verifiers)
    if lines[0] != HEADER or index < 0 or checkpoint is None:
        return None
    encoded = [line for line in lines[1:] if not line.startswith(("extra ", "index "))]
    if len(encoded) > HASHES_LIMIT:
        return None
    try:
        hashes = [base64.b64decode(line, validate=True) for line in encoded]
    except (binascii.Error, ValueError):
        return None
    good = verify_inclusion(leaf_hash(entry), index, checkpoint.size, hashes, checkpoint.root)
    return checkpoint if good else None
