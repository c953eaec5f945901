"""`Identity`: which weights a base has, and how the weights of two bases are alike. Names and shards do not count.

`exact` covers the sorted (name, dtype, shape, SHA-256 of the bytes) of every tensor. A sketch is 64 sums of the
dequantized values under fixed signs, scaled to length one: it survives casts and packing. Constant tensors are never
compared.
"""

import base64
import hashlib
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter, mul
from typing import Literal

from pydantic import Field, field_validator

from registry.bases import BaseMatch, Similarity
from registry.digest import Digest, canonical_json
from registry.model import FrozenModel

SKETCH_SIZE = 64
MARKS_LIMIT = 4096
"""Tensors that keep a mark. A base with more keeps those whose names hash lowest: the same ones as its relatives."""
_HALVES = struct.Struct(f"<{SKETCH_SIZE}e")


class MatchThresholds(FrozenModel):
    """Where each base match begins: cosines of sketches, from the measurements on tiny models and on SmolLM2-135M.

    A cast has a mean over `cast_mean` and no tensor below `cast_least`; a LoRA merged in had 0.9997 at its lowest.
    NF4 had a mean of 0.9955, 5 % of noise on one kind of module 0.9998, other weights 0.006.
    """

    cast_mean: float = 0.99999
    cast_least: float = 0.9999
    quantized_mean: float = 0.98
    descendant_mean: float = 0.98
    common_share: float = 0.5
    """The share of tensors that must have a name and a shape in common before values are compared."""


DEFAULTS = MatchThresholds()


class TensorMark(FrozenModel):
    """`shape` is the logical one. `sketch` is empty for a constant tensor and for a packing that we cannot read.

    `norm` is the Frobenius norm of its (de-quantized) values; None where they cannot be read or are not finite, and
    in records from before norms.
    """

    dtype: str = Field(max_length=32)
    """Number format, as safetensors writes it: `F32`, `BF16` …"""
    shape: tuple[int, ...] = Field(max_length=16)
    """Logical shape. Empty if it is packed and unknown."""
    digest: Digest
    """SHA-256 of the stored bytes."""
    constant: bool = False
    """Whether all values are equal. Such tensors are never compared."""
    packed: bool = False
    """Whether the stored bytes are quantized."""
    sketch: str = Field(default="", max_length=256)
    """64 half-precision numbers in base64 that survive casts and packing. Empty if constant or unreadable."""
    norm: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Frobenius norm of the dequantized values; null if unreadable or not finite."""

    @field_validator("sketch")
    @classmethod
    def _readable(cls, text: str) -> str:
        if text and len(base64.b64decode(text, validate=True)) != _HALVES.size:
            raise ValueError(f"a sketch is {_HALVES.size} bytes in base64")
        return text

    @property
    def values(self) -> tuple[float, ...]:
        """The numbers of the sketch; empty where it has none."""
        return _HALVES.unpack(base64.b64decode(self.sketch)) if self.sketch else ()


class Identity(FrozenModel):
    """Which weights a base has. `tensors` counts all; `marks` are by the model's name."""

    schema_version: Literal[1] = 1
    """Version of this format."""
    exact: Digest
    """Merkle root over name, number format, shape and bytes of every tensor."""
    tensors: int = Field(ge=1)
    """Number of all tensors."""
    quantization: str = Field(default="", max_length=64)
    """Method of packed weights, such as `gptq`. Empty if the weights are not packed."""
    marks: dict[str, TensorMark] = Field(max_length=MARKS_LIMIT)
    """Name of a tensor → its mark, for at most 4,096 tensors (those whose names hash lowest)."""

    @property
    def has_norms(self) -> bool:
        """Whether any tensor has a norm."""
        return any(mark.norm is not None for mark in self.marks.values())


@dataclass(frozen=True, slots=True)
class Leaf:
    """One tensor as it is stored, under the model's name for it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    digest: Digest


def root(leaves: Iterable[Leaf]) -> Digest:
    """The Merkle root over the tensors, sorted by name. A node without a partner moves up as it is (as in RFC 6962)."""
    level = [
        hashlib.sha256(b"\0" + canonical_json([leaf.name, leaf.dtype, list(leaf.shape), leaf.digest])).digest()
        for leaf in sorted(leaves, key=attrgetter("name"))
    ]
    while len(level) > 1:
        pairs = [hashlib.sha256(b"\1" + a + b).digest() for a, b in zip(level[::2], level[1::2], strict=False)]
        level = pairs + level[len(pairs) * 2 :]
    return Digest("sha256:" + (level[0] if level else hashlib.sha256().digest()).hex())


def select_marked(names: Iterable[str]) -> frozenset[str]:
    """Which of these tensors keep a mark."""
    return frozenset(sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())[:MARKS_LIMIT])


def sketch(sums: Iterable[float]) -> str:
    """The sums as a vector of length one, in half precision and base64; empty when they are zero or not finite."""
    values = list(sums)
    length = math.sqrt(sum(map(mul, values, values)))
    if not 0 < length < math.inf:
        return ""
    return base64.b64encode(_HALVES.pack(*(value / length for value in values))).decode()


def compare(first: Identity, second: Identity, thresholds: MatchThresholds = DEFAULTS) -> Similarity:
    """How two bases are related. Pure: the same identities give the same answer, in either order."""
    if first.exact == second.exact:
        return Similarity(match=BaseMatch.EXACT, compared=len(first.marks), equal=len(first.marks))
    shared = sorted(first.marks.keys() & second.marks.keys())
    common = [name for name in shared if _same_shape(first.marks[name], second.marks[name])]
    if len(common) < thresholds.common_share * max(len(first.marks), len(second.marks)):
        return Similarity(match=BaseMatch.UNRELATED)
    both = {name: (first.marks[name], second.marks[name]) for name in common}
    pairs = {name: pair for name, pair in both.items() if not (pair[0].constant or pair[1].constant)}
    equal = [n for n, (a, b) in pairs.items() if (a.dtype, a.digest) == (b.dtype, b.digest)]
    cosines = dict.fromkeys(equal, 1.0)
    cosines |= {n: _cosine(a, b) for n, (a, b) in pairs.items() if n not in cosines and a.sketch and b.sketch}
    if not cosines:
        return Similarity(match=BaseMatch.UNKNOWN)
    mean, least = sum(cosines.values()) / len(cosines), min(cosines.values())
    resized = set(shared) - set(common)
    changed = {_module(n) for n in resized} | {_module(n) for n, c in cosines.items() if c < thresholds.cast_mean}
    return Similarity(
        match=_match(pairs, cosines, bool(resized), thresholds), compared=len(pairs), equal=len(equal),
        mean=round(mean, 7), least=round(least, 7), changed=tuple(sorted(changed)[:64]),
    )  # fmt: skip


def _match(
    pairs: Mapping[str, tuple[TensorMark, TensorMark]],
    cosines: Mapping[str, float],
    resized: bool,
    thresholds: MatchThresholds,
) -> BaseMatch:
    mean, least = sum(cosines.values()) / len(cosines), min(cosines.values())
    plain = [c for n, c in cosines.items() if not (pairs[n][0].packed or pairs[n][1].packed)]
    packed = [pair for pair in pairs.values() if pair[0].packed or pair[1].packed]
    dtypes_equal = all(a.dtype == b.dtype for a, b in packed)
    repacked = bool(packed) and (not dtypes_equal or all(a.digest == b.digest for a, b in packed))
    if repacked and mean > thresholds.quantized_mean and (not plain or min(plain) > thresholds.cast_least):
        return BaseMatch.QUANTIZED
    dtypes_differ = any(a.dtype != b.dtype for a, b in pairs.values())
    if dtypes_differ and not resized and mean > thresholds.cast_mean and least > thresholds.cast_least:
        return BaseMatch.OTHER_DTYPE
    if len(cosines) < thresholds.common_share * len(pairs):
        return BaseMatch.UNKNOWN
    return BaseMatch.DESCENDANT if mean > thresholds.descendant_mean else BaseMatch.UNRELATED


def _cosine(first: TensorMark, second: TensorMark) -> float:
    a, b = first.values, second.values
    lengths = math.sqrt(sum(map(mul, a, a)) * sum(map(mul, b, b)))
    return sum(map(mul, a, b)) / lengths if lengths else 0.0


def _same_shape(first: TensorMark, second: TensorMark) -> bool:
    """A packed tensor whose logical shape is unknown has none, and matches any."""
    unknown = (first.packed and not first.shape) or (second.packed and not second.shape)
    return unknown or first.shape == second.shape


def _module(name: str) -> str:
    """`model.layers.0.mlp.down_proj.weight` → `down_proj`."""
    return name.removesuffix(".weight").removesuffix(".bias").rpartition(".")[2]
