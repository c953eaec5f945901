"""`Adapter`: one adapter's folder opened for arithmetic: its modules' factors with the scale folded in, and the rest.

    PEFT's kinds            left                  right             the weight moves by
    linear, conv            scale * B [out, r]    A [r, in]         left @ right
    embedding               scale * B [width, r]  A [r, rows]       (left @ right).T
    parameter (experts)     one pair for each expert: B is [out, r * experts] with the expert last, A [experts * r, in]

Invariants
- Nothing but the configuration and the header is read on opening; a tensor is read when it is asked for.
- A value that is NaN or infinite is `Invalid` (TENSORS_INVALID): no arithmetic makes it right again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from registry.adapters.peft import LoraSpec, ModuleUpdate
from registry.adapters.peft.names import Names, TensorName, TensorRole
from registry.adapters.read import PeftContents, read_contents
from registry.digest import Digest
from registry.errors import Invalid
from registry.files import CONFIG, WEIGHTS, kind_of
from registry.manifest import Descriptor
from registry.worker.merge.lowrank import Factors

_ADALORA_RANK = 12
"""PEFT's `init_r` where the configuration does not write it."""
_PIECES = (TensorRole.PIECE, TensorRole.FULL, TensorRole.TOKENS)


@dataclass(frozen=True, slots=True)
class Adapter:
    """`names` maps what each tensor is to its name in the file; `written` is the configuration as it was written."""

    folder: Path
    contents: PeftContents
    names: dict[TensorName, str]
    written: dict[str, Any]
    _file: Any = field(repr=False, compare=False)
    _of_module: dict[tuple[TensorRole, str, int], str] = field(repr=False, compare=False)

    @classmethod
    def open(cls, folder: str | Path) -> Adapter:
        """`Invalid` or `TooLarge` when configuration or header break a rule."""
        path = Path(folder)
        if not path.is_dir():
            raise Invalid("FOLDER_INVALID", f"there is no folder {str(folder)[:300]!r}")
        contents = read_contents(_files(path), lambda file, start, length: _read(path / file, start, length))
        reader = Names(contents.config)
        names = {reader.read(info.name): info.name for info in contents.header}
        return cls(
            path, contents, names, json.loads((path / CONFIG).read_bytes()), safe_open(path / WEIGHTS, framework="pt"),
            {(name.role, name.path, name.order): stored for name, stored in names.items()},
        )  # fmt: skip

    @property
    def lora(self) -> LoraSpec:
        return self.contents.lora

    @property
    def size_bytes(self) -> int:
        return self.contents.header.size_bytes

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
        """The module's update as factors with the scale folded in: one, or one for each expert."""
        return [pair.times(module.scale) for pair in self.pairs(module)]

    def pairs(self, module: ModuleUpdate) -> list[Factors]:
        """The same without the scale: B and A as matrices."""
        a, b = self.tensors_of(module)
        if module.kind != "parameter" or a.shape[0] == module.rank:
            return [Factors(b.flatten(1), a.flatten(1))]
        experts = a.shape[0] // module.rank
        rows, columns = a.view(experts, module.rank, -1), b.view(b.shape[0], module.rank, experts)
        return [Factors(columns[:, :, expert].contiguous(), rows[expert]) for expert in range(experts)]

    def scale_of(self, module: ModuleUpdate) -> float | Tensor:
        """LoRA's scale; for AdaLoRA one for each rank [1, rank]: its singular values * alpha / (first rank + 1e-5)."""
        stored = self.names.get(TensorName(TensorRole.PIECE, module.path, "lora_E"))
        if self.lora.method != "ADALORA" or stored is None:
            return module.scale
        initial = self.contents.config.other.get("init_r")
        first = initial if isinstance(initial, int) and initial > 0 else _ADALORA_RANK
        return self.raw(stored).double().view(1, -1) * (module.alpha / (first + 1e-5))

    def tensors_of(self, module: ModuleUpdate) -> tuple[Tensor, Tensor]:
        """A and B as PEFT stores them, in 32 bits."""
        a, b = (self._of_module[(role, module.path, module.order)] for role in (TensorRole.A, TensorRole.B))
        return self.raw(a).float(), self.raw(b).float()

    def others(self) -> list[tuple[TensorName, str]]:
        """What is no half of a pair: whole tensors, trained rows, pieces of other methods."""
        return [(name, stored) for name, stored in self.names.items() if name.role in _PIECES]


def widest(dtypes: list[str]) -> torch.dtype:
    """The type that holds values of all these types: 32 bits unless all are the same 16-bit type."""
    known_dtypes = {"BF16": torch.bfloat16, "F16": torch.float16}
    return known_dtypes.get(dtypes[0], torch.float32) if len(set(dtypes)) == 1 else torch.float32


def _files(folder: Path) -> list[Descriptor]:
    files = []
    for name in (CONFIG, WEIGHTS):
        path, kind = folder / name, kind_of(name)
        if path.is_file() and kind is not None:
            size = path.stat().st_size
            files.append(Descriptor(path=name, media_type=kind.media_type, digest=Digest.of(b""), size_bytes=size))
    return files


def _read(path: Path, start: int, length: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(length)
