"""Golden samples: expected answers must be more likely with the adapter than without, by a margin.

A sample that cannot be tested (no tokenizer, a text over the limit) is `unknown`, never a pass.
"""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from registry.errors import RegistryError
from registry.evaluation import golden
from registry.evaluation.golden import Golden
from registry.evaluation.reports import NUMBER_LIMIT, Answer, answer_text
from registry.versions.files import GOLDEN
from registry.worker.model.language import LoadedBase
from registry.worker.smoke.answers import agreed_text
from registry.worker.smoke.result import SmokeResult

TOKENS_LIMIT = 1024
"""Tokens of one sample, prompt and answer together."""


def examine(base: LoadedBase, wrapped: Any, folder: Path, result: SmokeResult) -> None:
    """Test every sample of the folder's golden.jsonl, if it has one."""
    file = folder / GOLDEN
    if not file.is_file():
        return
    try:
        samples = golden.read_golden(file.read_bytes())
    except RegistryError as e:
        result.note("error", "smoke.golden_unreadable", GOLDEN, e.detail)
        return
    if base.tokenizer is None or not base.task.writes_text:
        reason = "has no tokenizer here" if base.task.writes_text else f"is a {base.task.label}"
        message = f"{base.name} {reason}, so golden samples cannot be tested"
        result.note("unknown", "smoke.golden_skipped", GOLDEN, message)
        return
    result.say(f"testing {len(samples)} golden sample{'s' * (len(samples) > 1)}")
    measured = [
        _measure(base, wrapped, sample, result, f"{GOLDEN} line {number}") for number, sample in enumerate(samples, 1)
    ]
    result.golden = [numbers for numbers in measured if numbers is not None]


def _measure(
    base: LoadedBase, wrapped: Any, sample: Golden, result: SmokeResult, location: str
) -> dict[str, float | bool] | None:
    prompt = tuple(_prompt(base, sample))
    answer = tuple(base.tokenizer(sample.expected, add_special_tokens=False)["input_ids"])
    if not prompt or not answer or len(prompt) + len(answer) > TOKENS_LIMIT:
        message = f"the sample has {len(prompt)} + {len(answer)} tokens; each needs one, both at most {TOKENS_LIMIT}"
        result.note("unknown", "smoke.golden_skipped", location, message)
        return None
    adapter_logits = base.forward.rows_of_answer(wrapped, prompt, answer)
    with getattr(wrapped, "disable_adapter", nullcontext)():
        base_logits = base.forward.rows_of_answer(wrapped, prompt, answer)
    texts = [agreed_text(base, logits, answer) for logits in (base_logits, adapter_logits)]
    result.answers.append(Answer(prompt=answer_text(sample.prompt), base=texts[0], adapter=texts[1]))
    adapter_log_p, base_log_p = _mean_log_p(adapter_logits, answer), _mean_log_p(base_logits, answer)
    margin, required = adapter_log_p - base_log_p, sample.margin_nats
    required = result.thresholds.golden_margin_nats if required is None else required
    ends = int(adapter_logits[-1].argmax()) == base.tokenizer.eos_token_id
    if not margin >= required:
        message = (
            f"the expected answer is {margin:+.3f} nats a token likelier than on the base; {required:g} is required"
        )
        result.note("error", "smoke.golden_missed", location, message, f"{required:g} nats a token", f"{margin:.4f}")
    if sample.ends and not ends:
        result.note("error", "smoke.golden_not_ended", location, "the text does not end after the expected answer")
    log_ps = {"log_p": adapter_log_p, "base_log_p": base_log_p, "margin_nats": margin}
    bounded = {name: max(-NUMBER_LIMIT, min(value, NUMBER_LIMIT)) for name, value in log_ps.items()}
    return {**{name: round(value, 5) for name, value in bounded.items()}, "ends": ends}


def _prompt(base: LoadedBase, sample: Golden) -> list[int]:
    if not sample.chat:
        return list(base.tokenizer(sample.prompt)["input_ids"])
    turns = [{"role": "user", "content": sample.prompt}]
    text = base.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return list(base.tokenizer(text, add_special_tokens=False)["input_ids"])


def _mean_log_p(logits: torch.Tensor, answer: tuple[int, ...]) -> float:
    """Mean log p of the answer's tokens. `logits` has one row more, for what follows the answer."""
    logs = torch.log_softmax(logits[:-1], dim=-1)
    answer_tokens = torch.tensor(answer, device=logs.device)[:, None]
    return float(logs.gather(-1, answer_tokens).mean())
