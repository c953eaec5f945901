"""Does it act, and how far does it leave the base? Logits of the probes with the adapter against those without.

Invariants
- KL is KL(base ‖ adapter), the mean over all probe tokens, in nats; perplexity is that of each probe's own next tokens.
- What depends on the base alone is computed once (`Baseline`) and serves every adapter.

Example
    >>> compare(Baseline.of(base.probes, before), after, seen, kind="text")
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from registry.fingerprint import DECIMALS, Fingerprint, Prompt
from registry.worker.model import Logits
from registry.worker.smoke.examination import Examination

FINGERPRINT_PROMPTS = 3


@dataclass(frozen=True, slots=True)
class Baseline:
    """The bare base's answers to the probes, and what is made of them."""

    asked: list[tuple[int, ...]]
    logits: Logits
    p: Logits
    negative_entropy: float
    top: list[torch.Tensor]
    steps: list[torch.Tensor]
    dtype: str = "float32"

    @classmethod
    def of(cls, asked: Sequence[tuple[int, ...]], logits: Logits, dtype: str = "float32") -> Baseline:
        logs = [torch.log_softmax(values, dim=-1) for values in logits]
        p = [values.exp() for values in logs]
        return cls(
            asked=list(asked),
            logits=logits,
            p=p,
            negative_entropy=sum(float(torch.xlogy(one, one).sum()) for one in p),
            top=[values.max(-1).indices for values in logits],
            steps=[_steps(tokens, values) for tokens, values in zip(asked, logs, strict=True)],
            dtype=dtype,
        )

    @property
    def tokens(self) -> int:
        return sum(len(tokens) for tokens in self.asked)

    @property
    def largest(self) -> float:
        return max(float(values.abs().max()) for values in self.logits)


def _steps(tokens: Sequence[int], logs: torch.Tensor) -> torch.Tensor:
    """log p of each next token of the probe itself: one number fewer than tokens. Empty without a language head."""
    if max(tokens) >= logs.shape[-1] or len(tokens) < 2:
        return logs.new_zeros(0)
    return logs[:-1].gather(-1, torch.tensor(tokens[1:], device=logs.device)[:, None])[:, 0]


def compare(baseline: Baseline, after: Logits, seen: Examination, *, kind: str) -> bool:
    """Finite, differing, not too far away; and the fingerprint. False when the logits are not finite."""
    bad = [i for i, values in enumerate(after) if not all(math.isfinite(end) for end in torch.aminmax(values))]
    if bad:
        sentence = f"the logits of {len(bad)} of {len(after)} probes hold NaN or infinite values"
        seen.note("error", "acts.not_finite", "logits", sentence, "finite logits", "NaN or infinity")
        return False
    largest, total, cross, agree, steps = 0.0, 0.0, 0.0, 0, []
    for i, values in enumerate(after):
        delta = (values - baseline.logits[i]).abs_()
        largest, total = max(largest, float(delta.max())), total + float(delta.mean()) * len(values)
        logs = torch.log_softmax(values, dim=-1)
        cross += float(torch.dot(baseline.p[i].flatten(), logs.flatten()))
        agree += int((values.max(-1).indices == baseline.top[i]).sum())
        steps.append(_steps(baseline.asked[i], logs))
    seen.measure("max_logit_delta", largest)
    seen.measure("mean_logit_delta", total / baseline.tokens)
    seen.measure("kl_nats", (baseline.negative_entropy - cross) / baseline.tokens)
    seen.measure("top1_agreement", agree / baseline.tokens)
    _effect(largest, seen)
    _drift(baseline, steps, seen, kind)
    _fingerprint(baseline, steps, seen)
    return True


def _effect(largest: float, seen: Examination) -> None:
    least = seen.thresholds.effect_logit_delta
    if largest > least:
        return
    zero, b = seen.measurements["lora_b_zero_tensors"], seen.measurements["lora_b_tensors"]
    why = ": every lora_B is zero, as before training" if b and zero == b else ""
    sentence = f"with the adapter the base answers exactly as without it{why}"
    limit = f"a logit that moves by more than {least:g}"
    seen.note("error", "acts.no_effect", "logits", sentence, limit, f"{largest:.3g}")


def _drift(baseline: Baseline, steps: list[torch.Tensor], seen: Examination, kind: str) -> None:
    limits, kl = seen.thresholds, seen.measurements["kl_nats"] or 0.0
    was, now = _perplexity(baseline.steps), _perplexity(steps)
    seen.measure("base_perplexity", was)
    seen.measure("perplexity", now)
    ratio = now / was if was else 1.0
    if kl > limits.drift_fail_kl_nats:
        sentence = f"the adapter destroys what the base can do: KL {kl:.2f} nats a token on neutral text"
        limit = f"at most {limits.drift_fail_kl_nats:g}"
        seen.note("error", "acts.drift", "logits", sentence, limit, f"{kl:.3f}")
    elif kind == "text" and ratio > limits.drift_fail_perplexity_ratio:
        sentence = f"neutral text is {ratio:.0f} times as perplexing as for the bare base ({was:.1f} to {now:.3g})"
        limit = f"at most {limits.drift_fail_perplexity_ratio:g} times"
        seen.note("error", "acts.drift", "logits", sentence, limit, f"{ratio:.3g} times")
    elif kl > limits.drift_warn_kl_nats:
        sentence = f"the adapter leaves the base far behind on neutral text: KL {kl:.2f} nats a token"
        limit = f"at most {limits.drift_warn_kl_nats:g}"
        seen.note("warning", "acts.drift", "logits", sentence, limit, f"{kl:.3f}")


def _perplexity(steps: list[torch.Tensor]) -> float:
    joined = torch.cat(steps)
    return math.exp(min(-float(joined.mean()), 700.0)) if len(joined) else 0.0


def _fingerprint(baseline: Baseline, steps: list[torch.Tensor], seen: Examination) -> None:
    prompts = tuple(
        Prompt(tokens=tokens, adapter=_rounded(with_it), base=_rounded(without))
        for tokens, with_it, without in zip(baseline.asked, steps, baseline.steps, strict=True)
        if len(with_it) and bool(torch.isfinite(with_it).all())
    )
    if prompts:
        device = str(baseline.logits[0].device).partition(":")[0]
        kept = prompts[:FINGERPRINT_PROMPTS]
        seen.fingerprint = Fingerprint(prompts=kept, dtype=baseline.dtype, device=device)


def _rounded(steps: torch.Tensor) -> tuple[float, ...]:
    return tuple(round(float(value), DECIMALS) for value in steps)
