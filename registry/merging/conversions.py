"""Conversions: the same adapter in another form, and what prevents it, decided from facts before any work.

    canonical   PEFT's plain LoRA: the scale in B, alpha = rank, one rank, no rsLoRA; every runtime multiplies by 1
    plain       PiSSA or OLoRA → a LoRA of twice the rank that fits the unchanged base (needs the base's weights)
    peft        torchtune or mlx → PEFT; with `repair`, wrong prefixes and `.default` in PEFT's own names
                (with `diffusers` in diffusers' names)
    diffusers   kohya, X-Labs, diffusers of 2023 … → the names of today's diffusers
    gguf        PEFT → a GGUF adapter for llama.cpp and Ollama

A conversion that would lose or guess something is refused (`Invalid` CONVERSION_INVALID). The result is a version of
its own, with the relation `converted` and the request in its annotations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any

from pydantic import Field, ValidationError, field_validator

from registry.adapters import formats, methods, read
from registry.adapters.formats import Format
from registry.adapters.peft import LoraSpec, initializations
from registry.adapters.read import AdapterContents, NonPeftContents, PeftContents
from registry.bases import BaseSpec
from registry.errors import Invalid
from registry.merging import renaming
from registry.model import FrozenModel
from registry.names import AdapterName
from registry.validation import first_problem
from registry.versions.files import CONFIG

ANNOTATION = "conversion"
"""The annotations of a converted version begin so: `conversion.to`, `conversion.from` …"""
REPAIRABLE = frozenset({"lora.adapter_name_inside", "lora.compiled_prefix", "lora.prefix_invalid", "lora.no_modules"})
"""Findings about names that a repair takes away."""
PERMUTED = frozenset({"llama", "mistral"})
"""Model types for which the row order of q and k in torchtune and in GGUF is known to us."""
GGUF_ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""transformers' model type → llama.cpp's architecture, where its rules are known to us (llama's rows change order)."""


class TargetFormat(StrEnum):
    """What an adapter can be converted to."""

    CANONICAL = "canonical"
    PLAIN = "plain"
    PEFT = "peft"
    DIFFUSERS = "diffusers"
    GGUF = "gguf"


class RunsOn(StrEnum):
    """Where a conversion can be done: anywhere, on a worker, on a worker that has the base's weights."""

    HERE = "here"
    WORKER = "worker"
    BASE = "base"


class Conversion(FrozenModel):
    """A request: the payload of a `convert` job. `into` is the adapter whose newest version the result becomes."""

    to: TargetFormat
    into: str
    repair: bool = False
    message: str = Field(default="", max_length=2000)

    @field_validator("into")
    @classmethod
    def _into(cls, into: str) -> str:
        return str(AdapterName.parse(into))

    def annotations(self, origin: Format, report: Converted) -> dict[str, str]:
        """What is written into the new version's manifest."""
        repair = "yes" if self.repair else ""
        notes = {"to": str(self.to), "from": origin.name, "repair": repair, "done": report.message}
        return {f"{ANNOTATION}.{key}": value[:500] for key, value in notes.items() if value}


def conversion(payload: Mapping[str, Any]) -> Conversion:
    """The request in a job's payload. `Invalid` (REQUEST_INVALID) names the field that is wrong."""
    try:
        return Conversion.model_validate(payload)
    except ValidationError as e:
        raise Invalid("REQUEST_INVALID", "payload: {}: {}".format(*first_problem(e, "payload"))) from e


class Converted(FrozenModel):
    """What was done, in figures. `error`: the largest relative error of an update that was measured, if any."""

    message: str
    modules: int = 0
    rank: int = 0
    tensors: int = 0
    renamed: int = 0
    widened: int = 0
    error: float | None = None
    notes: tuple[str, ...] = ()


def runs_on(contents: AdapterContents, conversion: Conversion, base: BaseSpec) -> RunsOn:
    """Where this conversion is done. `Invalid` (CONVERSION_INVALID) if it cannot be, with the reason."""
    rule = {
        TargetFormat.CANONICAL: _canonical, TargetFormat.PLAIN: _plain, TargetFormat.PEFT: _peft,
        TargetFormat.DIFFUSERS: _diffusers, TargetFormat.GGUF: _gguf,
    }[conversion.to]  # fmt: skip
    if conversion.repair and conversion.to not in (TargetFormat.PEFT, TargetFormat.DIFFUSERS):
        raise refusal(f"--repair fixes names and goes with --to {TargetFormat.PEFT} or --to {TargetFormat.DIFFUSERS}")
    return rule(read.read_by_names(contents), conversion, base)


def refusal(message: str, next_step: str = "") -> Invalid:
    """The error for a conversion that cannot be done."""
    return Invalid("CONVERSION_INVALID", message, next_step=next_step)


def _lora_of(contents: AdapterContents, to: TargetFormat) -> LoraSpec:
    if not isinstance(contents, PeftContents):
        raise refusal(f"this file is in '{contents.file.format}' format, and {to} is made from PEFT adapters",
                      f"convert it to {TargetFormat.PEFT} first")  # fmt: skip
    errors = [f for f in contents.lora.findings if f.severity == "error"]
    if errors:
        repairable = {f.code for f in errors} <= REPAIRABLE
        step = "convert it with --format peft --repair first" if repairable else "repair it first, or push it again"
        raise refusal(f"the adapter is faulty: {errors[0].message}", step)
    if contents.lora.method != "LORA":
        raise refusal(f"the method is {contents.lora.method}; only LoRA has the form {to}")
    return contents.lora


def _demand_plain(spec: LoraSpec, to: TargetFormat) -> None:
    config = spec.config
    if config.use_dora or any(m.magnitude_shape for m in spec.modules):
        raise refusal(f"DoRA rescales the rows of the base's weights; no {to} LoRA does", "merge it instead")
    if initializations.changes_base(config.initialization):
        reversible = initializations.is_reversible(config.initialization)
        step = f"convert it to {TargetFormat.PLAIN} first" if reversible else "convert it with PEFT after training"
        raise refusal(f"{config.initialization} changed the base before training", step)
    odd = [field for field in methods.LORA_VARIANTS if config.other.get(field)]
    if odd:
        raise refusal(f"{odd[0]} changes what the factors mean in a plain LoRA")


def _canonical(contents: AdapterContents, conversion: Conversion, _base: BaseSpec) -> RunsOn:
    spec = _lora_of(contents, conversion.to)
    _demand_plain(spec, conversion.to)
    if all(m.scale == 1 and m.rank == spec.config.rank for m in spec.modules) and not spec.config.use_rslora:
        raise refusal("it is canonical already: every module has alpha = rank, and all have one rank")
    return RunsOn.WORKER


def _plain(contents: AdapterContents, conversion: Conversion, base: BaseSpec) -> RunsOn:
    spec = _lora_of(contents, conversion.to)
    if not initializations.is_reversible(spec.config.initialization):
        initialization = spec.config.initialization or "an ordinary initialization"
        raise refusal(f"only PiSSA and OLoRA can be undone; this one has {initialization}")
    if "niter" in spec.config.initialization:
        raise refusal("a randomized SVD began it, which cannot be repeated exactly; it needs the adapter's beginning")
    if spec.config.use_dora or spec.config.rank_pattern or spec.config.alpha_pattern or spec.config.use_rslora:
        raise refusal("with DoRA, rsLoRA or patterns PEFT does not convert it")
    if base.quantization:
        raise refusal(f"the base is packed ({base.quantization}): its first factors cannot be computed again")
    return RunsOn.BASE


def _peft(contents: AdapterContents, conversion: Conversion, base: BaseSpec) -> RunsOn:
    if isinstance(contents, PeftContents):
        if not conversion.repair:
            raise refusal("it is already in PEFT format", "--repair fixes wrong prefixes and `.default` in names")
        renaming.find_repairs(contents.header, base)
        return RunsOn.HERE
    if conversion.repair:
        message = f"--repair fixes names that are nearly PEFT's; these are {contents.format}'s"
        raise refusal(message, "convert it with --format peft and without --repair")
    return _foreign_text(contents, base)


def _foreign_text(contents: NonPeftContents, base: BaseSpec) -> RunsOn:
    file = contents.file
    if file.format.converts_to != TargetFormat.PEFT:
        tool = "no tool that is known here" if file.format == formats.UNKNOWN else file.format
        possible = " and ".join(f.name for f in formats.FORMATS.values() if f.converts_to == TargetFormat.PEFT)
        raise refusal(f"only {possible} can be converted to PEFT here, and the names in this file are of {tool}")
    if file.method != "lora" or file.has_dora:
        raise refusal(f"only plain LoRA is converted, and this is {'DoRA' if file.has_dora else file.method}")
    if any(m.scale is None or not m.rank for m in file.modules):
        raise refusal(f"{CONFIG} does not say the scale, and a guess would change the outputs")
    if file.format.pairs_rows and (base.model_type not in PERMUTED or not base.heads):
        layouts = " and ".join(sorted(PERMUTED))
        raise refusal(f"{file.format}'s row order of q and k is not known for {base.model_type!r}, only for {layouts}")
    return RunsOn.WORKER


def _diffusers(contents: AdapterContents, conversion: Conversion, base: BaseSpec) -> RunsOn:
    if isinstance(contents, PeftContents) or (contents.format != formats.UNKNOWN and not contents.format.is_image):
        raise refusal("diffusers' names are for adapters of image models, and this is a language model's")
    file = contents.file
    if conversion.repair and file.format.near_diffusers:
        renaming.image_repairs(contents.header, base)
        return RunsOn.HERE
    if conversion.repair:
        raise refusal(f"--repair fixes names that are nearly diffusers'; these are from {file.format}")
    if file.format == formats.DIFFUSERS:
        if renaming.can_rename(contents.header):
            return RunsOn.HERE
        raise refusal("it already has diffusers' names", "--repair fixes `.default`, and `lora.down` beside `lora_A`")
    if file.format == formats.UNKNOWN:
        raise refusal(f"{file.file} has tensor names of no tool that this registry knows", file.format.advice)
    if file.format.converts_to != TargetFormat.DIFFUSERS or file.method != "lora":
        raise refusal(f"diffusers has no converter for {file.format} with {file.method}; ComfyUI loads it as it is")
    if file.has_dora:
        raise refusal("diffusers' converters drop `dora_scale`, which would change the images")
    return RunsOn.HERE if renaming.can_rename(contents.header) else RunsOn.WORKER


_BEYOND_PAIRS: tuple[tuple[str, Callable[[LoraSpec], object]], ...] = (
    ("whole modules or biases", lambda spec: spec.full),
    ("trained tokens", lambda spec: spec.tokens),
    ("repeated base tensors", lambda spec: spec.repeats),
    ("a bias on lora_B", lambda spec: [m for m in spec.modules if m.bias_shape]),
    ("fused experts", lambda spec: [m for m in spec.modules if m.kind == "parameter"]),
    ("an adapted embedding or convolution", lambda spec: [m for m in spec.modules if m.kind != "linear"]),
    ("invocation tokens (aLoRA)", lambda spec: spec.config.invocation_tokens),
    ("replicated layers", lambda spec: spec.config.layer_replication),
)
"""What an adapter may hold that a GGUF adapter cannot."""


def _gguf(contents: AdapterContents, conversion: Conversion, base: BaseSpec) -> RunsOn:
    spec = _lora_of(contents, conversion.to)
    _demand_plain(spec, conversion.to)
    extra = next((noun for noun, there in _BEYOND_PAIRS if there(spec)), "")
    if extra:
        raise refusal(f"a GGUF adapter holds pairs of linear modules only, and this one has {extra}")
    if base.model_type not in GGUF_ARCHITECTURES:
        architectures = ", ".join(sorted(GGUF_ARCHITECTURES))
        raise refusal(f"the rules of llama.cpp for {base.model_type!r} are not here; known are {architectures}")
    return RunsOn.WORKER
