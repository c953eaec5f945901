"""llama.cpp's own server (xllamacpp, CPU): the GGUF adapters that we convert, against PEFT's answers.

    python -m tests.proof.llama_cpp         asks and writes tests/engines/recorded_llama_cpp.json

Invariants
- The server runs in its own environment and process. It has every adapter, and a request names the one it wants.
- What is compared is the whole distribution after the prompt: 512 log-probabilities.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import peft
import torch
import transformers

from registry.bases import BaseSpec
from registry.client.local.adapter_folder import read_adapter
from registry.errors import RegistryError
from registry.merging import conversions
from registry.merging.conversions import Conversion, TargetFormat
from registry.worker.conversions import to_gguf
from registry.worker.conversions.request import ConversionRequest
from tests import samples
from tests.base_specs import spec_of
from tests.engines.cases import BASE, CASES
from tests.proof import reference, venvs, vllm_http

RECORDED = Path(__file__).resolve().parents[1] / "engines" / "recorded_llama_cpp.json"
SERVER = Path(__file__).with_name("_llama_server.py")


def base_file(folder: Path) -> Path:
    """The base of the cases as GGUF, by the same row order that llama.cpp's converter gives q and k."""
    config, path = BASE.config, folder / "base.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(BASE.name)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    words = samples.tokenizer(config["vocab_size"])["model"]["vocab"]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(list(words))
    writer.add_token_scores([0.0] * len(words))
    writer.add_token_types([3 if word.startswith("<") else 1 for word in words])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(3)
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, (_, shape, body) in samples.tensors_of(BASE.files["model.safetensors"]).items():
        tensor = torch.from_numpy(np.frombuffer(body or b"", "<f4").reshape(shape).copy())
        heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
        leaf = name.removesuffix(".weight").rpartition(".")[2]
        if leaf in heads:
            tensor = to_gguf.to_pairs(tensor, heads[leaf])
        writer.add_tensor(f"{table.get_name(name.removesuffix('.weight'))}.weight", tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def converted(folder: Path, source: Path, base: BaseSpec) -> Path | str:
    """The GGUF file of this adapter, or the sentence with which our converter refuses it."""
    conversion = Conversion(to=TargetFormat.GGUF, into="acme/converted")
    try:
        conversions.runs_on(read_adapter(source).contents, conversion, base)
        to_gguf.convert(ConversionRequest(conversion=conversion, source=str(source), out=str(folder), base=base))
    except RegistryError as e:
        return e.detail[:200]
    return folder / to_gguf.FILE


@torch.no_grad()
def after_prompt(base: Path, adapter: Path | None) -> list[float]:
    """PEFT's log-probabilities of every token after the prompt."""
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    if adapter is not None:
        model = peft.PeftModel.from_pretrained(model, str(adapter))
    logits = model(input_ids=torch.tensor([reference.PROMPT])).logits[0, -1].double()
    return [float(x) for x in torch.log_softmax(logits, -1)]


def run(folder: Path) -> dict[str, dict[str, Any]]:
    python = venvs.llama_python()
    if python is None:
        raise RuntimeError("llama.cpp is not installed: python -m tests.proof.venvs llama")
    sources = {name: path for name, path in vllm_http.write(folder).items() if name in CASES}
    spec = spec_of(BASE)
    files = {name: converted(folder / "gguf" / name, source, spec) for name, source in sources.items()}
    there = {name: str(file) for name, file in files.items() if isinstance(file, Path)}
    order = {"base": str(base_file(folder)), "adapters": there, "prompt": list(reference.PROMPT)}
    process = subprocess.run(
        [str(python), str(SERVER)], input=json.dumps(order), capture_output=True, text=True, check=False, timeout=600
    )
    if process.returncode:
        raise RuntimeError(f"llama.cpp failed:\n{process.stderr[-4000:]}")
    served: dict[str, list[float]] = json.loads(process.stdout.splitlines()[-1])
    sys.stderr.write(f"{len(there)} of {len(files)} adapters converted\n")
    alone = after_prompt(folder / "base", None)
    rows: dict[str, dict[str, Any]] = {"": {"from_peft": difference(served[""], alone)}}
    for name, file in files.items():
        if isinstance(file, str):
            rows[name] = {"converter": file}
            continue
        rows[name] = {"converter": "ok", "from_base": difference(served[name], alone)}
        try:
            rows[name]["from_peft"] = difference(served[name], after_prompt(folder / "base", sources[name]))
        except Exception as e:  # whatever PEFT says is its answer
            rows[name]["peft"] = f"{type(e).__name__}: {str(e)[:200]}"
    return rows


def difference(first: list[float], other: list[float]) -> float:
    return float(f"{max(abs(a - b) for a, b in zip(first, other, strict=True)):.3g}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="proof-") as scratch:
        recorded = run(Path(scratch))
    RECORDED.write_text(json.dumps({f"xllamacpp=={venvs.LLAMA}": recorded}, indent=1, sort_keys=True) + "\n")
    sys.stdout.write(f"{len(recorded)} adapters asked of llama.cpp -> {RECORDED.name}\n")
