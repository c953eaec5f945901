"""Fuse an adapter into the weights of its base: a new base's folder, shard by shard, in the layout of the old one.

- The base is read and never written; the new folder appears whole or not at all.
- Unchanged tensors keep their bytes; changed ones are rounded once, from a wider type. Shards, order and names stay.
- A packed base is never fused onto its own grid: its steps are larger than most updates, which would vanish in it.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from registry import compat
from registry.adapters import methods
from registry.adapters.templates import check_templates
from registry.bases import BaseSpec
from registry.client.local.base_folder import base_spec_from, weights_of
from registry.client.local.destination import Destination
from registry.engines import facts as engine_facts
from registry.errors import Invalid
from registry.evaluation.verdicts import Outcome, add_up, summarize
from registry.findings import Finding
from registry.merging import recipes
from registry.merging.recipes import Ingredient, MergeOperation, MergeReport, Recipe
from registry.strict import json as strict_json
from registry.versions.files import BASE_CONFIG, BASE_WEIGHTS_INDEX, TOKENIZER_FILES
from registry.worker.merge import shards, targets
from registry.worker.merge.adapters import Adapter
from registry.worker.merge.shards import Fill, OutputTensor, WriteSummary
from registry.worker.merge.targets import Changes
from registry.worker.model import fingerprints
from registry.worker.model.fingerprints import PLAIN_DTYPES
from registry.worker.model.weights import Stored, Weights

HEAD = "lm_head.weight"
_UNPACKED = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_DIALECT = strict_json.Dialect("RECIPE_INVALID", "config", depth=64, not_finite=True)
_COPIED_ENDINGS = (".json", ".jinja", ".txt", ".model", ".md")


def fuse(
    adapter: Adapter, base: Path, out: Path, *, dequantize: bool = False, make_merger: targets.MakeMerger | None = None,
    progress: Callable[[int], None] = lambda _bytes: None,
) -> MergeReport:  # fmt: skip
    """Write the base with the adapter in its weights into the new folder `out`. `progress` gets counts of bytes.

    `make_merger` computes the methods that PEFT fuses (peft_methods.py); without it they are refused. `Invalid`:
    RECIPE_INVALID for an adapter that cannot be fused, BASE_INVALID for a broken base.
    """
    spec, _ = base_spec_from(base, base.name[:200] or "base")
    demand_fusable(adapter, spec, dequantize=dequantize, with_peft=make_merger is not None)
    texts = _texts(base, adapter.folder)
    config, headers = weights_of(base)
    weights = Weights.of(base)
    changes = targets.changes(adapter, spec, weights, make_merger)
    layout = plan_layout(weights, spec, adapter, config, changes, dequantize=dequantize)
    _demand_space(out, layout)
    summary = WriteSummary()
    with Destination(out) as folder:
        for name, pieces in layout.files.items():
            sources = {piece.source for piece in pieces}
            same = headers.get(sources.pop()) if len(sources) == 1 else None
            metadata = next(iter(headers.values())).metadata
            shards.write(folder / name, pieces, metadata, summary, same=same, progress=progress)
        _write_config(folder, base, layout)
        _copy_texts(texts, base, folder, layout.notes)
    return MergeReport(
        operation=MergeOperation.FUSE, method=adapter.lora.method, rank=adapter.lora.rank,
        changed_tensors=summary.changed_tensors, copied_bytes=summary.copied_bytes, notes=tuple(layout.notes),
    )  # fmt: skip


def demand_fusable(adapter: Adapter, spec: BaseSpec, *, dequantize: bool, with_peft: bool = False) -> None:
    """`Invalid` (RECIPE_INVALID) with the reason why there are no weights that equal base and adapter together."""
    lora = adapter.lora
    facts = engine_facts.of_lora(lora).model_dump()
    name = adapter.folder.name or "the adapter"
    ingredient = Ingredient(name=name, digest="", base=spec.name, base_fingerprint=str(spec.fingerprint), facts=facts)
    recipes.demand(Recipe(operation=MergeOperation.FUSE, sources=(name,)), [ingredient])
    if methods.find(lora.method).fused_by not in ("registry", *(["peft"] if with_peft else [])):
        message = f"{name} is {lora.method}, which is not fused here"
        raise Invalid("RECIPE_INVALID", message, next_step="merge it with PEFT's merge_and_unload")
    for extra in ("kasa_config", "monteclora_config", "arrow_config"):
        if lora.config.other.get(extra):
            raise Invalid("RECIPE_INVALID", f"{name}: {extra}: it is more than a fixed update of the weights")
    if spec.quantization and not dequantize:
        raise recipes.on_its_grid(spec.quantization)
    findings = [*lora.findings, *compat.check_fit(lora, spec)]
    if add_up(findings) is Outcome.FAIL:
        raise Invalid("RECIPE_INVALID", f"{name} does not fit the base: {summarize(findings)}")


def _demand_space(out: Path, layout: OutputLayout) -> None:
    needed = layout.size_bytes
    location = out.absolute().parent
    while not location.exists():
        location = location.parent
    free = shutil.disk_usage(location).free
    if needed > free:
        raise Invalid("FOLDER_INVALID", f"{location} has {free} bytes free, and the fused base needs {needed}")


def _texts(base: Path, adapter: Path) -> dict[str, Path]:
    """The base's tokenizer, template, license and other texts by name, and the adapter's own tokenizer over them.

    `Invalid` (RECIPE_INVALID, CONFIG_INVALID) if a JSON file among them makes a loader import code, or a template of
    the adapter breaks a rule.
    """

    def read(name: str, start: int, length: int) -> bytes:
        return (adapter / name).read_bytes()[start : start + length]

    texts = {
        entry.name: entry
        for entry in sorted(base.iterdir())
        if entry.is_file() and not entry.name.startswith(".") and entry.name != BASE_WEIGHTS_INDEX
        and (entry.name.endswith(_COPIED_ENDINGS) or entry.name.startswith("LICENSE"))
    }  # fmt: skip
    texts |= {name: adapter / name for name in sorted(TOKENIZER_FILES) if (adapter / name).is_file()}
    for name, path in texts.items():
        value = strict_json.parse(path.read_bytes(), _DIALECT, file=name) if name.endswith(".json") else None
        for field_path in methods.code_references(value):
            location = f"{path.parent.name}/{name}: {field_path}"
            reason = Finding("config.code_reference", location, "makes a loader import code; a fused base must not")
            raise Invalid.from_finding("RECIPE_INVALID", reason, next_step="remove the field")
    check_templates({name: path.stat().st_size for name, path in texts.items() if path.parent == adapter}, read)
    return texts


def _copy_texts(texts: dict[str, Path], base: Path, folder: Path, notes: list[str]) -> None:
    for name, path in texts.items():
        if name == BASE_CONFIG:
            continue
        shutil.copyfile(path, folder / name)
        of_base = base / name
        if path != of_base and not (of_base.is_file() and of_base.read_bytes() == path.read_bytes()):
            notes.append(f"{name} is the adapter's, which differs from the base's")


# ------------------------------------------------------------------ the files of the fused base
@dataclass(slots=True)
class OutputLayout:
    """The fused base: file name → its tensors in order, and its configuration. `notes` go into the report."""

    files: dict[str, list[OutputTensor]]
    config: dict[str, Any]
    config_changed: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(piece.size_bytes for pieces in self.files.values() for piece in pieces)


def plan_layout(
    weights: Weights, spec: BaseSpec, adapter: Adapter, config: Mapping[str, Any], changes: Changes, *, dequantize: bool
) -> OutputLayout:
    """Lay out the fused base. `Invalid` (RECIPE_INVALID) when the adapter changes a tensor that cannot be changed."""
    layout = OutputLayout({}, copy.deepcopy(dict(config)))
    remaining = dict(changes)
    if spec.tied:
        _tie_or_untie(layout, weights, adapter, remaining)
    copies = targets.layer_map(adapter)
    for stored in weights.in_order():
        if stored.is_side and dequantize:
            continue
        pieces = layout.files.setdefault(stored.path.name, [])
        for name in _names(stored, copies):
            makes = tuple(remaining.pop(name, ()))
            piece = _piece(layout, weights, stored, _file_name(stored, name), dequantize)
            pieces.append(replace(piece, changes=makes))
    if HEAD in remaining:
        _add_head(layout, weights, remaining.pop(HEAD))
    if remaining:
        raise Invalid("RECIPE_INVALID", f"the base has no tensor {sorted(remaining)[0]}, which the adapter changes")
    if copies:
        _deepen(layout, copies, spec)
    if dequantize and layout.config.pop("quantization_config", None) is not None:
        layout.config_changed = True
        layout.notes.append(f"the base was packed ({spec.quantization}) and is unpacked in what was written")
    return layout


def _write_config(folder: Path, base: Path, layout: OutputLayout) -> None:
    """Write config.json, and the index if there are several files."""
    if layout.config_changed:
        (folder / BASE_CONFIG).write_text(json.dumps(layout.config, indent=2) + "\n", "utf-8")
    else:
        (folder / BASE_CONFIG).write_bytes((base / BASE_CONFIG).read_bytes())
    index = base / BASE_WEIGHTS_INDEX
    if not index.is_file():
        return
    weight_map = {piece.name: name for name, pieces in layout.files.items() for piece in pieces}
    if json.loads(index.read_bytes()).get("weight_map") == weight_map:
        (folder / BASE_WEIGHTS_INDEX).write_bytes(index.read_bytes())
        return
    new = {"metadata": {"total_size": layout.size_bytes}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / BASE_WEIGHTS_INDEX).write_text(json.dumps(new, indent=2) + "\n", "utf-8")


# ------------------------------------------------------------------ names and layers
def _names(stored: Stored, copies: list[int]) -> Iterator[str]:
    """The model's names of this tensor in the new base: one for each copy of its layer."""
    layer = targets.layer_of(stored.name)
    if not copies or layer is None:
        yield stored.name
        return
    yield from (targets.in_layer(stored.name, new) for new, old in enumerate(copies) if old == layer)


def _file_name(stored: Stored, name: str) -> str:
    """The file's name of the model's tensor `name`, with or without a prefix as in the base's file."""
    layer = targets.layer_of(name)
    return stored.info.name if layer is None else targets.in_layer(stored.info.name, layer)


def _deepen(layout: OutputLayout, copies: list[int], spec: BaseSpec) -> None:
    for config in (layout.config, layout.config.get("text_config")):
        if not isinstance(config, dict):
            continue
        for name, value in config.items():
            if name in ("num_hidden_layers", "n_layer", "num_layers"):
                config[name] = len(copies)
            elif isinstance(value, list) and len(value) == spec.layers and name != "architectures":
                config[name] = [value[old] for old in copies]
    layout.config_changed = True
    layout.notes.append(f"{spec.layers} layers are written out as {len(copies)}")


# ------------------------------------------------------------------ tied embeddings
def _embedding(weights: Weights) -> Stored:
    tables = [s for s in weights.by_file_name.values() if not s.is_side and s.name.endswith(targets.TABLES)]
    if len(tables) != 1:
        raise Invalid("RECIPE_INVALID", "the base's head is tied, and no tensor has a known name of a token embedding")
    return tables[0]


def _tie_or_untie(layout: OutputLayout, weights: Weights, adapter: Adapter, changes: Changes) -> None:
    """Keep head and embedding tied while the adapter leaves both alone or trained them as one; else untie them.

    If they are untied, `changes` has an entry for the head.
    """
    table = _embedding(weights).name
    lora = adapter.lora
    whole = {f"{piece.path}.{piece.name}" for piece in lora.full}
    pairs = {f"{module.path}.weight" for module in lora.modules}
    if {HEAD, table} <= whole and _equal(adapter, table):
        changes.pop(HEAD)
        return
    if HEAD not in changes and not ({table} & (whole | pairs)):
        return  # trained rows count for both, as PEFT has it
    if HEAD not in changes and adapter.contents.config.ensure_weight_tying:
        return
    changes.setdefault(HEAD, [])
    for config in (layout.config, layout.config.get("text_config")):
        if isinstance(config, dict) and (config is layout.config or "tie_word_embeddings" in config):
            config["tie_word_embeddings"] = False
    layout.config_changed = True
    layout.notes.append("input and output embedding were tied and are two now: the adapter changes them separately")


def _equal(adapter: Adapter, table: str) -> bool:
    by_name = {f"{name.path}.{name.leaf}": stored for name, stored in adapter.others()}
    return torch.equal(adapter.raw(by_name[HEAD]), adapter.raw(by_name[table]))


def _add_head(layout: OutputLayout, weights: Weights, makes: list[Any]) -> None:
    """Add a separate head behind the last tensor, made from the embedding."""
    table = _embedding(weights)
    last = list(layout.files)[-1]
    piece = OutputTensor(HEAD, table.info.dtype, table.info.shape, table.path, table.data_start + table.info.start)
    layout.files[last].append(replace(piece, changes=tuple(makes)))


# ------------------------------------------------------------------ packed tensors
def _piece(layout: OutputLayout, weights: Weights, stored: Stored, name: str, dequantize: bool) -> OutputTensor:
    start = stored.data_start + stored.info.start
    if not dequantize or stored.info.dtype in PLAIN_DTYPES:
        return OutputTensor(name, stored.info.dtype, stored.info.shape, stored.path, start)
    shape, values = fingerprints.unpacking(weights, stored)
    if values is None or len(shape) != 2:
        message = f"{stored.info.name}: weights packed by {weights.quantization} are not unpacked here"
        raise Invalid("RECIPE_INVALID", message, next_step="fuse into the original weights: --onto BASE")
    dtype_name = str(layout.config.get("dtype") or layout.config.get("torch_dtype") or "bfloat16")
    dtype = _UNPACKED.get(dtype_name.removeprefix("torch."), "BF16")
    return OutputTensor(name, dtype, shape, stored.path, start, fill=_filler(stored, shape, values))


def _filler(stored: Stored, shape: tuple[int, ...], values: fingerprints.Values) -> Fill:
    columns, dtype = shape[1], fingerprints.DTYPES[stored.info.dtype]
    per_byte = 2 if stored.info.dtype == "U8" else 1
    if columns % per_byte:
        raise Invalid("RECIPE_INVALID", f"{stored.info.name}: rows of an odd length share bytes")

    def fill(first: int, block: Tensor) -> None:
        size = len(block) * columns // per_byte * dtype.itemsize
        with open(stored.path, "rb") as file:
            file.seek(stored.data_start + stored.info.start + first * columns // per_byte * dtype.itemsize)
            raw = torch.frombuffer(bytearray(file.read(size)), dtype=dtype)
        block.copy_(values(raw, first * columns).view(len(block), columns))

    return fill
