"""`Order`: a conversion with folders in place of names, and the running of it in a process of its own. No torch here.

Invariants
- The process gets no secret: its environment is an allow-list, its input is folders and the base's facts.
- A library that is missing here is said with the extra that brings it, before a process is started.
- A process that dies is an error with its reason; it is ended when the job is lost.

Example
    >>> order.run(threads=2)
    Converted(message='scale 2 folded into 16 modules of rank 8', …)
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import time
from collections.abc import Callable
from typing import Any

from registry.bases import BaseSpec
from registry.errors import Unavailable, from_problem
from registry.evaluation.verdicts import Value
from registry.merging.conversions import Conversion, Converted, Target
from registry.worker.sandbox import entry
from registry.worker.sandbox.environment import clean_environment

PROGRAMS: dict[Target, tuple[str, str, str]] = {
    Target.CANONICAL: ("canonical", "torch", "worker"),
    Target.PLAIN: ("plain", "peft", "worker"),
    Target.PEFT: ("native", "torch", "worker"),
    Target.DIFFUSERS: ("images", "diffusers", "images"),
    Target.GGUF: ("to_gguf", "gguf", "gguf"),
}
"""Target → the program of this folder, the library that it needs, and the extra that installs it."""
WAIT_SECONDS = 1.0


class Order(Value):
    """`source`: the original's folder. `base_folder`: the base's weights, where the conversion needs them."""

    conversion: Conversion
    source: str
    out: str
    base: BaseSpec
    base_folder: str = ""

    def run(self, look: Callable[[], None] = lambda: None, *, threads: int = 0, seconds: float = 0) -> Converted:
        """Do it. `look` is called every second; an exception of it ends the process and comes through.

        The error that the process met; `Unavailable` (TRY_LATER) when it died, took over `seconds` (0: any time), or a
        library is missing here.
        """
        name, library, extra = PROGRAMS[self.conversion.to]
        if importlib.util.find_spec(library) is None:
            raise Unavailable(
                "TRY_LATER",
                f"this worker has no {library}, which {self.conversion.to} is made with",
                next_step=f"install adapter-registry[{extra}] on a worker",
            )
        environment = clean_environment(os.environ)
        if threads:
            environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        process = subprocess.Popen(
            entry.command(f"registry.worker.conversions.{name}"),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
        )  # fmt: skip
        try:
            return _answer(process, self.model_dump_json().encode(), look, seconds)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


def _answer(process: subprocess.Popen[bytes], text: bytes, look: Callable[[], None], seconds: float) -> Converted:
    out = errors = b""
    ends = time.monotonic() + (seconds or math.inf)
    first: bytes | None = text
    while True:
        try:
            out, errors = process.communicate(first, timeout=WAIT_SECONDS)
            break
        except subprocess.TimeoutExpired:
            first = None  # it was taken over by the first call
            look()
            if time.monotonic() > ends:
                detail = f"the conversion took over {seconds:g} seconds, and was ended"
                raise Unavailable("TRY_LATER", detail) from None
    lines = out.decode("utf-8", "replace").strip().splitlines()
    answer: dict[str, Any] = {}
    if lines and lines[-1].startswith("{"):
        answer = json.loads(lines[-1])
    if "report" in answer:
        return Converted.model_validate(answer["report"])
    if "problem" in answer:
        raise from_problem(answer["problem"])
    status = process.returncode
    how = f"it was ended by signal {-status}" if status < 0 else f"exit status {status}"
    said = errors.decode("utf-8", "replace").strip().splitlines()
    raise Unavailable("TRY_LATER", f"the conversion could not be done: {how}{': ' + said[-1][:500] if said else ''}")
