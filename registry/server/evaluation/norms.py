"""Read the numbers of weights: are all finite, and how large are A, B and their product. The only module with numpy.

The norm of an update is |scale · BA| (Frobenius), computed from |BA|² = sum((BᵀB) ∘ (AAᵀ)): rank² numbers. BA itself is
never computed. Norms have four digits; a norm that 32-bit floats cannot hold is None.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from registry.adapters.read import Pair
from registry.adapters.safetensors import Header, TensorInfo
from registry.findings import Finding
from registry.versions.files import WEIGHTS_CHUNK_BYTES

Read = Callable[[int, int], bytes | memoryview]
"""(offset, length) → those bytes of the file with the weights."""

INLINE_BYTES = 16 * 2**20
"""Weights up to this size are measured in the commit of a push (some 20 ms), larger ones after its answer."""
WINDOW_BYTES = 16 * 2**20
FACTOR_ELEMENTS_LIMIT = 2**24
"""Of A or of B: 64 MiB as 32-bit floats. Rank 512 on a width of 28,672 has 14.7 million."""
HUGE_RMS = 0.5
"""Root mean square of an update's elements. Weights of language models have 0.01 to 0.1, trained updates far less."""
FINDINGS_LIMIT = 20

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


@dataclass(frozen=True, slots=True)
class Measured:
    """The findings about the numbers of a version, and the norms of its modules."""

    findings: tuple[Finding, ...]
    norms: dict[str, FactorNorms]


@dataclass(slots=True)
class Window:
    """Reads a file in large pieces, so that a remote store is not asked for each tensor."""

    fetch: Read
    size_bytes: int
    start: int = 0
    data: memoryview = field(default_factory=lambda: memoryview(b""))

    def read(self, start: int, length: int) -> memoryview:
        """The bytes at this offset, from the current piece if it holds them all."""
        if not (self.start <= start and start + length <= self.start + len(self.data)):
            self.data = memoryview(b"")  # freed before the next piece is read
            count = min(max(length, WINDOW_BYTES), self.size_bytes - start)
            self.start, self.data = start, memoryview(self.fetch(start, count))
        return self.data[start - self.start : start - self.start + length]


def measure(fetch: Read, size_bytes: int, header: Header, pairs: Iterable[Pair]) -> Measured:
    """Search all numbers for NaN and infinities; if there are none, compute the norms of the pairs.

    `fetch` reads (offset, length) of the file with the weights, which has `size_bytes`.
    """
    read = Window(fetch, size_bytes).read
    names = find_not_finite(read, header)
    if names:
        return Measured(tuple(_not_finite(name, len(names)) for name in names[:FINDINGS_LIMIT]), {})
    norms = compute_norms(read, header, pairs)
    return Measured((*_zeros(norms), *_huge(norms)), norms)


def _not_finite(name: str, count: int) -> Finding:
    others = f", and so do {count - 1} more" if count > 1 else ""
    message = f"{name[:400]} holds NaN or infinite values{others}: the training diverged"
    return Finding.of("error", "weights.not_finite", name, message, "finite numbers", "NaN or infinity")


def _zeros(norms: dict[str, FactorNorms]) -> list[Finding]:
    zero = [path for path, size in norms.items() if size.b == 0]
    if not zero:
        return []
    if len(zero) == len(norms):
        message = "every lora_B is zero, as before training: the adapter changes nothing"
    else:
        message = f"lora_B of {zero[0][:300]} is zero, as before training ({len(zero)} of {len(norms)} modules)"
    return [Finding.of("warning", "weights.zero_b", zero[0], message)]


def _huge(norms: dict[str, FactorNorms]) -> list[Finding]:
    # A product that 32-bit floats cannot hold has no figure; it is beyond the limit all the more.
    sizes = {path: float("inf") if size.rms is None else size.rms for path, size in norms.items()}
    beyond = {path: size for path, size in sizes.items() if size > HUGE_RMS}
    if not beyond:
        return []
    worst = max(beyond, key=beyond.__getitem__)
    message = (
        f"the update of {worst[:300]} moves its weights by {beyond[worst]:.3g} on average (root mean square; "
        f"{len(beyond)} of {len(norms)} modules are over {HUGE_RMS:g}): more than a model's own weights are large"
    )
    return [Finding.of("warning", "weights.huge", worst, message, f"at most {HUGE_RMS:g}", f"{beyond[worst]:.3g}")]


# ------------------------------------------------------------------ finite
def find_not_finite(read: Read, header: Header) -> list[str]:
    """The names of tensors that hold NaN or an infinity, in the order of the file."""
    names = []
    for info in sorted(header, key=lambda info: info.start):
        for start in range(info.start, info.end, WEIGHTS_CHUNK_BYTES):
            data = read(header.data_start + start, min(WEIGHTS_CHUNK_BYTES, info.end - start))
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
    present = [pair for pair in pairs if pair.a in by_name and pair.b in by_name]
    norms = {}
    for pair in sorted(present, key=lambda pair: min(by_name[pair.a].start, by_name[pair.b].start)):
        factors = (by_name[pair.a], by_name[pair.b])
        if all(_is_readable(info, pair.rank * pair.experts) for info in factors):
            a, b = (_floats(read, header, info) for info in factors)
            if pair.is_turned:
                a, b = a.reshape(-1, pair.rank).T, b.reshape(pair.rank, -1).T
            a, b = a.reshape(pair.experts, pair.rank, -1), b.reshape(-1, pair.rank, pair.experts)
            norms[pair.path] = _norms(a, b.transpose(2, 0, 1), pair.scale)
    return norms


def _is_readable(info: TensorInfo, rank: int) -> bool:
    elements = math.prod(info.shape)
    return bool(info.shape) and elements % rank == 0 and elements <= FACTOR_ELEMENTS_LIMIT and info.dtype in _READABLE


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
