"""Pushes a folder as the newest version of a name.

The folder is checked here by the server's rules before a byte is sent; the server checks again and decides. Blobs
that the registry has, and parts that arrived, are not sent again. If links expire or a store fails, it plans again
while bytes arrive.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from registry.api.catalog import BaseView
from registry.api.transfer import SMALL_BLOB_BYTES, PushPlan, PushRequest, PushResult, SmallBlob, Upload
from registry.client import answers, transfer
from registry.client.bulk import Result, SharedProgress, result_of, run_each
from registry.client.core import Versions
from registry.client.local.folder import Folder, read_folder
from registry.client.transfer import Progress, Silent
from registry.errors import Invalid, NotFound, Unavailable
from registry.findings import Finding
from registry.manifest import BaseRef, Edge, Manifest, Relation
from registry.names import AdapterName, Ref
from registry.provenance import Provenance


class Signature(Protocol):
    """How a pushed version is signed: `signing.WithKey` or `signing.Attached`, in a module that is slow to import."""

    def check(self, manifest: Manifest) -> None:
        """Raise an error if the signature is not for this manifest."""

    def attach(self, registry: Versions, ref: Ref, manifest: Manifest) -> None:
        """Attach the signature to the pushed version."""


def push_folder(
    registry: Versions, folder: Path, name: AdapterName, *, base: str = "", alias: str = "",
    parents: Sequence[Ref] = (), edges: Sequence[Edge] = (), annotations: dict[str, str] | None = None,
    provenance: Provenance | None = None, message: str = "", golden: Path | None = None,
    progress: Progress | None = None, bases: Bases | None = None,
    left_out: Callable[[Finding], None] = lambda _reason: None, signature: Signature | None = None,
) -> PushResult:  # fmt: skip
    """Make the adapter in `folder` the newest version of `name`: plan, send what is missing, commit.

    `base`: default, the one that the configuration names. `parents` were trained further; `edges` state their own
    relation. `left_out` is called with each entry that is not sent. `signature` is checked before anything is sent.
    """
    read = read_folder(folder, golden=golden)
    for reason in read.left_out:
        left_out(reason)
    all_edges = (*(_edge(registry, parent) for parent in parents), *edges)
    manifest = read.manifest((bases or Bases(registry)).of(read, base), all_edges, annotations, provenance)
    if signature is not None:
        signature.check(manifest)
    counter = _Counter(progress or Silent())
    plan = _send(registry, read, name, PushRequest(manifest=manifest, message=message), counter)
    small = [upload for upload in plan.uploads if upload.size_bytes <= SMALL_BLOB_BYTES]
    bodies = [_small(read, upload) for upload in small]
    pushed = registry.commit_push(plan.push_id, alias=alias, small=bodies, size_bytes=manifest.size_bytes)
    answers.push_result(name, manifest.digest, pushed)
    counter.advance(_missing_bytes(small))
    if signature is not None:
        signature.attach(registry, Ref(name, manifest.digest), manifest)
    return pushed


def push_all(
    registry: Versions, folders: Sequence[tuple[Path, str]], *, base: str = "", message: str = "",
    declared: Callable[[Path], Provenance | None] = lambda _folder: None, progress: Progress | None = None,
    on_result: Callable[[Result[PushResult]], None] = lambda _result: None,
) -> list[Result[PushResult]]:  # fmt: skip
    """Push each folder as the newest version of its name, a few at a time. The bases are requested once.

    `declared` gives the provenance of a folder's adapter; `on_result` is called with each result.
    """
    bases = Bases(registry)
    total = SharedProgress(progress or Silent())

    def push(item: tuple[Path, str]) -> Result[PushResult]:
        folder, name = item

        def work() -> PushResult:
            adapter = AdapterName.parse(name)
            return push_folder(
                registry, folder, adapter, base=base, message=message, provenance=declared(folder), progress=total,
                bases=bases,
            )  # fmt: skip

        return result_of(name, folder, work)

    return run_each(push, folders, on_result)


def _send(registry: Versions, folder: Folder, name: AdapterName, request: PushRequest, counter: _Counter) -> PushPlan:
    """Send the large files; the plan whose small files are still to be sent."""
    plan = registry.plan_push(name, request)
    pending = _missing_bytes(plan.uploads)
    counter.start(pending)
    while True:
        large = [upload for upload in plan.uploads if upload.size_bytes > SMALL_BLOB_BYTES]
        counter.bytes = 0
        try:
            transfer.run_parallel(
                lambda upload: transfer.send(registry, upload, folder.source_of(upload.digest), counter),
                sorted(large, key=lambda upload: -upload.size_bytes),
                transfer.FILES_AT_ONCE,
            )
            return plan
        except Unavailable as e:
            if e.code not in ("STORE_UNAVAILABLE", "LINK_INVALID"):
                raise
            plan = registry.plan_push(name, request)
            arrived, pending = pending - _missing_bytes(plan.uploads), _missing_bytes(plan.uploads)
            if arrived <= 0:
                raise
            counter.advance(arrived - counter.bytes)


def _missing_bytes(uploads: Sequence[Upload]) -> int:
    """Bytes to send: of a file in parts, the missing ones."""
    return sum(sum(part.size_bytes for part in upload.parts) or upload.size_bytes for upload in uploads)


class _Counter:
    """A progress that also counts."""

    def __init__(self, inner: Progress) -> None:
        self._inner, self._lock = inner, threading.Lock()
        self.bytes = 0

    def start(self, total_bytes: int) -> None:
        self._inner.start(total_bytes)

    def advance(self, count: int) -> None:
        with self._lock:
            self.bytes += count
        self._inner.advance(count)


def _small(folder: Folder, upload: Upload) -> SmallBlob:
    data = folder.source_of(upload.digest).read_bytes()
    if len(data) != upload.size_bytes:
        raise Invalid("FOLDER_INVALID", f"{folder.path}: a file changed while it was pushed; wait for its writer")
    return SmallBlob(digest=upload.digest, data=base64.b64encode(data).decode())


class Bases:
    """The registered bases, each requested once. Thread-safe."""

    def __init__(self, registry: Versions) -> None:
        self._registry = registry
        self._lock = threading.Lock()
        self._by_names: dict[str, BaseView] = {}
        self._all: list[BaseView] | None = None

    def of(self, folder: Folder, name: str) -> BaseRef:
        """The base of this name, else the one that the configuration names."""
        view = self._by_name(name) if name else self._configured(folder)
        return BaseRef(name=view.name, fingerprint=view.fingerprint)

    def _by_name(self, name: str) -> BaseView:
        with self._lock:
            if name not in self._by_names:
                self._by_names[name] = self._registry.base(name)
            return self._by_names[name]

    def _configured(self, folder: Folder) -> BaseView:
        """The base of exactly this name or alias, else the only one of this last part without an organization."""
        claim = folder.contents.claim
        if not claim.name:
            raise Invalid(
                "BASE_INVALID", f"{folder.path}: its configuration does not name a base", next_step="pass --base NAME"
            )
        with self._lock:
            if self._all is None:
                self._all = self._registry.bases().items
        exact = [view for view in self._all if claim.name in (view.name, *view.aliases)]
        matching = exact or [view for view in self._all if claim.selects(view.name)]
        if len(matching) != 1:
            which = f"{len(matching)} registered bases match" if matching else "no registered base matches"
            raise NotFound(
                "BASE_UNKNOWN",
                f"{folder.path}: its configuration names the base {claim.name!r}, and {which}",
                next_step="pass --base NAME, or register it first: `adapter base add NAME DIR`",
            )
        return matching[0]


def _edge(registry: Versions, parent: Ref) -> Edge:
    version = registry.version(parent)
    return Edge(relation=Relation.CONTINUED, digest=version.digest, name=f"{version.name}@{version.number}")
