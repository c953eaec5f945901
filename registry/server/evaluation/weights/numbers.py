"""Numbers of tensors, read by ranges: are they finite, how large are A, B and their product. The only room with numpy.

    norm of an update    |scale · BA| (Frobenius), from |BA|² = sum((BᵀB) ∘ (AAᵀ)): rank² numbers, never multiplied out

Invariants
- At most `CHUNK_BYTES` of a file are in memory for the search for NaN, and one module's two halves for the norms;
  halves of over `HALF_LIMIT` elements have no norm.
- Nothing is taken for finite that is not: the search looks at the bits of each element, not at a sum.
- A norm that 32-bit floats cannot hold is None. Norms have four digits: they are for people and for limits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from registry.adapters.read import Pair
from registry.adapters.safetensors import Header, TensorInfo

Read = Callable[[int, int], bytes | memoryview]
"""(offset, length) → those bytes of the weights' file."""

CHUNK_BYTES = 4 * 2**20
HALF_LIMIT = 2**24
"""Elements of A or of B: 64 MiB as 32-bit floats. Rank 512 on a width of 28,672 has 14.7 million."""

_EXPONENTS = {"F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80), "F32": ("<u4", 0x7F800000),
              "F64": ("<u8", 0x7FF0000000000000), "F8_E5M2": ("u1", 0x7C)}  # fmt: skip
"""How an element is read as an integer, and the bits that are all set in NaN and the infinities (IEEE 754)."""
_READABLE = frozenset({*_EXPONENTS, "F8_E4M3"})
_E4M3_NAN = 0x7F
"""Without its sign: F8_E4M3 (the "fn" variant) has one NaN and no infinity."""


@dataclass(frozen=True, slots=True)
class FactorNorms:
    """|A|, |B| and |scale · BA| of one module's update, and the root mean square of an element of scale · BA."""

    a: float | None
    b: float | None
    update: float | None
    rms: float | None


# ------------------------------------------------------------------ finite
def find_not_finite(read: Read, header: Header) -> list[str]:
    """The names of tensors that hold NaN or an infinity, in the order of the file."""
    names = []
    for info in sorted(header, key=lambda info: info.start):
        step = CHUNK_BYTES
        for start in range(info.start, info.end, step):
            data = read(header.data_start + start, min(step, info.end - start))
            if _has_special(data, info.dtype):
                names.append(info.name)
                break
    return names


def _has_special(data: bytes | memoryview, dtype: str) -> bool:
    if dtype == "F8_E4M3":
        return bool(((np.frombuffer(data, "u1") & _E4M3_NAN) == _E4M3_NAN).any())
    if dtype not in _EXPONENTS:
        return False  # integers
    word, exponent = _EXPONENTS[dtype]
    bits = np.frombuffer(data, word)
    mask = bits.dtype.type(exponent)
    return bool(((bits & mask) == mask).any())


# ------------------------------------------------------------------ norms
def compute_norms(read: Read, header: Header, pairs: Iterable[Pair]) -> dict[str, FactorNorms]:
    """Module → its norms, for pairs of factors. Values must be finite."""
    by_name = {info.name: info for info in header}
    there = [pair for pair in pairs if pair.a in by_name and pair.b in by_name]
    norms = {}
    for pair in sorted(there, key=lambda pair: min(by_name[pair.a].start, by_name[pair.b].start)):
        halves = (by_name[pair.a], by_name[pair.b])
        if all(_is_readable(info, pair.rank * pair.experts) for info in halves):
            a, b = (_floats(read, header, info) for info in halves)
            if pair.is_turned:
                a, b = a.reshape(-1, pair.rank).T, b.reshape(pair.rank, -1).T
            a, b = a.reshape(pair.experts, pair.rank, -1), b.reshape(-1, pair.rank, pair.experts)
            norms[pair.path] = _norms(a, b.transpose(2, 0, 1), pair.scale)
    return norms


def _is_readable(info: TensorInfo, rank: int) -> bool:
    elements = math.prod(info.shape)
    return bool(info.shape) and elements % rank == 0 and elements <= HALF_LIMIT and info.dtype in _READABLE


def _norms(a: Any, b: Any, scale: float) -> FactorNorms:
    """Of A [experts, rank, in] and B [experts, out, rank]."""
    with np.errstate(over="ignore", invalid="ignore"):
        aa, bb = a @ a.transpose(0, 2, 1), b.transpose(0, 2, 1) @ b
        squared = float((bb * aa).sum())
        update = abs(scale) * math.sqrt(max(squared, 0.0))
        a_squared, b_squared = (float(np.trace(each, axis1=1, axis2=2).sum()) for each in (aa, bb))
        sizes = (math.sqrt(a_squared), math.sqrt(b_squared), update)
    elements = len(a) * a.shape[2] * b.shape[1]
    rms = update / math.sqrt(elements) if elements else 0.0
    return FactorNorms(a=_short(sizes[0]), b=_short(sizes[1]), update=_short(update), rms=_short(rms))


def _short(value: float) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None


def _floats(read: Read, header: Header, info: TensorInfo) -> Any:
    """A tensor's elements as 32-bit floats, flat."""
    data = read(header.data_start + info.start, info.end - info.start)
    if info.dtype == "BF16":
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    if info.dtype in ("F8_E4M3", "F8_E5M2"):
        return _eight_bits(info.dtype)[np.frombuffer(data, "u1")]
    word = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}[info.dtype]
    return np.frombuffer(data, word).astype("<f4", copy=False)


@cache
def _eight_bits(dtype: str) -> Any:
    """The 256 values of an 8-bit float (OCP 8-bit floating point: E4M3 with bias 7, E5M2 with bias 15)."""
    mantissa_bits, bias = (3, 7) if dtype == "F8_E4M3" else (2, 15)
    values = []
    for code in range(256):
        exponent, mantissa = (code & 0x7F) >> mantissa_bits, code & (2**mantissa_bits - 1)
        part = mantissa / 2**mantissa_bits
        value = math.ldexp(1 + part, exponent - bias) if exponent else math.ldexp(part, 1 - bias)
        values.append(-value if code & 0x80 else value)
    return np.array(values, "<f4")
