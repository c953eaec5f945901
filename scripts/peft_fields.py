"""Write registry/adapters/peft/fields.json: the fields of PEFT's configurations and the values that PEFT refuses.

    python -m scripts.peft_fields [METHOD …]

Each field of each method gets sample values of every kind of JSON value, and PEFT builds the adapter on a tiny model
and computes once. A kind is refused if PEFT raises an error for all its samples in all contexts. Lists and objects with
contents, one and fractions are samples only where the annotation of the field does not name their kind. Texts that PEFT
takes where it refuses others are choices. Needs the extra `worker`; some minutes.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import os
import sys
import typing
import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # some fields name a model, and samples name none

import peft
import torch
import transformers
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.lora import config as lora_config
from peft.tuners.waveft.constants import WAVELET_REDUCTIONS
from peft.utils.peft_types import PeftType

from registry.adapters.peft.fields import kind_of, table

FILE = Path(__file__).parents[1] / "registry/adapters/peft/fields.json"
NESTED: Mapping[str, Any] = {
    "eva_config": lora_config.EvaConfig,
    "kasa_config": lora_config.KasaConfig, "monteclora_config": lora_config.MontecloraConfig,
    "velora_config": lora_config.VeloraConfig,
}  # fmt: skip
"""Objects in a configuration of LoRA, and their classes."""
KINDS_OF_TYPES: Mapping[Any, str] = {
    int: "number", float: "number", str: "text", list: "list", tuple: "list", set: "list", dict: "object",
    Mapping: "object",
}  # fmt: skip
"""Type → the key of `FOREIGN_SAMPLES` that JSON has for it."""
TARGETS = ("q_proj", "k_proj", "down_proj")
COMMON = frozenset(field.name for field in dataclasses.fields(peft.PeftConfig))
NOT_SAMPLED = frozenset(
    {"target_modules", "init_lora_weights", "modules_to_save", "exclude_modules", "layers_to_transform",
     "layers_pattern", "num_layers", "token_dim", "num_attention_heads", "num_transformer_submodules", "hidden_size",
     "shadow_model", "adapter_layers"}
)  # fmt: skip
"""Fields that peft/config.py checks itself, and those whose right values depend on the base or name another model."""
LAYER_FIELDS: Mapping[str, Any] = {"layers_pattern": ["layers"], "layers_to_transform": [0]}
VERSION_SAMPLES = (None, "")
"""Of `peft_version`, which OFT's class reads. Other texts that are no version are refused for every method."""
NOT_BUILT = frozenset({"ADAMSS", "XLORA"})
"""Methods that a tiny model alone cannot build: they need scikit-learn, or other adapters."""
SAMPLES: tuple[Any, ...] = (None, True, False, "no such value", "", 0, -1, 1.5, 4, 2, [], {})
"""Values that the tiny model takes wherever their kind makes sense."""
FOREIGN_SAMPLES: Mapping[str, tuple[Any, ...]] = {
    "number": (1, 0.5), "list": (["no such value"], [0], [4]), "object": ({"no such field": 1},), "text": ("1",),
}  # fmt: skip
"""Kind of annotation → more values for fields that are annotated otherwise. In others the right value may depend on
the base, so that a refused sample would say nothing about its kind."""
VALID: Mapping[str, Mapping[str, Any]] = {
    "ADALORA": {"total_step": 10, "tinit": 1, "tfinal": 1, "init_r": 4},
    "ADAPTION_PROMPT": {"adapter_len": 4, "adapter_layers": 1, "target_modules": "self_attn"},
    "BOFT": {"boft_block_size": 4},
    "C3A": {"block_size": 4},
    "CARTRIDGE": {"num_virtual_tokens": 4},
    "CPT": {"cpt_token_ids": [1, 2, 3]},
    "FOURIERFT": {"n_frequency": 20},
    "IA3": {"feedforward_modules": ["down_proj"]},
    "LN_TUNING": {"target_modules": ["input_layernorm"]},
    "MULTITASK_PROMPT_TUNING": {"num_virtual_tokens": 4},
    "OFT": {"oft_block_size": 4, "use_cayley_neumann": True},
    "PREFIX_TUNING": {"num_virtual_tokens": 4},
    "PROMPT_TUNING": {"num_virtual_tokens": 4},
    "P_TUNING": {"num_virtual_tokens": 4},
    "ROAD": {"group_size": 4},
    "SHADOW": {"target_modules": None},
    "TRAINABLE_TOKENS": {"token_indices": [1, 2], "target_modules": ["embed_tokens"]},
    "UNILORA": {"theta_d_length": 50},
    "VBLORA": {"vector_length": 4, "num_vectors": 8},
    "WAVEFT": {"n_frequency": 20},
}
"""What a method needs beyond its defaults to be built on the tiny model."""
CONTEXTS: Mapping[str, tuple[Mapping[str, Any], ...]] = {
    "BOFT": ({"boft_block_size": 0, "boft_block_num": 4},),
    "OFT": ({"oft_block_size": 0, "r": 4},),
    "PROMPT_TUNING": ({"prompt_tuning_init_text": "a", "tokenizer_name_or_path": "a"},),
    "SUPERTUNING": ({"r": None},),
}
"""Other valid configurations: a value that PEFT takes in one of them is not refused."""


def tiny_model() -> Any:
    """A Llama of one layer."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(vocab_size=48, num_hidden_layers=1, head_dim=4, pad_token_id=0, **sizes)
    return transformers.LlamaForCausalLM(config)


def valid_config(method: str) -> dict[str, Any]:
    """A configuration of this method that PEFT builds on the tiny model."""
    fields = {field.name for field in dataclasses.fields(PEFT_TYPE_TO_CONFIG_MAPPING[method])}
    written: dict[str, Any] = {"peft_type": method, "task_type": "CAUSAL_LM"}
    if "target_modules" in fields:
        written["target_modules"] = list(TARGETS)
    if "r" in fields and method not in ("OFT", "ADALORA"):
        written["r"] = 4
    return written | dict(VALID.get(method, {}))


def error_of(written: Mapping[str, Any]) -> str:
    """What PEFT raises for this configuration when it builds and computes; empty if nothing."""
    try:
        kind = PEFT_TYPE_TO_CONFIG_MAPPING[written["peft_type"]]
        config = kind.from_peft_type(**kind.check_kwargs(**written))  # as PEFT loads a file
        config.inference_mode = True
        model = peft.get_peft_model(tiny_model(), config).eval()
        more = {"task_ids": torch.zeros(1, dtype=torch.long)} if takes_tasks(str(written["peft_type"])) else {}
        with torch.no_grad():
            model(input_ids=torch.tensor([[1, 2, 3]]), **more)
    except Exception as e:
        return f"{type(e).__name__}: {e}"
    return ""


def takes_tasks(method: str) -> bool:
    """Whether the forward pass needs the number of a task."""
    return method in ("POLY", "MULTITASK_PROMPT_TUNING")


def is_refused(method: str, change: Mapping[str, Any]) -> bool:
    """Whether PEFT raises an error for this change in every context."""
    contexts = ({}, *CONTEXTS.get(method, ()))
    return all(error_of(valid_config(method) | dict(context) | dict(change)) for context in contexts)


def beside(method: str, name: str) -> dict[str, Any]:
    """Whether PEFT takes a field of layers only with the numbers of layers, and not beside a pattern of targets."""
    if method in NOT_BUILT:
        return {}
    alone, numbers = {name: LAYER_FIELDS[name]}, {"layers_to_transform": [0]}
    text = {"target_modules": r".*\.q_proj"}
    row: dict[str, Any] = {}
    if error_of(valid_config(method) | alone) and not error_of(valid_config(method) | alone | numbers):
        row["needs"] = "layers_to_transform"
    if not error_of(valid_config(method) | text) and error_of(valid_config(method) | text | alone | numbers):
        row["excludes_pattern"] = True
    return row


def candidates(method: str) -> Iterator[str]:
    """Texts that may be choices: all texts in the module of the configuration, and two tables of names."""
    modules = {kind.__module__ for kind in PEFT_TYPE_TO_CONFIG_MAPPING[method].__mro__ if "peft" in kind.__module__}
    for module in sorted(modules):
        for node in ast.walk(ast.parse(inspect.getsource(sys.modules[module]))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and 0 < len(node.value) < 30:
                yield node.value
    yield from ("all", f"{method.lower()}_only")
    yield from WAVELET_REDUCTIONS
    yield from transformers.activations.ACT2FN


def annotated_kinds(annotation: Any) -> frozenset[str]:
    """The keys of `FOREIGN_SAMPLES` that this annotation names. A dataclass is an object in a file."""
    if parts := typing.get_args(annotation) if typing.get_origin(annotation) not in KINDS_OF_TYPES else ():
        return frozenset().union(*map(annotated_kinds, parts))
    if isinstance(annotation, str):  # one of a `Literal`
        return frozenset({"text"})
    kind = typing.get_origin(annotation) or annotation
    if dataclasses.is_dataclass(kind):
        return frozenset({"object"})
    return frozenset(FOREIGN_SAMPLES) if kind is Any else frozenset({KINDS_OF_TYPES.get(kind, "")})


def entry(method: str, name: str, default: Any, annotation: Any, wrap: Any = None) -> dict[str, Any]:
    """The default of a field, the refused kinds, and the choices."""
    row: dict[str, Any] = {} if default is None else {"default": default}
    is_version = name == "peft_version"
    if method in NOT_BUILT or name in NOT_SAMPLED or (name in COMMON and not is_version):
        return row
    change = wrap or (lambda value: {name: value})
    accepted = {} if isinstance(default, str) or is_version else {kind_of(default): True}
    right = annotated_kinds(annotation)
    foreign = (sample for kind, samples in FOREIGN_SAMPLES.items() if kind not in right for sample in samples)
    for sample in VERSION_SAMPLES if is_version else (*SAMPLES, *foreign):
        kind = kind_of(sample)
        accepted[kind] = accepted.get(kind) or not is_refused(method, change(sample))
    refused = sorted(kind for kind, is_taken in accepted.items() if not is_taken)
    if "text" in refused and "text" in right:
        choices = sorted({text for text in candidates(method) if not is_refused(method, change(text))})
        row |= {"choices": choices} if choices else {}
    return row | ({"refuses": refused} if refused else {})


def defaults(config: type) -> Iterator[tuple[str, Any, Any]]:
    """The name, the default and the annotation of each field that a file may have."""
    annotations = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        if not field.init or field.name == "runtime_config":
            continue
        value = None if field.default is dataclasses.MISSING else field.default
        if field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        value = getattr(value, "value", value)
        default = value if isinstance(value, (bool, int, float, str, list, dict)) else None
        yield field.name, default, annotations[field.name]


def rows_of(method: str) -> dict[str, Any]:
    """Field → what PEFT does with it; `kasa_config.beta` is a field inside a field of LoRA."""
    if method not in NOT_BUILT and (error := error_of(valid_config(method))):
        raise ValueError(f"VALID does not build {method}, so PEFT would seem to refuse every value: {error}")
    fields = sorted(defaults(PEFT_TYPE_TO_CONFIG_MAPPING[method]), key=itemgetter(0))
    rows = {name: entry(method, name, value, annotation) for name, value, annotation in fields}
    for name in rows.keys() & LAYER_FIELDS.keys():
        rows[name] |= beside(method, name)
    for holder, config in NESTED.items() if method == "LORA" else ():
        for inner, value, annotation in sorted(defaults(config), key=itemgetter(0)):
            rows[f"{holder}.{inner}"] = entry(method, inner, value, annotation, partial(_inside, holder, inner))
    return rows


def _inside(holder: str, inner: str, sample: Any) -> dict[str, Any]:
    return {holder: {inner: sample}}


def main(method_names: list[str]) -> None:
    """Write the rows of the given methods, or of all, and keep the others of the file."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    methods = sorted(member.value for member in PeftType)
    rows = {method: row for method, row in table().items() if method in methods}
    for method in method_names or methods:
        rows[method] = rows_of(method)
        write(rows)
        print(method, file=sys.stderr)


def write(rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the file, one field a line."""
    lines = [f'{{"peft": "{peft.__version__}", "methods": {{']
    for number, method in enumerate(sorted(rows), start=1):
        fields = [f"  {json.dumps(name)}: {json.dumps(row, sort_keys=True)}" for name, row in rows[method].items()]
        lines += [f" {json.dumps(method)}: {{", ",\n".join(fields), " }" + "," * (number < len(rows))]
    FILE.write_text("\n".join([*lines, "}}"]) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
