"""Clients on macOS and Windows: the base install without what those systems lack, on a real server.

The process begins without those functions, flags and modules, and with calls that fail as they do there. What it
cannot show: paths with drive letters, and files that another program has open.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.runner import CommandRunner
from tests.import_table import ROOT

MACOS = """
import ctypes, os, sys, urllib.request, zoneinfo
sys.platform = "darwin"
for name in ("posix_fadvise", "memfd_create", "sched_getaffinity"):
    delattr(os, name)
import fcntl
for name in [name for name in vars(fcntl) if name.startswith(("F_OFD", "FICLONE"))]:
    delattr(fcntl, name)
"""
WINDOWS = """
import errno, os, select, shutil, signal, socket, subprocess, tempfile, sys, urllib.request
sys.modules.update(dict.fromkeys(("fcntl", "grp", "pwd", "resource", "termios")))
shutil._USE_CP_SENDFILE = shutil._use_fd_functions = False
for name in ("O_CLOEXEC", "O_NOFOLLOW", "O_DIRECTORY", "pread", "pwrite", "preadv", "pwritev", "sendfile",
             "posix_fadvise", "memfd_create", "sched_getaffinity", "getuid", "geteuid", "getgid", "fchmod", "chown",
             "fork", "killpg", "getpgid", "uname", "O_NONBLOCK"):
    delattr(os, name)
del signal.SIGHUP, signal.SIGKILL, socket.AF_UNIX
sys.stdout.reconfigure(encoding="cp1252", errors="strict")
sys.stderr.reconfigure(encoding="cp1252", errors="backslashreplace")
del select.poll, select.epoll
system = {name: getattr(os, name) for name in ("open", "rename", "replace", "unlink", "symlink")}

def open_(path, flags, *args, **kwargs):
    if os.path.isdir(path) and not kwargs.get("dir_fd"):
        raise PermissionError(errno.EACCES, "Permission denied", path)
    return system["open"](path, flags, *args, **kwargs)

def rename(source, target, **kwargs):
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, "File exists", source, None, target)
    system["rename"](source, target, **kwargs)

def must_be_writable(call):
    def checked(*paths, **kwargs):
        for path in paths:
            path = os.fspath(path)
            if kwargs.get("dir_fd") is None and os.path.isfile(path) and not os.stat(path).st_mode & 0o200:
                raise PermissionError(errno.EACCES, "Permission denied", path)
        return call(*paths, **kwargs)
    return checked

def symlink(*_args, **_kwargs):
    raise OSError(errno.EPERM, "A required privilege is not held by the client")

os.open, os.rename, os.symlink = open_, rename, symlink
os.replace, os.unlink = must_be_writable(system["replace"]), must_be_writable(system["unlink"])
os.remove = os.unlink
"""
NARROW_TEXT = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
"""Text files are ASCII by default, as they have a code page on Windows."""
PROGRAM = """
import sys
from cli.main import main
from registry.client.local import cache
from registry.client.transfer import file_transfer
cache.LINK_FROM_BYTES = file_transfer.RANGES_FROM_BYTES = 1  # a small file takes the way of a large one
for line in sys.stdin.buffer.read().decode().splitlines():
    if main(line.split(), standalone_mode=False):
        sys.exit(line)
"""


@pytest.mark.parametrize("system", [MACOS, WINDOWS], ids=["macos", "windows"])
def test_a_client_pushes_pulls_and_replaces_without_what_its_system_lacks(
    cli: CommandRunner, server: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str
) -> None:
    monkeypatch.setenv("ADAPTER_REGISTRY", server["url"])
    monkeypatch.setenv("ADAPTER_TOKEN", server["token"])
    cli.add_base()
    name = f"other/{'macos' if system is MACOS else 'windows'}"
    first, second = (cli.make_adapter(folder) for folder in ("first", "second"))
    lines = [
        f"push {first} {name} --base tiny-llama --alias canary",
        f"pull {name} {tmp_path}/served",
        f"push {second} {name} --base tiny-llama",
        f"pull {name} {tmp_path}/served",
        f"pull {name}@1 {tmp_path}/again",
        f"pull {name} {tmp_path}/served --verify",
        f"cat {name} adapter_config.json",
        "doctor",
        f"promote {name}@1 stable",
        f"versions {name}",
        f"show {name} --norms",
        f"describe {name} résumé",
        f"list --namespace {name.partition('/')[0]} -o json",
        f"audit export {tmp_path}/log",
        f"audit verify {tmp_path}/log",
    ]
    command = [sys.executable, "-c", system + PROGRAM]
    ran = subprocess.run(
        command, input="\n".join(lines), capture_output=True, text=True, cwd=ROOT, timeout=120, check=False,
        env=os.environ | NARROW_TEXT, encoding="utf-8",
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr + ran.stdout
    assert f"{name}:stable → @1" in ran.stdout
    assert '"description": "résumé"' in ran.stdout
    for folder, pulled in ((second, "served"), (first, "again")):
        weights = "adapter_model.safetensors"
        assert (tmp_path / pulled / weights).read_bytes() == (folder / weights).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []
