"""Fuse an adapter into the weights of its base: a new base's folder, shard by shard, in the layout of the old one.

Invariants
- The base is read and never written; the new folder appears whole or not at all.
- Tensors that the adapter does not change are the same bytes; changed ones are rounded once, from a wider type.
- An adapter that does not fit by its header, or that no weights can equal, is refused before anything is written.
- A packed base is never fused onto its own grid: its steps are larger than most updates, which would vanish in it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from registry import compat
from registry.adapters import methods
from registry.adapters.safetensors import Header
from registry.bases import BaseSpec
from registry.client.local.base_folder import base_spec_from, weights_of
from registry.client.local.destination import Destination
from registry.engines import facts as engine_facts
from registry.errors import Invalid
from registry.evaluation.verdicts import Outcome, add_up, summarize
from registry.files import BASE_WEIGHTS_INDEX, TOKENIZER_FILES
from registry.merging import recipes
from registry.merging.recipes import Ingredient, MergeReport, Operation, Recipe
from registry.worker.merge import layout, shards, targets
from registry.worker.merge.adapters import Adapter
from registry.worker.merge.layout import OutputLayout
from registry.worker.merge.shards import WriteSummary
from registry.worker.model.weights import Weights

_KEPT = (".json", ".jinja", ".txt", ".model", ".md")


def fuse(
    adapter: Adapter, base: Path, out: Path, *, dequantize: bool = False, foreign: targets.MakeForeign | None = None,
    progress: Callable[[int], None] = lambda _bytes: None,
) -> MergeReport:  # fmt: skip
    """The base with the adapter in its weights, in the new folder `out`. `progress` is told of bytes written.

    `foreign` makes what computes the methods of PEFT (`fused_by`; peft_methods.py); without it they are refused.

    `Invalid`: RECIPE_INVALID for what cannot be fused, BASE_INVALID for a base that is not right.
    """
    spec, _ = base_spec_from(base, base.name[:200] or "base")
    demand_fusable(adapter, spec, dequantize=dequantize, with_peft=foreign is not None)
    config, headers = weights_of(base)
    weights = Weights.of(base)
    changes = targets.changes(adapter, spec, weights, foreign)
    plan = layout.plan(weights, spec, adapter, config, changes, dequantize=dequantize)
    _demand_room(out, plan)
    tally = WriteSummary()
    with Destination(out) as folder:
        for name, pieces in plan.files.items():
            source = _only_source(pieces, headers)
            metadata = next(iter(headers.values())).metadata
            shards.write(folder / name, pieces, metadata, tally, same=source, progress=progress)
        layout.write_texts(folder, base, plan)
        _copy_texts(base, adapter.folder, folder, plan)
    return MergeReport(
        operation=Operation.FUSE, method=adapter.lora.method, rank=adapter.lora.rank,
        changed_tensors=tally.changed_tensors, copied_bytes=tally.copied_bytes, notes=tuple(plan.notes),
    )  # fmt: skip


def demand_fusable(adapter: Adapter, spec: BaseSpec, *, dequantize: bool, with_peft: bool = False) -> None:
    """`Invalid` (RECIPE_INVALID) with the reason why there are no weights that equal base and adapter together."""
    lora = adapter.lora
    facts = engine_facts.of_lora(lora).model_dump()
    name = adapter.folder.name or "the adapter"
    ingredient = Ingredient(name=name, digest="", base=spec.name, base_fingerprint=str(spec.fingerprint), facts=facts)
    recipes.demand(Recipe(operation=Operation.FUSE, sources=(name,)), [ingredient])
    if methods.find(lora.method).fused_by not in ("registry", *(["peft"] if with_peft else [])):
        message = f"{name} is {lora.method}, whose update is not written into weights here"
        raise Invalid("RECIPE_INVALID", message, next_step="merge it with PEFT's merge_and_unload")
    for field in ("kasa_config", "monteclora_config", "arrow_config"):
        if lora.config.other.get(field):
            raise Invalid("RECIPE_INVALID", f"{name}: {field}: it is more than a fixed update of the weights")
    if spec.quantization and not dequantize:
        raise recipes.on_its_grid(spec.quantization)
    findings = [*lora.findings, *compat.check_fit(lora, spec)]
    if add_up(findings) is Outcome.FAIL:
        raise Invalid("RECIPE_INVALID", f"{name} does not fit the base: {summarize(findings)}")


def _only_source(pieces: list[shards.OutputTensor], headers: dict[Path, Header]) -> Header | None:
    sources = {piece.source for piece in pieces}
    return headers.get(sources.pop()) if len(sources) == 1 else None


def _demand_room(out: Path, plan: OutputLayout) -> None:
    needed = sum(piece.size_bytes for pieces in plan.files.values() for piece in pieces)
    location = out.absolute().parent
    while not location.exists():
        location = location.parent
    free = shutil.disk_usage(location).free
    if needed > free:
        raise Invalid("FOLDER_INVALID", f"{location} has room for {free} bytes, and the fused base takes {needed}")


def _copy_texts(base: Path, adapter: Path, folder: Path, plan: OutputLayout) -> None:
    """Tokenizer, template, license and whatever else is text: the base's, and the adapter's own tokenizer over it."""
    written = {*os.listdir(folder), BASE_WEIGHTS_INDEX}
    for entry in sorted(base.iterdir()):
        keep = entry.name.endswith(_KEPT) or entry.name.startswith("LICENSE")
        if keep and entry.is_file() and entry.name not in written and not entry.name.startswith("."):
            shutil.copyfile(entry, folder / entry.name)
    for name in sorted(TOKENIZER_FILES):
        own = adapter / name
        if own.is_file() and (not (folder / name).is_file() or own.read_bytes() != (folder / name).read_bytes()):
            shutil.copyfile(own, folder / name)
            plan.notes.append(f"{name} is the adapter's, which differs from the base's")
