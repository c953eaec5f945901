"""Methods whose update PEFT computes: LoHa, LoKr, OFT, BOFT, MiSS, VeRA, RandLoRA, SHiRA.

A program like process.py. Only it imports PEFT, which takes seconds; `MergeRequest` starts it for these methods alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor

from registry.worker.merge import process
from registry.worker.merge.changes import Replaced


class PeftMerger:
    """An adapter that PEFT loads on empty modules [out, in] at the paths of its targets; no model is built."""

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

    def merge(self, path: str, weight: Tensor) -> Tensor:
        """Merge the adapter into the weight [out, in], in the weight's type."""
        layer = self._wrapped.base_model.model.get_submodule(path)
        _widen(self._wrapped, weight.dtype)
        base = layer.get_base_layer()
        base.weight.data = weight
        layer.merge()
        merged_weight: Tensor = base.weight.data
        base.weight.data = torch.empty(0, dtype=weight.dtype)
        return merged_weight

    def __call__(self, path: str) -> Replaced:
        """The change of one target's weight: a first pass reads the whole matrix, and PEFT merges it."""
        return Replaced(lambda rows: self.merge(path, torch.cat([block.clone() for _, block in rows()])))


def _widen(wrapped: Any, dtype: torch.dtype) -> None:
    """Convert every number of the adapter; the base's empty weights stay as they are."""
    for name, tensor in (*wrapped.named_parameters(), *wrapped.named_buffers()):
        if "base_layer" not in name and tensor.is_floating_point() and tensor.dtype != dtype:
            tensor.data = tensor.data.to(dtype)


if __name__ == "__main__":
    process.main(PeftMerger)
