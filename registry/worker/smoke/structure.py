"""Structure: the names and shapes of tensors that PEFT expects of an adapter on a base, against those in its file.

For methods that headers cannot judge (registry.compat). PEFT injects the adapter's configuration into the base's on the
meta device; no weight is read. If PEFT cannot do that (a method that depends on values), the answer stays `unknown`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import peft
import torch
import transformers
from safetensors import safe_open

from registry.files import WEIGHTS
from registry.findings import Finding
from registry.worker.model import tasks
from registry.worker.smoke.result import first_line, machine_fault

Shapes = dict[str, tuple[int, ...]]
SHOWN = 5
_PEFT = f"PEFT {peft.__version__}, on the meta device,"


def compare_structure(base: Path, folder: Path) -> list[Finding]:
    """Findings for the check `compat`: the differences, or one that says that there are none."""
    try:
        expectation = expected(base, folder)
    except Exception as e:
        if machine_fault(e):
            raise
        return [Finding.of("unknown", "compat.method_not_judged", WEIGHTS, f"{_PEFT} cannot tell: {first_line(e)}")]
    message = f"{_PEFT} expects the {len(expectation)} tensors of this file, by names and shapes, and no other"
    expected_all = Finding.of("info", "compat.peft_expects", WEIGHTS, message)
    return list(_differences(expectation, shapes_in_file(folder / WEIGHTS))) or [expected_all]


def expected(base: Path, folder: Path) -> Shapes:
    """The tensors that PEFT would save of this adapter on this base. Errors are transformers' and PEFT's own."""
    config = transformers.AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # packing changes the storage of weights, not the modules
    written = peft.PeftConfig.from_pretrained(str(folder))
    written.inference_mode = True
    if isinstance(getattr(written, "init_lora_weights", None), str):
        written.init_lora_weights = True  # others read the base's weights; names and shapes are the same
    with torch.device("meta"):
        model = tasks.class_of(config)[0]._from_config(config)
        wrapped = peft.get_peft_model(model, written)
        return {name: tuple(tensor.shape) for name, tensor in peft.get_peft_model_state_dict(wrapped).items()}


def shapes_in_file(weights: Path) -> Shapes:
    """The names and shapes in the header."""
    with safe_open(weights, framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def _differences(expectation: Shapes, shapes: Shapes) -> Iterator[Finding]:
    differing = {name for name in expectation.keys() & shapes.keys() if expectation[name] != shapes[name]}
    for code, names, what in (
        ("compat.module_missing", expectation.keys() - shapes.keys(), "expects tensors that the file does not hold"),
        ("lora.tensor_unknown", shapes.keys() - expectation.keys(), "expects none of these tensors of the file"),
        ("compat.shape", differing, "expects other shapes"),
    ):
        if names:
            shown = sorted(names)[:SHOWN]
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            message = f"{_PEFT} {what}: {', '.join(shown)}{more}"
            expects = ", ".join(str(list(expectation[n])) for n in shown if n in expectation)
            holds = ", ".join(str(list(shapes[n])) for n in shown if n in shapes)
            yield Finding.of("error", code, shown[0], message, expects, holds)
