"""`Evictor`: deletes unused versions from a store when they are old or take too much space.

- A version stays while a process has its folder, an agent's engine has or should have it, or a lease of this node names
  it; without the registry's list of leases nothing is deleted, nor within an hour of the last use.
- A folder is renamed away under an exclusive lock and deleted after that. Other entries are never touched.
"""

import contextlib
import math
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from registry.api.serving import STATES_WITH_BYTES
from registry.client.registry import Registry
from registry.digest import Digest
from registry.errors import RegistryError
from registry.serving.store.local_store import LocalStore, digest_of

KEEP_DAYS = 14.0
EVERY_SECONDS = 3600.0
LEAST_SECONDS = 3600.0
DAY_SECONDS = 86_400.0


@dataclass(frozen=True, slots=True)
class EvictionLimits:
    """How long unused versions stay, and the total size above which they go earlier."""

    keep_days: float = KEEP_DAYS
    size_bytes: float = math.inf


@dataclass(slots=True)
class Evicted:
    """What one run deleted and left."""

    removed: list[Digest] = field(default_factory=list)
    removed_bytes: int = 0
    remaining_bytes: int = 0


@dataclass(frozen=True, slots=True)
class _StoredVersion:
    """`used_at`: when its last use was seen."""

    digest: Digest
    folder: Path
    used_at: float
    size_bytes: int


def evict(
    store: LocalStore, limits: EvictionLimits, leases: Callable[[], Iterable[Digest]], *,
    clock: Callable[[], float] = time.time,
) -> Evicted:  # fmt: skip
    """Evict once. Errors of `leases` are raised; a folder that cannot be deleted is left for the next time."""
    evicted, now = Evicted(), clock()
    versions = _stored_versions(store)
    evicted.remaining_bytes = sum(version.size_bytes for version in versions)
    leased = set(leases()) if versions else set()
    for version in versions:  # least recently used first
        if version.digest in leased:
            store.note_use(version.digest, now)
            continue
        unused = now - version.used_at
        over = evicted.remaining_bytes > limits.size_bytes or unused >= limits.keep_days * DAY_SECONDS
        with store.in_use.exclusive(version.digest) as unused_now:
            if not unused_now:
                store.note_use(version.digest, now)
            elif over and unused >= LEAST_SECONDS and _detach(store, version):
                evicted.removed.append(version.digest)
                evicted.removed_bytes += version.size_bytes
                evicted.remaining_bytes -= version.size_bytes
    _delete_leftovers(store, now - DAY_SECONDS)
    _forget(store, evicted.removed)
    return evicted


def leases_of(registry: Registry, node: str) -> Callable[[], set[Digest]]:
    """The versions that engines of this node have reported, with leases that have not expired."""

    def read_named() -> set[Digest]:
        views = [view for view in registry.all_nodes(node=node).items if view.live]
        return {slot.digest for view in views for slot in view.slots if slot.state in STATES_WITH_BYTES and slot.digest}

    return read_named


class Evictor:
    """Evicts every hour in a thread of its own. Errors are logged and it tries again."""

    def __init__(
        self, store: LocalStore, limits: EvictionLimits, leases: Callable[[], Iterable[Digest]],
        say: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._store, self._limits, self._leases, self._say = store, limits, leases, say

    def run(self, stop: threading.Event) -> None:
        """Evict every `EVERY_SECONDS` until `stop` is set."""
        while not stop.wait(EVERY_SECONDS):
            self.once()

    def once(self) -> None:
        """Evict once. An error is logged, not raised."""
        try:
            evicted = evict(self._store, self._limits, self._leases)
        except (RegistryError, OSError) as e:
            self._say(f"no version was evicted: {e.detail if isinstance(e, RegistryError) else e.strerror or e}")
            return
        if evicted.removed:
            self._say(f"evicted {len(evicted.removed)} unused versions of {evicted.removed_bytes} bytes")


def _stored_versions(store: LocalStore) -> list[_StoredVersion]:
    versions = []
    for folder in _entries(store.versions):
        digest = digest_of(folder.name)
        if digest is not None and not folder.is_symlink():
            versions.append(_StoredVersion(digest, folder, _seen_at(store, digest, folder), _size_of(folder)))
    return sorted(versions, key=lambda version: version.used_at)


def _seen_at(store: LocalStore, digest: Digest, folder: Path) -> float:
    """The manifest's time, else the folder's."""
    for path in (store.manifest_path(digest), folder):
        with contextlib.suppress(OSError):
            return path.stat().st_mtime
    return time.time()


def _size_of(folder: Path) -> int:
    size = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            size += path.lstat().st_size
    return size


def _detach(store: LocalStore, version: _StoredVersion) -> bool:
    """Rename its folder away. Its manifest goes first, so that it is not found any more."""
    try:
        store.manifest_path(version.digest).unlink(missing_ok=True)
        os.rename(version.folder, store.versions / f".{version.folder.name}.{secrets.token_hex(4)}.old")
    except OSError:
        return False
    return True


def _delete_leftovers(store: LocalStore, died_before: float) -> None:
    """Delete detached folders, and new folders of pulls that died."""
    for folder in _entries(store.versions):
        if not folder.name.startswith("."):
            continue
        with contextlib.suppress(OSError):
            times = [path.lstat().st_mtime for path in (folder, *folder.rglob("*"))]
            if folder.name.endswith(".old") or max(times) < died_before:
                shutil.rmtree(folder, ignore_errors=True)


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _forget(store: LocalStore, digests: Iterable[Digest]) -> None:
    """Delete reference log-probabilities of these versions, and the plugin's stored resolutions that name them."""
    deleted = set(digests)
    for digest in deleted:
        with contextlib.suppress(OSError):
            (store.reference_logprobs / f"{digest.hex}.json").unlink()
    for resolution in _entries(store.resolutions) if deleted else []:
        with contextlib.suppress(OSError):
            if any(digest in resolution.read_text() for digest in deleted):
                resolution.unlink()
