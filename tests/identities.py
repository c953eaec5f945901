"""Sample identities of bases from a few numbers, without torch: enough to compare and store."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from random import Random

from registry.bases import identity
from registry.bases.identity import SKETCH_SIZE, Identity, Leaf, TensorMark
from registry.digest import Digest

NAMES = ("embed_tokens", "layers.0.q_proj", "layers.0.down_proj", "layers.1.q_proj", "layers.1.down_proj")
Values = Mapping[str, Sequence[float]]


def values(seed: int = 0) -> dict[str, list[float]]:
    """64 numbers for each of five tensors."""
    random = Random(seed)
    return {f"model.{name}.weight": [random.gauss(0, 1) for _ in range(SKETCH_SIZE)] for name in NAMES}


def nudged(of: Values, share: float, *, only: str = "", seed: int = 99) -> dict[str, list[float]]:
    """The same with noise of this share on every tensor whose name holds `only`."""
    random = Random(seed)
    return {n: [v + share * random.gauss(0, 1) if only in n else v for v in numbers] for n, numbers in of.items()}


def make_identity(
    of: Values, *, dtype: str = "F32", quantization: str = "", packed: str = "", rows: Mapping[str, int] | None = None
) -> Identity:
    """The identity of a base whose tensors are these numbers; those whose name holds `packed` are U8 if it is given."""
    marks = {}
    for name, numbers in of.items():
        is_packed = bool(packed) and packed in name
        stored = "U8" if is_packed else dtype
        shape = ((rows or {}).get(name, 8), 8)
        data = stored.encode() + struct.pack(f"<{len(numbers)}d", *numbers)
        marks[name] = TensorMark(
            dtype=stored, shape=shape, digest=Digest.of(data), packed=is_packed, sketch=identity.sketch(numbers)
        )
    leaves = [Leaf(name, mark.dtype, mark.shape, mark.digest) for name, mark in marks.items()]
    return Identity(exact=identity.root(leaves), tensors=len(marks), quantization=quantization, marks=marks)
