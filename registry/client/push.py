"""Push a folder as the newest version of a name.

Invariants
- A folder is judged here by the server's rules before a byte is sent; the server judges again and decides.
- What the registry holds already is not sent.

Example
    >>> push.push_folder(registry, Path("out"), AdapterName("acme", "support")).version.number
    1
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from registry.client import streams
from registry.client.folder import Folder, read_folder
from registry.client.streams import Progress, Silent
from registry.client.versions import Versions
from registry.errors import Invalid, NotFound, Reason
from registry.manifest import BaseRef, Edge, Manifest, Relation
from registry.names import AdapterName, Ref
from registry.provenance import Provenance
from registry.wire import BaseView
from registry.wire.push import SMALL_BYTES, Pushed, PushRequest, Small, Upload


class Signature(Protocol):
    """How a pushed version is signed; `registry.client.signing` has two, and is slow to import."""

    def check(self, manifest: Manifest) -> None: ...
    def give(self, registry: Versions, ref: Ref, manifest: Manifest) -> None: ...


def push_folder(
    registry: Versions,
    folder: Path,
    name: AdapterName,
    *,
    base: str = "",
    alias: str = "",
    parents: Sequence[Ref] = (),
    edges: Sequence[Edge] = (),
    annotations: dict[str, str] | None = None,
    provenance: Provenance | None = None,
    message: str = "",
    golden: Path | None = None,
    progress: Progress | None = None,
    bases: Bases | None = None,
    left_out: Callable[[Reason], None] = lambda _reason: None,
    signature: Signature | None = None,
) -> Pushed:
    """Make the adapter in `folder` the newest version of `name`: plan, send what is missing, commit.

    `base` is found from the configuration when empty. `parents` were trained further; `edges` say themselves how the
    version came from others, `provenance` what it was made from. `left_out` is told of each entry that is not sent.
    `signature` is checked before anything is sent, and given when the version is there.
    """
    found = read_folder(folder, golden=golden)
    for reason in found.left_out:
        left_out(reason)
    all_edges = (*(_edge(registry, parent) for parent in parents), *edges)
    manifest = found.manifest((bases or Bases(registry)).of(found, base), all_edges, annotations, provenance)
    if signature is not None:
        signature.check(manifest)
    plan = registry.plan_push(name, PushRequest(manifest=manifest, message=message))
    watched = progress or Silent()
    watched.start(sum(upload.size_bytes for upload in plan.uploads))
    small = [upload for upload in plan.uploads if upload.size_bytes <= SMALL_BYTES]
    streams.at_once(
        lambda upload: streams.send(registry, upload, found.source_of(upload.digest), watched),
        sorted((upload for upload in plan.uploads if upload not in small), key=lambda upload: -upload.size_bytes),
        streams.FILES_AT_ONCE,
    )
    pushed = registry.commit_push(plan.push_id, alias=alias, small=[_small(found, upload) for upload in small])
    watched.advance(sum(upload.size_bytes for upload in small))
    if signature is not None:
        signature.give(registry, Ref(name, manifest.digest), manifest)
    return pushed


def _small(folder: Folder, upload: Upload) -> Small:
    data = folder.source_of(upload.digest).read_bytes()
    if len(data) != upload.size_bytes:
        raise Invalid("FOLDER_INVALID", f"{folder.path}: a file changed while it was pushed; wait for its writer")
    return Small(digest=upload.digest, data=base64.b64encode(data).decode())


class Bases:
    """The registered bases, each asked for once however many adapters are pushed. Thread-safe."""

    def __init__(self, registry: Versions) -> None:
        self._registry = registry
        self._lock = threading.Lock()
        self._named: dict[str, BaseView] = {}
        self._all: list[BaseView] | None = None

    def of(self, folder: Folder, name: str) -> BaseRef:
        """The base that is named, else the one that the configuration means."""
        view = self._by_name(name) if name else self._meant(folder)
        return BaseRef(name=view.name, fingerprint=view.fingerprint)

    def _by_name(self, name: str) -> BaseView:
        with self._lock:
            if name not in self._named:
                self._named[name] = self._registry.base(name)
            return self._named[name]

    def _meant(self, folder: Folder) -> BaseView:
        claim = folder.found.claim
        if not claim.name:
            raise Invalid(
                "BASE_INVALID", f"{folder.path}: its configuration names no base", next_step="say --base NAME"
            )
        with self._lock:
            if self._all is None:
                self._all = self._registry.bases().items
        meant = [view for view in self._all if claim.names(view.name)]
        if len(meant) != 1:
            which = f"{len(meant)} bases are meant" if meant else "no base that is registered is meant"
            raise NotFound(
                "BASE_UNKNOWN",
                f"{folder.path}: its configuration names the base {claim.name!r}, and {which} by that",
                next_step="say --base NAME, or register it first: `adapter base add NAME DIR`",
            )
        return meant[0]


def _edge(registry: Versions, parent: Ref) -> Edge:
    version = registry.version(parent)
    return Edge(relation=Relation.CONTINUED, digest=version.digest, name=f"{version.name}@{version.number}")
