"""Methods whose update PEFT computes: LoHa, LoKr, OFT, BOFT, MiSS, VeRA, RandLoRA, SHiRA. Also a process's main.

    $ echo '{"recipe": {…}, …}' | python -m registry.worker.merge.peft_methods

Invariants
- The only room of merging that imports PEFT, which takes seconds: `Order` starts it for these methods alone.
- No model is built: PEFT wraps an empty module of each target's size, and one weight is there at a time.
- Arithmetic is in the working type of the fuse, as for all other methods.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor

from registry.worker.merge import process
from registry.worker.merge.changes import Rows


class PeftMerger:
    """An adapter in PEFT's hands, on empty modules [out, in] at the paths of its targets."""

    def __init__(self, folder: Path, targets: Mapping[str, tuple[int, int]]) -> None:
        shell = torch.nn.Module()
        for path, (rows, columns) in targets.items():
            *parents, leaf = path.split(".")
            inner: torch.nn.Module = shell
            for name in parents:
                if name not in dict(inner.named_children()):
                    inner.add_module(name, torch.nn.Module())
                inner = inner.get_submodule(name)
            inner.add_module(leaf, torch.nn.utils.skip_init(torch.nn.Linear, columns, rows, bias=False))
        config: Any = peft.PeftConfig.from_pretrained(str(folder))
        config.task_type, config.target_modules, config.exclude_modules = None, sorted(targets), None
        if getattr(config, "layers_to_transform", None) is not None:
            config.layers_to_transform = None
        self._wrapped: Any = peft.PeftModel.from_pretrained(shell, str(folder), config=config)
        self._folder = folder

    def merged(self, path: str, weight: Tensor) -> Tensor:
        """The weight [out, in] with the adapter in it, in the weight's type."""
        layer = self._wrapped.base_model.model.get_submodule(path)
        _widened(self._wrapped, weight.dtype)
        base = layer.get_base_layer()
        base.weight.data = weight
        layer.merge()
        merged_weight: Tensor = base.weight.data
        base.weight.data = torch.empty(0, dtype=weight.dtype)
        return merged_weight

    def change(self, path: str) -> Whole:
        return Whole(self, path)


class Whole:
    """A change that needs the whole matrix: gathered in a first pass, merged by PEFT, handed out by rows."""

    def __init__(self, foreign: PeftMerger, path: str) -> None:
        self._foreign, self._path = foreign, path
        self._values: Tensor | None = None

    def begin(self, _dtype: torch.dtype, rows: Rows) -> None:
        weight = torch.cat([block.clone() for _, block in rows()])
        self._values = self._foreign.merged(self._path, weight)

    def apply(self, block: Tensor, first: int) -> None:
        if self._values is not None:
            block.copy_(self._values[first : first + len(block)])


def _widened(wrapped: Any, dtype: torch.dtype) -> None:
    """Every number of the adapter in the working type; the base's empty weights stay as they are."""
    for name, tensor in (*wrapped.named_parameters(), *wrapped.named_buffers()):
        if "base_layer" not in name and tensor.is_floating_point() and tensor.dtype != dtype:
            tensor.data = tensor.data.to(dtype)


if __name__ == "__main__":
    sys.exit(process.main(PeftMerger))
