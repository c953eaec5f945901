"""The tables of PEFT's methods and fields against the installed PEFT: rows, tensors, shapes, kinds, merging."""

from __future__ import annotations

import dataclasses
import json
import random
import tempfile
import typing
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest

from registry import compat
from registry.adapters import peft as adapters
from registry.adapters import safetensors
from registry.adapters.methods import METHODS
from registry.adapters.peft import fields
from registry.adapters.peft.config import read_config
from registry.adapters.peft.fields import COST_LIMITS
from registry.adapters.peft.formulas import evaluate
from registry.bases import BaseSpec
from registry.client.local.base_folder import base_spec_from
from registry.errors import RegistryError
from registry.evaluation.verdicts import Outcome, add_up
from registry.findings import Finding
from tests import fixtures, samples

pytestmark = [
    pytest.mark.skipif(not fixtures.AVAILABLE, reason="the worker extra (torch, transformers, peft) is missing"),
    pytest.mark.skipif(not fixtures.HAS_EXAMINED_PEFT, reason=fixtures.OLDER_PEFT),
]

Shapes = dict[str, tuple[int, ...]]
CASES: tuple[tuple[str, dict[str, Any]], ...] = (
    *((method, {}) for method in METHODS if method not in ("ADAMSS", "XLORA")),
    ("LORA", {"kasa_config": {"beta": 0.1, "gamma": 0.1}}), ("LORA", {"velora_config": {"num_groups": 4}}),
    ("LORA", {"velora_config": {}}), ("LORA", {"monteclora_config": {}}), ("LORA", {"use_dora": True}),
    ("LORA", {"monteclora_config": {"num_samples": 3}}), ("LORA", {"rank_pattern": {"q_proj": 2}}),
    ("BOFT", {"boft_block_size": 0, "boft_block_num": 2}), ("C3A", {"block_size_pattern": {"q_proj": 2}}),
    ("CARTRIDGE", {"num_frozen_tokens": 0}), ("DEFT", {"para": True}), ("DELORA", {"rank_pattern": {"q_proj": 2}}),
    ("FOURIERFT", {"n_frequency_pattern": {"q_proj": 7}}), ("FROD", {"save_projection": False}),
    ("FROD", {"sparse_rate": 0.3}), ("FROD", {"sparse_rate": 0.0}),
    *(("GLORA", {"config_A_B": value}) for value in ("vector", "constant", "none")), ("GRALORA", {"hybrid_r": 2}),
    ("GRALORA", {"gralora_k": 4}), ("HIRA", {"rank_pattern": {"q_proj": 2}}),
    ("HIRA", {"target_modules": ["embed_tokens", "q_proj"]}), ("IA3", {"feedforward_modules": ["q_proj"]}),
    ("LILY", {"stride_A": 2, "num_B": 3}), ("LN_TUNING", {"target_modules": ["norm", "q_proj"]}),
    ("LOHA", {"rank_pattern": {"q_proj": 2}}), ("LOKR", {"r": 1, "decompose_both": True}), ("LOKR", {"r": 1}),
    ("LOKR", {"r": 1, "decompose_factor": 4}), ("LOKR", {"r": 2, "decompose_factor": 5}),
    ("MISS", {"init_weights": "bat"}), ("MISS", {"init_weights": "mini", "mini_r": 4}),
    ("MULTITASK_PROMPT_TUNING", {"num_tasks": 3, "num_ranks": 2}), ("OFT", {"block_share": True}),
    ("OFT", {"oft_block_size": 5}), ("OFT", {"oft_block_size": 0, "r": 3}),
    ("OFT", {"target_modules": ["embed_tokens"]}),
    ("OSF", {"effective_rank": 3}), ("OSF", {"effective_rank": 0.25}), ("OSF", {"rank_pattern": {"q_proj": 0.5}}),
    ("PEANUT", {"depth": 2}), ("POLY", {"n_tasks": 3, "n_splits": 2, "n_skills": 5}),
    ("PREFIX_TUNING", {"prefix_projection": True}), ("PROMPT_TUNING", {"num_transformer_submodules": 2}),
    ("PSOFT", {"psoft_orth": False, "psoft_mag_b": False}), ("PVERA", {"save_projection": False}),
    ("RANDLORA", {"save_projection": False}), ("RANDLORA", {"r": 3}), ("ROAD", {"variant": "road_2"}),
    ("ROAD", {"variant": "road_4"}), ("SUPERTUNING", {"r": None}), ("SUPERTUNING", {"save_precomputed_indices": False}),
    ("SUPERTUNING", {"sparsity": 0.5}), ("TINYLORA", {"weight_tying": 0.5, "save_projection": False}),
    ("TINYLORA", {"r": 10, "u": 5}), ("TINYLORA", {"target_modules": ["embed_tokens", "q_proj"]}),
    ("UNILORA", {"save_indices": True}), ("VBLORA", {"save_only_topk_weights": True}),
    ("VERA", {"save_projection": False}),
    ("WAVEFT", {"n_frequency_pattern": {"q_proj": 7}}), ("WAVEFT", {"proportional_parameters": True}),
)  # fmt: skip


@cache
def base() -> tuple[Any, BaseSpec]:
    """What makes a tiny Llama, and what the registry reads of its folder."""
    from scripts.peft_fields import tiny_model

    with tempfile.TemporaryDirectory() as folder:
        tiny_model().save_pretrained(folder)
        return tiny_model, base_spec_from(folder, "tiny")[0]


def saved_by_peft(method: str, changes: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configuration that PEFT writes, and the tensors."""
    import peft

    from scripts.peft_fields import valid_config

    config = peft.PeftConfig.from_peft_type(**valid_config(method) | changes)
    model = peft.get_peft_model(base()[0](), config)
    written = {name: sorted(value) if isinstance(value, set) else value for name, value in config.to_dict().items()}
    return json.loads(json.dumps(written)), dict(peft.get_peft_model_state_dict(model))


def check(written: dict[str, Any], shapes: Shapes, dtypes: dict[str, str]) -> list[Finding]:
    tensors = {name: (dtypes.get(name, "F32"), shape, None) for name, shape in shapes.items()}
    try:
        header = safetensors.read_bytes(samples.safetensors(tensors), file=samples.WEIGHTS)
        return compat.check_fit(adapters.describe(read_config(json.dumps(written).encode()), header), base()[1])
    except RegistryError as e:
        return [Finding.of("error", "test.refused", samples.CONFIG, str(e))]


def mutations(shapes: Shapes) -> Iterator[tuple[str, Shapes]]:
    """One tensor of each kind lost; with one size changed; with one dimension more."""
    kinds: set[str] = set()
    for name, shape in shapes.items():
        kind = "".join(part for part in name.split(".") if not part.isdigit())
        if kind in kinds or ".base_layer." in name:  # the base's own tensor, which PEFT repeats and does not need
            continue
        kinds.add(kind)
        yield f"lost {name}", {other: shapes[other] for other in shapes if other != name}
        for axis in range(len(shape)):
            yield f"larger {name}", shapes | {name: (*shape[:axis], shape[axis] + 1, *shape[axis + 1 :])}
        yield f"deeper {name}", shapes | {name: (*shape, 1)}


def dtype_of(tensor: Any) -> str:
    names = {"int64": "I64", "int32": "I32", "uint8": "U8", "float32": "F32"}
    return names[str(tensor.dtype).removeprefix("torch.")]


@pytest.mark.parametrize(("method", "changes"), CASES, ids=[f"{method}-{changes}" for method, changes in CASES])
def test_what_peft_saves_fits_and_what_lost_or_grew_does_not(method: str, changes: dict[str, Any]) -> None:
    written, tensors = saved_by_peft(method, changes)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    dtypes = {name: dtype_of(tensor) for name, tensor in tensors.items()}
    findings = check(written, shapes, dtypes)
    assert [f"{f.code} {f.location} {f.message}" for f in findings if f.severity == "error"] == []
    if METHODS[method].shapes_known:
        open_sizes = "proportional_parameters" in changes or (method == "OSF" and "rank_pattern" in changes)
        assert add_up(findings) in ((Outcome.UNKNOWN,) if open_sizes else (Outcome.PASS, Outcome.WARN)), findings
        wrong = [(mutation, add_up(check(written, changed, dtypes))) for mutation, changed in mutations(shapes)]
        accepted = [mutation for mutation, outcome in wrong if outcome is not Outcome.FAIL]
        assert [mutation for mutation in accepted if not (open_sizes and mutation.startswith("larger"))] == []


def test_every_method_and_every_field_of_peft_has_a_row() -> None:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    from peft.utils.peft_types import PeftType

    assert set(METHODS) == {member.value for member in PeftType}
    for method, row in fields.table().items():
        field_names = {field.name for field in dataclasses.fields(PEFT_TYPE_TO_CONFIG_MAPPING[method]) if field.init}
        assert field_names - {"runtime_config"} == {name for name in row if "." not in name}, method


@pytest.mark.parametrize("seed", range(6))
def test_the_table_of_fields_is_what_the_script_makes_of_the_installed_peft(seed: int) -> None:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    from scripts import peft_fields

    rng = random.Random(seed)
    method = rng.choice(sorted(fields.table().keys() - peft_fields.NOT_BUILT))
    rows = fields.table()[method]
    annotations = typing.get_type_hints(PEFT_TYPE_TO_CONFIG_MAPPING[method])
    for name in rng.sample(sorted(name for name in rows if "." not in name), 3):
        row = {key: value for key, value in rows[name].items() if key not in ("needs", "excludes_pattern")}
        assert peft_fields.entry(method, name, row.get("default"), annotations[name]) == row, (method, name)


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("ADAMSS", "XLORA")])
def test_a_row_says_whether_peft_merges_the_method_and_needs_values(method: str) -> None:
    import peft
    import torch

    from scripts.peft_fields import valid_config

    model = peft.get_peft_model(base()[0](), peft.PeftConfig.from_peft_type(**valid_config(method)))
    if method != "BEFT":  # PEFT merges it into a module that has a bias
        try:
            model.merge_and_unload()
            is_merged = True
        except (AttributeError, NotImplementedError, ValueError):
            is_merged = False
        assert is_merged is METHODS[method].mergeable
    try:
        with torch.device("meta"):
            empty = peft.get_peft_model(base()[0](), peft.PeftConfig.from_peft_type(**valid_config(method)))
        peft.get_peft_model_state_dict(empty)
        needs_values = False
    except (NotImplementedError, RuntimeError):
        needs_values = True
    assert needs_values is evaluate(METHODS[method].needs_values, dict.fromkeys(fields.table()[method]))


def test_defaults_of_peft_are_far_below_the_limits_of_costs() -> None:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    classes = PEFT_TYPE_TO_CONFIG_MAPPING.values()
    defaults = [(field.name, field.default) for kind in classes for field in dataclasses.fields(kind)]
    numbers = [(name, value) for name, value in defaults if type(value) is int and name in COST_LIMITS]
    assert len(numbers) > 20
    assert [(name, value) for name, value in numbers if 4 * value > COST_LIMITS[name]] == []
