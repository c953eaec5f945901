"""Extract an adapter from two bases: the best low-rank update that leads from one to the other.

Invariants
- Matrices that differ become LoRA pairs; what else differs (norms, biases, embeddings) is left out, and said.
- Both bases are read a tensor at a time; a matrix is decomposed through its smaller side.
- The loss of each module is told: a full fine-tuning is seldom of low rank.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from registry.bases import BaseSpec
from registry.client.local.base_folder import base_spec_from
from registry.errors import Invalid
from registry.merging.recipes import MergeReport, Method, Operation
from registry.worker.merge import combine, lowrank, writing
from registry.worker.merge.lowrank import Loss
from registry.worker.merge.writing import Made, UpdateTarget
from registry.worker.model.fingerprints import DTYPES
from registry.worker.model.weights import Stored, Weights, chunks

_PLAIN = frozenset({"F64", "F32", "F16", "BF16"})
EXAMPLES = 5


def extract(
    tuned: Path, base: Path, out: Path, *, rank: int, base_name: str = "", task: str = "CAUSAL_LM",
    progress: Callable[[str], None] = lambda _said: None,
) -> MergeReport:  # fmt: skip
    """Write the adapter of this rank into `out`. `Invalid` when the two are not of one architecture, or are equal."""
    spec, _ = base_spec_from(base, base_name or base.name)
    olds = {stored.name: stored for stored in Weights.of(base).by_file_name.values()}
    news = {stored.name: stored for stored in Weights.of(tuned).by_file_name.values()}
    _demand_alike(olds, news, spec)
    updates, losses, left_out = [], [], []
    for at, (name, old) in enumerate(sorted(olds.items())):
        if at % 32 == 0:
            progress(f"{at} of {len(olds)} tensors")
        delta = _values(news[name]) - _values(old)
        if not bool(delta.any()):
            continue
        path, _, leaf = name.rpartition(".")
        module = spec.modules.get(path)
        if leaf != "weight" or module is None or module.kind not in ("linear", "conv1d") or delta.dim() != 2:
            left_out.append(name)
            continue
        matrix = delta.T.contiguous() if module.kind == "conv1d" else delta
        factors, _ = lowrank.of_dense(matrix, rank)
        updates.append(Made(UpdateTarget(path, "linear", -1, (matrix.shape[1],)), [factors]))
        loss = Loss(float(matrix.double().square().sum()), float((factors.dense - matrix).double().square().sum()))
        losses.append((path, factors.rank, loss, loss))
    if not updates:
        raise Invalid("RECIPE_INVALID", f"no matrix of {tuned.name} differs from {base.name}: there is no update")
    config = writing.plain(spec.name, task) | writing.targets_of(updates)
    config["fan_in_fan_out"] = any(spec.modules[update.site.path].kind == "conv1d" for update in updates)
    writing.write(out, updates, config, torch.float32)
    report = combine.report(Operation.EXTRACT, str(Method.SVD), losses)
    if not left_out:
        return report
    more = f" and {len(left_out) - EXAMPLES} more" if len(left_out) > EXAMPLES else ""
    note = f"not matrices of linear modules, and left out: {', '.join(left_out[:EXAMPLES])}{more}"
    return report.model_copy(update={"notes": (note,)})


def _demand_alike(olds: dict[str, Stored], news: dict[str, Stored], spec: BaseSpec) -> None:
    if spec.quantization:
        raise Invalid("RECIPE_INVALID", f"the base is packed ({spec.quantization}): give its original weights")
    for name, old in olds.items():
        new = news.get(name)
        if new is not None and {old.info.dtype, new.info.dtype} - _PLAIN:
            raise Invalid("RECIPE_INVALID", f"{name} is packed; give the original weights")
        if new is None or new.info.shape != old.info.shape:
            difference = (
                "is missing" if new is None else f"has shape {list(new.info.shape)}, not {list(old.info.shape)}"
            )
            raise Invalid("RECIPE_INVALID", f"these are different architectures: {name} {difference}")


def _values(stored: Stored) -> Tensor:
    data = bytearray().join(chunks(stored, max(1, stored.info.size_bytes)))
    return torch.frombuffer(data, dtype=DTYPES[stored.info.dtype]).view(stored.info.shape).float()
