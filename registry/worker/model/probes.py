"""What a smoke test asks of an adapter: fixed texts, or fixed token numbers for a base without a tokenizer.

Invariants
- The probes never change between two runs, so two reports of one adapter can be compared.
- A base without a tokenizer is probed with fixed token numbers; the report says which kind it was.
- The short texts are cut to one number of tokens, the long ones to another, so that each three are one batch without
  padding: a forward that reads the base's weights once does the work of three.
- An adapter that acts only after certain tokens (aLoRA, trained tokens) is also probed with those tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

SHORT: tuple[str, ...] = (
    "The train to the coast leaves at nine, and the last one comes back before midnight.",
    "Customer: My parcel has not arrived yet. What can I do?\nShop:",
    "def area(width, height):\n    return width * height\n\n\ndef volume(",
)
LONG: tuple[str, ...] = (
    "Bread needs four things: flour, water, salt and time. Mix them in the evening, let the dough rest in a cool place "
    "over night, and bake it in the morning until the crust is dark and sounds hollow when you knock on it.",
    "The committee met on Tuesday to discuss the budget for the coming year. After two hours it agreed on a smaller "
    "sum for the library, put off the question of the bridge, and thanked the treasurer for her patient work.",
    "Light from the sun takes about eight minutes to reach the earth. The moon, which is much closer, sends us only "
    "what it reflects, and so we always see its surface as it was a little more than a second ago.",
)
"""Neutral, short, of our own: sentences, a customer's question, code, and three paragraphs to measure drift on."""

TOKENS_LIMIT = 64
"""Tokens kept of one probe: enough to tell adapters apart, short enough for a CPU."""

Probe = tuple[int, ...]

_STEP = 13  # coprime to ordinary vocabulary sizes, so that the numbers spread


def tokenised(tokens_of: Callable[[str], Sequence[int]]) -> list[Probe]:
    """The texts as token numbers, the short ones first; those of a group are equally long."""
    prompts: list[Probe] = []
    for texts in (SHORT, LONG):
        group = [tuple(tokens_of(text)) for text in texts]
        length = min(TOKENS_LIMIT, *map(len, group))
        prompts += [tokens[:length] for tokens in group]
    return prompts


def numbered(vocabulary: int) -> list[Probe]:
    """Probes as token numbers, for a base that has no tokenizer. Each number is below `vocabulary`."""
    return [tuple((3 + start + _STEP * i) % vocabulary for i in range(16)) for start in (0, 5, 9)]


def with_tokens(probes: list[Probe], special: Probe, vocabulary: int) -> list[Probe]:
    """The probes, and one more that holds the tokens without which the adapter would rightly do nothing."""
    usable = tuple(token for token in special if 0 <= token < vocabulary)[:TOKENS_LIMIT]
    return [*probes, (*probes[0][:8], *usable, *probes[0][8:16])] if usable else probes
