"""The tensors of one module by themselves: which of them make an update, and what is wrong with those that do not."""

from __future__ import annotations

import pytest

from registry.adapters.formats.facts import fault_of_factors
from registry.adapters.safetensors import TensorInfo

LOHA = {"hada_w1_a": (32, 4), "hada_w1_b": (4, 16), "hada_w2_a": (32, 4), "hada_w2_b": (4, 16), "alpha": ()}
LOKR = {"lokr_w1": (8, 8), "lokr_w2_a": (4, 2), "lokr_w2_b": (2, 4), "alpha": ()}


def tensors(shapes: dict[str, tuple[int, ...]], **types: str) -> dict[str, TensorInfo]:
    return {half: TensorInfo(half, types.get(half, "F32"), shape, 0, 0) for half, shape in shapes.items()}


@pytest.mark.parametrize(
    "shapes",
    [
        {"lora_down.weight": (4, 32), "lora_up.weight": (16, 4), "alpha": ()},
        {"lora_down.weight": (4, 32, 3, 3), "lora_mid.weight": (4, 4, 3, 3), "lora_up.weight": (16, 4, 1, 1)},
        {"lora_A.weight": (4, 32), "lora_B.weight": (16, 4), "lora_B.bias": (16,)},
        LOHA,
        LOKR,
        {"lokr_w1": (8, 8), "lokr_w2": (4, 4)},
        {"lokr_w1": (8, 8), "lokr_t2": (4, 4, 3, 3), "lokr_w2_a": (4, 4), "lokr_w2_b": (4, 8)},
        {"hada_t1": (4, 4, 3, 3), "hada_w1_a": (4, 32), "hada_w1_b": (4, 16),
         "hada_t2": (4, 4, 3, 3), "hada_w2_a": (4, 32), "hada_w2_b": (4, 16)},
        {"diff": (16, 32)},
        {"oft_blocks": (4, 8, 8), "alpha": ()},
    ],
)  # fmt: skip
def test_what_makes_an_update_has_no_fault(shapes: dict[str, tuple[int, ...]]) -> None:
    assert fault_of_factors(tensors(shapes, alpha="I64")) == ""


@pytest.mark.parametrize(
    ("factors", "words"),
    [
        (tensors({"lora_down.weight": (4, 32), "lora_up.weight": (16, 8)}), "ranks 4 and 8"),
        (tensors({"lora_A.weight": (4, 32), "lora_B.weight": (4, 16)}), "ranks 4 and 16"),
        (tensors({"lora_down.weight": (0, 32), "lora_up.weight": (16, 0)}), "is empty"),
        (tensors({"lora_A.weight": (4, 32), "lora_B.weight": (16, 4)}, **{"lora_A.weight": "I32"}), "holds I32"),
        (tensors(LOHA | {"hada_w2_a": (32, 8)}), "ranks 4 and 8"),
        (tensors({half: shape for half, shape in LOHA.items() if half != "hada_w2_b"}), "lacks its other half"),
        (tensors({half: shape for half, shape in LOHA.items() if "w2" not in half}), "belong together"),
        (tensors({half: shape for half, shape in LOKR.items() if half != "lokr_w1"}), "belong together"),
    ],
)
def test_factors_without_an_update_are_explained(factors: dict[str, TensorInfo], words: str) -> None:
    assert words in fault_of_factors(factors)


def test_mlx_stores_its_factors_turned() -> None:
    assert fault_of_factors(tensors({"lora_a": (32, 4), "lora_b": (4, 16)}), turned=True) == ""
    assert "ranks 4 and 8" in fault_of_factors(tensors({"lora_a": (32, 4), "lora_b": (8, 16)}), turned=True)
