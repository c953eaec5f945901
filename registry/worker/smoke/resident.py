"""`Resident`: one model object for many adapters. Plain LoRA adapters of one layout are hot-swapped into two slots.

    layout    the modules that an adapter targets, its task, its orientation; ranks and scales may differ
    slot      a named adapter in PEFT; two take turns, so that the previous adapter stays loaded during a test

- An adapter is accepted only if it cannot change the base: `reason_to_isolate` is empty.
- After each swap, the slot's numbers and scales are exactly those of the file.
- After each adapter, every tensor of the base has its original bits: the kernel reports that its pages were not written
  to, or its checksum is the same.
- One pass over a mixed batch shows that base and previous adapter answer as before, the new one as in its own.
- Any deviation raises `Discard`: this model object is not used again, and the adapter is tested in isolation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import peft
import torch
from safetensors.torch import load_file

from registry.adapters import methods
from registry.adapters.peft import LoraSpec
from registry.adapters.peft.config import AdapterConfig
from registry.evaluation.thresholds import Thresholds
from registry.files import WEIGHTS
from registry.worker.model import language
from registry.worker.model.language import LoadedBase
from registry.worker.model.updates import Update
from registry.worker.smoke import acting, copy_on_write, dialogue, isolated, samples
from registry.worker.smoke.acting import Baseline
from registry.worker.smoke.result import SmokeResult, ignore_progress
from registry.worker.smoke.weights import check_finite, measure_norms, weight_norm

SLOTS = ("even", "odd")
SHORT_TOKENS = 8
"""Tokens of one row of the mixed batch: the beginning of the first probe; its logits are known from the whole one."""
NOISE_FACTOR, ROUNDINGS = 8.0, 2.0
_PREFIX = "base_model.model."
Layout = tuple[str, bool, frozenset[str]]


class Discard(Exception):
    """This model object may be changed or does not behave: end its process and test the adapter in isolation."""


def reason_to_isolate(base: LoadedBase, config: AdapterConfig, spec: LoraSpec) -> str:
    """Why an adapter must not share a model object with others; empty if it may."""
    odd = [module.path for module in spec.modules if module.kind != "linear" or module.bias_shape]
    for reason, holds in (
        ("its configuration says that it changes the base", isolated.announces_change(config)),
        ("it holds more than LoRA pairs", not spec.is_plain or not spec.modules or bool(config.saved_modules)),
        (f"its module {odd[0] if odd else ''} is not a plain linear module", bool(odd)),
        ("it acts only after certain tokens", bool(config.invocation_tokens or config.token_indices)),
        ("the base is not a causal language model", base.task != "CAUSAL_LM" or config.task not in ("", base.task)),
    ):
        if holds:
            return reason
    return ""


def may_share_base(config: AdapterConfig, spec: LoraSpec) -> bool:
    """Whether it can be loaded and removed on a model object that others use afterwards, if not swapped."""
    extras = spec.pieces or spec.full or spec.repeats or spec.tokens or config.saved_modules or config.token_indices
    return methods.find(config.method).hot_swappable and not extras and not isolated.announces_change(config)


class Resident:
    """A base with two slots. The constructor runs the bare base once."""

    def __init__(self, base: LoadedBase) -> None:
        started = perf_counter()
        self.say: Callable[[str], None] = ignore_progress
        self._base = base
        before = base.logits(base.probes)
        self.forward_seconds = perf_counter() - started
        self._known = isolated.Known(Baseline.of(base.probes, before, base.dtype), base.fingerprint(), shared=True)
        self._parameters = dict(base.model.named_parameters())
        self._weight_norms: dict[str, float | None] = {}
        self._short = base.probes[0][:SHORT_TOKENS]
        self._largest = self._known.baseline.largest
        self._noise = self._noise_of_rows()
        self._wrapped: Any = None
        self._layout: Layout | None = None
        self._layers: dict[str, Any] = {}
        self._answers: dict[str, torch.Tensor] = {}

    def examine(self, folder: Path, config: AdapterConfig, spec: LoraSpec, thresholds: Thresholds) -> SmokeResult:
        """Run the smoke test. Raises `Discard` if the outcome would be about this process rather than the adapter."""
        result = SmokeResult(thresholds, say=self.say)
        tensors = load_file(folder / WEIGHTS)
        _demand_pairs_only(spec, tensors)
        if not check_finite(iter(tensors.items()), result):
            return result
        measure_norms(_updates(spec, tensors), self._weight_norm, result)
        result.say("loading the adapter")
        slot = self._put(folder, config, spec, tensors, result)
        self._demand_slot(slot, spec, tensors)
        started = perf_counter()
        after = language.logits(self._wrapped, self._known.baseline.asked)
        result.measure("adapter_forward_seconds", perf_counter() - started)
        result.measure("base_forward_seconds", self.forward_seconds)
        if acting.compare(self._known.baseline, after, result, kind=self._base.probe_kind):
            self._answers[slot] = after[0][: len(self._short)]
            dialogue.examine(self._base, folder, result)
            samples.examine(self._base, self._wrapped, folder, result)
            self._mixed(slot, result)
        else:
            self._answers.pop(slot, None)
        self._demand_base(result)
        isolated.record_probes(self._base, self._known.baseline.asked, result)
        return result

    def examine_beside(self, folder: Path, config: AdapterConfig, thresholds: Thresholds) -> SmokeResult:
        """Test an adapter that cannot be swapped but leaves the base unchanged, without slots."""
        self._clear()
        result = isolated.examine(self._base, folder, config, thresholds, self._known, say=self.say)
        if result.has("smoke.base_changed", "smoke.load_failed", "smoke.forward_failed", "smoke.unload_failed"):
            raise Discard(result.findings[-1].message)
        result.measurements["mode"] = "loaded"
        self._demand_base(result)
        return result

    # ---------------------------------------------------------------- slots
    def _put(
        self, folder: Path, config: AdapterConfig, spec: LoraSpec, tensors: dict[str, torch.Tensor], result: SmokeResult
    ) -> str:
        """Put the adapter in a slot and activate it: swapped if the layout is that of the slots, else loaded."""
        started = perf_counter()
        layout = (config.task, config.fan_in_fan_out, frozenset(module.path for module in spec.modules))
        device = str(next(iter(self._parameters.values())).device)
        if layout != self._layout:
            self._clear()
            self._wrapped = peft.PeftModel.from_pretrained(
                self._base.model, str(folder), adapter_name=SLOTS[0], is_trainable=False, torch_device=device
            )
            self._layout, slot, mode = layout, SLOTS[0], "loaded"
            self._layers = {module.path: self._wrapped.get_submodule(_PREFIX + module.path) for module in spec.modules}
        elif len(self._wrapped.peft_config) == 1:
            slot, mode = SLOTS[1], "loaded"
            self._wrapped.load_adapter(str(folder), adapter_name=slot, is_trainable=False, torch_device=device)
        else:
            slot, mode = SLOTS[1 - SLOTS.index(self._wrapped.active_adapter)], "swapped"
            self._swap(spec, tensors, slot)
        self._wrapped.set_adapter(slot, inference_mode=True)
        if mode == "loaded":
            self._wrapped.eval().requires_grad_(False)
        result.measurements["mode"] = mode
        result.measure("load_seconds", perf_counter() - started)
        return slot

    def _swap(self, spec: LoraSpec, tensors: dict[str, torch.Tensor], slot: str) -> None:
        """Overwrite the slot with the file's numbers. A narrow slot grows; a wide one is zero beyond the rank.

        PEFT's own hot-swap takes three times as long and resolves rank and alpha patterns differently.
        """
        for update in spec.modules:
            layer = self._layers[update.path]
            a, b = layer.lora_A[slot].weight, layer.lora_B[slot].weight
            if update.rank > a.shape[0]:
                a.data, b.data = a.new_empty(update.rank, a.shape[1]), b.new_empty(b.shape[0], update.rank)
            a.data[: update.rank] = tensors[f"{_PREFIX}{update.path}.lora_A.weight"]
            b.data[:, : update.rank] = tensors[f"{_PREFIX}{update.path}.lora_B.weight"]
            a.data[update.rank :], b.data[:, update.rank :] = 0, 0
            layer.scaling[slot] = update.scale

    def _demand_slot(self, slot: str, spec: LoraSpec, tensors: dict[str, torch.Tensor]) -> None:
        """Require that the slot holds the file's numbers and scales and nothing of the adapter before."""
        for update in spec.modules:
            layer = self._layers[update.path]
            a, b = layer.lora_A[slot].weight, layer.lora_B[slot].weight
            wanted_a = tensors[f"{_PREFIX}{update.path}.lora_A.weight"].to(a)
            wanted_b = tensors[f"{_PREFIX}{update.path}.lora_B.weight"].to(b)
            same = torch.equal(a[: update.rank], wanted_a) and torch.equal(b[:, : update.rank], wanted_b)
            wider = a.shape[0] > update.rank
            if not same or (wider and (bool(a[update.rank :].any()) or bool(b[:, update.rank :].any()))):
                raise Discard(f"after the swap {update.path} does not hold the file's numbers")
            if abs(float(layer.scaling[slot]) - update.scale) > 1e-6 * abs(update.scale):
                raise Discard(f"{update.path} is scaled by {float(layer.scaling[slot]):g}, not by {update.scale:g}")

    def _clear(self) -> None:
        if self._wrapped is not None:
            self._wrapped.unload()
        self._wrapped, self._layout = None, None
        self._layers.clear()
        self._answers.clear()

    # ---------------------------------------------------------------- what must not change
    def _mixed(self, slot: str, result: SmokeResult) -> None:
        """Run one batch with rows for the bare base, this adapter and the previous one. Each must answer as before."""
        short = len(self._short)
        expected = {"__base__": self._known.baseline.logits[0][:short], **self._answers}
        names = ["__base__", slot, *(name for name in expected if name not in ("__base__", slot))]
        answers = language.rows(self._wrapped, [self._short] * len(names), adapter_names=names)
        largest = max(self._largest, *(float(values.abs().max()) for values in expected.values()))
        deltas = {name: self._delta(row, expected[name]) / largest for name, row in zip(names, answers, strict=True)}
        coarse = ROUNDINGS * torch.finfo(getattr(torch, self._base.dtype)).eps  # of 16 bits; nothing in 32
        limit = max(result.thresholds.swap_logit_delta, NOISE_FACTOR * self._noise, coarse)
        result.measure("mixed_delta", max(deltas.values()))
        result.measurements["mixed_rows"] = len(names)
        for name, delta in deltas.items():
            if name != slot and not delta <= limit:
                who = "the bare base" if name == "__base__" else "the previous adapter"
                raise Discard(f"with the adapter loaded, {who} answers differently by {delta:.2g} of its largest logit")
        if not deltas[slot] <= limit:
            message = f"in a batch with other adapters it answers differently than in its own, by {deltas[slot]:.2g}"
            result.note(
                "warning", "smoke.mixed_differs", "logits", message, f"at most {limit:.2g}", f"{deltas[slot]:.3g}"
            )

    def _noise_of_rows(self) -> float:
        """The difference between a batch of rows and of one, on the bare base, relative to the largest logit."""
        answers = language.rows(self._base.model, [self._short] * 3)
        single = self._known.baseline.logits[0][: len(self._short)]
        return max(self._delta(row, single) for row in answers) / self._largest

    @staticmethod
    def _delta(first: torch.Tensor, second: torch.Tensor) -> float:
        return float((first - second).abs().max())

    def _demand_base(self, result: SmokeResult) -> None:
        started = perf_counter()
        written = [name for name, tensor in self._base.originals.items() if not copy_on_write.untouched(tensor)]
        changed = [
            name for name in written if language.bit_sum(self._base.originals[name]) != self._known.fingerprint[name]
        ]
        result.measurements["base_tensors_read"] = len(written)
        result.measurements["base_tensors_changed"] = len(changed)
        result.measure("base_check_seconds", perf_counter() - started)
        if changed:
            raise Discard(f"{len(changed)} of the base's tensors changed, {changed[0]} first")

    def _weight_norm(self, path: str) -> float | None:
        if path not in self._weight_norms:
            self._weight_norms[path] = weight_norm(self._parameters, path)
        return self._weight_norms[path]


def _demand_pairs_only(spec: LoraSpec, tensors: dict[str, torch.Tensor]) -> None:
    pairs = {f"{_PREFIX}{update.path}.lora_{half}.weight" for update in spec.modules for half in "AB"}
    unexpected = sorted(tensors.keys() ^ pairs)
    if unexpected:
        raise Discard(f"the file does not hold exactly the pairs of its modules: {unexpected[0]}")


def _updates(spec: LoraSpec, tensors: dict[str, torch.Tensor]) -> Iterator[Update]:
    for module in spec.modules:
        a, b = (tensors[f"{_PREFIX}{module.path}.lora_{half}.weight"].float() for half in "AB")
        yield Update(module.path, module.scale, a.flatten(1), b.flatten(1))
