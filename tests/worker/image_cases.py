"""Image adapters for questions to diffusers: name → one file with exactly one property, and what it means.

Forged without torch: each file's meaning is a list of updates, so that the same update can be said in every tool's
names.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from registry.adapters import safetensors
from registry.bases import BaseSpec, pipelines
from tests import samples
from tests.samples import Tensor

RANK, WIDTH = 4, 32
BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"
SD = tuple(
    f"{BLOCK}.{attention}.{leaf}" for attention in ("attn1", "attn2") for leaf in ("to_q", "to_k", "to_v", "to_out.0")
)
TEXT = tuple(f"encoder.layers.0.self_attn.{leaf}" for leaf in ("q_proj", "k_proj", "v_proj", "out_proj"))
FLUX_SIDES = {
    "img": ("to_q", "to_k", "to_v", "to_out.0"),
    "txt": ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
}
QWEN = tuple(f"transformer_blocks.0.attn.{leaf}" for leaf in ("to_q", "to_out.0", "add_k_proj", "to_add_out"))
FLUX_MLP = "single_transformer_blocks.0.proj_mlp"
FLUX = tuple(f"transformer_blocks.0.attn.{leaf}" for leaves in FLUX_SIDES.values() for leaf in leaves)


@dataclass(frozen=True, slots=True)
class Update:
    """The base's weight `module` changes by scale · B[rows] · A, where A and B are tensors of the file.

    `magnitude`: of DoRA (arXiv 2402.09353), the norms of the rows of the sum.
    """

    module: str
    a: str
    b: str
    scale: float = 1.0
    rows: tuple[int, int] | None = None
    magnitude: str = ""


@dataclass(slots=True)
class Case:
    """`meant` is empty where the file says nothing that could be worked out by hand."""

    base: str
    tensors: dict[str, Tensor] = field(default_factory=dict)
    meant: list[Update] = field(default_factory=list)
    metadata: dict[str, str] | None = None

    def pair(self, a: str, b: str, sizes: tuple[int, int] = (WIDTH, WIDTH), dtype: str = "F32") -> None:
        """Values of B are kept from zero by their size: an update is seen in the image."""
        for name, shape in ((a, (RANK, sizes[1])), (b, (sizes[0], RANK))):
            self.tensors[name] = (dtype, shape, samples.values(dtype, shape, len(self.tensors), scale=0.5))

    @property
    def file(self) -> bytes:
        return samples.safetensors(self.tensors, self.metadata)


def peft(
    base: str, prefix: str, modules: Iterable[str], *, scale: float = 1.0, infix: str = "", dtype: str = "F32"
) -> Case:
    """Under the names of PEFT, as diffusers writes them."""
    case = Case(base)
    for module in modules:
        a, b = f"{prefix}{module}.lora_A{infix}.weight", f"{prefix}{module}.lora_B{infix}.weight"
        case.pair(a, b, dtype=dtype)
        case.meant.append(Update(f"{prefix}{module}", a, b, scale))
    return case


def kohya(base: str, modules: Mapping[str, str], *, alpha: float | None = 2.0) -> Case:
    """`modules`: path in the pipeline → kohya's name of it."""
    case = Case(base)
    for module, at in modules.items():
        case.pair(f"{at}.lora_down.weight", f"{at}.lora_up.weight")
        if alpha is not None:
            case.tensors[f"{at}.alpha"] = ("F32", (), struct.pack("<f", alpha))
        scale = 1.0 if alpha is None else alpha / RANK
        case.meant.append(Update(module, f"{at}.lora_down.weight", f"{at}.lora_up.weight", scale))
    return case


def flux_fused(ends: tuple[str, str], names: Mapping[tuple[str, str], str], *, alpha: float | None = None) -> Case:
    """One block of Flux with q, k and v fused. `names`: (side, `qkv` or `proj`) → the tool's path."""
    case = Case("flux-tiny")
    for (side, leaf), at in names.items():
        rows = 3 * WIDTH if leaf == "qkv" else WIDTH
        a, b = (f"{at}{end}" for end in ends)
        case.pair(a, b, (rows, WIDTH))
        if alpha is not None:
            case.tensors[f"{at}.alpha"] = ("F32", (), struct.pack("<f", alpha))
        leaves = FLUX_SIDES[side][:3] if leaf == "qkv" else FLUX_SIDES[side][3:]
        for n, part in enumerate(leaves):
            piece = (n * WIDTH, (n + 1) * WIDTH) if leaf == "qkv" else None
            scale = 1.0 if alpha is None else alpha / RANK
            case.meant.append(Update(f"transformer.transformer_blocks.0.attn.{part}", a, b, scale, piece))
    return case


def qwen(prefix: str, infix: str = "") -> Case:
    """Under PEFT's names, with and without a prefix that no base has."""
    case = peft("qwen-image-tiny", prefix, QWEN, infix=infix)
    case.meant = [
        Update(f"transformer.{module}", update.a, update.b) for module, update in zip(QWEN, case.meant, strict=True)
    ]
    return case


def _kohya_sd(*, text: tuple[str, ...] = (), alpha: float | None = 2.0) -> Case:
    modules = {f"unet.{module}": "lora_unet_" + module.replace(".", "_") for module in SD}
    modules |= {f"text_encoder.{m}": "lora_te_text_model_" + m.replace(".", "_") for m in text}
    return kohya("sd-tiny", modules, alpha=alpha)


def _of_alphas(case: Case, alphas: Mapping[int, float]) -> Case:
    """With these alphas in place of those of the updates of these numbers."""
    for number, alpha in alphas.items():
        update = case.meant[number]
        case.tensors[f"{update.a.removesuffix('.lora_down.weight')}.alpha"] = ("F32", (), struct.pack("<f", alpha))
        case.meant[number] = replace(update, scale=alpha / RANK)
    return case


def _old() -> Case:
    """The attention processors of 2023."""
    case = Case("sd-tiny")
    for module in SD:
        head, leaf = module.removesuffix(".0").rpartition(".")[::2]
        a, b = (f"unet.{head}.processor.{leaf}_lora.{end}.weight" for end in ("down", "up"))
        case.pair(a, b)
        case.meant.append(Update(f"unet.{module}", a, b))
    return case


def _late() -> Case:
    """As diffusers wrote them at the end of 2023: the UNet's layers, and those of the text encoder."""
    case = Case("sd-tiny")
    names = {f"unet.{module}": f"unet.{module}.lora" for module in SD}
    names |= {f"text_encoder.{m}": f"text_encoder.text_model.{m}.lora_linear_layer" for m in TEXT}
    for module, at in names.items():
        case.pair(f"{at}.down.weight", f"{at}.up.weight")
        case.meant.append(Update(module, f"{at}.down.weight", f"{at}.up.weight"))
    return case


def _lycoris(method: str) -> Case:
    case = Case("sd-tiny")
    for module in SD:
        at = "lora_unet_" + module.replace(".", "_")
        if method == "loha":
            for part in ("w1", "w2"):
                case.pair(f"{at}.hada_{part}_b", f"{at}.hada_{part}_a")
        else:
            case.tensors |= {f"{at}.lokr_w1": ("F32", (4, 4), None), f"{at}.lokr_w2": ("F32", (8, 8), None)}
        case.tensors[f"{at}.alpha"] = ("F32", (), struct.pack("<f", 2.0))
    return case


def _dora(case: Case, ending: str, shape: tuple[int, ...], numbers: Iterable[int] | None = None) -> Case:
    """A magnitude beside each pair, or beside those of these numbers."""
    for number in range(len(case.meant)) if numbers is None else numbers:
        update = case.meant[number]
        name = f"{update.a.partition('.lora_')[0]}{ending}"
        case.tensors[name] = ("F32", shape, struct.pack("<32f", *[0.5] * 32))
        case.meant[number] = replace(update, magnitude=name)
    return case


def _onetrainer(*, is_attention: bool = True, alpha: float | None = 2.0) -> Case:
    """Flux by OneTrainer: kohya's names, with the modules of diffusers."""
    names = {f"transformer.{module}": "lora_transformer_" + module.replace(".", "_") for module in FLUX}
    case = kohya("flux-tiny", names, alpha=alpha)
    if not is_attention:
        at = "lora_transformer_" + FLUX_MLP.replace(".", "_")
        case.pair(f"{at}.lora_down.weight", f"{at}.lora_up.weight", (4 * WIDTH, WIDTH))
        case.tensors[f"{at}.alpha"] = ("F32", (), struct.pack("<f", 2.0))
        case.meant.append(Update(f"transformer.{FLUX_MLP}", f"{at}.lora_down.weight", f"{at}.lora_up.weight", 0.5))
    return case


def _without_b(case: Case) -> Case:
    del case.tensors[case.meant[0].b]
    case.meant = []
    return case


def _wide(case: Case) -> Case:
    sizes = {True: (RANK, 2 * WIDTH), False: (2 * WIDTH, RANK)}
    case.tensors = {n: (t, sizes[shape[0] == RANK], None) for n, (t, shape, _) in case.tensors.items()}
    case.meant = []
    return case


def _with_nan(case: Case) -> Case:
    name = case.meant[0].b
    dtype, shape, body = case.tensors[name]
    case.tensors[name] = (dtype, shape, struct.pack("<f", float("nan")) + (body or b"")[4:])
    case.meant = []
    return case


def _told(case: Case, component: str, alpha: float) -> Case:
    """With the configuration that today's diffusers writes into the metadata."""
    targets = sorted({module.removeprefix(f"{component}.") for module in (update.module for update in case.meant)})
    metadata = {f"{component}.r": RANK, f"{component}.lora_alpha": alpha, f"{component}.target_modules": targets}
    case.metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(metadata)}
    return case


_DOUBLE = {(side, leaf): f"double_blocks.0.{side}_attn.{leaf}" for side in FLUX_SIDES for leaf in ("qkv", "proj")}
_XLABS = {(side, leaf): f"double_blocks.0.processor.{leaf}_lora{n}" for n, side in enumerate(FLUX_SIDES, 1)
          for leaf in ("qkv", "proj")}  # fmt: skip
_UP_DOWN, _AB = (".down.weight", ".up.weight"), (".lora_A.weight", ".lora_B.weight")
_KOHYA_ENDS = (".lora_down.weight", ".lora_up.weight")


def _flux_kohya(block: int = 0) -> Case:
    names = {key: "lora_unet_" + at.replace(".", "_").replace("_0_", f"_{block}_") for key, at in _DOUBLE.items()}
    return flux_fused(_KOHYA_ENDS, names, alpha=2.0)


CASES: dict[str, Case] = {
    "sd-diffusers": peft("sd-tiny", "unet.", SD),
    "sd-diffusers-alpha": _told(peft("sd-tiny", "unet.", SD, scale=2.0), "unet", 2.0 * RANK),
    "sd-diffusers-bf16": peft("sd-tiny", "unet.", SD, dtype="BF16"),
    "sd-old": _old(),
    "sd-late-2023": _late(),
    "sd-kohya-text": _kohya_sd(text=TEXT),
    "sd-kohya-alphas": _of_alphas(_kohya_sd(), {3: 16.0}),
    "sd-kohya-dora": _dora(_kohya_sd(), ".dora_scale", (WIDTH, 1)),
    "sd-diffusers-dora": _dora(peft("sd-tiny", "unet.", SD), ".lora_magnitude_vector", (WIDTH,)),
    "sd-diffusers-dora-in-part": _dora(
        peft("sd-tiny", "unet.", SD), ".lora_magnitude_vector", (WIDTH,), range(0, len(SD), 2)
    ),
    "sd-loha": _lycoris("loha"),
    "sd-flux-names": peft("sd-tiny", "transformer.", FLUX),
    "sd-wrong-width": _wide(peft("sd-tiny", "unet.", SD)),
    "sd-half-a-pair": _without_b(peft("sd-tiny", "unet.", SD)),
    "sd-nan": _with_nan(peft("sd-tiny", "unet.", SD)),
    "flux-kohya": _flux_kohya(),
    "flux-onetrainer-mlp": _onetrainer(is_attention=False),
    "flux-xlabs": flux_fused(_UP_DOWN, _XLABS),
    "flux-bfl": flux_fused(_AB, _DOUBLE),
    "flux-comfy": flux_fused(_AB, {key: f"diffusion_model.{at}" for key, at in _DOUBLE.items()}),
    "flux-wrong-width": _wide(peft("flux-tiny", "transformer.", FLUX)),
    "qwen-diffusers": qwen("transformer."),
    "qwen-adapter-name": qwen("transformer.", ".default"),
    "qwen-no-prefix": qwen(""),
}
CASES["sd-flux-names"].meant = []  # no module of the base is meant


def bases() -> dict[str, BaseSpec]:
    """The specs of the three pipelines, with the modules that the cases are about."""
    configs: dict[str, dict[str, Any]] = {
               "sd-tiny": {"_class_name": "UNet2DConditionModel", "cross_attention_dim": WIDTH},
               "flux-tiny": {"_class_name": "FluxTransformer2DModel"},
               "qwen-image-tiny": {"_class_name": "QwenImageTransformer2DModel"}}  # fmt: skip
    parts = {"sd-tiny": {"unet": SD, "text_encoder": TEXT}, "flux-tiny": {"transformer": (*FLUX, FLUX_MLP)},
             "qwen-image-tiny": {"transformer": QWEN}}  # fmt: skip
    specs = {}
    for name, modules in parts.items():
        models = {
            part: (configs[name] if part != "text_encoder" else {}, [_header(paths)]) for part, paths in modules.items()
        }
        specs[name] = pipelines.pipeline_spec(name, {}, models)
    return specs


def _header(modules: Iterable[str]) -> safetensors.Header:
    rows = {FLUX_MLP: 4 * WIDTH}
    weights: dict[str, Tensor] = {f"{m}.weight": ("F32", (rows.get(m, WIDTH), WIDTH), None) for m in modules}
    return safetensors.read_bytes(samples.safetensors(weights), file="model.safetensors")
