"""Confine a process that reads an untrusted adapter: an environment without secrets, limits, closed descriptors.

namespaces.py adds no network, no home folder and no writing, where the machine allows that.
"""

import contextlib
import ctypes
import os
import pwd
import resource
import signal
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from registry.evaluation.reports import Layer
from registry.worker.devices import CPU
from registry.worker.sandbox import namespaces

FILE_LIMIT_BYTES = 2**20
LOAD_SECONDS_LIMIT = 600.0
"""The time to load a base, on top of the deadline of an adapter."""
VISIBLE_GPUS, KEPT_GPUS = "CUDA_VISIBLE_DEVICES", "ADAPTER_CUDA_VISIBLE_DEVICES"
"""A model process for a GPU sees no GPU; the second variable keeps the first one's value for its children."""
HIDDEN_PLACES = "ADAPTER_HIDDEN_PLACES"
"""What the children of a model process must not see: the variable that tells it the worker's `secret_places`."""
_PR_SET_PDEATHSIG = 1
_SECRET_FOLDERS = ("/root", "/home", "/run/secrets", "/run/credentials", "/run/user", "/var/run/secrets")
_SECRET_VARIABLES = (
    "HOME", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE", "DOCKER_CONFIG", "GOOGLE_APPLICATION_CREDENTIALS", "KUBECONFIG", "NETRC",
    "PGPASSFILE", "ADAPTER_CONFIG", "REGISTRY_AUDIT_KEY", "REGISTRY_CONFIG", "REGISTRY_DATA", "REGISTRY_ISSUERS",
)  # fmt: skip
"""Variables that name a folder or a file with secrets."""


def confine(*, keep: Collection[int], visible: Iterable[str] = ()) -> list[Layer]:
    """Confine this process permanently and close all other descriptors. Returns the layers that hold.

    `visible`: folders that stay so where the folders around them are hidden (`namespaces.secret_places`).
    """
    close_descriptors(keep)
    _set_limit(resource.RLIMIT_CORE, 0, permanent=True)
    _set_limit(resource.RLIMIT_FSIZE, FILE_LIMIT_BYTES, permanent=True)
    return [Layer.LIMITS, *namespaces.isolate(os.environ.get(HIDDEN_PLACES, "").split(os.pathsep), visible)]


def grant(*, seconds: float, memory_bytes: int, mapped_bytes: int | None = None) -> None:
    """Limit CPU time from now on (then SIGXCPU), and memory on top of what is mapped (0: no limit).

    `mapped_bytes`: what was mapped before the first of several grants; what a run leaks then counts for the next.
    """
    used_seconds = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    _set_limit(resource.RLIMIT_CPU, int(used_seconds + seconds) + 1)
    mapped_bytes = address_space_bytes() if mapped_bytes is None else mapped_bytes
    _set_limit(resource.RLIMIT_AS, mapped_bytes + memory_bytes if memory_bytes else resource.RLIM_INFINITY)


def close_descriptors(keep: Collection[int]) -> None:
    """Close inherited descriptors: another child's pipes, the protocol of the model process."""
    with contextlib.suppress(OSError):
        for number in [int(name) for name in os.listdir("/proc/self/fd")]:
            if number not in keep:
                with contextlib.suppress(OSError):
                    os.close(number)


def gpu_environment() -> dict[str, str]:
    """This process's environment for a child, with the GPUs that are hidden from this process."""
    environment = {name: value for name, value in os.environ.items() if name not in (VISIBLE_GPUS, KEPT_GPUS)}
    return environment | ({VISIBLE_GPUS: os.environ[KEPT_GPUS]} if KEPT_GPUS in os.environ else {})


def die_with_parent(by: signal.Signals = signal.SIGKILL) -> None:
    """End this process with its parent, on Linux. Elsewhere a model process ends with its standard input."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, by, 0, 0, 0)


def _set_limit(kind: int, limit: int, *, permanent: bool = False) -> None:
    _, hard = resource.getrlimit(kind)
    limits = [number for number in (limit, hard) if number != resource.RLIM_INFINITY]
    soft = min(limits, default=resource.RLIM_INFINITY)
    resource.setrlimit(kind, (soft, soft if permanent else hard))


def address_space_bytes() -> int:
    """How much memory this process has mapped."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return 8 * 2**30


_ALLOWED_VARIABLES = frozenset(
    {"PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "TZ",
     "OMP_WAIT_POLICY", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_HOME", "CUDA_DEVICE_ORDER",
     "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "BNB_CUDA_VERSION", "HIP_VISIBLE_DEVICES", VISIBLE_GPUS}
)  # fmt: skip
_SETTINGS = {
    "OMP_WAIT_POLICY": "passive",  # spinning threads stall every other process on a busy machine
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_DEACTIVATE_ASYNC_LOAD": "1",  # no loader threads: the model process forks
    "TOKENIZERS_PARALLELISM": "false",
    "TORCHDYNAMO_DISABLE": "1",  # nothing is compiled here, and loading the compiler takes a second
    "OPENBLAS_NUM_THREADS": "1",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # checking for a GPU must not initialize it
    "PYTHONSAFEPATH": "1",
    "PYTHONUNBUFFERED": "1",
    "PYTHONWARNINGS": "ignore",  # libraries' warnings are not for a worker's operator
}


def secret_places(environment: Mapping[str, str]) -> list[str]:
    """The folders and files on this machine where secrets of people and services are kept: homes, mounted secrets."""
    places = {*_SECRET_FOLDERS, pwd.getpwuid(os.getuid()).pw_dir, *(environment.get(v, "") for v in _SECRET_VARIABLES)}
    existing = {os.path.realpath(path) for path in places if os.path.isabs(path) and os.path.exists(path)}
    return sorted(existing - {"/"})


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Keep the variables on the allow-list: paths, locale, threads. No secrets."""
    return _SETTINGS | {name: value for name, value in environment.items() if value and name in _ALLOWED_VARIABLES}


def environment_for(device: str, environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a model process on this device.

    It hides GPUs, because importing bitsandbytes initializes one; the process's children see them.
    """
    cleaned = clean_environment(environment) | {HIDDEN_PLACES: os.pathsep.join(secret_places(environment))}
    if device == CPU:
        return cleaned
    visible_to_children = {KEPT_GPUS: cleaned[VISIBLE_GPUS]} if VISIBLE_GPUS in cleaned else {}
    return cleaned | {VISIBLE_GPUS: ""} | visible_to_children
