"""Build a base on the meta device from its config.json, in a process of its own, and list its modules.

No weight is read and no code of the folder runs. A module's kind is its class, so a linear module named "embedding" is
linear. An output embedding that is not named `lm_head` has the kind `other`: PEFT's "all-linear" leaves it out.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from registry.bases.library import LibraryModules
from registry.bases.modules import HEAD, Kind, ModuleShape, is_expert_bias
from registry.worker.model import tasks
from registry.worker.model.request import LibraryRequest, installed_library
from registry.worker.sandbox import confine, program

LIBRARY = installed_library()
_CLASSES: tuple[tuple[type, Kind], ...] = (
    (torch.nn.Linear, "linear"), (Conv1D, "conv1d"), (torch.nn.Embedding, "embedding"),
    (torch.nn.modules.conv._ConvNd, "conv"),
)  # fmt: skip
MEMORY_LIMIT_BYTES = 8 * 2**30
"""Memory for the modules, which have no weights: 100,000 layers take half of it."""
SECONDS_LIMIT = 600.0
_CLASSIFIERS = ("score", "classifier", "classification_head")


def modules_of(folder: Path) -> LibraryModules:
    """The modules of the base in this folder; or the library's error, if it cannot build it."""
    try:
        model, task = build(folder)
    except MemoryError:
        problem = f"MemoryError: its modules take over {MEMORY_LIMIT_BYTES} bytes of memory, without weights"
        return LibraryModules(library=LIBRARY, problem=problem)
    except Exception as e:
        return LibraryModules(library=LIBRARY, problem=program.error_text(e, whole=False)[:1000])
    table = tasks.embedding_of(model)
    return LibraryModules(
        library=LIBRARY, modules=dict(_shapes(model, _not_linear(model, task))), vocab=len(table) if table is not None
        else 0, tied=table is not None and table is getattr(model.get_output_embeddings(), "weight", None),
    )  # fmt: skip


def build(folder: Path) -> tuple[Any, tasks.ModelTask]:
    """The base's model on the meta device, and its task. Errors are transformers' own."""
    config = tasks.read_base_config(folder)
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # packing changes the storage of weights, not the modules
    maker, task = tasks.class_of(config)
    with torch.device("meta"):
        model = maker._from_config(config) if hasattr(maker, "_from_config") else maker.from_config(config)
    return model, task


def _not_linear(model: Any, task: tasks.ModelTask) -> list[Any]:
    """The modules that PEFT's "all-linear" leaves out, except `lm_head`, which the rules know by its name."""
    output = model.get_output_embeddings()
    if output is not None:
        return [module for name, module in model.named_modules() if module is output and name != HEAD]
    heads = (getattr(model, name, None) for name in _CLASSIFIERS) if task.name == "SEQ_CLS" else ()
    return [head for head in heads if head is not None][:1]


def _shapes(model: Any, others: list[Any]) -> Iterator[tuple[str, ModuleShape]]:
    for path, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        weight = own.get("weight")
        if weight is None and path and (bias := own.get("bias")) is not None and bias.ndim == 1:
            yield path, ModuleShape(kind="norm", in_features=len(bias), out_features=len(bias), bias=True)
        if weight is not None and weight.ndim and path:
            kind = _kind(module, weight)
            is_left_out = kind == "linear" and any(module is other for other in others)
            shape = _shape("other" if is_left_out else kind, weight, has_bias=own.get("bias") is not None)
            yield path, shape.model_copy(update={"groups": _groups(module)})
        for name, parameter in own.items():
            is_block = parameter.ndim == 3 and not isinstance(module, torch.nn.modules.conv._ConvNd)
            if is_block or is_expert_bias(f"{path}.{name}", parameter.shape):
                count, rows, columns = (1, *parameter.shape)[-3:]
                shape = ModuleShape(kind="parameter", in_features=columns, out_features=rows, count=count)
                yield f"{path}.{name}".removeprefix("."), shape


def _kind(module: Any, weight: torch.Tensor) -> Kind:
    kind = next((kind for maker, kind in _CLASSES if isinstance(module, maker)), None)
    return kind or ("norm" if weight.ndim == 1 else "other" if weight.ndim == 2 else "conv")


def _shape(kind: Kind, weight: torch.Tensor, *, has_bias: bool) -> ModuleShape:
    """As read from a header: the sides of the stored matrix are in and out as the kind says."""
    rows, columns = weight.shape[0], weight.shape[1] if weight.ndim > 1 else weight.shape[0]
    if kind in ("conv1d", "embedding"):
        rows, columns = columns, rows
    return ModuleShape(kind=kind, in_features=columns, out_features=rows, bias=has_bias, kernel=tuple(weight.shape[2:]))


def _groups(module: Any) -> int:
    """Of a convolution that PEFT can wrap: a transposed one stores its weights the other way around."""
    conv = torch.nn.modules.conv
    wraps = isinstance(module, conv._ConvNd) and not isinstance(module, conv._ConvTransposeNd)
    return int(module.groups) if wraps else 0


def list_modules(request: LibraryRequest, _progress: program.Progress) -> LibraryModules:
    """Handle a request, within the limits of time and memory."""
    confine.grant(seconds=SECONDS_LIMIT, memory_bytes=MEMORY_LIMIT_BYTES)
    return modules_of(Path(request.folder))


if __name__ == "__main__":
    program.serve(LibraryRequest, list_modules)
