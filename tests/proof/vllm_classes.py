"""Real vLLM on a CPU: on which modules do the classes of many architectures take LoRA, and does it act as in PEFT?

    python -m tests.proof.vllm_classes [ARCHITECTURE …]     asks, and adds to tests/engines/recorded_classes.json

Each architecture is a tiny random model of the installed transformers. PEFT makes its adapters: on the embedding, on
the head, on all linear modules. What is recorded with an answer are the adapter's facts, by which the rules judge it.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

from registry import bases
from registry.adapters import safetensors
from registry.adapters.peft import config, describe
from registry.engines import facts as engine_facts
from tests import forge
from tests.forge import CONFIG, WEIGHTS
from tests.proof import reference, venvs, vllm_http

RECORDED = Path(__file__).resolve().parents[1] / "engines" / "recorded_classes.json"
SIZES: dict[str, Any] = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0, "tie_word_embeddings": False,
}  # fmt: skip
EXPERTS: dict[str, Any] = {"num_local_experts": 2, "num_experts": 2, "num_experts_per_tok": 1,
                           "moe_intermediate_size": 64}  # fmt: skip
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
    "Qwen3MoeForCausalLM": ("Qwen3MoeConfig", EXPERTS),
    "GPTNeoXForCausalLM": ("GPTNeoXConfig", {"num_key_value_heads": None, "head_dim": None}),
}
"""Architecture → the configuration's class and what differs from `SIZES`."""
CASES: dict[str, str | list[str]] = {"embedding": ["embed_tokens", "embed_in"], "head": ["lm_head", "embed_out"],
                                     "linear": "all-linear"}  # fmt: skip


def make(architecture: str, folder: Path) -> dict[str, Path]:
    """The base in `folder/base`, and its adapters."""
    kind, changes = ARCHITECTURES[architecture]
    fields = {name: value for name, value in {**SIZES, **changes}.items() if value is not None}
    torch.manual_seed(1)
    model = getattr(transformers, architecture)(getattr(transformers, kind)(**fields)).float().eval()
    model.save_pretrained(folder / "base")
    words = forge.tokenizer(SIZES["vocab_size"])
    (folder / "base" / "tokenizer.json").write_text(json.dumps(words))
    (folder / "base" / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    adapters: dict[str, Path] = {}
    for case, names in CASES.items():
        bare = getattr(transformers, architecture).from_pretrained(folder / "base", dtype=torch.float32)
        have = {name.rpartition(".")[2] for name, _ in bare.named_modules()}
        targets = names if isinstance(names, str) else [name for name in names if name in have]
        torch.manual_seed(2)
        trained = peft.get_peft_model(bare, peft.LoraConfig(r=8, lora_alpha=16, target_modules=targets,
                                                            init_lora_weights=False, task_type="CAUSAL_LM"))  # fmt: skip
        trained.save_pretrained(str(folder / case), save_embedding_layers=False)
        adapters[case] = folder / case
    return adapters


def facts_of(adapter: Path, base: Path) -> dict[str, Any]:
    """The facts as stored with a version, with those of the base."""
    headers = [safetensors.read_bytes(f.read_bytes(), file=f.name) for f in sorted(base.glob("*.safetensors"))]
    spec = bases.base_spec("tiny", json.loads((base / "config.json").read_text()), headers)
    written = config.read_config((adapter / CONFIG).read_bytes())
    lora = describe(written, safetensors.read_bytes((adapter / WEIGHTS).read_bytes(), file=WEIGHTS))
    return engine_facts.to_stored(engine_facts.of_lora(lora, compat="pass", base=spec))


def ask(architecture: str, folder: Path) -> dict[str, dict[str, Any]]:
    """Case → the adapter's facts, what vLLM answered, and whether it acted as in PEFT."""
    python = venvs.vllm_python()
    if python is None:
        raise RuntimeError("vLLM is not installed: python -m tests.proof.venvs vllm")
    adapters = make(architecture, folder)
    facts: Mapping[str, Any] = {case: facts_of(path, folder / "base") for case, path in adapters.items()}
    known = reference.answers(folder / "base", adapters)
    try:
        with vllm_http.server(python, folder / "base", folder / "vllm.log") as client:
            rows = vllm_http.ask(client, adapters, known)
    except RuntimeError as e:
        reasons = [line for line in str(e).splitlines() if "Error" in line]
        rows = {case: {"answer": f"does not start: {reasons[-1][-300:] if reasons else ''}"} for case in adapters}
    return {case: {**row, "facts": facts[case]} for case, row in rows.items()}


if __name__ == "__main__":
    for chosen in sys.argv[1:] or ARCHITECTURES:
        with tempfile.TemporaryDirectory(prefix="proof-") as scratch:
            answers = ask(chosen, Path(scratch))
        document = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
        document.setdefault(f"vllm=={venvs.VLLM}", {})[chosen] = answers
        RECORDED.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
        sys.stdout.write(f"{chosen}: {({case: row['answer'][:80] for case, row in answers.items()})}\n")
        sys.stdout.flush()
