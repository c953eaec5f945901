"""Confine a process that reads an untrusted adapter: limits always, no network and no writing where possible.

    limits        memory, CPU time, size of written files, no core dumps (rlimits); no inherited descriptors
    namespaces    no network, every mount read-only (Linux, unprivileged user namespaces)
    bubblewrap    the same around the whole model process, where the program `bwrap` is installed and permitted

Invariants
- Each layer is tried; the report names those that hold (`Confinement.layers`), never assumed ones.
- Nothing here needs torch. Linux only; elsewhere the limits remain.
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
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FILE_LIMIT_BYTES = 2**20
PROBE_SECONDS = 20.0
SCRATCH, SCRATCH_BYTES = "/dev/scratch", 64 * 2**20
"""Where a model process in bubblewrap may write while it imports and loads; its children may not."""
LOAD_SECONDS_LIMIT = 600.0
"""How long a base may take to be loaded, on top of what an adapter may take."""
VISIBLE_GPUS, KEPT_GPUS = "CUDA_VISIBLE_DEVICES", "ADAPTER_CUDA_VISIBLE_DEVICES"
"""A model process for a GPU sees none; the second variable passes the first one's value to its children."""
_SHARED = "/dev/shm"  # noqa: S108 - only read, in case a base lies there
GPU_DEVICES = ("nvidia*", "dri", "kfd", "dxg")

_PR_SET_PDEATHSIG = 1
_CLONE_NEWNS, _CLONE_NEWIPC, _CLONE_NEWUSER, _CLONE_NEWNET = 0x20000, 0x8000000, 0x10000000, 0x40000000
_MS_PRIVATE_RECURSIVE = 0x44000
_SYS_MOUNT_SETATTR = 442  # the same number on every architecture
_AT_FDCWD, _AT_RECURSIVE, _MOUNT_ATTR_RDONLY = -100, 0x8000, 1


@dataclass(frozen=True, slots=True)
class Confinement:
    """The layers that hold, in words for the report."""

    layers: tuple[str, ...]


class _MountAttr(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")]


def confine(*, keep: Collection[int]) -> Confinement:
    """Confine this process for good, but for these descriptors."""
    close_descriptors(keep)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, FILE_LIMIT_BYTES)
    return Confinement(("limits", *_unshare()))


def grant(*, seconds: float, memory_bytes: int) -> None:
    """What the next adapter may use: CPU time from now on (then SIGXCPU), memory on top of what is mapped; 0: any."""
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    _grant(resource.RLIMIT_CPU, int(used + seconds) + 1)
    _grant(resource.RLIMIT_AS, _address_space_bytes() + memory_bytes if memory_bytes else resource.RLIM_INFINITY)


def close_descriptors(keep: Collection[int]) -> None:
    """Everything that was inherited but for these: another child's pipes, the protocol of the model process."""
    with contextlib.suppress(OSError):
        for number in [int(name) for name in os.listdir("/proc/self/fd")]:
            if number not in keep:
                with contextlib.suppress(OSError):
                    os.close(number)


def gpu_environment() -> dict[str, str]:
    """This process's environment for a child that may see the GPUs hidden from the process itself."""
    environment = {name: value for name, value in os.environ.items() if name not in (VISIBLE_GPUS, KEPT_GPUS)}
    return environment | ({VISIBLE_GPUS: os.environ[KEPT_GPUS]} if KEPT_GPUS in os.environ else {})


def cut_network() -> bool:
    """No network for this process from now on; False where that cannot be had. For work that writes a folder."""
    if sys.platform != "linux" or len(os.listdir("/proc/self/task")) > 1:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWIPC) == 0 or libc.unshare(_CLONE_NEWNET) == 0


def die_with_the_parent(by: signal.Signals = signal.SIGKILL) -> None:
    """Linux only. Elsewhere the end of standard input ends a model process, and the deadline its child."""
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
    """A network of its own, which is none, and mounts of its own, all read-only. Needs a process of one thread."""
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
    try:
        tried = subprocess.run(
            [*prefix, "true"], stdin=subprocess.DEVNULL, capture_output=True, timeout=PROBE_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return prefix if tried.returncode == 0 else ()


def bubblewrap_command(program: str) -> tuple[str, ...]:
    """Everything readable, nothing writable but a small scratch folder in memory, no network, no device but GPUs.

    Libraries want a folder for temporary files when they are imported. Process numbers stay ours: the pool ends
    children by them.
    """
    gpus = [str(path) for pattern in GPU_DEVICES for path in sorted(Path("/dev").glob(pattern))]
    return (
        program, "--ro-bind", "/", "/", "--dev", "/dev", "--ro-bind-try", _SHARED, _SHARED,
        *(word for path in gpus for word in ("--dev-bind-try", path, path)),
        "--size", str(SCRATCH_BYTES), "--tmpfs", SCRATCH, "--setenv", "TMPDIR", SCRATCH,
        "--unshare-net", "--unshare-ipc", "--unshare-uts", "--die-with-parent", "--",
    )  # fmt: skip
