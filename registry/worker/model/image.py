"""`Pipeline`: an image model in memory, loaded from a diffusers folder without its code and without network.

Of its models only those are loaded that its class loads adapters into, and the decoder of images.
"""

import inspect
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

DECODER = "vae"
INDEX = "model_index.json"
CLASSES = {"UNet2DConditionModel": "StableDiffusionPipeline", "FluxTransformer2DModel": "FluxPipeline"}
"""The class of a pipeline whose folder has no index, by its denoiser."""


@dataclass(frozen=True, slots=True)
class Pipeline:
    """The models of a pipeline's folder by component. `originals`: their parameters as the objects first loaded.

    `pipeline_class`: the class in diffusers, None if it has none or loads no adapters.
    """

    name: str
    pipeline_class: Any
    parts: dict[str, Any]
    originals: dict[str, torch.Tensor]
    load_seconds: float

    @classmethod
    def load(cls, folder: Path, name: str, *, device: str = CPU, dtype: str = "") -> Self:
        """Load in fp32 on a CPU; on a GPU in the record's `dtype`, or bf16. Errors are diffusers' own."""
        started = perf_counter()
        target_dtype = torch.float32 if device == CPU else language.DTYPES.get(dtype.upper(), torch.bfloat16)
        pipeline_class = _pipeline_class(folder)
        adapted = pipeline_class._lora_loadable_modules if pipeline_class else ()
        names = [part for part in (*adapted, DECODER) if (folder / part / BASE_CONFIG).is_file()]
        parts = {part: _part(folder / part, part, target_dtype).to(device) for part in names}
        originals = {f"{part}.{n}": p for part, component in parts.items() for n, p in component.named_parameters()}
        return cls(name, pipeline_class, parts, originals, perf_counter() - started)

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

    def assembled(self) -> Any:
        """The pipeline of these models, with nothing in the places of all others: enough to load an adapter."""
        parameters = inspect.signature(self.pipeline_class.__init__).parameters
        required = [name for name, p in parameters.items() if p.default is p.empty and name != "self"]
        arguments: dict[str, Any] = dict.fromkeys(required) | self.parts
        if "unet" in self.parts:  # a U-Net's pipeline reads its scheduler's configuration
            arguments["scheduler"] = diffusers.DDIMScheduler()
        if "requires_safety_checker" in parameters:
            arguments["requires_safety_checker"] = False
        return self.pipeline_class(**{name: part for name, part in arguments.items() if name in parameters})

    def to_device(self, values: torch.Tensor) -> torch.Tensor:
        """Move random values, drawn on the CPU so that every device renders the same image."""
        return values.to(self.denoiser.device, self.denoiser.dtype)

    def fingerprint(self) -> dict[str, int]:
        """An integer sum of the bits of each tensor."""
        return {name: language.bit_sum(tensor) for name, tensor in self.originals.items()}


def _pipeline_class(folder: Path) -> Any:
    """The class of diffusers that the folder names; None if there is none, or if it loads no adapters."""
    if (folder / INDEX).is_file():
        name = str(json.loads((folder / INDEX).read_bytes()).get("_class_name", ""))
    else:
        configs = [
            json.loads(f.read_bytes()) for d in ("unet", "transformer") if (f := folder / d / BASE_CONFIG).is_file()
        ]
        name = CLASSES.get(str(configs[0].get("_class_name", "")), "") if configs else ""
        if name == "StableDiffusionPipeline" and configs[0].get("addition_embed_type") == "text_time":
            name = "StableDiffusionXLPipeline"
    kind: Any = getattr(diffusers, name, None) if name else None
    is_pipeline = isinstance(kind, type) and issubclass(kind, diffusers.DiffusionPipeline)
    return kind if is_pipeline and hasattr(kind, "load_lora_weights") else None


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
