"""Where this machine has a base's weights, checked by their headers before a job for that base is claimed.

Invariants
- A folder stands for a base only if its configuration and headers hash to the base's registered fingerprint.
- A base that needs code of its own is never loaded.
- A folder is read again only when the base's record or the folder's configuration has changed.

Example
    >>> Sources({"SmolLM2-135M-Instruct": Path("models/smollm2")}).usable(registry.bases().items)
    [Source(name='SmolLM2-135M-Instruct', folder=PosixPath('models/smollm2'), fingerprint='sha256:…')]
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from registry import bases
from registry.client.base_folder import base_spec_from
from registry.errors import Invalid, RegistryError
from registry.wire import BaseView
from registry.worker.pool import Source


class Sources:
    """The bases of a worker: those named on its command line, else every one whose source is a folder here."""

    def __init__(self, wanted: Mapping[str, Path | None] | None = None) -> None:
        """`wanted` maps a base's name to its folder, or to None for "where the registry says". Empty: all bases."""
        self._wanted = dict(wanted or {})
        self._known: dict[tuple[str, str, Path, float], Source | str] = {}
        self.problems: dict[str, str] = {}

    def usable(self, views: Iterable[BaseView]) -> list[Source]:
        """The bases that can be loaded here now. `problems` then says why the others cannot, one sentence each."""
        self.problems = {}
        by_name = {view.name: view for view in views}
        for name in self._wanted:
            if name not in by_name:
                self.problems[name] = f"the registry has no base {name!r}: add it with `adapter base add {name} DIR`"
        found = []
        for name, view in by_name.items():
            if self._wanted and name not in self._wanted:
                continue
            source = self._source(view)
            if isinstance(source, Source):
                found.append(source)
            else:
                self.problems[name] = source
        return found

    def demand(self, views: Iterable[BaseView]) -> list[Source]:
        """As `usable`, but a base named with a folder of its own that is not that base is `Invalid` (BASE_INVALID)."""
        found = self.usable(views)
        for name, folder in self._wanted.items():
            if folder is not None and name in self.problems:
                raise Invalid("BASE_INVALID", self.problems[name])
        return found

    def _source(self, view: BaseView) -> Source | str:
        folder = self._wanted.get(view.name) or (Path(view.source) if view.source else None)
        if folder is None:
            return f"the base {view.name} has no source; say where it lies: --base {view.name}=DIR"
        config = folder / bases.CONFIG
        if not config.is_file():
            return f"the base {view.name} is not in {folder} here; say where it lies: --base {view.name}=DIR"
        key = (view.name, str(view.fingerprint), folder, config.stat().st_mtime)
        if key not in self._known:
            self._known[key] = _read(view, folder)
        return self._known[key]


def _read(view: BaseView, folder: Path) -> Source | str:
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
    return Source(view.name, folder.resolve(), str(view.fingerprint))
