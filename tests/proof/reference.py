"""What PEFT answers: the log-probabilities of a fixed prompt, on a base alone and with each adapter."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import peft
import torch
import transformers

PROMPT = (5, 17, 42, 300, 7, 8, 9, 120, 64, 3, 77, 210, 11, 400, 23, 31)
"""Token ids; 7, 8, 9 are the invocation tokens of the case `alora`, 5 and 6 the rows of `trained-tokens`."""

LogProbs = tuple[float, ...]


def answers(base: Path, adapters: Mapping[str, Path]) -> dict[str, LogProbs | str]:
    """Adapter → log-probability of each token of PROMPT after the first; what PEFT refuses is its sentence.

    "" is the base without any.
    """
    results: dict[str, LogProbs | str] = {"": _of(_model(base))}
    for name, folder in adapters.items():
        try:
            results[name] = _of(peft.PeftModel.from_pretrained(_model(base), str(folder)))
        except Exception as e:  # whatever the library says is its answer
            results[name] = f"{type(e).__name__}: {str(e)[:200]}"
    return results


def _model(base: Path) -> torch.nn.Module:
    return transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()


@torch.no_grad()
def _of(model: torch.nn.Module) -> LogProbs:
    ids = torch.tensor([PROMPT])
    logits = model(input_ids=ids).logits[0, :-1].double()
    chosen = torch.log_softmax(logits, -1).gather(1, ids[0, 1:, None])[:, 0]
    return tuple(float(x) for x in chosen)


def distance(first: LogProbs, other: LogProbs) -> float:
    return max(abs(a - b) for a, b in zip(first, other, strict=True))
