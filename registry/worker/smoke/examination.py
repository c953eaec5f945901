"""`Examination`: what one adapter showed, as findings and measurements; and the part that needs no model: its values.

Invariants
- Measurements carry their unit in the name; a number that is not finite is None.
- What the adapter does wrong is a finding. Running out of memory is no finding: it is raised, and the job fails.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import torch
from safetensors import safe_open

from registry.evaluation.reference_logprobs import ReferenceLogprobs
from registry.evaluation.thresholds import Thresholds
from registry.evaluation.verdicts import Finding
from registry.worker.model import updates

WEIGHTS = "adapter_model.safetensors"
TENSORS_NAMED_LIMIT = 20
MODULES_MEASURED_LIMIT = 4000

Severity = Literal["error", "warning", "unknown", "info"]


def silent(_progress: str) -> None:
    """For those who want to know nothing on the way."""


@dataclass(slots=True)
class Examination:
    thresholds: Thresholds = field(default_factory=Thresholds)
    findings: list[Finding] = field(default_factory=list)
    measurements: dict[str, Any] = field(default_factory=dict)
    reference_logprobs: ReferenceLogprobs | None = None
    pictures: dict[str, str] = field(default_factory=dict)
    say: Callable[[str], None] = silent

    def note(
        self, severity: Severity, code: str, location: str, message: str, expected: str = "", found: str = ""
    ) -> None:
        self.findings.append(Finding.of(severity, code, location, message, expected, found))

    def measure(self, name: str, value: float) -> None:
        self.measurements[name] = float(f"{value:.6g}") if math.isfinite(value) else None

    def has(self, *codes: str) -> bool:
        return any(finding.code in codes for finding in self.findings)

    def to_message(self) -> dict[str, Any]:
        """As JSON for the process that asked."""
        return {
            "findings": [finding.model_dump(mode="json") for finding in self.findings],
            "measurements": self.measurements,
            "reference_logprobs": self.reference_logprobs.model_dump(mode="json")
            if self.reference_logprobs is not None
            else None,
            "pictures": self.pictures,
        }


def tensors_of(weights: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a file by name, one at a time."""
    with safe_open(weights, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - not a dictionary
            yield name, file.get_tensor(name)


def finite(tensors: Iterator[tuple[str, torch.Tensor]], seen: Examination) -> bool:
    """Whether all numbers are finite. A NaN is found here by its tensor's name, and nothing is loaded."""
    started = perf_counter()
    broken, zero_b, b = [], 0, 0
    for name, values in tensors:
        # The sum of finite numbers is finite in 64 bits, and one pass is enough for almost every tensor.
        values = values.float() if values.is_floating_point() and values.element_size() == 1 else values
        if values.is_floating_point() and not math.isfinite(float(values.sum(dtype=torch.float64))):
            broken.append(name)
        if "lora_B" in name or "lora_embedding_B" in name:
            b += 1
            zero_b += not bool(values.any())
    seen.measure("values_seconds", perf_counter() - started)
    seen.measurements["lora_b_tensors"] = b
    seen.measurements["lora_b_zero_tensors"] = zero_b
    for name in broken[:TENSORS_NAMED_LIMIT]:
        others = f", and so do {len(broken) - 1} more" if len(broken) > 1 else ""
        message = f"{name} holds NaN or infinite values{others}"
        seen.note("error", "smoke.not_finite", name, message, "finite numbers", "NaN or infinity")
    return not broken


def norms(found: Iterator[updates.Update], weight_norm: Callable[[str], float | None], seen: Examination) -> None:
    """`module_norms`: |A|, |B|, |scale · BA| of each module's update, and |W| of the base's weight where it has one."""
    started = perf_counter()
    table: dict[str, list[float | None]] = {}
    for update in found:
        if len(table) >= MODULES_MEASURED_LIMIT:
            break
        size = update.norms()
        numbers = (size.a, size.b, size.update, weight_norm(update.path))
        table[update.path] = [float(f"{n:.4g}") if n is not None and math.isfinite(n) else None for n in numbers]
    if table:
        seen.measurements["module_norms"] = table
        seen.measure("norms_seconds", perf_counter() - started)


def weight_norm(parameters: Mapping[str, torch.Tensor], path: str) -> float | None:
    """The norm of the base's own weight; None for one that is packed (quantised) or not there under this path."""
    weight = parameters.get(f"{path}.weight")
    return float(weight.detach().float().norm()) if weight is not None and weight.is_floating_point() else None


def first_line(error: BaseException) -> str:
    """An exception in one line: its class and the first line of what it says."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no reason given'])[0]}"[:1500]


def out_of_memory(error: BaseException) -> bool:
    """Whether this is the machine's limit and not the adapter's fault. torch raises RuntimeError for both."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "can't allocate memory" in text or "out of memory" in text


def machine_fault(error: BaseException) -> bool:
    """Memory that ran out, or a device that failed: the attempt fails, and the process with it."""
    return out_of_memory(error) or "cuda error" in str(error).lower() or type(error).__name__ == "AcceleratorError"
