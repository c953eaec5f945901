"""What a smoke test asks of an adapter, and from which numbers on it complains: fixed texts and `Thresholds`.

Invariants
- The probes never change between two runs, so two reports of one adapter can be compared.
- A base without a tokenizer is probed with fixed token numbers; the report says which kind it was.
- An adapter that acts only after certain tokens (aLoRA, trained tokens) is also probed with those tokens.

Example
    >>> numbered(vocabulary=512)[0][:4]
    (3, 16, 29, 42)
"""

from __future__ import annotations

from dataclasses import dataclass

TEXTS: tuple[str, ...] = (
    "The train to the coast leaves at nine, and the last one comes back before midnight.",
    "Customer: My parcel has not arrived yet. What can I do?\nShop:",
    "def area(width, height):\n    return width *",
)
"""Neutral, short, of our own: a plain sentence, a customer's question, a line of code."""

TOKENS_LIMIT = 64
"""Tokens kept of one probe: enough to tell adapters apart, short enough for a CPU."""

_STEP = 13  # coprime to ordinary vocabulary sizes, so that the numbers spread


@dataclass(frozen=True, slots=True)
class Thresholds:
    """From which numbers on a measurement becomes a finding. Logits are fp32 on the probes' real tokens.

    `effect_logit_delta`: the largest |change| of a logit below which an adapter does nothing; fp32 noise of a
    different summation order stays under 1e-5 of the largest logit.
    `drift_warn_kl_nats`: mean KL(base ‖ adapter) per token above which a warning says that it left the base far
    behind. Healthy but overfitted adapters were measured at 0.5 to 1.9, a B ten times too large at 6.4.
    """

    effect_logit_delta: float = 1e-6
    drift_warn_kl_nats: float = 3.0
    tensors_named_limit: int = 20
    modules_measured_limit: int = 4000


THRESHOLDS = Thresholds()


def numbered(vocabulary: int) -> list[tuple[int, ...]]:
    """Probes as token numbers, for a base that has no tokenizer. Each number is below `vocabulary`."""
    return [tuple((3 + start + _STEP * i) % vocabulary for i in range(16)) for start in (0, 5, 9)]


def with_tokens(probes: list[tuple[int, ...]], special: tuple[int, ...], vocabulary: int) -> list[tuple[int, ...]]:
    """The probes, and one more that holds the tokens without which the adapter would rightly do nothing."""
    usable = tuple(token for token in special if 0 <= token < vocabulary)[:TOKENS_LIMIT]
    return [*probes, (*probes[0][:8], *usable, *probes[0][8:16])] if usable else probes
