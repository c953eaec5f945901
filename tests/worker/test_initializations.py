"""The table of initializations says what the installed PEFT does to the base's weights."""

from __future__ import annotations

import typing
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig, get_peft_model

from registry.adapters.peft import initializations
from registry.adapters.peft.initializations import INITIALIZATIONS, Initialization
from tests import fixtures

if not fixtures.HAS_EXAMINED_PEFT:
    pytest.skip(fixtures.OLDER_PEFT, allow_module_level=True)
SIZE, RANK = 16, 4
CHECKED = [row for row in INITIALIZATIONS if row.name != "loftq"]
"""LoftQ needs scipy, which is not installed."""


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(SIZE, SIZE, bias=False)

    def with_training_data(self) -> Model:
        """What `preprocess_corda` and `preprocess_loraga` leave on a layer."""
        u, s, vh = torch.linalg.svd(self.linear.weight.detach())
        self.linear.eigens = SimpleNamespace(U_WC=u[:, :RANK], S_WC=s[:RANK].clone(), V_WC=vh[:RANK].T)
        self.linear._peft_loraga_grad = torch.randn(SIZE, SIZE)
        return self


def base_moves(model: Model, value: str) -> bool:
    before = model.linear.weight.detach().clone()
    options: dict[str, Any] = {"lora_ga_config": None}
    if value == "lora_ga":
        options["lora_ga_config"] = peft.LoraGAConfig()
    setting: Any = {"true": True, "false": False}.get(value, value)
    config = LoraConfig(r=RANK, target_modules=["linear"], init_lora_weights=setting, **options)
    wrapped = get_peft_model(model, config, low_cpu_mem_usage=False)
    return not torch.equal(before, wrapped.base_model.model.linear.base_layer.weight)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("row", CHECKED, ids=lambda row: row.name)
def test_each_row_is_what_peft_does(row: Initialization) -> None:
    assert base_moves(Model().with_training_data(), row.name) is row.changes_base
    try:
        at_load = base_moves(Model(), row.name)
    except ValueError:
        at_load = True
    assert at_load is row.changes_base_at_load


def test_every_value_that_peft_names_has_a_row() -> None:
    annotation = typing.get_type_hints(LoraConfig)["init_lora_weights"]
    named = {value for part in typing.get_args(annotation) for value in typing.get_args(part)}
    assert named, annotation
    assert {value for value in named if initializations.find(value) is None} == set()


def test_an_unknown_value_counts_as_one_that_changes_the_base() -> None:
    assert initializations.find("of_tomorrow") is None
    assert initializations.changes_base("of_tomorrow")
    assert initializations.changes_base_at_load("of_tomorrow")
    assert not initializations.is_reversible("of_tomorrow")
