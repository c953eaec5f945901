"""Pushes folders as the newest versions of their names, many with one request; one folder is a group of one.

A folder is checked here by the server's rules before a byte is sent; the server checks again and decides. Blobs
that the registry has, and parts that arrived, are not sent again. If links expire or a store fails, it plans again
while bytes arrive.
"""

from __future__ import annotations

import base64
import contextlib
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Protocol

from registry.api.catalog import BaseName
from registry.api.transfer import (
    BULK_BODY_BYTES,
    BULK_LIMIT,
    SMALL_BLOB_BYTES,
    CommitItem,
    PushItem,
    PushPlan,
    PushResult,
    SmallBlob,
    Upload,
)
from registry.client import answers
from registry.client.core import Versions
from registry.client.local.folder import Folder, read_folder
from registry.client.transfer import file_transfer
from registry.client.transfer.bulk import Result, SharedProgress, in_batches, result_of, run_each
from registry.client.transfer.file_transfer import Progress, Silent
from registry.digest import Digest
from registry.errors import Invalid, NotFound, RegistryError, Unavailable
from registry.findings import Finding
from registry.names import AdapterName, Ref
from registry.versions.manifest import BaseRef, Edge, Manifest, Relation
from registry.versions.provenance import Provenance

GROUP_BYTES = 384 * 2**20
"""Bytes of the adapters that one group commits, if it has more than one."""


class Signature(Protocol):
    """How a pushed version is signed: `signing.WithKey` or `signing.Attached`, in a module that is slow to import."""

    def check(self, manifest: Manifest) -> None:
        """Raise an error if the signature is not for this manifest."""

    def attach(self, registry: Versions, ref: Ref, manifest: Manifest) -> None:
        """Attach the signature to the pushed version."""


def push_folder(
    registry: Versions, folder: Path | Folder, name: AdapterName, *, base: str = "", alias: str = "",
    parents: Sequence[Ref] = (), edges: Sequence[Edge] = (), annotations: dict[str, str] | None = None,
    provenance: Provenance | None = None, message: str = "", golden: Path | None = None,
    progress: Progress | None = None, bases: Bases | None = None,
    left_out: Callable[[Finding], None] = lambda _reason: None, signature: Signature | None = None,
) -> PushResult:  # fmt: skip
    """Make the adapter in `folder` the newest version of `name`: plan, send what is missing, commit.

    `base`: default, the one that the configuration names. `parents` were trained further; `edges` state their own
    relation. `left_out` is called with each entry that is not sent. `signature` is checked before anything is sent.
    """
    read = folder if isinstance(folder, Folder) else read_folder(folder, golden=golden)
    for reason in read.left_out:
        left_out(reason)
    all_edges = (*(_edge(registry, parent) for parent in parents), *edges)
    manifest = read.manifest((bases or Bases(registry)).of(read, base), all_edges, annotations, provenance)
    if signature is not None:
        signature.check(manifest)
    push = _Push(read.path, read.sources, name, manifest, message, alias)
    _push_group(registry, [push], _Counter(progress or Silent()))
    pushed = push.required_result
    if signature is not None:
        signature.attach(registry, Ref(name, manifest.digest), manifest)
    return pushed


def push_all(
    registry: Versions, folders: Sequence[tuple[Path, str]], *, base: str = "", message: str = "",
    declared: Callable[[Path], Provenance | None] = lambda _folder: None, progress: Progress | None = None,
    on_result: Callable[[Result[PushResult]], None] = lambda _result: None,
) -> list[Result[PushResult]]:  # fmt: skip
    """Push each folder as the newest version of its name, many with one request. The bases are requested once.

    `declared` gives the provenance of a folder's adapter; `on_result` is called with each result. Folders are read
    while the ones before them are sent.
    """
    prepare = _preparation(registry, base, message, declared)
    counter = _Counter(SharedProgress(progress or Silent()))

    def push(items: Sequence[Result[_Push]]) -> list[Result[PushResult]]:
        _push_in_groups(registry, [item.answer for item in items if item.answer is not None], counter)
        results = []
        for item in items:
            result, error = (item.answer.result, item.answer.error) if item.answer is not None else (None, item.error)
            results.append(Result(item.name, item.folder, result, error))
            on_result(results[-1])
        return results

    return in_batches(lambda batch: run_each(prepare, batch, lambda _result: None), push, folders)


def read_manifests(
    registry: Versions, folders: Sequence[tuple[Path, str]], *, base: str = ""
) -> list[Result[Manifest]]:
    """The manifest that a push of each folder would have, or its error. Nothing is sent."""
    prepare = _preparation(registry, base, "", lambda _folder: None)
    prepared = run_each(prepare, folders, lambda _result: None)
    return [
        Result(item.name, item.folder, item.answer.manifest if item.answer is not None else None, item.error)
        for item in prepared
    ]


def _preparation(
    registry: Versions, base: str, message: str, declared: Callable[[Path], Provenance | None]
) -> Callable[[tuple[Path, str]], Result[_Push]]:
    bases = Bases(registry)

    def prepare(item: tuple[Path, str]) -> Result[_Push]:
        folder, name = item

        def work() -> _Push:
            adapter = AdapterName.parse(name)
            read = read_folder(folder)
            manifest = read.manifest(bases.of(read, base), provenance=declared(folder))
            return _Push(read.path, read.sources, adapter, manifest, message)

        return result_of(name, folder, work)

    return prepare


class _Push:
    """A push under way: a folder that was read, and its outcome."""

    def __init__(
        self, folder: Path, sources: Mapping[str, Path], name: AdapterName, manifest: Manifest, message: str,
        alias: str = "",
    ) -> None:  # fmt: skip
        self.item = PushItem(name=str(name), manifest=manifest, message=message)
        self.name, self.manifest, self.alias, self._folder = name, manifest, alias, folder
        self.sizes = {file.digest: file.size_bytes for file in manifest.files}
        self._sources = {file.digest: sources[file.path] for file in manifest.files}
        self.plan: PushPlan | None = None
        self.interruption: Unavailable | None = None
        """Why an upload failed that may be planned again."""
        self.result: PushResult | None = None
        self.error: RegistryError | None = None

    @property
    def uploads(self) -> Sequence[Upload]:
        """What is still to be sent."""
        return self.plan.uploads if self.plan is not None else ()

    @property
    def required_result(self) -> PushResult:
        """The result. Raises the error."""
        if self.error is not None or self.result is None:
            raise self.error or RuntimeError(f"the push of {self.name} has no outcome")
        return self.result

    def send(self, registry: Versions, upload: Upload, progress: Progress) -> None:
        """Send one blob, unless this push has failed already. Sets `error` or `interruption`."""
        if self.error is not None:
            return
        try:
            file_transfer.send(registry, upload, self._sources[upload.digest], progress)
        except Unavailable as e:
            if e.code in ("STORE_UNAVAILABLE", "LINK_INVALID"):
                self.interruption = e
            else:
                self.error = e
        except RegistryError as e:
            self.error = e
        except OSError as e:
            self.error = Invalid("FOLDER_INVALID", f"{self._folder}: {e.strerror or e}")

    def read_small(self, upload: Upload) -> SmallBlob:
        """The bytes of a small blob. `Invalid` (FOLDER_INVALID) if the file has changed."""
        data = self._sources[upload.digest].read_bytes()
        if len(data) != upload.size_bytes:
            raise Invalid("FOLDER_INVALID", f"{self._folder}: a file changed while it was pushed; wait for its writer")
        return SmallBlob(digest=upload.digest, data=base64.b64encode(data).decode())


def _push_in_groups(registry: Versions, pushes: Sequence[_Push], counter: _Counter) -> None:
    stored: set[Digest] = set()
    pending = list(pushes)
    while pending:
        group, pending = _next_group(pending, stored)
        with contextlib.suppress(RegistryError):  # it is the error of each push of the group
            _push_group(registry, group, counter)
        stored |= {digest for push in group if push.result is not None for digest in push.sizes}


def _next_group(pushes: Sequence[_Push], stored: Set[Digest]) -> tuple[list[_Push], list[_Push]]:
    """The pushes to send next, and the others.

    Pushes that share a large blob wait until the first of them has stored it: then they need not send it. So do equal
    pushes: they have one plan, and a commit may not name it twice.
    """
    group: list[_Push] = []
    others: list[_Push] = []
    sent: set[Digest] = set()
    versions: set[tuple[str, Digest]] = set()
    size_bytes = body_bytes = 0
    for push in pushes:
        large = {digest for digest, size in push.sizes.items() if size > SMALL_BLOB_BYTES} - stored
        size_bytes += push.manifest.size_bytes
        body_bytes += len(push.manifest.canonical) + len(push.item.message)
        is_full = len(group) >= BULK_LIMIT or size_bytes > GROUP_BYTES or body_bytes > BULK_BODY_BYTES // 2
        version = (push.item.name, push.manifest.digest)
        if group and (is_full or large & sent or version in versions):
            others.append(push)
        else:
            group.append(push)
            versions.add(version)
            sent |= large
    return group, others


def _push_group(registry: Versions, pushes: Sequence[_Push], counter: _Counter) -> None:
    """Plan, send what is missing, commit; sets the outcome of each push. An error of a request is that of all."""
    try:
        _plan(registry, pushes)
        counter.start(_missing_bytes(pushes))
        small = _choose_small(pushes)
        _send(registry, pushes, small, counter)
        _commit(registry, [push for push in pushes if push.error is None], small, counter)
    except RegistryError as e:
        for push in pushes:
            if push.result is None and push.error is None:
                push.error = e
        raise


def _plan(registry: Versions, pushes: Sequence[_Push]) -> None:
    for push, outcome in zip(pushes, registry.plan_pushes([push.item for push in pushes]), strict=True):
        if isinstance(outcome, RegistryError):
            push.error = outcome
        else:
            push.plan = outcome


def _choose_small(pushes: Sequence[_Push]) -> set[tuple[str, Digest]]:
    """Pushes and blobs that the commit carries, within the limit of its body."""
    chosen: set[tuple[str, Digest]] = set()
    size_bytes = 0
    for push in pushes:
        for upload in push.uploads:
            size_bytes += upload.size_bytes
            if upload.size_bytes <= SMALL_BLOB_BYTES and size_bytes <= BULK_BODY_BYTES // 2:
                chosen.add((push.item.name, upload.digest))
            else:
                size_bytes -= upload.size_bytes
    return chosen


def _send(registry: Versions, pushes: Sequence[_Push], small: Set[tuple[str, Digest]], counter: _Counter) -> None:
    """Send the large blobs, and plan again those pushes whose uploads failed, while bytes arrive."""
    pending = _missing_bytes(pushes)
    while True:
        counter.bytes = 0
        uploads = [
            (push, upload) for push in pushes for upload in push.uploads if (push.item.name, upload.digest) not in small
        ]
        file_transfer.run_parallel(
            lambda pair: pair[0].send(registry, pair[1], counter),
            sorted(uploads, key=lambda pair: -pair[1].size_bytes),
            file_transfer.FILES_AT_ONCE,
        )
        pushes = [push for push in pushes if push.interruption is not None and push.error is None]
        if not pushes:
            return
        interruptions = {push.item.name: push.interruption for push in pushes}
        for push in pushes:
            push.interruption = None
        _plan(registry, pushes)
        arrived, pending = pending - _missing_bytes(pushes), _missing_bytes(pushes)
        if arrived <= 0:
            for push in pushes:
                push.error = push.error or interruptions[push.item.name]
            return
        counter.advance(arrived - counter.bytes)


def _commit(registry: Versions, pushes: Sequence[_Push], small: Set[tuple[str, Digest]], counter: _Counter) -> None:
    items: list[CommitItem] = []
    committed: list[_Push] = []
    for push in pushes:
        carried = [upload for upload in push.uploads if (push.item.name, upload.digest) in small]
        try:
            blobs = tuple(push.read_small(upload) for upload in carried)
        except (Invalid, OSError) as e:
            push.error = e if isinstance(e, Invalid) else Invalid("FOLDER_INVALID", f"{push.name}: {e.strerror or e}")
            continue
        committed.append(push)
        items.append(CommitItem(push_id=push.plan.push_id if push.plan else "", alias=push.alias, small=blobs))
    if not items:
        return
    size_bytes = sum(push.manifest.size_bytes for push in committed)
    outcomes = registry.commit_pushes(items, size_bytes=size_bytes)
    for push, item, outcome in zip(committed, items, outcomes, strict=True):
        if isinstance(outcome, RegistryError):
            push.error = outcome
        else:
            push.result = answers.push_result(push.name, push.manifest.digest, outcome)
            counter.advance(sum(push.sizes[blob.digest] for blob in item.small))


def _missing_bytes(pushes: Iterable[_Push]) -> int:
    """Bytes to send: of a file in parts, the missing ones."""
    uploads = [upload for push in pushes if push.error is None for upload in push.uploads]
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


class Bases:
    """The registered bases, each requested once. Thread-safe."""

    def __init__(self, registry: Versions) -> None:
        self._registry = registry
        self._lock = threading.Lock()
        self._by_names: dict[str, BaseName] = {}
        self._all: list[BaseName] | None = None

    def of(self, folder: Folder, name: str) -> BaseRef:
        """The base of this name, else the one that the configuration names."""
        view = self._by_name(name) if name else self._configured(folder)
        return BaseRef(name=view.name, fingerprint=view.fingerprint)

    def _by_name(self, name: str) -> BaseName:
        with self._lock:
            if name not in self._by_names:
                self._by_names[name] = self._registry.base_name(name)
            return self._by_names[name]

    def _configured(self, folder: Folder) -> BaseName:
        """The base of exactly this name or alias, else the only one of this last part without an organization."""
        claim = folder.contents.claim
        if not claim.name:
            raise Invalid(
                "BASE_INVALID", f"{folder.path}: its configuration does not name a base", next_step="pass --base NAME"
            )
        with self._lock:
            if self._all is None:
                self._all = self._registry.base_names().items
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
