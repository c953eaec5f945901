"""From forged files to specs and findings: what the tests of the domain share."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from registry import bases, compat
from registry.adapters import peft, safetensors
from registry.adapters.peft import LoraSpec, config
from registry.bases import BaseSpec
from registry.findings import Finding
from tests import samples


@lru_cache(maxsize=32)
def base_spec(base: samples.Base) -> BaseSpec:
    """The spec of a forged base, from its configuration and headers."""
    headers = [
        safetensors.read_bytes(data, file=path) for path, data in base.files.items() if path.endswith(".safetensors")
    ]
    return bases.base_spec(
        base.name,
        bases.read_config(base.files["config.json"]),
        headers,
        tokenizer=base.files["tokenizer.json"],
        tokenizer_config=base.files["tokenizer_config.json"],
        chat_template=base.files["chat_template.jinja"].decode(),
    )


def lora_spec(files: Mapping[str, bytes]) -> LoraSpec:
    """The spec of a forged adapter."""
    header = safetensors.read_bytes(files[samples.WEIGHTS], file=samples.WEIGHTS)
    return peft.describe(config.read_config(files[samples.CONFIG]), header)


def evaluate(files: Mapping[str, bytes], base: samples.Base) -> list[Finding]:
    """Everything that the registry finds about this adapter on this base."""
    return compat.check_fit(lora_spec(files), base_spec(base))
