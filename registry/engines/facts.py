"""The flat facts that engine rules read: numbers, flags and words taken from a `LoraSpec` or an image file's facts.

They are stored with a version (`to_stored`), so that verdicts can be renewed without reading a blob. To add a field or
change its meaning, raise `FACTS_VERSION`: headers are then read again (`adapter recheck-engines`), and until then the
verdict is `unknown`. Module names are the last part of their path (`q_proj`), sorted.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Literal

from registry.adapters.formats.facts import FileFacts
from registry.adapters.peft import LoraSpec, ModuleUpdate, initializations
from registry.bases import BaseSpec
from registry.model import FrozenModel

FACTS_VERSION = 1
"""Which fields stored facts have. A field that is absent from stored facts of this version has its default."""
HEADS = frozenset({"classifier", "score"})
"""Whole modules of classification models, which some engines load."""

_LAYER = re.compile(r"(?:\A|\.)(?:layers|h|blocks|layer)\.(\d{1,6})\.")
_HEADLESS = re.compile(r"(?:(?:en|de)coder\.)?(?:layers|h|blocks|layer)\.\d")
_READS_IMAGES = re.compile(r"vision|visual|image|patch")
"""Modules of encoder-decoders that read images, such as Pix2Struct and T5Gemma 2."""
_EXPERT = re.compile(r"\.experts\.\d+\.")


class EngineFacts(FrozenModel):
    """What engines look at. `kind` says which engines can be asked at all."""

    kind: Literal["text", "image"] = "text"
    format: str = "peft"
    method: str = "LORA"
    task: str = ""
    max_rank: int = 0
    config_rank: int = 0
    alpha_absent: bool = False
    unwritten: tuple[str, ...] = ()
    """Which of `r`, `lora_alpha` and `target_modules` the configuration of a LoRA lacks."""
    targets_kind: Literal["names", "pattern", "all-linear", "absent"] = "names"
    declared_targets: tuple[str, ...] = ()
    targets_without_weights: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    layers: int = 0
    partial_layers: bool = False
    headless_names: bool = False
    """Paths begin with the layers, or their stack: those of a model without a head (AutoModel)."""
    use_rslora: bool = False
    use_dora: bool = False
    bias: str = "none"
    bias_tensors: bool = False
    lora_bias: bool = False
    lora_bias_tensors: bool = False
    ranks_differ: bool = False
    ranks_differ_in_group: bool = False
    alphas_differ: bool = False
    initialization: str = ""
    moves_base: bool = False
    layer_replication: bool = False
    invocation_tokens: bool = False
    saved_modules: tuple[str, ...] = ()
    saved_heads: bool = False
    saved_others: bool = False
    embedding_lora: bool = False
    embedding_targets: tuple[str, ...] = ()
    linear_targets: tuple[str, ...] = ()
    """Linear modules except experts and `lm_head`."""
    head_lora: bool = False
    trained_tokens: bool = False
    fused_experts: bool = False
    expert_lora: bool = False
    conv_lora: bool = False
    qalora: bool = False
    bdlora: bool = False
    q_without_v: bool = False
    v_without_q: bool = False
    up_without_gate: bool = False
    float8: bool = False
    problems: tuple[str, ...] = ()
    family: str = ""
    components: tuple[str, ...] = ()
    other_family: bool = False
    tensors: int = 0
    parameters: int = 0
    size_bytes: int = 0
    compat: str = ""
    weights: str = ""
    base_family: str = ""
    base_architecture: str = ""
    base_text_architecture: str = ""
    base_vocabulary: int = 0
    base_multimodal: bool = False
    base_experts: bool = False
    base_conv1d: bool = False
    base_headless: bool = False
    base_under_model: bool = False
    """The modules of its text model are below `model`."""
    base_tied: bool = False


def of_lora(spec: LoraSpec, *, compat: str = "", base: BaseSpec | None = None) -> EngineFacts:
    """The facts of a language model's adapter. `compat`: its verdict on its base (`pass`, `fail` …), if any."""
    config, paths = spec.config, [m.path for m in spec.modules]
    modules = frozenset(_last(path) for path in paths)
    declared = tuple(sorted({_last(t) for t in config.targets})) if isinstance(config.targets, tuple) else ()
    saved = {_last(name) for name in config.saved_modules}
    return EngineFacts(
        method=spec.method,
        task=config.task,
        max_rank=max(spec.rank, config.rank, *config.rank_pattern.values(), 0),
        config_rank=config.rank,
        alpha_absent=config.alpha is None and spec.method == "LORA",
        unwritten=config.unwritten if spec.method == "LORA" else (),
        targets_kind=_targets_kind(config.targets),
        declared_targets=declared,
        targets_without_weights=tuple(t for t in declared if spec.method == "LORA" and modules and t not in modules),
        modules=tuple(sorted(modules)),
        layers=len({int(match[1]) for path in paths if (match := _LAYER.search(path))}),
        partial_layers=_partial(paths),
        headless_names=any(_HEADLESS.match(path) for path in paths),
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        bias=config.bias if spec.method == "LORA" else "none",
        bias_tensors=any(piece.name.endswith("bias") for piece in spec.full),
        lora_bias=config.lora_bias,
        lora_bias_tensors=any(m.bias_shape for m in spec.modules),
        ranks_differ=any(m.rank != config.rank for m in spec.modules) and spec.method == "LORA",
        ranks_differ_in_group=_ranks_differ_in_group(spec.modules),
        alphas_differ=len({m.alpha for m in spec.modules} | ({config.alpha} - {None})) > 1,
        initialization=config.initialization,
        moves_base=initializations.changes_base(config.initialization),
        layer_replication=bool(config.layer_replication),
        invocation_tokens=bool(config.invocation_tokens),
        saved_modules=tuple(sorted(saved)),
        saved_heads=bool(saved & HEADS),
        saved_others=bool(saved - HEADS) or any(p.name.endswith("weight") and _last(p.path) not in HEADS
                                                for p in spec.full),
        embedding_lora=any(m.kind == "embedding" for m in spec.modules),
        embedding_targets=tuple(sorted({_last(m.path) for m in spec.modules if m.kind == "embedding"})),
        linear_targets=tuple(sorted({_last(m.path) for m in spec.modules
                                     if m.kind == "linear" and ".experts" not in m.path} - {"lm_head"})),
        head_lora="lm_head" in modules,
        trained_tokens=bool(spec.tokens),
        fused_experts=any(m.kind == "parameter" for m in spec.modules),
        expert_lora=any(_EXPERT.search(path) for path in paths),
        conv_lora=any(m.kind == "conv" for m in spec.modules),
        qalora=bool(config.other.get("use_qalora")),
        bdlora=bool(config.other.get("use_bdlora")),
        q_without_v=_lopsided(paths, "q_proj", "v_proj"),
        v_without_q=_lopsided(paths, "v_proj", "q_proj") or _lopsided(paths, "k_proj", "q_proj"),
        up_without_gate=_lopsided(paths, "up_proj", "gate_proj"),
        float8=any(dtype.startswith("F8") for dtype in spec.dtypes),
        problems=tuple(sorted({f.code for f in spec.findings if f.severity == "error"})),
        tensors=2 * len(spec.modules) + len(spec.pieces) + len(spec.full) + len(spec.tokens),
        parameters=spec.parameters,
        size_bytes=spec.size_bytes,
        compat=compat,
        **(of_base(base) if base else {}),
    )  # fmt: skip


def to_stored(facts: EngineFacts) -> dict[str, Any]:
    """What is kept with a version: `facts_version`, and the fields that are not at their default."""
    return {"facts_version": FACTS_VERSION, **facts.model_dump(mode="json", exclude_defaults=True)}


def from_stored(stored: Mapping[str, Any]) -> dict[str, Any] | None:
    """All fields again; None if other fields were stored than this registry evaluates by."""
    return {**_defaults(), **stored} if are_current(stored) else None


def are_current(stored: Mapping[str, Any]) -> bool:
    """Whether this registry evaluates by these stored facts. Others must be read out of the header again."""
    return stored.get("facts_version") == FACTS_VERSION


@lru_cache(maxsize=1)
def _defaults() -> dict[str, Any]:
    return dict(EngineFacts().__dict__)


def of_base(base: BaseSpec, family: str = "", components: Iterable[str] = ()) -> dict[str, Any]:
    """The fields `base_…`: what engines ask about the base. Merge them into stored facts before evaluating.

    And `other_family`: whether an image adapter's family, or every component that it names, is not one of the base's.
    """
    component_set = set(components)
    return {
        "other_family": base.is_pipeline
        and (not base.is_of(family) or (bool(component_set) and not component_set & set(base.components))),
        "base_family": base.model_type if base.is_pipeline else "",
        "base_architecture": base.architecture,
        "base_text_architecture": base.text_architecture,
        "base_vocabulary": base.vocab,
        "base_multimodal": _is_multimodal(base),
        "base_experts": any(m.kind == "experts" for m in base.modules.values()),
        "base_tied": base.tied,
        "base_headless": base.lacks_head,
        "base_under_model": any(path.startswith("model.layers.") for path in base.modules),
        "base_conv1d": any(m.kind == "conv1d" for m in base.modules.values()),
    }


def _is_multimodal(base: BaseSpec) -> bool:
    """Whether it wraps a text model. T5, BART and Whisper share the suffix, but are just an encoder and a decoder."""
    parts = {path.removeprefix("model.").partition(".")[0] for path in base.modules}
    is_encoder_decoder = {"encoder", "decoder"} <= parts and not any(map(_READS_IMAGES.search, base.modules))
    return base.architecture.endswith("ForConditionalGeneration") and not is_encoder_decoder


def of_file(facts: FileFacts, compat: str = "") -> EngineFacts:
    """The facts of a weights file without a PEFT configuration."""
    is_image = facts.format.is_image
    return EngineFacts(
        kind="image" if is_image else "text",
        format=facts.format.name,
        method=facts.method.upper(),
        max_rank=facts.max_rank,
        use_dora=facts.has_dora,
        conv_lora=facts.has_convolutions,
        family=facts.family,
        base_family=facts.family if is_image else "",
        components=facts.components,
        problems=facts.problems,
        tensors=facts.tensors,
        parameters=facts.parameters,
        size_bytes=facts.size_bytes,
        compat=compat,
    )


def _targets_kind(targets: str | tuple[str, ...] | None) -> Literal["names", "pattern", "all-linear", "absent"]:
    if targets is None:
        return "absent"
    if isinstance(targets, tuple):
        return "names"
    return "all-linear" if targets.lower() == "all-linear" else "pattern"


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _partial(paths: Iterable[str]) -> bool:
    """Whether some kind of module is touched in fewer layers than the deepest layer suggests."""
    by_module: dict[str, set[int]] = defaultdict(set)
    for path in paths:
        if match := _LAYER.search(path):
            by_module[_last(path)].add(int(match[1]))
    every = set().union(*by_module.values()) if by_module else set()
    return any(layers != set(range(max(every) + 1)) for layers in by_module.values())


def _lopsided(paths: Iterable[str], first: str, second: str) -> bool:
    """Whether some block has an update for `first` and none for `other`."""
    present = set(paths)
    return any(path.removesuffix(first) + second not in present for path in present if path.endswith(f".{first}"))


def _ranks_differ_in_group(modules: Iterable[ModuleUpdate]) -> bool:
    """Whether q, k, v (or gate, up), which engines join into one matrix, have different ranks in one block."""
    ranks: dict[tuple[str, str], set[int]] = defaultdict(set)
    for module in modules:
        block, _, leaf = module.key.rpartition(".")
        group = "qkv" if leaf in ("q_proj", "k_proj", "v_proj") else "mlp" if leaf in ("gate_proj", "up_proj") else leaf
        ranks[block, group].add(module.rank)
    return any(len(values) > 1 for values in ranks.values())
