"""The model process: it loads one base once and forks the children that adapters are tested in.

    worker ──JSON lines──▶ model process (torch, the base) ──fork──▶ child (adapters) ──pipe──▶ model process ──▶ worker

One shared child swaps plain LoRA adapters; any other adapter gets an isolated child. The model process never reads an
adapter and never runs a forward pass, so nothing can change its base; it has one thread, so forking is safe. For a GPU
it holds no base: its children are new processes of this program that load it.
"""

import json
import os
import platform
import selectors
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

from registry import __version__
from registry.worker.model_process.child import IsolatedRun, Loader, Message, SharedRun
from registry.worker.model_process.children import SHARED, Children, run_child
from registry.worker.sandbox import confine, program
from registry.worker.smoke.result import first_line, machine_fault


def main(
    arguments: list[str], *, loader_of: type[Loader] = Loader, isolated: type[IsolatedRun] = IsolatedRun,
    versions: Mapping[str, str] | None = None,
) -> int:  # fmt: skip
    """`NAME FOLDER DEVICE DTYPE`: load the base, report readiness, serve requests until standard input ends.

    With five more arguments (ROLE and four numbers) it is a child of such a process. Standard output carries only the
    protocol; output of libraries goes to standard error.
    """
    program.finish_start()
    name, folder, device, dtype, *more = arguments
    transformers.utils.logging.disable_progress_bar()
    loader = loader_of(name, Path(folder), device, dtype)
    if more:
        inward, outward, threads, parent = map(int, more[1:])
        run = SharedRun if more[0] == SHARED else isolated
        run_child(run(None, loader), threads, inward, outward, parent, device)
    confine.die_with_parent()
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    os.set_blocking(0, False)
    torch.set_num_threads(1)
    base: Any = None
    if loader.forks:
        try:
            base = loader.load()
        except Exception as e:
            error = f"cannot load the base {name} from {folder}: {first_line(e)}"
            _send(out, {"error": error, "refused": not machine_fault(e)})
            return 1
    _send(out, {"ready": _ready(base, versions or {})})
    inbox = Inbox()
    children = Children(base, loader, inbox, lambda message: _send(out, message), isolated)
    for message in inbox:
        if "folder" in message:
            _send(out, children.try_adapter(message))
    return 0


def _ready(base: Any, versions: Mapping[str, str]) -> Message:
    loaded = {"load_seconds": round(base.load_seconds, 3), "parameters": base.parameters} if base is not None else {}
    return loaded | {
        "threads": len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 0,
        "versions": {
            "worker": __version__, "torch": torch.__version__, "transformers": transformers.__version__,
            "peft": peft.__version__, "python": platform.python_version(), **versions,
        },
    }  # fmt: skip


def _send(out: Any, message: Message) -> None:
    out.write(json.dumps(message) + "\n")
    out.flush()


class Inbox:
    """Requests from standard input, one JSON object a line. `stop` messages can be read while a child runs."""

    def __init__(self) -> None:
        self._rest = b""
        self._waiting: list[Message] = []
        self.closed = False

    def __iter__(self) -> Iterator[Message]:
        with selectors.DefaultSelector() as selector:
            selector.register(0, selectors.EVENT_READ)
            while True:
                while self._waiting:
                    yield self._waiting.pop(0)
                if self.closed:
                    return
                selector.select()
                self.read()

    def read(self) -> None:
        """Read what has arrived. End of file means that the worker is gone."""
        try:
            data = os.read(0, 65536)
        except BlockingIOError:
            return
        self.closed = self.closed or not data
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._waiting += [json.loads(line) for line in lines if line]

    def stop_requested(self, request: int) -> bool:
        """Whether to stop the child of this request. A stop request that came too late is dropped."""
        stops = {message["stop"] for message in self._waiting if "stop" in message}
        self._waiting = [message for message in self._waiting if "stop" not in message]
        return request in stops or self.closed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
