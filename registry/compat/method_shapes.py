"""Methods other than LoRA: what their tensors' shapes must be, by arithmetic on the module's sizes.

Invariants
- A rule here follows from the method's definition in PEFT 0.21 and nothing else; `None` means "no opinion".
- A method without rules is an `unknown` finding, so that no gate opens for it unseen.
"""

from __future__ import annotations

import math

from registry.adapters.methods import find
from registry.adapters.peft import LoraSpec, OtherTensor
from registry.adapters.peft.config import AdapterConfig
from registry.adapters.peft.targets import endings
from registry.bases.modules import ModuleShape
from registry.compat.modules import ModuleLookup
from registry.files import CONFIG

Shape = tuple[int, ...]


def check_pieces(lora: LoraSpec, site: ModuleLookup) -> None:
    """Every tensor of the method against the module that it changes."""
    if not find(lora.method).shapes_known:
        message = f"the sizes of {lora.method} tensors cannot be checked from headers; run the check 'smoke'"
        site.notes.unknown("compat.method_unjudged", f"{CONFIG}: peft_type", message)
    kronecker: dict[str, dict[str, Shape]] = {}
    for piece in lora.pieces:
        if not piece.path:
            continue
        module = site.find(piece.path)
        if module is None:
            site.missing(piece.path, "the adapter's module")
        elif not module.is_known:
            message = f"the sizes of {piece.path} are not known: the base is quantized ({site.base.quantization})"
            site.notes.unknown("compat.shape_unknown", piece.path, message, group=piece.path.rpartition(".")[2])
        elif lora.method == "LOKR":
            kronecker.setdefault(piece.path, {})[piece.name] = piece.shape
        else:
            _check_piece(piece, module, lora.config, site)
    for path, factors in kronecker.items():
        _check_kronecker(path, factors, site)


def _check_piece(piece: OtherTensor, module: ModuleShape, config: AdapterConfig, site: ModuleLookup) -> None:
    rank = site.ranks.pick(piece.path)
    expected = expected_shape(config.method, piece.name, piece.shape, module, config, piece.path, rank)
    if expected is not None and expected != piece.shape:
        location = f"{piece.path}.{piece.name}"
        message = f"{location} has shape {list(piece.shape)}; {site.base.name} takes {list(expected)} there"
        group = f"{piece.name} {piece.path.rpartition('.')[2]}"
        site.notes.error("compat.shape", location, message, list(expected), list(piece.shape), group=group)


def expected_shape(
    method: str,
    name: str,
    shape: Shape,
    module: ModuleShape,
    config: AdapterConfig,
    path: str = "",
    rank: int | None = None,
) -> Shape | None:
    """The shape that this tensor must have on this module, or None where the method leaves it open."""
    inputs, outputs = module.in_features, module.out_features
    rank = rank or config.rank
    if method == "IA3":
        feedforward = config.other.get("feedforward_modules") or []
        names = [feedforward] if isinstance(feedforward, str) else feedforward
        return (1, inputs) if any(end in names for end in endings(path)) else (outputs, 1)
    if method == "LOHA" and len(shape) == 2:
        return {"a": (outputs, rank), "b": (rank, inputs)}.get(name[-1:])
    if method == "OFT" and len(shape) == 2:
        return _oft(shape, inputs)
    if method == "BOFT":
        if name == "boft_s":
            return (outputs, 1)
        return (shape[0], inputs // shape[2], shape[2], shape[2]) if len(shape) == 4 and shape[2] else (1, 1, 1, 1)
    if method == "MISS":
        return (rank, outputs) if len(shape) == 2 else None
    if method == "VERA":
        return {"vera_lambda_b": (outputs,), "vera_lambda_d": (rank,)}.get(name)
    if method == "SHIRA":
        count = rank * (inputs + outputs)
        return {"shira_weight": (count,), "shira_indices": (2, count)}.get(name)
    if method == "LN_TUNING":
        return (outputs,)
    if method == "HRA":
        return (inputs, rank) if name == "hra_u" else None
    return None


def _oft(shape: Shape, inputs: int) -> Shape | None:
    """[blocks, b(b-1)/2] with blocks * b = inputs; a shared block is one row."""
    block = (1 + math.isqrt(1 + 8 * shape[1])) // 2
    if block * (block - 1) // 2 != shape[1] or inputs % block:
        return (inputs, 0)
    return shape if shape[0] == 1 else (inputs // block, shape[1])


def _check_kronecker(path: str, factors: dict[str, Shape], site: ModuleLookup) -> None:
    """LoKr: W1 (x) W2, each whole or as a product of two; their sizes multiply to the module's."""
    module = site.find(path)
    sizes = [_whole(factors, "lokr_w1"), _whole(factors, "lokr_w2")]
    if module is None or None in sizes or "lokr_t2" in factors:
        return
    product = tuple(sizes[0][i] * sizes[1][i] for i in (0, 1))  # type: ignore[index]
    if product != (module.out_features, module.in_features):
        message = f"the LoKr factors of {path} make a matrix of {list(product)}"
        expected = [module.out_features, module.in_features]
        site.notes.error("compat.shape", path, message, expected, list(product), group=path.rpartition(".")[2])


def _whole(factors: dict[str, Shape], name: str) -> Shape | None:
    if name in factors:
        return factors[name] if len(factors[name]) == 2 else None
    a, b = factors.get(f"{name}_a"), factors.get(f"{name}_b")
    return (a[0], b[1]) if a and b and len(a) == len(b) == 2 else None
