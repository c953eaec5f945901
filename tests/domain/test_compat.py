"""Does an adapter fit a base: the pairs that do, the pairs that do not, and what cannot be told."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest

from registry import compat
from registry.adapters import formats
from registry.adapters.formats.facts import FileFacts, FileModule
from registry.bases import BaseSpec
from registry.bases.modules import ModuleShape
from registry.compat.files import check_file
from registry.evaluation.verdicts import Outcome, add_up
from registry.findings import Finding
from tests import samples
from tests.domain.specs import base_spec, evaluate, lora_spec

LLAMA = samples.llama()
LLAMA_SPEC = base_spec(LLAMA)
LAYER = "model.layers.0.self_attn"


def codes(findings: list[Finding], severity: str = "error") -> set[str]:
    return {f.code for f in findings if f.severity == severity}


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"targets": samples.ALL_LINEAR, "rank": 16},
        {"targets": samples.ALL_LINEAR, "dora": True},
        {"rslora": True},
        {"targets": ["lm_head", "q_proj"]},
        {"config": {"target_modules": r".*self_attn\.(q|v)_proj"}},
        {"config": {"target_modules": r"^(?!.*(?:visual|lm_head)).*(?:q_proj|v_proj).*"}},
        {"config": {"target_modules": r"^(model(?=\.).*\.(q_proj|v_proj))$"}},
        {"targets": samples.ALL_LINEAR, "config": {"target_modules": "all-linear"}},
        {"targets": samples.ALL_LINEAR, "config": {"lora_dropout": 0.1, "init_lora_weights": "gaussian"}},
    ],
)
def test_an_adapter_fits_the_base_it_was_made_for(how: dict[str, Any]) -> None:
    assert evaluate(samples.lora(LLAMA, **how), LLAMA) == []


def test_gpt2_takes_its_adapter_with_a_and_b_the_ordinary_way() -> None:
    for base in (samples.gpt2(), samples.gpt2(prefix=False)):
        assert evaluate(samples.lora(base, targets=["c_attn", "c_proj", "c_fc"]), base) == []


@pytest.mark.parametrize(
    ("base", "code"),
    [
        (samples.llama("tiny-llama", hidden=96), "compat.shape"),
        (samples.llama("tiny-llama", layers=6), "compat.module_missing"),
        (samples.llama("tiny-llama", layers=2), "compat.module_unknown"),
        (samples.llama("tiny-llama", kv_heads=4), "compat.shape"),
        (samples.gpt2("tiny-llama"), "compat.module_unknown"),
    ],
)
def test_an_adapter_does_not_fit_a_base_of_another_shape(base: samples.Base, code: str) -> None:
    findings = evaluate(samples.lora(LLAMA), base)
    assert add_up(findings) is Outcome.FAIL
    assert code in codes(findings)


def test_a_finding_names_the_tensor_and_both_shapes() -> None:
    finding = evaluate(samples.lora(LLAMA), samples.llama("tiny-llama", hidden=96))[0]
    assert finding.location == "model.layers.0.self_attn.q_proj.lora_A"
    assert (finding.expected, finding.actual) == ("[8, 96]", "[8, 64]")
    assert "and 3 more like it" in finding.message


def test_a_missing_layer_says_which_layers_the_base_has() -> None:
    findings = evaluate(samples.lora(LLAMA), samples.llama("tiny-llama", layers=2))
    assert any("its layers are 0 to 1" in f.message for f in findings)


def test_the_same_shape_under_another_name_is_a_warning() -> None:
    findings = evaluate(samples.lora(LLAMA), samples.llama("somebody/other"))
    assert [(f.code, f.severity) for f in findings] == [("compat.base_named_differently", "warning")]


def test_a_fused_projection_never_takes_separate_ones() -> None:
    shapes = {"model.embed_tokens.weight": ("F32", (512, 64), None), "lm_head.weight": ("F32", (512, 64), None)}
    shapes |= {f"model.layers.{n}.self_attn.qkv_proj.weight": ("F32", (128, 64), None) for n in range(4)}
    fused = samples.Base("tiny-llama", LLAMA.config, {**LLAMA.files, "model.safetensors": samples.safetensors(shapes)})
    findings = evaluate(samples.lora(LLAMA), fused)
    assert any("it has the fused qkv_proj in its place" in f.message for f in findings)
    assert add_up(findings) is Outcome.FAIL


def test_a_packed_base_without_shapes_is_unknown_and_never_a_pass() -> None:
    spec = base_spec(LLAMA)
    hidden = {p: m.model_copy(update={"is_known": False, "in_features": 0, "out_features": 0})
              for p, m in spec.modules.items()}  # fmt: skip
    packed = spec.model_copy(update={"modules": hidden, "quantization": "bitsandbytes"})
    findings = compat.check_fit(lora_spec(samples.lora(LLAMA)), packed)
    assert add_up(findings) is Outcome.UNKNOWN
    assert codes(findings, "unknown") == {"compat.shape_unknown"}


def test_where_names_are_only_assumed_a_missing_module_is_unknown() -> None:
    unfamiliar: BaseSpec = base_spec(samples.llama("tiny-llama", layers=2)).model_copy(update={"names_known": False})
    findings = compat.check_fit(lora_spec(samples.lora(LLAMA)), unfamiliar)
    assert add_up(findings) is Outcome.UNKNOWN
    elsewhere = {"target_modules": r"model\.language_model\..*_proj", "modules_to_save": ["lm_head"]}
    renamed = {
        f"base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_{half}.weight": ("F32", shape, None)
        for half, shape in (("A", (8, 64)), ("B", (64, 8)))
    }
    findings = compat.check_fit(lora_spec(samples.lora(LLAMA, config=elsewhere, change=lambda _: renamed)), unfamiliar)
    assert add_up(findings) is Outcome.UNKNOWN


def test_where_names_are_only_assumed_other_kinds_and_shapes_are_unknown_too() -> None:
    spec = base_spec(LLAMA)
    modules = spec.modules | {path: module.model_copy(update={"kind": "embedding", "out_features": 9})
                              for path, module in spec.modules.items() if path.endswith("q_proj")}  # fmt: skip
    for names_known, outcome in ((True, Outcome.FAIL), (False, Outcome.UNKNOWN)):
        other = spec.model_copy(update={"modules": modules, "names_known": names_known})
        assert add_up(compat.check_fit(lora_spec(samples.lora(LLAMA)), other)) is outcome


@pytest.mark.parametrize(("path", "width"), [(f"{LAYER}.q_proj", 96), (f"{LAYER}.query", 64)])
def test_where_names_are_only_assumed_a_file_of_another_tool_is_unknown_too(path: str, width: int) -> None:
    module = FileModule(path=path, rank=8, alpha=8, in_features=width, out_features=64)
    facts = FileFacts(format=formats.MLX, method="lora", modules=(module,))
    for names_known, outcome in ((True, Outcome.FAIL), (False, Outcome.UNKNOWN)):
        base = base_spec(LLAMA).model_copy(update={"names_known": names_known})
        assert add_up(check_file(facts, base)) is outcome


@pytest.mark.parametrize(
    ("alphas", "outcome"), [((8, -8), Outcome.WARN), ((8, 0), Outcome.WARN), ((0, 0), Outcome.FAIL)]
)
def test_a_file_of_another_tool_fails_by_its_alphas_only_where_nothing_acts(
    alphas: tuple[int, int], outcome: Outcome
) -> None:
    modules = tuple(
        FileModule(path=f"{LAYER}.{name}_proj", rank=8, alpha=alpha, in_features=64, out_features=64)
        for name, alpha in zip("qo", alphas, strict=True)
    )
    findings = check_file(FileFacts(format=formats.MLX, method="lora", modules=modules), LLAMA_SPEC)
    assert (add_up(findings), {f.code for f in findings}) == (outcome, {"lora.alpha_not_positive"})


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"init_lora_weights": "pissa_niter_4"}, "compat.base_was_changed"),
        ({"init_lora_weights": "olora"}, "compat.base_was_changed"),
        ({"use_qalora": True}, "compat.semantics"),
    ],
)
def test_what_needs_care_is_a_warning(fields: dict[str, Any], code: str) -> None:
    findings = evaluate(samples.lora(LLAMA, config=fields), LLAMA)
    assert add_up(findings) is Outcome.WARN
    assert code in codes(findings, "warning")


def test_without_targets_headers_do_not_show_which_modules_peft_takes() -> None:
    findings = evaluate(samples.lora(LLAMA, config={"target_modules": None}), LLAMA)
    assert add_up(findings) is Outcome.UNKNOWN
    assert codes(findings, "unknown") == {"compat.targets_absent"}


def test_replicated_layers_are_checked_against_the_layers_they_copy() -> None:
    six = samples.lora(samples.llama("tiny-llama", layers=6), config={"layer_replication": [[0, 3], [1, 4]]})
    findings = evaluate(six, LLAMA)
    assert [f.code for f in findings] == ["compat.changes_depth"]
    assert add_up(evaluate(samples.lora(LLAMA, config={"layer_replication": [[0, 3], [1, 4]]}), LLAMA)) is Outcome.FAIL
    beyond = evaluate(samples.lora(LLAMA, config={"layer_replication": [[0, 99]]}), LLAMA)
    assert "compat.module_unknown" in codes(beyond, "error")


def test_replacing_one_end_of_a_tied_pair_is_a_warning() -> None:
    base = samples.llama("tiny-tied", tied=True)
    findings = evaluate(
        samples.lora(
            base, config={"modules_to_save": ["lm_head"]},
            change=lambda t: {**t, "base_model.model.lm_head.weight": ("F32", (512, 64), None)},
        ),
        base,
    )  # fmt: skip
    assert [f.code for f in findings] == ["compat.embeddings_untied"]


def saving(names: list[str], shapes: Mapping[str, samples.Shape], *, task: str = "CAUSAL_LM") -> list[Finding]:
    """Evaluate a LoRA that announces these saved modules and holds these whole tensors."""
    whole = {f"base_model.model.{name}": ("F32", shape, None) for name, shape in shapes.items()}
    files = samples.lora(LLAMA, config={"modules_to_save": names, "task_type": task}, change=lambda t: {**t, **whole})
    return evaluate(files, LLAMA)


def test_the_heads_that_peft_names_for_every_classifier_are_one_head() -> None:
    for task in ("SEQ_CLS", "TOKEN_CLS"):
        assert codes(saving(["classifier", "score"], {"score.weight": (2, 64)}, task=task)) == set()
    assert codes(saving(["classifier", "score"], {}, task="SEQ_CLS")) == {"compat.saved_module_absent"}


def test_a_head_under_another_name_does_not_stand_for_the_one_that_the_base_has() -> None:
    head = base_spec(LLAMA).modules["lm_head"]
    base = LLAMA_SPEC.model_copy(update={
        "modules": {**LLAMA_SPEC.modules, "classifier": head}, "architecture": "LlamaForSequenceClassification",
    })  # fmt: skip
    config = {"modules_to_save": ["classifier", "score"], "task_type": "SEQ_CLS"}
    shape = (head.out_features, head.in_features)
    for name, expected in (("score", {"compat.saved_module_absent"}), ("classifier", set())):
        whole: dict[str, samples.Tensor] = {f"base_model.model.{name}.weight": ("F32", shape, None)}
        files = samples.lora(LLAMA, config=config, change=whole.__ror__)
        assert codes(compat.check_fit(lora_spec(files), base)) == expected


@pytest.mark.parametrize(
    ("bias", "absent", "missed"),
    [("all", "", False), ("all", "ln_f", True), ("all", "c_attn", True), ("lora_only", "c_attn", True),
     ("lora_only", "ln_f", False), ("none", "c_attn", False)],
)  # fmt: skip
def test_a_trained_bias_that_the_file_lacks_is_for_the_worker_to_evaluate(bias: str, absent: str, missed: bool) -> None:
    base = samples.gpt2(layers=1)
    biases: dict[str, samples.Tensor] = {
        f"base_model.model.{path}{'.base_layer' * path.endswith('c_attn')}.bias": ("F32", (module.out_features,), None)
        for path, module in base_spec(base).modules.items()
        if module.bias and (bias == "all" or (bias == "lora_only" and path.endswith("c_attn")))
        if not (absent and path.endswith(absent))
    }
    files = samples.lora(base, targets=["c_attn"], config={"bias": bias}, change=lambda t: {**t, **biases})
    assert ("compat.tensor_missing" in codes(evaluate(files, base), "unknown")) is missed


def test_a_task_model_whose_head_peft_does_not_know_saves_none() -> None:
    adapter = lora_spec(samples.lora(LLAMA, config={"modules_to_save": ["qa_outputs"], "task_type": "QUESTION_ANS"}))
    for architecture, is_missing in (("LlamaForCausalLM", True), ("SplinterForQuestionAnswering", False)):
        base = base_spec(LLAMA).model_copy(update={"architecture": architecture})
        assert ("compat.saved_module_absent" in codes(compat.check_fit(adapter, base))) is is_missing


@pytest.mark.parametrize(("architecture", "task", "is_refused"), [
    ("BertForSequenceClassification", "CAUSAL_LM", True), ("LlamaForTokenClassification", "SEQ_2_SEQ_LM", True),
    ("BertForMaskedLM", "CAUSAL_LM", True), ("MistralModel", "CAUSAL_LM", True),
    ("BertForSequenceClassification", "SEQ_CLS", False), ("MistralModel", "FEATURE_EXTRACTION", False),
    ("GPT2LMHeadModel", "CAUSAL_LM", False), ("EncoderDecoderModel", "SEQ_2_SEQ_LM", False),
    ("BlipForQuestionAnswering", "CAUSAL_LM", False), ("", "CAUSAL_LM", False),
])  # fmt: skip
def test_an_adapter_that_generates_text_needs_a_base_that_does(architecture: str, task: str, is_refused: bool) -> None:
    adapter = lora_spec(samples.lora(LLAMA, config={"task_type": task}))
    base = base_spec(LLAMA).model_copy(update={"architecture": architecture})
    assert codes(compat.check_fit(adapter, base)) == ({"compat.other_task"} if is_refused else set())
    assumed = compat.check_fit(adapter, base.model_copy(update={"names_known": False}))
    assert codes(assumed, "unknown") == ({"compat.other_task"} if is_refused else set())


@pytest.mark.parametrize(("architecture", "task", "head", "is_refused"), [
    ("LlamaForCausalLM", "SEQ_CLS", "", True), ("BertForMaskedLM", "TOKEN_CLS", "", True),
    ("BartForConditionalGeneration", "QUESTION_ANS", "", True), ("LlamaForCausalLM", "SEQ_CLS", "score", False),
    ("LlamaForSequenceClassification", "SEQ_CLS", "", False), ("LlamaForCausalLM", "FEATURE_EXTRACTION", "", False),
    ("XLNetForQuestionAnsweringSimple", "QUESTION_ANS", "", False), ("", "SEQ_CLS", "", False),
    ("LlamaForCausalLM", "", "", False),
])  # fmt: skip
def test_a_classifier_needs_a_head_in_its_file_or_in_the_base(
    architecture: str, task: str, head: str, is_refused: bool
) -> None:
    whole: dict[str, samples.Tensor] = {f"base_model.model.{head}.weight": ("F32", (2, 64), None)} if head else {}
    config = {"task_type": task or None, "modules_to_save": [head] if head else None}
    adapter = lora_spec(samples.lora(LLAMA, config=config, change=whole.__ror__))
    base = base_spec(LLAMA).model_copy(update={"architecture": architecture})
    assert codes(compat.check_fit(adapter, base)) == ({"compat.other_task"} if is_refused else set())


def test_a_saved_name_means_every_module_that_ends_in_it() -> None:
    norms = {f"model.layers.{n}.{name}.weight": (64,) for n in range(4)
             for name in ("input_layernorm", "post_attention_layernorm")}  # fmt: skip
    assert codes(saving(["norm"], {**norms, "model.norm.weight": (64,)})) == set()
    assert codes(saving(["embed"], norms)) == {"compat.overwrites_base"}


def test_a_saved_name_that_the_base_does_not_know_is_no_matter_and_one_that_it_knows_is_missed() -> None:
    assert [f.code for f in saving(["wte"], {})] == ["compat.saved_module_absent"]
    assert codes(saving(["wte"], {})) == set()
    assert codes(saving(["lm_head"], {})) == {"compat.saved_module_absent"}


def test_trained_tokens_of_an_older_architecture_are_rows_of_its_own_table() -> None:
    base = samples.gpt2()
    rows = {"base_model.model.transformer.wte.token_adapter.trainable_tokens_delta": ("F32", (2, 64), None)}
    files = samples.lora(
        base, targets=["c_attn"], config={"trainable_token_indices": [3, 4]}, change=lambda t: {**t, **rows}
    )
    assert codes(evaluate(files, base)) == set()


@pytest.mark.parametrize(("width", "expected"), [(256, set()), (LLAMA_SPEC.hidden, {"compat.shape"})])
def test_trained_tokens_are_as_wide_as_their_own_embedding(width: int, expected: set[str]) -> None:
    wide = LLAMA_SPEC.modules["model.embed_tokens"].model_copy(update={"out_features": 256})
    base = LLAMA_SPEC.model_copy(update={"modules": {**LLAMA_SPEC.modules, "model.embed_tokens": wide}})
    rows: samples.Tensor = ("F32", (2, width), None)
    name = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"
    files = samples.lora(LLAMA, config={"trainable_token_indices": [3, 4]}, change=lambda t: {**t, name: rows})
    assert codes(compat.check_fit(lora_spec(files), base)) == expected


@pytest.mark.parametrize(
    ("names", "tied", "expected"),
    [
        (["lm_head"], True, {"compat.tokens_absent"}), (["embed_tokens", "lm_head"], True, set()),
        (["embed_tokens", "lm_head"], False, {"compat.tokens_absent"}), (["embed_tokens"], True, set()),
    ],
)  # fmt: skip
def test_each_module_whose_tokens_are_declared_has_its_rows(names: list[str], tied: bool, expected: set[str]) -> None:
    base = LLAMA_SPEC.model_copy(update={"tied": tied})
    name = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"
    rows: samples.Tensor = ("F32", (2, base.hidden), None)
    declared = {"trainable_token_indices": {module: [3, 4] for module in names}}
    files = samples.lora(LLAMA, config=declared, change=lambda t: {**t, name: rows})
    assert codes(compat.check_fit(lora_spec(files), base)) == expected


@pytest.mark.parametrize(("path", "outcome"), [("self_attn", Outcome.UNKNOWN), ("no_such_part", Outcome.FAIL)])
def test_a_bias_of_a_part_that_holds_modules_is_unknown(path: str, outcome: Outcome) -> None:
    bias: samples.Tensor = ("F32", (64,), None)
    name = f"base_model.model.model.layers.0.{path}.bias"
    files = samples.lora(LLAMA, config={"bias": "all"}, change=lambda t: {**t, name: bias})
    assert add_up(evaluate(files, LLAMA)) is outcome


@pytest.mark.parametrize(("groups", "kernel", "of_update", "divided_by", "expected"), [
    (1, (3,), (3,), 1, set()), (1, (3, 3), (3, 3), 1, set()), (4, (3, 3), (3, 3), 4, set()),
    (0, (3, 3), (3, 3), 1, {"compat.shape_unknown"}), (0, (), (3, 3), 4, {"compat.shape_unknown"}),
    (1, (3, 3), (5, 5), 1, {"compat.shape"}), (0, (3, 3), (3, 1), 1, {"compat.shape", "compat.shape_unknown"}),
    (1, (3, 3), (3, 3), 2, {"compat.shape"}), (3, (3,), (3,), 1, {"compat.shape"}),
    (1, (3, 3), (), 1, {"compat.kind"}), (None, (), (3, 3), 1, {"compat.kind"}),
    (1, (2,) * 4, (2,) * 4, 1, {"lora.shape_invalid"}),
])  # fmt: skip
def test_updates_of_convolutions_have_the_kernels_and_groups_of_the_base(
    groups: int | None, kernel: tuple[int, ...], of_update: tuple[int, ...], divided_by: int, expected: set[str]
) -> None:
    """`groups` None: the base has linear modules there."""

    def convolved(tensors: dict[str, samples.Tensor]) -> dict[str, samples.Tensor]:
        return {
            name: (dtype, (rows, columns // divided_by, *(1,) * len(of_update)) if "lora_B" in name else
                   (rows, columns, *of_update), None)
            for name, (dtype, (rows, columns), _) in tensors.items()
        }  # fmt: skip

    modules = {
        path: module if module.kind != "linear" or groups is None else module.model_copy(update={
            "kind": "conv", "kernel": kernel, "groups": groups, "in_features": module.in_features // (
                groups or divided_by)})
        for path, module in LLAMA_SPEC.modules.items()
    }  # fmt: skip
    base = LLAMA_SPEC.model_copy(update={"modules": modules})
    findings = compat.check_fit(lora_spec(samples.lora(LLAMA, change=convolved)), base)
    assert codes(findings) | codes(findings, "unknown") == expected


@pytest.mark.parametrize(("shape", "expected"), [((4, 16), set()), ((4,), set()), ((16,), {"compat.shape"})])
def test_the_bias_of_a_norm_for_each_head_has_the_shape_of_its_weight(shape: samples.Shape, expected: set[str]) -> None:
    path = "model.layers.0.self_attn.k_norm"
    norm = LLAMA_SPEC.modules["model.norm"].model_copy(
        update={"kind": "other", "in_features": 16, "out_features": 4, "bias": True}
    )
    bias: dict[str, samples.Tensor] = {f"base_model.model.{path}.bias": ("F32", shape, None)}
    base = LLAMA_SPEC.model_copy(update={"modules": {**LLAMA_SPEC.modules, path: norm}})
    files = samples.lora(LLAMA, config={"bias": "all"}, change=bias.__ror__)
    assert codes(compat.check_fit(lora_spec(files), base)) == expected


def test_block_diagonal_factors_are_not_checked() -> None:
    halved = {f"base_model.model.model.layers.{n}.self_attn.v_proj.lora_B.weight": ("F32", (32, 4), None)
              for n in range(4)}  # fmt: skip
    files = samples.lora(
        LLAMA, config={"use_bdlora": {"nblocks": 2, "target_modules_bd_b": ["v_proj"]}},
        change=lambda t: {**t, **halved},
    )  # fmt: skip
    assert (add_up(evaluate(files, LLAMA)), codes(evaluate(files, LLAMA))) == (Outcome.UNKNOWN, set())


def test_a_module_named_by_its_whole_path_is_a_target_in_no_layer_and_patterns_have_no_layers() -> None:
    only = [path for path in LLAMA.linears if ".layers.1.self_attn.q_proj" in path or path == "lm_head"]
    fields = {"target_modules": ["q_proj", "lm_head"], "layers_to_transform": [1]}
    assert evaluate(samples.lora(LLAMA, targets=only, config=fields), LLAMA) == []
    fields = {"target_modules": r".*\.1\..*q_proj", "layers_to_transform": [1]}
    assert codes(evaluate(samples.lora(LLAMA, targets=only[:1], config=fields), LLAMA)) == {"config.not_loadable"}


def test_targets_that_no_adapter_can_have_are_missed_and_so_are_biases_that_are_announced() -> None:
    norms = evaluate(samples.lora(LLAMA, config={"target_modules": ["q_proj", "v_proj", "input_layernorm"]}), LLAMA)
    assert codes(norms) == {"compat.module_missing"}
    assert codes(evaluate(samples.lora(LLAMA, config={"lora_bias": True}), LLAMA)) == {"lora.bias_absent"}


def test_a_fault_of_every_layer_is_reported_once_per_module_type() -> None:
    findings = evaluate(samples.lora(LLAMA, config={"r": 4}), LLAMA)
    assert [f.message.partition(" (and")[2] for f in findings] == [" 3 more like it)"] * 2


def test_a_second_tensor_for_one_place_is_a_fault() -> None:
    extra = "base_model.model.model.layers.0.self_attn.q_proj.lora_embedding_A"
    files = samples.lora(LLAMA, change=lambda t: {**t, extra: ("F32", (8, 64), None)})
    assert codes(evaluate(files, LLAMA)) == {"lora.tensor_unknown"}


@pytest.mark.security
def test_patterns_that_are_slow_on_many_modules_fail() -> None:
    lora = lora_spec(samples.lora(LLAMA, config={"rank_pattern": {f".*q.*r.*s{n}": 8 for n in range(15)}}))
    spec = base_spec(LLAMA)
    shape = next(iter(spec.modules.values()))
    large = spec.model_copy(update={"modules": {**spec.modules, **{f"model.layers.{n}.x": shape for n in range(1100)}}})
    assert "compat.patterns_slow" not in codes(compat.check_fit(lora, spec))
    assert "compat.patterns_slow" in codes(compat.check_fit(lora, large))


@pytest.mark.security
@pytest.mark.parametrize(("keys", "is_slow"), [(compat.MATCHER_CACHE, False), (compat.MATCHER_CACHE + 1, True)])
def test_keys_that_are_compiled_again_for_every_module_fail(keys: int, is_slow: bool) -> None:
    """PEFT looks for the first key that matches, and `re` forgets the first ones before the last are compiled."""
    assert compat.MATCHER_CACHE == re._MAXCACHE  # type: ignore[attr-defined]
    patterns = {"rank_pattern": {f"layers.{n}.q": 8 for n in range(keys - 1)}, "alpha_pattern": {"layers.0.q": 8}}
    lora = lora_spec(samples.lora(LLAMA, config=patterns))
    spec = base_spec(LLAMA)
    shape = next(iter(spec.modules.values()))
    modules = {f"model.layers.{n}.x": shape for n in range(compat.COMPILATIONS_LIMIT // compat.MATCHER_CACHE)}
    large = spec.model_copy(update={"modules": {**spec.modules, **modules}})
    assert "compat.patterns_slow" not in codes(compat.check_fit(lora, spec))
    assert ("compat.patterns_slow" in codes(compat.check_fit(lora, large))) is is_slow


def test_a_rank_over_the_width_of_a_module_is_a_warning() -> None:
    assert codes(evaluate(samples.lora(LLAMA, rank=64), LLAMA), "warning") == {"compat.rank_over_width"}


@pytest.mark.parametrize(("kernel", "expected"), [((3, 3), set()), ((1, 1), {"compat.rank_over_width"})])
def test_the_width_of_a_convolution_counts_its_kernel(kernel: tuple[int, ...], expected: set[str]) -> None:
    """As of the first one of an image model, with 4 channels."""
    conv = ModuleShape(kind="conv", in_features=4, out_features=64, kernel=kernel, groups=1)
    base = LLAMA_SPEC.model_copy(update={"modules": {"conv_in": conv}})
    tensors: dict[str, samples.Tensor] = {
        "base_model.model.conv_in.lora_A.weight": ("F32", (8, 4, *kernel), None),
        "base_model.model.conv_in.lora_B.weight": ("F32", (64, 8, 1, 1), None),
    }
    files = samples.lora(LLAMA, rank=8, config={"target_modules": ["conv_in"]}, change=lambda _: tensors)
    findings = compat.check_fit(lora_spec(files), base)
    assert (codes(findings), codes(findings, "warning")) == (set(), expected)


def test_a_field_that_peft_ignores_is_a_warning() -> None:
    findings = evaluate(
        samples.lora(LLAMA, config={"runtime_config": {}, "peft_version": "0.18.1.dev0@UNKNOWN"}), LLAMA
    )
    assert [(f.severity, f.code) for f in findings] == [("warning", "config.field_ignored")]


def test_a_saved_module_needs_each_of_its_tensors_in_every_layer() -> None:
    norms = {f"model.layers.{n}.input_layernorm.weight": (64,) for n in range(4)}
    assert codes(saving(["input_layernorm"], norms)) == set()
    del norms["model.layers.2.input_layernorm.weight"]
    findings = [f for f in saving(["input_layernorm"], norms) if f.severity == "error"]
    assert [(f.code, f.location) for f in findings] == [
        ("compat.saved_module_absent", "model.layers.2.input_layernorm.weight")
    ]


@pytest.mark.parametrize(("groups", "kernel", "weight", "bias", "is_refused"), [
    (1, (3, 3), (64, 16, 3, 3), (64,), False), (1, (3, 3), (64, 16, 5, 5), (64,), True),
    (1, (3, 3), (64, 144), (64,), True), (2, (3,), (64, 16, 3), (64,), False), (2, (3,), (64, 32, 3), (64,), True),
    (2, (3,), (64, 16, 3), (16,), True), (0, (3,), (64, 16, 3), (16,), False), (0, (), (64, 16, 9), (16,), False),
])  # fmt: skip
def test_a_saved_convolution_has_the_channels_and_the_kernel_of_the_base(
    groups: int, kernel: samples.Shape, weight: samples.Shape, bias: samples.Shape, is_refused: bool
) -> None:
    """Without groups it may be transposed, whose bias has other sizes; without a kernel the record is an older one."""
    conv = ModuleShape(kind="conv", in_features=16, out_features=64, bias=True, kernel=kernel, groups=groups)
    base = LLAMA_SPEC.model_copy(update={"modules": {**LLAMA_SPEC.modules, "patches": conv}})
    whole: dict[str, samples.Tensor] = {
        f"base_model.model.patches.{name}": ("F32", shape, None) for name, shape in (("weight", weight), ("bias", bias))
    }
    files = samples.lora(LLAMA, config={"modules_to_save": ["patches"]}, change=whole.__ror__)
    assert codes(compat.check_fit(lora_spec(files), base)) == ({"compat.shape"} if is_refused else set())


def test_a_saved_module_needs_its_bias() -> None:
    base = samples.gpt2()
    weight = {"base_model.model.transformer.ln_f.weight": ("F32", (64,), None)}
    bias = {"base_model.model.transformer.ln_f.bias": ("F32", (64,), None)}
    config = {"modules_to_save": ["ln_f"]}
    half = samples.lora(base, targets=["c_attn"], config=config, change=lambda t: {**t, **weight})
    whole = samples.lora(base, targets=["c_attn"], config=config, change=lambda t: {**t, **weight, **bias})
    assert codes(evaluate(whole, base)) == set()
    assert codes(evaluate(half, base)) == {"compat.saved_module_absent"}
