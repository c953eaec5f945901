"""Parts of `benchmarks/merge.py`: the models and adapters that it merges, and what runs in processes of its own.

Invariants
- Models and adapters are random, written once under .cache/bench and used again; nothing is downloaded.
- What is timed inside a process is said by that process as one JSON line, and so is its peak memory (VmHWM): what
  the system counts for a child (ru_maxrss) begins at the size of its parent.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".cache" / "bench"
HIDDEN, INNER, HEADS, VOCAB = 1536, 4096, 12, 32000
LARGE, SMALL = 27, 9
"""Layers of the two bases: 1.7 GB and 0.7 GB in bfloat16."""
RANK = 16
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SMOL = {"hidden": 576, "inner": 1536, "kv": 192, "layers": 30}
"""The sizes of SmolLM2-135M, on whose modules adapters are combined."""

FUSE = """
import gc, json, sys, time
gc.disable()  # as registry/worker/sandbox/program.py starts it
from pathlib import Path
from registry.worker.sandbox import program
from registry.worker.merge import fuse
from registry.worker.merge.adapters import Adapter
program.finish_start()
began = time.perf_counter()
fuse.fuse(Adapter.open(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
took = time.perf_counter() - began
"""
PEFT = """
import json, sys, time
import peft, torch, transformers
began = time.perf_counter()
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[2], dtype=torch.bfloat16)
merged = peft.PeftModel.from_pretrained(model, sys.argv[1]).merge_and_unload()
merged.save_pretrained(sys.argv[3])
took = time.perf_counter() - began
"""
SAY = """
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"seconds": took, "peak_mb": int(peak.split()[1]) / 1024, "cpu": time.process_time()}), flush=True)
"""
END = "import os; os._exit(0)"
"""As `program.serve` ends."""


class ProcessResult(NamedTuple):
    """A process: its wall time with the start, what it timed itself, its peak memory in MB, its seconds of CPU."""

    process_seconds: float
    seconds: float
    peak_mb: float
    cpu_seconds: float


def run(script: str, *arguments: Path) -> ProcessResult:
    """Run a script with these arguments in a Python of its own."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    began = time.perf_counter()
    script += SAY + (END if script == FUSE else "")
    process = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env=environment,
    )  # fmt: skip
    output, _ = process.communicate()
    took = time.perf_counter() - began
    if process.returncode:
        raise SystemExit(f"a process of the benchmark ended with {process.returncode}")
    figures = json.loads(output.splitlines()[-1])
    return ProcessResult(took, figures["seconds"], figures["peak_mb"], figures["cpu"])


def llama(layers: int) -> Path:
    """A random Llama of so many layers, bfloat16, in shards of nine layers."""
    folder = CACHE / f"llama-{layers}"
    if (folder / "config.json").is_file():
        return folder
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(1)

    def matrix(rows: int, columns: int) -> Any:
        return torch.randn(rows, columns, dtype=torch.bfloat16) * 0.02

    where: dict[str, str] = {}
    shards = [range(first, min(first + 9, layers)) for first in range(0, layers, 9)]
    for number, numbers in enumerate(shards, 1):
        tensors = {}
        if number == 1:
            tensors["model.embed_tokens.weight"] = matrix(VOCAB, HIDDEN)
        for layer in numbers:
            head = f"model.layers.{layer}"
            tensors |= {f"{head}.{name}.weight": matrix(*shape) for name, shape in modules(HIDDEN, INNER, HIDDEN)}
            for norm in ("input_layernorm", "post_attention_layernorm"):
                tensors[f"{head}.{norm}.weight"] = torch.ones(HIDDEN, dtype=torch.bfloat16)
        if number == len(shards):
            tensors["model.norm.weight"] = torch.ones(HIDDEN, dtype=torch.bfloat16)
            tensors["lm_head.weight"] = matrix(VOCAB, HIDDEN)
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(tensors, folder / name, metadata={"format": "pt"})
        where |= dict.fromkeys(tensors, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
        "intermediate_size": INNER, "num_hidden_layers": layers, "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS, "vocab_size": VOCAB, "tie_word_embeddings": False, "dtype": "bfloat16",
        "rms_norm_eps": 1e-5, "max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def modules(hidden: int, inner: int, kv: int) -> list[tuple[str, tuple[int, int]]]:
    """The linear modules of a layer with their shapes [out, in]."""
    return [
        ("self_attn.q_proj", (hidden, hidden)), ("self_attn.k_proj", (kv, hidden)),
        ("self_attn.v_proj", (kv, hidden)), ("self_attn.o_proj", (hidden, hidden)), ("mlp.gate_proj", (inner, hidden)),
        ("mlp.up_proj", (inner, hidden)), ("mlp.down_proj", (hidden, inner)),
    ]  # fmt: skip


def adapter(name: str, layers: int, shapes: list[tuple[str, tuple[int, int]]], rank: int, seed: int) -> Path:
    """A LoRA on all linear modules with random factors, 16-bit as trainers of 16-bit bases save them."""
    folder = CACHE / name
    if (folder / "adapter_config.json").is_file():
        return folder
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    tensors = {}
    for layer in range(layers):
        for module, (rows, columns) in shapes:
            head = f"base_model.model.model.layers.{layer}.{module}"
            tensors[f"{head}.lora_A.weight"] = torch.randn(rank, columns) / columns**0.5
            tensors[f"{head}.lora_B.weight"] = torch.randn(rows, rank) * 0.01 * torch.arange(rank, 0, -1)
    half = {key: tensor.bfloat16() for key, tensor in tensors.items()}
    save_file(half, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 2 * rank, "target_modules": TARGETS,
        "lora_dropout": 0.0, "bias": "none", "base_model_name_or_path": "random", "inference_mode": True,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
