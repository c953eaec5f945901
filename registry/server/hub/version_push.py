"""Push a version from files that a Hub client has sent. The only place here that calls the push of the registry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from sqlmodel import Session

from registry.adapters.card import read as read_card
from registry.adapters.peft.config import BaseClaim
from registry.api.transfer import CommitItem, PushResult
from registry.bases import UNREGISTERED
from registry.digest import Digest
from registry.engines import EngineProfile
from registry.errors import Conflict, NotFound, RegistryError
from registry.findings import Finding
from registry.names import AdapterName
from registry.server import failpoints
from registry.server.access import namespaces, quotas
from registry.server.actors import Actor
from registry.server.catalog import base_rows
from registry.server.database import db
from registry.server.database.models import VersionRow
from registry.server.database.models.pushes import PushBlobRow
from registry.server.push import commit, plan, readable_blobs
from registry.server.settings import Settings
from registry.server.storage import references
from registry.server.storage.blobs import BlobStore
from registry.versions.manifest import BaseRef, Descriptor, Manifest


@dataclass(frozen=True, slots=True)
class VersionPush:
    """A version to push: what it is, the blobs that an upload has sent for it, those of others, and its message."""

    manifest: Manifest
    staged: Mapping[Digest, PushBlobRow]
    copied: Set[Digest]
    message: str


def find_readable(session: Session, actor: Actor, name: AdapterName, sizes: Mapping[Digest, int]) -> set[Digest]:
    """Those of these blobs that versions visible to the actor have, of this adapter or any other."""
    readable = readable_blobs.find(session, actor, set(sizes), of=name)
    return {digest for digest, size_bytes in sizes.items() if (digest, size_bytes) in readable}


def plan_version(session: Session, actor: Actor, name: AdapterName, push: VersionPush, settings: Settings) -> str:
    """Plan a push and return its id. `Conflict` (UPLOAD_INCOMPLETE) for files that were not sent, RATE_LIMITED.

    `session` must have begun by reading. The plan is durable when this returns.
    """
    manifest = push.manifest
    sizes = plan.blob_sizes(manifest)
    readable = find_readable(session, actor, name, sizes)
    lost = [file for file in manifest.files if file.digest not in readable and file.digest not in push.staged]
    if lost:
        raise not_uploaded(lost)
    row = plan.new_row(actor, name, manifest, push.message, settings)
    rows = [_blob_row(row.id, digest, size, push.staged.get(digest)) for digest, size in sizes.items()]
    db.begin_writing(session)
    quotas.check_rate(session, name, manifest)
    references.reserve(session, plan.stored_sizes(manifest))
    db.bulk_insert(session, [row])
    db.bulk_insert(session, rows)
    readable_blobs.record_copies(session, actor, {name: push.copied})
    db.commit_early(session)
    failpoints.reach("hub.version.planned")
    return row.id


def commit_version(
    session: Session, actor: Actor, push_id: str, alias: str, *, blobs: BlobStore, engines: Sequence[EngineProfile]
) -> PushResult:
    """Commit a planned push, and move the alias if one is named. Errors as of a commit; the plan remains then.

    `session` writes when this returns, so the caller may add to the transaction.
    """
    item = CommitItem(push_id=push_id, alias=alias)
    [result] = commit.commit_pushes(session, actor, [item], blobs=blobs, engines=engines)
    if isinstance(result, RegistryError):
        raise result
    return result


def _blob_row(push_id: str, digest: Digest, size_bytes: int, staged: PushBlobRow | None) -> PushBlobRow:
    """A blob of a push that an upload has sent; without that, a version has it."""
    is_requested, is_stored = (staged.is_requested, staged.is_stored) if staged is not None else (False, False)
    return PushBlobRow(
        push_id=push_id, digest=digest, size_bytes=size_bytes, is_requested=is_requested, is_stored=is_stored
    )


def not_uploaded(files: Sequence[Descriptor]) -> Conflict:
    """The error for files whose bytes never arrived."""
    findings = [Finding("blob.unknown", file.path, f"was not uploaded ({file.digest})") for file in files]
    more = f" (and {len(findings) - 1} more)" if findings[1:] else ""
    return Conflict(
        "UPLOAD_INCOMPLETE", f"{findings[0].location} {findings[0].message}{more}", findings=findings,
        next_step="upload again: what has arrived is not sent again",
    )  # fmt: skip


def choose_base(session: Session, namespace: str, claim: BaseClaim, card: bytes, parent: VersionRow | None) -> BaseRef:
    """The base that the files name: the configuration, else the README, else that of the parent version.

    `NotFound` (BASE_UNKNOWN) if what they name is not registered, unless the namespace stores such adapters.
    """
    claims = [each for each in (claim, *(BaseClaim(name=name) for name in read_card(card).bases)) if each.name]
    bases = base_rows.read_aliases(session)
    for matching in (each.matching(bases) for each in claims):
        if len(matching) == 1:
            return base_rows.reference(base_rows.find(session, matching[0]))
    if parent is not None and (not claims or claim.is_local):
        return Manifest.model_validate_json(parent.manifest).base
    if all(each.is_local for each in claims):
        folder = f", only a folder that ends in {claims[0].name!r}" if claims else ""
        raise NotFound(
            "BASE_UNKNOWN", f"neither the configuration nor README.md names the base of this adapter{folder}",
            next_step="set `base_model` in README.md to the name of a registered base, or push the first version with "
            "`adapter push --base`: later ones have its base",
        )  # fmt: skip
    unregistered = next((each.name for each in claims if each.names_unregistered(bases)), "")
    if unregistered and namespaces.find_with_rule(session, "unregistered_bases", [namespace]):
        return BaseRef(name=unregistered, fingerprint=UNREGISTERED)
    raise NotFound(
        "BASE_UNKNOWN",
        f"the base {claims[0].name[:200]!r} is not registered here",
        next_step=f"an administrator registers it with `adapter base add {claims[0].name[:200]} DIR`; then push again",
    )
