"""Pushes folders as the newest versions of their names, many with one request; one folder is a group of one.

A plan carries the excerpts of the files (`Folder.read_excerpts`), by which the registry evaluates them and chooses the
base before a byte is sent. Blobs that the registry has, and parts that arrived, are not sent again. If links expire or
a store fails, it plans again while bytes arrive.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from concurrent.futures import Future
from functools import cached_property, partial
from pathlib import Path
from typing import Protocol

from registry.api import transfer
from registry.client import response_checks
from registry.client.core import Versions
from registry.client.local.folder import Folder, read_folder
from registry.client.transfer import file_transfer
from registry.client.transfer.bulk import (
    BackgroundThread,
    Output,
    Result,
    SharedProgress,
    in_batches,
    result_of,
    run_each,
)
from registry.client.transfer.file_transfer import Progress, Silent
from registry.digest import Digest
from registry.errors import Invalid, RegistryError, Unavailable
from registry.findings import Finding
from registry.names import AdapterName, Ref
from registry.versions.manifest import Edge, Manifest, ManifestDraft, Relation
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
    progress: Progress | None = None, left_out: Callable[[Finding], None] = lambda _reason: None,
    signature: Signature | None = None,
) -> transfer.PushResult:  # fmt: skip
    """Make the adapter in `folder` the newest version of `name`: plan, send what is missing, commit.

    `base`: default, the one that the configuration names. `parents` were trained further; `edges` state their own
    relation. `left_out` is called with each entry that is not sent. `signature` is checked before a file is sent.
    """
    read = folder if isinstance(folder, Folder) else read_folder(folder, golden=golden)
    for reason in read.left_out:
        left_out(reason)
    all_edges = (*(_edge(registry, parent) for parent in parents), *edges)
    draft = read.draft(all_edges, annotations, provenance)
    push = _PreparedPush(
        read, name, draft, base, message, alias, check=signature.check if signature is not None else None
    )
    counter = _Counter(progress or Silent())
    _send_group(registry, [push], counter)
    _commit_group(registry, [push])
    pushed = push.required_result
    if signature is not None:
        ref = Ref(name, push.manifest.digest)
        signature.attach(registry, ref, push.manifest)
        pushed = pushed.model_copy(update={"version": registry.version(ref)})
    return pushed


def push_all(
    registry: Versions, folders: Sequence[tuple[Path, str]], *, base: str = "", message: str = "",
    declared: Callable[[Path], Provenance | None] = lambda _folder: None, progress: Progress | None = None,
    on_result: Callable[[Result[transfer.PushResult]], None] = lambda _result: None,
) -> list[Result[transfer.PushResult]]:  # fmt: skip
    """Push each folder as the newest version of its name, many with one request.

    `declared` gives the provenance of a folder's adapter; `on_result` is called with each result, in another thread.
    Folders are read, and sent, while the ones before them are committed.
    """
    prepare = _preparation(base, message, declared)
    counter = _Counter(SharedProgress(progress or Silent()))

    def finish(
        items: Sequence[Result[_PreparedPush]], commit: Future[None] | None
    ) -> list[Result[transfer.PushResult]]:
        if commit is not None:
            commit.result()  # raises what is no outcome of a push
        results = _results(items, lambda push: push.result)
        for result in results:
            on_result(result)
        return results

    with BackgroundThread("commit") as thread:
        commits = _Commits(thread)

        def push(items: Sequence[Result[_PreparedPush]]) -> list[Future[list[Result[transfer.PushResult]]]]:
            _push_in_groups(registry, [item.value for item in items if item.value is not None], counter, commits)
            return [thread.submit(partial(finish, items, commits.last))]

        batches = in_batches(lambda batch: run_each(prepare, batch, lambda _result: None), push, folders)
        return [result for batch in batches for result in batch.result()]


def try_all(
    registry: Versions, folders: Sequence[tuple[Path, str]], *, base: str = ""
) -> list[Result[transfer.PushPlan]]:
    """What a push of each folder would be, or its error. The registry evaluates and keeps nothing."""
    prepare = _preparation(base, "", lambda _folder: None)

    def plan(items: Sequence[Result[_PreparedPush]]) -> list[Result[transfer.PushPlan]]:
        pending = [item.value for item in items if item.value is not None]
        while pending:
            group, pending = _next_group(pending, set())
            _plan(registry, group, dry_run=True)
        return _results(items, lambda push: push.plan)

    return in_batches(lambda batch: run_each(prepare, batch, lambda _result: None), plan, folders)


def _results(
    items: Sequence[Result[_PreparedPush]], value: Callable[[_PreparedPush], Output | None]
) -> list[Result[Output]]:
    return [
        Result(item.name, item.folder, value(item.value), item.value.error)
        if item.value is not None
        else Result(item.name, item.folder, error=item.error)
        for item in items
    ]


def _preparation(
    base: str, message: str, declared: Callable[[Path], Provenance | None]
) -> Callable[[tuple[Path, str]], Result[_PreparedPush]]:
    def prepare(item: tuple[Path, str]) -> Result[_PreparedPush]:
        folder, name = item

        def work() -> _PreparedPush:
            adapter = AdapterName.parse(name)
            read = read_folder(folder)
            return _PreparedPush(read, adapter, read.draft(provenance=declared(folder)), base, message)

        return result_of(name, folder, work)

    return prepare


class _PreparedPush:
    """A push under way: a folder that was read, and its outcome."""

    def __init__(
        self, folder: Folder, name: AdapterName, draft: ManifestDraft, base: str, message: str, alias: str = "", *,
        check: Callable[[Manifest], None] | None = None,
    ) -> None:  # fmt: skip
        self.folder, self.name, self.draft, self.base = folder, name, draft, base
        self.message, self.alias, self._check = message, alias, check
        self.sizes = {file.digest: file.size_bytes for file in draft.files}
        self.keys = {name} | {digest for digest, size in self.sizes.items() if size > transfer.SMALL_BLOB_BYTES}
        """What makes one push wait for the commit of another."""
        self.text = draft.model_dump_json()
        self._sources = {file.digest: folder.sources[file.path] for file in draft.files}
        self.plan: transfer.PushPlan | None = None
        self.interruption: Unavailable | None = None
        """Why an upload failed that may be planned again."""
        self.result: transfer.PushResult | None = None
        self.error: RegistryError | None = None

    @cached_property
    def excerpts(self) -> dict[str, bytes]:
        """The bytes by which it is evaluated. `Invalid` (FOLDER_INVALID) if they cannot be read."""
        try:
            return self.folder.read_excerpts()
        except OSError as e:
            raise Invalid("FOLDER_INVALID", f"{self.folder.path}: {e.strerror or e}") from e

    @property
    def manifest(self) -> Manifest:
        """The manifest with the base that the plan names."""
        if self.plan is None:
            raise RuntimeError(f"the push of {self.name} was not planned")
        return self.draft.with_base(self.plan.base)

    def set_plan(self, plan: transfer.PushPlan) -> None:
        """Take the plan. `Invalid` if the signature to attach is for another manifest."""
        self.plan = plan
        if self._check is not None:
            self._check(self.manifest)

    @property
    def uploads(self) -> Sequence[transfer.Upload]:
        """What is still to be sent."""
        return self.plan.uploads if self.plan is not None else ()

    @property
    def required_result(self) -> transfer.PushResult:
        """The result. Raises the error."""
        if self.error is not None or self.result is None:
            raise self.error or RuntimeError(f"the push of {self.name} has no outcome")
        return self.result

    def send(self, registry: Versions, upload: transfer.Upload, progress: Progress) -> None:
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
            path = self._sources[upload.digest].name
            text = f"{path} changed while it was sent; push it when it is finished"
            self.error = Invalid(e.code, text) if e.code == "BLOB_MISMATCH" else e
        except OSError as e:
            self.error = Invalid("FOLDER_INVALID", f"{self.folder.path}: {e.strerror or e}")


class _Commits:
    """Commits a group of pushes in a thread while the next one is sent."""

    def __init__(self, thread: BackgroundThread) -> None:
        self._thread = thread
        self._group: Sequence[_PreparedPush] = ()
        self.last: Future[None] | None = None
        self.outage: RegistryError | None = None
        """Why no other group is sent: the registry did not come back while one was, and each would wait as long."""
        self.stored: set[Digest] = set()
        """Blobs of the pushes that were committed."""

    def start(self, group: Sequence[_PreparedPush], commit: Callable[[], None]) -> None:
        """Commit a group after the one before it."""
        self.wait()
        self._group, self.last = group, self._thread.submit(commit)

    def wait(self) -> None:
        """Wait until the group is committed."""
        if self.last is not None:
            self.last.result()
        self.stored |= {digest for push in self._group if push.result is not None for digest in push.sizes}
        self._group = ()

    def concern(self, pushes: Sequence[_PreparedPush]) -> bool:
        """Whether the group under way has a name or a large blob of these pushes."""
        keys = {key for push in self._group for key in push.keys}
        return any(not keys.isdisjoint(push.keys) for push in pushes)


def _push_in_groups(registry: Versions, pushes: Sequence[_PreparedPush], counter: _Counter, commits: _Commits) -> None:
    pending = list(pushes)
    while pending and commits.outage is None:
        if commits.concern(pending):
            commits.wait()
        group, pending = _next_group(pending, commits.stored)
        _send_group(registry, group, counter)
        errors = (push.error for push in group if push.error is not None)
        commits.outage = next((error for error in errors if error.code == "SERVER_UNREACHABLE"), None)
        commits.start(group, partial(_commit_group, registry, group))
    for push in pending:
        push.error = push.error or commits.outage


def _next_group(
    pushes: Sequence[_PreparedPush], stored: Set[Digest]
) -> tuple[list[_PreparedPush], list[_PreparedPush]]:
    """The pushes to send next, and the others.

    Pushes that share a large blob wait until the first of them has stored it: then they need not send it. So do equal
    pushes: they have one plan, and a commit may not name it twice.
    """
    group: list[_PreparedPush] = []
    others: list[_PreparedPush] = []
    sent: set[Digest] = set()
    versions: set[tuple[AdapterName, str]] = set()
    read: set[frozenset[bytes]] = set()
    size_bytes = body_bytes = 0
    for position, push in enumerate(pushes):
        large = {digest for digest, size in push.sizes.items() if size > transfer.SMALL_BLOB_BYTES} - stored
        size_bytes += push.draft.size_bytes
        body_bytes += len(push.text) + len(push.message) + _excerpts_bytes(push, read)
        if group and (
            len(group) >= transfer.BULK_LIMIT
            or size_bytes > GROUP_BYTES
            or body_bytes > transfer.BULK_BODY_BYTES * 3 // 4
        ):
            others += pushes[position:]
            break
        version = (push.name, push.text)
        if group and (large & sent or version in versions):
            others.append(push)
        else:
            group.append(push)
            versions.add(version)
            sent |= large
    return group, others


def _excerpts_bytes(push: _PreparedPush, read: set[frozenset[bytes]]) -> int:
    """Bytes that the excerpts of a push add to a request, in base64; 0 if they are those of another one."""
    try:
        excerpts = frozenset(push.excerpts.values())
    except Invalid as e:
        push.error = e
        return 0
    if excerpts in read:
        return 0
    read.add(excerpts)
    return sum(map(len, excerpts)) * 4 // 3


@contextlib.contextmanager
def _error_of_all(pushes: Sequence[_PreparedPush]) -> Iterator[None]:
    """An error of a request is that of each push without an outcome."""
    try:
        yield
    except RegistryError as e:
        for push in pushes:
            if push.result is None and push.error is None:
                push.error = e


def _send_group(registry: Versions, pushes: Sequence[_PreparedPush], counter: _Counter) -> None:
    """Plan, which brings the small files, and send what is missing. Sets the error of each push that has one."""
    with _error_of_all(pushes):
        _plan(registry, pushes)
        counter.start(_missing_bytes(pushes))
        _send(registry, pushes, counter)


def _commit_group(registry: Versions, pushes: Sequence[_PreparedPush]) -> None:
    """Commit the pushes without an error; set the outcome of each."""
    with _error_of_all(pushes):
        _commit(registry, [push for push in pushes if push.error is None])
    for push in pushes:
        vars(push).pop("excerpts", None)  # as large as headers are


def _plan(registry: Versions, pushes: Sequence[_PreparedPush], *, dry_run: bool = False) -> None:
    """Set the plan of each push, or its error. An error of the request is that of all."""
    positions: dict[bytes, int] = {}
    planned = [push for push in pushes if push.error is None]
    items = [
        transfer.PushItem(
            name=str(push.name), manifest=push.draft, base=push.base, message=push.message,
            excerpts={path: positions.setdefault(data, len(positions)) for path, data in push.excerpts.items()},
        )
        for push in planned
    ]  # fmt: skip
    if not items:
        return
    outcomes = registry.plan_pushes(items, excerpts=tuple(positions), dry_run=dry_run)
    for push, outcome in zip(planned, outcomes, strict=True):
        try:
            if isinstance(outcome, RegistryError):
                raise outcome
            push.set_plan(outcome)
        except RegistryError as e:
            push.error = e


def _send(registry: Versions, pushes: Sequence[_PreparedPush], counter: _Counter) -> None:
    """Send the missing blobs, and plan again those pushes whose uploads failed, while bytes arrive."""
    pending = _missing_bytes(pushes)
    while True:
        counter.bytes = 0
        uploads = [(push, upload) for push in pushes for upload in push.uploads]
        file_transfer.run_parallel(
            lambda pair: pair[0].send(registry, pair[1], counter),
            sorted(uploads, key=lambda pair: -pair[1].size_bytes),
            file_transfer.FILES_AT_ONCE,
        )
        pushes = [push for push in pushes if push.interruption is not None and push.error is None]
        if not pushes:
            return
        interruptions = {push.name: push.interruption for push in pushes}
        for push in pushes:
            push.interruption = None
        _plan(registry, pushes)
        arrived, pending = pending - _missing_bytes(pushes), _missing_bytes(pushes)
        if arrived <= 0:
            for push in pushes:
                push.error = push.error or interruptions[push.name]
            return
        counter.advance(arrived - counter.bytes)


def _commit(registry: Versions, pushes: Sequence[_PreparedPush]) -> None:
    if not pushes:
        return
    items = [transfer.CommitItem(push_id=p.plan.push_id if p.plan else "", alias=p.alias) for p in pushes]
    outcomes = registry.commit_pushes(items, size_bytes=sum(push.draft.size_bytes for push in pushes))
    for push, outcome in zip(pushes, outcomes, strict=True):
        if isinstance(outcome, RegistryError):
            push.error = outcome
        else:
            push.result = response_checks.check_push_result(push.name, push.manifest.digest, outcome)


def _missing_bytes(pushes: Iterable[_PreparedPush]) -> int:
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


def _edge(registry: Versions, parent: Ref) -> Edge:
    version = registry.version(parent, patient=True)
    return Edge(relation=Relation.CONTINUED, digest=version.digest, name=f"{version.name}@{version.number}")
