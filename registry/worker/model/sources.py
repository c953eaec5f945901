"""Where this machine has a base's weights, checked before a job for that base is claimed.

Invariants
- A folder stands for a base only if its configuration and headers hash to the base's registered fingerprint.
- With an inspector, the weights themselves must be those that the registry knows, byte for byte.
- A base that needs code of its own is never loaded.
- A folder is read again only when the base's record, or the folder's configuration or weight files, have changed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from registry.api.catalog import BaseView
from registry.client.local.base_folder import base_spec_from
from registry.digest import Digest
from registry.errors import Invalid, RegistryError
from registry.files import BASE_CONFIG

Inspect = Callable[[BaseView, Path], str]
"""(base, folder) → why the weights there are not the base's, empty when they are."""
Stamp = tuple[str, int, int]
IMAGE_LIBRARY = "diffusers"
"""The library that loads image models."""


@dataclass(frozen=True, slots=True)
class BaseSource:
    """A base that this machine can load: its name, its folder, and the fingerprint that both agree on.

    `dtype` is the number format of its record, for a GPU. `thresholds` are what the base says instead of our defaults.
    """

    name: str
    folder: Path
    fingerprint: str
    dtype: str = ""
    thresholds: Mapping[str, float] = field(default_factory=dict, compare=False)


class Sources:
    """The bases of a worker: those named on its command line, else every one whose source is a folder here."""

    def __init__(self, folders: Mapping[str, Path | None] | None = None) -> None:
        """`wanted` maps a base's name to its folder, or to None for "where the registry says". Empty: all bases."""
        self._wanted = dict(folders or {})
        self._known: dict[tuple[str, Digest, Digest | None, Path, tuple[Stamp, ...]], BaseSource | str] = {}
        self.problems: dict[str, str] = {}

    def usable(self, views: Iterable[BaseView], inspect: Inspect | None = None) -> list[BaseSource]:
        """The bases that can be loaded here now. `problems` then says why the others cannot, one sentence each."""
        self.problems = {}
        by_name = {view.name: view for view in views}
        for name in self._wanted:
            if name not in by_name:
                self.problems[name] = f"the registry has no base {name!r}: add it with `adapter base add {name} DIR`"
        sources = []
        for name, view in by_name.items():
            if self._wanted and name not in self._wanted:
                continue
            source = self._source(view, inspect)
            if isinstance(source, BaseSource):
                sources.append(source)
            else:
                self.problems[name] = source
        return sources

    def demand(self, views: Iterable[BaseView], inspect: Inspect | None = None) -> list[BaseSource]:
        """As `usable`, but a base named with a folder of its own that is not that base is `Invalid` (BASE_INVALID)."""
        sources = self.usable(views, inspect)
        for name, folder in self._wanted.items():
            if folder is not None and name in self.problems:
                raise Invalid("BASE_INVALID", self.problems[name])
        return sources

    def _source(self, view: BaseView, inspect: Inspect | None) -> BaseSource | str:
        folder = self._wanted.get(view.name) or (Path(view.source) if view.source else None)
        if folder is None:
            return f"the base {view.name} has no source; say where it lies: --base {view.name}=DIR"
        if view.spec.is_pipeline and importlib.util.find_spec(IMAGE_LIBRARY) is None:
            return f"the base {view.name} is an image model, and {IMAGE_LIBRARY} is not installed here (extra `images`)"
        if not any((folder / inner / BASE_CONFIG).is_file() for inner in ("", *view.spec.components)):
            return f"the base {view.name} is not in {folder} here; say where it lies: --base {view.name}=DIR"
        key = (view.name, view.fingerprint, view.spec.fingerprints.exact, folder, _stamps(folder))
        if key not in self._known:
            self._known[key] = _read(view, folder, inspect)
        return self._known[key]


def _stamps(folder: Path) -> tuple[Stamp, ...]:
    """While name, size and time of every file stay, its bytes are taken to stay."""
    files = sorted({*folder.glob(BASE_CONFIG), *folder.glob(f"*/{BASE_CONFIG}"), *folder.glob("**/*.safetensors")})
    return tuple((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files)


def _read(view: BaseView, folder: Path, inspect: Inspect | None) -> BaseSource | str:
    if view.spec.needs_code:
        return f"the base {view.name} needs code of its own, which a worker never runs"
    try:
        spec, _ = base_spec_from(folder, view.name)
    except RegistryError as e:
        return f"the base {view.name} in {folder}: {e.detail}"
    if spec.fingerprint != view.fingerprint:
        return (
            f"{folder} is not the base {view.name}: its fingerprint is {spec.fingerprint[:19]}…, "
            f"registered is {view.fingerprint[:19]}…"
        )
    try:
        problem = inspect(view, folder) if inspect is not None else ""
    except Invalid as e:
        problem = f"the base {view.name} in {folder}: {e.detail}"
    return problem or BaseSource(view.name, folder.resolve(), str(view.fingerprint), dtype=view.spec.dtype)
