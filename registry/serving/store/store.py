"""`Shelf`: the versions on this node, each in a folder named by its digest; nothing changes it or deletes it in use.

    DIR/versions/<hex>/            the version's files, as engines read them
    DIR/manifests/<hex>.json       the manifest: its digest is <hex>, and it has the digest of every file
    DIR/uses/, DIR/uses.lock       who uses what (`Uses`); what nobody uses for long goes by a sweep

Engines read an adapter's files again whenever they please; a folder that went away has ended whole engines.

Invariants
- A folder appears by one rename, after every byte was verified; what is there already is never written to again.
- A folder is verified anew before its first use by a process. Where it is damaged, a second one (`<hex>-2`) is made
  beside it, because an engine may still read the first.
- Whoever is given a folder uses the version from then on, and no sweep takes it away (`Uses`).
- Any number of processes share a shelf, and none waits for another's bytes: who comes second throws its own copy away.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from registry.client import pull
from registry.client.registry import Registry
from registry.digest import Digest
from registry.durable import replace_file
from registry.errors import Corrupt, RegistryError, Unavailable
from registry.manifest import Manifest
from registry.names import AdapterName, Ref
from registry.serving.store.in_use import Uses

COPIES_LIMIT = 9


class Shelf:
    """Thread-safe; makes its folders when something is brought. `user`: the engine that an agent fills from here;
    without it whoever is given a folder reads it itself, as long as this process lives."""

    def __init__(self, root: Path, user: str = "") -> None:
        self.root = Path(os.path.abspath(root))
        self.uses = Uses(self.root, user)
        self.versions = self.root / "versions"
        self.manifests, self.reference_logprobs = self.root / "manifests", self.root / "reference-logprobs"
        self.incoming, self.leaving = self.root / "incoming", self.root / "leaving"
        self.answers = self.root / "answers"
        self._verified: dict[Digest, Path] = {}
        self._lock = threading.Lock()

    def find(self, digest: Digest) -> Path | None:
        """The folder of this version if it is here and true; without the network. It is in use from now on."""
        manifest = self.manifest(digest)
        if manifest is None:
            return None
        self.uses.begin(digest)  # before it is looked for: what is found stays
        with self._lock:
            verified = self._verified.get(digest)
        if verified is not None and verified.is_dir():
            return verified
        for folder in self._places(digest):
            if folder.is_dir() and _is_true(folder, manifest):
                with self._lock:
                    self._verified[digest] = folder
                return folder
        return None

    def bring(self, registry: Registry, name: AdapterName, digest: Digest) -> Path:
        """The folder of this version, fetched if it is not here. Errors as of `pull.pull`.

        `Unavailable` (STORE_UNAVAILABLE) when this machine cannot keep it: a full disk, a folder that is not ours.
        """
        existing = self.find(digest)
        if existing is not None:
            return existing
        self.uses.begin(digest)
        scratch = self.incoming / f"{digest.hex[:16]}-{secrets.token_hex(4)}"
        try:
            for folder in (self.versions, self.manifests, self.incoming):
                folder.mkdir(parents=True, exist_ok=True)
            resolved = pull.pull(registry, Ref(name, digest), scratch, cache=None)
            return self._put(scratch, resolved.manifest)
        except OSError as e:
            raise Unavailable(
                "STORE_UNAVAILABLE", f"{name}@{digest.short} cannot be kept in {self.root}: {e.strerror or e}",
                next_step="make room there: it is tried again",
            ) from e  # fmt: skip
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def manifest_path(self, digest: Digest) -> Path:
        return self.manifests / f"{digest.hex}.json"

    def manifest(self, digest: Digest) -> Manifest | None:
        """The manifest of a version that was brought here; None if it is not here or is not what its name says."""
        try:
            manifest = Manifest.parse(self.manifest_path(digest).read_bytes())
        except (OSError, RegistryError):
            return None
        return manifest if manifest.digest == digest else None

    def keep_only(self, digests: Iterable[Digest]) -> None:
        """The engine that is filled from here was seen with these and may read no others."""
        for digest in self.uses.keep_only(digests):
            self.note_use(digest, time.time())

    def note_use(self, digest: Digest, at: float) -> None:
        """When this version was last seen in use. The manifest's time says so: no engine ever looks at that file."""
        with contextlib.suppress(OSError):
            os.utime(self.manifest_path(digest), (at, at))

    def digest_at(self, path: str) -> Digest | None:
        """Which version a path that an engine names is; None for a path that is not of this shelf."""
        folder = Path(os.path.abspath(path))
        if folder.parent.parent == self.versions:  # a file of a version
            folder = folder.parent
        return digest_of(folder.name) if folder.parent == self.versions else None

    # ---------------------------------------------------------------- inside
    def _put(self, scratch: Path, manifest: Manifest) -> Path:
        digest = manifest.digest
        for file in scratch.rglob("*"):
            if file.is_file():
                file.chmod(0o444)
        replace_file(self.manifest_path(digest), manifest.to_bytes())
        for location in self._places(digest):
            try:
                os.rename(scratch, location)
            except OSError as e:
                if e.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                folder = self.find(digest)  # somebody else has brought it meanwhile
                if folder is not None:
                    return folder
                continue
            with self._lock:
                self._verified[digest] = location
            return location
        raise Corrupt("DIGEST_MISMATCH", f"{self.versions}: {COPIES_LIMIT} damaged copies of {digest.short} lie there")

    def _places(self, digest: Digest) -> list[Path]:
        again = [self.versions / f"{digest.hex}-{number}" for number in range(2, COPIES_LIMIT + 1)]
        return [self.versions / digest.hex, *again]


def digest_of(name: str) -> Digest | None:
    """Which version a folder of this name holds; None for a name that no version has."""
    with contextlib.suppress(RegistryError):
        return Digest("sha256:" + name.partition("-")[0])
    return None


def _is_true(folder: Path, manifest: Manifest) -> bool:
    try:
        return all(Digest.of_file(folder / file.path) == file.digest for file in manifest.files)
    except OSError:
        return False
