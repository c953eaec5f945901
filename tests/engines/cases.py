"""Adapters for questions to engines: name → the files of a tiny adapter with exactly one property.

Used by the tests of the rules and by `record.py`, which asks the engines' own code the same questions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from registry.adapters import peft, safetensors
from registry.adapters.peft import config
from registry.engines import facts as engine_facts
from registry.engines.facts import EngineFacts
from tests import samples
from tests.base_specs import spec_of
from tests.samples import CONFIG, WEIGHTS, Files, Tensor

BASE = samples.llama(heads=2, kv_heads=1)  # heads of 32: the smallest that engines have kernels for
_EMBEDDING = "base_model.model.model.embed_tokens"
_AT = "base_model.model.model.layers.0.self_attn"


def _with(extra: dict[str, Tensor]) -> Any:
    return lambda t: {**t, **extra}


def _renamed(old: str, new: str) -> Any:
    return lambda t: {name.replace(old, new): tensor for name, tensor in t.items()}


def _patterned(t: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rank 4 for v_proj, 8 for the rest."""
    sizes: dict[str, Callable[[Any], tuple[int, ...]]] = {"lora_A": lambda s: (4, s[1]), "lora_B": lambda s: (s[0], 4)}
    return {
        name: (dtype, next(size(shape) for half, size in sizes.items() if half in name), None)
        if "v_proj" in name else (dtype, shape, body)
        for name, (dtype, shape, body) in t.items()
    }  # fmt: skip


def _lora(**fields: Any) -> Files:
    return samples.lora(BASE, config=fields)


_BIASES: dict[str, Tensor] = {
    f"base_model.model.{path}.lora_B.bias": ("F32", (rows,), None)
    for path, (rows, _) in BASE.linears.items()
    if path.endswith(("q_proj", "v_proj"))
}
CASES: dict[str, Files] = {
    "plain": _lora(),
    "all-linear": samples.lora(BASE, targets=samples.ALL_LINEAR),
    "rank-16": samples.lora(BASE, rank=16),
    "rank-64": samples.lora(BASE, rank=64),
    "rslora": samples.lora(BASE, rslora=True),
    "dora": samples.lora(BASE, dora=True),
    "bias-all": _lora(bias="all"),
    "lora-bias": samples.lora(
        BASE, config={"lora_bias": True}, change=_with(_BIASES)
    ),
    "rank-pattern": samples.lora(BASE, config={"rank_pattern": {"v_proj": 4}}, change=_patterned),
    "alpha-pattern": _lora(alpha_pattern={"v_proj": 64}),
    "pissa": _lora(init_lora_weights="pissa"),
    "pissa-niter": _lora(init_lora_weights="pissa_niter_4"),
    "olora": _lora(init_lora_weights="olora"),
    "loftq": _lora(init_lora_weights="loftq", loftq_config={"loftq_bits": 4}),
    "eva": _lora(init_lora_weights="eva"),
    "gaussian": _lora(init_lora_weights="gaussian"),
    "layer-replication": _lora(layer_replication=[[0, 3], [1, 4]]),
    "alora": _lora(alora_invocation_tokens=[7, 8, 9]),
    "qalora": _lora(use_qalora=True),
    "saved-lm-head": samples.lora(
        BASE, config={"modules_to_save": ["lm_head"]},
        change=_with({"base_model.model.lm_head.weight": ("F32", (512, 64), None)}),
    ),
    "saved-score": samples.lora(
        BASE, config={"modules_to_save": ["score"], "task_type": "SEQ_CLS"},
        change=_with({"base_model.model.score.weight": ("F32", (2, 64), None)}),
    ),
    "trained-tokens": samples.lora(
        BASE, config={"trainable_token_indices": {"embed_tokens": [5, 6]}},
        change=_with({f"{_EMBEDDING}.token_adapter.trainable_tokens_delta": ("F32", (2, 64), None)}),
    ),
    "on-lm-head": samples.lora(BASE, targets=("q_proj", "v_proj", "lm_head")),
    "targets-pattern": _lora(target_modules=r".*\.self_attn\.(q|v)_proj"),
    "absent-target": _lora(target_modules=["q_proj", "v_proj", "no_such_proj"]),
    "q-only": samples.lora(BASE, targets=("q_proj",)),
    "v-only": samples.lora(BASE, targets=("v_proj",)),
    "up-only": samples.lora(BASE, targets=("up_proj",)),
    "gate-only": samples.lora(BASE, targets=("gate_proj",)),
    "some-layers": samples.lora(
        BASE, config={"layers_to_transform": [1]}, change=lambda t: {n: v for n, v in t.items() if ".layers.1." in n}
    ),
    "alpha-absent": samples.lora(BASE, alpha=None),
    "rank-differs-from-config": _lora(r=4),
    "wrong-prefix": samples.lora(BASE, change=_renamed("base_model.model.model.", "transformer.")),
    "adapter-name": samples.lora(BASE, change=_renamed(".weight", ".default.weight")),
    "compiled": samples.lora(BASE, change=_renamed("base_model.model.", "base_model.model._orig_mod.")),
    "no-b": samples.lora(BASE, change=lambda t: {n: v for n, v in t.items() if n != f"{_AT}.q_proj.lora_B.weight"}),
    "overwrites": samples.lora(BASE, change=_with({"base_model.model.lm_head.weight": ("F32", (512, 64), None)})),
    "float8": samples.lora(
        BASE, change=lambda t: {n: ("F8_E4M3", s, b"\x30" * (s[0] * s[1])) for n, (_, s, _) in t.items()}
    ),
}  # fmt: skip

UNWRITTEN: dict[str, Files] = {
    "r-absent": _lora(r=...),
    "targets-absent": _lora(target_modules=...),
    "targets-null": _lora(target_modules=None),
}
"""Asked of the classes that validate a configuration, and of nothing that runs."""


def facts_of(files: Files, *, compat: str = "pass") -> EngineFacts:
    spec = peft.describe(config.read_config(files[CONFIG]), safetensors.read_bytes(files[WEIGHTS], file=WEIGHTS))
    return engine_facts.of_lora(spec, compat=compat, base=spec_of(BASE))


def tensor_names(files: Files) -> list[str]:
    return [t.name for t in safetensors.read_bytes(files[WEIGHTS], file=WEIGHTS)]
