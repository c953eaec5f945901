"""Write a plain LoRA adapter's folder from factors: names and shapes as PEFT saves them, the scale folded in.

Invariants
- alpha = rank for every module, without rsLoRA: every runtime multiplies by exactly 1.
- The targets are those of the adapter that it is like, if they mean the same modules; else every path is written out.
- The folder must be empty or absent; files are written whole before their names appear.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from registry.adapters.peft.names import PREFIX
from registry.files import CONFIG, WEIGHTS
from registry.worker.merge.lowrank import Factors

Shape = tuple[int, ...]


class UpdateTarget(NamedTuple):
    """Which module an update is for. `a_tail`: A's sizes after the rank; `order`: depth among expert parameters.

    `parameter`: the one of its parameters that is meant, where the configuration names it.
    """

    path: str
    kind: str
    order: int
    a_tail: Shape
    parameter: str = ""

    @property
    def key(self) -> str:
        """What targets and patterns name."""
        return f"{self.path}.{self.parameter}" if self.parameter else self.path


class Made(NamedTuple):
    """The update of one module: one pair of factors, or one for each expert, all of one rank."""

    site: UpdateTarget
    factors: Sequence[Factors]

    @property
    def rank(self) -> int:
        return max(pair.rank for pair in self.factors)


def write(out: Path, updates: Sequence[Made], written: dict[str, Any], dtype: torch.dtype) -> None:
    """The folder of the adapter. `written` is its configuration, ranks aside."""
    out.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    for update in updates:
        tensors |= {name: tensor.to(dtype).contiguous() for name, tensor in _tensors(update)}
    partial = out / f".{WEIGHTS}"
    save_file(tensors, partial, metadata={"format": "pt"})
    os.replace(partial, out / WEIGHTS)
    text = json.dumps(written | _ranks(updates), indent=2, sort_keys=True) + "\n"
    (out / CONFIG).write_text(text, "utf-8")


def plain(base_name: str, task: str) -> dict[str, Any]:
    """The configuration of a plain LoRA, targets aside."""
    return {
        "peft_type": "LORA", "task_type": task or None, "base_model_name_or_path": base_name, "bias": "none",
        "fan_in_fan_out": False, "inference_mode": True, "init_lora_weights": True, "lora_dropout": 0.0,
        "modules_to_save": None,
    }  # fmt: skip


_SAME = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "target_parameters")


def like(sources: Sequence[dict[str, Any]], updates: Sequence[Made]) -> dict[str, Any]:
    """A configuration for the sum of adapters with these configurations."""
    first = sources[0]
    config = plain(first.get("base_model_name_or_path") or "", first.get("task_type") or "")
    config["fan_in_fan_out"] = bool(first.get("fan_in_fan_out"))
    if all(_targets(source) == _targets(first) for source in sources):
        return config | {name: first[name] for name in _SAME if first.get(name) is not None}
    return config | targets_of(updates)


def targets_of(updates: Iterable[Made]) -> dict[str, Any]:
    """The targets written out, path by path."""
    updates = list(updates)
    parameters = sorted({update.site.key for update in updates if update.site.parameter})
    paths = sorted(update.site.path for update in updates if not update.site.parameter)
    return {"target_modules": paths} | ({"target_parameters": parameters} if parameters else {})


def _targets(written: dict[str, Any]) -> str:
    def plainly(value: Any) -> Any:
        return sorted(value, key=str) if isinstance(value, list) else value

    return json.dumps([plainly(written.get(name)) or None for name in _SAME])


def _ranks(updates: Sequence[Made]) -> dict[str, Any]:
    """Rank and alpha: the most frequent rank as `r`, the others by pattern."""
    ranks = [update.rank for update in updates]
    usual = max(set(ranks), key=lambda rank: (ranks.count(rank), rank))
    others = {update.site.key: update.rank for update in updates if update.rank != usual}
    alphas = {path: float(rank) for path, rank in others.items()}
    return {"r": usual, "lora_alpha": usual, "rank_pattern": others, "alpha_pattern": alphas, "use_rslora": False}


def _tensors(update: Made) -> list[tuple[str, Tensor]]:
    site, rank = update.site, update.rank
    head = PREFIX + site.path + ".base_layer" * max(0, site.order)
    if site.kind == "parameter":
        halves = [_padded(pair, rank) for pair in update.factors]
        a = torch.cat([pair.right for pair in halves], dim=0)
        b = torch.stack([pair.left for pair in halves], dim=2).flatten(1)
    else:
        (only,) = update.factors
        a, b = only.right.reshape(rank, *site.a_tail), only.left
        b = b.reshape(*b.shape, *([1] * (len(site.a_tail) - 1)))
    if site.kind == "embedding":
        return [(f"{head}.lora_embedding_A", a), (f"{head}.lora_embedding_B", b)]
    return [(f"{head}.lora_A.weight", a), (f"{head}.lora_B.weight", b)]


def _padded(pair: Factors, rank: int) -> Factors:
    """The same update with zeros up to `rank`: all experts of a block share one."""
    more = rank - pair.rank
    if not more:
        return pair
    return Factors(torch.nn.functional.pad(pair.left, (0, more)), torch.nn.functional.pad(pair.right, (0, 0, 0, more)))
