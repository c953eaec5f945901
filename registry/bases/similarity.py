"""`Likeness`: how two bases are related: a grade, and the figures that it comes from. `identity.compare` makes it.

Invariants
- It is symmetric: which of two descendants came first, the weights do not tell.

Example
    >>> Likeness(other="llama-70b", grade=Grade.EXACT).message
    'has the same weights, byte for byte'
"""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from registry.evaluation.verdicts import Value


class Grade(StrEnum):
    """How two bases are alike, from the same to strangers. `unknown`: too little could be compared."""

    EXACT = "exact"
    OTHER_DTYPE = "other-dtype"
    QUANTISED = "quantised"
    DESCENDANT = "descendant"
    UNRELATED = "unrelated"
    UNKNOWN = "unknown"


class Likeness(Value):
    """How the base `other` is related to the one that was asked about.

    `compared` tensors had values to compare, with a cosine of `mean` and `least`; `equal` of them had equal bytes.
    `changed` are the last parts of the paths of modules whose values differ.
    """

    other: str = ""
    grade: Grade
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
            Grade.EXACT: "has the same weights, byte for byte",
            Grade.OTHER_DTYPE: f"has the same weights in another dtype ({figures})",
            Grade.QUANTISED: f"has the same weights, quantised in one of the two ({figures})",
            Grade.DESCENDANT: f"descends from the same weights, by fine-tuning or merging ({figures}{changed})",
            Grade.UNRELATED: f"has unrelated weights ({figures})" if self.compared else "is another model",
            Grade.UNKNOWN: "is packed in a way that cannot be compared",
        }[self.grade]
