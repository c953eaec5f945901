"""`Pipeline`: an image model in memory, loaded from a diffusers folder without its code and without network."""

import json
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Self

import diffusers
import torch
import transformers

from registry.versions.files import BASE_CONFIG
from registry.worker.devices import CPU
from registry.worker.model import language, tasks

COMPONENTS = ("unet", "transformer", "text_encoder", "text_encoder_2", "vae")


@dataclass(frozen=True, slots=True)
class Pipeline:
    """The models of a pipeline's folder by component. `originals`: their parameters as the objects first loaded."""

    name: str
    parts: dict[str, Any]
    originals: dict[str, torch.Tensor]
    load_seconds: float

    @classmethod
    def load(cls, folder: Path, name: str, *, device: str = CPU, dtype: str = "") -> Self:
        """Load in fp32 on a CPU; on a GPU in the record's `dtype`, or bf16. Errors are diffusers' own."""
        started = perf_counter()
        target_dtype = torch.float32 if device == CPU else language.DTYPES.get(dtype.upper(), torch.bfloat16)
        names = [part for part in COMPONENTS if (folder / part / BASE_CONFIG).is_file()]
        if "unet" not in names:  # beside a transformer, the second text encoder is T5, which adapters leave alone
            names = [part for part in names if part != "text_encoder_2"]
        parts = {part: _part(folder / part, part, target_dtype).to(device) for part in names}
        originals = {f"{part}.{n}": p for part, component in parts.items() for n, p in component.named_parameters()}
        return cls(name, parts, originals, perf_counter() - started)

    @property
    def parameters(self) -> int:
        """Number of parameters of the base."""
        return sum(tensor.numel() for tensor in self.originals.values())

    @property
    def denoiser(self) -> Any:
        """The U-Net or the transformer."""
        return self.parts.get("unet") or self.parts.get("transformer")

    @property
    def text_encoders(self) -> list[str]:
        """Names of the text encoders."""
        return [name for name in self.parts if name.startswith("text_encoder")]

    @property
    def kind(self) -> str:
        """Class name of the denoiser."""
        return type(self.denoiser).__name__

    def to_device(self, values: torch.Tensor) -> torch.Tensor:
        """Move random values, drawn on the CPU so that every device renders the same image."""
        return values.to(self.denoiser.device, self.denoiser.dtype)

    def fingerprint(self) -> dict[str, int]:
        """An integer sum of the bits of each tensor."""
        return {name: language.bit_sum(tensor) for name, tensor in self.originals.items()}


def _part(folder: Path, part: str, dtype: torch.dtype) -> Any:
    # The library itself loads in `dtype`, because it keeps some layers in 32 bits, which a cast afterwards would not.
    if part.startswith("text_encoder"):
        config = tasks.read_base_config(folder)
        maker = getattr(transformers, (config.architectures or ["CLIPTextModel"])[0])
        model = maker.from_pretrained(folder, config=config, local_files_only=True, use_safetensors=True, dtype=dtype)
    else:
        class_name = str(json.loads((folder / BASE_CONFIG).read_bytes()).get("_class_name", ""))
        model_type: Any = getattr(diffusers, class_name, None)
        if not (isinstance(model_type, type) and issubclass(model_type, diffusers.ModelMixin)):
            raise ValueError(f"{folder.name}: {class_name!r} is not a model of diffusers")
        model_class: Any = model_type
        model = model_class.from_pretrained(folder, local_files_only=True, use_safetensors=True, torch_dtype=dtype)
    return model.eval().requires_grad_(False)
