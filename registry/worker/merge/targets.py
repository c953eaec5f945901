"""Which tensors of a base an adapter changes, and how: from PEFT's module paths to tensors as the files name them.

Keys are the model's names of tensors (`Stored.name`), also for a tied head that no file holds. No tensor is read here:
each change reads its factors when it is made.
"""

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from torch import Tensor

from registry.adapters.methods import find
from registry.adapters.peft import ModuleUpdate
from registry.adapters.peft.names import TensorName, TensorRole
from registry.bases import BaseSpec
from registry.errors import Invalid
from registry.worker.merge.adapters import Adapter
from registry.worker.merge.changes import Blocks, Change, Dora, LowRank, NewRows, Replaced, Scaled, Sum
from registry.worker.model.weights import Weights

Make = Callable[[], Change]
Changes = dict[str, list[Make]]

TRANSPOSED_EXPERTS = frozenset({"gpt_oss", "llama4", "llama4_text"})
"""Model types whose fused expert parameters are [experts, in, out]; all others are [experts, out, in]."""
TABLES = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight", "shared.weight")
"""How the names of token embeddings end."""
_LAYER = re.compile(r"((?:.*?\.)?(?:layers|h|blocks|layer)\.)(\d{1,6})(\..+)\Z")


MakeMerger = Callable[[Path, Mapping[str, tuple[int, int]]], Callable[[str], Change]]
"""(the adapter's folder, target path → its weight's shape) → (target path → its change) (peft_methods.py)."""


def changes(adapter: Adapter, spec: BaseSpec, weights: Weights, make_merger: MakeMerger | None = None) -> Changes:
    """Map names of tensors to their changes, in order. `Invalid` (RECIPE_INVALID) if the base lacks a tensor."""
    finder = _ChangeFinder(adapter, spec, weights)
    if make_merger and find(adapter.lora.method).fused_by == "peft":
        return finder.find_with_peft(make_merger)
    return finder.find()


def layer_map(adapter: Adapter) -> list[int]:
    """New layer → the base's layer that it copies; empty if layers are not replicated."""
    return [layer for first, last in adapter.contents.config.layer_replication for layer in range(first, last)]


def in_layer(name: str, layer: int) -> str:
    """The name of the same tensor in another layer."""
    return _LAYER.sub(lambda match: f"{match[1]}{layer}{match[3]}", name)


def layer_of(name: str) -> int | None:
    """The number of the layer that a tensor belongs to."""
    match = _LAYER.match(name)
    return int(match[2]) if match else None


class _ChangeFinder:
    def __init__(self, adapter: Adapter, spec: BaseSpec, weights: Weights) -> None:
        self._adapter, self._spec = adapter, spec
        self._shapes = {stored.name: stored.shape for stored in weights.by_file_name.values() if not stored.is_side}
        self._map = layer_map(adapter)
        self._changes: Changes = {}

    def find(self) -> Changes:
        for module in self._adapter.lora.modules:
            self._module(module)
        for name, stored in self._adapter.others():
            self._other(name, stored)
        return self._changes

    def find_with_peft(self, make_merger: MakeMerger) -> Changes:
        """One change for each target: its whole weight, computed by PEFT."""
        targets: dict[str, tuple[int, int]] = {}
        for path in sorted({piece.path for piece in self._adapter.lora.pieces if piece.path}):
            shape = self._shape(self._name(path, "weight")) or ()
            module = self._spec.modules.get(path)
            if len(shape) != 2 or module is None or module.kind != "linear":
                raise Invalid("RECIPE_INVALID", f"{path} is not a linear module, and PEFT fuses only those here")
            targets[path] = (shape[0], shape[1])
        if self._map or self._adapter.lora.full:
            raise Invalid("RECIPE_INVALID", "the adapter changes more than linear modules: merge it with PEFT")
        merger = make_merger(self._adapter.folder, targets)
        for path in targets:
            self._add(self._name(path, "weight"), partial(merger, path))
        return self._changes

    def _shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of a tensor of the new base; a tied head has the shape of the embedding."""
        layer = layer_of(name)
        if self._map and layer is not None:
            name = in_layer(name, self._map[layer]) if layer < len(self._map) else ""
        shape = self._shapes.get(name)
        if shape is None and name == "lm_head.weight" and self._spec.tied:
            return next((s for n, s in self._shapes.items() if n.endswith(TABLES)), None)
        return shape

    def _name(self, path: str, leaf: str) -> str:
        """The tensor of this module. Mixtral's files may call `block_sparse_moe` what the model calls `mlp`."""
        for candidate in (path, path.replace(".mlp.", ".block_sparse_moe.")):
            if self._shape(f"{candidate}.{leaf}") is not None:
                return f"{candidate}.{leaf}"
        raise Invalid("RECIPE_INVALID", f"the base has no tensor {path}.{leaf}, which the adapter changes")

    def _add(self, name: str, make: Make) -> None:
        self._changes.setdefault(name, []).append(make)

    def _module(self, module: ModuleUpdate) -> None:
        if module.kind == "parameter":
            self._experts(module)
            return
        name = self._name(module.path, "weight")
        shape = self._shape(name) or ()
        base_module = self._spec.modules.get(module.path)
        transposed = module.kind == "embedding" or (base_module is not None and base_module.kind == "conv1d")
        if len(shape) not in (2, 4):
            raise Invalid("RECIPE_INVALID", f"{name} has {len(shape)} dimensions; 2 or 4 are expected")
        self._add(name, lambda: self._update(module, transposed))
        if module.bias_shape is not None:
            bias = self._name(module.path, "bias")
            self._add(bias, lambda: Sum(self._demand(TensorRole.BIAS, module), module.scale))

    def _update(self, module: ModuleUpdate, transposed: bool) -> Change:
        (b, a), scale = self._adapter.pairs(module)[0], self._adapter.scale_of(module)
        update = LowRank(a.T, b.T, scale) if transposed else LowRank(b, a, scale)
        if module.magnitude_shape is None:
            return update
        return Dora(update, self._demand(TensorRole.MAGNITUDE, module), by_rows=not transposed)

    def _demand(self, role: TensorRole, module: ModuleUpdate) -> Tensor:
        tensor = self._adapter.tensor(role, module.path, module.order)
        if tensor is None:
            raise Invalid("RECIPE_INVALID", f"module {module.path} lacks its {role.value}")
        return tensor

    def _experts(self, module: ModuleUpdate) -> None:
        """Fused parameters [experts, a, b], or a tensor for each expert as transformers 4 names them.

        Sizes decide which of a block's parameters an update is for; names alone do not tell.
        """
        rows, columns = module.b_shape[0], module.a_shape[1]
        swapped = self._spec.model_type in TRANSPOSED_EXPERTS
        fused = [name for name in self._shapes_under(module.path) if len(self._shape(name) or ()) in (2, 3)]
        for transposed in (swapped, not swapped):
            shape = (columns, rows) if transposed else (rows, columns)
            match = [name for name in fused if (self._shape(name) or ())[-2:] == shape]
            if match:
                self._add(match[0], partial(self._blocks, module, transposed))
                return
        self._single_experts(module, rows, columns)

    def _shapes_under(self, path: str) -> list[str]:
        names = self._shapes if not self._map else {in_layer(n, i) for n in self._shapes for i in range(len(self._map))}
        heads = (f"{path}.", path.replace(".mlp.", ".block_sparse_moe.") + ".")
        return [name for name in names if name.startswith(heads) and name.rpartition(".")[2] != "weight"]

    def _blocks(self, module: ModuleUpdate, transposed: bool) -> Change:
        scale, pairs = module.scale, self._adapter.pairs(module)
        parts = [LowRank(a.T, b.T, scale) if transposed else LowRank(b, a, scale) for b, a in pairs]
        return Blocks(parts, module.a_shape[1] if transposed else module.b_shape[0])

    def _single_experts(self, module: ModuleUpdate, rows: int, columns: int) -> None:
        for gate, up, down in (("w1", "w3", "w2"), ("gate_proj", "up_proj", "down_proj")):
            for path in (module.path, module.path.replace(".mlp.", ".block_sparse_moe.")):
                shape = self._shape(f"{path}.0.{gate}.weight")
                if shape is None:
                    continue
                inner, hidden = shape
                for expert in range(module.a_shape[0] // module.rank):
                    if (rows, columns) == (2 * inner, hidden):
                        self._add(f"{path}.{expert}.{gate}.weight", self._slice(module, expert, 0, inner))
                        self._add(f"{path}.{expert}.{up}.weight", self._slice(module, expert, inner, 2 * inner))
                    elif (rows, columns) == (hidden, inner):
                        self._add(f"{path}.{expert}.{down}.weight", self._slice(module, expert, 0, hidden))
                    else:
                        raise Invalid("RECIPE_INVALID", f"{module.path}: its sizes fit no expert of the base")
                return
        raise Invalid("RECIPE_INVALID", f"the base has no experts at {module.path}, which the adapter changes")

    def _slice(self, module: ModuleUpdate, expert: int, first: int, last: int) -> Make:
        def make() -> Change:
            left_factor, right_factor = self._adapter.pairs(module)[expert]
            return LowRank(left_factor[first:last], right_factor, module.scale)

        return make

    def _other(self, name: TensorName, stored: str) -> None:
        effect, read = find(self._adapter.lora.method).effect, self._adapter.raw
        if name.role is TensorRole.FULL:
            self._add(self._name(name.path, name.leaf), lambda: Replaced(lambda _rows: read(stored)))
        elif name.leaf.endswith("trainable_tokens_delta"):
            rows = _trained_rows(self._adapter, name.path)
            self._add(self._name(name.path, "weight"), lambda: NewRows(rows, read(stored)))
        elif effect == "replaces":
            target = self._name(name.path, name.leaf.rpartition(".")[2])
            self._add(target, lambda: Replaced(lambda _rows: read(stored)))
        elif effect == "scales":
            base_module = self._spec.modules.get(name.path)
            transposed = base_module is not None and base_module.kind == "conv1d"
            self._add(self._name(name.path, "weight"), lambda: Scaled(read(stored).T if transposed else read(stored)))
            info, bias = self._adapter.contents.header.get(stored), f"{name.path}.bias"
            if info is not None and info.shape[-1] == 1 and self._shape(bias) is not None:
                self._add(bias, lambda: Scaled(read(stored).T))
        elif not name.leaf.startswith("lora_E"):
            raise Invalid("RECIPE_INVALID", f"{stored} has no counterpart in the weights of a base")


def _trained_rows(adapter: Adapter, path: str) -> list[int]:
    by_name = adapter.contents.config.token_indices
    only = next(iter(by_name.values())) if len(by_name) == 1 else None
    indices = by_name.get(path) or by_name.get(path.rpartition(".")[2]) or only
    if not indices:
        raise Invalid("RECIPE_INVALID", f"the configuration does not say which rows of {path} were trained")
    return list(indices)
