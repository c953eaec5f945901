"""`Similarity`: how two bases are related, and the figures behind it. `identity.compare` makes it.

Invariants
- It is symmetric: which of two descendants came first, the weights do not tell.

Example
    >>> Similarity(other="llama-70b", match=BaseMatch.EXACT).message
    'has the same weights, byte for byte'
"""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from registry.model import FrozenModel


class BaseMatch(StrEnum):
    """How closely the weights of two bases match. `unknown`: too little could be compared."""

    EXACT = "exact"
    OTHER_DTYPE = "other-dtype"
    QUANTIZED = "quantized"
    DESCENDANT = "descendant"
    UNRELATED = "unrelated"
    UNKNOWN = "unknown"


class Similarity(FrozenModel):
    """How the base `other` is related to the one that was asked about.

    `compared` tensors had values to compare, with a cosine of `mean` and `least`; `equal` of them had equal bytes.
    `changed` are the last parts of the paths of modules whose values differ.
    """

    other: str = ""
    match: BaseMatch
    compared: int = 0
    equal: int = 0
    mean: float | None = None
    least: float | None = None
    changed: tuple[str, ...] = Field(default=(), max_length=64)

    @property
    def message(self) -> str:
        """For people, to be put after the other's name."""
        figures = f"{self.equal} of {self.compared} tensors are equal"
        if self.mean is not None:
            figures += f", cosine {self.mean:.5f}"
        changed = f"; only {', '.join(self.changed)} differ" if 0 < len(self.changed) <= 4 else ""
        return {
            BaseMatch.EXACT: "has the same weights, byte for byte",
            BaseMatch.OTHER_DTYPE: f"has the same weights in another dtype ({figures})",
            BaseMatch.QUANTIZED: f"has the same weights, quantized in one of the two ({figures})",
            BaseMatch.DESCENDANT: f"descends from the same weights, by fine-tuning or merging ({figures}{changed})",
            BaseMatch.UNRELATED: f"has unrelated weights ({figures})" if self.compared else "is another model",
            BaseMatch.UNKNOWN: "is packed in a way that cannot be compared",
        }[self.match]
