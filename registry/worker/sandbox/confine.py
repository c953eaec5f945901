"""Confine a process that reads an untrusted adapter: limits always, no network and no writing where possible.

environment   an allow-list of variables, never a secret
limits        memory, CPU time, size of written files, no core dumps (rlimits); no inherited descriptors
namespaces    no network, every mount read-only (Linux, unprivileged user namespaces)
bubblewrap    the same around the whole model process, where the program `bwrap` is installed and permitted
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path

from registry.worker.devices import CPU

FILE_LIMIT_BYTES = 2**20
PROBE_SECONDS = 20.0
SCRATCH, SCRATCH_BYTES = "/dev/scratch", 64 * 2**20
"""The writable folder of a model process in bubblewrap; its children may not write."""
LOAD_SECONDS_LIMIT = 600.0
"""The time to load a base, on top of the deadline of an adapter."""
VISIBLE_GPUS, KEPT_GPUS = "CUDA_VISIBLE_DEVICES", "ADAPTER_CUDA_VISIBLE_DEVICES"
"""A model process for a GPU sees no GPU; the second variable keeps the first one's value for its children."""
_SHARED = "/dev/shm"  # noqa: S108 - read-only, in case a base is there
GPU_DEVICES = ("nvidia*", "dri", "kfd", "dxg")

_PR_SET_PDEATHSIG = 1
_CLONE_NEWNS, _CLONE_NEWIPC, _CLONE_NEWUSER, _CLONE_NEWNET = 0x20000, 0x8000000, 0x10000000, 0x40000000
_MS_PRIVATE_RECURSIVE = 0x44000
_SYS_MOUNT_SETATTR = 442  # the same number on every architecture
_AT_FDCWD, _AT_RECURSIVE, _MOUNT_ATTR_RDONLY = -100, 0x8000, 1


class _MountAttr(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")]


def confine(*, keep: Collection[int]) -> list[str]:
    """Confine this process permanently and close all other descriptors. Returns the layers that hold."""
    close_descriptors(keep)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, FILE_LIMIT_BYTES)
    return ["limits", *_unshare()]


def grant(*, seconds: float, memory_bytes: int) -> None:
    """Limit CPU time from now on (then SIGXCPU), and memory on top of what is mapped (0: no limit)."""
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    _grant(resource.RLIMIT_CPU, int(used + seconds) + 1)
    _grant(resource.RLIMIT_AS, _address_space_bytes() + memory_bytes if memory_bytes else resource.RLIM_INFINITY)


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


def cut_network() -> bool:
    """Cut off this process from the network; False if that is not possible here. It may still write files."""
    if sys.platform != "linux" or len(os.listdir("/proc/self/task")) > 1:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWIPC) == 0 or libc.unshare(_CLONE_NEWNET) == 0


def die_with_parent(by: signal.Signals = signal.SIGKILL) -> None:
    """End this process with its parent, on Linux. Elsewhere a model process ends with its standard input."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, by, 0, 0, 0)


def _limit(kind: int, limit: int) -> None:
    _, hard = resource.getrlimit(kind)
    limit = _within(limit, hard)
    resource.setrlimit(kind, (limit, limit))


def _grant(kind: int, limit: int) -> None:
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (hard if limit == resource.RLIM_INFINITY else _within(limit, hard), hard))


def _within(limit: int, hard: int) -> int:
    return limit if hard == resource.RLIM_INFINITY else min(limit, hard)


def _address_space_bytes() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return 8 * 2**30


def _unshare() -> list[str]:
    """Enter an empty network namespace, and a mount namespace with read-only mounts. Needs a single thread."""
    if sys.platform != "linux" or len(os.listdir("/proc/self/task")) > 1:
        return []
    libc = ctypes.CDLL(None, use_errno=True)
    spaces = _CLONE_NEWNET | _CLONE_NEWNS | _CLONE_NEWIPC
    if libc.unshare(_CLONE_NEWUSER | spaces) != 0 and libc.unshare(spaces) != 0:
        return []
    attributes = _MountAttr(attr_set=_MOUNT_ATTR_RDONLY)
    read_only = libc.mount(b"none", b"/", None, _MS_PRIVATE_RECURSIVE, None) == 0 and (
        libc.syscall(
            _SYS_MOUNT_SETATTR, _AT_FDCWD, b"/", _AT_RECURSIVE, ctypes.byref(attributes), ctypes.sizeof(attributes)
        )
        == 0
    )
    return ["no network", *(["read-only files"] if read_only else [])]


@cache
def bubblewrap() -> tuple[str, ...]:
    """The command prefix that runs a model process in bubblewrap; empty without a working `bwrap`."""
    program = shutil.which("bwrap")
    if program is None:
        return ()
    prefix = bubblewrap_command(program)
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        devnull = subprocess.DEVNULL
        subprocess.run([*prefix, "true"], stdin=devnull, capture_output=True, timeout=PROBE_SECONDS, check=True)
        return prefix
    return ()


def bubblewrap_command(program: str) -> tuple[str, ...]:
    """All files read-only, a small scratch folder in memory for imports, no network, no device but GPUs.

    Process numbers are not unshared: the pool kills children by them.
    """
    gpus = [str(path) for pattern in GPU_DEVICES for path in sorted(Path("/dev").glob(pattern))]
    return (
        program, "--ro-bind", "/", "/", "--dev", "/dev", "--ro-bind-try", _SHARED, _SHARED,
        *(word for path in gpus for word in ("--dev-bind-try", path, path)),
        "--size", str(SCRATCH_BYTES), "--tmpfs", SCRATCH, "--setenv", "TMPDIR", SCRATCH,
        "--unshare-net", "--unshare-ipc", "--unshare-uts", "--die-with-parent", "--",
    )  # fmt: skip


# ------------------------------------------------------------------ environment
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


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Keep the variables on the allow-list: paths, locale, threads. No secrets."""
    return _SETTINGS | {name: value for name, value in environment.items() if value and name in _ALLOWED_VARIABLES}


def environment_for(device: str, environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a model process on this device.

    It hides GPUs, because importing bitsandbytes initializes one; the process's children see them.
    """
    cleaned = clean_environment(environment)
    if device == CPU:
        return cleaned
    kept = {KEPT_GPUS: cleaned[VISIBLE_GPUS]} if VISIBLE_GPUS in cleaned else {}
    return cleaned | {VISIBLE_GPUS: ""} | kept
