"""A program of the worker's own: a module that runs as a process and ends with its work. How it is started, and begins.

Invariants
- While it imports, nothing is collected: torch and PEFT make a million objects that stay, and looking through them time
  and again was a sixth of the start. `begin`, which is first in each program's `main`, sets that right.
- What is said of libraries that nothing here needs is not for whoever runs a worker.

Example
    >>> subprocess.Popen(command("registry.worker.model.fingerprints", "models/tiny"))
"""

from __future__ import annotations

import gc
import sys

_START = (
    "import gc, logging, runpy, sys; gc.disable(); "
    # Where the CPU has AVX-512, importing bitsandbytes warns that the package `kernels` is missing.
    "logging.getLogger('bitsandbytes').setLevel(logging.ERROR); "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)


def command(module: str, *words: str) -> list[str]:
    """The command line that runs a module as `python -m` would, with a quicker start."""
    return [sys.executable, "-c", _START, module, *words]


def begin() -> None:
    """All is imported: collect again, but leave alone what is there, so that a fork shares its memory, too."""
    gc.freeze()
    gc.enable()
