"""The configurations in diffusers' metadata (`lora_adapter_metadata`): `component.field` → value, as in PEFT."""

from collections.abc import Mapping
from typing import Any

from registry.adapters.peft.config import LAYERS_LIMIT, AdapterConfig
from registry.errors import Invalid
from registry.strict import json as strict_json
from registry.strict.fields import Fields

KEY = "lora_adapter_metadata"
_DIALECT = strict_json.Dialect("TENSORS_INVALID", "safetensors", depth=6, not_finite=True, duplicate_keys=True)
"""As lenient as Python's parser, which diffusers reads them with."""


def by_component(metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Component → the fields of its configuration; empty where the object is absent or broken."""
    raw = metadata.get(KEY)
    try:
        fields = strict_json.parse(raw.encode(), _DIALECT, file=KEY) if raw else None
    except Invalid:
        return {}
    components: dict[str, dict[str, Any]] = {}
    for key, value in fields.items() if isinstance(fields, dict) else ():
        component, _, field = key.partition(".")
        is_flag = field == "lora_alpha" and isinstance(value, bool)  # PEFT computes with true as an alpha of 1
        components.setdefault(component, {})[field] = int(value) if is_flag else value
    return components


def targets(metadata: Mapping[str, str]) -> dict[str, AdapterConfig]:
    """Component → the targets of its PEFT configuration, where its fields are of the right kind."""
    configs: dict[str, AdapterConfig] = {}
    for component, values in by_component(metadata).items():
        fields = Fields(values)
        config = AdapterConfig(
            method="LORA",
            targets=fields.names_or_pattern("target_modules"),
            excluded=fields.names_or_pattern("exclude_modules"),
            layers_pattern=fields.names("layers_pattern"),
            layers=fields.whole_numbers("layers_to_transform", LAYERS_LIMIT) or None,
        )
        if config.targets is not None and not fields.findings:
            configs[component] = config
    return configs
