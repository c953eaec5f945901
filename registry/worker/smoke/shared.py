"""`SharedModel`: one model object for many adapters. Plain LoRA adapters of one layout are hot-swapped into two slots.

    layout    the modules that an adapter targets, and its configuration as PEFT's own class reads it, except fields
              that a slot follows or that do nothing in inference
    slot      a named adapter in PEFT; two take turns, so that the previous adapter stays loaded during a test

Only adapters that cannot change the base are accepted (`reason_to_isolate`). After each swap the slot must hold the
file's numbers, and after each adapter every tensor of the base its original bits. Any deviation raises `Discard`.
"""

import contextlib
import json
import math
import os
import re
from pathlib import Path
from time import perf_counter
from typing import Any

import peft
import torch
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file

from registry.adapters import methods
from registry.adapters.peft import LoraSpec
from registry.adapters.peft.config import AdapterConfig
from registry.adapters.read import PeftContents
from registry.evaluation.thresholds import Thresholds
from registry.versions.files import WEIGHTS
from registry.worker.model import language
from registry.worker.model.language import LoadedBase
from registry.worker.model.tasks import CAUSAL
from registry.worker.model.updates import updates_of
from registry.worker.sandbox.program import Progress, ignore_progress
from registry.worker.smoke import answers, isolated, structure
from registry.worker.smoke.effect import Baseline
from registry.worker.smoke.isolated import IsolatedTest, LanguageTest, Reference
from registry.worker.smoke.result import SmokeResult
from registry.worker.smoke.structure import Structures
from registry.worker.smoke.tensors import check_finite, measure_norms, weight_norm

SLOTS = ("even", "odd")
SHORT_TOKENS = 8
"""Tokens of one row of the mixed batch: the first tokens of the first probe, whose logits are known."""
NOISE_FACTOR, ROUNDINGS = 8.0, 2.0
_PREFIX = "base_model.model."
Layout = tuple[str, frozenset[str]]
_FREE_FIELDS = {**structure.NO_SHAPE, **dict.fromkeys(("r", "rank_pattern"), lambda _value: True)}
"""What need not be equal: `agrees_with_peft` checks ranks and scales, the others do nothing."""


class Discard(Exception):
    """This model object may be changed or misbehaves: end its process and test the adapter in isolation."""


def reason_to_isolate(base: LoadedBase, contents: PeftContents) -> str:
    """Why an adapter must not share a model object with others; empty if it may."""
    config, spec = contents.config, contents.lora
    paths = [module.path for module in spec.modules]
    odd = [module.path for module in spec.modules if module.kind != "linear" or module.bias_shape]
    for reason, holds in (
        ("its configuration says that it changes the base", isolated.announces_change(config)),
        ("it holds more than LoRA pairs", not spec.is_plain or not spec.modules or bool(config.saved_modules)),
        (f"its module {odd[0] if odd else ''} is not a plain linear module", bool(odd)),
        ("it acts only after certain tokens", bool(config.invocation_tokens or config.token_indices)),
        ("its names are of the model without a head", config.may_lack_head and isolated.is_of_body(base.model, paths)),
        ("the base is not a causal language model", base.task.name != CAUSAL.name or not CAUSAL.takes(config.task)),
    ):
        if holds:
            return reason
    return ""


def may_share_base(contents: PeftContents) -> bool:
    """Whether an adapter that cannot be swapped can be loaded and removed on a model object that others use."""
    config, spec = contents.config, contents.lora
    extras = spec.pieces or spec.full or spec.repeats or spec.tokens or config.saved_modules or config.token_indices
    changes = isolated.announces_change(config) or config.may_lack_head
    return methods.find(config.method).hot_swappable and not extras and not changes


def layout_of(config: Any, contents: PeftContents) -> Layout:
    """What must be equal for an adapter to be swapped into a slot that PEFT filled from another configuration."""
    fields = structure.fields_beside(config, _FREE_FIELDS)
    modules = frozenset(module.path for module in contents.lora.modules)
    return json.dumps(fields, sort_keys=True, default=repr), modules


def agrees_with_peft(config: Any, spec: LoraSpec) -> bool:
    """Whether PEFT gives every module the rank and the scale that a swap gives it."""
    try:
        for update in spec.modules:
            rank = config.rank_pattern.get(get_pattern_key(config.rank_pattern, update.path), config.r)
            alpha = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern, update.path), config.lora_alpha)
            scale = alpha / math.sqrt(rank) if config.use_rslora else alpha / rank
            if rank != update.rank or not abs(scale - update.scale) <= 1e-6 * abs(update.scale):
                return False
    except (AttributeError, ArithmeticError, TypeError, ValueError, re.error):
        return False
    return True


class SharedModel:
    """A base with two slots. The constructor runs the bare base once."""

    def __init__(self, base: LoadedBase, answer_tokens: int = 0) -> None:
        started = perf_counter()
        self.answer_tokens = answer_tokens
        self.base = base
        self.say: Progress = ignore_progress
        self.structures = Structures(base.model)
        before = base.logits(base.probes)
        self.forward_seconds = perf_counter() - started
        texts = answers.continue_probes(base, base.model, before, answer_tokens)
        baseline = Baseline.of(base.probes, before, base.dtype, texts)
        self.reference = Reference(baseline, base.fingerprint(), shared=True)
        self.short = base.probes[0][:SHORT_TOKENS]
        self.answers: dict[str, torch.Tensor] = {}
        self.wrapped: Any = None
        self._parameters = dict(base.model.named_parameters())
        self._weight_norms: dict[str, float | None] = {}
        self._largest = self.reference.baseline.largest
        self._noise = self._noise_of_rows()
        self._layout: Layout | None = None
        self._layers: dict[str, Any] = {}

    def examine(self, folder: Path, contents: PeftContents, thresholds: Thresholds) -> SmokeResult:
        """Run the smoke test. Raises `Discard` if the outcome would be about this process rather than the adapter."""
        return SwappedTest(self, folder, contents, thresholds).run()

    def examine_beside(
        self, folder: Path, config: AdapterConfig, thresholds: Thresholds, *, any_name: bool
    ) -> SmokeResult:
        """Test an adapter that cannot be swapped but leaves the base unchanged, without slots."""
        self._clear()
        structures = None if any_name else self.structures
        result = IsolatedTest(
            self.base, folder, config, thresholds, self.reference, structures=structures, say=self.say,
            answer_tokens=self.answer_tokens,
        ).run()  # fmt: skip
        if result.has("smoke.base_changed", "smoke.load_failed", "smoke.forward_failed", "smoke.unload_failed"):
            raise Discard(result.findings[-1].message)
        result.execution["mode"] = "loaded"
        self.demand_base(result)
        return result

    # ---------------------------------------------------------------- slots
    def load(self, folder: Path, contents: PeftContents, tensors: dict[str, torch.Tensor], result: SmokeResult) -> str:
        """Activate the adapter in a slot: swapped if it has the slots' layout, else loaded by PEFT."""
        started = perf_counter()
        config, spec = peft.PeftConfig.from_pretrained(str(folder)), contents.lora
        layout = layout_of(config, contents)
        device = str(next(iter(self._parameters.values())).device)
        if layout != self._layout or not agrees_with_peft(config, spec):
            self._clear()
            self.wrapped = peft.PeftModel.from_pretrained(
                self.base.model, str(folder), adapter_name=SLOTS[0], is_trainable=False, torch_device=device
            )
            self._layout, slot, mode = layout, SLOTS[0], "loaded"
            self._layers = {module.path: self.wrapped.get_submodule(_PREFIX + module.path) for module in spec.modules}
        elif len(self.wrapped.peft_config) == 1:
            slot, mode = SLOTS[1], "loaded"
            self.wrapped.load_adapter(str(folder), adapter_name=slot, is_trainable=False, torch_device=device)
        else:
            slot, mode = SLOTS[1 - SLOTS.index(self.wrapped.active_adapter)], "swapped"
            self._swap(spec, tensors, slot)
        self.wrapped.set_adapter(slot, inference_mode=True)
        if mode == "loaded":
            self.wrapped.eval().requires_grad_(False)
        result.execution["mode"] = mode
        result.measure("load_seconds", perf_counter() - started)
        self._demand_slot(slot, spec, tensors)
        return slot

    def _swap(self, spec: LoraSpec, tensors: dict[str, torch.Tensor], slot: str) -> None:
        """Overwrite the slot with the file's numbers. A narrow slot grows; a wider one is zero beyond the rank.

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
            file_a = tensors[f"{_PREFIX}{update.path}.lora_A.weight"].to(a)
            file_b = tensors[f"{_PREFIX}{update.path}.lora_B.weight"].to(b)
            same = torch.equal(a[: update.rank], file_a) and torch.equal(b[:, : update.rank], file_b)
            wider = a.shape[0] > update.rank
            if not same or (wider and (bool(a[update.rank :].any()) or bool(b[:, update.rank :].any()))):
                raise Discard(f"after the swap {update.path} does not hold the file's numbers")
            if abs(float(layer.scaling[slot]) - update.scale) > 1e-6 * abs(update.scale):
                raise Discard(f"{update.path} is scaled by {float(layer.scaling[slot]):g}, not by {update.scale:g}")

    def _clear(self) -> None:
        if self.wrapped is not None:
            self.wrapped.unload()
        self.wrapped, self._layout = None, None
        self._layers.clear()
        self.answers.clear()

    # ---------------------------------------------------------------- what must not change
    def run_mixed_batch(self, slot: str, result: SmokeResult) -> None:
        """Run one batch with rows for the bare base, this adapter and the previous one. Each must answer as before."""
        short = len(self.short)
        expected = {"__base__": self.reference.baseline.logits[0][:short], **self.answers}
        names = ["__base__", slot, *(name for name in expected if name not in ("__base__", slot))]
        answers = self.base.rows([self.short] * len(names), self.wrapped, adapter_names=names)
        largest = max(self._largest, *(float(values.abs().max()) for values in expected.values()))
        deltas = {name: self._delta(row, expected[name]) / largest for name, row in zip(names, answers, strict=True)}
        coarse = ROUNDINGS * torch.finfo(getattr(torch, self.base.dtype)).eps  # of 16 bits; nothing in 32
        limit = max(result.thresholds.swap_logit_delta, NOISE_FACTOR * self._noise, coarse)
        result.measure("mixed_delta", max(deltas.values()))
        result.measurements["mixed_rows"] = len(names)
        for name, delta in deltas.items():
            if name != slot and not delta <= limit:
                other = "the bare base" if name == "__base__" else "the previous adapter"
                raise Discard(f"with the adapter loaded, {other} differs by {delta:.2g} of its largest logit")
        if not deltas[slot] <= limit:
            message = f"in a batch with other adapters it answers differently than in its own, by {deltas[slot]:.2g}"
            most, measured = f"at most {limit:.2g}", f"{deltas[slot]:.3g}"
            result.note("warning", "smoke.mixed_differs", "logits", message, most, measured)

    def _noise_of_rows(self) -> float:
        """The difference between a batch of rows and of one, on the bare base, relative to the largest logit."""
        answers = self.base.rows([self.short] * 3)
        single = self.reference.baseline.logits[0][: len(self.short)]
        return max(self._delta(row, single) for row in answers) / self._largest

    @staticmethod
    def _delta(first: torch.Tensor, second: torch.Tensor) -> float:
        return float((first - second).abs().max())

    def demand_base(self, result: SmokeResult) -> None:
        """Require that every tensor of the base has its original bits."""
        started = perf_counter()
        originals, bits = self.base.originals, self.reference.fingerprint
        changed_memory = [name for name, tensor in originals.items() if not is_unwritten(tensor)]
        changed = [name for name in changed_memory if language.bit_sum(originals[name]) != bits[name]]
        result.measurements["base_tensors_read"] = len(changed_memory)
        result.measurements["base_tensors_changed"] = len(changed)
        result.measure("base_check_seconds", perf_counter() - started)
        if changed:
            raise Discard(f"{len(changed)} of the base's tensors changed, {changed[0]} first")

    def weight_norm(self, path: str) -> float | None:
        """The norm of the base's weight, computed once."""
        if path not in self._weight_norms:
            self._weight_norms[path] = weight_norm(self._parameters, path)
        return self._weight_norms[path]


class SwappedTest(LanguageTest):
    """Test a plain LoRA adapter in a slot of the shared base. After an exception the isolated run decides."""

    notes_exceptions = False

    def __init__(self, shared: SharedModel, folder: Path, contents: PeftContents, thresholds: Thresholds) -> None:
        result = SmokeResult(thresholds, say=shared.say)
        super().__init__(shared.base, folder, result, shared.structures, shared.answer_tokens)
        self._shared, self._contents = shared, contents
        self._tensors: dict[str, torch.Tensor] = {}
        self._slot = ""

    def check_weights(self) -> bool:
        """Whether the tensors are finite and exactly the pairs."""
        pairs = list(self._contents.pairs)
        tensors = self._tensors = load_file(self.folder / WEIGHTS)
        if unexpected := sorted(tensors.keys() ^ {name for pair in pairs for name in (pair.a, pair.b)}):
            raise Discard(f"the file does not hold exactly the pairs of its modules: {unexpected[0]}")
        if not check_finite(iter(tensors.items()), self.result):
            return False
        updates = updates_of(pairs, tensors.keys(), tensors.__getitem__)
        measure_norms(updates, self._shared.weight_norm, self.result)
        return True

    def check_baseline(self) -> bool:
        """Use the baseline of the loaded base."""
        self.result.measure("base_forward_seconds", self._shared.forward_seconds)
        return self.use_baseline(self._shared.reference.baseline)

    def check_load(self) -> bool:
        """Load the adapter into a slot."""
        self.result.say("loading the adapter")
        self._slot = self._shared.load(self.folder, self._contents, self._tensors, self.result)
        self.wrapped = self._shared.wrapped
        return True

    def check_forward(self) -> bool:
        """Run the prompts with the adapter and compare."""
        answers = self._shared.answers
        after = self.compare()
        if after is None:
            answers.pop(self._slot, None)
            return False
        answers[self._slot] = after[0][: len(self._shared.short)]
        return True

    def check_swap(self) -> bool:
        """Run one batch of the base, this adapter and the previous one."""
        self._shared.run_mixed_batch(self._slot, self.result)
        return True

    def check_base(self) -> bool:
        """Require that the weights of the base are unchanged."""
        self._shared.demand_base(self.result)
        return True


# ------------------------------------------------------------------ unwritten memory
# A forked process shares its parent's pages until one of the two writes to one: then the kernel gives the writer a
# copy. So a page that another process still maps holds every bit that it held at the fork.
MAP = Path("/proc/self/pagemap")
ENTRY_BYTES = 8
_EXCLUSIVE, _OF_A_FILE = 1 << 56, 1 << 61  # bit 63, the sign: the page is present


def is_unwritten(tensor: torch.Tensor) -> bool:
    """Whether this process has not written to the tensor since it was forked; False if the kernel does not say.

    True only if each page is ordinary memory, present, and mapped by another process; the process must not have forked.
    """
    if tensor.device.type != "cpu" or not tensor.is_contiguous() or not tensor.nbytes:
        return False
    size = os.sysconf("SC_PAGE_SIZE")
    first, end = tensor.data_ptr() // size, -(-(tensor.data_ptr() + tensor.nbytes) // size)
    with contextlib.suppress(OSError), open(MAP, "rb", buffering=0) as file:
        file.seek(first * ENTRY_BYTES)
        pagemap = bytearray(file.read((end - first) * ENTRY_BYTES))
        if len(pagemap) == (end - first) * ENTRY_BYTES:
            entries = torch.frombuffer(pagemap, dtype=torch.int64)
            return bool(((entries < 0) & (entries & (_EXCLUSIVE | _OF_A_FILE) == 0)).all())
    return False
