"""Put one adapter on a loaded base and see whether it acts: values, load, forward, comparison, and the base afterwards.

    values     every number of the file is finite; how large each module's update is, beside the base's weight
    load       PEFT takes it
    forward    logits of the probes are finite
    acts       they differ from the base's
    base       after the adapter is gone, the base's numbers and logits are bit-equal to before

Invariants
- Runs in a child process that is thrown away, on an adapter that already fits by its header (registry.compat).
- What the adapter does wrong is a finding. Running out of memory is no finding: it is raised, and the job fails.
- Never raises for a hostile file that passed the header check; PEFT's exception becomes `acts.load_failed`.

Example
    >>> examine(base, Path("scratch/adapter"), config).findings
    ()
"""

from __future__ import annotations

import math
import resource
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import peft
import torch
from safetensors import safe_open

from registry.lora.config import AdapterConfig
from registry.verdicts import Finding
from registry.worker import model, probes, updates
from registry.worker.model import Base, Logits
from registry.worker.probes import THRESHOLDS, Thresholds

WEIGHTS = "adapter_model.safetensors"
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga", "kasa", "eva_pissa")
"""Beginnings of `init_lora_weights` with which PEFT rewrites the base while it loads (adapters.md: 0.31 to 0.47)."""


@dataclass(slots=True)
class Examination:
    """What one adapter showed. `measurements` carry their unit in the name; a number that is not finite is None."""

    findings: list[Finding] = field(default_factory=list)
    measurements: dict[str, Any] = field(default_factory=dict)

    def note(
        self, severity: Literal["error", "warning", "unknown", "info"], code: str, place: str, sentence: str,
        expected: str = "", found: str = "",
    ) -> None:  # fmt: skip
        self.findings.append(
            Finding(code=code, severity=severity, place=place[:600], sentence=sentence[:2000],
                    expected=expected[:600], found=found[:600])
        )  # fmt: skip

    def measure(self, name: str, value: float) -> None:
        self.measurements[name] = float(f"{value:.6g}") if math.isfinite(value) else None


def examine(base: Base, folder: Path, config: AdapterConfig, thresholds: Thresholds = THRESHOLDS) -> Examination:
    """Everything that a smoke test sees. Leaves the base unloaded of the adapter, but is not to be trusted to."""
    seen = Examination()
    if config.task and base.task and config.task != base.task:
        sentence = f"the adapter is for the task {config.task}, and this worker runs {base.name} as {base.task}"
        seen.note("unknown", "acts.task_unsupported", "adapter_config.json: task_type", sentence)
        return seen
    if not _values(folder / WEIGHTS, seen, thresholds):
        return seen
    _norms(base, folder, seen, thresholds)
    special = (*config.invocation_tokens, *(token for tokens in config.token_indices.values() for token in tokens))
    asked = probes.with_tokens(base.probes, special, base.vocabulary)
    fingerprint = base.fingerprint()
    started = perf_counter()
    before = base.logits(asked)
    seen.measure("base_forward_seconds", perf_counter() - started)
    wrapped = _load(base, folder, seen)
    if wrapped is not None:
        _compare(wrapped, asked, before, seen, thresholds)
        _base_afterwards(base, wrapped, (fingerprint, before, asked), config, seen)
    seen.measurements["probes"] = len(asked)
    seen.measurements["probe_tokens"] = sum(len(tokens) for tokens in asked)
    seen.measurements["probe_kind"] = base.probe_kind
    seen.measurements["peak_memory_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return seen


def _values(weights: Path, seen: Examination, thresholds: Thresholds) -> bool:
    """Whether all numbers of the file are finite. A NaN is found here by its tensor's name, and nothing is loaded."""
    started = perf_counter()
    broken, zero_b, b = [], 0, 0
    with safe_open(weights, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - not a dictionary
            values = file.get_tensor(name)
            values = values.float() if values.is_floating_point() else values
            if not bool(torch.isfinite(values).all()):
                broken.append(name)
            if "lora_B" in name or "lora_embedding_B" in name:
                b += 1
                zero_b += not bool(values.any())
    seen.measure("values_seconds", perf_counter() - started)
    seen.measurements["lora_b_tensors"] = b
    seen.measurements["lora_b_zero_tensors"] = zero_b
    for name in broken[: thresholds.tensors_named_limit]:
        others = f", and so do {len(broken) - 1} more" if len(broken) > 1 else ""
        sentence = f"{name} holds NaN or infinite values{others}"
        seen.note("error", "acts.not_finite", name, sentence, "finite numbers", "NaN or infinity")
    return not broken


def _norms(base: Base, folder: Path, seen: Examination, thresholds: Thresholds) -> None:
    """`module_norms`: |A|, |B|, |scale · BA| of each module's update, and |W| of the base's weight where it has one."""
    started = perf_counter()
    found: dict[str, list[float | None]] = {}
    for update in islice(updates.of_folder(folder), thresholds.modules_measured_limit):
        size = update.norms()
        numbers = (size.a, size.b, size.update, _weight_norm(base, update.path))
        found[update.path] = [float(f"{n:.4g}") if n is not None and math.isfinite(n) else None for n in numbers]
    if found:
        seen.measurements["module_norms"] = found
        seen.measure("norms_seconds", perf_counter() - started)


def _weight_norm(base: Base, path: str) -> float | None:
    """The norm of the base's own weight; None for one that is packed (quantised) or not there under this path."""
    try:
        weight = base.model.get_parameter(f"{path}.weight")
    except AttributeError:
        return None
    return float(weight.detach().float().norm()) if weight.is_floating_point() else None


def _load(base: Base, folder: Path, seen: Examination) -> Any:
    started = perf_counter()
    try:
        wrapped = peft.PeftModel.from_pretrained(base.model, str(folder), is_trainable=False, torch_device="cpu")
    except Exception as e:
        if out_of_memory(e):
            raise
        sentence = f"PEFT {peft.__version__} cannot load the adapter: {first_line(e)}"
        seen.note("error", "acts.load_failed", WEIGHTS, sentence)
        return None
    wrapped.eval()
    seen.measure("load_seconds", perf_counter() - started)
    return wrapped


def first_line(error: BaseException) -> str:
    """An exception in one line: its class and the first line of what it says."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no reason given'])[0]}"[:1500]


def out_of_memory(error: BaseException) -> bool:
    """Whether this is the machine's limit and not the adapter's fault. torch raises RuntimeError for both."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "can't allocate memory" in text or "out of memory" in text


def _compare(
    wrapped: Any, asked: list[tuple[int, ...]], before: Logits, seen: Examination, thresholds: Thresholds
) -> None:
    started = perf_counter()
    try:
        after = model.logits(wrapped, asked)
    except Exception as e:
        if out_of_memory(e):
            raise
        seen.note("error", "acts.forward_failed", "forward", f"the model with the adapter fails: {first_line(e)}")
        return
    seen.measure("adapter_forward_seconds", perf_counter() - started)
    bad = [i for i, values in enumerate(after) if not bool(torch.isfinite(values).all())]
    if bad:
        sentence = f"the logits of {len(bad)} of {len(after)} probes hold NaN or infinite values"
        seen.note("error", "acts.not_finite", "logits", sentence, "finite logits", "NaN or infinity")
        return
    deltas = torch.cat([(a - b).abs().flatten() for a, b in zip(after, before, strict=True)])
    largest = float(deltas.max())
    seen.measure("max_logit_delta", largest)
    seen.measure("mean_logit_delta", float(deltas.mean()))
    kl, agreement = _drift(before, after)
    seen.measure("kl_nats", kl)
    seen.measure("top1_agreement", agreement)
    if largest <= thresholds.effect_logit_delta:
        zero, b = seen.measurements["lora_b_zero_tensors"], seen.measurements["lora_b_tensors"]
        why = ": every lora_B is zero, as before training" if b and zero == b else ""
        sentence = f"with the adapter the base answers exactly as without it{why}"
        limit = f"a logit that moves by more than {thresholds.effect_logit_delta:g}"
        seen.note("error", "acts.no_effect", "logits", sentence, limit, f"{largest:.3g}")
    if kl > thresholds.drift_warn_kl_nats:
        sentence = f"the adapter leaves the base far behind on neutral text: KL {kl:.2f} nats a token"
        limit = f"at most {thresholds.drift_warn_kl_nats:g}"
        seen.note("warning", "acts.drift", "logits", sentence, limit, f"{kl:.3f}")


def _drift(before: Logits, after: Logits) -> tuple[float, float]:
    """Mean KL(base ‖ adapter) in nats per token, and how often both put the same token first (0 to 1)."""
    p = torch.log_softmax(torch.cat(before), dim=-1)
    q = torch.log_softmax(torch.cat(after), dim=-1)
    kl = float((p.exp() * (p - q)).sum(-1).mean())
    return kl, float((p.argmax(-1) == q.argmax(-1)).float().mean())


Before = tuple[dict[str, int], Logits, list[tuple[int, ...]]]


def _base_afterwards(base: Base, wrapped: Any, was: Before, config: AdapterConfig, seen: Examination) -> None:
    """The base without the adapter must be the base: by every parameter's bits, and by its logits' bits."""
    fingerprint, before, asked = was
    started = perf_counter()
    try:
        bare = wrapped.get_base_model()
        wrapped.delete_adapter("default")  # `unload` would keep the copies of modules_to_save in the base's place
    except Exception as e:
        if out_of_memory(e):
            raise
        seen.note("warning", "acts.unload_failed", "unload", f"the adapter does not come off again: {first_line(e)}")
        bare = None
    now = base.fingerprint()
    changed = sorted(name for name, bits in fingerprint.items() if now[name] != bits)
    # A bias that the adapter trained is written over the base's own: by its bits only, the logits follow.
    same = bare is not None and all(torch.equal(a, b) for a, b in zip(model.logits(bare, asked), before, strict=True))
    seen.measurements["base_tensors_changed"] = len(changed)
    seen.measurements["base_logits_equal_after"] = same
    seen.measure("base_check_seconds", perf_counter() - started)
    if changed or (bare is not None and not same):
        _note_change(changed, config, seen)


def _note_change(changed: list[str], config: AdapterConfig, seen: Examination) -> None:
    where = changed[0] if changed else "logits"
    what = f"{len(changed)} of the base's tensors" if changed else "the base's answers"
    announced = (
        config.bias != "none"
        or config.initialisation.startswith(CHANGES_BASE)
        or bool(config.layer_replication)
        or config.method == "LN_TUNING"
    )
    if announced:
        sentence = f"{what} stay changed after unloading, as the configuration announces: it needs a process of its own"
        seen.note("warning", "acts.base_changed", where, sentence, "bit-equal", "changed")
    else:
        sentence = f"{what} stay changed after the adapter is unloaded: it would poison its neighbours"
        seen.note("error", "acts.base_changed", where, sentence, "bit-equal", "changed")
