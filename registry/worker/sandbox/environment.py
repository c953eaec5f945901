"""The environment of a worker's programs: an allow-list of variables, never a secret."""

from __future__ import annotations

from collections.abc import Mapping

from registry.worker.devices import CPU
from registry.worker.sandbox import confine

_PASSED_ON = frozenset(
    {"PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "TZ",
     "OMP_WAIT_POLICY", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_HOME", "CUDA_DEVICE_ORDER",
     "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "BNB_CUDA_VERSION", "HIP_VISIBLE_DEVICES", confine.VISIBLE_GPUS}
)  # fmt: skip
_SETTINGS = {
    "OMP_WAIT_POLICY": "passive",  # spinning threads stall every other process on a busy machine
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_DEACTIVATE_ASYNC_LOAD": "1",  # no loader threads: the model process forks
    "TOKENIZERS_PARALLELISM": "false",
    "TORCHDYNAMO_DISABLE": "1",  # nothing is compiled here, and to load the compiler takes a second of each start
    "OPENBLAS_NUM_THREADS": "1",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # asking whether there is a GPU must not initialize it
    "PYTHONSAFEPATH": "1",
    "PYTHONUNBUFFERED": "1",
    "PYTHONWARNINGS": "ignore",  # of libraries; not for the operator of a worker
}


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Keep the variables on the allow-list: paths, locale, threads. No secrets."""
    passed_on = {name: value for name, value in environment.items() if name in _PASSED_ON}
    return _SETTINGS | {name: value for name, value in passed_on.items() if value}


def _without_gpus(environment: dict[str, str], device: str) -> dict[str, str]:
    """Hide GPUs from a model process: importing bitsandbytes initializes one. Its children may see them."""
    if device == CPU:
        return environment
    visible_gpus = environment.pop(confine.VISIBLE_GPUS, None)
    return (
        environment
        | {confine.VISIBLE_GPUS: ""}
        | ({confine.KEPT_GPUS: visible_gpus} if visible_gpus is not None else {})
    )


def environment_for(device: str, environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a model process on this device."""
    return _without_gpus(clean_environment(environment), device)
