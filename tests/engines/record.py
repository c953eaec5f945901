"""Asks the engines' own code what it does with `cases.py`, and writes `recorded.json` beside this file.

    python -m tests.engines.record FOLDER        FOLDER/vllm-0.32.0/vllm/…, FOLDER/sglang-0.5.23/sglang/…

FOLDER holds the Python files of published wheels (`pip download --no-deps`, unzip); nothing is installed and no
GPU is needed. Only the functions that decide about an adapter are taken out of the files and run:

    vLLM     PEFTHelper.from_dict and validate_legal; parse_fine_tuned_lora_name for every tensor; LoRAConfig
    SGLang   LoRAConfig, can_support, use_dora; normalize_qkv_proj and normalize_gate_up_proj (these need torch)
"""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import sys
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

from tests.engines import cases
from tests.engines.cases import tensor_names
from tests.samples import CONFIG, WEIGHTS, Files

CASES = {**cases.CASES, **cases.UNWRITTEN}
RECORDED = Path(__file__).with_name("recorded.json")
RECORDED_SETTINGS = Path(__file__).with_name("recorded_settings.json")
MAX_LORA_RANK = 16
RANKS = (0, 1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 320, 384, 512, 1024)
SETTINGS = (*(f"max_lora_rank={rank}" for rank in RANKS), "max_loras=0", "max_loras=1", "max_loras=200")


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Instead of the engine's log."""


class _Silent:
    def __getattr__(self, name: str) -> Callable[..., None]:
        return _nothing


def _functions(path: Path, names: set[str], namespace: dict[str, Any]) -> dict[str, Any]:
    """These functions (or methods) of a file, compiled on their own; `given` is all that they see."""
    functions = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef) and n.name in names]
    for node in functions:
        node.decorator_list, node.returns = [], None
        for argument in [*node.args.args, *node.args.kwonlyargs]:
            argument.annotation = None
    space = dict(namespace)
    exec(
        compile(ast.Module(body=[*functions], type_ignores=[]), str(path), "exec"), space
    )  # the engine's code, on purpose
    return space


def _module(path: Path, stubs: dict[str, dict[str, Any]]) -> Any:
    """A file as a module; what it imports of its engine are stubs, which are gone afterwards."""
    before = {name: sys.modules.get(name) for name in stubs}
    for name, content in stubs.items():
        stub = types.ModuleType(name)
        stub.__dict__.update(content)
        sys.modules[name] = stub
    try:
        return _executed(path)
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def _executed(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"recorded_{abs(hash(path))}", path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _answer(ask: Callable[[], Any]) -> str:
    try:
        ask()
    except Exception as e:  # whatever the engine raises is its answer
        return f"{type(e).__name__}: {str(e)[:300]}"
    return "ok"


def vllm(folder: Path) -> dict[str, str]:
    """Case → `ok` or the refusal of one version of vLLM."""
    at = folder / "vllm" / "lora"
    stubs: dict[str, dict[str, Any]] = {
        "vllm": {}, "vllm.config": {}, "vllm.config.lora": {"LoRAConfig": object},
        "vllm.logger": {"init_logger": lambda _name: _Silent()}, "vllm.model_executor": {},
        "vllm.model_executor.model_loader": {}, "regex": vars(re),
        "vllm.model_executor.model_loader.tensorizer": {"TensorizerConfig": object},
    }  # fmt: skip
    helper = _module(at / "peft_helper.py", stubs).PEFTHelper
    names = _functions(at / "utils.py", {"parse_fine_tuned_lora_name", "is_base_embedding_weights"}, {})
    limits = types.SimpleNamespace(max_lora_rank=MAX_LORA_RANK, bias_enabled=False)

    def ask(files: Files) -> None:
        helper.from_dict(json.loads(files[CONFIG]) | {"vllm_max_position_embeddings": 2048}).validate_legal(limits)
        for name in tensor_names(files):
            if not names["is_base_embedding_weights"](name):
                names["parse_fine_tuned_lora_name"](name)

    return {case: _answer(partial(ask, files)) for case, files in CASES.items()}


def vllm_settings(folder: Path) -> dict[str, str]:
    """Setting → `ok`, or why LoRAConfig of one version of vLLM refuses to start with it."""
    import pydantic.dataclasses

    def config(*, config: Any) -> Any:
        return pydantic.dataclasses.dataclass(config=cast(pydantic.ConfigDict, {"extra": "forbid", **config}))

    nothing = types.SimpleNamespace(VLLM_LORA_ENABLE_DUAL_STREAM=False)
    stubs: dict[str, dict[str, Any]] = {
        "vllm": {"envs": nothing}, "vllm.config": {}, "vllm.config.utils": {"config": config},
        "vllm.config.kernel": {"MEGA_MOE_BACKENDS": (), "KernelConfig": object},
        "vllm.logger": {"init_logger": lambda _name: _Silent()},
        "vllm.platforms": {"current_platform": nothing}, "vllm.utils": {}, "vllm.utils.hashing": {"safe_hash": None},
    }  # fmt: skip
    config_class = _module(folder / "vllm" / "config" / "lora.py", stubs).LoRAConfig
    settings = {text: text.split("=") for text in SETTINGS}
    answers = {text: _answer(partial(config_class, **{name: int(value)}))
               for text, (name, value) in settings.items()}  # fmt: skip
    return {text: " ".join(answer.partition("[")[0].split()) for text, answer in answers.items()}


def sglang(folder: Path) -> dict[str, str]:
    """Case → `ok` or the refusal of SGLang's admission and of its joining of q, k, v and gate, up."""
    import torch  # only recording needs it
    from safetensors.torch import load

    at = folder / "sglang" / "srt" / "lora"
    config_class = _module(at / "lora_config.py", {"huggingface_hub": {"snapshot_download": None}}).LoRAConfig
    normal = _functions(at / "utils.py", {"get_normalized_target_modules"}, {})["get_normalized_target_modules"]
    names = {"torch": torch, "get_normalized_target_modules": normal, "LoRAConfig": config_class, "logger": _Silent()}
    support = _functions(at / "mem_pool.py", {"can_support"}, {**names, "Union": None, "Iterable": None})["can_support"]
    joins = _functions(at / "lora.py", {"normalize_qkv_proj", "normalize_gate_up_proj"}, names)
    everything = {"qkv_proj", "o_proj", "gate_up_proj", "down_proj", "embed_tokens", "lm_head"}
    pool = types.SimpleNamespace(max_lora_rank=MAX_LORA_RANK, lora_added_tokens_size=0, target_modules=everything)
    adapter = types.SimpleNamespace(_is_non_gated_moe_weight=lambda _name: False)

    def ask(files: Files) -> None:
        config = config_class.from_dict(json.loads(files[CONFIG]))
        if config.use_dora:
            raise ValueError("doesn't support DoRA adapters")
        if not support(pool, config):
            raise ValueError("is incompatible with the current LoRA memory pool configuration")
        layers: dict[str, dict[str, Any]] = {}
        for name, tensor in load(files[WEIGHTS]).items():
            if layer := re.search(r"layers\.(\d+)\.", name):
                layers.setdefault(layer[1], {})[name] = tensor
        for weights in layers.values():
            joins["normalize_qkv_proj"](adapter, list(weights), weights)
            joins["normalize_gate_up_proj"](adapter, list(weights), weights)

    return {case: _answer(partial(ask, files)) for case, files in CASES.items()}


def main(folder: Path) -> None:
    answers: dict[str, dict[str, str]] = {}
    settings: dict[str, dict[str, str]] = {}
    for wheel in sorted(folder.iterdir()):
        name, _, version = wheel.name.partition("-")
        if name in ("vllm", "sglang") and version:
            answers[f"{name}=={version}"] = (vllm if name == "vllm" else sglang)(wheel)
        if name == "vllm" and version:
            settings[f"{name}=={version}"] = vllm_settings(wheel)
    RECORDED_SETTINGS.write_text(json.dumps(settings, indent=1, sort_keys=True) + "\n")
    RECORDED.write_text(json.dumps(answers, indent=1, sort_keys=True) + "\n")
    sys.stdout.write(f"{len(answers)} engines, {len(CASES)} adapters -> {RECORDED.name}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
