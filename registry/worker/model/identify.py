"""Identify the weights in a folder by the program `fingerprints`, and compare them with the registry's identity.

A base with a registered identity is only hashed; after a difference it is sketched, to name the match. A base without
an identity gets one when a worker first uses it. No torch in this process.
"""

import importlib.metadata
import importlib.util
from collections.abc import Callable
from pathlib import Path

from registry.api.bases import BaseView
from registry.bases.identity import Identity
from registry.bases.library import LibraryModules, is_newer
from registry.client.registry import Registry
from registry.digest import Digest
from registry.errors import Conflict, Invalid, RegistryError, Unavailable
from registry.worker.model.request import IdentifyRequest, LibraryRequest, installed_library
from registry.worker.model.sources import Stamp, stamps_of
from registry.worker.model.weights import Progress, Weights
from registry.worker.sandbox import program


def is_possible() -> bool:
    """Whether the worker's packages are installed here."""
    return importlib.util.find_spec("torch") is not None


def identify(folder: str | Path, progress: Progress = program.ignore_progress) -> Identity:
    """Compute the identity of the base in a folder from all its weights. `Invalid` (BASE_INVALID) with the reason.

    An exception of `progress` ends the program and propagates.
    """
    module, request = "registry.worker.model.fingerprints", IdentifyRequest(folder=str(folder))
    try:
        report = program.run_program(module, request, work="reading them", progress=lambda size: progress(int(size)))
    except RegistryError as e:
        raise Invalid("BASE_INVALID", f"the weights in {folder} have no identity: {e.detail}") from e
    return Identity.model_validate(report)


def build_modules(folder: str | Path, check: Callable[[int], None] = program.ignore_progress) -> LibraryModules:
    """The modules of the base in this folder as the library here builds them. `check` may raise to end the program."""
    module, request = "registry.worker.model.library", LibraryRequest(folder=str(folder))
    report = program.run_program(module, request, work="building the base", check=lambda: check(0), seconds=600)
    return LibraryModules.model_validate(report)


class Stopped(Exception):
    """The worker stopped while it was reading weights."""


class Inspector:
    """Compare the weights in folders of this worker with the registry's identities."""

    def __init__(self, registry: Registry, *, say: Callable[[str], None], stopping: Callable[[], bool]) -> None:
        self._registry = registry
        self._say = say
        self._stopping = stopping
        self._registered: dict[tuple[str, Path], tuple[Digest, tuple[Stamp, ...]]] = {}
        self._built: set[tuple[str, Path]] = set()

    def problem(self, view: BaseView, folder: Path) -> str:
        """Say in one sentence why the weights in the folder are not the base's; empty if they are.

        Raises `Invalid` when they cannot be read, `Unavailable` when the registry does not respond, or `Stopped`.
        """
        problem = self._compare(view, folder)
        if not problem and not view.spec.is_pipeline and is_newer(installed_library(), view.spec.library):
            self._build(view, folder)
        return problem

    def _compare(self, view: BaseView, folder: Path) -> str:
        registered = view.spec.fingerprints.exact
        if registered is None:
            return self._register(view, folder)
        if self._registered.pop((view.name, folder), None) == (registered, stamps_of(folder, view.spec.components)):
            return ""  # identified here in the round before, and the files are still the same
        same = Weights.of(folder).exact(self._check_stop) == registered
        return "" if same else self._difference(view, folder)

    def _build(self, view: BaseView, folder: Path) -> None:
        """Record which modules the library here builds, once for each version. Without the right to, nothing."""
        if (view.name, folder) in self._built:
            return
        self._built.add((view.name, folder))
        self._say(f"building {view.name} with {installed_library()} once, to read the names of its modules")
        try:
            modules = build_modules(folder, self._check_stop)
        except RegistryError as e:  # also of a program that died: the worker goes on without
            self._say(f"{view.name}: its modules are not recorded: {e.detail}")
            return
        try:
            self._registry.set_base_modules(view.name, modules)
        except Unavailable:
            raise
        except RegistryError as e:
            self._say(f"{view.name}: its modules are not recorded: {e.detail}")

    def _register(self, view: BaseView, folder: Path) -> str:
        self._say(f"reading the weights of {view.name} once, to identify them")
        stamps = stamps_of(folder, view.spec.components)
        try:
            identity = identify(folder, self._check_stop)
            if stamps_of(folder, view.spec.components) != stamps:
                return f"the files of the base {view.name} in {folder} changed while they were read"
            self._registry.identify_base(view.name, identity)
        except Unavailable:
            raise
        except Conflict as e:  # another worker was first, with other weights
            return f"{folder} is not the base {view.name}: {e.detail}"
        except RegistryError as e:
            self._say(f"{view.name}: its weights have no identity: {e.detail}")
            return ""
        self._registered[view.name, folder] = identity.exact, stamps
        return ""

    def _difference(self, view: BaseView, folder: Path) -> str:
        message = f"{folder} is not the base {view.name}: the shapes are the same, the weights differ"
        try:
            similarity = self._registry.similarity(view.name, identify(folder, self._check_stop))
        except Invalid:
            return message
        return f"{message}; the folder {similarity.message}; its match is '{similarity.match}'"

    def _check_stop(self, _bytes: int) -> None:
        if self._stopping():
            raise Stopped
