"""Linux namespaces for a process that reads an untrusted adapter: no network, no homes, read-only mounts; bubblewrap.

Places of secrets get an empty file system over them, in which the folders that the process needs are mounted again. At
the end the process drops its capabilities, so it cannot undo any of this.
"""

import contextlib
import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterable
from functools import cache
from pathlib import Path

from registry.evaluation.reports import Layer

PROBE_SECONDS = 20.0
SCRATCH, SCRATCH_BYTES = "/dev/scratch", 64 * 2**20
"""The writable folder of a model process in bubblewrap; its children may not write."""
_SHARED = "/dev/shm"  # noqa: S108 - read-only, in case a base is there
GPU_DEVICES = ("nvidia*", "dri", "kfd", "dxg")
LINKS_LIMIT = 10_000
"""Files of a folder whose links are followed, to show the folders that they lead to."""

_CLONE_NEWNS, _CLONE_NEWIPC, _CLONE_NEWUSER, _CLONE_NEWNET = 0x20000, 0x8000000, 0x10000000, 0x40000000
_MS_BIND, _MS_BIND_RECURSIVE, _MS_PRIVATE_RECURSIVE, _MNT_DETACH = 0x1000, 0x5000, 0x44000, 2
_SYS_MOUNT_SETATTR = 442  # the same number on every architecture
_AT_FDCWD, _AT_RECURSIVE, _MOUNT_ATTR_RDONLY = -100, 0x8000, 1
_PR_SET_NO_NEW_PRIVS, _CAPABILITIES_VERSION_3 = 38, 0x20080522


class _MountAttr(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")]


def isolate(hidden: Collection[str], visible: Iterable[str], *, read_only: bool = True) -> list[Layer]:
    """Cut this process off from network, hidden places and writing; the layers that hold. Needs a single thread."""
    if not _is_possible():
        return []
    libc = ctypes.CDLL(None, use_errno=True)
    if not _unshare(libc, _CLONE_NEWNET | _CLONE_NEWNS | _CLONE_NEWIPC):
        return []
    layers = [Layer.NO_NETWORK]
    if libc.mount(b"none", b"/", None, _MS_PRIVATE_RECURSIVE, None) == 0:
        places, folders = select_places(hidden, visible)
        if hidden and _hide(libc, places, folders) and len(places) == len(list(filter(os.path.exists, hidden))):
            layers.append(Layer.NO_HOME)
        if read_only and _forbid_writing(libc):
            layers.append(Layer.READ_ONLY)
    os.chdir("/")  # the folder that it was started in may be a hidden one
    _drop_capabilities(libc)
    return layers


def _is_possible() -> bool:
    return sys.platform == "linux" and len(os.listdir("/proc/self/task")) == 1


def _unshare(libc: ctypes.CDLL, spaces: int) -> bool:
    """Enter new namespaces: in a user namespace of this user alone, else with the rights of this process."""
    user, group = os.geteuid(), os.getegid()
    if libc.unshare(_CLONE_NEWUSER | spaces) != 0:
        return bool(libc.unshare(spaces) == 0)
    with contextlib.suppress(OSError):  # without a map of users no folder can be made, and nothing is hidden
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    return True


def select_places(hidden: Iterable[str], visible: Iterable[str]) -> tuple[list[str], list[str]]:
    """The places to hide, except those that are shown folders themselves; and the shown folders that lie in them."""
    folders = {os.path.realpath(folder) for folder in visible if os.path.isdir(folder)}
    places = sorted({path for path in hidden if os.path.exists(path)} - folders)
    return places, sorted(folder for folder in folders if any(Path(folder).is_relative_to(path) for path in places))


def _hide(libc: ctypes.CDLL, places: list[str], visible: list[str]) -> bool:
    """Mount something empty over each path, and the shown folders in it again; False, and nothing done, on failure."""
    descriptors = {folder: os.open(folder, os.O_PATH) for folder in visible}
    mounted: list[str] = []

    def mount(source: str, target: str, kind: bytes | None, flags: int, options: bytes | None = None) -> None:
        if libc.mount(source.encode(), target.encode(), kind, flags, options) != 0:
            raise OSError(ctypes.get_errno(), "mount", target)
        mounted.append(target)

    try:
        for path in reversed(places):  # inner ones first: an outer one hides them
            if os.path.isdir(path):
                mount("tmpfs", path, b"tmpfs", 0, b"size=1m,mode=755")
            else:
                mount(os.devnull, path, None, _MS_BIND)
        for folder, descriptor in descriptors.items():
            os.makedirs(folder, exist_ok=True)
            mount(f"/proc/self/fd/{descriptor}", folder, None, _MS_BIND_RECURSIVE)
        return True
    except OSError:
        for target in reversed(mounted):
            libc.umount2(target.encode(), _MNT_DETACH)
        return False
    finally:
        for descriptor in descriptors.values():  # `..` of one would lead out of what is mounted
            os.close(descriptor)


def _forbid_writing(libc: ctypes.CDLL) -> bool:
    attributes = _MountAttr(attr_set=_MOUNT_ATTR_RDONLY)
    arguments = (ctypes.byref(attributes), ctypes.sizeof(attributes))
    return bool(libc.syscall(_SYS_MOUNT_SETATTR, _AT_FDCWD, b"/", _AT_RECURSIVE, *arguments) == 0)


def _drop_capabilities(libc: ctypes.CDLL) -> None:
    """Without them nothing can be unmounted, and other processes of this user cannot be looked into."""
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    header, nothing = (ctypes.c_uint32 * 2)(_CAPABILITIES_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    if libc.capset(header, nothing) != 0:
        raise OSError(ctypes.get_errno(), "the capabilities cannot be dropped")


def visible_folders(*folders: Path) -> list[str]:
    """What a process reads: Python and its packages, temporary folders, and these folders with their links' targets."""
    python = (path for path in (sys.prefix, sys.base_prefix, sys.exec_prefix, *sys.path) if os.path.isabs(path))
    targets: set[str] = set()
    for folder in folders:
        files = (path for _, path in zip(range(LINKS_LIMIT), folder.glob("**/*"), strict=False))
        targets |= {str(path.resolve().parent) for path in files if path.is_symlink()}
    return [*python, tempfile.gettempdir(), *map(str, folders), *sorted(targets)]


@cache
def bubblewrap() -> str:
    """The program `bwrap`, if it works here; else empty."""
    program = shutil.which("bwrap")
    if program is not None:
        command, devnull = [*bubblewrap_command(program), "true"], subprocess.DEVNULL
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            subprocess.run(command, stdin=devnull, capture_output=True, timeout=PROBE_SECONDS, check=True)
            return program
    return ""


def bubblewrap_command(program: str, hidden: Iterable[str] = (), visible: Iterable[str] = ()) -> tuple[str, ...]:
    """The prefix of a command: all files read-only, hidden places empty, a small scratch folder in memory for imports,
    no network, no device but GPUs, process numbers of its own.
    """
    gpus = [str(path) for pattern in GPU_DEVICES for path in sorted(Path("/dev").glob(pattern))]
    places, folders = select_places(hidden, visible)
    mounts = {path: ("--tmpfs", path) if os.path.isdir(path) else ("--ro-bind", os.devnull, path) for path in places}
    mounts |= {folder: ("--ro-bind", folder, folder) for folder in folders}
    return (
        program, "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--ro-bind-try", _SHARED, _SHARED,
        *(word for path in gpus for word in ("--dev-bind-try", path, path)),
        *(word for _, words in sorted(mounts.items()) for word in words),  # outer ones first
        "--size", str(SCRATCH_BYTES), "--tmpfs", SCRATCH, "--setenv", "TMPDIR", SCRATCH,
        "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-pid", "--die-with-parent", "--",
    )  # fmt: skip
