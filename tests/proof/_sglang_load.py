"""Runs in SGLang's environment: each base's class is built on the CPU, and each adapter is loaded by its LoRA manager.

Reads `[[base, {case: adapter folder}], …]` on standard input and prints one JSON object a base as a line:
{"class": …, "modules": […], "answers": {case: answer}}, or {"error": …} if it does not start with LoRA. An answer is
"ok", the error, or "ignores …" if lora_B in the buffers of the first request is not that of the file.
Kernels are not installed: what calls one is an error.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import json
import os
import sys
import tempfile
import types
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "SGLANG_USE_CPU_ENGINE": "1", "OMP_NUM_THREADS": "1"}
sys.path.insert(0, os.environ["SGLANG_SOURCE"])


KERNELS = ("sgl_kernel", "torchaudio", "cutlass")


class Kernel:
    """In place of a kernel and of its constants."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Kernel:
        if name.startswith("__"):
            raise AttributeError(name)
        return Kernel(f"{self._name}.{name}")

    def __call__(self, *_args: Any, **_kwargs: Any) -> Any:
        raise RuntimeError(f"no kernel {self._name}")

    def __mro_entries__(self, _bases: Any) -> tuple[type, ...]:
        return (object,)


class KernelModule(types.ModuleType):
    __path__: list[str] = []

    def __getattr__(self, name: str) -> Kernel:
        if name.startswith("__"):
            raise AttributeError(name)
        return Kernel(f"{self.__name__}.{name}")


class Kernels(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, _path: Any, _target: Any = None) -> Any:
        absent = name.partition(".")[0] in KERNELS or name == "sglang.kernels.jit.utils.compile.paths"
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if absent else None

    def create_module(self, spec: Any) -> types.ModuleType:
        return KernelModule(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


sys.meta_path.insert(0, Kernels())

import torch


def unpinned(make: Any) -> Any:
    """Without pinned memory, which needs an accelerator."""
    return lambda *args, **kwargs: make(*args, **{n: v for n, v in kwargs.items() if n != "pin_memory"})


for maker in ("tensor", "empty", "zeros"):
    setattr(torch, maker, unpinned(getattr(torch, maker)))
torch.Tensor.pin_memory = lambda tensor, *_args: tensor
from safetensors.torch import load_file
from sglang.srt.configs.load_config import LoadConfig
from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.distributed import init_distributed_environment, initialize_model_parallel
from sglang.srt.layers.dp_attention import initialize_dp_attention
from sglang.srt.lora.layers import BaseLayerWithLoRA
from sglang.srt.lora.lora_manager import LoRAManager
from sglang.srt.lora.lora_registry import LoRARef
from sglang.srt.model_loader.loader import _initialize_model
from sglang.srt.model_loader.utils import set_default_torch_dtype
from sglang.srt.runtime_context import SpawnRanks, publish
from sglang.srt.server_args import ServerArgs


def start(base: str) -> tuple[ServerArgs, Any, ModelConfig]:
    args = ServerArgs(
        model_path=base, device="cpu", dtype="float32", enable_lora=True, max_lora_rank=16, max_loras_per_batch=2,
        lora_target_modules=["all"], lora_backend="torch_native", attention_backend="torch_native",
        skip_tokenizer_init=True,
    )  # fmt: skip
    publish(args, role="scheduler", ranks=SpawnRanks(world_rank=0, gpu_id=0))
    if not torch.distributed.is_initialized():
        rendezvous = os.path.join(tempfile.mkdtemp(), "rendezvous")
        init_distributed_environment(1, 0, f"file://{rendezvous}", 0, "gloo")
        initialize_model_parallel(backend="gloo")
        initialize_dp_attention(args)
    config = ModelConfig.from_server_args(args)
    with set_default_torch_dtype(torch.float32):
        model = _initialize_model(config, LoadConfig(load_format="dummy"))
    return args, model, config


def slot_norm(manager: Any, uid: str) -> float:
    pool = manager.memory_pool
    slot = pool.get_buffer_id(uid)
    buffers = [t for tensors in pool.B_buffer.values() for t in tensors] + [
        *pool.embedding_B_buffer.values(),
        *pool.lm_head_B_buffer.values(),
    ]
    return sum(float(b[slot].double().square().sum()) for b in buffers)


def file_norm(folder: str) -> float:
    tensors = load_file(os.path.join(folder, "adapter_model.safetensors"))
    return sum(float(t.double().square().sum()) for n, t in tensors.items() if "lora_B" in n or "lora_embedding_B" in n)


def answers(base: str, adapters: dict[str, str]) -> dict[str, Any]:
    args, model, config = start(base)
    manager = LoRAManager(
        base_model=model, base_hf_config=config.hf_config, max_loras_per_batch=2, load_config=LoadConfig(),
        dtype=torch.float32, server_args=args, lora_backend="torch_native", max_lora_rank=16, target_modules={"all"},
    )  # fmt: skip
    modules = sorted({n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, BaseLayerWithLoRA)})
    outcomes: dict[str, str] = {}
    for case, folder in adapters.items():
        try:
            ref = LoRARef(lora_name=case, lora_path=folder, pinned=False)
            result = manager.load_lora_adapter(ref)
            if not result.success:
                outcomes[case] = (result.error_message or "no reason").replace(folder, "FOLDER")[:300]
                continue
            manager.fetch_new_loras({ref.lora_id})
            share = slot_norm(manager, ref.lora_id) / max(file_norm(folder), 1e-30)
            outcomes[case] = "ok" if abs(share - 1) < 1e-3 else f"ignores: {share:.2f} of the squares of lora_B arrive"
            manager.unload_lora_adapter(ref)
        except Exception as e:
            outcomes[case] = f"{type(e).__name__}: {str(e).replace(folder, 'FOLDER')[:300]}"
    return {"class": type(model).__name__, "modules": modules, "answers": outcomes}


if __name__ == "__main__":
    for base, adapters in json.load(sys.stdin):
        try:
            row = answers(base, adapters)
        except Exception as e:  # whatever the engine raises is its answer
            row = {"error": f"{type(e).__name__}: {str(e)[:300]}"}
        sys.stdout.write("@" + json.dumps(row) + "\n")
        sys.stdout.flush()
