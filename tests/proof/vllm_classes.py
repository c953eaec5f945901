"""vLLM's own code on a CPU: on which modules do the classes of many architectures take LoRA?

    python -m tests.proof.vllm_classes [ARCHITECTURE …]     asks, and adds to tests/engines/recorded_classes.json

Each architecture is a tiny random model of the installed transformers. PEFT makes its adapters: on the embedding, on
the head, on all linear modules. vLLM builds the class and loads the adapters (`_vllm_load.py`, in vLLM's environment)
as its server does; `vllm_http` asks the server itself. Recorded with an answer are the facts by which rules judge.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

from registry import bases
from registry.adapters import safetensors
from registry.adapters.peft import config, describe
from registry.engines import facts as engine_facts
from tests import samples
from tests.proof import venvs
from tests.samples import CONFIG, WEIGHTS

RECORDED = Path(__file__).resolve().parents[1] / "engines" / "recorded_classes.json"
SIZES: dict[str, Any] = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0, "tie_word_embeddings": False,
}  # fmt: skip
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "LlamaForCausalLM": ("LlamaConfig", {}),
    "MistralForCausalLM": ("MistralConfig", {}),
    "Qwen2ForCausalLM": ("Qwen2Config", {}),
    "Qwen3ForCausalLM": ("Qwen3Config", {}),
    "GemmaForCausalLM": ("GemmaConfig", {"tie_word_embeddings": True}),
    "Gemma2ForCausalLM": ("Gemma2Config", {"tie_word_embeddings": True}),
    "Gemma3ForCausalLM": ("Gemma3TextConfig", {"tie_word_embeddings": True}),
    "Phi3ForCausalLM": ("Phi3Config", {}),
    "GraniteForCausalLM": ("GraniteConfig", {}),
    "CohereForCausalLM": ("CohereConfig", {"tie_word_embeddings": True}),
    "Olmo2ForCausalLM": ("Olmo2Config", {}),
    "NemotronForCausalLM": ("NemotronConfig", {}),
    "Exaone4ForCausalLM": ("Exaone4Config", {}),
    "Starcoder2ForCausalLM": ("Starcoder2Config", {}),
    "StableLmForCausalLM": ("StableLmConfig", {}),
    "GPT2LMHeadModel": ("GPT2Config", {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 256}),
    "ApertusForCausalLM": ("ApertusConfig", {}),
    "Ernie4_5ForCausalLM": ("Ernie4_5Config", {}),
    "Glm4ForCausalLM": ("Glm4Config", {"partial_rotary_factor": 0.5}),
    "SmolLM3ForCausalLM": ("SmolLM3Config", {}),
    "HunYuanDenseV1ForCausalLM": ("HunYuanDenseV1Config", {}),
    "FalconForCausalLM": ("FalconConfig", {"head_dim": None, "num_key_value_heads": None}),
    "PhiForCausalLM": ("PhiConfig", {"num_key_value_heads": 2, "head_dim": None}),
    "GPTNeoXForCausalLM": ("GPTNeoXConfig", {"num_key_value_heads": None, "head_dim": None}),
}
"""Architecture → the configuration's class and what differs from `SIZES`."""
CASES: dict[str, str | list[str]] = {
    "embedding": ["embed_tokens", "embed_in", "wte", "word_embeddings"],
    "head": ["lm_head", "embed_out"],
    "linear": "all-linear",
}
SIZES_OF_FACTS = ("parameters", "size_bytes", "tensors", "layers")
"""Facts that no rule about classes reads."""
UNWRITTEN = ("r", "lora_alpha", "target_modules")


def make(architecture: str, folder: Path) -> dict[str, Path]:
    """The base in `folder/base`, and its adapters."""
    kind, changes = ARCHITECTURES[architecture]
    fields = {name: value for name, value in {**SIZES, **changes}.items() if value is not None}
    torch.manual_seed(1)
    model = getattr(transformers, architecture)(getattr(transformers, kind)(**fields)).float().eval()
    model.save_pretrained(folder / "base")
    words = samples.tokenizer(SIZES["vocab_size"])
    (folder / "base" / "tokenizer.json").write_text(json.dumps(words))
    (folder / "base" / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    adapters: dict[str, Path] = {}
    for case, names in CASES.items():
        bare = getattr(transformers, architecture).from_pretrained(folder / "base", dtype=torch.float32)
        have = {name.rpartition(".")[2] for name, _ in bare.named_modules()}
        targets = names if isinstance(names, str) else [name for name in names if name in have]
        torch.manual_seed(2)
        how = peft.LoraConfig(r=8, lora_alpha=16, target_modules=targets, init_lora_weights=False)
        peft.get_peft_model(bare, how).save_pretrained(str(folder / case), save_embedding_layers=False)
        adapters[case] = folder / case
    for name in UNWRITTEN:
        adapters[f"no-{name}"] = shutil.copytree(folder / "linear", folder / f"no-{name}")
        written = json.loads((folder / f"no-{name}" / CONFIG).read_text())
        (folder / f"no-{name}" / CONFIG).write_text(json.dumps({k: v for k, v in written.items() if k != name}))
    return adapters


def facts_of(adapter: Path, base: Path) -> dict[str, Any]:
    """The facts as stored with a version, with those of the base."""
    headers = [safetensors.read_bytes(f.read_bytes(), file=f.name) for f in sorted(base.glob("*.safetensors"))]
    spec = bases.base_spec("tiny", json.loads((base / "config.json").read_text()), headers)
    written = config.read_config((adapter / CONFIG).read_bytes())
    lora = describe(written, safetensors.read_bytes((adapter / WEIGHTS).read_bytes(), file=WEIGHTS))
    facts = engine_facts.to_stored(engine_facts.of_lora(lora, compat="pass", base=spec))
    return {name: value for name, value in facts.items() if name not in SIZES_OF_FACTS}


def ask(architectures: Iterable[str], folder: Path) -> dict[str, dict[str, Any]]:
    """Architecture → its class and modules, and by case the adapter's facts and what vLLM answered."""
    python = venvs.vllm_python()
    if python is None:
        raise RuntimeError("vLLM is not installed: python -m tests.proof.venvs vllm")
    adapters = {name: make(name, folder / name) for name in architectures}
    questions = [[str(folder / n / "base"), {c: str(p) for c, p in paths.items()}] for n, paths in adapters.items()]
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    process = subprocess.run([str(python), str(Path(__file__).with_name("_vllm_load.py"))], input=json.dumps(questions),
                           capture_output=True, text=True, env=clean, cwd=folder, check=False)  # fmt: skip
    rows = [json.loads(line[1:]) for line in process.stdout.splitlines() if line.startswith("@")]
    if len(rows) != len(adapters):
        raise RuntimeError(f"vLLM ended early:\n{process.stderr[-4000:]}")
    results: dict[str, dict[str, Any]] = {}
    for (name, paths), row in zip(adapters.items(), rows, strict=True):
        row_answers = row.pop("answers", {})
        cases = {
            case: {
                "answer": row_answers.get(case, row.get("error", "")),
                "facts": facts_of(path, folder / name / "base"),
            }
            for case, path in paths.items()
        }
        results[name] = {**row, "cases": cases}
    return results


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="proof-") as scratch:
        answers = ask(sys.argv[1:] or ARCHITECTURES, Path(scratch))
    document = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
    document.setdefault(f"vllm=={venvs.VLLM}", {}).update(answers)
    RECORDED.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
    sys.stdout.write(f"{len(answers)} architectures asked of vLLM {venvs.VLLM} -> {RECORDED.name}\n")
