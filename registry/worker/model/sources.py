"""Where this machine has a base's weights, checked before a job for that base is claimed.

The folder's configuration and headers must hash to the base's registered fingerprint, and the weights to its identity.
A folder is read again only when the base's record, or the folder's configuration or weight files, have changed.
"""

import importlib.util
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from registry.api.bases import BaseView
from registry.client.local.base_folder import base_spec_from
from registry.digest import Digest
from registry.errors import Invalid, RegistryError
from registry.versions.files import BASE_CONFIG

Inspect = Callable[[BaseView, Path], str]
"""(base, folder) → why the weights are not the base's; empty if they are."""
Stamp = tuple[str, str, int, int, int]
ENTRIES_LIMIT = 10_000
"""Entries of a base's folder, which is listed before each claim."""
IMAGE_LIBRARY = "diffusers"
"""The library that loads image models."""


@dataclass(frozen=True, slots=True)
class BaseSource:
    """A base that this machine can load. `dtype`: the number format of its record, for a GPU.

    `thresholds`: the base's own, which replace the defaults. `stamps`: of the files before they were checked.
    """

    name: str
    folder: Path
    fingerprint: str
    dtype: str = ""
    thresholds: Mapping[str, float] = field(default_factory=dict, compare=False)
    stamps: tuple[Stamp, ...] = ()
    components: tuple[str, ...] = ()

    def demand_unchanged(self) -> None:
        """Raise `Invalid` (BASE_INVALID) if the files are no longer those that were checked."""
        try:
            same = not self.stamps or stamps_of(self.folder, self.components) == self.stamps
        except OSError:
            same = False
        if not same:
            raise Invalid("BASE_INVALID", f"the files of the base {self.name} in {self.folder} changed meanwhile")


class Sources:
    """The bases of a worker: those named on its command line, else every base whose source is a folder here.

    The registry stores sources of administrators and workers of all namespaces only, so no other user names a folder.
    """

    def __init__(self, folders: Mapping[str, Path | None] | None = None) -> None:
        """`folders` maps a base's name to its folder, or to None for its registered source. Empty: all bases."""
        self._folders = dict(folders or {})
        self._checked: dict[tuple[str, Digest, Digest | None, Path, tuple[Stamp, ...]], BaseSource | str] = {}
        self.problems: dict[str, str] = {}

    def usable(self, views: Iterable[BaseView], inspect: Inspect | None = None) -> list[BaseSource]:
        """The bases that can be loaded here now. `problems` then says why each other one cannot.

        `Invalid` (BASE_INVALID) if a folder named for a base is not that base.
        """
        by_name = {view.name: view for view in views}
        names = self._folders or by_name
        sources = [
            self._source(by_name[name], inspect) if name in by_name
            else f"the registry has no base {name!r}: add it with `adapter base add {name} DIR`"
            for name in names
        ]  # fmt: skip
        self.problems = {name: s for name, s in zip(names, sources, strict=True) if isinstance(s, str)}
        for name, problem in self.problems.items():
            if self._folders.get(name) is not None:
                raise Invalid("BASE_INVALID", problem)
        return [source for source in sources if isinstance(source, BaseSource)]

    def _source(self, view: BaseView, inspect: Inspect | None) -> BaseSource | str:
        folder = self._folders.get(view.name) or (Path(view.source) if view.source else None)
        if folder is None:
            return f"the base {view.name} has no source; name its folder: --base {view.name}=DIR"
        if view.spec.is_pipeline and importlib.util.find_spec(IMAGE_LIBRARY) is None:
            return f"the base {view.name} is an image model, and {IMAGE_LIBRARY} is not installed here (extra `images`)"
        if not any((folder / inner / BASE_CONFIG).is_file() for inner in ("", *view.spec.components)):
            return f"the base {view.name} is not in {folder} here; name its folder: --base {view.name}=DIR"
        try:
            stamps = stamps_of(folder, view.spec.components)
            key = (view.name, view.fingerprint, view.spec.fingerprints.exact, folder, stamps)
            if key not in self._checked:
                self._checked[key] = _read(view, folder, stamps, inspect)
        except (OSError, Invalid) as e:  # files may vanish at any time
            return f"the base {view.name} in {folder}: {e}"
        return self._checked[key]


def stamps_of(folder: Path, components: Iterable[str]) -> tuple[Stamp, ...]:
    """Component, name, size and times of the model's files: while they stay the same, the bytes are assumed to.

    The time of the last change of the inode also tells of a replacement that keeps the time of the bytes.
    """
    stamps = []
    for inner in ("", *components):
        with os.scandir(folder / inner) as entries:
            for number, entry in enumerate(entries):
                if number >= ENTRIES_LIMIT:
                    raise Invalid("BASE_INVALID", f"{folder / inner} has over {ENTRIES_LIMIT} entries")
                if entry.name == BASE_CONFIG or entry.name.endswith(".safetensors"):
                    status = entry.stat()
                    stamps.append((inner, entry.name, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    return tuple(sorted(stamps))


def _read(view: BaseView, folder: Path, stamps: tuple[Stamp, ...], inspect: Inspect | None) -> BaseSource | str:
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
    return problem or BaseSource(
        view.name, folder.resolve(), str(view.fingerprint), dtype=view.spec.dtype, stamps=stamps,
        components=view.spec.components,
    )  # fmt: skip
