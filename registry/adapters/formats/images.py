"""What an image model's adapter is: method, rank and alpha per module, family, trigger words, training facts.

Structure comes from names and shapes; metadata is the uploader's claim. Alphas are values inside the file and are read
only through `read`. Captions, prompts and paths of the training set may be private: they are counted, not kept.
"""

import math
import re
import struct
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from registry.adapters.formats import IMAGE_COMPONENTS, Format, metadata
from registry.adapters.formats.facts import FileFacts, FileModule, fault_of_factors, groups_of
from registry.adapters.peft import fields as peft_fields
from registry.adapters.peft.config import ALPHA_LIMIT
from registry.adapters.peft.targets import Choice
from registry.adapters.safetensors import Header, Read, TensorInfo
from registry.strict.fields import Fields

ALPHA_READS_LIMIT = 4096
ALPHAS_UNREAD = "alpha tensors, not read"
TEXT_LIMIT = 300

_HALVES = re.compile(
    r"(?P<path>.+?)[._](?P<half>lora_A(?:\.\w+)?\.weight|lora_B(?:\.\w+)?\.weight|lora_B\.bias|lora_down\.weight"
    r"|lora_up\.weight|lora_mid\.weight|lora\.down\.weight|lora\.up\.weight|lora_linear_layer\.(?:down|up)\.weight"
    r"|lora[12]?\.(?:down|up)\.weight|down\.weight|up\.weight|alpha|dora_scale|lora_magnitude_vector(?:\.weight)?"
    r"|hada_\w+|lokr_\w+|oft_R\.\w+|oft_\w+|diff(?:_b)?|on_input|[ab][12]\.weight|b?m[12]?\.weight|scale|weight|w_norm|b_norm|rescale)\Z"
)
_INFIX = re.compile(r"\.lora_[AB]\.[^.]+\.weight\Z")
_METHOD_MARKS: tuple[tuple[str, str], ...] = (
    ("hada_", "loha"), ("lokr_", "lokr"), ("oft_", "oft"), ("on_input", "ia3"), ("lora_mid", "locon"),
    ("diff", "full"),
)  # fmt: skip
METHODS = frozenset(method for _, method in _METHOD_MARKS) | {"lora"}
_PLAIN_FACTS = (
    "ss_network_module", "ss_network_dim", "ss_network_alpha", "ss_base_model_version", "ss_num_train_images",
    "ss_num_epochs", "ss_steps", "ss_learning_rate", "ss_unet_lr", "ss_text_encoder_lr", "ss_optimizer",
    "ss_lr_scheduler", "ss_resolution", "ss_clip_skip", "ss_mixed_precision", "ss_seed", "ss_v2", "ss_sd_model_hash",
    "sshs_model_hash", "modelspec.sai_model_spec", "modelspec.architecture", "modelspec.implementation",
    "modelspec.title", "modelspec.resolution", "modelspec.prediction_type", "modelspec.date", "modelspec.license",
)  # fmt: skip
"""Metadata that says how an adapter was trained and nothing about whose images it saw."""
_TRIGGERS = ("modelspec.trigger_phrase", "trigger_words", "activation text", "instance_prompt")


def of_header(header: Header, format: Format, *, read: Read | None = None) -> FileFacts:
    """The facts of a header whose format is known. `read` reads the file's bytes (absolute offsets), for alphas."""
    groups: dict[str, dict[str, TensorInfo]] = defaultdict(dict)
    for info in header:
        path, half = _split(info.name)
        groups[path][half] = info
    claims = {k: _printable(header.metadata[k]) for k in _PLAIN_FACTS if k in header.metadata}
    private = tuple(sorted(_printable(k) for k in header.metadata if k not in claims and k not in _HARMLESS))
    alphas, rule = _alphas(groups, header, format, read)
    family, evidence = family_of(header)
    return FileFacts(
        format=format,
        method=_method(groups),
        family=family,
        family_evidence=evidence,
        components=tuple(sorted({_component(t.name) for t in header})),
        modules=tuple(
            FileModule(path=path, rank=_rank(halves), alpha=alphas.get(path), **_sizes(halves), **_pair(halves))
            for path, halves in sorted(groups.items())
            if set(halves) - {"scale"} or not path.endswith("_norm")
        ),
        magnitudes_absent=_magnitudes_absent(groups),
        has_dora=any("dora_scale" in h or "lora_magnitude_vector" in h for h in groups.values()),
        has_convolutions=any(len(t.shape) >= 4 for t in header),
        alpha_rule=rule,
        targets=metadata.targets(header.metadata),
        trigger_words=next((_printable(header.metadata[k]) for k in _TRIGGERS if header.metadata.get(k)), ""),
        claims=claims,
        private_texts=private[:50],
        problems=_problems(header, groups, format),
        dtypes=tuple(sorted({t.dtype for t in header})),
        tensors=len(header),
        parameters=sum(t.elements for t in header),
        size_bytes=header.size_bytes,
    )


_HARMLESS = frozenset({"format", metadata.KEY, *_TRIGGERS})


def _printable(text: str) -> str:
    """An uploader's text on one line, without what moves a terminal's cursor or hides what follows."""
    return "".join(c if c.isprintable() else " " for c in text[:TEXT_LIMIT])


def _split(name: str) -> tuple[str, str]:
    match = _HALVES.match(name)
    if match is None:
        return name, ""
    if match["half"].startswith(("lora1.", "lora2.")):  # X-Labs: two pairs in one processor
        return f"{match['path']}_{match['half'][:5]}", f"lora{match['half'][5:]}"
    half = re.sub(r"^(lora_[AB])\.\w+\.weight$", r"\1.weight", match["half"])
    return match["path"], half.removesuffix(".weight") if "magnitude" in half else half


def _method(groups: Mapping[str, Mapping[str, TensorInfo]]) -> str:
    halves = {half for group in groups.values() for half in group}
    for mark, method in _METHOD_MARKS:
        if any(half.startswith(mark) for half in halves):
            return method
    if any(half in ("a1.weight", "b1.weight") for half in halves):
        return "glora"
    return "lora" if any("lora" in h or "down" in h for h in halves) else ""


def _rank(halves: Mapping[str, TensorInfo]) -> int:
    """The inner size of the pair: rows of A (or down), columns of B; of LoHa's and LoKr's parts likewise."""
    for half, info in halves.items():
        if not info.shape or half in ("alpha", "dora_scale", "scale"):
            continue
        if "lora_A" in half or half.endswith("down.weight") or half in ("hada_w1_b", "lokr_w2_b", "lokr_w1_b"):
            return info.shape[0]
    return 0


def _sizes(halves: Mapping[str, TensorInfo]) -> dict[str, Any]:
    """[out, in] of the update that these tensors make; nothing where the method's shapes do not tell.

    LoHa: A and B of each half are [out, r] and [r, in]; LoKr: the Kronecker product of two matrices multiplies sizes
    (arXiv 2108.06098, 2212.10650, as LyCORIS stores them). A convolution's kernel is part of LoHa's and LoKr's `in`.
    """
    by_end = {half.removesuffix(".weight").rpartition(".")[2]: info.shape for half, info in halves.items()}
    down = by_end.get("lora_A") or by_end.get("lora_down") or by_end.get("down") or by_end.get("hada_w1_b")
    up = by_end.get("lora_B") or by_end.get("lora_up") or by_end.get("up") or by_end.get("hada_w1_a")
    if down and up and len(down) >= 2 and "hada_t1" not in halves:
        kernel = () if "lora_mid.weight" in halves else down[2:]
        return {"out_features": up[0], "in_features": down[1], "is_conv": len(down) > 2, "kernel": kernel,
                "groups": groups_of(halves)}  # fmt: skip
    first, second = _kronecker(by_end, "1"), _kronecker(by_end, "2")
    if first and second:
        return {"out_features": first[0] * second[0], "in_features": first[1] * second[1], "is_conv": len(second) > 2}
    full = by_end.get("diff")
    if full and len(full) >= 2:
        return {"out_features": full[0], "in_features": full[1], "is_conv": len(full) > 2}
    return {}


_PARTS_OF_AN_UPDATE = frozenset(
    {"alpha", "dora_scale", "lora_B.bias", "lora_magnitude_vector", "lora_mid.weight", "rescale"}
)
"""What changes nothing by itself."""


def _pair(halves: Mapping[str, TensorInfo]) -> dict[str, Any]:
    """The names of A and B where the update is their product and nothing more; and what is wrong with the tensors."""
    a = [info.name for half, info in halves.items() if half.endswith(("lora_A.weight", "down.weight"))]
    b = [info.name for half, info in halves.items() if half.endswith(("lora_B.weight", "up.weight"))]
    if bool(a) != bool(b) or halves.keys() <= _PARTS_OF_AN_UPDATE:
        return {"is_half": True}
    plain = len(a) == len(b) == 1 and "lora_mid.weight" not in halves and groups_of(halves) == 1
    return {"fault": fault_of_factors(halves), **({"a": a[0], "b": b[0]} if plain else {})}


def _problems(header: Header, groups: Mapping[str, Mapping[str, TensorInfo]], format: Format) -> tuple[str, ...]:
    """What engines stumble over, by names and metadata alone."""
    checks = {
        "lora.adapter_name_inside": any(_INFIX.search(info.name) for info in header),
        "lora.pair_incomplete": any("is_half" in _pair(halves) for halves in groups.values()),
        "image.no_control_norms": format.has_control and not any("query_norm.scale" in t.name for t in header),
        "image.dora_scale": any("dora_scale" in halves for halves in groups.values()),
        "image.bias": any("lora_B.bias" in halves for halves in groups.values()),
        "image.foreign_names": any(map(_FOREIGN_NAME.match, groups)),
        "image.scale_in_metadata": _is_scale_only_in_metadata(header, groups),
    }
    return tuple(code for code, there in checks.items() if there)


_FOREIGN_NAME = re.compile(
    r"(?:diffusion_model\.|lora_unet_)(?:(?:single_)?transformer_blocks[._]|blocks[._]\d+[._](?:attn[12]|ffn[._]net)[._]"
    r"|proj_out\Z|(?:x|context|condition|time_text)_embed(?:der)?(?:[._]|\Z)|norm_out[._])"
)
"""Modules of Flux and Wan as diffusers calls them, after a prefix that stands before their original names."""


def _is_scale_only_in_metadata(header: Header, groups: Mapping[str, Mapping[str, TensorInfo]]) -> bool:
    """Whether the metadata state an alpha other than the rank, and no tensor does."""
    if any("alpha" in halves for halves in groups.values()):
        return False
    ranks = {path: float(_rank(halves)) for path, halves in groups.items() if _rank(halves)}
    return any(alpha != ranks[path] for path, alpha in _stated_alphas(ranks, header).items())


def _magnitudes_absent(groups: Mapping[str, Mapping[str, TensorInfo]]) -> tuple[str, ...]:
    """The paths of pairs without a magnitude in models where other pairs have one."""
    by_component: dict[str, dict[str, bool]] = defaultdict(dict)
    for path, halves in groups.items():
        if _rank(halves):
            has_magnitude = not halves.keys().isdisjoint(("lora_magnitude_vector", "dora_scale"))
            by_component[_component(path)][path] = has_magnitude
    mixed = (magnitudes for magnitudes in by_component.values() if any(magnitudes.values()))
    return tuple(path for magnitudes in mixed for path, has_magnitude in magnitudes.items() if not has_magnitude)


def _kronecker(by_end: Mapping[str, tuple[int, ...]], number: str) -> tuple[int, ...]:
    """The shape of one of LoKr's two matrices, written whole or as a pair; empty if it is neither."""
    whole = by_end.get(f"lokr_w{number}", ())
    a, b = by_end.get(f"lokr_w{number}_a", ()), by_end.get(f"lokr_w{number}_b", ())
    pair = (a[0], b[1]) if len(a) == 2 and len(b) == 2 and f"lokr_t{number}" not in by_end else ()
    return whole if len(whole) >= 2 else pair


def _component(name: str) -> str:
    if (first := name.partition(".")[0]) in IMAGE_COMPONENTS:
        return first
    for prefix, component in (
        ("lora_te1_", "text_encoder"), ("lora_te2_", "text_encoder_2"), ("lora_te3_", "text_encoder_3"),
        ("lora_te_", "text_encoder"), ("text_encoders.clip_g.", "text_encoder_2"), ("text_encoder", "text_encoder"),
    ):  # fmt: skip
        if name.startswith(prefix):
            return component
    return "unet" if _UNET.search(name) else "transformer"


_UNET = re.compile(
    r"(?:down|up|mid|input|output|middle)_block|lora_unet_(?:conv_(?:in|out)|(?:time|add)_embedding_linear_\d|time_embed_\d"
    r"|label_emb_\d_\d|out_2)(?![^.])"
)
"""Modules of a U-Net, in diffusers' names or Stability's; kohya names transformers `lora_unet_`, too."""


def _alphas(
    groups: Mapping[str, Mapping[str, TensorInfo]], header: Header, format: Format, read: Read | None
) -> tuple[dict[str, float], str]:
    """Alpha by module, and where it came from: tensors, metadata or the format's rule."""
    tensors = {path: halves["alpha"] for path, halves in groups.items() if "alpha" in halves}
    if tensors:
        if read is None or len(tensors) > ALPHA_READS_LIMIT:
            return {}, ALPHAS_UNREAD
        values = {path: _scalar(info, header, read) for path, info in tensors.items()}
        return {path: value for path, value in values.items() if value is not None}, "alpha tensors"
    ranks = {path: float(_rank(halves)) for path, halves in groups.items() if _rank(halves)}
    if stated := _stated_alphas(ranks, header):
        return stated, "metadata"
    if format.alpha_is_rank:
        return ranks, "no alpha in the file: diffusers and ComfyUI take alpha = rank"
    return {}, "no alpha in the file"


def _stated_alphas(ranks: Mapping[str, float], header: Header) -> dict[str, float]:
    """Alpha by module as diffusers' metadata state it; empty without them."""
    stated = metadata.by_component(header.metadata)
    claims = {component: _ComponentScale(fields) for component, fields in stated.items()}
    return {path: _alpha_of(path, rank, claims) for path, rank in ranks.items()} if claims else {}


class _ComponentScale:
    """How one component's PEFT configuration scales its updates."""

    def __init__(self, fields: dict[str, Any]) -> None:
        read = Fields(fields)
        alpha = read.number("lora_alpha", ALPHA_LIMIT)
        self.alpha = float(peft_fields.default("LORA", "lora_alpha")) if alpha is None else alpha
        self.pattern: Choice[float] = Choice(read.by_pattern("alpha_pattern", ALPHA_LIMIT, whole=False))
        self.use_rslora = read.flag("use_rslora")


def _alpha_of(path: str, rank: float, claims: Mapping[str, _ComponentScale]) -> float:
    """A module's alpha, so that alpha / rank is its scale: with rsLoRA that is alpha · √rank."""
    component = _component(path)
    config = claims.get(component)
    if config is None:
        return rank
    alpha = config.pattern.pick(path.removeprefix(f"{component}."))
    alpha = config.alpha if alpha is None else alpha
    return alpha * math.sqrt(rank) if config.use_rslora else alpha


def _scalar(info: TensorInfo, header: Header, read: Read) -> float | None:
    """The one number of an alpha tensor; None if it is not one finite number."""
    if info.elements != 1 or info.dtype not in ("F16", "BF16", "F32", "F64", "I64", "I32"):
        return None
    raw = read(header.data_start + info.start, info.size_bytes)
    if len(raw) != info.size_bytes:
        return None
    if info.dtype == "BF16":
        raw = b"\0\0" + raw
    code = {"F16": "<e", "BF16": "<f", "F32": "<f", "F64": "<d", "I64": "<q", "I32": "<i"}[info.dtype]
    value = float(struct.unpack(code, raw)[0])
    return value if math.isfinite(value) else None  # the check of the numbers tells of it


def family_of(header: Header) -> tuple[str, str]:
    """The model family that names and shapes prove, and by what; empty if they prove none.

    Widths of cross-attention (SD1 768, SD2 1024, SDXL 2048) are of the published models; a UNet of another width
    is `sd` without a version.
    """
    names = [t.name for t in header]
    for family, pattern, evidence in _FAMILIES:
        if any(re.search(pattern, name) for name in names):
            return family, evidence
    unet = [n for n in names if re.search(r"(down|up|mid)_block|(in|out)put_blocks|middle_block", n)]
    if not unet:
        return "", ""
    for info in header:
        is_key = re.search(r"attn2[._](?:processor\.)?to_k", info.name)
        if is_key and re.search(r"lora_A|down\.weight|hada_w1_b", info.name) and len(info.shape) >= 2:
            width = info.shape[1]
            family = {768: "sd1", 1024: "sd2", 2048: "sdxl"}.get(width, "sd")
            return family, f"cross-attention of width {width} in {info.name[:200]}"
    return "sd", f"blocks of a UNet: {unet[0][:200]}"


_FAMILIES: tuple[tuple[str, str, str], ...] = (
    ("flux", r"double_blocks[._]\d+|single_transformer_blocks[._]\d+", "double blocks or single transformer blocks"),
    ("sd3", r"joint_blocks[._]\d+", "joint blocks"),
    ("qwen-image", r"transformer_blocks[._]\d+[._](?:img|txt)_(?:mlp|mod)", "image and text MLPs in one block"),
    ("wan", r"blocks[._]\d+[._](?:self|cross)_attn[._](?:q|k|v|o|k_img|v_img)\b", "self- and cross-attention blocks"),
    ("wan", r"blocks[._]\d+[._](?:self|cross)_attn_(?:q|k|v|o)\.", "self- and cross-attention blocks"),
)
