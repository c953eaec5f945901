"""Which weights lie in a folder: asked of a process of its own, told to the registry, or compared with what it knows.

Invariants
- No torch in this process: `identify` runs `python -m registry.worker.model.fingerprints` and reads its lines.
- A base whose weights are known is hashed, not sketched; only a difference is looked at closer, to name the match.
- A base without an identity gets one the first time that a worker uses it; that it cannot be had is no obstacle.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from registry.api.catalog import BaseView
from registry.bases.identity import Identity
from registry.client.registry import Registry
from registry.digest import Digest
from registry.errors import Conflict, Invalid, RegistryError, Unavailable
from registry.worker.model import weights
from registry.worker.model.weights import Progress, Weights
from registry.worker.sandbox import program
from registry.worker.sandbox.environment import clean_environment

PACKAGE = "torch"


def is_possible() -> bool:
    """Whether the worker's packages are installed here."""
    return importlib.util.find_spec(PACKAGE) is not None


def identify(folder: str | Path, progress: Progress = weights.quiet) -> Identity:
    """The identity of the base in a folder; it reads all weights once. `Invalid` (BASE_INVALID) says why not.

    An exception of `progress` ends the reading and comes through.
    """
    process = subprocess.Popen(
        program.command("registry.worker.model.fingerprints", str(folder)),
        stdout=subprocess.PIPE,
        env=clean_environment(os.environ),
        text=True,
    )
    last: dict[str, object] = {}
    try:
        for line in process.stdout or ():
            last = json.loads(line)
            count = last.get("read_bytes")
            if isinstance(count, int):
                progress(count)
    except BaseException:
        process.kill()
        raise
    finally:
        if process.stdout is not None:
            process.stdout.close()
        status = process.wait()
    if "identity" not in last:
        why = last.get("error") or f"the process that reads them ended with status {status}"
        raise Invalid("BASE_INVALID", f"the weights in {folder} have no identity: {why}")
    return Identity.model_validate(last["identity"])


class Stopped(Exception):
    """Reading was given up, because the worker was told to stop."""


class Inspector:
    """Compares the weights that this worker finds with those that the registry knows."""

    def __init__(self, registry: Registry, *, say: Callable[[str], None], stopping: Callable[[], bool]) -> None:
        self._registry = registry
        self._say = say
        self._stopping = stopping
        self._told: dict[tuple[str, Path], Digest] = {}

    def problem(self, view: BaseView, folder: Path) -> str:
        """Why the weights in the folder are not those of the base, in one sentence; empty when they are.

        `Invalid` when they cannot be read, `Unavailable` when the registry does not answer, `Stopped`.
        """
        registered = view.spec.fingerprints.exact
        if registered is None:
            return self._introduce(view, folder)
        if (
            self._told.pop((view.name, folder), None) == registered
            or Weights.of(folder).exact(self._go_on) == registered
        ):
            return ""
        return self._difference(view, folder)

    def _introduce(self, view: BaseView, folder: Path) -> str:
        self._say(f"reading the weights of {view.name} once, to know them again")
        try:
            identity = identify(folder, self._go_on)
            self._registry.identify_base(view.name, identity)
        except Unavailable:
            raise
        except Conflict as e:  # another worker was first, with other weights
            return f"{folder} is not the base {view.name}: {e.detail}"
        except RegistryError as e:
            self._say(f"{view.name}: its weights stay unknown: {e.detail}")
            return ""
        self._told[view.name, folder] = identity.exact
        return ""

    def _difference(self, view: BaseView, folder: Path) -> str:
        message = f"{folder} is not the base {view.name}, though it has its shapes: the weights were exchanged"
        try:
            similarity = self._registry.similarity(view.name, identify(folder, self._go_on))
        except Invalid:
            return message
        return f"{message}; the folder {similarity.message}; its match is '{similarity.match}'"

    def _go_on(self, _bytes: int) -> None:
        if self._stopping():
            raise Stopped
