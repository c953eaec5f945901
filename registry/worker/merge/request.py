"""`Order`: a recipe with folders in place of names, and the running of it in a process of its own. No torch here.

Invariants
- The process gets no secret: its environment is an allow-list, its input is folders.
- A process that dies, or is told to stop, is an error with its reason; what it had begun is gone.

Example
    >>> Order(recipe=recipe, sources=["a", "b"], out="c").run().relative_error
    0.0
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from registry.adapters.peft.config import read_config
from registry.errors import Unavailable, from_problem
from registry.evaluation.verdicts import Value
from registry.manifest import CONFIG
from registry.merging.recipes import BY_PEFT, MergeReport, Operation, Recipe
from registry.worker.sandbox import entry
from registry.worker.sandbox.environment import clean_environment

END_SECONDS = 10.0
"""How long a process may take to clear up what it began."""


class Order(Value):
    """`sources`: folders of adapters. `base`: the folder of the base that is fused into, or extracted against."""

    recipe: Recipe
    sources: tuple[str, ...] = ()
    base: str = ""
    base_name: str = ""
    tuned: str = ""
    out: str

    def run(
        self, say: Callable[[str], None] = lambda _said: None, *, threads: int = 0, seconds: float = 0
    ) -> MergeReport:
        """Do it in a process of its own. An exception of `say` ends the process and comes through.

        The error that the process met, or `Unavailable` (TRY_LATER) when it died, or took over `seconds` (0: any time).
        """
        environment = clean_environment(os.environ)
        if threads:
            environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        process = subprocess.Popen(
            entry.command(f"registry.worker.merge.{self._room()}"),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment,
        )  # fmt: skip
        late = threading.Event()

        def end_late() -> None:
            late.set()
            _end(process)

        timer = threading.Timer(seconds or threading.TIMEOUT_MAX, end_late)
        timer.daemon = True
        timer.start()
        try:
            return self._listen(process, say)
        except Unavailable as e:
            if late.is_set():
                raise Unavailable("TRY_LATER", f"the merge took over {seconds:g} seconds, and was ended") from e
            raise
        finally:
            timer.cancel()
            _end(process)

    def _room(self) -> str:
        """The process's room: the quick one, unless PEFT must compute the update (foreign.py)."""
        if self.recipe.operation is not Operation.FUSE or not self.sources:
            return "process"
        written = Path(self.sources[0]) / CONFIG
        method = read_config(written.read_bytes()).method if written.is_file() else ""
        return "foreign" if method in BY_PEFT else "process"

    def _listen(self, process: subprocess.Popen[bytes], say: Callable[[str], None]) -> MergeReport:
        last: dict[str, Any] = {}
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("the process has no pipes")
        with process.stdin, process.stdout:
            process.stdin.write(self.model_dump_json().encode())
            process.stdin.close()
            for line in process.stdout:
                last = json.loads(line)
                if "said" in last:
                    say(str(last["said"]))
        if "report" in last:
            return MergeReport.model_validate(last["report"])
        if "problem" in last:
            raise from_problem(last["problem"])
        status = process.wait()
        how = last.get("error") or (f"it was ended by signal {-status}" if status < 0 else f"exit status {status}")
        raise Unavailable("TRY_LATER", f"the merge could not be done: {how}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End it so that it clears up what it began, and by force if it does not."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
