"""Answers: how the bare base and the base with an adapter continue a text, for people to read.

The likeliest next tokens, and a golden answer as far as the model agrees with it, follow from logits that the smoke
test needs anyway. Generated text takes a pass for each token, so a worker generates only if its operator chose so
(ADR 44). Answers decide nothing: where a model cannot generate, there are none.
"""

from collections.abc import Sequence
from typing import Any

import torch

from registry.errors import printable
from registry.evaluation.reports import ANSWER_LIMIT, Answer, answer_text
from registry.worker.model.language import LoadedBase
from registry.worker.model.tasks import CAUSAL, Logits, Probe
from registry.worker.smoke.result import machine_fault, out_of_memory

PROMPTS = 3
"""The short probes, which have equal length."""
NEXT_TOKENS = 3
SECONDS_LIMIT = 30.0
"""After this time no further token of a batch is computed."""


def continue_probes(base: LoadedBase, model: Any, logits: Logits, tokens: int) -> list[str]:
    """Continue the short probes by `tokens` generated tokens; with 0, by what may come next and how likely it is.

    `logits`: those of `model` for the probes. Empty if these are not text, or the model is not one that continues it.
    """
    if base.task.name != CAUSAL.name or base.probe_kind != "text":
        return []
    if not tokens:
        return [_next_tokens(base, rows[-1]) for rows in logits[:PROMPTS]]
    prompts, padding = base.probes[:PROMPTS], base.tokenizer.pad_token_id
    try:
        ids = torch.tensor(prompts, dtype=torch.long, device=next(model.parameters()).device)
        with torch.inference_mode():
            rows = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, max_time=SECONDS_LIMIT,
                do_sample=False, num_beams=1, return_dict_in_generate=False,
                pad_token_id=base.tokenizer.eos_token_id if padding is None else padding,
            ).tolist()  # fmt: skip
    except Exception as e:
        if machine_fault(e) and not out_of_memory(e):
            raise
        return []
    return [text_of(base, row[len(prompts[0]) :]) for row in rows]


def _next_tokens(base: LoadedBase, logits: torch.Tensor) -> str:
    top = torch.softmax(logits, dim=-1).topk(min(NEXT_TOKENS, len(logits)))
    rows = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return printable(
        ", ".join(f"{_decode(base, [token], skip_special=False)!r} {p:.0%}" for token, p in rows), ANSWER_LIMIT
    )


def agreed_text(base: LoadedBase, logits: torch.Tensor, expected: Sequence[int]) -> str:
    """What a model writes by itself, up to the first token that is not the expected one.

    `logits` [expected + 1, vocabulary] are those of the expected answer: after another token they say nothing.
    """
    likeliest = logits.argmax(-1).tolist()
    agreed = next((i for i, token in enumerate(expected) if likeliest[i] != token), len(expected))
    return text_of(base, likeliest[: agreed + 1])


def text_of(base: LoadedBase, tokens: Sequence[int]) -> str:
    """Decode tokens, cut and with control and formatting characters escaped."""
    return answer_text(_decode(base, tokens, skip_special=True))


def _decode(base: LoadedBase, tokens: Sequence[int], *, skip_special: bool) -> str:
    """Nothing for numbers that the tokenizer does not know: a model may have more of them."""
    try:
        return str(base.tokenizer.decode(tokens, skip_special_tokens=skip_special))
    except Exception:
        return ""


def pair(base: LoadedBase, probes: Sequence[Probe], before: Sequence[str], after: Sequence[str]) -> list[Answer]:
    """The texts of the base and of the adapter beside each other; none if one side has none."""
    rows = zip(probes, before, after, strict=False)
    return [Answer(prompt=text_of(base, probe), base=bare, adapter=adapted) for probe, bare, adapted in rows]
