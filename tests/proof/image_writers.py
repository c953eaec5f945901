"""What each tool calls the tensors of a module of an image model: the writers of `image_grid`.

A writer takes the modules that are updated, path → shape, and yields the names of each pair.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from registry.compat.paths import FLUX_DOUBLE, FLUX_SINGLE, FLUX_WHOLE

Shape = tuple[int, ...]
UNETS = ("sd", "sdxl")
ATTENTION = re.compile(r"(?:to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out|[qkv]_proj|out_proj)\Z")


@dataclass(frozen=True, slots=True)
class Names:
    """What one writer calls the tensors of a module, or of several that it fuses."""

    modules: tuple[str, ...]
    a: str
    b: str
    alpha: str = ""
    magnitude: str = ""
    bias: str = ""


def _ends(
    stem: str, modules: tuple[str, ...], ends: tuple[str, str], magnitude: str = ".lora_magnitude_vector"
) -> Names:
    return Names(modules, stem + ends[0], stem + ends[1], f"{stem}.alpha", stem + magnitude, f"{stem}.lora_B.bias")


_AB, _DOWN_UP = (".lora_A.weight", ".lora_B.weight"), (".lora_down.weight", ".lora_up.weight")
_DOTTED = (".lora.down.weight", ".lora.up.weight")
_LAYER = (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight")
_TEXT_ATTENTION = re.compile(r"\.([qkv]|out)_proj\Z")


def is_text(module: str) -> bool:
    return module.startswith("text_encoder")


def _saved(module: str) -> Names:
    """As diffusers' training scripts save U-Nets and text encoders: `convert_state_dict_to_diffusers`."""
    if is_text(module):
        return _ends(module, (module,), _LAYER if _TEXT_ATTENTION.search(module) else _AB)
    return _ends(module, (module,), _DOTTED if re.search(r"to_(?:[qkv]|out\.0)\Z", module) else _AB)


def _old(module: str) -> Names:
    """Attention processors of 2023."""
    head, _, leaf = module.removesuffix(".0").rpartition(".")
    if is_text(module):
        match = _TEXT_ATTENTION.search(module)
        stem = f"{head}.to_{match[1]}_lora" if match else f"{module}.lora_linear_layer"
    else:
        stem = f"{head}.processor.{leaf}_lora" if ATTENTION.search(module) else f"{module}.lora"
    return _ends(stem, (module,), (".down.weight", ".up.weight"))


def _late(module: str) -> Names:
    """The layers of late 2023."""
    return _ends(module, (module,), _LAYER if is_text(module) else _DOTTED)


def _kohya(family: str, denoiser: str = "lora_unet") -> Callable[[str], Names]:
    def names(module: str) -> Names:
        component, _, path = module.partition(".")
        number = "" if family == "sd" else component.removeprefix("text_encoder").removeprefix("_") or "1"
        prefix = f"lora_te{number}" if is_text(component) else denoiser
        inner = f"text_model_{path}" if is_text(component) and path.startswith("encoder.") else path
        return _ends(f"{prefix}_{inner.replace('.', '_')}", (module,), _DOWN_UP, ".dora_scale")

    return names


def _sgm(module: str) -> Names:
    """kohya's names of SDXL: those of Stability's U-Net, whose blocks are counted through."""
    component, _, path = module.partition(".")
    if is_text(component):
        return _kohya("sdxl")(module)
    whole = {"conv_in": "input_blocks.0.0", "conv_out": "out.2", "time_embedding.linear_1": "time_embed.0",
             "time_embedding.linear_2": "time_embed.2", "add_embedding.linear_1": "label_emb.0.0",
             "add_embedding.linear_2": "label_emb.0.2"}  # fmt: skip
    if path not in whole:
        match = re.match(r"(\w+?)_blocks?\.(?:(\d+)\.)?(\w+)\.(\d+)\.(.+)", path)
        assert match is not None, path
        side, number, kind, position, rest = match.groups()
        for ours, theirs in (("conv1", "in_layers.2"), ("conv2", "out_layers.3"), ("time_emb_proj", "emb_layers.1"),
                             ("conv_shortcut", "skip_connection")):  # fmt: skip
            rest = re.sub(rf"\A{ours}\Z", theirs, rest)
        each = 1  # layers per block of the tiny U-Net, and one more upwards
        if side == "mid":
            stem = f"middle_block.{1 if kind == 'attentions' else 2 * int(position)}.{rest}"
        elif side == "down":
            at = (each + 1) * int(number) + 1 + (each if kind == "downsamplers" else int(position))
            stem = f"input_blocks.{at}.{1 if kind == 'attentions' else 0}.{'op' if kind == 'downsamplers' else rest}"
        else:
            at = (each + 1) * int(number) + (each if kind == "upsamplers" else int(position))
            inner = {"resnets": 0, "attentions": 1}.get(kind, 2 if number == "0" else 1)
            stem = f"output_blocks.{at}.{inner}.{rest}"
    else:
        stem = whole[path]
    return _ends("lora_unet_" + stem.replace(".", "_"), (module,), _DOWN_UP, ".dora_scale")


def _flux_fused(
    stem_of: Callable[[str], str], ends: tuple[str, str], *, only_linear1: bool = False
) -> Callable[[Mapping[str, Shape]], Iterator[Names]]:
    """Flux as Black Forest Labs write it: q, k and v in one matrix. Modules that the table lacks are left out.

    `linear1`, which diffusers splits at the sizes of the published model, makes a writer of its own.
    """

    def names(modules: Mapping[str, Shape]) -> Iterator[Names]:
        tables = [(f"double_blocks.{n}.", f"transformer.transformer_blocks.{n}.", FLUX_DOUBLE) for n in range(2)]
        tables += [
            (f"single_blocks.{n}.", f"transformer.single_transformer_blocks.{n}.", FLUX_SINGLE) for n in range(2)
        ]
        for theirs, ours, table in [*tables, ("", "transformer.", FLUX_WHOLE)]:
            for stem, inner in table.items():
                paths = tuple(ours + path for path in inner)
                is_of_writer = ("processor" in stem) == (ends == _XLABS_ENDS) and (stem == "linear1") == only_linear1
                if is_of_writer and all(path in modules for path in paths):
                    yield _ends(stem_of(theirs + stem), paths, ends, ".dora_scale")
        for module in modules if ends == _DOWN_UP else ():
            if is_text(module):
                at = f"text_encoders.clip_l.transformer.text_model.{_inner(module)}"
                yield _ends(at, (module,), ends) if stem_of("").startswith("diffusion") else _kohya("flux")(module)

    return names


_XLABS_ENDS = (".down.weight", ".up.weight")


def _each(name: Callable[[str], Names]) -> Callable[[Mapping[str, Shape]], Iterator[Names]]:
    return lambda modules: (name(module) for module in modules)


def _flat(path: str) -> str:
    return path.replace(".", "_")


def _xlabs(stem: str) -> str:
    return stem if stem.startswith("double") else f"{stem}_lora"


def _wan(path: str) -> str:
    """The names of Wan's own code."""
    for ours, theirs in (("attn1.", "self_attn."), ("attn2.", "cross_attn."), ("to_out.0", "o"), ("to_", ""),
                         ("ffn.net.0.proj", "ffn.0"), ("ffn.net.2", "ffn.2"), ("add_k_proj", "k_img"),
                         ("condition_embedder.time_proj", "time_projection.1"), ("proj_out", "head.head"),
                         ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
                         ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
                         ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
                         ("condition_embedder.time_embedder.linear_2", "time_embedding.2")):  # fmt: skip
        path = path.replace(ours, theirs)
    return path


def _inner(module: str) -> str:
    return module.partition(".")[2]


def writers(family: str) -> dict[str, Callable[[Mapping[str, Shape]], Iterator[Names]]]:
    """The writers that exist for a family, and names that one would expect to work."""
    common = {
        "diffusers": _each(lambda m: _ends(m, (m,), _AB)),
        "dotted": _each(lambda m: _ends(m, (m,), _DOTTED)),
        "down-up": _each(lambda m: _ends(m, (m,), _DOWN_UP)),
        "default": _each(lambda m: _ends(m, (m,), (".lora_A.default.weight", ".lora_B.default.weight"))),
        "bare": _each(lambda m: _ends(_inner(m), (m,), _AB)),
        "bare-down-up": _each(lambda m: _ends(_inner(m), (m,), _DOWN_UP)),
        "kohya": _each(_kohya(family)),
        "onetrainer": _each(_kohya(family, "lora_transformer")),
        "lycoris": _each(_kohya(family, "lycoris")),
        "comfy": _each(lambda m: _ends(f"diffusion_model.{_inner(m)}", (m,), _AB)),
        "comfy-down-up": _each(lambda m: _ends(f"diffusion_model.{_inner(m)}", (m,), _DOWN_UP)),
    }
    if family in ("flux", "wan"):  # whose own names, which ComfyUI has, are others
        common |= {f"{name}-unlike": common[name] for name in ("comfy", "comfy-down-up", "kohya")}
    if family in UNETS:
        common |= {"saved": _each(_saved), "old": _each(_old), "late": _each(_late)}
        for name in ("onetrainer", "down-up", "bare-down-up", "comfy-down-up"):
            del common[name]
    if family == "sdxl":
        common["sgm"] = _each(_sgm)
    if family == "flux":
        common |= {
            "kohya": _flux_fused(lambda stem: f"lora_unet_{_flat(stem)}", _DOWN_UP),
            "linear1": _flux_fused(lambda stem: f"lora_unet_{_flat(stem)}", _DOWN_UP, only_linear1=True),
            "bfl": _flux_fused(str, _AB), "xlabs": _flux_fused(_xlabs, _XLABS_ENDS),
            "comfy": _flux_fused(lambda stem: f"diffusion_model.{stem}", _AB),
            "comfy-down-up": _flux_fused(lambda stem: f"diffusion_model.{stem}", _DOWN_UP),
        }  # fmt: skip
    if family == "wan":
        common |= {
            "kohya": _each(lambda m: _ends("lora_unet_" + _flat(_wan(_inner(m))), (m,), _DOWN_UP)),
            "comfy": _each(lambda m: _ends(f"diffusion_model.{_wan(_inner(m))}", (m,), _AB)),
            "comfy-down-up": _each(lambda m: _ends(f"diffusion_model.{_wan(_inner(m))}", (m,), _DOWN_UP)),
        }
    return common
