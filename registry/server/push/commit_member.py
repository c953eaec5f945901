"""`Commit`: one push of a group that is being committed, and the version that it creates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass

from registry.api.transfer import CommitItem, PushResult
from registry.digest import Digest
from registry.errors import RegistryError
from registry.names import AdapterName
from registry.server.database.models import BaseRow, VerdictRow, VersionRow
from registry.server.database.models.pushes import PushBlobRow, PushRow
from registry.server.promotion.group import Member
from registry.server.push.inspect import Inspection
from registry.versions.manifest import Manifest

Key = tuple[str, str]
"""An adapter's name and a manifest's digest: what a version is."""


class Commit(Member):
    """A push that is being committed.

    `inspection` is None if its bytes were not inspected: then only an existing version can be its result, and
    `error_without_version` is the error if there is none. `carried`: verified bytes that came with the commit itself.
    """

    def __init__(self, item: CommitItem, push: PushRow, name: AdapterName, alias: str, manifest: Manifest) -> None:
        self.small, self.push, self.name, self.alias, self.manifest = item.small, push, name, alias, manifest
        self.key: Key = (str(name), manifest.digest)
        self.sizes = {file.digest: file.size_bytes for file in manifest.files}
        self.requested: Mapping[Digest, PushBlobRow] = {}
        self.base: BaseRow | None = None
        self.inspection: Inspection | None = None
        self.promoted: Sequence[Digest] = ()
        """Blobs that are under their final keys now."""
        self.carried: Mapping[Digest, bytes] = {}
        self.repaired: Set[Digest] = frozenset()
        """Damaged blobs whose bytes this push has replaced."""
        self.error_without_version: RegistryError | None = None
        self.result: PushResult | None = None

    @property
    def base_row(self) -> BaseRow:
        """The base, which every inspected push has."""
        if self.base is None:
            raise RuntimeError(f"the base of push {self.push.id} was not looked up")
        return self.base


@dataclass(frozen=True, slots=True)
class NewVersion:
    """A version that this transaction creates."""

    commit: Commit
    inspection: Inspection
    row: VersionRow
    verdicts: list[VerdictRow]


class MemberFailed(Exception):
    """Some commits got an error after something was written for them. The caller rolls back and tries the others."""


def raise_if_failed(commits: Iterable[Commit]) -> None:
    """Raise `MemberFailed` if one of these commits has an error."""
    if any(commit.error is not None for commit in commits):
        raise MemberFailed
