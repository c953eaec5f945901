"""The sweep: takes from a shelf the versions that nobody uses, when they have lain unused for long or are too many.

Invariants
- Nothing goes that a living process was given, that an agent's engine was last seen with or shall have, or that a lease
  of this node names; without the registry's word on leases nothing goes at all.
- Nothing goes within an hour of when its last use was seen, whatever the limits: engines that watch folders are slow.
- A folder leaves by one rename while nobody can begin to use it, and is deleted after that; what an interrupted sweep
  left is deleted by the next. What is not named as a version is never touched.
"""

from __future__ import annotations

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
from registry.serving.store.store import Shelf, digest_of

KEEP_DAYS = 14.0
EVERY_SECONDS = 3600.0
LEAST_SECONDS = 3600.0
DAY_SECONDS = 86_400.0


@dataclass(frozen=True, slots=True)
class EvictionLimits:
    """How long unused versions stay, and how much all versions together may take; what is in use stays anyway."""

    keep_days: float = KEEP_DAYS
    size_bytes: float = math.inf


@dataclass(slots=True)
class Swept:
    removed: list[Digest] = field(default_factory=list)
    removed_bytes: int = 0
    kept_bytes: int = 0


@dataclass(slots=True)
class _Lying:
    """One version on the shelf, with all its copies; `used_at`: when its last use was seen."""

    digest: Digest
    folders: list[Path]
    used_at: float
    size_bytes: int


def run(
    shelf: Shelf,
    limits: EvictionLimits,
    leases: Callable[[], Iterable[Digest]],
    *,
    clock: Callable[[], float] = time.time,
) -> Swept:
    """One sweep. Errors of `leases` are the caller's; a folder that cannot be deleted is left for the next time."""
    swept, now = Swept(), clock()
    lying = _lying(shelf)
    swept.kept_bytes = sum(copy.size_bytes for copy in lying)
    leased = set(leases()) if lying else set()
    for copy in lying:  # those that were used longest ago come first
        if copy.digest in leased:
            shelf.note_use(copy.digest, now)
            continue
        unused = now - copy.used_at
        over = swept.kept_bytes > limits.size_bytes or unused >= limits.keep_days * DAY_SECONDS
        with shelf.uses.taken(copy.digest) as mine:
            if not mine:
                shelf.note_use(copy.digest, now)
            elif over and unused >= LEAST_SECONDS and _take_away(shelf, copy):
                swept.removed.append(copy.digest)
                swept.removed_bytes += copy.size_bytes
                swept.kept_bytes -= copy.size_bytes
    _delete_leftovers(shelf, now - DAY_SECONDS)
    _forget(shelf, swept.removed)
    return swept


def leases_of(registry: Registry, node: str) -> Callable[[], set[Digest]]:
    """What every engine of this node has told the registry that it has, and its lease has not ended."""

    def named() -> set[Digest]:
        views = [view for view in registry.all_nodes(node=node).items if view.live]
        return {slot.digest for view in views for slot in view.slots if slot.state in STATES_WITH_BYTES and slot.digest}

    return named


class Sweeper:
    """Sweeps every hour, for a thread of its own. What goes wrong is said, and tried again."""

    def __init__(
        self, shelf: Shelf, limits: EvictionLimits, leases: Callable[[], Iterable[Digest]], say: Callable[[str], None]
    ) -> None:
        self._shelf, self._limits, self._leases, self._say = shelf, limits, leases, say

    def run(self, stop: threading.Event) -> None:
        while not stop.wait(EVERY_SECONDS):
            self.once()

    def once(self) -> None:
        try:
            swept = run(self._shelf, self._limits, self._leases)
        except (RegistryError, OSError) as e:
            self._say(f"the shelf was not swept: {e.detail if isinstance(e, RegistryError) else e.strerror or e}")
            return
        if swept.removed:
            self._say(f"swept from the shelf: {len(swept.removed)} unused versions of {swept.removed_bytes} bytes")


# ------------------------------------------------------------------ inside
def _lying(shelf: Shelf) -> list[_Lying]:
    by_digest: dict[Digest, _Lying] = {}
    with contextlib.suppress(FileNotFoundError):
        for folder in shelf.versions.iterdir():
            digest = digest_of(folder.name)
            if digest is None or folder.is_symlink():
                continue
            version = by_digest.setdefault(digest, _Lying(digest, [], _seen_at(shelf, digest, folder), 0))
            version.folders.append(folder)
            version.size_bytes += _size_of(folder)
    return sorted(by_digest.values(), key=lambda version: version.used_at)


def _seen_at(shelf: Shelf, digest: Digest, folder: Path) -> float:
    """The manifest's time: engines never look at that file, so it may change."""
    for path in (shelf.manifest_path(digest), folder):
        with contextlib.suppress(OSError):
            return path.stat().st_mtime
    return time.time()


def _size_of(folder: Path) -> int:
    size = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            size += path.lstat().st_size
    return size


def _take_away(shelf: Shelf, version: _Lying) -> bool:
    """Out of sight by a rename each; its manifest first, by which it would be found."""
    try:
        shelf.leaving.mkdir(exist_ok=True)
        shelf.manifest_path(version.digest).unlink(missing_ok=True)
        for folder in version.folders:
            os.rename(folder, shelf.leaving / f"{folder.name}.{secrets.token_hex(4)}")
    except OSError:
        return False
    return True


def _delete_leftovers(shelf: Shelf, died_before: float) -> None:
    """What was taken away, and what pulls that died have left of versions."""
    leftovers = [*_entries(shelf.leaving)]
    for scratch in _entries(shelf.incoming):
        with contextlib.suppress(OSError):
            times = [path.lstat().st_mtime for path in (scratch, *scratch.rglob("*"))]
            leftovers += [scratch] if max(times) < died_before else []
    for path in leftovers:
        shutil.rmtree(path, ignore_errors=True)


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _forget(shelf: Shelf, digests: Iterable[Digest]) -> None:
    """What else is kept of versions: reference log-probabilities, and the plugin's last answers that lead to them."""
    gone = set(digests)
    for digest in gone:
        with contextlib.suppress(OSError):
            (shelf.reference_logprobs / f"{digest.hex}.json").unlink()
    for answer in _entries(shelf.answers) if gone else []:
        with contextlib.suppress(OSError):
            if any(digest in answer.read_text() for digest in gone):
                answer.unlink()
