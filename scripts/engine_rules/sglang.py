"""What SGLang's source says about LoRA, from these files of it:

srt/models/*.py                     the classes named by `EntryClass` are the registered architectures
srt/lora/lora_manager.py            init_lora_modules: embed_tokens and lm_head are wrapped wherever a model has
                                    a VocabParallelEmbedding of that name; validate_new_adapter: what is refused
srt/lora/lora_config.py             the fields that a configuration must have
srt/lora/utils.py                   get_normalized_target_modules: names that mean the same; names with buffers
"""

from __future__ import annotations

import ast
from typing import Any

from scripts.engine_rules.models import Models
from scripts.engine_rules.syntax import Library, dotted_name

MODELS = "sglang.srt.models"
EMBEDDING = "sglang.srt.layers.vocab_parallel_embedding.VocabParallelEmbedding"
LINEAR = "sglang.srt.layers.linear.LinearBase"


def facts(library: Library) -> dict[str, Any]:
    """All facts of one version; `ValueError` if the source is not SGLang's, or changed beyond these rules."""
    table = _registered(library)
    models = Models(library, table, (MODELS,))
    embedding, linear = library.find(EMBEDDING), library.find(LINEAR)
    if not table or embedding is None or linear is None:
        raise ValueError("no registered models, or no linear and embedding layers, in sglang/srt")
    classes: dict[str, dict[str, Any]] = {}
    for path in sorted(set(table.values())):
        model = library.find(path)
        if model is None:
            continue
        inside = models.inside(model).classes
        row: dict[str, Any] = {
            "lora": True,
            "embedding": models.layers(inside, embedding),
            "linear": models.layers(inside, linear),
            "packed": {},
        }
        listed = library.attribute(model, "supported_lora_modules")
        if isinstance(listed, list):
            row["listed"] = sorted(map(str, listed))
        classes[path.removeprefix(f"{MODELS}.")] = row
    return {
        "architectures": {name: path.removeprefix(f"{MODELS}.") for name, path in sorted(table.items())},
        "classes": classes,
        "suffixes": [],
        "required_fields": _required_fields(library),
        "refused_fields": _refused_fields(library),
        "ranks": [],
        "whole_modules": [],
    }


def _registered(library: Library) -> dict[str, str]:
    """Architecture (the class's own name) → path of the class."""
    table: dict[str, str] = {}
    for module in library.modules(MODELS):
        entry = library.definitions(module).get("EntryClass")
        for node in ast.walk(entry) if entry is not None else ():
            target = library.resolve(module, name) if (name := dotted_name(node)) else None
            if target is not None and target.is_class:
                table[target.name] = target.path
    return table


def _required_fields(library: Library) -> list[str]:
    """The keys that LoRAConfig takes without a default: `self.hf_config["r"]`."""
    config = library.find("sglang.srt.lora.lora_config.LoRAConfig")
    if config is None:
        raise ValueError("no class LoRAConfig in sglang/srt/lora/lora_config.py")
    keys = (n for n in ast.walk(config.node) if isinstance(n, ast.Subscript) and isinstance(n.slice, ast.Constant))
    return sorted({str(k.slice.value) for k in keys if dotted_name(k.value) == "self.hf_config"})  # type: ignore[attr-defined]


def _refused_fields(library: Library) -> dict[str, str]:
    """Attribute of the configuration → the refusal, from `if lora_config.X: raise ValueError(…)`."""
    manager = library.find("sglang.srt.lora.lora_manager.LoRAManager")
    functions = [n for n in ast.walk(manager.node) if isinstance(n, ast.FunctionDef)] if manager else []
    refused: dict[str, str] = {}
    for function in (f for f in functions if f.name == "validate_new_adapter"):
        for test in (n for n in function.body if isinstance(n, ast.If) and isinstance(n.body[0], ast.Raise)):
            names = [d for n in ast.walk(test.test) if (d := dotted_name(n)).startswith("lora_config.")]
            texts = [
                n.value for n in ast.walk(test.body[0]) if isinstance(n, ast.Constant) and isinstance(n.value, str)
            ]
            if names and texts:
                refused.setdefault(names[0].removeprefix("lora_config."), max(texts, key=len).strip())
    return dict(sorted(refused.items()))
