"""What a commit decides about one push: facts in, a decision or an error out. Nothing here reads or writes.

request ─ read → Commit ─ accept → base ─ inspection → InspectedCommit ─ creates_version → rows
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from registry import names
from registry.api.transfer import CommitItem
from registry.digest import Digest
from registry.errors import (
    Conflict,
    Denied,
    Invalid,
    NotFound,
    Refused,
    RegistryError,
    TooLarge,
    Unavailable,
    from_problem,
)
from registry.evaluation.verdicts import WEIGHTS_PENDING
from registry.names import AdapterName
from registry.roles import Scope
from registry.server.actors import Actor
from registry.server.catalog import availability
from registry.server.database import db
from registry.server.database.models import BaseRow, VerdictRow, VersionRow
from registry.server.database.models.pushes import PushBlobRow, PushRow
from registry.server.push import base_choice, inspect
from registry.server.push.inspect import Inspection
from registry.server.storage import references
from registry.server.storage.states import PushState
from registry.versions.manifest import Manifest

VersionKey = tuple[str, str]
"""An adapter's name and a manifest's digest: what a version is."""
Result = TypeVar("Result")


@dataclass(frozen=True)
class Commit:
    """A push to commit, as its plan and the request say."""

    item: CommitItem
    push: PushRow
    name: AdapterName
    alias: str
    manifest: Manifest

    @property
    def key(self) -> VersionKey:
        """The version."""
        return str(self.name), self.manifest.digest

    @cached_property
    def sizes(self) -> dict[Digest, int]:
        """The size of each blob, the manifest's own among them."""
        sizes = {file.digest: file.size_bytes for file in self.manifest.files}
        return {**sizes, self.manifest.digest: len(self.manifest.to_bytes())}

    @property
    def moves_alias(self) -> bool:
        """Whether it asks for an alias; `main` moves by itself."""
        return bool(self.alias) and self.alias != names.NEWEST


@dataclass(frozen=True)
class CommitFacts:
    """What the decision to inspect the bytes of a push depends on."""

    commit: Commit
    blobs: Mapping[Digest, PushBlobRow]
    bases: Mapping[str, BaseRow]
    stores_unregistered: bool
    readable: Set[Digest]
    """Those of the blobs that the actor may read in versions."""


@dataclass(frozen=True)
class InspectedCommit:
    """A push whose bytes were inspected and are under their final keys.

    Without an inspection only an existing version can be its result; `error_without_version` if there is none.
    """

    commit: Commit
    base: BaseRow | None = None
    inspection: Inspection | None = None
    repaired: Set[Digest] = frozenset()
    """Damaged blobs whose bytes this push has replaced."""
    error_without_version: RegistryError | None = None

    @property
    def push_id(self) -> str:
        """The id of the push."""
        return self.commit.item.push_id

    @property
    def content(self) -> tuple[BaseRow, Inspection]:
        """The base and the inspection, of a commit that creates a version."""
        if self.base is None or self.inspection is None:
            raise RuntimeError(f"push {self.push_id} was not inspected")
        return self.base, self.inspection


@dataclass(frozen=True)
class VersionFacts:
    """What decides whether an inspected push creates its version, as it is under the lock of the adapter."""

    inspected: InspectedCommit
    existing: VersionRow | None
    is_candidate: bool
    """Whether it is the first of the group that has the bytes of a version which does not exist."""
    is_repeated: bool
    """Whether a push before it in the group is the candidate."""
    quota_error: RegistryError | None = None
    is_strict: bool = False
    """Whether the namespace stores only what fits its base."""


@dataclass(frozen=True)
class NewVersion:
    """A version that this transaction creates."""

    commit: Commit
    base: BaseRow
    inspection: Inspection
    row: VersionRow
    verdicts: Sequence[VerdictRow]


class CommitsFailed(Exception):
    """Some commits got an error after something was written for them. The caller rolls back and tries the others."""

    def __init__(self, errors: Mapping[str, RegistryError]) -> None:
        super().__init__(f"{len(errors)} commits failed")
        self.errors = errors
        """Push → its error."""


def require_all(commits: Iterable[InspectedCommit], outcomes: Collection[Result | RegistryError]) -> list[Result]:
    """The results of these commits. `CommitsFailed` if some have an error."""
    pairs = zip(commits, outcomes, strict=True)
    errors = {commit.push_id: outcome for commit, outcome in pairs if isinstance(outcome, RegistryError)}
    if errors:
        raise CommitsFailed(errors)
    return [outcome for outcome in outcomes if not isinstance(outcome, RegistryError)]


# ------------------------------------------------------------------ before the bytes are read
def read(actor: Actor, item: CommitItem, row: PushRow | None, manifest: str) -> Commit:
    """The commit that an item asks for. `NotFound`, `Denied`, or the error of a push that was refused."""
    if row is not None and row.token_id == actor.token_id and row.refusal:
        raise from_problem(json.loads(row.refusal))
    push = require_open(row, actor.token_id, item.push_id)
    name = AdapterName(push.namespace, push.name)
    actor.require(Scope.PUSH, name)
    alias = str(names.alias(item.alias)) if item.alias else ""
    if not manifest and push.manifest_digest:
        raise unknown_version(name, push.manifest_digest)
    if not manifest:
        raise references.unknown_push(push.id)
    return Commit(item, push, name, alias, Manifest.parse(manifest.encode()))


def require_open(row: PushRow | None, token_id: str, push_id: str) -> PushRow:
    """The push, if it is of this token and open, or was committed. `NotFound` (PUSH_UNKNOWN)."""
    late = row is not None and row.state == PushState.OPEN and row.expires_at <= db.now()
    if row is None or row.token_id != token_id or row.state == PushState.EXPIRED or late:
        raise references.unknown_push(push_id)
    return row


def accept(facts: CommitFacts) -> BaseRow:
    """The base of a push whose bytes may be inspected.

    `Conflict` (UPLOAD_INCOMPLETE) for bytes that were readable at the plan and are not any more: they have to be sent.
    """
    manifest = facts.commit.manifest
    base = base_choice.find_base(facts.bases, manifest.base.name, manifest.base, unregistered=facts.stores_unregistered)
    taken_over = {digest for digest, blob in facts.blobs.items() if blob.is_taken_over}
    inspect.check_none_missing(manifest, taken_over - facts.readable)
    return base


# ------------------------------------------------------------------ under the lock of the adapter
def creates_version(facts: VersionFacts) -> bool:
    """Whether the push creates its version; False if that exists or another of the group creates it. Else an error."""
    commit = facts.inspected.commit
    if facts.existing is not None and facts.existing.deleted_at is not None:
        raise _tombstone_error(commit, facts.existing)
    if facts.is_candidate:
        base, inspection = facts.inspected.content
        refusal = inspect.refusal_of(commit.name, base.name, inspection.findings)
        if refusal is not None and facts.is_strict:
            raise refusal
        if facts.quota_error is not None:
            raise facts.quota_error
    elif facts.existing is None and not facts.is_repeated:
        raise facts.inspected.error_without_version or unknown_version(commit.name, commit.manifest.digest)
    return facts.is_candidate


def _tombstone_error(commit: Commit, version: VersionRow) -> Conflict:
    step = f"adapter delete --undo {commit.name}@{version.number}" if version.purged_at is None else ""
    return Conflict("VERSION_TOMBSTONED", availability.deletion_message(commit.name, version), next_step=step)


def unknown_version(name: AdapterName, digest: str) -> NotFound:
    """The error for a commit whose version is gone."""
    return NotFound("VERSION_UNKNOWN", f"the version {digest} of '{name}' was deleted in the meantime")


# ------------------------------------------------------------------ errors
def ends_push(error: RegistryError) -> bool:
    """Whether the files are refused for good. Otherwise bytes can be sent again, or repeating the commit may help."""
    is_invalid = isinstance(error, Invalid) and error.code not in ("REQUEST_INVALID", "BLOB_MISMATCH")
    is_too_large = isinstance(error, TooLarge) and error.code == "SIZE_INVALID"
    return is_invalid or is_too_large or (isinstance(error, Refused) and error.code == "INCOMPATIBLE")


def keeps_alias(error: RegistryError) -> bool:
    """Whether the version is created although its alias does not move.

    A gate is closed, or stays closed until large weights are read, or the actor may push and not move this alias, or
    its name may be a wrong spelling.
    """
    is_pending = isinstance(error, Unavailable) and any(reason.code == WEIGHTS_PENDING for reason in error.findings)
    return isinstance(error, Denied | Refused) or is_pending or error.code == "ALIAS_UNKNOWN"
