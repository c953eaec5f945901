"""Conversions that only rename: which names they take, and what becomes of them."""

from __future__ import annotations

from registry.adapters import safetensors
from registry.merging import renaming
from tests import samples

MODULE = "transformer_blocks.0.attn.to_out.0"


def header(*ends: str) -> safetensors.Header:
    data = samples.safetensors({f"{MODULE}{end}": ("F32", (4, 4), None) for end in ends})
    return safetensors.read_bytes(data, file="x.safetensors")


def test_bare_names_become_those_of_diffusers_where_no_alpha_has_to_be_folded_in() -> None:
    for a, b in ((".lora_A.default.weight", ".lora_B.default.weight"), (".lora_down.weight", ".lora_up.weight")):
        assert renaming.can_rename(header(a, b))
        renamed = renaming.to_diffusers(header(a, b))
        assert renamed[f"{MODULE}{a}"] == f"transformer.{MODULE}.lora_A.weight"
        assert renamed[f"{MODULE}{b}"] == f"transformer.{MODULE}.lora_B.weight"
    assert not renaming.can_rename(header(".lora_down.weight", ".lora_up.weight", ".alpha"))
