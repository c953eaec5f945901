"""The process that keeps one base: it loads the base once and forks the children that adapters are tried in.

    main process ──JSON lines──▶ keeper (torch, the base) ──fork──▶ child (adapters) ──pipe──▶ keeper ──▶ main

One child stays and swaps plain LoRA adapters (`Warm`); each other adapter gets a child of its own (`Alone`). A warm
child that is spoilt, hangs or dies is ended, and the next one is forked from the same base: no load.

Invariants
- The keeper itself never sees an adapter's bytes and never runs a forward, so nothing can change its base, and it
  has one thread only, so that forking is sound. For a GPU it holds no base and sees no GPU: its children are started
  afresh, by this same program, and load it.
- A child has its own process group, is confined (`sandbox/confine.py`), and dies at its deadline, when the keeper is
  told to stop, or when the keeper dies.
- The environment holds no secrets: the main process (`sandbox/pool.py`) passes an allow-list of variables.
- Standard output carries the protocol alone; what libraries print goes to standard error.

Example
    $ python -m registry.worker.model_process.host tiny models/tiny cpu F32
    {"ready": {"load_seconds": 0.3, "parameters": 147008, "threads": 1, "versions": {...}}}
"""

from __future__ import annotations

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
from registry.worker.model_process.child import Alone, Loader, Message, Warm
from registry.worker.model_process.children import WARM, Children, be_the_child
from registry.worker.sandbox import confine, program
from registry.worker.smoke.faults import first_line


def main(
    arguments: list[str], *, loader_of: type[Loader] = Loader, alone: type[Alone] = Alone,
    versions: Mapping[str, str] | None = None,
) -> int:  # fmt: skip
    """`NAME FOLDER DEVICE DTYPE`: load, say that it is ready, serve requests until standard input ends.

    Five words more, ROLE and four numbers, make it a child of such a keeper.
    """
    program.finish_start()
    name, folder, device, dtype, *more = arguments
    transformers.utils.logging.disable_progress_bar()
    loader = loader_of(name, Path(folder), device, dtype)
    if more:
        inward, outward, threads, keeper = map(int, more[1:])
        be_the_child((Warm if more[0] == WARM else alone)(None, loader), threads, inward, outward, keeper, device)
    confine.die_with_the_parent()
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    os.set_blocking(0, False)
    torch.set_num_threads(1)
    base: Any = None
    if loader.forks:
        try:
            base = loader.load()
        except Exception as e:
            _say(out, {"error": f"the base {name} does not load from {folder}: {first_line(e)}"})
            return 1
    _say(out, {"ready": _ready(base, versions or {})})
    inbox = Inbox()
    nursery = Children(base, loader, inbox, lambda message: _say(out, message), alone)
    for message in inbox:
        if "folder" in message:
            _say(out, nursery.try_adapter(message))
    return 0


def _ready(base: Any, versions: Mapping[str, str]) -> Message:
    loaded = {"load_seconds": round(base.load_seconds, 3), "parameters": base.parameters} if base is not None else {}
    return loaded | {
        "threads": len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 0,
        "versions": {
            "worker": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "peft": peft.__version__,
            "python": platform.python_version(),
            **versions,
        },
    }


def _say(out: Any, message: Message) -> None:
    out.write(json.dumps(message) + "\n")
    out.flush()


class Inbox:
    """Requests from standard input, one JSON object a line; `stop` messages can be seen while a child runs."""

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
        """Take in what has arrived. An end of file means that the main process is gone."""
        try:
            data = os.read(0, 65536)
        except BlockingIOError:
            return
        self.closed = self.closed or not data
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._waiting += [json.loads(line) for line in lines if line]

    def told_to_stop(self, request: int) -> bool:
        """Whether the child of this request is to be given up. A stop that came too late for its child is dropped."""
        stops = {message["stop"] for message in self._waiting if "stop" in message}
        self._waiting = [message for message in self._waiting if "stop" not in message]
        return request in stops or self.closed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
