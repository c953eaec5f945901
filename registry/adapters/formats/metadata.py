"""The configurations in diffusers' metadata (`lora_adapter_metadata`): what they say, and whether it can load by them.

The object holds `component.field` → value. diffusers (0.42.1, `_create_lora_config`) makes PEFT's LoraConfig of the
fields of a component without looking at its tensors; all components have one as soon as the file has the object.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from registry.adapters.peft import config as peft_config
from registry.adapters.peft import fields as peft_fields
from registry.adapters.peft import initializations
from registry.adapters.peft.config import LAYERS_LIMIT, AdapterConfig
from registry.adapters.peft.targets import Choice, Targets
from registry.errors import Invalid
from registry.findings import Finding
from registry.strict import json as strict_json
from registry.strict.fields import Fields
from registry.versions.files import CONFIG

KEY = "lora_adapter_metadata"
FAULTS_LIMIT = 20
"""How many faults of one kind are listed."""
_DIALECT = strict_json.Dialect("TENSORS_INVALID", "safetensors", depth=6, not_finite=True, duplicate_keys=True)
"""As lenient as Python's parser, which diffusers reads them with."""
_REFUSED = ("layer_replication", "use_bdlora")
_REFUSED_IN_DENOISERS = ("target_parameters", "trainable_token_indices")
_BY_NAME = ("modules_to_save", *_REFUSED_IN_DENOISERS)
"""Fields that only matter where the model has something of one of their names."""
_UNUSED = ("revision", "fan_in_fan_out", "auto_mapping", "base_model_name_or_path", "inference_mode")
_HARMLESS = frozenset({"config.base_model_invalid", "config.code_reference", "config.path_refused"})
"""Of fields that diffusers does not use."""


def by_component(metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Component → the fields of its configuration; empty where the object is absent or broken."""
    fields = _object(metadata)
    components: dict[str, dict[str, Any]] = {}
    for key, value in fields.items() if isinstance(fields, dict) else ():
        component, _, field = key.partition(".")
        components.setdefault(component, {})[field] = _as_applied(field, value)
    return components


def _as_applied(field: str, value: Any) -> Any:
    """The number that PEFT computes with: true is an alpha of 1, and a dropout of at most 1, or NaN, does nothing."""
    if field == "lora_alpha" and isinstance(value, bool):
        return int(value)
    return 0.0 if field == "lora_dropout" and isinstance(value, int | float) and not value > 1 else value


def targets(metadata: Mapping[str, str]) -> dict[str, AdapterConfig]:
    """Component → the targets of its PEFT configuration, where its fields are of the right kind."""
    configs: dict[str, AdapterConfig] = {}
    for component, values in by_component(metadata).items():
        fields = Fields(values)
        config = AdapterConfig(
            method="LORA", targets=fields.names_or_pattern("target_modules"),
            excluded=fields.names_or_pattern("exclude_modules"), layers_pattern=fields.names("layers_pattern"),
            layers=fields.whole_numbers("layers_to_transform", LAYERS_LIMIT) or None,
        )  # fmt: skip
        if config.targets is not None and not fields.findings:
            configs[component] = config
    return configs


def faults(
    metadata: Mapping[str, str], ranks: Mapping[str, Mapping[str, int]], biased: frozenset[str], *, exact_paths: bool
) -> tuple[Finding, ...]:
    """What keeps diffusers from loading the file by its metadata; other engines do not read them.

    `ranks`: component → path in it → rank of the pair. `biased`: the components with biases on lora_B. `exact_paths`:
    the paths are those of the modules, so that patterns can be compared.
    """
    fields = _object(metadata)
    if fields is None:
        return ()
    if not isinstance(fields, dict):
        message = f"{KEY} is not one strict JSON object, and diffusers cannot read it"
        return (Finding("config.invalid", KEY, message, expected="a JSON object"),)
    claims = by_component(metadata)
    return tuple(
        finding
        for component, of_pairs in ranks.items()
        for finding in _of_component(
            component, claims.get(component, {}), of_pairs, component in biased, exact_paths=exact_paths
        )
    )


def _object(metadata: Mapping[str, str]) -> Any:
    """The parsed value; None if there is none, and False if it is not strict JSON."""
    raw = metadata.get(KEY)
    try:
        return strict_json.parse(raw.encode(), _DIALECT, file=KEY) if raw else None
    except Invalid:
        return False


def _of_component(
    component: str, values: dict[str, Any], ranks: Mapping[str, int], has_bias: bool, *, exact_paths: bool
) -> Iterator[Finding]:
    start = f"{KEY}: {component}."

    def fault(field: str, message: str, expected: object = "", actual: object = "", code: str = "") -> Finding:
        text = f"{KEY}: {component}.{field[:120]} {message}"
        return Finding.of("error", code or "config.not_loadable", start + field[:120], text, expected, actual)

    is_text = component.startswith("text_encoder")
    for field in sorted(values.keys() - peft_fields.table()["LORA"].keys() - {"runtime_config"})[:FAULTS_LIMIT]:
        yield fault(field, "is no field of PEFT's LoraConfig, which diffusers makes of the metadata")
    if "runtime_config" in values:
        yield fault("runtime_config", "is for the running process, and PEFT fails with one that a file holds")
    if values.get("alora_invocation_tokens"):
        yield fault("alora_invocation_tokens", "makes PEFT apply the update only behind these tokens of a text", "none")
    if values.get("target_modules") is None:
        yield fault("target_modules", "is not written, and PEFT requires it", "names of modules", "nothing")
    for field in (field for field in (*_REFUSED, *(() if is_text else _REFUSED_IN_DENOISERS)) if values.get(field)):
        yield fault(field, "is not possible in an image model whose layers PEFT makes by the tensors", "none")
    try:
        config = peft_config.read_fields(
            {field: value for field, value in values.items() if field not in _UNUSED} | {"peft_type": "LORA"}
        )
    except Invalid as error:
        for broken in error.findings:
            if broken.code not in _HARMLESS:
                yield fault(broken.location, broken.message, actual=_shown(values, broken.location), code=broken.code)
        return
    for broken in config.findings:
        if broken.severity == "error":
            field = broken.location.removeprefix(f"{CONFIG}: ")
            message = broken.message.removeprefix(field).strip()
            yield fault(field, message, broken.expected, _shown(values, field), broken.code)
            return
    if initializations.changes_base_at_load(config.initialization):
        yield fault("init_lora_weights", "changes the base at load, which fails", "true", config.initialization)
    if config.initialization == "orthogonal" and any(rank % 2 for rank in ranks.values()):
        yield fault("init_lora_weights", "is orthogonal, which PEFT takes only for even ranks", "true", "orthogonal")
    for field in (field for field in _BY_NAME if values.get(field) and (is_text or field not in _REFUSED_IN_DENOISERS)):
        message = "may fail, if the model has a module or a parameter of one of these names"
        yield replace(fault(field, message), severity="unknown")
    if is_text and values.get("init_lora_weights") in (False, "orthogonal"):
        yield replace(fault("init_lora_weights", "may leave random updates in other modules"), severity="unknown")
    # PEFT begins biases with 0, and a text encoder may lack some; other models are loaded strictly.
    if config.lora_bias != has_bias and not (is_text and config.lora_bias):
        code = "lora.tensor_unknown" if has_bias else "lora.bias_absent"
        message = f"is {str(config.lora_bias).lower()}, and the file has {'' if has_bias else 'no '}biases on lora_B"
        yield fault("lora_bias", message, has_bias, config.lora_bias, code)
    if is_text:
        yield from _untargeted(config, ranks, fault, exact_paths=exact_paths)
    pattern = config.rank_pattern
    if pattern and not exact_paths and {config.rank, *pattern.values()} >= {*ranks.values()}:
        text = f"{KEY}: {component}.rank_pattern has other ranks than the tensors, whose names do not show its modules"
        yield Finding.of("unknown", "lora.rank_differs_from_config", f"{start}rank_pattern", text)
        return
    yield from (
        fault(field, message, rank, stated, "lora.rank_differs_from_config")
        for field, message, rank, stated in _ranks(config, ranks)
    )


_OLD_TEXT = re.compile(r"\.to_(q|k|v|out)_lora\Z")
"""A text encoder's attention in the names of 2023."""


_TEXT_LAYER = re.compile(r"encoder\.layers\.\d{1,6}(?=\.)")
_NEVER_ADAPTED = ("", ".mlp", ".self_attn", ".layer_norm1", ".mlp.activation_fn")
"""Modules in a layer of CLIP that PEFT has no layer for; it raises for a target that means one."""


def _untargeted(
    config: AdapterConfig, paths: Iterable[str], fault: Callable[..., Finding], *, exact_paths: bool
) -> Iterator[Finding]:
    """transformers makes a text encoder's layers by the targets alone, and drops the tensors of all other modules.

    A U-Net's or transformer's layers are made by the names of the tensors.
    """
    targets = Targets(config)
    layers = {match[0] for path in paths if (match := _TEXT_LAYER.match(path.removeprefix("text_model.")))}
    unfit = ("encoder", "final_layer_norm", *(layer + name for layer in sorted(layers) for name in _NEVER_ADAPTED))
    for name in (name for name in unfit if not targets.all_linear and targets.covers(name)):
        yield fault("target_modules", f"means {name}, which PEFT cannot adapt", "names of linear modules", name)
        return
    for path in paths:
        bare = _OLD_TEXT.sub(r".\1_proj", path.removeprefix("text_model."))
        with_and_without = {
            targets.covers(name) and not (targets.all_linear and "embedding" in name)
            for name in (bare, f"text_model.{bare}")  # which of the two depends on the version of transformers
        }
        if with_and_without != {True}:
            message = f"does not mean {path}, so the tensors of this module are not loaded"
            finding = fault("target_modules", message, path, str(config.targets)[:60], "compat.module_not_targeted")
            yield finding if exact_paths and True not in with_and_without else replace(finding, severity="unknown")
            return


def _ranks(config: AdapterConfig, ranks: Mapping[str, int]) -> Iterator[tuple[str, str, int, int]]:
    """Field, message, rank of the tensors and stated rank; once for each pair of the two numbers."""
    pattern, pairs = Choice(config.rank_pattern), set()
    for path, rank in ranks.items():
        by_pattern = pattern.pick(path)
        stated = by_pattern or config.rank
        if rank != stated and (rank, stated) not in pairs:
            pairs.add((rank, stated))
            field = "rank_pattern" if by_pattern else "r"
            yield field, f"says that {path} has rank {stated}, and its tensors have rank {rank}", rank, stated


def _shown(values: Mapping[str, Any], field: str) -> str:
    return repr(values.get(field, "nothing"))[:60]
