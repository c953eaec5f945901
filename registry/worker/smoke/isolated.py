"""Any adapter on a base in a process that is thrown away: load, forward, comparison, and the base afterwards.

Invariants
- Runs on an adapter that already fits by its header (registry.compat).
- Never raises for a hostile file that passed the header check; PEFT's exception becomes `smoke.load_failed`.
- The base without the adapter must be the base again, by every parameter's bits and by its logits' bits.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import peft
import torch

from registry.adapters import methods
from registry.adapters.peft import initializations
from registry.adapters.peft.config import AdapterConfig
from registry.evaluation.thresholds import Thresholds
from registry.files import CONFIG, WEIGHTS
from registry.worker.model import language, probes, updates
from registry.worker.model.language import LoadedBase, Logits
from registry.worker.smoke import acting, dialogue, samples
from registry.worker.smoke.acting import Baseline
from registry.worker.smoke.faults import first_line, machine_fault
from registry.worker.smoke.result import SmokeResult, ignore_progress
from registry.worker.smoke.weights import check_finite, measure_norms, tensors_of, weight_norm


@dataclass(frozen=True, slots=True)
class Known:
    """What a process knows of its base already. `shared`: other adapters come after this one, so nothing may stay."""

    baseline: Baseline
    fingerprint: dict[str, int]
    shared: bool = False


def announces_change(config: AdapterConfig) -> bool:
    """Whether the configuration says that the base will not stay what it was."""
    return (
        config.bias != "none"
        or initializations.changes_base_at_load(config.initialization)
        or "kasa_config" in config.other
        or bool(config.layer_replication)
        or methods.find(config.method).replaces_weights
    )


def examine(
    base: LoadedBase, folder: Path, config: AdapterConfig, thresholds: Thresholds, reference: Known | None = None, *,
    say: Callable[[str], None] = ignore_progress,
) -> SmokeResult:  # fmt: skip
    """Everything that a smoke test sees. Leaves the base unloaded of the adapter, but is not to be trusted to."""
    result = SmokeResult(thresholds, say=say)
    if config.task and base.task and config.task != base.task:
        message = f"the adapter is for the task {config.task}, and this worker runs {base.name} as {base.task}"
        result.note("unknown", "smoke.task_unsupported", f"{CONFIG}: task_type", message)
        return result
    if not check_finite(tensors_of(folder / WEIGHTS), result):
        return result
    parameters = dict(base.model.named_parameters())
    measure_norms(updates.of_folder(folder), lambda path: weight_norm(parameters, path), result)
    prompts = prompts_for(base, config)
    result.say("running the probes on the bare base")
    if reference is None or reference.baseline.asked != prompts:
        reference = _learn(base, prompts, result, shared=reference is not None)
    result.say("loading the adapter")
    wrapped = _load(base, folder, result)
    if wrapped is not None:
        if _compare(base, wrapped, reference.baseline, result):
            dialogue.examine(base, folder, result)
            samples.examine(base, wrapped, folder, result)
        _base_afterwards(base, wrapped, reference, config, result)
    record_probes(base, prompts, result)
    return result


def prompts_for(base: LoadedBase, config: AdapterConfig) -> list[tuple[int, ...]]:
    """The base's probes, and one with the tokens without which this adapter does nothing."""
    special = (*config.invocation_tokens, *(token for tokens in config.token_indices.values() for token in tokens))
    return probes.with_tokens(base.probes, special, base.vocabulary)


def record_probes(base: LoadedBase, prompts: Sequence[tuple[int, ...]], result: SmokeResult) -> None:
    result.measurements["probes"] = len(prompts)
    result.measurements["probe_tokens"] = sum(len(tokens) for tokens in prompts)
    result.measurements["probe_kind"] = base.probe_kind
    result.measurements["peak_memory_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if torch.cuda.is_initialized():
        peaks = [torch.cuda.max_memory_allocated(number) for number in range(torch.cuda.device_count())]
        result.measurements["peak_gpu_memory_bytes"] = sum(peaks)


def _learn(base: LoadedBase, prompts: list[tuple[int, ...]], result: SmokeResult, *, shared: bool) -> Known:
    started = perf_counter()
    before = base.logits(prompts)
    result.measure("base_forward_seconds", perf_counter() - started)
    return Known(Baseline.of(prompts, before, base.dtype), base.fingerprint(), shared)


def _load(base: LoadedBase, folder: Path, result: SmokeResult) -> Any:
    started = perf_counter()
    device = str(next(base.model.parameters()).device)
    try:
        wrapped = peft.PeftModel.from_pretrained(base.model, str(folder), is_trainable=False, torch_device=device)
    except Exception as e:
        if machine_fault(e):
            raise
        message = f"PEFT {peft.__version__} cannot load the adapter: {first_line(e)}"
        result.note("error", "smoke.load_failed", WEIGHTS, message)
        return None
    wrapped.eval()
    result.measure("load_seconds", perf_counter() - started)
    return wrapped


def _compare(base: LoadedBase, wrapped: Any, baseline: Baseline, result: SmokeResult) -> bool:
    started = perf_counter()
    try:
        after = language.logits(wrapped, baseline.asked)
    except Exception as e:
        if machine_fault(e):
            raise
        result.note("error", "smoke.forward_failed", "forward", f"the model with the adapter fails: {first_line(e)}")
        return False
    result.measure("adapter_forward_seconds", perf_counter() - started)
    return acting.compare(baseline, after, result, kind=base.probe_kind)


def _base_afterwards(
    base: LoadedBase, wrapped: Any, reference: Known, config: AdapterConfig, result: SmokeResult
) -> None:
    """Without the adapter the base must be unchanged: every parameter and the logits, bit by bit."""
    started = perf_counter()
    try:
        bare = wrapped.get_base_model()
        wrapped.delete_adapter("default")  # `unload` would keep the copies of modules_to_save in the base's place
        if reference.shared:
            wrapped.unload()
    except Exception as e:
        if machine_fault(e):
            raise
        result.note("warning", "smoke.unload_failed", "unload", f"the adapter cannot be unloaded: {first_line(e)}")
        bare = None
    now = base.fingerprint()
    changed = sorted(name for name, bits in reference.fingerprint.items() if now[name] != bits)
    # A bias that the adapter trained is written over the base's own: by its bits only, the logits follow.
    same = bare is not None and _equal(language.logits(bare, reference.baseline.asked), reference.baseline.logits)
    result.measurements["base_tensors_changed"] = len(changed)
    result.measurements["base_logits_equal_after"] = same
    result.measure("base_check_seconds", perf_counter() - started)
    if changed or (bare is not None and not same):
        _note_change(changed, config, result)


def _equal(now: Logits, before: Logits) -> bool:
    return all(torch.equal(a, b) for a, b in zip(now, before, strict=True))


def _note_change(changed: list[str], config: AdapterConfig, result: SmokeResult) -> None:
    where = changed[0] if changed else "logits"
    what = f"{len(changed)} of the base's tensors" if changed else "the base's answers"
    if announces_change(config):
        message = f"{what} stay changed after unloading, as the configuration announces: it needs a process of its own"
        result.note("warning", "smoke.base_changed", where, message, "bit-equal", "changed")
    else:
        message = f"{what} stay changed after the adapter is unloaded: it would change the answers of other adapters"
        result.note("error", "smoke.base_changed", where, message, "bit-equal", "changed")
