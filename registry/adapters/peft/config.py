"""Read an `adapter_config.json`: what the trainer says about an adapter, checked field by field.

A configuration that names code, opens files or holds a pattern that could hang a loader is refused. Every broken rule
is reported at once; what is merely odd is a warning in `AdapterConfig.findings`. The base's name is a claim to compare,
never a path to open: a trainer's local folder keeps only its last part, so no user name is shown or stored.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import Field

from registry.adapters import methods
from registry.adapters.peft import combinations
from registry.adapters.peft import fields as peft_fields
from registry.adapters.peft.fields import check_costs
from registry.errors import Invalid, NotFound, TooLarge
from registry.findings import Finding
from registry.model import FrozenModel
from registry.strict import json as strict_json
from registry.strict import patterns
from registry.strict.fields import Fields, walk
from registry.versions.files import CONFIG, CONFIG_LIMIT_BYTES

RANK_LIMIT = 4096
REQUIRED_ELSEWHERE = ("lora_alpha", "r", "target_modules")
"""Fields that PEFT has defaults for, and some engines have not."""
ALPHA_LIMIT = 1e6
LAYERS_LIMIT = 4096
PATTERN_VALUE_LIMIT = 2**31
WHOLE_BY_PATTERN = frozenset({"rank_pattern", "block_size_pattern", "n_frequency_pattern"})

BASE_NAME_LIMIT = 512
_MODEL_NAMES = ("tokenizer_name_or_path", "shadow_model")
"""Fields that make PEFT load another model or its tokenizer, from the Hub or from a folder."""

_HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}(/[A-Za-z0-9][A-Za-z0-9._-]{0,127})?\Z")
_CACHE_FOLDER = re.compile(r"models--([A-Za-z0-9._-]+?)--([A-Za-z0-9._-]+)\Z")
_SYSTEM_FOLDERS = frozenset(["bin", "boot", "dev", "etc", "lib", "lib64", "proc", "run", "sbin", "sys", "usr"])

_DIALECT = strict_json.Dialect("CONFIG_INVALID", "config", depth=8)


class BaseClaim(FrozenModel):
    """The claimed name; empty when none is written. `is_local` if it was a folder of the trainer's machine."""

    name: str = ""
    is_local: bool = False

    def findings(self) -> list[Finding]:
        """Warnings about a claim that names nothing, or a folder."""
        location = f"{CONFIG}: base_model_name_or_path"
        if not self.name:
            message = "the configuration does not name the base that the adapter was trained on"
            return [Finding.of("warning", "config.base_model_absent", location, message)]
        if self.is_local:
            message = f"the base is named by a local folder of the training machine that ends in {self.name!r}"
            return [Finding.of("warning", "config.base_model_local", location, message)]
        return []

    def names(self, base: str) -> bool:
        """Whether the claim and this base's name may mean the same: equal, or equal in their last part."""
        return bool(self.name) and self.name.split("/")[-1].lower() == base.split("/")[-1].lower()

    def selects(self, base: str) -> bool:
        """Whether the claim may choose this base: `org/NAME`, which any pusher can add, by its exact name only."""
        return self.name == base or ("/" not in base and self.names(base))

    def matching(self, bases: Mapping[str, Sequence[str]]) -> list[str]:
        """The base (name → aliases) of exactly this name or alias, else those that it selects."""
        exact = [name for name, aliases in bases.items() if self.name == name or self.name in aliases]
        return exact or [name for name in bases if self.name and self.selects(name)]

    def names_unregistered(self, bases: Mapping[str, Sequence[str]]) -> bool:
        """Whether the claim is the name of a base and matches none of these, not even one among several."""
        return bool(self.name and not self.is_local and _HUB_NAME.match(self.name) and not self.matching(bases))

    def choose(self, bases: Mapping[str, Sequence[str]]) -> str:
        """The only matching base. `Invalid` (BASE_INVALID) if none is claimed, `NotFound` (BASE_UNKNOWN)."""
        if not self.name:
            message = "the configuration does not name a base"
            raise Invalid("BASE_INVALID", message, next_step="pass --base NAME")
        matching = self.matching(bases)
        if len(matching) != 1:
            which = f"{len(matching)} registered bases match" if matching else "no registered base matches"
            similar = min((name for name in bases if self.names(name)), default="")
            raise NotFound(
                "BASE_UNKNOWN",
                f"the configuration names the base {self.name[:200]!r}, and {which}",
                next_step=f"if it was trained on that one, pass --base {similar}"
                if similar
                else "pass --base NAME, or register it first: `adapter base add NAME DIR`",
            )
        return matching[0]


class AdapterConfig(FrozenModel):
    """The configuration in our words. `other` keeps the method's own fields as they were written.

    `targets` is None (not written), one pattern or `all-linear` (text), or names (a tuple): a name means every
    module whose path is it or ends in `.name`. `alpha` is None when it is not written.
    `patterns`: every field of the method that gives values by pattern. `nulls`: fields that are written as null.
    `unwritten`: which of `REQUIRED_ELSEWHERE` are not in the file at all. `may_lack_head`: by its task, or by the class
    that PEFT notes instead of one, it may have been trained on a model without its head (AutoModel).
    `pattern_steps`: about how many steps a backtracking matcher needs for one path and all patterns.
    """

    method: str
    task: str = ""
    may_lack_head: bool = False
    rank: int = 0
    alpha: float | None = None
    use_rslora: bool = False
    use_dora: bool = False
    lora_bias: bool = False
    bias: str = "none"
    fan_in_fan_out: bool = False
    targets: str | tuple[str, ...] | None = None
    excluded: str | tuple[str, ...] | None = None
    saved_modules: tuple[str, ...] = ()
    target_parameters: tuple[str, ...] = ()
    layers: tuple[int, ...] | None = None
    layers_pattern: tuple[str, ...] = ()
    rank_pattern: dict[str, int] = Field(default_factory=dict)
    alpha_pattern: dict[str, float] = Field(default_factory=dict)
    layer_replication: tuple[tuple[int, int], ...] = ()
    token_indices: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    has_token_list: bool = False
    """`trainable_token_indices` is a bare list: rows of the input embedding, which need not be `embed_tokens`."""
    invocation_tokens: tuple[int, ...] = ()
    ensure_weight_tying: bool = False
    initialization: str = ""
    base: BaseClaim = BaseClaim()
    peft_version: str = ""
    pattern_steps: int = 0
    patterns: dict[str, dict[str, Any]] = Field(default_factory=dict)
    nulls: tuple[str, ...] = ()
    unwritten: tuple[str, ...] = ()
    other: dict[str, Any] = Field(default_factory=dict)
    findings: tuple[Finding, ...] = ()


def read_config(data: bytes) -> AdapterConfig:
    """The configuration in these bytes. `Invalid` (CONFIG_INVALID) with every broken rule, `TooLarge` over 256 KiB."""
    return read_fields(parse_config(data))


def parse_config(data: bytes) -> dict[str, Any]:
    """The object in an adapter_config.json, PEFT's or another tool's. `Invalid` (CONFIG_INVALID), `TooLarge`."""
    if len(data) > CONFIG_LIMIT_BYTES:
        message = f"has {len(data)} bytes; the limit is {CONFIG_LIMIT_BYTES} bytes"
        raise TooLarge.from_finding("SIZE_INVALID", Finding("config.too_large", CONFIG, message))
    return strict_json.parse_object(data, _DIALECT, file=CONFIG)


def read_fields(values: dict[str, Any]) -> AdapterConfig:
    """The configuration in a parsed object. `Invalid` (CONFIG_INVALID) with every broken rule."""
    reader = _ConfigReader(values)
    config = reader.config()
    findings = reader.fields.findings
    if findings:
        first, more = findings[0], len(findings) - 1
        raise Invalid(
            "CONFIG_INVALID",
            f"{CONFIG}: field {first.location!r}: {first.message}" + (f" (and {more} more)" if more else ""),
            findings=findings,
        )
    return config


class _ConfigReader:
    """Takes the fields one by one; keeps the broken rules and the warnings."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.fields = Fields(values)
        self._values = values
        self._nested = tuple(walk(values))

    def config(self) -> AdapterConfig:
        fields, method, task = self.fields, self._method(), self._task()
        row = methods.find(method)
        self._code_and_paths()
        self._texts()
        by_pattern = self._patterns(method)
        self._more_patterns(method)
        claim, problems = read_claim(self._values.get("base_model_name_or_path"))
        for problem in problems:
            fields.reject("base_model_invalid", "base_model_name_or_path", problem)
        return AdapterConfig(
            method=method,
            task=task,
            may_lack_head=task == "FEATURE_EXTRACTION" or (not task and bool(self._values.get("auto_mapping"))),
            rank=fields.whole_number(row.rank_field, 1 if row.has_pairs else 0, RANK_LIMIT)
            or (peft_fields.default(method, row.rank_field) if row.has_pairs else 0),
            alpha=fields.number("lora_alpha" if row.has_pairs else "alpha", ALPHA_LIMIT),
            use_rslora=fields.flag("use_rslora"),
            use_dora=fields.flag("use_dora"),
            lora_bias=fields.flag("lora_bias"),
            bias=self._bias(),
            fan_in_fan_out=fields.flag("fan_in_fan_out"),
            targets=fields.names_or_pattern("target_modules"),
            excluded=fields.names_or_pattern("exclude_modules"),
            saved_modules=fields.names("modules_to_save"),
            target_parameters=fields.names("target_parameters"),
            layers=fields.whole_numbers("layers_to_transform", LAYERS_LIMIT) or None,
            layers_pattern=fields.names("layers_pattern"),
            rank_pattern=self._ranks(method, by_pattern),
            alpha_pattern=by_pattern.get("alpha_pattern", {}),
            patterns=by_pattern,
            nulls=tuple(name for name, value in self._values.items() if value is None),
            layer_replication=self._layer_replication(),
            token_indices=self._token_indices(method),
            has_token_list=isinstance(self._values.get("trainable_token_indices"), list),
            invocation_tokens=fields.whole_numbers("alora_invocation_tokens"),
            ensure_weight_tying=fields.flag("ensure_weight_tying"),
            initialization=self._initialization(),
            base=claim,
            peft_version=fields.text("peft_version"),
            unwritten=tuple(name for name in REQUIRED_ELSEWHERE if name not in self._values),
            other=self._other(),
            findings=(
                *claim.findings(),
                *self._unknown_fields(),
                *self._unloadable(method),
                *check_costs(self._nested),
            ),
            pattern_steps=fields.pattern_steps,  # last: those above count them
        )

    def _patterns(self, method: str) -> dict[str, dict[str, Any]]:
        """The values by pattern. After training AdaLoRA's `rank_pattern` holds masks; OSF's may hold fractions."""
        limits = {"rank_pattern": RANK_LIMIT, "alpha_pattern": ALPHA_LIMIT}
        return {
            name: self.fields.by_pattern(
                name, limits.get(name, PATTERN_VALUE_LIMIT), whole=name in WHOLE_BY_PATTERN and method != "OSF"
            )
            for name in peft_fields.pattern_fields(method)
            if not (name == "rank_pattern" and method == "ADALORA")
        }

    def _ranks(self, method: str, by_pattern: dict[str, dict[str, Any]]) -> dict[str, int]:
        """The ranks by pattern: of AdaLoRA's tensors, what its masks left of them."""
        if method != "ADALORA":
            return by_pattern.get("rank_pattern", {}) if method != "OSF" else {}
        masks = self._values.get("rank_pattern")
        return {  # PEFT looks for these names as they are, not for patterns
            name.rpartition(".")[0]: mask.count(True)
            for name, mask in (masks.items() if isinstance(masks, dict) else ())
            if isinstance(mask, list) and patterns.is_plain(name)
        }

    def _more_patterns(self, method: str) -> None:
        """Check fields that `AdapterConfig` does not have, and that PEFT matches with the paths of modules."""
        self.fields.names_or_pattern("feedforward_modules")
        if method == "ADALORA":
            self.fields.keys("rank_pattern")

    def _method(self) -> str:
        method = self._values.get("peft_type")
        if isinstance(method, str) and method in methods.METHODS:
            return method
        unknown = f"{str(method)[:60]!r} is not a method that this registry knows"
        message = "is missing" if method is None else unknown
        self.fields.reject("method_unknown", "peft_type", message)
        return ""

    def _task(self) -> str:
        task = self._values.get("task_type")
        if task is None or (isinstance(task, str) and task in methods.TASKS):
            return task or ""
        tasks = ", ".join(sorted(methods.TASKS))
        self.fields.reject("task_unknown", "task_type", f"{str(task)[:60]!r} is not one of {tasks}")
        return ""

    def _code_and_paths(self) -> None:
        """Refuse, at any depth, what makes some loader import code or open a file."""
        for location, key, item in self._nested:
            if key in methods.CODE_FIELDS:
                self.fields.reject("code_reference", location, "makes a loader import code; an adapter must not")
            elif key == "auto_mapping" and item is not None:
                self._auto_mapping(item)
            elif key == "megatron_core" and item not in (None, "megatron.core"):
                self.fields.reject("code_reference", location, "names a module to import that is not megatron.core")
            elif key.endswith(methods.PATH_ENDINGS) and key not in methods.NOT_PATHS and item not in (None, ""):
                self.fields.reject("path_refused", location, "makes a loader open a file; an adapter must not")

    def _auto_mapping(self, value: Any) -> None:
        library = value.get("parent_library") if isinstance(value, dict) else None
        name = value.get("base_model_class") if isinstance(value, dict) else None
        words = [*str(library).split("."), *([] if name is None else [str(name)])]
        if not isinstance(library, str) or not all(word.isidentifier() and word[0] != "_" for word in words):
            self.fields.reject("code_reference", "auto_mapping", "must name a class and a library, as dotted words")
        elif library.split(".")[0] not in methods.CODE_LIBRARIES:
            libraries = ", ".join(sorted(methods.CODE_LIBRARIES))
            message = f"imports {library[:60]!r}, which is not part of {libraries}"
            self.fields.reject("code_reference", "auto_mapping", message)

    def _texts(self) -> None:
        """Refuse texts that loaders, pages and shells read: names of models, revisions and versions."""
        adapters = self._values.get("adapters")
        names = [(f"adapters.{key}", value) for key, value in adapters.items()] if isinstance(adapters, dict) else []
        for field, value in (*names, *((field, self._values.get(field)) for field in _MODEL_NAMES)):
            for problem in read_claim(value)[1]:
                self.fields.reject("path_refused", field, problem)
        revision = self.fields.text("revision")
        if revision and (".." in revision or not _REVISION.match(revision)):
            self.fields.reject("value_invalid", "revision", "must be the name of a branch, a tag or a commit")
        if not _VERSION.match(self.fields.text("peft_version")):
            self.fields.reject("value_invalid", "peft_version", "must be a version number")

    def _bias(self) -> str:
        bias = self._values.get("bias") or "none"
        if bias not in ("none", "all") and not (isinstance(bias, str) and bias.endswith("_only") and len(bias) < 24):
            self.fields.reject("value_invalid", "bias", "must be 'none', 'all' or '<method>_only'")
            return "none"
        return str(bias)

    def _layer_replication(self) -> tuple[tuple[int, int], ...]:
        value = self._values.get("layer_replication") or []
        if not isinstance(value, list) or not all(
            isinstance(pair, list) and len(pair) == 2 and all(type(n) is int and 0 <= n <= LAYERS_LIMIT for n in pair)
            for pair in value
        ):
            rule = f"must be a list of [first, end) pairs of layers, each from 0 to {LAYERS_LIMIT}"
            self.fields.reject("value_invalid", "layer_replication", rule)
            return ()
        if len(value) > LAYERS_LIMIT or sum(max(0, end - first) for first, end in value) > LAYERS_LIMIT:
            self.fields.reject("value_invalid", "layer_replication", f"makes over {LAYERS_LIMIT} layers")
            return ()
        return tuple((first, end) for first, end in value)

    def _token_indices(self, method: str) -> dict[str, tuple[int, ...]]:
        if method == "TRAINABLE_TOKENS":
            return {"": self.fields.whole_numbers("token_indices")}
        return self.fields.lists_by_name("trainable_token_indices")

    def _initialization(self) -> str:
        """How A and B began, in lower case; empty for the ordinary ways, which leave the base alone."""
        value = self._values.get("init_lora_weights")
        if value is None or isinstance(value, bool):
            return ""
        return self.fields.text("init_lora_weights").lower()

    def _unloadable(self, method: str) -> Iterator[Finding]:
        """What PEFT raises an exception for when it loads the configuration: a failing finding each."""
        problems = dict(peft_fields.refusals(method, self._values)) | dict(combinations.refusals(method, self._values))
        for field, problem in problems.items():
            message = f"{field} {problem}: PEFT cannot load the adapter"
            yield Finding.of("error", "config.not_loadable", f"{CONFIG}: {field}", message)

    def _other(self) -> dict[str, Any]:
        return {k: v for k, v in self._values.items() if k in peft_fields.names() and k not in _TAKEN and v is not None}

    def _unknown_fields(self) -> list[Finding]:
        """Warnings about fields that PEFT ignores, and that this registry does not know."""
        unknown = sorted(set(self._values) - peft_fields.names() - methods.CODE_FIELDS)
        message = "the field {!r} is unknown to this registry, and its effect is not checked"
        warnings = [
            Finding.of("warning", "config.field_unknown", f"{CONFIG}: {field}", message.format(field))
            for field in (name[:120] for name in unknown[:50])
        ]
        if "runtime_config" in self._values:
            ignored = "PEFT ignores runtime_config in a file: it is for the running process"
            warnings.append(Finding.of("warning", "config.field_ignored", f"{CONFIG}: runtime_config", ignored))
        return warnings


_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}\Z")
_VERSION = re.compile(
    r"(\d{1,9}(\.\d{1,9}){0,9}([-_.]?(a|b|rc|dev|post)[-_.]?\d{0,9}){0,3}(\+[\w.]{1,99})?(@[\w./-]{0,99})?)?\Z"
)
_TAKEN_NAMES = """
    alora_invocation_tokens alpha_pattern auto_mapping base_model_name_or_path bias ensure_weight_tying
    exclude_modules fan_in_fan_out inference_mode init_lora_weights layer_replication layers_pattern
    layers_to_transform lora_alpha lora_bias megatron_core modules_to_save peft_type peft_version r rank_pattern
    target_modules target_parameters task_type token_indices trainable_token_indices use_dora use_rslora
"""
_TAKEN = frozenset(_TAKEN_NAMES.split())
"""The fields that `AdapterConfig` has of its own, or that say nothing about the adapter."""


def read_claim(value: Any) -> tuple[BaseClaim, list[str]]:
    """The claim in this value, and the rules that it breaks, in words."""
    if value is None or value == "":
        return BaseClaim(), []
    problem = _problem_with_claim(value)
    if problem:
        return BaseClaim(), [problem]
    text = str(value).strip()
    if _HUB_NAME.match(text):
        return BaseClaim(name=text), []
    parts = [p for p in re.split(r"[\\/]", text) if p not in ("", ".", "~")]
    for part in parts:
        cached = _CACHE_FOLDER.match(part)
        if cached:
            return BaseClaim(name=f"{cached[1]}/{cached[2]}", is_local=True), []
    last = re.sub(r"[^A-Za-z0-9._-]+", "-", parts[-1] if parts else "").strip("-.")
    return BaseClaim(name=last[:128], is_local=True), []


def _problem_with_claim(value: Any) -> str:
    if not isinstance(value, str):
        return f"must be text, not {type(value).__name__}"
    if len(value) > BASE_NAME_LIMIT:
        return f"has {len(value)} characters; the limit is {BASE_NAME_LIMIT}"
    odd = next((c for c in value if not " " <= c <= "~"), "")
    if odd:
        return f"holds U+{ord(odd):04X}, which is not a printable ASCII character"
    if "://" in value or value.startswith(("\\\\", "//")) or value.lower().startswith(("file:", "data:")):
        return "is a URL or a network share, not the name of a base"
    parts = re.split(r"[\\/]", value)
    if ".." in parts:
        return "climbs out of its folder with '..'"
    if value.startswith("/") and len(parts) > 1 and parts[1] in _SYSTEM_FOLDERS:
        return "is a path into a system folder"
    return ""
