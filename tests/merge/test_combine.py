"""Combining, resizing and extracting, against dense arithmetic and against PEFT on a real tiny base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests import fixtures

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

from registry import compat
from registry.client.local.base_folder import base_spec_from
from registry.errors import Invalid
from registry.evaluation.verdicts import Outcome, add_up
from registry.jobs import RESULT_LIMIT_BYTES
from registry.merging.recipes import MergeOperation, Method, Recipe
from registry.worker.merge import combine as combining
from registry.worker.merge import process
from registry.worker.merge.adapters import Adapter
from registry.worker.merge.combine import combine, extract
from registry.worker.merge.lowrank import Loss
from registry.worker.merge.request import MergeRequest
from tests.worker import models

MIXED = [(0.7, "lora-r8-all"), (-0.4, "lora-rslora"), (1.5, "lora-rank-pattern"), (0.2, "lora-r4")]
"""Ranks 4, 8 and 16, rsLoRA, patterns, other sets of modules."""


def test_the_sum_of_adapters_of_every_scale_and_rank_is_exact(tmp_path: Path) -> None:
    expected = _sum(MIXED)
    for method in (Method.LINEAR, Method.CAT):
        report = _combine(MIXED, tmp_path / method, method=method)
        deltas = _deltas(Adapter.open(tmp_path / method))
        assert deltas.keys() == expected.keys()
        for path, delta in expected.items():
            assert float((deltas[path] - delta).norm() / delta.norm()) < 1e-5, path
        assert report.relative_error < 1e-5
    assert max(module.rank for module in report.modules) == 8 + 8 + 16 + 4


def test_the_result_acts_in_peft_as_the_sum_of_its_sources(tmp_path: Path) -> None:
    _combine(MIXED, tmp_path / "both")
    base = fixtures.tiny_bases() / "llama-a"
    lora = Adapter.open(tmp_path / "both").lora
    spec, _ = base_spec_from(base, "llama-a")
    assert add_up([*lora.findings, *compat.check_fit(lora, spec)]) is Outcome.PASS
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    merged = peft.PeftModel.from_pretrained(model, tmp_path / "both").double().merge_and_unload().state_dict()
    for path, delta in _sum(MIXED).items():
        moved = merged[f"{path}.weight"] - before[f"{path}.weight"]
        assert float((moved - delta).norm() / delta.norm()) < 1e-5, path


def test_svd_to_a_rank_errs_as_little_as_the_dense_one(tmp_path: Path) -> None:
    report = _combine(MIXED, tmp_path / "both", method=Method.SVD, rank=8)
    expected, deltas = _sum(MIXED), _deltas(Adapter.open(tmp_path / "both"))
    errors = {module.path: module.relative_error for module in report.modules}
    for path, delta in expected.items():
        values = torch.linalg.svdvals(delta)
        best = float(values[8:].norm() / values.norm())
        assert float((deltas[path] - delta).norm() / delta.norm()) == pytest.approx(best, abs=1e-4)
        assert errors[path] == pytest.approx(best, abs=1e-4)
    assert report.rank == 8
    assert report.energy_kept == pytest.approx(1 - report.relative_error**2)
    assert [m.relative_error for m in report.modules] == sorted(errors.values(), reverse=True)


def test_the_result_does_not_depend_on_the_number_of_threads(tmp_path: Path) -> None:
    before, results = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            _combine(MIXED, tmp_path / str(count), method=Method.SVD, rank=8)
            assert torch.get_num_threads() == count
            results.append((tmp_path / str(count) / "adapter_model.safetensors").read_bytes())
    finally:
        torch.set_num_threads(before)
    assert results[0] == results[1]


def test_the_averaged_factors_of_peft_are_another_update_than_the_sum() -> None:
    base = fixtures.tiny_bases() / "llama-a"
    model = peft.PeftModel.from_pretrained(
        transformers.AutoModelForCausalLM.from_pretrained(base), fixtures.good() / "lora-r8-all", adapter_name="a"
    )
    model.load_adapter(fixtures.good() / "lora-all-linear", adapter_name="b")
    model.add_weighted_adapter(["a", "b"], [0.7, 0.3], "both", combination_type="linear")
    module = model.base_model.model.model.layers[0].self_attn.q_proj
    a, b, both = (module.get_delta_weight(name) for name in ("a", "b", "both"))
    exact = 0.7 * a + 0.3 * b
    assert float((both - exact).norm() / exact.norm()) > 0.1


@pytest.mark.parametrize("method", [Method.TIES, Method.DARE_LINEAR, Method.DARE_TIES, Method.MAGNITUDE_PRUNE])
def test_pruning_methods_give_the_same_weights_again_and_say_how_far_from_the_sum(
    method: Method, tmp_path: Path
) -> None:
    parts = [(0.5, "lora-r8-all"), (0.5, "lora-rslora")]
    report = _combine(parts, tmp_path / "a", method=method, density=0.3, seed=5)
    _combine(parts, tmp_path / "b", method=method, density=0.3, seed=5)
    _combine(parts, tmp_path / "c", method=method, density=0.3, seed=6)

    weights = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in "abc"]
    assert weights[0] == weights[1]
    assert (weights[0] == weights[2]) == (method in (Method.TIES, Method.MAGNITUDE_PRUNE))
    assert report.error_to_sum > 0
    assert 0 < report.relative_error < 1
    assert report.rank == 8


def test_all_of_the_values_kept_is_the_sum_itself(tmp_path: Path) -> None:
    parts = [(0.6, "lora-r4"), (0.4, "lora-rslora")]
    expected = _sum(parts)
    for method in (Method.DARE_LINEAR, Method.MAGNITUDE_PRUNE):
        report = _combine(parts, tmp_path / method, method=method, rank=12)
        deltas = _deltas(Adapter.open(tmp_path / method))
        assert all(float((deltas[path] - delta).norm() / delta.norm()) < 1e-4 for path, delta in expected.items())
        assert report.error_to_sum < 1e-4


def test_blocks_of_experts_embeddings_and_conv1d_are_summed_too(tmp_path: Path) -> None:
    for name in ("lora-moe-target-parameters", "lora-moe-all-linear", "lora-gpt2"):
        folder = fixtures.good() / name
        report = _combine([(0.5, name), (0.25, name)], tmp_path / name, method=Method.LINEAR)
        merged, old = Adapter.open(tmp_path / name), Adapter.open(folder)
        assert report.relative_error < 1e-5
        for module in old.lora.modules:
            same = next(m for m in merged.lora.modules if (m.path, m.order) == (module.path, module.order))
            for factors, original in zip(merged.factors(same), old.factors(module), strict=True):
                assert float((factors.dense - 0.75 * original.dense).norm()) < 1e-4 * float(original.dense.norm())
        base = fixtures.manifest(fixtures.good())[name]["base"]
        spec, _ = base_spec_from(fixtures.tiny_bases() / base, base)
        assert add_up([*merged.lora.findings, *compat.check_fit(merged.lora, spec)]) is Outcome.PASS


def test_a_resized_adapter_says_what_it_lost(tmp_path: Path) -> None:
    order = MergeRequest(
        recipe=Recipe(operation=MergeOperation.RESIZE, sources=("x",), method=Method.SVD, rank=4),
        sources=(str(fixtures.good() / "lora-r8-all"),), out=str(tmp_path / "small"),
    )  # fmt: skip
    report = process.run(order)
    values = [torch.linalg.svdvals(delta) for delta in _sum([(1.0, "lora-r8-all")]).values()]
    lost = sum(float(v[4:].square().sum()) for v in values) / sum(float(v.square().sum()) for v in values)
    assert report.relative_error == pytest.approx(lost**0.5, abs=1e-4)
    config = json.loads((tmp_path / "small" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (4, 4, False)


def test_a_report_on_every_expert_of_a_large_model_fits_into_a_jobs_result() -> None:
    losses = [
        (f"model.layers.{layer}.mlp.experts.{expert}.{leaf}_proj", 16, Loss(1.0, expert / 1000), Loss(1.0, 0.0))
        for layer in range(48) for expert in range(128) for leaf in ("gate", "up", "down")
    ]  # fmt: skip
    report = combining.report(MergeOperation.COMBINE, "svd", losses)
    assert len(report.model_dump_json()) < RESULT_LIMIT_BYTES / 2
    assert {module.path.split(".")[5] for module in report.modules} == {str(expert) for expert in range(121, 128)}
    assert report.relative_error == pytest.approx((127 / 2 / 1000) ** 0.5)


def test_what_was_trained_fully_is_found_again_by_extraction(tmp_path: Path) -> None:
    bases = fixtures.tiny_bases()
    report = extract(bases / "llama-a-finetuned", bases / "llama-a", tmp_path / "exact", rank=64, base_name="llama-a")
    assert report.relative_error < 1e-5
    smaller = extract(bases / "llama-a-finetuned", bases / "llama-a", tmp_path / "eight", rank=8)
    assert 0 < smaller.relative_error < 1
    assert {module.path.rpartition(".")[2] for module in report.modules} == {"down_proj"}
    model = transformers.AutoModelForCausalLM.from_pretrained(bases / "llama-a")
    merged = peft.PeftModel.from_pretrained(model, tmp_path / "exact").merge_and_unload().state_dict()
    tuned = transformers.AutoModelForCausalLM.from_pretrained(bases / "llama-a-finetuned").state_dict()
    assert all(torch.allclose(merged[name], tuned[name], atol=1e-5) for name in tuned)


def test_extraction_names_what_a_lora_cannot_hold_and_refuses_unrelated_bases(tmp_path: Path) -> None:
    bases = fixtures.tiny_bases()
    report = extract(bases / "llama-b-other-weights", bases / "llama-a", tmp_path / "out", rank=4)
    assert "model.embed_tokens.weight" in report.notes[0]
    for tuned, base in (("llama-wide", "llama-a"), ("llama-a", "llama-a"), ("gpt2-conv1d", "llama-a")):
        with pytest.raises(Invalid) as refused:
            extract(bases / tuned, bases / base, tmp_path / "no", rank=4)
        assert refused.value.code == "RECIPE_INVALID"
    with pytest.raises(Invalid, match="is packed"):
        extract(bases / "llama-a-nf4", bases / "llama-a", tmp_path / "no", rank=4)


@pytest.mark.parametrize(
    ("names", "word"),
    [
        (("lora-r4", "lora-dora"), "DoRA"), (("lora-r4", "lora-modules-to-save"), "whole modules"),
        (("lora-r4", "lora-trainable-tokens"), "rows of the embedding"), (("lora-r4", "lora-lora-bias"), "biases"),
        (("lora-r4", "loha"), "LOHA"), (("lora-r4", "prompt-tuning"), "beside the weights"),
        (("lora-r4", "lora-pissa"), "initialization"), (("lora-r4", "lora-gpt2"), "different orders"),
        (("lora-r4", "lora-layer-replication"), "depth"),
    ],
)  # fmt: skip
def test_what_has_no_sum_is_refused_by_the_process_as_by_the_server(
    names: tuple[str, ...], word: str, tmp_path: Path
) -> None:
    recipe = Recipe(operation=MergeOperation.COMBINE, sources=names)
    folders = tuple(str(fixtures.good() / name) for name in names)
    with pytest.raises(Invalid) as refused:
        process.run(MergeRequest(recipe=recipe, sources=folders, out=str(tmp_path / "out")))
    assert refused.value.code == "RECIPE_INVALID"
    assert word in refused.value.detail
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "word"),
    [("alpha-zero", "alpha 0"), ("overwrites-lm-head", "would replace"), ("shape-transposed", "transposed"),
     ("keys-wrong-prefix", "begin with"), ("nowhere", "no folder")],
)  # fmt: skip
def test_a_folder_that_is_wrong_by_itself_is_no_source(name: str, word: str, tmp_path: Path) -> None:
    folders = (str(fixtures.bad() / name), str(fixtures.good() / "lora-r8-all"))
    recipe = Recipe(operation=MergeOperation.COMBINE, sources=("a", "b"))
    with pytest.raises(Invalid, match=word):
        process.run(MergeRequest(recipe=recipe, sources=folders, out=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_nan_in_a_source_stops_the_merge(tmp_path: Path) -> None:
    base = models.base(tmp_path / "base")
    good = models.adapter(base, tmp_path / "good")
    bad = models.adapter(base, tmp_path / "bad", change=models.with_nan)
    order = MergeRequest(
        recipe=Recipe(operation=MergeOperation.COMBINE, sources=("a", "b")), sources=(str(good), str(bad)),
        out=str(tmp_path / "out"),
    )  # fmt: skip
    with pytest.raises(Invalid) as refused:
        order.run()
    assert refused.value.code == "TENSORS_INVALID"
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------ the dense side
def _combine(parts: list[tuple[float, str]], out: Path, **how: Any) -> Any:
    recipe = Recipe(operation=MergeOperation.COMBINE, sources=tuple(name for _, name in parts), **how)
    return combine(recipe, [(weight, Adapter.open(fixtures.good() / name)) for weight, name in parts], out)


def _deltas(adapter: Adapter) -> dict[str, Any]:
    return {module.path: adapter.factors(module)[0].dense.double() for module in adapter.lora.modules}


def _sum(parts: list[tuple[float, str]]) -> dict[str, Any]:
    """The weighted sum of the updates that PEFT itself computes."""
    total: dict[str, Any] = {}
    for weight, name in parts:
        model = transformers.AutoModelForCausalLM.from_pretrained(fixtures.tiny_bases() / "llama-a")
        wrapped = peft.PeftModel.from_pretrained(model, fixtures.good() / name).double()
        for path, module in wrapped.base_model.model.named_modules():
            if hasattr(module, "get_delta_weight"):
                total[path] = total.get(path, 0) + weight * module.get_delta_weight("default").detach()
    return total
