"""`FORMATS`: how each tool writes an adapter, a row each. `recognize`: which of them a header is in, or unknown.

    peft            base_model.model.<module>.lora_A.weight, and every other PEFT method
    torchtune       layers.0.attn.q_proj.lora_a.weight
    mlx             model.layers.0.self_attn.q_proj.lora_a          (transposed against PEFT)
    gguf            blk.0.attn_q.weight.lora_a                      (the names inside a GGUF adapter)
    nemo            ….adapter.linear_in.weight                      (recognized, to be converted outside)
    diffusers       unet. / transformer. / text_encoder. + module + .lora_A.weight; for attention also .lora.down.weight
    diffusers-old   ….processor.to_q_lora.down.weight               (2023)
    kohya           lora_unet_… / lora_te_… + .lora_down.weight, .lora_up.weight, .alpha; OneTrainer: lora_transformer_…
    lycoris         the same prefixes + .hada_…, .lokr_…, .lora_mid…, .diff, .oft_blocks, .a1, .on_input
    bfl, xlabs      Flux as Black Forest Labs and X-Labs write it
    comfy           diffusion_model. + the original module names, text_encoders. + the encoder's name and its own ones
    bare            a transformer's own paths in diffusers, with no component before them (DiffSynth-Studio, lightx2v)

Only names decide: one name that does not fit makes the format `unknown`.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from registry.adapters.safetensors import Header

_LORA_AB = r"lora_[AB](?:\.[A-Za-z0-9_-]+)?\.(?:weight|bias)"
IMAGE_COMPONENTS = (
    "unet", "transformer", "transformer_2", "transformer_ref", "connectors", "text_conditioner", "prior", "controlnet",
    "text_encoder", "text_encoder_2", "text_encoder_3",
)  # fmt: skip
"""The models of a pipeline that diffusers' writers name before the modules (`LoraBaseMixin._lora_loadable_modules`)."""
_COMPONENT = rf"(?:{'|'.join(IMAGE_COMPONENTS)})"
# Any module may follow but a language model's that lacks PEFT's `base_model.model.` (GPT-2's `transformer.h.0`).
_LANGUAGE_MODULE = (
    r"(?:(?:h|layer|encoder|decoder)\.|(?:wte|wpe|word_embeddings|embedding)\b|layers\.\d+\.self_attn\.[qkvo]_proj\b)"
)
_DIFFUSERS_MODULE = rf"(?!transformer\.{_LANGUAGE_MODULE}){_COMPONENT}\."
_Z_IMAGE = (
    r"(?:(?:layers|noise_refiner|context_refiner)\.\d+\.(?:attention\.to_(?:q|k|v|out)|feed_forward|adaLN_modulation)"
    r"|all_final_layer|all_x_embedder|cap_embedder|t_embedder)"
)
_KOHYA = r"(?:lora_(?:unet|te|te1|te2|te3|transformer|prior_unet|prior_te|llm_adapter)_|lycoris_)\S+?"
_FLUX = r"(?:double_blocks|single_blocks)\.\d+\."

_LYCORIS_TAIL = (
    r"(?:hada_w[12]_[ab]|hada_t[12]|lokr_w[12](?:_[ab])?|lokr_t[12]|lora_mid\.weight|diff|diff_b|oft_blocks|oft_diag"
    r"|oft_R\.(?:weight|scaled_oft)|rescale|[ab][12]\.weight|b?m[12]?\.weight|on_input|weight|w_norm|b_norm|bias_(?:indices|values|size))"
)
_KOHYA_TAIL = r"(?:lora_(?:down|up)\.weight|alpha|dora_scale|scale)"
_COMFY_TAIL = (
    rf"(?:{_LORA_AB}|lora_(?:down|up)\.weight|lora_magnitude_vector(?:\.weight)?|alpha|dora_scale|diff|diff_b|set_weight"
    rf"|reshape_weight|{_LYCORIS_TAIL})"
)


@dataclass(frozen=True, slots=True)
class Format:
    """One way to write an adapter. Every tensor name of such a file matches `grammar`.

    `paths`: the rule in `compat.paths` by which its names mean modules of a base. `advice`: what to do with an adapter
    that no loader here accepts as it is. `engines`: those that load it although it is not PEFT's.
    `converts_to`: the format that `adapter convert` makes of it. `near_diffusers`: a repair of names may suffice.
    `alpha_is_rank`: where the file has no alpha, loaders take the rank. `dora_everywhere`: all modules of a model have
    DoRA, or none. `has_control`: control adapters are written so. `is_transposed`: A is [in, rank], B is [rank, out].
    `pairs_rows`: the rows of q and k are in the order of the original code, pair by pair.
    """

    name: str
    grammar: str = r"(?!)"
    is_image: bool = False
    paths: str = ""
    advice: str = ""
    engines: tuple[str, ...] = ()
    converts_to: str = ""
    near_diffusers: bool = False
    alpha_is_rank: bool = False
    dora_everywhere: bool = False
    has_control: bool = False
    is_transposed: bool = False
    pairs_rows: bool = False

    def __str__(self) -> str:
        return self.name


PEFT = Format("peft", r"base_model\.(?:model\.)?\S+|prompt_embeddings|trainable_tokens_delta")
GGUF = Format(
    "gguf",
    r"(?:blk\.\d+\.\S+|token_embd|output|output_norm)\.weight(?:\.lora_[ab])?",
    paths="text",
    engines=("llama.cpp", "ollama"),
    advice="push the PEFT adapter it was made from; a GGUF file is an export for llama.cpp and Ollama",
)
NEMO = Format(
    "nemo",
    r"\S*(?:adapter_layer\.\S+|\.adapter)\.linear_(?:in|out)\.weight",
    advice="export it to PEFT with NeMo's or Megatron-Bridge's adapter export, and push the result",
)
TORCHTUNE = Format(
    "torchtune",
    r"(?:module\.)?(?:layers\.\d+|tok_embeddings|output)\b\S*\.(?:lora_[ab]\.weight|magnitude)",
    paths="text",
    converts_to="peft",
    pairs_rows=True,
    advice="convert it with torchtune's PEFT export: rows of lora_B for q and k change places, not only names",
)
MLX = Format(
    "mlx",
    r"(?:model|language_model|lm_head|transformer|backbone)\b\S*\.(?:lora_[ab]|m)",
    paths="equal",
    converts_to="peft",
    is_transposed=True,
    advice="convert it to PEFT: A and B are transposed, and `scale` is the multiplier itself, not alpha",
)
DIFFUSERS_OLD = Format(
    "diffusers-old",
    rf"(?:{_COMPONENT}\.)?\S*processor\.to_(?:q|k|v|out)_lora\.(?:down|up)\.weight"
    rf"|text_encoder(?:_2)?\.\S+(?:_lora(?:_linear_layer)?|\.lora_linear_layer)\.(?:down|up)\.weight",
    is_image=True,
    paths="processors",
    converts_to="diffusers",
    alpha_is_rank=True,
    advice="load and save it once with a current diffusers to get today's names",
)
XLABS = Format(
    "xlabs",
    rf"{_FLUX}processor\.(?:qkv|proj)_lora[12]?\.(?:down|up)\.weight",
    is_image=True,
    paths="flux",
    converts_to="diffusers",
    alpha_is_rank=True,
)
DIFFUSERS = Format(
    "diffusers",
    rf"{_DIFFUSERS_MODULE}\S+\.(?:{_LORA_AB}|lora_magnitude_vector(?:\.weight)?|alpha|dora_scale"
    rf"|lora\.(?:down|up)\.weight)|{_DIFFUSERS_MODULE}(?<=\btransformer\.)\S+\.lora_(?:down|up)\.weight",
    is_image=True,
    paths="equal",
    near_diffusers=True,
    alpha_is_rank=True,
    dora_everywhere=True,
)
BARE = Format(
    "bare",
    rf"(?:(?:single_)?transformer_blocks\.\d+|time_text_embed|norm_out|proj_out)\.(?:\S+\.)?"
    rf"(?:{_LORA_AB}|lora_(?:down|up)\.weight|alpha|dora_scale)|(?:img|txt)_in\.lora_(?:down|up)\.weight"
    rf"|{_Z_IMAGE}\.(?:\S+\.)?(?:lora_(?:down|up)\.weight|alpha|dora_scale)",
    is_image=True,
    paths="bare",
    converts_to="diffusers",
    near_diffusers=True,
    alpha_is_rank=True,
    advice="convert it to diffusers' names: there the component `transformer.` comes first",
)
BFL = Format(
    "bfl",
    rf"(?:{_FLUX}|img_in\.|txt_in\.|time_in\.|vector_in\.|guidance_in\.|final_layer\.)\S*"
    rf"(?:{_LORA_AB}|alpha|dora_scale|(?:query|key)_norm\.scale)",
    is_image=True,
    paths="flux",
    converts_to="diffusers",
    alpha_is_rank=True,
    has_control=True,
)
COMFY = Format(
    "comfy",
    rf"(?:diffusion_model|text_encoders\.[a-z0-9_]+\.transformer)\.\S+?\.{_COMFY_TAIL}",
    is_image=True,
    paths="comfy",
    converts_to="diffusers",
    alpha_is_rank=True,
)
KOHYA = Format("kohya", rf"{_KOHYA}\.{_KOHYA_TAIL}", is_image=True, paths="kohya", converts_to="diffusers")
LYCORIS = Format("lycoris", rf"{_KOHYA}\.{_LYCORIS_TAIL}", is_image=True, paths="kohya")
UNKNOWN = Format(
    "unknown",
    near_diffusers=True,
    advice="save it with PEFT, diffusers or kohya's scripts, whose names this registry knows",
)
FORMATS: dict[str, Format] = {
    format.name: format
    for format in (
        PEFT, GGUF, NEMO, TORCHTUNE, MLX, DIFFUSERS_OLD, XLABS, DIFFUSERS, BARE, BFL, COMFY, KOHYA, LYCORIS,
    )
}  # fmt: skip
"""By name. The first one that a tensor name matches counts."""


def named(name: str) -> Format:
    """The format of this name, `UNKNOWN` for any other text."""
    return FORMATS.get(name, UNKNOWN)


_compile = cache(re.compile)
"""Once a grammar is needed: to compile all takes as long as reading a small adapter."""
OF_2023 = (".lora.down.weight", ".lora.up.weight")
"""The ends that diffusers writes for factors of attention since late in 2023."""
_OF_TEXT = ".lora_linear_layer."
_NAMES_LIMIT = 512


@dataclass(frozen=True, slots=True)
class Recognized:
    """The format, why (`evidence`: one name of it), and the names that fit no format or another one."""

    format: Format
    evidence: str = ""
    unexpected: tuple[str, ...] = ()
    message: str = ""


def of_header(header: Header) -> Recognized:
    """The format of a safetensors header."""
    return recognize(t.name for t in header)


def recognize(names: Iterable[str]) -> Recognized:
    """The one format that all these tensor names fit; `UNKNOWN` with the reason otherwise."""
    tensor_names = list(names)
    if not tensor_names:
        return Recognized(UNKNOWN, message="unknown format: the file holds no tensors")
    by_format: dict[Format, list[str]] = {}
    for name in tensor_names:
        by_format.setdefault(_format_of(name), []).append(name)
    _merge_overlapping(by_format)
    unexpected = by_format.pop(UNKNOWN, [])
    if len(by_format) == 1 and not unexpected:
        (format,) = by_format
        return Recognized(format, evidence=by_format[format][0][:_NAMES_LIMIT])
    if not by_format:
        message = f"unknown format: {unexpected[0][:200]!r} is a name of no tool that this registry knows"
    elif unexpected:
        near = max(by_format, key=lambda s: len(by_format[s]))
        message = f"unknown format: {unexpected[0][:200]!r} does not belong among the names of {near}"
    else:
        message = f"unknown format: the names of {' and '.join(sorted(map(str, by_format)))} are mixed in one file"
        unexpected = min(by_format.values(), key=len)
    return Recognized(UNKNOWN, unexpected=tuple(s[:_NAMES_LIMIT] for s in unexpected[:5]), message=message)


def _merge_overlapping(by_format: dict[Format, list[str]]) -> None:
    """Count names that two formats have to the one whose other names are there."""
    if LYCORIS in by_format and KOHYA in by_format:  # LyCORIS files hold plain kohya pairs and alphas too
        by_format[LYCORIS] += by_format.pop(KOHYA)
    if {DIFFUSERS, DIFFUSERS_OLD} <= by_format.keys():
        if all(_OF_TEXT in name for name in by_format[DIFFUSERS_OLD]):  # diffusers still names text encoders so
            by_format[DIFFUSERS] += by_format.pop(DIFFUSERS_OLD)
        elif all(name.endswith(OF_2023) for name in by_format[DIFFUSERS]):
            by_format[DIFFUSERS_OLD] += by_format.pop(DIFFUSERS)
    if BARE in by_format and all(name.startswith(("img_in.", "txt_in.")) for name in by_format.get(BFL, ())):
        by_format[BARE] += by_format.pop(BFL, [])  # Qwen-Image has these names, too


def _format_of(name: str) -> Format:
    if len(name) > _NAMES_LIMIT or any(c.isspace() for c in name):
        return UNKNOWN
    return next((format for format in FORMATS.values() if _compile(format.grammar + r"\Z").match(name)), UNKNOWN)
