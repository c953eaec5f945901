"""What is wrong with the tensors of one module by themselves: no numbers, a half without its other, ranks that differ.

Invariants
- Only names, shapes and types are looked at; what a method leaves open is no fault (a Tucker core turns its factors).
- One fault a module: the first that makes its update impossible.
"""

from __future__ import annotations

from collections.abc import Mapping

from registry.adapters.safetensors import FLOATS, TensorInfo

_PAIRS = (
    ("lora_A", "lora_B", ""), ("lora_down", "lora_up", ""), ("down", "up", ""), ("lora_a", "lora_b", ""),
    ("hada_w1_b", "hada_w1_a", "hada_t1"), ("hada_w2_b", "hada_w2_a", "hada_t2"),
    ("lokr_w1_b", "lokr_w1_a", ""), ("lokr_w2_b", "lokr_w2_a", "lokr_t2"),
)  # fmt: skip
"""The right factor [rank, in], the left one [out, rank], and the core that stores them otherwise."""
_TOGETHER = (("hada_w1_b", "hada_w2_b"), ("lokr_w1", "lokr_w2"))
"""What makes no update without the other: LoHa's and LoKr's two matrices, each whole or as factors."""
_NUMBERS = FLOATS | {"Q8_0"}
_NO_NUMBERS = ("alpha", "indices", "size")


def fault(halves: Mapping[str, TensorInfo], *, turned: bool = False) -> str:
    """The fault in words, empty without one. `turned`: mlx's [in, rank] and [rank, out]."""
    for half, info in halves.items():
        if info.elements == 0:
            return f"{half} is empty: it was saved while another process held its values"
        if info.dtype not in _NUMBERS and not half.endswith(_NO_NUMBERS):
            return f"{half} holds {info.dtype}, and weights are floating-point numbers"
    shapes = {half.removesuffix(".weight").rpartition(".")[2]: info.shape for half, info in halves.items()}
    for right, left, core in _PAIRS:
        if (right in shapes) != (left in shapes):
            return f"{right if right in shapes else left} lacks its other half"
        if right not in shapes or core in shapes or min(len(shapes[right]), len(shapes[left])) < 2:
            continue
        ranks = (shapes[right][1], shapes[left][0]) if turned else (shapes[right][0], shapes[left][1])
        if ranks[0] != ranks[1]:
            return f"its factors have ranks {ranks[0]} and {ranks[1]}"
    for one, other in _TOGETHER:
        if any(name.startswith(one) for name in shapes) != any(name.startswith(other) for name in shapes):
            return f"{one[:7]} and {other[:7]} belong together, and one is missing"
    return ""
