"""Read an adapter's folder as pairs of factors with the scale folded in, and write a plain LoRA from such pairs.

PEFT's kinds            left factor           right factor      the weight changes by
linear, conv            scale * B [out, r]    A [r, in]         left @ right
embedding               scale * B [width, r]  A [r, rows]       (left @ right).T
parameter (experts)     one pair for each expert: B is [out, r * experts] with the expert last, A [experts * r, in]
"""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from registry.adapters.peft import LoraSpec, ModuleUpdate
from registry.adapters.peft.names import PREFIX, Names, TensorName, TensorRole
from registry.adapters.read import PeftContents
from registry.errors import Invalid
from registry.versions.files import CONFIG, WEIGHTS
from registry.worker.merge.lowrank import Factors
from registry.worker.model.updates import read_adapter

_ADALORA_RANK = 12
"""PEFT's `init_r` where the configuration does not state it."""
_PIECES = (TensorRole.PIECE, TensorRole.FULL, TensorRole.TOKENS)
_TARGET_FIELDS = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "target_parameters")
_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter's folder; a tensor is read when it is used. `names`: what each tensor is → its name in the file."""

    folder: Path
    contents: PeftContents
    names: dict[TensorName, str]
    config: dict[str, Any]
    _file: Any = field(repr=False, compare=False)
    _of_module: dict[tuple[TensorRole, str, int], str] = field(repr=False, compare=False)

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """`Invalid` or `TooLarge` when configuration or header break a rule."""
        path = Path(folder)
        if not path.is_dir():
            raise Invalid("FOLDER_INVALID", f"there is no folder {str(folder)[:300]!r}")
        contents = read_adapter(path)
        reader = Names(contents.config)
        names = {reader.read(info.name): info.name for info in contents.header}
        return cls(
            path, contents, names, json.loads((path / CONFIG).read_bytes()), safe_open(path / WEIGHTS, framework="pt"),
            {(name.role, name.path, name.order): stored for name, stored in names.items()},
        )  # fmt: skip

    @property
    def lora(self) -> LoraSpec:
        """The specification of its LoRA."""
        return self.contents.lora

    def raw(self, name: str) -> Tensor:
        """The tensor as it is stored. `Invalid` (TENSORS_INVALID) if a value is not finite."""
        tensor: Tensor = self._file.get_tensor(name)
        if tensor.is_floating_point() and not bool(tensor.float().isfinite().all()):
            message = f"{self.folder.name}: {name} holds NaN or infinite values"
            raise Invalid("TENSORS_INVALID", message, next_step="train it again; such a file cannot be merged")
        return tensor

    def tensor(self, role: TensorRole, path: str, order: int = -1) -> Tensor | None:
        """The module's A, B, magnitude or bias in 32 bits; None if there is none."""
        stored = self._of_module.get((role, path, order))
        return self.raw(stored).float() if stored is not None else None

    def factors(self, module: ModuleUpdate) -> list[Factors]:
        """The module's update as factors with the scale folded in: one pair, or one for each expert."""
        return [pair.times(module.scale) for pair in self.pairs(module)]

    def pairs(self, module: ModuleUpdate) -> list[Factors]:
        """B and A as matrices, without the scale. `Invalid` (RECIPE_INVALID) for a convolution in groups."""
        if module.groups > 1:
            message = f"{module.path} is a convolution in {module.groups} groups, which PEFT cannot merge either"
            raise Invalid("RECIPE_INVALID", message)
        a, b = (
            self.raw(self._of_module[(role, module.path, module.order)]).float()
            for role in (TensorRole.A, TensorRole.B)
        )
        if module.kind != "parameter" or a.shape[0] == module.rank:
            return [Factors(b.flatten(1), a.flatten(1))]
        experts = a.shape[0] // module.rank
        rows, columns = a.view(experts, module.rank, -1), b.view(b.shape[0], module.rank, experts)
        return [Factors(columns[:, :, expert].contiguous(), rows[expert]) for expert in range(experts)]

    def scale_of(self, module: ModuleUpdate) -> float | Tensor:
        """LoRA's scale; for AdaLoRA one for each rank [1, rank]: its singular values * alpha / (first rank + 1e-5)."""
        stored = self.names.get(TensorName(TensorRole.PIECE, module.path, "lora_E"))
        if stored is None:
            return module.scale
        initial = self.contents.config.other.get("init_r")
        first = initial if isinstance(initial, int) and initial > 0 else _ADALORA_RANK
        return self.raw(stored).double().view(1, -1) * (module.alpha / (first + 1e-5))

    def others(self) -> list[tuple[TensorName, str]]:
        """The tensors beside pairs: whole tensors, trained rows, pieces of other methods."""
        return [(name, stored) for name, stored in self.names.items() if name.role in _PIECES]


def widest(dtypes: Sequence[str]) -> torch.dtype:
    """The type that holds values of all these types: 32 bits unless all are the same 16-bit type."""
    return _DTYPES.get(dtypes[0], torch.float32) if len(set(dtypes)) == 1 else torch.float32


@dataclass(frozen=True, slots=True)
class UpdateTarget:
    """The module of an update. `a_tail`: A's sizes after the rank; `order`: depth among expert parameters.

    `parameter`: the one of its parameters that is meant, where the configuration names it.
    """

    path: str
    kind: str
    order: int
    a_tail: tuple[int, ...]
    parameter: str = ""

    @property
    def key(self) -> str:
        """What targets and patterns name."""
        return f"{self.path}.{self.parameter}" if self.parameter else self.path


@dataclass(frozen=True, slots=True)
class NewUpdate:
    """The update of one module to write: one pair of factors, or one for each expert, all of one rank."""

    target: UpdateTarget
    factors: Sequence[Factors]

    @property
    def rank(self) -> int:
        """The largest rank of its pairs."""
        return max(pair.rank for pair in self.factors)


def write_adapter(out: Path, updates: Sequence[NewUpdate], config: dict[str, Any], dtype: torch.dtype) -> None:
    """Write the adapter's folder. alpha = rank for every module, without rsLoRA: every runtime multiplies by 1.

    `config` is its configuration, ranks aside.
    """
    tensors = {name: tensor.to(dtype) for update in updates for name, tensor in _tensors(update)}
    save_adapter(out, tensors, config | _ranks(updates))


def save_adapter(out: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    """Write a PEFT adapter's folder."""
    out.mkdir(parents=True, exist_ok=True)
    partial = out / f".{WEIGHTS}"
    save_file({name: t.contiguous() for name, t in tensors.items()}, partial, metadata={"format": "pt"})
    os.replace(partial, out / WEIGHTS)
    (out / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")


def plain_config(base_name: str, task: str) -> dict[str, Any]:
    """The configuration of a plain LoRA, targets aside."""
    return {
        "peft_type": "LORA", "task_type": task or None, "base_model_name_or_path": base_name, "bias": "none",
        "fan_in_fan_out": False, "inference_mode": True, "init_lora_weights": True, "lora_dropout": 0.0,
        "modules_to_save": None,
    }  # fmt: skip


def config_like(sources: Sequence[dict[str, Any]], updates: Sequence[NewUpdate]) -> dict[str, Any]:
    """A configuration for the sum of adapters with these configurations: the sources' targets if they are the same."""
    first = sources[0]
    config = plain_config(first.get("base_model_name_or_path") or "", first.get("task_type") or "")
    config["fan_in_fan_out"] = bool(first.get("fan_in_fan_out"))
    if all(_targets(source) == _targets(first) for source in sources):
        return config | {name: first[name] for name in _TARGET_FIELDS if first.get(name) is not None}
    return config | explicit_targets(updates)


def explicit_targets(updates: Iterable[NewUpdate]) -> dict[str, Any]:
    """The targets of these updates, path by path."""
    targets = [update.target for update in updates]
    parameters = sorted({target.key for target in targets if target.parameter})
    paths = sorted(target.path for target in targets if not target.parameter)
    return {"target_modules": paths} | ({"target_parameters": parameters} if parameters else {})


def _targets(config: dict[str, Any]) -> str:
    values = (config.get(name) or None for name in _TARGET_FIELDS)
    return json.dumps([sorted(value, key=str) if isinstance(value, list) else value for value in values])


def _ranks(updates: Sequence[NewUpdate]) -> dict[str, Any]:
    """Rank and alpha: the most frequent rank as `r`, the others by pattern."""
    ranks = [update.rank for update in updates]
    usual = max(set(ranks), key=lambda rank: (ranks.count(rank), rank))
    others = {update.target.key: update.rank for update in updates if update.rank != usual}
    alphas = {path: float(rank) for path, rank in others.items()}
    return {"r": usual, "lora_alpha": usual, "rank_pattern": others, "alpha_pattern": alphas, "use_rslora": False}


def _tensors(update: NewUpdate) -> list[tuple[str, Tensor]]:
    target, rank = update.target, update.rank
    head = PREFIX + target.path + ".base_layer" * max(0, target.order)
    if target.kind == "parameter":
        halves = [_padded(pair, rank) for pair in update.factors]
        a = torch.cat([pair.right_factor for pair in halves], dim=0)
        b = torch.stack([pair.left_factor for pair in halves], dim=2).flatten(1)
    else:
        (only,) = update.factors
        a, b = only.right_factor.reshape(rank, *target.a_tail), only.left_factor
        b = b.reshape(*b.shape, *([1] * (len(target.a_tail) - 1)))
    if target.kind == "embedding":
        return [(f"{head}.lora_embedding_A", a), (f"{head}.lora_embedding_B", b)]
    return [(f"{head}.lora_A.weight", a), (f"{head}.lora_B.weight", b)]


def _padded(pair: Factors, rank: int) -> Factors:
    """The same update with zeros up to `rank`: all experts of a block share one."""
    more = rank - pair.rank
    pad = torch.nn.functional.pad
    return Factors(pad(pair.left_factor, (0, more)), pad(pair.right_factor, (0, 0, 0, more))) if more else pair
