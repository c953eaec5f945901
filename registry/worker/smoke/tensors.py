"""The part of a smoke test without a model: whether the numbers are finite, and the norm of each update."""

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from time import perf_counter

import torch
from safetensors import safe_open

from registry.evaluation.reports import MODULES_LIMIT
from registry.findings import Finding
from registry.worker.model import updates
from registry.worker.smoke.result import SmokeResult, reportable


def tensors_of(weights: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a file by name, one at a time."""
    with safe_open(weights, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - not a dictionary
            yield name, file.get_tensor(name)


def check_finite(tensors: Iterator[tuple[str, torch.Tensor]], result: SmokeResult) -> bool:
    """Whether all numbers are finite; a finding names the tensors that hold others."""
    started = perf_counter()
    broken, zero_b, b = [], 0, 0
    for name, values in tensors:
        # The 64-bit sum of finite numbers is finite, so one pass is enough.
        values = values.float() if values.is_floating_point() and values.element_size() == 1 else values
        if values.is_floating_point() and not math.isfinite(float(values.sum(dtype=torch.float64))):
            broken.append(name)
        if "lora_B" in name or "lora_embedding_B" in name:
            b += 1
            zero_b += not bool(values.any())
    result.measure("values_seconds", perf_counter() - started)
    result.measurements["lora_b_tensors"] = b
    result.measurements["lora_b_zero_tensors"] = zero_b
    if broken:
        result.findings.append(Finding.of_not_finite("smoke.not_finite", broken))
    return not broken


def measure_norms(
    module_updates: Iterator[updates.Update], weight_norm: Callable[[str], float | None], result: SmokeResult
) -> None:
    """Measure `module_norms`: |A|, |B|, |scale · BA| of each module's update, and |W| of the base's weight."""
    started = perf_counter()
    for update in module_updates:
        if len(result.module_norms) >= MODULES_LIMIT:
            break
        size = update.norms()
        numbers = (size.a, size.b, size.update, weight_norm(update.path))
        result.module_norms[update.path] = [reportable(number, 4) for number in numbers]
    if result.module_norms:
        result.measure("norms_seconds", perf_counter() - started)


def weight_norm(parameters: Mapping[str, torch.Tensor], path: str) -> float | None:
    """The norm of the base's weight; None if it is packed (quantized) or absent."""
    weight = parameters.get(f"{path}.weight")
    return float(weight.detach().float().norm()) if weight is not None and weight.is_floating_point() else None
