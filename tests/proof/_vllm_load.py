"""Runs in vLLM's environment: each base's class is built, and each adapter is loaded by the code that serves it.

Reads `[[base, {case: adapter folder}], …]` on standard input and prints one JSON object a base as a line:
{"class": …, "modules": […], "answers": {case: "ok" or the error}}, or {"error": …} if it does not start with LoRA.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR", "OMP_NUM_THREADS": "1"}

import torch
from vllm.config import (
    CacheConfig,
    DeviceConfig,
    LoadConfig,
    LoRAConfig,
    ModelConfig,
    ParallelConfig,
    SchedulerConfig,
    VllmConfig,
    set_current_vllm_config,
)
from vllm.distributed import ensure_model_parallel_initialized, init_distributed_environment
from vllm.lora.request import LoRARequest
from vllm.lora.utils import get_supported_lora_modules
from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.model_executor.models import registry, supports_lora

registry._run_in_subprocess = lambda inspect: inspect()  # one import of vLLM, not one for each class


def answers(base: str, adapters: dict[str, str]) -> dict[str, Any]:
    model_config = ModelConfig(model=base, dtype="float32", enforce_eager=True, max_model_len=128)
    lora = LoRAConfig(max_lora_rank=16, max_loras=2, max_cpu_loras=4, lora_dtype=torch.float32)
    config = VllmConfig(
        model_config=model_config, cache_config=CacheConfig(), parallel_config=ParallelConfig(),
        scheduler_config=SchedulerConfig(max_num_seqs=4, max_num_batched_tokens=128, max_model_len=128,
                                         is_encoder_decoder=False),
        device_config=DeviceConfig("cpu"), load_config=LoadConfig(load_format="dummy"), lora_config=lora,
    )  # fmt: skip
    with set_current_vllm_config(config):
        if not torch.distributed.is_initialized():
            rendezvous = os.path.join(tempfile.mkdtemp(), "rendezvous")
            init_distributed_environment(1, 0, f"file://{rendezvous}", 0, "gloo")
            ensure_model_parallel_initialized(1, 1)
        model: Any = initialize_model(vllm_config=config)
        if not supports_lora(model):
            return {"class": type(model).__name__, "error": f"{type(model).__name__} does not support LoRA yet."}
        manager = LRUCacheWorkerLoRAManager(config, torch.device("cpu"), model.embedding_modules)
        modules = sorted(get_supported_lora_modules(model))
        manager.create_lora_manager(model, config)
        outcomes: dict[str, str] = {}
        for number, (case, folder) in enumerate(adapters.items(), 1):
            try:
                manager.add_adapter(LoRARequest(case, number, folder))
                manager.remove_adapter(number)
                outcomes[case] = "ok"
            except Exception as e:  # whatever the engine raises is its answer
                outcomes[case] = f"{type(e).__name__}: {str(e).replace(folder, 'FOLDER')[:300]}"
    return {"class": type(model).__name__, "modules": modules, "answers": outcomes}


for base, adapters in json.load(sys.stdin):
    try:
        row = answers(base, adapters)
    except Exception as e:  # so is this one
        row = {"error": f"{type(e).__name__}: {str(e)[:300]}"}
    sys.stdout.write("@" + json.dumps(row) + "\n")
    sys.stdout.flush()
