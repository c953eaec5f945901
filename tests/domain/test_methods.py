"""Methods other than LoRA: what fits by arithmetic, what no check covers, and what is no part of any method."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from registry import compat
from registry.adapters import methods, peft, safetensors
from registry.adapters.peft import combinations, config, expected, formulas
from registry.engines import facts as engine_facts
from registry.evaluation.verdicts import Outcome, add_up
from registry.findings import Finding
from registry.merging import recipes
from registry.merging.recipes import Ingredient, MergeOperation, Recipe
from tests import samples
from tests.domain.specs import base_spec

LLAMA = samples.llama()


def codes(findings: list[Finding], severity: str = "error") -> set[str]:
    return {f.code for f in findings if f.severity == severity}


def other(method: str, tensors_: Mapping[str, tuple[int, ...]], **fields: Any) -> list[Finding]:
    """Evaluate an adapter of another method that has these tensors for every q_proj (or by full name)."""
    return compat.check_fit(spec_of(method, tensors_, **fields), base_spec(LLAMA))


def spec_of(method: str, tensors_: Mapping[str, tuple[int, ...]], **fields: Any) -> peft.LoraSpec:
    named: dict[str, samples.Tensor] = {}
    for name, shape in tensors_.items():
        if name == "prompt_embeddings":
            named[name] = ("F32", shape, None)
        else:
            named |= {
                f"base_model.model.model.layers.{n}.self_attn.q_proj.{name}": ("F32", shape, None) for n in range(4)
            }
    configuration = {"peft_type": method, "base_model_name_or_path": "tiny-llama", "task_type": "CAUSAL_LM",
                     "target_modules": ["q_proj"], **fields}  # fmt: skip
    return peft.describe(
        config.read_config(json.dumps(configuration).encode()),
        safetensors.read_bytes(samples.safetensors(named), file=samples.WEIGHTS),
    )


@pytest.mark.parametrize(("dtype", "fits"), [("F32", True), ("F16", False), ("BF16", False), ("I32", False)])
def test_the_top_weights_of_vblora_are_loaded_in_32_bits_only(dtype: str, fits: bool) -> None:
    name = "base_model.model.model.layers.0.self_attn.q_proj.vblora_logits_A_topk_weights"
    data = samples.safetensors({name: (dtype, (4, 4, 1), None)})
    written = {"peft_type": "VBLORA", "target_modules": ["q_proj"], "save_only_topk_weights": True}
    header = safetensors.read_bytes(data, file=samples.WEIGHTS)
    spec = peft.describe(config.read_config(json.dumps(written).encode()), header)
    assert ("lora.dtype_refused" not in codes(list(spec.findings))) is fits


GOOD: list[tuple[str, dict[str, tuple[int, ...]], dict[str, Any]]] = [
    ("IA3", {"ia3_l": (64, 1)}, {"feedforward_modules": []}),
    ("LOHA", {"hada_w1_a": (64, 4), "hada_w1_b": (4, 64), "hada_w2_a": (64, 4), "hada_w2_b": (4, 64)}, {"r": 4}),
    ("LOKR", {"lokr_w1": (8, 8), "lokr_w2_a": (8, 2), "lokr_w2_b": (2, 8)}, {"r": 2}),
    ("OFT", {"oft_R.weight": (8, 28)}, {"oft_block_size": 8}),
    ("BOFT", {"boft_R": (1, 16, 4, 4), "boft_s": (64, 1)}, {}),
    ("MISS", {"miss_block": (8, 64)}, {"r": 8}),
    ("VERA", {"vera_lambda_b": (64,), "vera_lambda_d": (16,)}, {"r": 16, "save_projection": False}),
    ("HRA", {"hra_u": (64, 8)}, {"r": 8}),
    ("PROMPT_TUNING", {"prompt_embeddings": (8, 64)}, {"num_virtual_tokens": 8}),
    ("P_TUNING", {"prompt_embeddings": (8, 64)}, {"num_virtual_tokens": 8}),
    ("PREFIX_TUNING", {"prompt_embeddings": (8, 256)}, {"num_virtual_tokens": 8}),
]


@pytest.mark.parametrize(("method", "shapes", "fields"), GOOD)
def test_another_method_fits_by_the_arithmetic_of_its_shapes(
    method: str, shapes: dict[str, tuple[int, ...]], fields: dict[str, Any]
) -> None:
    assert other(method, shapes, **fields) == []


@pytest.mark.parametrize(("method", "shapes", "fields"), GOOD)
def test_another_method_fails_when_a_side_is_off_by_one(
    method: str, shapes: dict[str, tuple[int, ...]], fields: dict[str, Any]
) -> None:
    name, shape = next(iter(shapes.items()))
    wrong = {**shapes, name: (*shape[:-1], shape[-1] + 1)}
    assert add_up(other(method, wrong, **fields)) is Outcome.FAIL


@pytest.mark.parametrize(
    ("method", "names"),
    [
        (
            "SHADOW",
            {
                "base_model.shadow_backbone.default.norm.weight": "F32",
                "{q}.shadow_up.default.weight": "F32",
                "base_model.shadow_projection.default.weight": "F32",
            },
        ),
        ("ADAMSS", {"{q}.adamss_A.0": "F32", "{q}.adamss_B.0": "F32"}),
    ],
)
def test_an_unchecked_method_is_unknown_and_admits_no_tensors_of_the_base(method: str, names: dict[str, str]) -> None:
    def findings_with(*more: str) -> list[Finding]:
        paths = [f"base_model.model.model.layers.{n}.self_attn.q_proj" for n in range(4)]
        tensors = {name.format(q=path): (dtype, (8,), None) for path in paths for name, dtype in names.items()}
        tensors |= dict.fromkeys(more, ("F32", (8,), None))
        written = {"peft_type": method, "base_model_name_or_path": "tiny-llama", "target_modules": ["q_proj"]}
        header = safetensors.read_bytes(samples.safetensors(tensors), file=samples.WEIGHTS)
        return compat.check_fit(
            peft.describe(config.read_config(json.dumps(written).encode()), header), base_spec(LLAMA)
        )

    assert [f.code for f in findings_with()] == ["compat.method_not_evaluated"]
    assert codes(findings_with("base_model.model.lm_head.weight")) == {"compat.overwrites_base"}


@pytest.mark.parametrize(
    ("shapes", "code"),
    [
        ({"hada_w1_a": (64, 4), "hada_w1_b": (4, 64), "hada_w2_a": (64, 4)}, "compat.tensor_missing"),
        ({"hada_w1_a": (64, 4), "hada_w1_b": (4, 64), "hada_w2_a": (64, 4), "hada_w2_b": (4, 64), "hada_t1": (4, 4)},
         "lora.tensor_unknown"),
        ({"hada_w1_a": (64, 4, 1), "hada_w1_b": (4, 64), "hada_w2_a": (64, 4), "hada_w2_b": (4, 64)}, "compat.shape"),
    ],
)  # fmt: skip
def test_a_lost_an_extra_and_a_deeper_tensor_of_a_method_fail(shapes: dict[str, tuple[int, ...]], code: str) -> None:
    assert codes(other("LOHA", shapes, r=4)) == {code}


def test_a_prompt_for_several_tasks_is_three_tensors() -> None:
    tensors: dict[str, samples.Tensor] = {
        "prompt_embeddings": ("F32", (4, 64), None), "prefix_task_cols": ("F32", (1, 4, 1), None),
        "prefix_task_rows": ("F32", (1, 1, 64), None),
    }  # fmt: skip
    written = {"peft_type": "MULTITASK_PROMPT_TUNING", "base_model_name_or_path": "tiny-llama", "num_virtual_tokens": 4}
    header = safetensors.read_bytes(samples.safetensors(tensors), file=samples.WEIGHTS)
    spec = peft.describe(config.read_config(json.dumps(written).encode()), header)
    assert compat.check_fit(spec, base_spec(LLAMA)) == []


def test_a_shadow_model_has_the_sizes_that_its_configuration_writes() -> None:
    written = {
        "peft_type": "SHADOW",
        "shadow_hidden_size": 32,
        "shadow_num_hidden_layers": 2,
        "share_embeddings": False,
    }
    codes = {finding.code for finding in config.read_config(json.dumps(written).encode()).findings}
    assert codes == {"config.base_model_absent"}


def test_a_method_without_rules_is_unknown_and_an_unexpected_tensor_in_it_still_fails() -> None:
    assert add_up(other("SHADOW", {"shadow_up.default.weight": (100,)})) is Outcome.UNKNOWN
    assert add_up(other("IA3", {"ia3_l": (64, 1), "weight": (64, 64)})) is Outcome.FAIL


def test_ranks_by_pattern_count_for_other_methods_too() -> None:
    halves = {"hada_w1_a": (64, 2), "hada_w1_b": (2, 64), "hada_w2_a": (64, 2), "hada_w2_b": (2, 64)}
    assert other("LOHA", halves, r=4, rank_pattern={"q_proj": 2}) == []
    assert codes(other("LOHA", halves, r=4)) == {"compat.shape"}


# ------------------------------------------------------------------ a method that is only a row
NEW_SHAPES = {"new_A.weight": (4, 64), "new_B.weight": (64, 4), "new_gate": (4,)}


@pytest.fixture
def _new_method(monkeypatch: pytest.MonkeyPatch) -> None:
    row = methods.PeftMethod("NEW", pair_marks={"new_A.weight": "a", "new_B.weight": "b", "new_gate": "piece"})
    monkeypatch.setattr(methods, "METHODS", {**methods.METHODS, row.name: row})


@pytest.mark.usefixtures("_new_method")
def test_a_method_with_factor_pairs_is_read_and_checked_by_its_row_alone() -> None:
    spec = spec_of("NEW", NEW_SHAPES, r=4, lora_alpha=8)
    assert [(m.rank, m.scale) for m in spec.modules] == [(4, 2.0)] * 4
    assert [piece.name for piece in spec.pieces] == ["new_gate"] * 4
    findings = compat.check_fit(spec, base_spec(LLAMA))
    assert [(f.severity, f.code) for f in findings] == [("unknown", "compat.method_not_evaluated")]
    wrong = other("NEW", NEW_SHAPES | {"new_A.weight": (4, 32)}, r=4, lora_alpha=8)
    assert [f.location for f in wrong if f.severity == "error"] == ["model.layers.0.self_attn.q_proj.new_A"]
    assert codes(other("NEW", {"new_A.weight": (4, 64)}, r=4, lora_alpha=8)) == {"lora.pair_incomplete"}
    assert codes(other("NEW", {"lora_A.weight": (4, 64)}, r=4, lora_alpha=8)) >= {"lora.tensor_unknown"}


@pytest.mark.usefixtures("_new_method")
@pytest.mark.parametrize(
    ("operation", "code"),
    [
        (MergeOperation.COMBINE, "recipe.method"),
        (MergeOperation.RESIZE, "recipe.method"),
        (MergeOperation.FUSE, "recipe.not_mergeable"),
    ],
)
def test_a_method_whose_row_says_nothing_of_merging_is_not_merged(operation: MergeOperation, code: str) -> None:
    facts = engine_facts.of_lora(spec_of("NEW", NEW_SHAPES, r=4, lora_alpha=8)).model_dump()
    names = ("acme/a@1", "acme/b@1")[: 2 if operation is MergeOperation.COMBINE else 1]
    sources = [Ingredient(name=n, digest=n, base="tiny-llama", base_fingerprint="", facts=facts) for n in names]
    findings = recipes.check(Recipe(operation=operation, sources=names, rank=4 * (operation == "resize")), sources)
    assert {finding.code for finding in findings} == {code}


def test_kasa_needs_its_diagonal_and_no_other_lora_may_have_it() -> None:
    pair = {"lora_A.weight": (4, 64), "lora_B.weight": (64, 4)}
    kasa = {"r": 4, "lora_alpha": 8, "kasa_config": {"beta": 0.1}}
    findings = other("LORA", pair | {"lora_diag": (4,)}, **kasa)
    assert add_up(findings) is Outcome.WARN
    assert "compat.semantics" in codes(findings, "warning")
    assert codes(other("LORA", pair, **kasa)) == {"compat.tensor_missing"}
    assert codes(other("LORA", pair | {"lora_diag": (4,)}, r=4, lora_alpha=8)) == {"lora.tensor_unknown"}


def test_adalora_keeps_one_singular_value_for_each_rank_that_is_left() -> None:
    pair = {"lora_A": (3, 64), "lora_B": (64, 3)}
    assert codes(other("ADALORA", pair | {"lora_E": (3, 1)}, init_r=3, total_step=10)) == set()
    assert codes(other("ADALORA", pair | {"lora_E": (8, 1)}, init_r=3, total_step=10)) == {"compat.shape"}
    assert codes(other("ADALORA", pair, init_r=3, total_step=10)) == {"compat.tensor_missing"}


def test_the_masks_of_adalora_say_how_many_ranks_are_left() -> None:
    shapes = {"lora_A": (2, 64), "lora_B": (64, 2), "lora_E": (2, 1)}
    masks = {f"model.layers.{n}.self_attn.q_proj.lora_E": [True, False, True] for n in range(4)}
    assert codes(other("ADALORA", shapes, init_r=3, total_step=10, rank_pattern=masks)) == set()
    assert codes(other("ADALORA", shapes, init_r=3, total_step=10)) == {"lora.rank_differs_from_config"}


def test_a_module_that_adalora_masked_to_rank_0_is_left_to_peft() -> None:
    nothing = {"lora_A": (0, 64), "lora_B": (64, 0), "lora_E": (0, 1)}
    masks = {f"model.layers.{n}.self_attn.q_proj.lora_E": [False] * 3 for n in range(4)}
    masked = other("ADALORA", nothing, init_r=3, total_step=10, rank_pattern=masks)
    assert codes(masked) == set()
    assert codes(masked, "unknown") == {"compat.method_not_evaluated"}
    assert "lora.tensor_empty" in codes(other("ADALORA", nothing, init_r=3, total_step=10))


@pytest.mark.parametrize(("method", "changes", "field"), [
    ("ADAPTION_PROMPT", {"adapter_layers": "x", "adapter_len": 4}, "adapter_layers"),
    ("CARTRIDGE", {"num_virtual_tokens": 4, "num_frozen_tokens": 5}, "num_frozen_tokens"),
    ("CARTRIDGE", {"num_virtual_tokens": 4, "num_layers": 1.5}, "num_layers"),
    ("CARTRIDGE", {"num_virtual_tokens": 4, "num_transformer_submodules": -1}, "num_transformer_submodules"),
    ("CPT", {"cpt_token_ids": [1, 2], "task_type": None}, "task_type"),
    ("CPT", {"cpt_token_ids": [1, 2], "cpt_mask": [1]}, "cpt_mask"),
    ("DELORA", {"delora_lambda": "x"}, "delora_lambda"), ("FROD", {"projection_prng_key": 0.5}, "projection_prng_key"),
    ("LILY", {"stride_A": 1.5}, "stride_A"), ("PREFIX_TUNING", {"num_layers": 1.5}, "num_layers"),
    ("P_TUNING", {"token_dim": 0}, "token_dim"), ("SUPERTUNING", {"r": 4, "lora_dropout": 1.0}, "lora_dropout"),
    ("PROMPT_TUNING", {"tokenizer_kwargs": {"x": 1}}, "tokenizer_kwargs"),
    ("UNILORA", {"proj_seed": None}, "proj_seed"),
])  # fmt: skip
def test_fields_that_peft_refuses_by_their_meaning(method: str, changes: dict[str, Any], field: str) -> None:
    written = {"peft_type": method, "task_type": "CAUSAL_LM", **changes}
    assert field in {name for name, _ in combinations.refusals(method, written)}
    honest = {"adapter_layers": 2, "num_frozen_tokens": 1, "num_layers": 2, "num_transformer_submodules": 1,
              "task_type": "CAUSAL_LM", "cpt_mask": [1, 1], "delora_lambda": 15, "projection_prng_key": 0,
              "stride_A": 2, "token_dim": 64, "lora_dropout": 0.1, "tokenizer_kwargs": None,
              "proj_seed": 1}  # fmt: skip
    assert list(combinations.refusals(method, written | {field: honest[field]})) == []


@pytest.mark.parametrize(("method", "width", "field", "honest", "wrong"), [
    ("PROMPT_TUNING", 64, "token_dim", 64, 32), ("P_TUNING", 64, "token_dim", 64, 65),
    ("PREFIX_TUNING", 256, "num_layers", 4, 5), ("CARTRIDGE", 256, "num_layers", 4, 3),
])  # fmt: skip
def test_sizes_that_a_prompt_writes_count_instead_of_the_bases(
    method: str, width: int, field: str, honest: int, wrong: int
) -> None:
    prompt = {"prompt_embeddings": (8, width)}
    assert codes(other(method, prompt, num_virtual_tokens=8, **{field: honest})) == set()
    assert codes(other(method, prompt, num_virtual_tokens=8, **{field: wrong})) == {"compat.shape"}


@pytest.mark.parametrize("method", ["PREFIX_TUNING", "CARTRIDGE"])
@pytest.mark.parametrize(("written", "outcome"), [
    (None, Outcome.PASS), (32, Outcome.PASS), (33, Outcome.UNKNOWN), ("32", Outcome.UNKNOWN), (32.0, Outcome.UNKNOWN),
])  # fmt: skip
def test_a_prefix_of_another_width_than_the_bases_is_left_to_peft(method: str, written: Any, outcome: Outcome) -> None:
    findings = other(method, {"prompt_embeddings": (8, 256)}, num_virtual_tokens=8, token_dim=written)
    assert add_up(findings) is outcome


SCHEDULE = {"init_r": 4, "tinit": 1, "tfinal": 1, "total_step": 10}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({}, ""),
        ({"rank_pattern": {"model.layers.0.self_attn.q_proj.lora_E": [True, False, True, True]}}, ""),
        ({"rank_pattern": {"q_proj": 3}}, "rank_pattern"),
        ({"rank_pattern": {"q_proj.lora_E": [True, False]}}, "rank_pattern"),
        ({"total_step": None}, "total_step"),
        ({"tinit": 9}, "tinit"),
        ({"tfinal": 9}, "tinit"),
        ({"loftq_config": {"loftq_bits": 4}}, "loftq_config"),
    ],
)
def test_the_schedule_and_the_masks_of_adalora_are_what_peft_takes(changes: dict[str, Any], field: str) -> None:
    written = {"peft_type": "ADALORA", "target_modules": ["q_proj"], **SCHEDULE, **changes}
    errors = [f.location for f in config.read_fields(written).findings if f.severity == "error"]
    assert errors == ([f"{samples.CONFIG}: {field}"] if field else [])


@pytest.mark.parametrize(
    "changes",
    [
        {"megatron_config": {"tensor_parallel": 2}}, {"arrow_config": {}}, {"arrow_config": {"top_k": 2}},
        {"lora_dropout": [0.1]}, {"lora_dropout": {"p": 0.1}}, {"kasa_config": 1}, {"corda_config": 1},
        {"eva_config": 0.5}, {"lora_ga_config": [4]}, {"monteclora_config": True},
        {"monteclora_config": {"no_such_field": 1}}, {"init_lora_weights": "corda"},
    ],
)  # fmt: skip
def test_a_value_of_a_kind_that_peft_refuses_fails(changes: dict[str, Any]) -> None:
    written = {"peft_type": "LORA", "target_modules": ["q_proj"], **changes}
    (error,) = [finding for finding in config.read_fields(written).findings if finding.severity == "error"]
    assert (error.code, error.location) == ("config.not_loadable", f"{samples.CONFIG}: {next(iter(changes))}")


def test_frod_without_sparse_entries_has_empty_tensors_and_others_have_none() -> None:
    empty = {"frod_lambda_l": (64,), "frod_lambda_s_values": (0,)}
    assert codes(other("FROD", empty, save_projection=False, sparse_rate=0.0)) == set()
    assert codes(other("FROD", empty, save_projection=False, sparse_rate=0.1)) == {"compat.shape"}
    lost = empty | {"frod_lambda_l": (0,)}
    assert codes(other("FROD", lost, save_projection=False, sparse_rate=0.0)) == {"compat.shape", "lora.tensor_empty"}


def test_a_missing_tensor_is_unknown_where_the_modules_of_the_base_are_only_assumed() -> None:
    assumed = base_spec(LLAMA).model_copy(update={"names_known": False})
    half = spec_of("LOHA", {"hada_w1_a": (64, 4), "hada_w1_b": (4, 64), "hada_w2_a": (64, 4)}, r=4)
    assert [(f.code, f.severity) for f in compat.check_fit(half, assumed)] == [("compat.tensor_missing", "unknown")]


def test_formulas_are_computed_once_for_modules_with_equal_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[str] = []

    def counted(formula: str, names: Mapping[str, Any]) -> Any:
        computed.append(formula)
        return formulas.evaluate(formula, names)

    monkeypatch.setattr(expected, "evaluate", counted)
    shapes = {"hada_w1_a": (64, 4), "hada_w1_b": (4, 64), "hada_w2_a": (64, 4), "hada_w2_b": (4, 64)}
    assert other("LOHA", shapes, r=4) == []
    assert len(computed) == 1 + 2 * len(shapes)  # `names_targets`; a condition and a shape of each, for four modules
