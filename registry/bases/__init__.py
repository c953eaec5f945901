"""`BaseSpec`: what the registry must know of a base model, read from its configuration and headers alone.

A size that nothing tells is 0, and the module is marked (`is_known` false): checks then answer "unknown". A base that
needs code of its own (`auto_map`) is marked, so that no worker loads it.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from functools import partial
from typing import Annotated, Any, Self

from pydantic import Field

from registry import names
from registry.adapters.safetensors import Header, TensorInfo
from registry.bases import modules as base_modules
from registry.bases.fingerprints import Fingerprints, architecture_fingerprint, template_text, tokenizer_fingerprint
from registry.bases.modules import Facts, LogicalTensor, ModuleShape
from registry.digest import Digest
from registry.errors import Invalid
from registry.findings import Finding
from registry.model import FrozenModel
from registry.strict import json as strict_json
from registry.versions.files import BASE_CONFIG, BASE_WEIGHTS, BASE_WEIGHTS_INDEX

CONFIG_LIMIT_BYTES = 2**20
SIZE_LIMIT = 2**31
"""The largest size (hidden, vocabulary, heads …) that a configuration may state."""
MODULES_LIMIT = 100_000
"""Modules of a base; each has up to 800 bytes of memory. Experts of a layer are one."""

UNREGISTERED = Digest.of(b"a base of which only the name is known")
"""The fingerprint of every base that is not registered: in manifests, and in rows that only have a name."""

_DIALECT = strict_json.Dialect("BASE_INVALID", "base", depth=32, not_finite=True)


class BaseMatch(StrEnum):
    """How closely the weights of two bases match. `unknown`: too little could be compared."""

    EXACT = "exact"
    OTHER_DTYPE = "other-dtype"
    QUANTIZED = "quantized"
    DESCENDANT = "descendant"
    UNRELATED = "unrelated"
    UNKNOWN = "unknown"


class Similarity(FrozenModel):
    """How the base `other` is related to the requested one.

    `compared` tensors had values to compare, with a cosine of `mean` and `least`; `equal` of them had equal bytes.
    `changed` are the last parts of the paths of modules whose values differ.
    """

    other: str = ""
    """Name of the other base."""
    match: BaseMatch
    """How closely the weights match; `unknown` if too little could be compared."""
    compared: int = 0
    """Number of tensors that had values to compare."""
    equal: int = 0
    """Number of tensors with equal bytes."""
    mean: float | None = None
    """Mean cosine over the compared tensors; null if none could be compared."""
    least: float | None = None
    """Smallest cosine; null if none could be compared."""
    changed: tuple[str, ...] = Field(default=(), max_length=64)
    """Last parts of the paths of modules whose values differ, at most 64."""

    @property
    def message(self) -> str:
        """For people, to be put after the other's name."""
        figures = f"{self.equal} of {self.compared} tensors are equal"
        if self.mean is not None:
            figures += f", cosine {self.mean:.5f}"
        changed = f"; only {', '.join(self.changed)} differ" if 0 < len(self.changed) <= 4 else ""
        return {
            BaseMatch.EXACT: "has the same weights, byte for byte",
            BaseMatch.OTHER_DTYPE: f"has the same weights in another dtype ({figures})",
            BaseMatch.QUANTIZED: f"has the same weights, quantized in one of the two ({figures})",
            BaseMatch.DESCENDANT: f"descends from the same weights, by fine-tuning or merging ({figures}{changed})",
            BaseMatch.UNRELATED: f"has unrelated weights ({figures})" if self.compared else "is another model",
            BaseMatch.UNKNOWN: "is packed in a way that cannot be compared",
        }[self.match]


ComponentName = Annotated[str, Field(pattern=r"^[a-z0-9_]{1,64}$")]
"""The folder of one of a pipeline's models."""
ShortText = Annotated[str, Field(max_length=256)]
"""Workers list the bases with all but their modules before each job."""


class BaseSpec(FrozenModel):
    """A base model. `modules` maps the Python model's paths to shapes. Sizes count elements, 0 where unknown.

    `quantization` is the method of packed weights (`bitsandbytes`, `gptq`, `awq` …) or empty. `names_known` is
    false for architectures whose file names were only assumed to be the module names. `library` is the one that built
    `modules` on a worker (`registry.bases.library`), empty while they are read from headers; `library_problem` is its
    error if it cannot build the base. `text_architecture` is the class that the configuration names for the language
    model inside a model of several parts, empty if it names none. `components` are the models of an image pipeline
    (`unet`, `text_encoder` …), which begin the paths of their modules; empty for a language model.
    """

    name: str = Field(min_length=1, max_length=256)
    """Name of the base in this registry."""
    architecture: ShortText = ""
    """Class that the configuration names, such as `LlamaForCausalLM`."""
    text_architecture: ShortText = ""
    """Class of the language model inside a model of several parts. Empty if none is named."""
    model_type: ShortText = ""
    """`model_type` of the configuration, such as `llama`."""
    hidden: int = 0
    """Width of a hidden state; 0 if unknown."""
    intermediate: int = 0
    """Width of the feed-forward layers; 0 if unknown."""
    layers: int = 0
    """Number of layers; 0 if unknown."""
    heads: int = 0
    """Number of attention heads; 0 if unknown."""
    kv_heads: int = 0
    """Number of heads of keys and values; 0 if unknown."""
    head_size: int = 0
    """Width of one attention head; 0 if unknown."""
    vocab: int = 0
    """Rows of the token embedding; 0 if unknown."""
    tied: bool = False
    """Whether input and output embedding share their weights."""
    quantization: ShortText = ""
    """Method of packed weights, such as `gptq` or `awq`. Empty if the weights are not packed."""
    dtype: ShortText = ""
    """Number format of most bytes of the weights, as safetensors writes it: `BF16` …"""
    parameters: int = 0
    """Number of elements of all tensors."""
    weights_bytes: int = 0
    """Bytes of all weight files."""
    names_known: bool = True
    """False if tensor names were only assumed to be module names."""
    needs_code: bool = False
    """Whether loading needs code from the base's repository. Workers refuse that."""
    library: str = Field(default="", max_length=100)
    """Library and version that built `modules`. Empty while they are read from headers."""
    library_problem: str = Field(default="", max_length=1000)
    """Error of the library if it cannot build the base."""
    components: tuple[ComponentName, ...] = Field(default=(), max_length=20)
    """Models of an image pipeline, such as `unet`. Empty for a language model."""
    modules: dict[str, ModuleShape] = Field(max_length=MODULES_LIMIT)
    """Path of a module, `*` for the number of a layer or expert → its kind and sizes."""
    template: str = Field(default="", max_length=2**16)
    """Chat template (Jinja). Empty if there is none."""
    fingerprints: Fingerprints
    """Four digests that identify the base."""

    @classmethod
    def unregistered(cls, name: str) -> Self:
        """The spec of a base of which only the name is known."""
        return cls(name=name, modules={}, fingerprints=Fingerprints(architecture=UNREGISTERED))

    @property
    def is_registered(self) -> bool:
        """Whether more than the name is known."""
        return self.fingerprint != UNREGISTERED

    @property
    def is_pipeline(self) -> bool:
        """Whether this is an image model: several models in one folder (`registry.bases.pipelines`)."""
        return bool(self.components)

    @property
    def lacks_head(self) -> bool:
        """Whether its class is one without a head (`LlamaModel`), and not one like `GPT2LMHeadModel`."""
        return self.architecture.endswith("Model") and not self.architecture.endswith(("HeadModel", "HeadsModel"))

    def is_of(self, family: str) -> bool:
        """Whether an image adapter's family is this pipeline's; yes where one of them is not known."""
        return not family or not self.model_type or family[:2] == self.model_type[:2]

    @property
    def fingerprint(self) -> Digest:
        """What verdicts are filed under: the architecture's digest."""
        return self.fingerprints.architecture


def base_spec(
    name: str,
    config: Mapping[str, Any],
    headers: Sequence[Header],
    *,
    tokenizer: bytes | None = None,
    tokenizer_config: bytes | None = None,
    chat_template: str | None = None,
) -> BaseSpec:
    """The spec of the base with this configuration and these weight files' headers.

    `Invalid` (BASE_INVALID) if the configuration states impossible sizes, if two files hold one tensor, or if
    there is no tensor at all.
    """
    names.base_name(name)
    sizes = _sizes_in(config)
    facts = facts_of(config)
    tensors = all_tensors(headers)
    logical = base_modules.logical(tensors, facts)
    modules = check_modules(name, base_modules.modules(logical, facts))
    tied = _is_tied(sizes, logical, facts)
    template = template_text(chat_template, tokenizer_config)
    return BaseSpec(
        name=name, architecture=_architecture(config), text_architecture=_text_architecture(config),
        model_type=facts.model_type, hidden=facts.hidden, intermediate=facts.intermediate,
        layers=_size(sizes, "num_hidden_layers", "n_layer", "num_layers"), heads=facts.heads,
        kv_heads=facts.kv_heads, head_size=facts.head_size, vocab=_vocabulary(modules, facts), tied=tied,
        quantization=facts.quantization, dtype=_main_dtype(tensors),
        parameters=sum(t.elements for t in logical), weights_bytes=sum(h.size_bytes for h in headers),
        names_known=facts.model_type in base_modules.KNOWN_NAMES and _text_part(config) is None,
        needs_code="auto_map" in config, modules=modules, template=template if len(template) <= 2**16 else "",
        fingerprints=Fingerprints(
            architecture=architecture_fingerprint(logical, sizes, kv_heads=facts.kv_heads, head_size=facts.head_size,
                                                  tied=tied),
            tokenizer=tokenizer_fingerprint(tokenizer) if tokenizer else None,
            template=Digest.of(template.encode()) if template else None,
        ),
    )  # fmt: skip


def check_modules(name: str, modules: dict[str, ModuleShape]) -> dict[str, ModuleShape]:
    """`Invalid` (BASE_INVALID) for too many modules; returns them."""
    if len(modules) > MODULES_LIMIT:
        raise Invalid("BASE_INVALID", f"{name}: it has {len(modules)} modules, over {MODULES_LIMIT}")
    return modules


def facts_of(config: Mapping[str, Any]) -> Facts:
    """What the configuration tells about sizes and packing. `Invalid` (BASE_INVALID) for impossible sizes."""
    sizes = _sizes_in(config)
    return base_modules.facts_of({**sizes, "architectures": config.get("architectures")}, partial(_size, sizes))


def read_config(data: bytes, *, file: str = BASE_CONFIG) -> dict[str, Any]:
    """The object in a base's config.json. `Invalid` (BASE_INVALID) if it is not one, or over 1 MiB."""
    if len(data) > CONFIG_LIMIT_BYTES:
        strict_json.refuse(_DIALECT, file, "too_large", f"has {len(data)} bytes; the limit is {CONFIG_LIMIT_BYTES}")
    return strict_json.parse_object(data, _DIALECT, file=file)


def shards(index: bytes, *, file: str = BASE_WEIGHTS_INDEX) -> tuple[str, ...]:
    """The weight files that an index names, sorted. `Invalid` if it is broken or a name leaves the folder."""
    try:
        where = json.loads(index).get("weight_map")
    except (ValueError, RecursionError, AttributeError):
        where = None
    if not isinstance(where, dict) or not where:
        strict_json.refuse(_DIALECT, file, "index_invalid", "must hold a weight_map from tensors to files")
    files = sorted({str(path) for path in where.values()})
    for path in files:
        if "/" in path or not path.endswith(".safetensors"):
            strict_json.refuse(_DIALECT, file, "index_invalid", f"names {path[:80]!r}, which is no file beside it")
        names.file_path(path)
    return tuple(files)


TEXT_PARTS = ("text_config", "llm_config", "language_config", "thinker_config", "decoder")
"""Fields with the configuration of the language model inside a model of several parts."""


def _text_part(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    parts = (config.get(field) for field in TEXT_PARTS)
    return next((part for part in parts if isinstance(part, dict)), None)


def _architecture(config: Mapping[str, Any]) -> str:
    architectures = config.get("architectures")
    return str(architectures[0])[:128] if isinstance(architectures, list) and architectures else ""


def _text_architecture(config: Mapping[str, Any]) -> str:
    part = _text_part(config)
    return "" if part is None else _text_architecture(part) or _architecture(part)


def _sizes_in(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the configuration, and over them those of the language model inside it."""
    inner = _text_part(config)
    return {**config, **_sizes_in(inner)} if inner is not None else dict(config)


def _size(config: Mapping[str, Any], *fields: str) -> int:
    """The first of these fields that is not null: a whole number from 1 to 2^31; 0 without any.

    A list has a size for each layer, and an object one for each part: the largest counts.
    """
    field, value = next(((f, config[f]) for f in fields if config.get(f) is not None), ("", 0))
    many = list(value.values()) if isinstance(value, dict) else value
    sizes: list[Any] = many if isinstance(many, list) and many else [value]
    if field and not all(type(size) is int and 0 < size <= SIZE_LIMIT for size in sizes):
        rule = f"the field {field!r} must be a whole number from 1 to {SIZE_LIMIT}, not {str(value)[:40]}"
        strict_json.refuse(_DIALECT, BASE_CONFIG, "value_invalid", rule)
    return int(max(sizes))


def all_tensors(headers: Iterable[Header]) -> list[TensorInfo]:
    """The tensors of all weight files. `Invalid` (BASE_INVALID) if two files hold one, or there is none."""
    by_name: dict[str, TensorInfo] = {}
    for header in headers:
        for info in header:
            if info.name in by_name:
                reason = Finding("base.duplicate_tensor", info.name, "is in two weight files of the base")
                raise Invalid.from_finding("BASE_INVALID", reason)
            by_name[info.name] = info
    if not by_name:
        message = "the base has no weight file with a tensor in it"
        raise Invalid("BASE_INVALID", message, findings=[Finding("base.no_weights", BASE_WEIGHTS, "holds no tensor")])
    return list(by_name.values())


def _is_tied(config: Mapping[str, Any], tensors: Sequence[LogicalTensor], facts: Facts) -> bool:
    """Whether output and input embedding are one: stated, or, where nothing is stated, seen by the absent head."""
    has_head = any(t.name == f"{base_modules.HEAD}.weight" for t in tensors)
    stated = config.get("tie_word_embeddings")
    return bool(stated) if isinstance(stated, bool) and has_head else facts.is_head_model and not has_head


def _vocabulary(modules: Mapping[str, ModuleShape], facts: Facts) -> int:
    """Rows of the token embedding; the configuration's figure where its size is not known."""
    rows = [m.in_features for p, m in modules.items() if base_modules.is_token_table(p) and m.kind == "embedding"]
    return max(rows, default=0) or facts.vocab


def _main_dtype(tensors: Sequence[TensorInfo]) -> str:
    """The dtype that most bytes have."""
    sizes: dict[str, int] = {}
    for info in tensors:
        sizes[info.dtype] = sizes.get(info.dtype, 0) + info.size_bytes
    return max(sizes, key=lambda dtype: (sizes[dtype], dtype))
