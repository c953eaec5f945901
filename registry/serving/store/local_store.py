"""`LocalStore`: the versions on this node, each in a folder named by its digest.

    DIR/versions/<hex>/            the version's files, as engines read them
    DIR/manifests/<hex>.json       the manifest: its digest is <hex>, and it has the digest of every file
    DIR/uses/, DIR/uses.lock       which versions are in use (`InUse`); eviction deletes others

Engines read an adapter's files again at any time, and a folder that disappears has crashed whole engines. So:

- A folder appears by one rename after every byte was verified (`Destination`), and its files are not written to again.
- A folder is verified again before its first use by a process. A damaged one is exchanged for an intact one.
- A process that gets a folder uses the version from then on, so eviction leaves it. Processes can share a store.
"""

import contextlib
import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from registry.client.registry import Registry
from registry.client.transfer import pull
from registry.digest import Digest
from registry.errors import Invalid, RegistryError, Unavailable
from registry.filesystem import replace_file
from registry.names import AdapterName, Ref
from registry.serving.store.in_use import InUse
from registry.versions.manifest import Manifest


class LocalStore:
    """Thread-safe. `user`: the engine that an agent loads from here; without it this process reads the folders."""

    def __init__(self, root: Path, user: str = "") -> None:
        self.root = Path(os.path.abspath(root))
        self.in_use = InUse(self.root, user)
        self.versions = self.root / "versions"
        self.manifests, self.reference_logprobs = self.root / "manifests", self.root / "reference-logprobs"
        self.resolutions = self.root / "resolutions"
        self._verified: set[Digest] = set()
        self._lock = threading.Lock()

    def find(self, digest: Digest) -> Path | None:
        """The folder of this version if it is here and intact. It is in use from now on. Sends no request."""
        manifest = self.manifest(digest)
        if manifest is None:
            return None
        self.in_use.mark(digest)  # first: what is found then stays
        folder = self.folder_of(digest)
        with self._lock:
            is_verified = digest in self._verified
        if is_verified and folder.is_dir():
            return folder
        if not _is_intact(folder, manifest):
            return None
        with self._lock:
            self._verified.add(digest)
        return folder

    def fetch(
        self, registry: Registry, name: AdapterName, digest: Digest, pulls: pull.PlannedPulls | None = None, *,
        number: int | None = None,
    ) -> Path:  # fmt: skip
        """The folder of this version, pulled if it is not here, with `pulls` if given. Errors as of its `pull`.

        `Unavailable` (STORE_UNAVAILABLE) when this machine cannot store it, such as a full disk.
        """
        existing = self.find(digest)
        if existing is not None:
            return existing
        self.in_use.mark(digest)
        folder = self.folder_of(digest)
        try:
            pulls = pulls or pull.PlannedPulls(registry, ())
            resolved = pulls.pull(Ref(name, digest), folder, cache=None, number=number)
            for file in folder.iterdir():
                file.chmod(0o444)
            replace_file(self.manifest_path(digest), resolved.manifest.to_bytes())
        except (OSError, Invalid) as e:
            if isinstance(e, Invalid) and e.code != "FOLDER_INVALID":
                raise
            reason = e.detail if isinstance(e, Invalid) else e.strerror or e
            raise Unavailable(
                "STORE_UNAVAILABLE", f"{name}@{digest.short} cannot be stored in {self.root}: {reason}",
                next_step="free some space there; it is tried again",
            ) from e  # fmt: skip
        with self._lock:
            self._verified.add(digest)
        return folder

    def folder_of(self, digest: Digest) -> Path:
        """Where the files of a version are."""
        return self.versions / digest.hex

    def manifest_path(self, digest: Digest) -> Path:
        """Where the manifest of a version is."""
        return self.manifests / f"{digest.hex}.json"

    def manifest(self, digest: Digest) -> Manifest | None:
        """The manifest of a version; None if it is not here or is damaged."""
        try:
            manifest = Manifest.parse(self.manifest_path(digest).read_bytes())
        except (OSError, RegistryError):
            return None
        return manifest if manifest.digest == digest else None

    def keep_only(self, digests: Iterable[Digest]) -> None:
        """The engine that loads from here was seen with these and may read no others."""
        for digest in self.in_use.keep_only(digests):
            self.note_use(digest, time.time())

    def note_use(self, digest: Digest, at: float) -> None:
        """Record when this version was last seen in use, as the time of its manifest: engines do not read that file."""
        with contextlib.suppress(OSError):
            os.utime(self.manifest_path(digest), (at, at))

    def digest_at(self, path: str) -> Digest | None:
        """The version at a path that an engine names; None for a path outside of this store."""
        folder = Path(os.path.abspath(path))
        if folder.parent.parent == self.versions:  # a file of a version
            folder = folder.parent
        return digest_of(folder.name) if folder.parent == self.versions else None


def digest_of(name: str) -> Digest | None:
    """The version in a folder of this name; None for other names."""
    with contextlib.suppress(RegistryError):
        return Digest(f"sha256:{name}")
    return None


def _is_intact(folder: Path, manifest: Manifest) -> bool:
    try:
        return all(Digest.of_file(folder / file.path) == file.digest for file in manifest.files)
    except OSError:
        return False
