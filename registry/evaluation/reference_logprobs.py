"""`ReferenceLogprobs`: log-probabilities of fixed prompts with an adapter, to compare with an engine's answers.

    prompt    token numbers t₀ … tₙ
    adapter   n numbers: log p(tᵢ₊₁ | t₀ … tᵢ) in nats with the adapter, from 32-bit logits
    base      the same without it

A serving node asks its engine for the log-probabilities of a prompt's own tokens after it has loaded the adapter. An
engine that ignores the adapter answers like `base`. Engines in 16-bit formats were seen within 0.02 nats on average.
"""

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import ConfigDict, Field, model_validator

from registry.errors import Invalid
from registry.model import FrozenModel

TOLERANCE_NATS = 0.1
"""Mean distance a token up to which an engine's answer counts as the adapter's."""
DECIMALS = 5


class _FiniteModel(FrozenModel):
    model_config = ConfigDict(allow_inf_nan=False)


class Prompt(_FiniteModel):
    """A prompt of n tokens, and the log-probabilities of the n - 1 tokens after the first."""

    tokens: tuple[int, ...] = Field(min_length=2, max_length=4096)
    """Token numbers of the prompt."""
    adapter: tuple[float, ...]
    """With the adapter: log-probability of each token after the first, in nats."""
    base: tuple[float, ...]
    """The same without the adapter."""

    @model_validator(mode="after")
    def _one_number_a_step(self) -> Self:
        if not len(self.adapter) == len(self.base) == len(self.tokens) - 1:
            raise ValueError("a prompt of n tokens has n - 1 log-probabilities, with the adapter and without")
        return self


class ReferenceLogprobs(_FiniteModel):
    """`dtype` and `device` say how it was made; `format` grows when the meaning of a field changes."""

    format: Literal[1] = 1
    """Version of this format."""
    prompts: tuple[Prompt, ...] = Field(min_length=1, max_length=64)
    """Fixed prompts and how they were answered."""
    dtype: str = "float32"
    """Number format of the run, such as `float32`."""
    device: str = "cpu"
    """Device of the run, such as `cpu`."""


class Comparison(_FiniteModel):
    """Mean |distance| a token, in nats, to the answers with and without the adapter; and which of both it is.

    `neither`: farther than the tolerance from the adapter. `either`: adapter and base are too alike to tell.
    """

    to_adapter_nats: float
    to_base_nats: float
    largest_nats: float
    answers_like: Literal["adapter", "base", "neither", "either"]


def compare(
    reference: ReferenceLogprobs, log_probs: Sequence[Sequence[float]], tolerance_nats: float = TOLERANCE_NATS
) -> Comparison:
    """An engine's log-probabilities, one list for each prompt in order. `Invalid` when their numbers do not agree."""
    if [len(values) for values in log_probs] != [len(prompt.adapter) for prompt in reference.prompts]:
        raise Invalid("REQUEST_INVALID", "log-probabilities: one number for each token after a prompt's first")
    flat = [value for values in log_probs for value in values]
    adapter = [value for prompt in reference.prompts for value in prompt.adapter]
    base = [value for prompt in reference.prompts for value in prompt.base]
    to_adapter = [abs(a - b) for a, b in zip(flat, adapter, strict=True)]
    to_base = [abs(a - b) for a, b in zip(flat, base, strict=True)]
    near, far = sum(to_adapter) / len(flat), sum(to_base) / len(flat)
    return Comparison(
        to_adapter_nats=round(near, DECIMALS),
        to_base_nats=round(far, DECIMALS),
        largest_nats=round(max(to_adapter), DECIMALS),
        answers_like=_similarity(near, far, tolerance_nats),
    )


def _similarity(near: float, far: float, tolerance: float) -> Literal["adapter", "base", "neither", "either"]:
    if near <= tolerance and far <= tolerance and near * 4 > far:
        return "either"
    if near <= tolerance and near <= far:
        return "adapter"
    return "base" if far <= tolerance else "neither"
