"""`Pipeline`: an image model in memory, loaded from a diffusers folder.

Loading runs no code from the base's folder and makes no network request.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import diffusers
import torch
import transformers

from registry.files import BASE_CONFIG
from registry.worker.devices import CPU
from registry.worker.model import language

COMPONENTS = ("unet", "transformer", "text_encoder", "vae")


@dataclass(frozen=True, slots=True)
class Pipeline:
    """The models of a pipeline's folder by component, and their parameters as the objects that they were at first."""

    name: str
    parts: dict[str, Any]
    originals: dict[str, torch.Tensor]
    load_seconds: float

    @classmethod
    def load(cls, folder: Path, name: str, *, device: str = CPU, dtype: str = "") -> Pipeline:
        """Errors are diffusers' own: the caller reports them. fp32 on a CPU; on a GPU as the record says, or bf16."""
        started = perf_counter()
        target_dtype = torch.float32 if device == CPU else language.DTYPES.get(dtype.upper(), torch.bfloat16)
        names = [part for part in COMPONENTS if (folder / part / BASE_CONFIG).is_file()]
        parts = {part: _part(folder / part, part, target_dtype).to(device) for part in names}
        originals = {f"{part}.{n}": p for part, component in parts.items() for n, p in component.named_parameters()}
        return cls(name, parts, originals, perf_counter() - started)

    @property
    def parameters(self) -> int:
        return sum(tensor.numel() for tensor in self.originals.values())

    @property
    def denoiser(self) -> Any:
        return self.parts.get("unet") or self.parts.get("transformer")

    @property
    def kind(self) -> str:
        return type(self.denoiser).__name__

    def here(self, values: torch.Tensor) -> torch.Tensor:
        """Seeded on the CPU, so that every device is asked for the same picture."""
        return values.to(self.denoiser.device, self.denoiser.dtype)

    def fingerprint(self) -> dict[str, int]:
        return {name: language.bit_sum(tensor) for name, tensor in self.originals.items()}


def _part(folder: Path, part: str, dtype: torch.dtype) -> Any:
    """In this number format, but for what the library keeps in 32 bits, which a cast afterwards would not."""
    if part == "text_encoder":
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        maker = getattr(transformers, (config.architectures or ["CLIPTextModel"])[0])
        model = maker.from_pretrained(folder, config=config, local_files_only=True, use_safetensors=True, dtype=dtype)
    else:
        named = str(json.loads((folder / BASE_CONFIG).read_bytes()).get("_class_name", ""))
        model_type: Any = getattr(diffusers, named, None)
        if not (isinstance(model_type, type) and issubclass(model_type, diffusers.ModelMixin)):
            raise ValueError(f"{folder.name}: {named!r} is no model of diffusers")
        model_class: Any = model_type
        model = model_class.from_pretrained(folder, local_files_only=True, use_safetensors=True, torch_dtype=dtype)
    return model.eval().requires_grad_(False)
