"""Read the numbers of weights: are all finite, and how large are A, B and their product. The only module with numpy.

The norm of an update is |scale · BA| (Frobenius), computed from |BA|² = sum((BᵀB) ∘ (AAᵀ)), rank² numbers, or from BA,
out · in numbers, whichever are fewer: so never more than A and B have. Norms have four digits; a norm that 32-bit
floats cannot hold is None.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby, pairwise
from typing import Any

import numpy as np

from registry.adapters.read import Pair
from registry.adapters.safetensors import Header, TensorInfo
from registry.findings import Finding
from registry.versions.files import WEIGHTS_CHUNK_BYTES

Read = Callable[[int, int], bytes | memoryview]
"""(offset, length) → those bytes of the file with the weights."""

INLINE_BYTES = 16 * 2**20
"""Weights up to this size are measured in the commit of a push (some 20 ms), larger ones after its response."""
WINDOW_BYTES = 16 * 2**20
FACTOR_ELEMENTS_LIMIT = 2**24
"""Of A or of B: 64 MiB as 32-bit floats. Rank 512 on a width of 28,672 has 14.7 million."""
HUGE_RMS = 0.5
"""Root mean square of an update's elements. Weights of language models have 0.01 to 0.1, trained updates far less."""

_EXPONENTS = {"F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80), "F32": ("<u4", 0x7F800000),
              "F64": ("<u8", 0x7FF0000000000000), "F8_E5M2": ("u1", 0x7C)}  # fmt: skip
"""How an element is read as an integer, and the bits that are all set in NaN and the infinities (IEEE 754)."""
_WORDS = {"F16": np.dtype("<i2"), "BF16": np.dtype("<u2"), "F32": np.dtype("<f4"), "F64": np.dtype("<f8"),
          "F8_E4M3": np.dtype("u1"), "F8_E5M2": np.dtype("u1")}  # fmt: skip
"""How an element is read before it becomes a 32-bit float."""
_READABLE = _WORDS.keys()
_HALF_BITS = np.int32(-0x7000_2000)
"""0x8FFFE000: the sign, and the exponent and mantissa of a 16-bit float, 13 bits up; not the copies of the sign."""
_HALF_SCALE = np.float32(2.0**112)
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


def measure(fetch: Read, size_bytes: int, plan: MeasuringPlan) -> Measured:
    """Search all numbers for NaN and infinities; if there are none, compute the norms of the pairs.

    `fetch` reads (offset, length) of the file with the weights, which has `size_bytes`.
    """
    read = Window(fetch, size_bytes).read
    names = find_not_finite(read, plan.header)
    if names:
        return Measured((Finding.of_not_finite("weights.not_finite", names, ": the training diverged"),), {})
    norms = plan.compute_norms(read)
    return Measured((*_zeros(norms), *_huge(norms)), norms)


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
    names: list[str] = []
    for dtype, same_type in groupby(sorted(header, key=lambda info: info.start), key=lambda info: info.dtype):
        run = list(same_type)  # the bytes of tensors follow each other without holes
        if dtype in _READABLE and _holds_special(read, header, run[0].start, run[-1].end, dtype):
            names += [info.name for info in run if _holds_special(read, header, info.start, info.end, dtype)]
    return names


def _holds_special(read: Read, header: Header, start: int, end: int, dtype: str) -> bool:
    return any(
        _is_special(read(header.data_start + at, min(WEIGHTS_CHUNK_BYTES, end - at)), dtype)
        for at in range(start, end, WEIGHTS_CHUNK_BYTES)
    )


def _is_special(data: bytes | memoryview, dtype: str) -> bool:
    if dtype == "F8_E4M3":
        return bool(((np.frombuffer(data, "u1") & _E4M3_NAN) == _E4M3_NAN).any())
    word, exponent = _EXPONENTS[dtype]
    bits = np.frombuffer(data, word)
    mask = bits.dtype.type(exponent)
    return bool(((bits & mask) == mask).any())


# ------------------------------------------------------------------ norms
@dataclass(frozen=True, slots=True)
class _Rows:
    """Tensors of one type and size, by where they begin in the file."""

    dtype: str
    size_bytes: int
    starts: tuple[int, ...]

    @property
    def elements(self) -> int:
        """The number of elements of one tensor."""
        return self.size_bytes // _WORDS[self.dtype].itemsize

    def read(self, read: Read) -> Any:
        """Their elements as 32-bit floats, a row for each."""
        first, word = min(self.starts), _WORDS[self.dtype]
        data = read(first, max(self.starts) + self.size_bytes - first)
        steps = {after - before for before, after in pairwise(self.starts)} or {self.size_bytes}
        if len(steps) == 1:  # no copy: the rows are pieces of the file at equal distances
            shape = len(self.starts), self.size_bytes // word.itemsize
            words = np.ndarray(shape, word, data, self.starts[0] - first, (*steps, word.itemsize))
        else:
            begins = [start - first for start in self.starts]
            words = np.stack([np.frombuffer(data[begin : begin + self.size_bytes], word) for begin in begins])
        return _to_floats(words, self.dtype)


@dataclass(frozen=True, slots=True)
class _Layout:
    """Pairs that are computed together: those of equal shapes whose modules have equal last names."""

    pairs: tuple[Pair, ...]
    a: _Rows
    b: _Rows

    def read_a(self, read: Read) -> Any:
        """A [pairs, experts, rank, in]."""
        count, pair, a = len(self.pairs), self.pairs[0], self.a.read(read)
        a = a.reshape(count, -1, pair.rank).transpose(0, 2, 1) if pair.is_turned else a
        return a.reshape(count, pair.experts, pair.rank, -1)

    def read_b(self, read: Read) -> Any:
        """B [pairs, experts, out, rank]."""
        count, pair, b = len(self.pairs), self.pairs[0], self.b.read(read)
        b = b.reshape(count, pair.rank, -1).transpose(0, 2, 1) if pair.is_turned else b
        return b.reshape(count, -1, pair.rank, pair.experts).transpose(0, 3, 1, 2)

    def compute_norms(self, read: Read) -> dict[str, FactorNorms]:
        """Module → its norms."""
        pair = self.pairs[0]
        rows = pair.rank * pair.experts
        area = (self.a.elements // rows) * (self.b.elements // rows)
        with np.errstate(over="ignore", invalid="ignore"):
            squares = self._square_grams(read) if pair.rank**2 <= area else self._square_products(read)
        return {
            pair.path: _factor_norms(a_squared, b_squared, squared, pair.scale, pair.experts * area)
            for pair, a_squared, b_squared, squared in zip(self.pairs, *squares, strict=True)
        }

    def _square_grams(self, read: Read) -> tuple[list[float], ...]:
        """|A|², |B|² and |BA|² of each pair by matrices of rank × rank. Of A and B only one is in memory at a time."""
        a = self.read_a(read)
        aa = a @ a.swapaxes(2, 3)
        del a
        b = self.read_b(read)
        bb = b.swapaxes(2, 3) @ b
        del b
        a_squares, b_squares = (np.trace(each, axis1=2, axis2=3).sum(axis=1).tolist() for each in (aa, bb))
        bb *= aa
        return a_squares, b_squares, bb.sum(axis=(1, 2, 3)).tolist()

    def _square_products(self, read: Read) -> tuple[list[float], ...]:
        """The same by matrices of out × in, of a rank that is larger than both."""
        a, b = self.read_a(read), self.read_b(read)
        product = b @ a
        return tuple(np.square(each).sum(axis=(1, 2, 3)).tolist() for each in (a, b, product))


@dataclass(frozen=True, slots=True)
class MeasuringPlan:
    """What `measure` reads of a file with this header, and in which order. Equal for all adapters of one script."""

    header: Header
    pairs: tuple[Pair, ...]
    windows: tuple[tuple[int, int, tuple[_Layout, ...]], ...]
    """Pieces of the file, from and to, and the pairs in each. A pair larger than `WINDOW_BYTES` is by itself."""

    @classmethod
    def of(cls, header: Header, pairs: Iterable[Pair]) -> MeasuringPlan:
        """Plan to measure the tensors of a header, and the pairs that it has both tensors of."""
        all_pairs = tuple(pairs)
        return cls(header, all_pairs, tuple(_plan_windows(header, all_pairs)))

    def compute_norms(self, read: Read) -> dict[str, FactorNorms]:
        """Module → its norms. Values must be finite."""
        norms: dict[str, FactorNorms] = {}
        for start, end, layouts in self.windows:
            if end - start <= WINDOW_BYTES:
                read(start, end - start)  # the pieces below come from what this has read
            for layout in layouts:
                norms |= layout.compute_norms(read)
        return norms


# ------------------------------------------------------------------ two versions
Factors = dict[str, tuple[Any, Any, float]]


def read_updates(fetch: Read, size_bytes: int, plan: MeasuringPlan) -> Factors:
    """Module → A [experts, rank, in], B [experts, out, rank] and the scale, of a file that fits into memory."""
    read = Window(fetch, size_bytes).read
    factors: Factors = {}
    for _, _, layouts in plan.windows:
        for layout in layouts:
            a, b = layout.read_a(read), layout.read_b(read)
            factors |= {pair.path: (a[at], b[at], pair.scale) for at, pair in enumerate(layout.pairs)}
    return factors


def compute_cosines(first: Factors, second: Factors) -> dict[str, float]:
    """Module → the cosine of its two updates, in four digits, of modules of equal shape with an update on both sides.

    <B₁A₁, B₂A₂> = sum((B₁ᵀB₂) ∘ (A₁A₂ᵀ)), so the ranks may differ; of high ranks the products are smaller.
    """
    cosines: dict[str, float] = {}
    for path in (path for path in first if path in second):
        (a, b, scale), (other_a, other_b, other_scale) = first[path], second[path]
        if (a.shape[0], a.shape[2], b.shape[1]) != (other_a.shape[0], other_a.shape[2], other_b.shape[1]):
            continue
        with np.errstate(over="ignore", invalid="ignore"):
            inner = _inner(a, b, other_a, other_b) * math.copysign(1, scale) * math.copysign(1, other_scale)
            size = math.sqrt(max(_inner(a, b, a, b) * _inner(other_a, other_b, other_a, other_b), 0.0))
        if size > 0 and math.isfinite(size) and math.isfinite(inner):
            cosines[path] = float(f"{max(-1.0, min(1.0, inner / size)):.4g}")
    return cosines


def _inner(a: Any, b: Any, other_a: Any, other_b: Any) -> float:
    if a.shape[1] * other_a.shape[1] <= b.shape[1] * a.shape[2]:
        return float(((b.swapaxes(1, 2) @ other_b) * (a @ other_a.swapaxes(1, 2))).sum(dtype="f8"))
    return float(((b @ a) * (other_b @ other_a)).sum(dtype="f8"))


def _plan_windows(header: Header, pairs: Iterable[Pair]) -> Iterator[tuple[int, int, tuple[_Layout, ...]]]:
    by_name = {info.name: info for info in header}
    factors = [(pair, by_name[pair.a], by_name[pair.b]) for pair in pairs if {pair.a, pair.b} <= by_name.keys()]
    readable = [
        (min(a.start, b.start), max(a.end, b.end), pair, a, b)
        for pair, a, b in factors
        if all(_is_readable(info, pair.rank * pair.experts) for info in (a, b))
    ]
    begin = end = 0
    layouts: dict[tuple[object, ...], list[tuple[Pair, TensorInfo, TensorInfo]]] = {}
    for first, last, pair, a, b in sorted(readable, key=lambda item: item[0]):
        if layouts and max(end, last) - begin > WINDOW_BYTES:
            yield header.data_start + begin, header.data_start + end, _build_layouts(header, layouts)
            layouts = {}
        if not layouts:
            begin, end = first, last
        end = max(end, last)
        sizes = a.size_bytes, b.size_bytes, pair.rank, pair.experts, pair.is_turned
        key = (pair.path.rpartition(".")[2], a.dtype, b.dtype, *sizes)
        layouts.setdefault(key, []).append((pair, a, b))
    if layouts:
        yield header.data_start + begin, header.data_start + end, _build_layouts(header, layouts)


def _build_layouts(
    header: Header, layouts: Mapping[tuple[object, ...], Sequence[tuple[Pair, TensorInfo, TensorInfo]]]
) -> tuple[_Layout, ...]:
    def rows(infos: Sequence[TensorInfo]) -> _Rows:
        starts = tuple(header.data_start + info.start for info in infos)
        return _Rows(infos[0].dtype, infos[0].size_bytes, starts)

    return tuple(
        _Layout(tuple(pair for pair, _, _ in alike), rows([a for _, a, _ in alike]), rows([b for _, _, b in alike]))
        for alike in layouts.values()
    )


def _is_readable(info: TensorInfo, rank: int) -> bool:
    elements = math.prod(info.shape)
    return bool(info.shape) and elements % rank == 0 and elements <= FACTOR_ELEMENTS_LIMIT and info.dtype in _READABLE


def _factor_norms(a_squared: float, b_squared: float, squared: float, scale: float, elements: int) -> FactorNorms:
    update = abs(scale) * math.sqrt(max(squared, 0.0))
    rms = update / math.sqrt(elements) if elements else 0.0
    return FactorNorms(_short(math.sqrt(a_squared)), _short(math.sqrt(b_squared)), _short(update), _short(rms))


def _short(value: float) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None


def _to_floats(words: Any, dtype: str) -> Any:
    if dtype == "F16":
        return _from_half(words)
    if dtype == "BF16":
        return (words.astype("<u4") << 16).view("<f4")
    if dtype in ("F8_E4M3", "F8_E5M2"):
        return _eight_bits(dtype)[words]
    return words.astype("<f4", copy=False)


def _from_half(words: Any) -> Any:
    """Finite 16-bit floats, read as signed integers, as 32-bit floats; 8 to 30 times as quick as numpy's conversion.

    Sign, exponent and mantissa move to their places (IEEE 754); 2^112 is the difference of the exponents' biases. The
    product is exact, of subnormal numbers as well.
    """
    bits = words.astype("<i4")
    bits <<= 13
    bits &= _HALF_BITS
    floats = bits.view("<f4")
    floats *= _HALF_SCALE
    return floats


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
