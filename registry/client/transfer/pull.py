"""Pulls versions into folders, every byte verified; a file that this machine has already is not fetched.

The manifest must hash to the version's digest and each file to the manifest's. `verify` hashes a pulled folder again.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import fnmatch
import itertools
import json
import os
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from registry.api import PAGE_LIMIT
from registry.api.catalog import AdapterView, FileLink, Resolved
from registry.api.transfer import BULK_LIMIT, PullPlan
from registry.client import response_checks
from registry.client.core import Versions, only
from registry.client.local.cache import LINK_FROM_BYTES, Cache
from registry.client.local.destination import Destination
from registry.client.transfer import file_transfer
from registry.client.transfer.bulk import Result, SharedProgress, in_batches, result_of, run_each
from registry.client.transfer.file_transfer import Progress, Silent
from registry.digest import Digest
from registry.errors import Corrupt, Invalid, NotFound, RegistryError
from registry.findings import Finding
from registry.names import Ref
from registry.versions.files import NOTE, PARTIAL_NOTE

LINK_LIMIT_SECONDS = 24 * 3600
"""A direct link is used no longer, whatever the registry says."""

PLAN_SECONDS = 300
"""A plan is used no longer: its links end."""

USER_CACHE = Cache.of_user
"""The default of `pull`: the cache of this user."""


def pull(
    registry: Versions, ref: Ref | str, dest: Path, *, cache: Cache | Callable[[], Cache] | None = USER_CACHE,
    progress: Progress | None = None, include: Sequence[str] = (),
) -> Resolved:  # fmt: skip
    """Put the version `ref` into `dest`, every byte verified, as a whole or not at all.

    `cache=None` uses no cache. `dest` gets one file of ours, `.adapter.json`.
    With `include`, only the files whose paths match one of these patterns, and `.adapter.partial.json` instead.
    `Invalid` (FOLDER_INVALID) if `dest` has a whole version; `NotFound` (BLOB_UNKNOWN) if no file matches.
    """
    source = only(_plan(registry, [ref], include, patient=True))
    _put(source, dest, cache() if callable(cache) else cache, progress or Silent())
    return source.resolved


def pull_all(
    registry: Versions, refs: Sequence[tuple[Ref, Path]], *, cache: Cache | Callable[[], Cache] | None = USER_CACHE,
    progress: Progress | None = None, on_result: Callable[[Result[Resolved]], None] = lambda _result: None,
) -> list[Result[Resolved]]:  # fmt: skip
    """Pull each version into its folder, many with one request. `on_result` is called with each result."""
    total = SharedProgress(progress or Silent())
    store = cache() if callable(cache) else cache
    Planned = tuple[Ref, Path, _Source | RegistryError]

    def plan(batch: Sequence[tuple[Ref, Path]]) -> list[Planned]:
        try:
            sources = _plan(registry, [ref for ref, _ in batch], patient=True)
        except RegistryError as e:
            sources = [e] * len(batch)
        return [(ref, folder, source) for (ref, folder), source in zip(batch, sources, strict=True)]

    def pull_one(planned: Planned) -> Result[Resolved]:
        ref, folder, source = planned

        def work() -> Resolved:
            pulled = only([source])
            _put(pulled, folder, store, total)
            return pulled.resolved

        return result_of(str(ref), folder, work)

    return in_batches(plan, lambda planned: run_each(pull_one, planned, on_result), refs)


class PlannedPulls:
    """Pulls of versions that are known beforehand, planned with one request for many. Thread-safe.

    A plan is requested when the first of its versions is pulled, and again for one that is pulled much later.
    """

    def __init__(self, registry: Versions, refs: Iterable[Ref]) -> None:
        self._registry = registry
        self._lock = threading.Lock()
        self._unplanned = dict.fromkeys(refs)
        self._planned: dict[Ref, tuple[_Source | RegistryError, float]] = {}

    def pull(
        self, ref: Ref, dest: Path, *, cache: Cache | Callable[[], Cache] | None = USER_CACHE,
        progress: Progress | None = None, number: int | None = None,
    ) -> Resolved:  # fmt: skip
        """As the function `pull`. `Corrupt` (RESPONSE_INVALID) if the version has another number than `number`."""
        source = only([self._source(ref)])
        if number is not None:
            response_checks.check_fields(source.resolved, number=number)
        _put(source, dest, cache() if callable(cache) else cache, progress or Silent())
        return source.resolved

    def resolve(self, ref: Ref) -> Resolved:
        """What a pull of `ref` puts into a folder, by the same plan."""
        return only([self._source(ref, keep=True)]).resolved

    def _source(self, ref: Ref, *, keep: bool = False) -> _Source | RegistryError:
        """The source by a plan that is used once, unless `keep`."""
        with self._lock:
            if ref in self._unplanned:
                others = (other for other in self._unplanned if other != ref)
                batch = [ref, *itertools.islice(others, BULK_LIMIT - 1)]
                try:
                    sources = _plan(self._registry, batch)
                except Corrupt as e:  # about one of them
                    sources = [e] * len(batch)
                now = time.monotonic()
                self._planned |= {each: (source, now) for each, source in zip(batch, sources, strict=True)}
                for each in batch:
                    del self._unplanned[each]
            source, planned_at = self._planned.get(ref, (None, 0.0))
            if not keep:
                self._planned.pop(ref, None)
        if isinstance(source, _Source) and time.monotonic() - planned_at < PLAN_SECONDS:
            return source
        return _plan(self._registry, [ref])[0]  # an error may concern the others of its request


def adapters_of(registry: Versions, base: str, *, namespace: str = "", alias: str = "") -> Iterator[AdapterView]:
    """Every adapter of a base that the actor may see, of one namespace or with one alias if given."""
    for page in response_checks.all_pages(
        lambda cursor: registry.adapters(base=base, namespace=namespace, alias=alias, cursor=cursor, limit=PAGE_LIMIT)
    ):
        yield from page.items


def verify(
    registry: Versions, ref: Ref | str, dest: Path, *, cache: Cache | Callable[[], Cache] | None = USER_CACHE,
    progress: Progress | None = None, include: Sequence[str] = (),
) -> tuple[Resolved, list[Finding]]:  # fmt: skip
    """Hash the files of the version `ref` in `dest` and in the cache again; the damaged ones.

    A folder in which a file is missing or damaged is replaced, as by `pull`. Without `include`, a partial one is, too.
    """
    source = only(_plan(registry, [ref], include, patient=True))
    store = cache() if callable(cache) else cache
    damaged, whole = [], (dest / NOTE).is_file() or (bool(include) and (dest / PARTIAL_NOTE).is_file())
    for link in source.links:
        intact = _is_intact(dest / link.path, link)
        whole = whole and bool(intact)
        if intact is False:
            damaged.append(Finding("pull.file_damaged", str(dest / link.path), "differs from the version"))
        if store is not None and store.check(link.digest, link.size_bytes) is False:
            damaged.append(Finding("pull.cache_damaged", str(store.path_of(link.digest)), f"is no longer {link.path}"))
    if not whole:
        _put(source, dest, store, progress or Silent())
    return source.resolved, damaged


def _is_intact(path: Path, link: FileLink) -> bool | None:
    """Whether this file has the bytes of the version; None if it does not exist."""
    try:
        status = path.lstat()
        return (
            stat.S_ISREG(status.st_mode) and status.st_size == link.size_bytes and Digest.of_file(path) == link.digest
        )
    except FileNotFoundError:
        return None
    except OSError:  # unreadable
        return False


def _put(source: _Source, dest: Path, store: Cache | None, progress: Progress) -> None:
    if source.include and (dest / NOTE).is_file():
        raise Invalid("FOLDER_INVALID", f"{str(dest)!r} has a whole version, which a partial pull would replace")
    progress.start(sum(link.size_bytes for link in source.links))
    with Destination(dest) as folder:
        _require_space(source, dest, folder, store)
        for parent in {(folder / link.path).parent for link in source.links}:
            parent.mkdir(parents=True, exist_ok=True)
        to_fetch = [link for link in source.links if not source.write_small(link, folder / link.path, progress)]
        file_transfer.run_parallel(
            lambda link: _place(source, link, folder / link.path, store, progress),
            to_fetch,
            file_transfer.FILES_AT_ONCE,
        )
        version = source.resolved
        note: dict[str, object] = {"name": version.name, "number": version.number, "digest": version.digest}
        note |= {"include": source.include} if source.include else {}
        (folder / (PARTIAL_NOTE if source.include else NOTE)).write_text(json.dumps(note, indent=2) + "\n", "utf-8")


def _require_space(source: _Source, dest: Path, folder: Path, store: Cache | None) -> None:
    """`OSError` (ENOSPC) before the first byte; what the cache has may take no space."""
    missing = [link.size_bytes for link in source.links if store is None or not store.path_of(link.digest).is_file()]
    if shutil.disk_usage(folder).free < sum(missing):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(dest))


def _plan(
    registry: Versions, refs: Sequence[Ref | str], include: Sequence[str] = (), *, patient: bool = False
) -> list[_Source | RegistryError]:
    """A source for each ref, or why it cannot be pulled. `NotFound` (BLOB_UNKNOWN) if no file matches `include`."""
    outcomes, small = registry.plan_pulls(refs, patient=patient)
    return [o if isinstance(o, RegistryError) else _Source(registry, o, small, include) for o in outcomes]


def matching(files: Iterable[FileLink], include: Sequence[str]) -> list[FileLink]:
    """The files whose paths match one of these patterns (`*` also across folders); all without a pattern."""
    return [file for file in files if not include or any(fnmatch.fnmatchcase(file.path, p) for p in include)]


class _Source:
    """The verified manifest of a version, and the links to those of its files that are pulled."""

    def __init__(
        self, registry: Versions, plan: PullPlan, small: Mapping[Digest, str], include: Sequence[str] = ()
    ) -> None:
        self.resolved, self.include = plan.resolved, list(include)
        self.links = sorted(matching(plan.resolved.files, include), key=lambda link: -link.size_bytes)
        if include and not self.links:
            names = ", ".join(file.path for file in plan.resolved.files)
            raise NotFound("BLOB_UNKNOWN", f"no file matches {' or '.join(include)}; the version has {names}")
        self._registry, self._small = registry, small
        self._direct, self._until = plan.direct, time.monotonic() + min(plan.direct_seconds, LINK_LIMIT_SECONDS) / 2

    def write_small(self, link: FileLink, target: Path, progress: Progress) -> bool:
        """Write a file whose bytes came with the plan to `target`, past the cache. False if they did not come."""
        with contextlib.suppress(ValueError):  # not base64
            data = base64.b64decode(self._small.get(link.digest, ""), validate=True)
            if Digest.of(data) == link.digest:
                file_transfer.write_new(target, data, durable=True)
                progress.advance(len(data))
                return True
        return False

    def fetch(self, link: FileLink, target: Path, progress: Progress, *, durable: bool) -> None:
        """Write a file of the version to the new file `target`."""
        direct = file_transfer.Direct(self._direct.get(link.path, ""), self._until)
        file_transfer.fetch(self._registry, link, target, progress, direct=direct, durable=durable)


def _place(source: _Source, link: FileLink, target: Path, cache: Cache | None, progress: Progress) -> None:
    if cache is None:
        source.fetch(link, target, progress, durable=True)
        return
    linked = link.size_bytes >= LINK_FROM_BYTES

    def fetch(path: Path) -> None:
        # A small file is copied to the target durably; the cache hashes its own again at each use.
        source.fetch(link, path, progress, durable=linked or path == target)

    if cache.take(link.digest, link.size_bytes, target) or not cache.fill(link.digest, link.size_bytes, target, fetch):
        progress.advance(link.size_bytes)
