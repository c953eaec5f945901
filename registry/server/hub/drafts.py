"""Drafts: what a Hub client has committed or uploaded, and what is no version yet.

- A draft belongs to one pusher and one branch. No one else sees it; it reserves no name and is in no list.
- Its bytes are sent for a push without a manifest, the *upload* of one pusher for one adapter. `gc` ends it as any
  push, and its drafts with it. Each commit renews it, for `REGISTRY_DRAFT_SECONDS`.
- A version never refers to a draft. When a commit completes the adapter, another push takes over the bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, and_, case, delete, exists, func, not_, or_, update
from sqlalchemy.orm import aliased
from sqlmodel import Session, col, select

from registry import hub
from registry.digest import Digest, canonical_json
from registry.errors import Conflict, TooLarge
from registry.hub.shapes import File
from registry.names import AdapterName
from registry.roles import Scope
from registry.server import failpoints
from registry.server.access import quotas
from registry.server.actors import Actor
from registry.server.database import db
from registry.server.database.models import BlobRow
from registry.server.database.models.hub import DraftFileRow, DraftRow
from registry.server.database.models.pushes import PushBlobRow, PushRow
from registry.server.hub import staging
from registry.server.settings import Settings
from registry.server.storage import references
from registry.server.storage.states import BlobState, PushState
from registry.versions.files import kind_of
from registry.versions.manifest import Descriptor

DRAFTS_LIMIT = 16
"""Drafts of one adapter that one pusher may have, each with up to `FILES_LIMIT` files."""


@dataclass(frozen=True, slots=True)
class DraftCommit:
    """What a draft becomes: its files by path, the version that they began from, and the message of the commit."""

    branch: str
    files: Mapping[str, File]
    parent: str
    message: str

    def revision_after(self, revision: str) -> str:
        """The commit id of these files after another commit of the same draft."""
        files = sorted((path, file.descriptor.digest) for path, file in self.files.items())
        return hashlib.sha256(canonical_json([self.branch, revision, self.parent, files])).hexdigest()[:40]


def _upload_prefix(actor: Actor) -> str:
    return "hub_" + hashlib.sha256(actor.owner.encode()).hexdigest()[:24] + "_"


def _id_of(name: AdapterName, owner: str, branch: str) -> str:
    return hashlib.sha256(f"{name}\n{owner}\n{branch}".encode()).hexdigest()[:32]


# ------------------------------------------------------------------ find
def find(session: Session, actor: Actor, name: AdapterName, revision: str) -> DraftRow | None:
    """The actor's draft at a branch or commit id. Without the right to push, there is none and nothing is read."""
    word = hub.branch(revision)
    rows = _list(session, actor, name, or_(col(DraftRow.branch) == word, col(DraftRow.revision) == word))
    return rows[0] if rows else None


def list_drafts(session: Session, actor: Actor, name: AdapterName) -> list[DraftRow]:
    """The actor's drafts of an adapter, one a branch."""
    return _list(session, actor, name)


def _list(session: Session, actor: Actor, name: AdapterName, *conditions: ColumnElement[bool]) -> list[DraftRow]:
    if not actor.holds(Scope.PUSH, name.namespace, name.name):
        return []
    drafts = select(DraftRow).join(PushRow, col(PushRow.id) == col(DraftRow.push_id)).where(
        col(DraftRow.namespace) == name.namespace, col(DraftRow.name) == name.name,
        col(DraftRow.owner) == actor.owner,
        col(PushRow.state) == PushState.OPEN, col(PushRow.expires_at) > db.now(),
    )  # fmt: skip
    return list(session.exec(drafts.where(*conditions).order_by(col(DraftRow.branch))).all())


def read_files(session: Session, draft: DraftRow) -> dict[str, File]:
    """The files of a draft by path, with their git ids."""
    rows = session.exec(
        select(DraftFileRow).where(col(DraftFileRow.draft_id) == draft.id).order_by(col(DraftFileRow.path))
    )
    return {row.path: File(describe(row.path, Digest(row.digest), row.size_bytes), row.git_sha1) for row in rows}


def describe(path: str, digest: Digest, size_bytes: int) -> Descriptor:
    """The descriptor of a file; one that no version holds has no media type."""
    kind = kind_of(path)
    return Descriptor(path=path, media_type=kind.media_type if kind else "", digest=digest, size_bytes=size_bytes)


def locate(session: Session, push_ids: Iterable[str], digests: Iterable[Digest]) -> dict[Digest, PushBlobRow]:
    """The rows of these blobs in uploads; one that sends the bytes is preferred."""
    rows = session.exec(
        select(PushBlobRow)
        .where(col(PushBlobRow.push_id).in_(list(push_ids)), col(PushBlobRow.digest).in_(list(digests)))
        .order_by(col(PushBlobRow.is_requested))
    )
    return {Digest(row.digest): row for row in rows}


# ------------------------------------------------------------------ uploads
def find_upload(session: Session, actor: Actor, name: AdapterName) -> PushRow | None:
    """The open upload of the actor for an adapter."""
    return next(iter(staging.find_pushes(session, _upload_prefix(actor), name)), None)


def open_upload(
    session: Session,
    actor: Actor,
    name: AdapterName,
    sizes: Mapping[Digest, int],
    settings: Settings,
    *,
    seconds: int = 0,
    counted_bytes: int = 0,
) -> PushRow:
    """The open upload of the actor for an adapter, or a new one, with space for blobs of these sizes.

    It stays open for as long as a push, or for `seconds`. The transaction must write. Errors as of a plan of a push.
    `counted_bytes` of the space count in quotas already.
    """
    size_bytes = max(0, sum(sizes.values()) - counted_bytes)
    seconds = max(seconds, settings.push_hold_seconds)
    return staging.open_push(session, actor, name, _upload_prefix(actor), size_bytes, seconds=seconds)


def hold_blobs(session: Session, push: PushRow, sizes: Mapping[Digest, int], *, is_requested: bool = True) -> None:
    """Reference these blobs by an upload, which sends them, or not: then the actor may read them.

    A blob whose bytes are not there gets the new size, too: quotas count it.
    """
    references.reserve(session, sizes)
    for digest, size_bytes in sorted(sizes.items()):
        values = {"push_id": push.id, "digest": digest, "size_bytes": size_bytes, "is_requested": is_requested}
        if not db.insert_new(session, PushBlobRow, values) and is_requested:
            same = (col(PushBlobRow.push_id) == push.id, col(PushBlobRow.digest) == digest)
            size = case((col(PushBlobRow.is_stored), col(PushBlobRow.size_bytes)), else_=size_bytes)
            session.connection().execute(update(PushBlobRow).where(*same).values(is_requested=True, size_bytes=size))


# ------------------------------------------------------------------ change
def write(
    session: Session, actor: Actor, name: AdapterName, push: PushRow, commit: DraftCommit, expected: str
) -> DraftRow:
    """Replace the draft of a branch. `Conflict` (PARENT_MOVED) unless it is at the revision `expected` (empty: new)."""
    now = db.now()
    key = _id_of(name, actor.owner, commit.branch)
    values: dict[str, Any] = {
        "id": key, "namespace": name.namespace, "name": name.name, "owner": actor.owner, "branch": commit.branch,
        "push_id": push.id, "parent": commit.parent, "revision": commit.revision_after(expected),
        "message": commit.message, "created_at": now, "created_by": actor.identity, "updated_at": now,
    }  # fmt: skip
    if not expected:
        session.connection().execute(delete(DraftRow).where(col(DraftRow.id) == key, not_(_is_open())))
        _check_number(session, name, values["owner"])
        if not db.insert_new(session, DraftRow, values):
            raise moved(name, commit.branch)
    else:
        same = update(DraftRow).where(col(DraftRow.id) == key, col(DraftRow.revision) == expected)
        columns = ("push_id", "parent", "revision", "message", "updated_at")
        if not session.connection().execute(same.values({column: values[column] for column in columns})).rowcount:
            raise moved(name, commit.branch)
        session.connection().execute(delete(DraftFileRow).where(col(DraftFileRow.draft_id) == key))
    files = [
        DraftFileRow(
            draft_id=key, path=path, digest=f.descriptor.digest, size_bytes=f.descriptor.size_bytes, git_sha1=f.git_id
        )
        for path, f in commit.files.items()
    ]
    db.bulk_insert(session, files)
    failpoints.reach("hub.draft.before_commit")
    return DraftRow(**values)


def move(session: Session, actor: Actor, name: AdapterName, to: AdapterName) -> None:
    """Give the actor's drafts, and what they have uploaded, another name. Their commit ids stay.

    `Conflict` (NAME_TAKEN) if the actor has drafts or an upload of that name; errors as of a plan of a push.
    """
    if list_drafts(session, actor, to) or find_upload(session, actor, to) is not None:
        raise Conflict("NAME_TAKEN", f"you have a draft '{to}' already, or have uploaded files for it")
    actor.require(Scope.PUSH, to)
    uploads = staging.find_pushes(session, _upload_prefix(actor), name)
    ids = [upload.id for upload in uploads]
    staged = select(func.coalesce(func.sum(PushBlobRow.size_bytes), 0)).where(
        col(PushBlobRow.push_id).in_(ids), col(PushBlobRow.is_requested)
    )
    size_bytes = int(session.exec(staged).one()) if to.namespace != name.namespace else 0
    quotas.check_before_staging(session, actor, to, size_bytes, is_new=True)
    renamed = {"namespace": to.namespace, "name": to.name}
    session.connection().execute(update(PushRow).where(col(PushRow.id).in_(ids)).values(**renamed))
    for draft in list_drafts(session, actor, name):
        key = _id_of(to, draft.owner, draft.branch)
        db.bulk_insert(session, [DraftRow(**draft.model_dump() | renamed | {"id": key})])
        files = update(DraftFileRow).where(col(DraftFileRow.draft_id) == draft.id)
        session.connection().execute(files.values(draft_id=key))
        end(session, [draft])


def _check_number(session: Session, name: AdapterName, owner: str) -> None:
    """Raise `TooLarge` (SIZE_INVALID) if the owner may not have another draft of this adapter."""
    of_owner = (col(DraftRow.namespace) == name.namespace, col(DraftRow.name) == name.name, DraftRow.owner == owner)
    if session.exec(select(func.count()).select_from(DraftRow).where(*of_owner, _is_open())).one() >= DRAFTS_LIMIT:
        raise TooLarge(
            "SIZE_INVALID", f"'{name}' has {DRAFTS_LIMIT} drafts of yours, which is the limit",
            next_step="delete a branch, or complete its adapter",
        )  # fmt: skip


def _is_open() -> ColumnElement[bool]:
    return exists().where(
        col(PushRow.id) == col(DraftRow.push_id),
        col(PushRow.state) == PushState.OPEN,
        col(PushRow.expires_at) > db.now(),
    )


def moved(name: AdapterName, branch: str) -> Conflict:
    """The error for a branch that another commit has moved."""
    return Conflict(
        "PARENT_MOVED", f"branch '{branch}' of '{name}' has another commit meanwhile",
        next_step="read it again, then commit on its newest commit",
    )  # fmt: skip


def end(session: Session, drafts: Iterable[DraftRow]) -> None:
    """Delete drafts. Their upload keeps its blobs until `release`."""
    ids = [draft.id for draft in drafts]
    session.connection().execute(delete(DraftRow).where(col(DraftRow.id).in_(ids)))


def discard(session: Session, drafts: Sequence[DraftRow]) -> set[Digest]:
    """Delete drafts, and let go of the files that no other one has; return these."""
    ids, push_ids = [draft.id for draft in drafts], {draft.push_id for draft in drafts}
    _lock_uploads(session, push_ids)
    digests = set(session.exec(select(DraftFileRow.digest).where(col(DraftFileRow.draft_id).in_(ids))).all())
    end(session, drafts)
    return release_unused(session, push_ids, map(Digest, digests))


def release_unused(session: Session, push_ids: Collection[str], digests: Iterable[Digest]) -> set[Digest]:
    """Let these uploads go of those of these blobs that no draft has; return these: nothing may need them now."""
    _lock_uploads(session, push_ids)
    of_drafts = select(DraftFileRow.digest).join(DraftRow, col(DraftRow.id) == col(DraftFileRow.draft_id))
    unused = set(digests).difference(session.exec(of_drafts.where(col(DraftRow.push_id).in_(push_ids))).all())
    for push_id in push_ids:
        release(session, push_id, unused)
    return unused


def end_uploads(session: Session, actor: Actor, name: AdapterName) -> set[str]:
    """Delete the actor's drafts of an adapter, and end what it has uploaded; return the ids of the uploads."""
    own_drafts = list_drafts(session, actor, name)
    uploads = staging.find_pushes(session, _upload_prefix(actor), name)
    ended = references.end_pushes(session, [upload.id for upload in uploads])  # locks them before drafts, as commits do
    end(session, own_drafts)
    return ended


def release_abandoned(session: Session, age: timedelta, limit: int, *, dry_run: bool = False) -> int:
    """Let uploads go of blobs that were sent this long ago and never committed; return how many.

    A pusher uses one upload for all of an adapter, and each commit renews it: without this they would stay. The row of
    a blob whose bytes no version has is as old as the newest request to send them (`references.reserve`).
    """
    before, other = db.now() - age, aliased(PushBlobRow)
    in_draft = exists().where(
        col(DraftRow.push_id) == col(PushBlobRow.push_id), col(DraftFileRow.draft_id) == col(DraftRow.id),
        col(DraftFileRow.digest) == col(PushBlobRow.digest),
    )  # fmt: skip
    in_other_push = (
        select(other)
        .join(PushRow, col(PushRow.id) == col(other.push_id))
        .where(col(other.digest) == col(PushBlobRow.digest), col(other.push_id) != col(PushBlobRow.push_id))
        .where(PushRow.state == PushState.OPEN)
    )
    uploads = select(PushRow.id).where(
        col(PushRow.id).between("hub_", "hub_z"), PushRow.state == PushState.OPEN, col(PushRow.created_at) < before
    )
    abandoned = (
        select(PushBlobRow.push_id, PushBlobRow.digest)
        .join(BlobRow, col(BlobRow.digest) == col(PushBlobRow.digest))
        .where(col(PushBlobRow.push_id).in_(uploads), col(PushBlobRow.is_requested))
        .where(BlobRow.state == BlobState.PENDING, col(BlobRow.created_at) < before)
        .where(not_(in_draft), not_(in_other_push.correlate(PushBlobRow).exists()))
    )
    if dry_run:
        return session.exec(select(func.count()).select_from(abandoned.subquery())).one()
    push_ids = {push_id for push_id, _ in session.exec(abandoned.limit(limit))}
    _lock_uploads(session, push_ids)
    digests: dict[str, list[Digest]] = {}
    rows = session.exec(abandoned.where(col(PushBlobRow.push_id).in_(push_ids)).limit(limit)).all()
    for push_id, digest in rows:  # read again: a commit may have come first
        digests.setdefault(push_id, []).append(Digest(digest))
    for push_id, unused in digests.items():
        release_unused(session, [push_id], unused)
    return len(rows)


def _lock_uploads(session: Session, push_ids: Iterable[str]) -> None:
    """Let no one send anything for these uploads, or commit what they have, until this transaction ends."""
    own = select(PushRow.id).where(col(PushRow.id).in_(sorted(push_ids)))
    session.exec(own.order_by(col(PushRow.id)).with_for_update()).all()


def release(session: Session, push_id: str, digests: Iterable[Digest]) -> None:
    """Let an upload go of these blobs, which a version has now. An upload without any use ends."""
    of_push = col(PushBlobRow.push_id) == push_id
    sent = and_(of_push, col(PushBlobRow.digest).in_(list(digests)), col(PushBlobRow.is_requested))
    session.connection().execute(update(PushBlobRow).where(sent).values(is_requested=False))
    in_draft = exists().where(
        col(DraftRow.push_id) == push_id, col(DraftFileRow.draft_id) == col(DraftRow.id),
        col(DraftFileRow.digest) == col(PushBlobRow.digest),
    )  # fmt: skip
    unused = delete(PushBlobRow).where(of_push, col(PushBlobRow.is_requested).is_(False), not_(in_draft))
    session.connection().execute(unused.execution_options(synchronize_session=False))
    open_push = select(PushRow.id).where(col(PushRow.id) == push_id)
    if not session.exec(open_push.with_for_update(skip_locked=True)).first():
        return  # another request of the actor is about to use the upload
    uses = (select(PushBlobRow.digest).where(of_push), select(DraftRow.id).where(col(DraftRow.push_id) == push_id))
    if not any(session.exec(use.limit(1)).first() for use in uses):
        references.end_pushes(session, [push_id])
