"""From the numbers of an adapter's weights to findings of the check `weights`, and the norms of its modules."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from registry.adapters.read import Pair
from registry.adapters.safetensors import Header
from registry.evaluation.verdicts import Finding
from registry.server.evaluation.weights import numbers
from registry.server.evaluation.weights.numbers import FactorNorms

Read = Callable[[int, int], bytes]
INLINE_BYTES = 16 * 2**20
"""Weights up to this size are measured at the commit of a push: some 20 ms; larger ones when it has been answered."""
HUGE_RMS = 0.5
"""Root mean square of an update's elements. Weights of language models have 0.01 to 0.1, trained updates far less."""
NAMED_LIMIT = 20
WINDOW_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True)
class Measured:
    findings: tuple[Finding, ...]
    norms: dict[str, FactorNorms]


@dataclass(slots=True)
class Window:
    """A file read in large pieces, whatever is asked of it: a store far away would be asked for each tensor else."""

    fetch: Read
    size_bytes: int
    start: int = 0
    held: memoryview = field(default_factory=lambda: memoryview(b""))

    def read(self, start: int, length: int) -> memoryview:
        if not (self.start <= start and start + length <= self.start + len(self.held)):
            self.held = memoryview(b"")  # let go before the next piece comes
            count = min(max(length, WINDOW_BYTES), self.size_bytes - start)
            self.start, self.held = start, memoryview(self.fetch(start, count))
        return self.held[start - self.start : start - self.start + length]


def measure(fetch: Read, size_bytes: int, header: Header, pairs: Iterable[Pair]) -> Measured:
    """Every number read once for NaN, and the pairs once more for their norms (only if all are finite).

    `fetch` reads (offset, length) of the weights' file, which has `size_bytes`.
    """
    read = Window(fetch, size_bytes).read
    broken = numbers.find_not_finite(read, header)
    if broken:
        return Measured(tuple(_not_finite(name, len(broken)) for name in broken[:NAMED_LIMIT]), {})
    norms = numbers.compute_norms(read, header, pairs)
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
