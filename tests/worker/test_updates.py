"""Norms and cosines of updates, compared with the matrices multiplied out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from registry.worker import updates
from tests import forge

PREFIX = "base_model.model."


def dense(folder: Path, scale: float) -> dict[str, torch.Tensor]:
    """scale * B @ A of each module of a forged adapter."""
    found = load_file(folder / forge.WEIGHTS)
    paths = [name[len(PREFIX) : -len(".lora_A.weight")] for name in found if name.endswith(".lora_A.weight")]
    halves = {p: (found[f"{PREFIX}{p}.lora_A.weight"], found[f"{PREFIX}{p}.lora_B.weight"]) for p in paths}
    return {path: scale * b.float() @ a.float() for path, (a, b) in halves.items()}


def adapter(folder: Path, seed: int, *, rank: int = 4, alpha: int = 8) -> Path:
    return forge.write(forge.lora(forge.llama(), seed=seed, rank=rank, alpha=alpha), folder)


def test_norms_are_those_of_the_matrices_multiplied_out(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a", 1)
    expected = dense(folder, scale=2.0)
    found = updates.norms(folder)
    assert found.keys() == expected.keys()
    for path, matrix in expected.items():
        assert found[path].update == pytest.approx(float(matrix.norm()), rel=1e-4)
        assert found[path].a > 0


def test_cosines_compare_adapters_of_different_rank_and_scale(tmp_path: Path) -> None:
    one, other = adapter(tmp_path / "a", 1), adapter(tmp_path / "b", 2, rank=8, alpha=4)
    left, right = dense(one, scale=2.0), dense(other, scale=0.5)
    for path, value in updates.cosines(one, other).items():
        expected = torch.nn.functional.cosine_similarity(left[path].flatten(), right[path].flatten(), dim=0)
        assert value == pytest.approx(float(expected), abs=1e-4)
    assert all(value == pytest.approx(1.0, abs=1e-5) for value in updates.cosines(one, one).values())


def test_an_update_of_zero_has_a_norm_of_zero_and_no_cosine(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a", 1)
    weights = load_file(folder / forge.WEIGHTS)
    save_file({n: t * 0 if "lora_B" in n else t for n, t in weights.items()}, folder / forge.WEIGHTS)
    assert {norms.update for norms in updates.norms(folder).values()} == {0.0}
    assert set(updates.cosines(folder, folder).values()) == {None}
