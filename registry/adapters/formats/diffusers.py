"""What diffusers' loaders do with the names in a file, as far as the file alone shows: codes of the problems (0.42.1).

Each function models those of diffusers that its docstring names. Whether the base has the modules is for `compat`.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping

from registry.adapters.safetensors import TensorInfo

Groups = Mapping[str, Mapping[str, TensorInfo]]
"""Path of a module → half of its update → tensor, as `images` splits the names."""

_TEXT = re.compile(r"(lora_te[123]?_|text_encoders\.clip_l\.transformer\.|text_encoder(?:_[23])?\.)(.+)\Z")
_KOHYA_ATTENTION = re.compile(r"([qkv]|out)_proj\.lora_(down|up)")
_ATTENTION = re.compile(r"[._](?:[qkv]|out)_proj\.lora_[AB]\.")
_RANKED = re.compile(r"(?:[qkv]_proj|out_proj|fc[12]|to_(?:[qkv]|out)_lora)(?:\.|\Z)")
_ARRIVES = re.compile(
    r"\.lora_[AB]\.|lora_magnitude|lora_linear_layer\.|text_projection\.lora\.(?:up|down)\.|\.alpha\Z|dora_scale\Z"
)
_OLD = re.compile(r"to_(?:[qkv]|out)_lora\.")
_WAN_NAME = re.compile(r"lora_unet_(?:blocks_\d|head_head|(?:time|text)_embedding_\d|time_projection|img_emb)")
_WAN_OUTSIDE = re.compile(r"diffusion_model\.(?:head\.head|(?:time|text)_embedding|time_projection)\b")
_DIFFUSERS_NAME = re.compile(
    r"(?:diffusion_model\.|lora_unet_)(?:(?:single_)?transformer_blocks[._]|blocks[._]\d+[._](?:attn[12]|ffn[._]net)[._]"
    r"|proj_out\Z|(?:x|context|condition|time_text)_embed(?:der)?(?:[._]|\Z)|norm_out[._])"
)
"""Modules of Flux and Wan as diffusers calls them. Its converters of these prefixes take the original names."""
_WAN = re.compile(r"lora_unet_blocks_(\d+)_(.+)\Z")
_WAN_BLOCK = {*(f"{side}_attn_{leaf}" for side in ("self", "cross") for leaf in "qkvo"), "ffn_0", "ffn_2"}
_UNNUMBERED = "lora_unet_add_embedding_"
"""`_convert_unet_lora_key` takes the number of the layer off."""
_FLUX_DROPPED = re.compile(
    r"(?:lora_unet_|diffusion_model\.)(?:(?:img|txt)_in\Z|(?:time|vector|guidance)_in[_.]|final_layer[_.])"
    r"|lora_te[23]_|text_encoders\.(?!clip_l)|\S*text_projection"
)
"""`_convert_kohya_flux_lora_to_diffusers` gives modules outside of blocks no `transformer.`, and drops these texts."""
_FLUX_LINEAR1 = re.compile(r"(?:lora_unet_|diffusion_model\.)single_blocks[_.]\d+[_.]linear1\Z")
_FLUX_LINEAR1_ROWS = 3 * 3072 + 12288


def problems(groups: Groups, format_name: str, alphas: Mapping[str, float]) -> Iterator[str]:
    """The codes. `alphas`: path → the number that its tensor holds."""
    texts = _texts(groups)
    checks = {
        "diffusers.names_dropped": "dropped" in texts or any(path.startswith(_UNNUMBERED) for path in groups),
        "diffusers.flux_dropped": format_name in ("kohya", "comfy") and any(map(_FLUX_DROPPED.match, groups)),
        "diffusers.text_refused": "refused" in texts,
        "diffusers.onetrainer_names": any(path.startswith("lora_transformer_") for path in groups),
        "diffusers.flux_sizes": any(_FLUX_LINEAR1.match(p) and not _is_split(halves) for p, halves in groups.items()),
        "diffusers.alpha_negative": any(alpha < 0 for alpha in alphas.values()),
        "image.bias": any("lora_B.bias" in halves for halves in groups.values()),
        "image.transformer_down_up": any(
            path.startswith("transformer.") and not halves.keys().isdisjoint(("lora_down.weight", "lora_up.weight"))
            for path, halves in groups.items()
        ),
        "image.foreign_names": any(map(_DIFFUSERS_NAME.match, groups)),
        "diffusers.lycoris_prefix": any(path.startswith("lycoris_") for path in groups),
        "diffusers.bias_in_part": _has_bias_in_part(groups),
        "diffusers.wan_incomplete": (any(map(_WAN_NAME.match, groups)) and not _is_whole_wan(groups))
        or _has_leftovers_of_wan(groups),
    }
    return (code for code, there in checks.items() if there)


def _is_split(halves: Mapping[str, TensorInfo]) -> bool:
    """`_convert_kohya_flux_lora_to_diffusers` asserts these rows; of lora_A and lora_B it takes nothing."""
    up = halves.get("lora_up.weight")
    return up is None or up.shape[:1] == (_FLUX_LINEAR1_ROWS,)


def _texts(groups: Groups) -> set[str]:
    """What happens to the text encoders: `_load_lora_into_text_encoder`."""
    by_component: dict[str, list[str]] = defaultdict(list)
    is_onetrainer = any(path.startswith("lora_transformer_") for path in groups)
    for halves in groups.values():
        for info in halves.values():
            if match := _TEXT.match(info.name):
                is_kohya = ".lora_down." in info.name or ".lora_up." in info.name
                name = _text_name(match[2], is_onetrainer=is_onetrainer) if is_kohya else match[2]
                by_component[match[1]].append(name)
    return {_text_outcome(names) for names in by_component.values()}


def _text_name(name: str, *, is_onetrainer: bool) -> str:
    """`_convert_text_encoder_lora_key`, as far as the next conversions look; beside OneTrainer's, PEFT's names."""
    if is_onetrainer:
        return name.replace(".lora_down.", ".lora_A.").replace(".lora_up.", ".lora_B.")
    attention = _KOHYA_ATTENTION.sub(r"to_\1_lora.\2", name)
    if attention != name:
        return attention
    ending = ".lora." if "text_projection" in name else ".lora_linear_layer."
    return name.replace(".lora_down.", f"{ending}down.").replace(".lora_up.", f"{ending}up.")


def _text_outcome(names: list[str]) -> str:
    """`convert_state_dict_to_diffusers` and `convert_state_dict_to_peft` take all names for those of one writer."""
    is_old = any("to_out_lora" in name for name in names)
    is_peft = any(".lora_A.weight" in name for name in names) and any(map(_ATTENTION.search, names))
    if not (is_old or is_peft or any("lora_linear_layer" in name for name in names)):
        return "refused"
    if not any(map(_RANKED.search, names)):
        return "refused"
    arrive = (_ARRIVES.search(name) or (is_old and _OLD.search(name)) for name in names)
    return "" if all(arrive) else "dropped"


def _has_bias_in_part(groups: Groups) -> bool:
    """`get_peft_kwargs`: one bias gives every module of the model one."""
    by_component: dict[str, set[bool]] = defaultdict(set)
    for path, halves in groups.items():
        if "lora_B.weight" in halves or "lora_B.bias" in halves:
            by_component[path.partition(".")[0]].add("lora_B.bias" in halves)
    return any(len(there) > 1 for there in by_component.values())


def _has_leftovers_of_wan(groups: Groups) -> bool:
    """`_convert_non_diffusers_wan_lora_to_diffusers` takes the rest beside blocks and without alphas, no biases."""
    outside = [halves for path, halves in groups.items() if _WAN_OUTSIDE.match(path)]
    blocks = [halves for path, halves in groups.items() if path.startswith("diffusion_model.blocks.")]
    if any("lora_B.bias" in halves for halves in blocks):
        return True
    return any("alpha" in halves for halves in outside) or (bool(outside) and not blocks)


def _is_whole_wan(groups: Groups) -> bool:
    """`_convert_musubi_wan_lora_to_diffusers`: all modules of each block from 0 on, each with its alpha, no others."""
    blocks: dict[str, set[str]] = defaultdict(set)
    for path, halves in groups.items():
        match = _WAN.match(path)
        if match is None or "alpha" not in halves:
            return False
        blocks[match[1]].add(match[2])
    return set(blocks) == {str(n) for n in range(len(blocks))} and all(part == _WAN_BLOCK for part in blocks.values())
