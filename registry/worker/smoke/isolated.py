"""Test any adapter on a base in a process that ends afterwards: PEFT loads it beside the base.

The adapter's header already fits the base (registry.compat). An exception of PEFT is the finding `smoke.load_failed`.
Without the adapter the base must be the base again, by every parameter's bits and by its logits' bits.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import peft
import torch
import transformers

from registry.adapters import methods
from registry.adapters.peft import initializations
from registry.adapters.peft.config import AdapterConfig
from registry.compat.modules import TASK_HEADS
from registry.evaluation.thresholds import Thresholds
from registry.findings import Severity
from registry.versions.files import CONFIG, WEIGHTS
from registry.worker.model import language
from registry.worker.model.language import LoadedBase
from registry.worker.model.tasks import ENCODER
from registry.worker.model.updates import read_updates
from registry.worker.sandbox.program import Progress, ignore_progress
from registry.worker.smoke import answers, dialogue, effect, samples, structure
from registry.worker.smoke.checks import SmokeTest
from registry.worker.smoke.effect import Baseline
from registry.worker.smoke.result import LibraryFailed, SmokeResult, exceptions_as, library_message, machine_fault
from registry.worker.smoke.structure import Structures
from registry.worker.smoke.tensors import check_finite, measure_norms, tensors_of, weight_norm

LABELS_LIMIT = 2**16
"""Labels of a head in a file. The model gets a row of its own width for each, however narrow those of the file are."""


@dataclass(frozen=True, slots=True)
class Reference:
    """The base before any adapter. `shared`: other adapters follow on this model object, so nothing may remain."""

    baseline: Baseline
    fingerprint: dict[str, int]
    shared: bool = False


def announces_change(config: AdapterConfig) -> bool:
    """Whether the configuration says that loading changes the base."""
    return (
        config.bias != "none"
        or initializations.changes_base_at_load(config.initialization)
        or "kasa_config" in config.other
        or bool(config.layer_replication)
        or methods.find(config.method).effect == "replaces"
    )


class LanguageTest(SmokeTest):
    """The checks that a language model answers, however the adapter was loaded."""

    def __init__(
        self, base: LoadedBase, folder: Path, result: SmokeResult, structures: Structures | None, answer_tokens: int
    ) -> None:
        """Without `structures` the tensors of the file are not compared with those that PEFT expects."""
        super().__init__(result)
        self.answer_tokens = answer_tokens
        self.base, self.folder, self.structures = base, folder, structures
        self.wrapped: Any = None
        self.baseline: Baseline | None = None

    def check_structure(self) -> bool:
        """Whether the tensors are those that PEFT builds."""
        if self.structures is None:
            return True
        builds = self.structures.builds
        try:
            findings = self.structures.compare(self.folder)
        except LibraryFailed as e:
            findings = [e.finding]
        finally:
            self.result.measurements["structure_builds"] = self.structures.builds - builds
        return self.result.note_structure(findings)

    def use_baseline(self, baseline: Baseline) -> bool:
        """Compare with these answers of the bare base."""
        self.baseline = baseline
        self.result.measurements["probes"] = len(baseline.prompts)
        self.result.measurements["probe_tokens"] = baseline.tokens
        self.result.execution["probe_kind"] = self.base.probe_kind
        return True

    def compare(self) -> list[torch.Tensor] | None:
        """The logits with the adapter; None if they are not finite."""
        if self.baseline is None:
            raise RuntimeError("the baseline was not measured")
        started = perf_counter()
        after = self.base.logits(self.baseline.prompts, self.wrapped)
        self.result.measure("adapter_forward_seconds", perf_counter() - started)
        finite = effect.compare(self.baseline, after, self.result, self.base.task, kind=self.base.probe_kind)
        if not finite:
            return None
        if self.baseline.texts:
            texts = answers.continue_probes(self.base, self.wrapped, after, self.answer_tokens)
            self.result.answers += answers.pair(self.base, self.base.probes, self.baseline.texts, texts)
        return after

    def check_dialogue(self) -> bool:
        """Test the chat template and the added tokens, if there are any."""
        dialogue.examine(self.base, self.folder, self.result)
        return True

    def check_golden(self) -> bool:
        """Test the golden samples, if there are any."""
        samples.examine(self.base, self.wrapped, self.folder, self.result)
        return True


class IsolatedTest(LanguageTest):
    """Test one adapter of any kind. `reference`: what this process already measured of the base."""

    def __init__(
        self, base: LoadedBase, folder: Path, config: AdapterConfig, thresholds: Thresholds,
        reference: Reference | None = None, *, structures: Structures | None, say: Progress = ignore_progress,
        answer_tokens: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(base, folder, SmokeResult(thresholds, say=say), structures, answer_tokens)
        self._config, self._reference = config, reference

    def check_task(self) -> bool:
        """Whether the base takes the task of the adapter."""
        task, base, weights = self._config.task, self.base, self.folder / WEIGHTS
        lacks_head = self._config.may_lack_head and is_of_body(base.model, structure.shapes_in_file(weights))
        if (base.task.takes(task) or task == ENCODER.name) and not lacks_head:  # PEFT extracts features from any class
            return True
        labels = 1 if lacks_head else labels_of_head(weights)
        if labels and self._reference is None:
            other = base.as_class_of(ENCODER.name if lacks_head else task, labels)
            if other is not None:
                self.base = other
                self.structures = Structures(other.model) if self.structures is not None else None
                return True
        message = f"the adapter is for the task {task}, and {base.name} is a {base.task.label}: it has no head for it"
        self.result.note("unknown", "smoke.task_unsupported", f"{CONFIG}: task_type", message)
        return False

    def check_structure(self) -> bool:
        """Whether the tensors are those that PEFT builds."""
        self.result.say("comparing the tensors with those that PEFT expects")
        try:
            return super().check_structure()
        except structure.NeedsValues:  # compared after loading
            return True

    def check_weights(self) -> bool:
        """Whether all numbers are finite."""
        if not check_finite(tensors_of(self.folder / WEIGHTS), self.result):
            return False
        parameters = dict(self.base.model.named_parameters())
        measure_norms(read_updates(self.folder), lambda path: weight_norm(parameters, path), self.result)
        return True

    def check_baseline(self) -> bool:
        """Run the prompts without the adapter."""
        config, base = self._config, self.base
        special = (*config.invocation_tokens, *(token for tokens in config.token_indices.values() for token in tokens))
        prompts = language.with_tokens(base.probes, special, base.vocabulary)
        self.result.say("running the probes on the bare base")
        if self._reference is None or self._reference.baseline.prompts != prompts:
            started = perf_counter()
            message = f"transformers {transformers.__version__} does not run {base.name}, a {base.task.label}, on "
            with exceptions_as("unknown", "smoke.task_unsupported", "base", message + "text, noise or an image"):
                before = base.logits(prompts)
            self.result.measure("base_forward_seconds", perf_counter() - started)
            texts = answers.continue_probes(base, base.model, before, self.answer_tokens)
            baseline = Baseline.of(prompts, before, base.dtype, texts)
            self._reference = Reference(baseline, base.fingerprint(), shared=self._reference is not None)
        return self.use_baseline(self._reference.baseline)

    def check_load(self) -> bool:
        """Load the adapter with PEFT."""
        self.result.say("loading the adapter")
        started = perf_counter()
        model, folder = self.base.model, str(self.folder)
        device = str(next(model.parameters()).device)
        return_scales(model)
        try:
            self.wrapped = peft.PeftModel.from_pretrained(model, folder, is_trainable=False, torch_device=device)
        except Exception as e:
            if machine_fault(e) or isinstance(e, ImportError):
                raise
            message = f"{structure.PEFT} cannot load the adapter: {library_message(e)}"
            self.result.note("error", "smoke.load_failed", WEIGHTS, message)
            self.result.structure = self.result.findings[-1:]
            return False
        self.wrapped.eval()
        self.result.measure("load_seconds", perf_counter() - started)
        if self.structures is not None and self.result.structure is None:
            self.result.note_structure(structure.compare_loaded(self.wrapped, self.folder))
        return True

    def check_forward(self) -> bool:
        """Run the prompts with the adapter and compare."""
        with exceptions_as("error", "smoke.forward_failed", "forward", "the model with the adapter fails"):
            return self.compare() is not None

    def check_base(self) -> bool:
        """Without the adapter the base must be unchanged: every parameter and the logits, bit by bit."""
        reference, result = self._reference, self.result
        if reference is None:
            return False
        started = perf_counter()
        return_scales(self.wrapped)
        try:
            bare = self.wrapped.get_base_model()
            self.wrapped.delete_adapter("default")  # `unload` would leave the copies of modules_to_save in the base
            if reference.shared:
                self.wrapped.unload()
        except Exception as e:
            if machine_fault(e):
                raise
            message = f"the adapter cannot be unloaded: {library_message(e)}"
            result.note("warning", "smoke.unload_failed", "unload", message)
            bare = None
        now = self.base.fingerprint()
        changed = sorted(name for name, bits in reference.fingerprint.items() if now[name] != bits)
        # A trained bias replaces the base's own: only its bits show it, the logits do not.
        before = reference.baseline
        logits = self.base.logits(before.prompts, bare) if bare is not None else []
        same = bool(logits) and all(torch.equal(a, b) for a, b in zip(logits, before.logits, strict=True))
        result.measurements["base_tensors_changed"] = len(changed)
        result.measurements["base_logits_equal_after"] = same
        result.measure("base_check_seconds", perf_counter() - started)
        if changed or (bare is not None and not same):
            self._note_change(changed)
        return True

    def _note_change(self, changed: list[str]) -> None:
        location = changed[0] if changed else "logits"
        subject = f"{len(changed)} of the base's tensors" if changed else "the base's answers"
        announced = announces_change(self._config)
        reason = "as the configuration announces" if announced else "so other adapters would answer differently"
        message = f"{subject} stay changed after unloading, {reason}"
        severity: Severity = "warning" if announced else "error"
        self.result.note(severity, "smoke.base_changed", location, message, "bit-equal", "changed")


def return_scales(model: Any) -> None:
    """Give weights in 8 bits of bitsandbytes back the scales that a forward pass moved into their layers.

    PEFT moves modules to their device when it loads and removes DoRA. Of a weight without its scales, bitsandbytes then
    loses them, and the next pass fails.
    """
    for module in model.modules():
        state = getattr(module, "state", None)  # PEFT's layer around it has the same name and none
        if type(module).__name__ == "Linear8bitLt" and state is not None and module.weight.SCB is None:
            module.weight.CB, module.weight.SCB = state.CB, state.SCB


def is_of_body(model: Any, names: Iterable[str]) -> bool:
    """Whether the names of an adapter's tensors are those of the model without its head: they lack its prefix."""
    body = getattr(model, model.base_model_prefix or " ", None)
    firsts = {path.removeprefix("base_model.model.").partition(".")[0] for path in names}
    inner, outer = ({name for name, _ in part.named_children()} for part in (body or model, model))
    return body is not None and not firsts.isdisjoint(inner) and firsts.isdisjoint(outer)


def labels_of_head(weights: Path) -> int:
    """How many labels the head in the file has: the fewest rows of its last layer; 0 without one, or for too many.

    Some heads have a layer `dense` before it, with as many rows as the model is wide (RobertaClassificationHead).
    """
    shapes = structure.shapes_in_file(weights)
    paths = {name.removeprefix("base_model.").removeprefix("model."): shape for name, shape in shapes.items()}
    heads = [shape for path, shape in paths.items() if path.startswith(TASK_HEADS) and ".dense." not in path]
    labels = min((shape[0] for shape in heads if shape), default=0)
    return labels if labels <= LABELS_LIMIT else 0
