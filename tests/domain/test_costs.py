"""Configurations that would make PEFT work or allocate without end get a failing finding before PEFT reads them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from registry.adapters.peft import fields
from registry.adapters.peft.config import read_config
from registry.adapters.peft.fields import COST_LIMITS

ENDLESS: list[dict[str, Any]] = [
    {"peft_type": "OFT", "use_cayley_neumann": True, "num_cayley_neumann_terms": 10**9},
    {"peft_type": "PSOFT", "psoft_svd_lowrank_niter": 10**9},
    {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 8, "num_transformer_submodules": 10**8},
    {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 10**9},
    {"peft_type": "P_TUNING", "num_virtual_tokens": 8, "encoder_hidden_size": 1e12},
    {"peft_type": "LORA", "r": 4, "loftq_config": {"loftq_bits": 4, "loftq_iter": 10**7}},
    {"peft_type": "UNILORA", "theta_d_length": 10**12},
    {"peft_type": "PEANUT", "depth": 10**6},
    {"peft_type": "XLORA", "hidden_size": 64, "xlora_depth": 10**7},
]


@pytest.mark.security
@pytest.mark.parametrize("values", ENDLESS, ids=lambda values: values["peft_type"])
def test_a_value_that_costs_without_end_is_a_failing_finding_with_its_limit(values: dict[str, Any]) -> None:
    findings = [f for f in read_config(json.dumps(values).encode()).findings if f.code == "config.value_excessive"]
    assert len(findings) == 1
    assert findings[0].severity == "error"
    assert findings[0].expected.startswith("at most ")


@pytest.mark.security
def test_iterations_inside_an_initialization_are_limited() -> None:
    config = read_config(json.dumps({"peft_type": "LORA", "init_lora_weights": "pissa_niter_999999"}).encode())
    assert "config.not_loadable" in {finding.code for finding in config.findings}


def test_every_limit_is_of_a_field_that_peft_has() -> None:
    assert {field for field in COST_LIMITS if field not in fields.names()} <= {"loftq_iter", "nblocks"}
