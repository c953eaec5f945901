"""What vLLM's source says about LoRA: which classes have it, on which modules, and what a configuration must hold.

The rules that these facts follow, by file of vLLM:

    model_executor/models/registry.py    architecture → module and class
    model_executor/models/interfaces.py  a class has LoRA if it inherits `SupportsLoRA`
    lora/utils.py                        get_supported_lora_modules: the keys of `embedding_modules` of every module
                                         inside the model, and the names of its `LinearBase` modules
    lora/worker_manager.py               _load_adapter: a packed module stands for its parts, and names are mapped
                                         by `hf_to_vllm_mapper` first
    lora/peft_helper.py, config/lora.py  fields that are required, features that are refused, ranks
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

from scripts.engine_rules.models import Models
from scripts.engine_rules.syntax import UNREADABLE, Call, Definition, Library, dotted_name

MODELS = "vllm.model_executor.models"
REGISTRY = f"{MODELS}.registry"
LINEAR = "vllm.model_executor.layers.linear.LinearBase"


def facts(library: Library) -> dict[str, Any]:
    """All facts of one version; `ValueError` if the source is not vLLM's, or changed beyond these rules."""
    table = _registered(library)
    rows = _Rows(library, table)
    classes: dict[str, dict[str, Any]] = {}
    architectures: dict[str, str] = {}
    for architecture, path in sorted(table.items()):
        architectures[architecture] = path.removeprefix("vllm.").removeprefix("model_executor.models.")
        if architectures[architecture] not in classes:
            classes[architectures[architecture]] = rows.row(path)
    return {
        "architectures": architectures,
        "classes": classes,
        "suffixes": _suffixes(library),
        "required_fields": _required_fields(library),
        "refused_fields": _refused_fields(library),
        "ranks": _ranks(library),
        "whole_modules": _whole_modules(library),
    }


def _registered(library: Library) -> dict[str, str]:
    """Architecture → path of its class."""
    definition = library.resolve(REGISTRY, "_VLLM_MODELS")
    rows = library.evaluate(definition.node, REGISTRY) if definition else None
    if not isinstance(rows, dict) or not rows:
        raise ValueError("no literal table _VLLM_MODELS in vllm/model_executor/models/registry.py")
    return {
        str(architecture): f"{row[0] if str(row[0]).startswith('vllm.') else f'{MODELS}.{row[0]}'}.{row[1]}"
        for architecture, row in rows.items()
        if isinstance(row, list) and len(row) == 2
    }


class _Rows:
    """Rows of classes: `lora` and, where it is true, `embedding`, `linear`, `packed`, `renames` and `inner`."""

    def __init__(self, library: Library, table: dict[str, str]) -> None:
        self._library = library
        self._models = Models(library, table, (MODELS, "vllm.models"))
        linear = library.find(LINEAR)
        if linear is None:
            raise ValueError(f"no class {LINEAR}")
        self._linear = linear

    def row(self, path: str) -> dict[str, Any]:
        model = self._library.find(path)
        if model is None or not model.is_class:
            return {"lora": None}
        order = self._library.mro(model)
        row: dict[str, Any] = {"lora": any(cls.name == "SupportsLoRA" for cls in order)}
        if path != model.path:
            row["defined"] = model.path
        if not row["lora"]:
            return row
        inside = self._models.inside(model)
        is_dynamic = any(cls.module.startswith(f"{MODELS}.transformers") for cls in order)
        row["embedding"] = self._embedding(inside.classes)
        row["linear"] = None if is_dynamic else self._models.layers(inside.classes, self._linear)
        row["packed"] = self._packed(inside.classes)
        if renames := self._renames(model, row):
            row["renames"] = renames
        if inside.decided_by_base:
            row["inner"] = True
        return row

    def _embedding(self, classes: tuple[Definition, ...]) -> list[str] | None:
        names: set[str] = set()
        for cls in classes:
            value = self._library.attribute(cls, "embedding_modules")
            if value is UNREADABLE:
                return None
            names |= set(value) if isinstance(value, dict) else set()
        return sorted(names)

    def _packed(self, classes: tuple[Definition, ...]) -> dict[str, list[str]]:
        """The model's own mapping, or what its children have where it has none."""
        for chosen in (classes[:1], classes[1:]):
            packed: dict[str, list[str]] = {}
            for cls in chosen:
                value = self._library.attribute(cls, "packed_modules_mapping")
                if isinstance(value, dict):
                    packed |= {k: v for k, v in value.items() if isinstance(v, list)}
            if packed:
                return dict(sorted(packed.items()))
        return {}

    def _renames(self, model: Definition, row: dict[str, Any]) -> dict[str, str]:
        """Last parts of names that the class's mapper turns into names that take LoRA: `embeddings` → `embed_tokens`.

        Stacking and dropping are left out, as the mapper for adapters leaves them out.
        """
        mapper = self._library.attribute(model, "hf_to_vllm_mapper")
        fields = mapper.fields if isinstance(mapper, Call) else {}
        used = {*(row["embedding"] or ()), *(row["linear"] or ()), *(p for ps in row["packed"].values() for p in ps)}
        renames: dict[str, str] = {}
        for kind in ("orig_to_new_substr", "orig_to_new_prefix", "orig_to_new_suffix"):
            pairs = fields.get(kind)
            for old, new in pairs.items() if isinstance(pairs, dict) else ():
                before, after = (str(part).strip(".").rpartition(".")[2] for part in (old, new))
                if isinstance(new, str) and before and before != after and after in used:
                    renames[before] = after
        return dict(sorted(renames.items()))


# ------------------------------------------------------------ the configuration of an adapter and of a deployment
def _suffixes(library: Library) -> list[list[str]]:
    """Ending of an architecture → what a class for generation is converted to (`none`, `embed`, `classify`)."""
    definition = library.find("vllm.config.model._SUFFIX_TO_DEFAULTS")
    rows = library.evaluate(definition.node, definition.module) if definition else None
    return [[str(row[0]), str(row[1][1])] for row in rows] if isinstance(rows, list) else []


def _helper(library: Library) -> ast.ClassDef:
    helper = library.find("vllm.lora.peft_helper.PEFTHelper")
    if helper is None or not isinstance(helper.node, ast.ClassDef):
        raise ValueError("no class PEFTHelper in vllm/lora/peft_helper.py")
    return helper.node


def _required_fields(library: Library) -> list[str]:
    """The fields of PEFTHelper without a default."""
    fields = (n for n in _helper(library).body if isinstance(n, ast.AnnAssign) and n.value is None)
    return sorted(name for field in fields if (name := dotted_name(field.target)))


def _refused_fields(library: Library) -> dict[str, str]:
    """Field of the configuration → how the refusal begins."""
    refused: dict[str, str] = {}
    for function in (n for n in _helper(library).body if isinstance(n, ast.FunctionDef)):
        if function.name not in ("_validate_features", "validate_legal"):
            continue
        for test in (n for n in ast.walk(function) if isinstance(n, ast.If)):
            fields = [d.removeprefix("self.") for n in ast.walk(test.test) if (d := dotted_name(n)).startswith("self.")]
            message = next((t for statement in test.body for t in _appended(statement)), "")
            if fields and message:
                field = "init_lora_weights" if fields[0].startswith("_init") else fields[0]
                refused.setdefault(field, message)
    return dict(sorted(refused.items()))


def _appended(statement: ast.AST) -> Iterator[str]:
    for node in ast.walk(statement):
        if isinstance(node, ast.Call) and dotted_name(node.func).endswith(".append") and node.args:
            texts = (
                n.value for n in ast.walk(node.args[0]) if isinstance(n, ast.Constant) and isinstance(n.value, str)
            )
            yield next(texts, "").strip()


def _ranks(library: Library) -> list[int]:
    """The values that max_lora_rank may have."""
    definition = library.find("vllm.config.lora.MaxLoRARanks")
    value = library.evaluate(definition.node, definition.module) if definition else None
    return [int(v) for v in value] if isinstance(value, list) else []


def _whole_modules(library: Library) -> list[str]:
    """Whole modules that may be in an adapter (`modules_to_save`)."""
    for function in (n for n in _helper(library).body if isinstance(n, ast.FunctionDef)):
        for test in (n for n in ast.walk(function) if isinstance(n, ast.Compare)):
            if isinstance(test.ops[0], ast.NotIn) and isinstance(test.comparators[0], ast.List):
                value = library.evaluate(test.comparators[0], "vllm.lora.peft_helper")
                return [str(v) for v in value] if isinstance(value, list) else []
    return []
