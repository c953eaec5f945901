"""Norms and cosines of updates, compared with the matrices multiplied out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from registry.client.local.adapter_folder import read_adapter
from registry.errors import Invalid
from registry.server.evaluation import norms as weight_norms
from registry.worker.merge import adapters
from registry.worker.model import updates
from tests import samples

PREFIX = "base_model.model."


def dense(folder: Path, scale: float) -> dict[str, torch.Tensor]:
    """scale * B @ A of each module of a forged adapter."""
    tensors = load_file(folder / samples.WEIGHTS)
    paths = [name[len(PREFIX) : -len(".lora_A.weight")] for name in tensors if name.endswith(".lora_A.weight")]
    halves = {p: (tensors[f"{PREFIX}{p}.lora_A.weight"], tensors[f"{PREFIX}{p}.lora_B.weight"]) for p in paths}
    return {path: scale * b.float() @ a.float() for path, (a, b) in halves.items()}


def adapter(folder: Path, seed: int, *, rank: int = 4, alpha: int = 8) -> Path:
    return samples.write(samples.lora(samples.llama(), seed=seed, rank=rank, alpha=alpha), folder)


def norms_of(folder: Path) -> dict[str, updates.UpdateNorms]:
    """The norms of every module's update."""
    return {update.path: update.norms() for update in updates.read_updates(folder)}


def test_norms_are_those_of_the_matrices_multiplied_out(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a", 1)
    expected = dense(folder, scale=2.0)
    norms = norms_of(folder)
    assert norms.keys() == expected.keys()
    for path, matrix in expected.items():
        assert norms[path].update == pytest.approx(float(matrix.norm()), rel=1e-4)
        assert norms[path].a > 0


def test_cosines_compare_adapters_of_different_rank_and_scale(tmp_path: Path) -> None:
    first, other = adapter(tmp_path / "a", 1), adapter(tmp_path / "b", 2, rank=8, alpha=4)
    first_deltas, right = dense(first, scale=2.0), dense(other, scale=0.5)
    for path, (cosine, ratio) in updates.compare(first, other).items():
        expected = torch.nn.functional.cosine_similarity(first_deltas[path].flatten(), right[path].flatten(), dim=0)
        assert cosine == pytest.approx(float(expected), abs=1e-4)
        assert ratio == pytest.approx(float(right[path].norm() / first_deltas[path].norm()), rel=1e-4)
    for cosine, ratio in updates.compare(first, first).values():
        assert [cosine, ratio] == pytest.approx([1.0, 1.0], abs=1e-5)


def test_an_update_of_zero_has_a_norm_of_zero_and_no_cosine(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a", 1)
    weights = load_file(folder / samples.WEIGHTS)
    save_file({n: t * 0 if "lora_B" in n else t for n, t in weights.items()}, folder / samples.WEIGHTS)
    assert {norms.update for norms in norms_of(folder).values()} == {0.0}
    assert set(updates.compare(folder, folder).values()) == {(None, None)}


def experts(folder: Path, seed: int) -> Path:
    """An adapter of one block of three experts as PEFT fuses them: ranks 4 and 2, scales 2 and 3."""
    torch.manual_seed(seed)
    at = f"{PREFIX}model.layers.0.mlp.experts"
    folder.mkdir()
    halves = {
        f"{at}.base_layer.lora_A.weight": torch.randn(3 * 4, 8),
        f"{at}.base_layer.lora_B.weight": torch.randn(10, 4 * 3),
        f"{at}.lora_A.weight": torch.randn(3 * 2, 5), f"{at}.lora_B.weight": torch.randn(8, 2 * 3),
    }  # fmt: skip
    save_file(halves, folder / samples.WEIGHTS)
    written = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["q_proj"],
               "target_parameters": ["gate_up_proj", "down_proj"], "rank_pattern": {".*\\.gate_up_proj": 4},
               "alpha_pattern": {".*\\.gate_up_proj": 8}}  # fmt: skip
    (folder / samples.CONFIG).write_text(json.dumps(written))
    return folder


def blocks(folder: Path) -> dict[str, torch.Tensor]:
    """What PEFT adds to each parameter of the block: [experts, out, in]."""
    tensors, at = load_file(folder / samples.WEIGHTS), f"{PREFIX}model.layers.0.mlp.experts"
    merged = {}
    for name, inner, rank, scale in (("gate_up_proj", ".base_layer", 4, 2.0), ("down_proj", "", 2, 3.0)):
        a, b = (tensors[f"{at}{inner}.lora_{half}.weight"] for half in "AB")
        a, b = a.reshape(3, rank, -1), b.reshape(len(b), rank, 3)
        merged[f"model.layers.0.mlp.experts.{name}"] = scale * torch.einsum("ore,eri->eoi", b, a)
    return merged


def test_a_block_of_experts_is_one_update_for_each_of_its_parameters(tmp_path: Path) -> None:
    first, other = experts(tmp_path / "a", 1), experts(tmp_path / "b", 2)
    first_blocks, right, norms = blocks(first), blocks(other), norms_of(first)
    assert norms.keys() == first_blocks.keys() == updates.compare(first, other).keys()
    for path, (value, _) in updates.compare(first, other).items():
        expected = torch.nn.functional.cosine_similarity(first_blocks[path].flatten(), right[path].flatten(), dim=0)
        assert value == pytest.approx(float(expected), abs=1e-4)
        assert norms[path].update == pytest.approx(float(first_blocks[path].norm()), rel=1e-4)


def test_a_push_measures_a_block_of_experts_as_a_worker_does(tmp_path: Path) -> None:
    folder = experts(tmp_path / "a", 1)
    contents, weights = read_adapter(folder).peft, (folder / samples.WEIGHTS).read_bytes()
    plan = weight_norms.MeasuringPlan.of(contents.header, contents.pairs)
    measured = plan.compute_norms(lambda at, n: weights[at : at + n])
    assert measured.keys() == norms_of(folder).keys()
    for path, norms in norms_of(folder).items():
        assert measured[path].update == pytest.approx(norms.update, rel=1e-3)
        assert measured[path].a == pytest.approx(norms.a, rel=1e-3)


def test_a_convolution_in_groups_has_no_norm_and_is_never_merged(tmp_path: Path) -> None:
    """PEFT's B has the ranks of one group, so B @ A is not the update; PEFT does not merge it either."""
    folder = adapter(tmp_path / "a", 1)
    tensors = load_file(folder / samples.WEIGHTS)
    in_groups = {n: t[:, ::4, None].clone() if "lora_B" in n else t[..., None].clone() for n, t in tensors.items()}
    save_file(in_groups, folder / samples.WEIGHTS)
    source = adapters.Adapter.open(folder)
    assert {module.groups for module in source.lora.modules} == {4}
    assert [*updates.read_updates(folder), *source.contents.pairs] == []
    with pytest.raises(Invalid, match="convolution in 4 groups"):
        source.factors(source.lora.modules[0])
