"""The header-only verdict against PEFT's own loader, on good adapters that were changed at random.

What PEFT loads whole is never told no; where PEFT refuses, or leaves a tensor out, or finds one without a place, the
answer is never a yes without a word.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from registry.adapters.peft.config import read_config
from registry.client.local.adapter_folder import read_adapter
from registry.client.local.base_folder import base_spec_from
from registry.compat import check
from registry.errors import RegistryError
from registry.evaluation.verdicts import Outcome, add_up
from tests import fixtures, samples

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not fixtures.AVAILABLE, reason="the worker extra (torch, transformers, peft) is not installed"),
]

Tensors = dict[str, Any]
Written = dict[str, Any]

ADAPTERS = (
    "lora-r8-all", "lora-regex", "lora-layers-to-transform", "lora-rank-pattern", "lora-dora", "lora-bias-all",
    "lora-modules-to-save", "lora-on-embedding", "lora-trainable-tokens", "lora-exclude", "lora-gpt2", "lora-fused-qkv",
    "lora-moe-attn", "lora-moe-target-parameters", "lora-moe-all-linear", "lora-layer-replication",
)  # fmt: skip
CASES = 96
MARKS = ("lora_", "modules_to_save", "trainable_tokens")


def renamed(rng: random.Random, _written: Written, tensors: Tensors) -> None:
    name = rng.choice(list(tensors))
    old, new = rng.choice([("q_proj", "k_proj"), ("layers", "h"), ("model.", ""), ("lora_A", "lora_B"), (".1.", ".9.")])
    tensors[name.replace(old, new, 1)] = tensors.pop(name)


def lost(rng: random.Random, _written: Written, tensors: Tensors) -> None:
    tensors.pop(rng.choice(list(tensors)))


def cut(rng: random.Random, _written: Written, tensors: Tensors) -> None:
    name = rng.choice(list(tensors))
    tensors[name] = tensors[name][:-1].contiguous()


def targeted(rng: random.Random, written: Written, _tensors: Tensors) -> None:
    more = ["o_proj", "lm_head", "nothing", "norm", "self_attn.q_proj", "embed_tokens"]
    if isinstance(written["target_modules"], list):
        written["target_modules"].append(rng.choice(more))
    else:
        written["target_modules"] = rng.choice([r".*\.(q|v)_proj", r".*proj", r"^(?!.*mlp).*_proj"])


def announced(rng: random.Random, written: Written, _tensors: Tensors) -> None:
    options: list[tuple[str, list[Any]]] = [
        ("layers_to_transform", [[0], [0, 1, 2, 3], 1, [9]]), ("r", [1, 8, 16]),
        ("use_dora", [True, False]),
        ("exclude_modules", [["q_proj"], ["nothing"], r".*layers\.0\..*"]), ("bias", ["none", "all"]),
        ("modules_to_save", [["lm_head"], ["norm"], ["nothing"], ["q_proj"], None]),
        ("alpha_pattern", [{"q_proj": 64}]),
        ("rank_pattern", [{"q_proj": 2}, {r"model\.layers\.\d+\.mlp\.down_proj": 8}, {".*v_proj": 4}, {}]),
    ]  # fmt: skip
    field, values = rng.choice(options)
    written[field] = rng.choice(values)


CHANGES: tuple[Callable[[random.Random, Written, Tensors], None], ...] = (renamed, lost, cut, targeted, announced)


def of_peft(base: Path, folder: Path, tensors: Tensors) -> str:
    """What PEFT has against it; empty if it loads whole."""
    import peft
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    try:
        wrapped = peft.get_peft_model(model, peft.PeftConfig.from_pretrained(str(folder)))
        loaded = peft.set_peft_model_state_dict(wrapped, dict(tensors))
    except (ValueError, RuntimeError, KeyError, AttributeError, TypeError) as e:
        return f"{type(e).__name__}: {e}"[:200]
    missing = [name for name in loaded.missing_keys if any(mark in name for mark in MARKS)]
    return " ".join([*missing[:2], *loaded.unexpected_keys[:2]])


@pytest.mark.parametrize("part", range(4))
def test_the_verdict_agrees_with_pefts_loader(part: int, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    good, bases, counts = fixtures.good(), fixtures.tiny_bases(), {True: 0, False: 0}
    for case in range(part, CASES, 4):
        rng = random.Random(case)
        name = rng.choice(ADAPTERS)
        base = bases / fixtures.manifest(good)[name]["base"]
        written, tensors = (
            json.loads((good / name / samples.CONFIG).read_bytes()),
            load_file(good / name / samples.WEIGHTS),
        )
        changes = [rng.choice(CHANGES) for _ in range(rng.choice([0, 1, 1, 1, 2]))]
        for change in changes:
            change(rng, written, tensors)
        folder = tmp_path / str(case)
        folder.mkdir()
        (folder / samples.CONFIG).write_text(json.dumps(written))
        save_file(tensors, folder / samples.WEIGHTS)
        against = of_peft(base, folder, tensors)
        try:
            findings = check(read_adapter(folder).contents, base_spec_from(base, base.name)[0])
            outcome, messages = add_up(findings), [f.message for f in findings if f.severity != "info"]
        except RegistryError as e:
            outcome, messages = Outcome.FAIL, [str(e)]
        label = (case, name, [change.__name__ for change in changes], against, messages)
        assert (outcome is Outcome.FAIL) is bool(against), label
        counts[bool(against)] += 1
    assert min(counts.values()) > 2, "the changes are all of one kind"


VALUES: dict[str, list[Any]] = {
    "r": [None, 8], "lora_alpha": [None, 16], "lora_dropout": [None, 7, "0.1", 0.5], "bias": [None, "", "none"],
    "rank_pattern": [None, {}], "alpha_pattern": [None, {}], "layers_to_transform": [None],
    "modules_to_save": [None], "exclude_modules": [None], "use_dora": [None], "task_type": [None],
    "init_lora_weights": [None, "", "hello", "PiSSA", "OLoRA", "Gaussian", "pissa_niter_x", "pissa_niter_2", "pissaX",
                          "true", "eva", "orthogonal", True, False],
}  # fmt: skip


@pytest.mark.security
@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in VALUES.items() for value in values])
def test_a_configuration_is_not_loadable_where_peft_raises_an_error(field: str, value: Any) -> None:
    import peft
    import transformers

    written = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]}
    written[field] = value
    findings = read_config(json.dumps(written).encode()).findings
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, num_attention_heads=2))
    try:
        config = peft.PeftConfig.from_peft_type(**written)
        config.inference_mode = True
        peft.get_peft_model(model, config)
        is_loadable = True
    except (TypeError, ValueError, AttributeError, NotImplementedError):
        is_loadable = False
    assert is_loadable is ("config.not_loadable" not in {finding.code for finding in findings})
