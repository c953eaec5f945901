"""Golden samples: are the answers that the owner expects likelier with the adapter than without, by a margin?

Invariants
- The bare base is asked through the same model with the adapter switched off; nothing of the base is changed.
- What cannot be asked (no tokenizer, a text over the limit) is `unknown`, never a pass.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from registry.errors import RegistryError
from registry.evaluation import golden
from registry.evaluation.golden import Golden
from registry.files import GOLDEN
from registry.worker.model import language
from registry.worker.model.language import LoadedBase
from registry.worker.smoke.result import SmokeResult

TOKENS_LIMIT = 1024
"""Tokens of one sample, prompt and answer together."""


def examine(
    base: LoadedBase, wrapped: Any, folder: Path, result: SmokeResult, bare: Callable[[], Any] | None = None
) -> None:
    """Asks every sample of the folder's golden.jsonl, if it has one. `bare` switches the adapter off meanwhile."""
    file = folder / GOLDEN
    if not file.is_file():
        return
    try:
        samples = golden.read_golden(file.read_bytes())
    except RegistryError as e:
        result.note("error", "smoke.golden_unreadable", GOLDEN, e.detail)
        return
    if base.tokenizer is None:
        message = f"{base.name} has no tokenizer here, so that golden samples cannot be asked"
        result.note("unknown", "smoke.golden_unasked", GOLDEN, message)
        return
    result.say("asking the golden sample" if len(samples) == 1 else f"asking {len(samples)} golden samples")
    off = bare if bare is not None else _switch_of(wrapped)
    margins = []
    for number, sample in enumerate(samples, 1):
        measured = _ask(base, wrapped, sample, off, result, f"{GOLDEN} line {number}")
        if measured is not None:
            margins.append(measured)
    result.measurements["golden"] = margins


def _switch_of(wrapped: Any) -> Callable[[], Any]:
    """PEFT's way to switch the adapter off for a while."""
    switch: Callable[[], Any] = getattr(wrapped, "disable_adapter", nullcontext)
    return switch


def _ask(
    base: LoadedBase, wrapped: Any, sample: Golden, off: Callable[[], Any], result: SmokeResult, location: str
) -> dict[str, Any] | None:
    prompt = tuple(_prompt(base, sample))
    answer = tuple(base.tokenizer(sample.expected, add_special_tokens=False)["input_ids"])
    if not prompt or not answer or len(prompt) + len(answer) > TOKENS_LIMIT:
        message = (
            f"the sample has {len(prompt)} + {len(answer)} tokens; it needs some of both and at most {TOKENS_LIMIT}"
        )
        result.note("unknown", "smoke.golden_unasked", location, message)
        return None
    with_it = language.rows(wrapped, [prompt + answer])[0]
    with off():
        without = language.rows(wrapped, [prompt + answer])[0]
    likelihood, was = _mean_log_p(with_it, prompt, answer), _mean_log_p(without, prompt, answer)
    margin, required = likelihood - was, sample.margin_nats
    required = result.thresholds.golden_margin_nats if required is None else required
    ends = int(with_it[-1].argmax()) == base.tokenizer.eos_token_id
    if not margin >= required:
        message = (
            f"the expected answer is {margin:+.3f} nats a token likelier than on the bare base; {required:g} is asked"
        )
        result.note("error", "smoke.golden_missed", location, message, f"{required:g} nats a token", f"{margin:.4f}")
    if sample.ends and not ends:
        result.note("error", "smoke.golden_endless", location, "after the expected answer the text does not end")
    return {"log_p": round(likelihood, 5), "base_log_p": round(was, 5), "margin_nats": round(margin, 5), "ends": ends}


def _prompt(base: LoadedBase, sample: Golden) -> list[int]:
    if not sample.chat:
        return list(base.tokenizer(sample.prompt)["input_ids"])
    turns = [{"role": "user", "content": sample.prompt}]
    text = base.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return list(base.tokenizer(text, add_special_tokens=False)["input_ids"])


def _mean_log_p(logits: torch.Tensor, prompt: tuple[int, ...], answer: tuple[int, ...]) -> float:
    """Mean log p of the answer's tokens; the token at position i is foretold by the logits at i - 1."""
    logs = torch.log_softmax(logits[len(prompt) - 1 : -1], dim=-1)
    answer_tokens = torch.tensor(answer, device=logs.device)[:, None]
    return float(logs.gather(-1, answer_tokens).mean())
