"""Effect and drift: the logits of the probes with the adapter against those without.

KL is KL(base ‖ adapter), the mean over all probe tokens, in nats; perplexity is that of each probe's own next tokens.
Logits are read once, some rows at a time, so intermediate values stay in the processor's cache.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from registry.evaluation.reference_logprobs import DECIMALS, Prompt, ReferenceLogprobs
from registry.worker.model.tasks import CAUSAL, Logits, ModelTask, Predictions
from registry.worker.smoke.result import SmokeResult

REFERENCE_PROMPTS = 3
ROWS = 8
"""Tokens whose logits are compared at once: one to two MB."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """The bare base's logits for the probes, and what follows from them; computed once for all adapters."""

    prompts: list[tuple[int, ...]]
    logits: Logits
    p: Logits
    normalizer: list[torch.Tensor]
    top: list[torch.Tensor]
    steps: list[torch.Tensor]
    dtype: str = "float32"
    texts: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, prompts: Sequence[tuple[int, ...]], logits: Logits, dtype: str = "float32", texts: Sequence[str] = ()
    ) -> Baseline:
        """Compute what every comparison needs. `texts`: how the base continues the first prompts."""
        normalizer = [torch.logsumexp(values, dim=-1) for values in logits]
        p = [torch.softmax(values, dim=-1) for values in logits]
        top = [values.argmax(-1, keepdim=True) for values in logits]
        steps = [_steps(*row) for row in zip(prompts, logits, normalizer, strict=True)]
        return cls(list(prompts), logits, p, normalizer, top, steps, dtype, tuple(texts))

    @property
    def tokens(self) -> int:
        """Number of tokens of all prompts."""
        return sum(len(tokens) for tokens in self.prompts)

    @property
    def rows(self) -> int:
        """Positions that are compared: one for each token, or one for each probe of a classifier."""
        return sum(len(values) for values in self.logits)

    @property
    def largest(self) -> float:
        """The largest absolute logit."""
        return max(float(values.abs().max()) for values in self.logits)


@dataclass(frozen=True, slots=True)
class _Difference:
    """The difference between the logits of one probe without and with the adapter; sums over its tokens."""

    largest: float
    mean_delta: float
    kl: float
    agree: int
    normalizer: torch.Tensor

    @classmethod
    def of(cls, baseline: Baseline, probe: int, after: torch.Tensor) -> _Difference:
        """KL = log Z' - log Z - sum(p d), with d the change of the logits: exact for a small d."""
        sums, normalizer = after.new_zeros(4), []
        for first in range(0, len(after), ROWS):
            rows = slice(first, first + ROWS)
            now, p, z = after[rows], baseline.p[probe][rows], baseline.normalizer[probe][rows]
            delta = now - baseline.logits[probe][rows]
            top = now.amax(-1)
            normalizer.append(top + (now - top[:, None]).exp_().sum(-1).log_())
            kl = (normalizer[-1] - z).sum() - torch.dot(p.flatten(), delta.flatten())
            agree = (now.gather(-1, baseline.top[probe][rows])[:, 0] >= top).sum()
            delta.abs_()
            largest = torch.maximum(sums[0], delta.amax())
            sums = torch.stack((largest, sums[1] + delta.mean(-1).sum(), sums[2] + kl, sums[3] + agree))
        largest, mean, kl, agree = sums.tolist()
        return cls(largest, mean, kl, int(agree), torch.cat(normalizer))


def _steps(tokens: Sequence[int], logits: torch.Tensor, normalizer: torch.Tensor) -> torch.Tensor:
    """log p of each next token of the probe: one number fewer than tokens. Empty without a language head."""
    if max(tokens) >= logits.shape[-1] or len(tokens) < 2 or len(logits) != len(tokens):
        return logits.new_zeros(0)
    next_tokens = torch.tensor(tokens[1:], device=logits.device)[:, None]
    return logits[:-1].gather(-1, next_tokens)[:, 0] - normalizer[:-1]


def compare(baseline: Baseline, after: Logits, result: SmokeResult, task: ModelTask = CAUSAL, *, kind: str) -> bool:
    """Note missing effect; of text also drift and the reference logprobs. False if the logits are not finite.

    KL and agreement need probabilities, so they are measured of tokens and labels. A trained head may say anything,
    so only a model that writes text can drift.
    """
    differences = [_Difference.of(baseline, i, values) for i, values in enumerate(after)]
    bad = sum(
        not (math.isfinite(difference.largest) or bool(values.isfinite().all()))
        for difference, values in zip(differences, after, strict=True)
    )
    if bad:
        message = f"the logits of {bad} of {len(after)} probes hold NaN or infinite values"
        result.note("error", "smoke.not_finite", "logits", message, "finite logits", "NaN or infinity")
        return False
    rows = baseline.rows
    result.measure("max_logit_delta", max(step.largest for step in differences))
    result.measure("mean_logit_delta", sum(step.mean_delta for step in differences) / rows)
    if task.predictions is not Predictions.STATES:
        result.measure("kl_nats", max(sum(step.kl for step in differences) / rows, 0.0))
        result.measure("top1_agreement", sum(step.agree for step in differences) / rows)
    _effect(max(step.largest for step in differences), result)
    if task.writes_text:
        normalizers = [difference.normalizer for difference in differences]
        steps = [_steps(*row) for row in zip(baseline.prompts, after, normalizers, strict=True)]
        _drift(baseline, steps, result, kind)
        if task.name == CAUSAL.name:
            _reference_logprobs(baseline, steps, result)
    return True


def _effect(largest: float, result: SmokeResult) -> None:
    least = result.thresholds.effect_logit_delta
    if largest > least:
        return
    zero, b = result.measurements["lora_b_zero_tensors"], result.measurements["lora_b_tensors"]
    reason = ": every lora_B is zero, as before training" if b and zero == b else ""
    message = f"with the adapter the base answers exactly as without it{reason}"
    limit = f"a logit that moves by more than {least:g}"
    result.note("error", "smoke.no_effect", "logits", message, limit, f"{largest:.3g}")


def _drift(baseline: Baseline, steps: list[torch.Tensor], result: SmokeResult, kind: str) -> None:
    limits, kl = result.thresholds, result.measurements["kl_nats"] or 0.0
    base_perplexity, perplexity = _perplexity(baseline.steps), _perplexity(steps)
    result.measure("base_perplexity", base_perplexity)
    result.measure("perplexity", perplexity)
    ratio = perplexity / base_perplexity if base_perplexity else 1.0
    if kl > limits.drift_fail_kl_nats:
        message = f"the adapter changes neutral text too strongly: KL {kl:.2f} nats a token"
        limit = f"at most {limits.drift_fail_kl_nats:g}"
        result.note("error", "smoke.drift", "logits", message, limit, f"{kl:.3f}")
    elif kind == "text" and ratio > limits.drift_fail_perplexity_ratio:
        change = f"from {base_perplexity:.1f} to {perplexity:.3g}"
        message = f"the adapter multiplies the perplexity of neutral text by {ratio:.0f}, {change}"
        limit = f"at most {limits.drift_fail_perplexity_ratio:g} times"
        result.note("error", "smoke.drift", "logits", message, limit, f"{ratio:.3g} times")
    elif kl > limits.drift_warn_kl_nats:
        message = f"the adapter changes neutral text strongly: KL {kl:.2f} nats a token"
        limit = f"at most {limits.drift_warn_kl_nats:g}"
        result.note("warning", "smoke.drift", "logits", message, limit, f"{kl:.3f}")


def _perplexity(steps: list[torch.Tensor]) -> float:
    joined = torch.cat(steps)
    return math.exp(min(-float(joined.mean()), 700.0)) if len(joined) else 0.0


def _reference_logprobs(baseline: Baseline, steps: list[torch.Tensor], result: SmokeResult) -> None:
    prompts = tuple(
        Prompt(tokens=tokens, adapter=_rounded(with_it), base=_rounded(without))
        for tokens, with_it, without in zip(baseline.prompts, steps, baseline.steps, strict=True)
        if len(with_it) and bool(torch.isfinite(with_it).all())
    )
    if prompts:
        device = str(baseline.logits[0].device).partition(":")[0]
        selected = prompts[:REFERENCE_PROMPTS]
        result.reference_logprobs = ReferenceLogprobs(prompts=selected, dtype=baseline.dtype, device=device)


def _rounded(steps: torch.Tensor) -> tuple[float, ...]:
    return tuple(round(float(value), DECIMALS) for value in steps)
