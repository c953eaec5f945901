"""What a revision of the Hub API names: a version, or a draft of the actor.

A draft counts at its branch only while the branch is at the version that it began from. By its commit id it is read
until it ends.
"""

from dataclasses import dataclass

from sqlalchemy import Engine
from sqlmodel import Session, col, select

from registry import hub
from registry.digest import Digest
from registry.errors import Corrupt, NotFound
from registry.evaluation.verdicts import Check, Outcome
from registry.hub import shapes
from registry.hub.shapes import File, Json, Repository
from registry.names import AdapterName
from registry.server.actors import Actor
from registry.server.catalog import files, verdicts, version_groups, versions
from registry.server.database import db
from registry.server.database.models import AdapterRow, AliasRow, VersionRow
from registry.server.database.models.hub import DraftRow
from registry.server.hub import drafts, repositories, version_push
from registry.server.storage.blobs import BlobStore, key_of
from registry.versions.manifest import Descriptor


@dataclass(frozen=True, slots=True)
class Revision:
    """A version or a draft, by their rows."""

    name: AdapterName
    row: VersionRow | DraftRow

    @property
    def draft(self) -> DraftRow | None:
        """The draft, if it is one."""
        return self.row if isinstance(self.row, DraftRow) else None

    @property
    def version(self) -> VersionRow | None:
        """The version, if it is one."""
        return self.row if isinstance(self.row, VersionRow) else None

    @property
    def commit(self) -> str:
        """The commit id."""
        return self.row.revision if isinstance(self.row, DraftRow) else hub.commit_id(self.row.digest)

    def to_commit(self) -> Json:
        """The commit as JSON."""
        if isinstance(self.row, DraftRow):
            return shapes.commit(self.commit, 0, self.row.message or "Draft", self.row.updated_at, self.row.created_by)
        return shapes.commit(
            self.row.digest, self.row.number, self.row.message, self.row.created_at, self.row.created_by
        )


def find(session: Session, actor: Actor, name: AdapterName, revision: str) -> Revision:
    """Return the version or the actor's draft at a branch, tag or commit id. Errors as of `find_version`."""
    draft = drafts.find(session, actor, name, revision)
    if draft is not None and (draft.revision == revision or draft.parent == find_parent(session, name, draft.branch)):
        return Revision(name, draft)
    try:
        return Revision(name, repositories.find_version(session, actor, name, revision))
    except NotFound as error:
        if error.code == "ADAPTER_UNKNOWN" and drafts.list_drafts(session, actor, name):
            raise NotFound("VERSION_UNKNOWN", f"'{name}' has no revision {revision[:200]!r}") from None
        raise


def find_parent(session: Session, name: AdapterName, branch: str) -> str:
    """Return the digest of the version that an alias points at; empty if there is no such alias."""
    statement = (
        select(VersionRow.digest)
        .join(AliasRow, col(AliasRow.version_id) == col(VersionRow.id))
        .join(AdapterRow, col(AdapterRow.id) == col(AliasRow.adapter_id))
    )
    return session.exec(statement.where(versions.has_name(name), AliasRow.alias == branch)).first() or ""


def describe(session: Session, actor: Actor, revision: Revision) -> Repository:
    """Return a revision as a repository. The files of a version have no git ids yet."""
    row = revision.row
    if isinstance(row, VersionRow):
        return repositories.describe_repository(session, revision.name, row, actor)
    tree = list(drafts.read_files(session, row).values())
    return Repository(
        name=str(revision.name), digest=row.revision, base="", created_at=row.created_at, updated_at=row.updated_at,
        private=True, size_bytes=sum(file.descriptor.size_bytes for file in tree), files=tree,
    )  # fmt: skip


def find_failed_checks(session: Session, revision: Revision) -> list[str]:
    """The checks that say fail of a version. Engines that cannot serve it are not among them."""
    if revision.version is None:
        return []
    version_id = revision.version.id or 0
    outcomes = verdicts.newest_outcomes(session, [version_id])[version_id]
    failed = (name for name, outcome in outcomes.items() if outcome == Outcome.FAIL)
    return [name for name in failed if not name.startswith(Check.ENGINE)]


def add_git_ids(engine: Engine, blobs: BlobStore, revision: Revision, tree: list[File]) -> list[File]:
    """Return the files of a revision with their git ids."""
    if revision.draft is not None:
        return tree
    return repositories.with_git_ids(engine, blobs, revision.row.id, [file.descriptor for file in tree])  # type: ignore[arg-type]


def find_file(session: Session, actor: Actor, revision: Revision, path: str) -> File:
    """Return one file of a revision; of a version without its git id. `NotFound` (BLOB_UNKNOWN)."""
    if isinstance(revision.row, VersionRow):
        return File(repositories.find_file(session, actor, revision.name, revision.row, path))
    file = drafts.read_files(session, revision.row).get(path)
    if file is None:
        raise unknown_file(revision, path)
    return file


def unknown_file(revision: Revision, path: str, kind: str = "file") -> NotFound:
    """The error for a file or folder that a revision does not have."""
    if isinstance(revision.row, VersionRow):
        return repositories.unknown_file(revision.name, revision.row, path, kind)
    return NotFound("BLOB_UNKNOWN", f"the draft of '{revision.name}' has no {kind} {path[:200]!r}")


def require_repository(session: Session, actor: Actor, name: AdapterName) -> list[DraftRow]:
    """Return the actor's drafts of a repository. `NotFound` if there is neither a draft nor an adapter."""
    own_drafts = drafts.list_drafts(session, actor, name)
    if not own_drafts:
        versions.find_adapter(session, actor, name)
    return own_drafts


def list_references(session: Session, actor: Actor, name: AdapterName) -> tuple[dict[str, str], dict[int, str]]:
    """Return branch → digest or commit id, and number → digest."""
    own_drafts = require_repository(session, actor, name)
    points_at = select(AliasRow.alias, VersionRow.digest).join(VersionRow, col(VersionRow.id) == AliasRow.version_id)
    points_at = points_at.join(AdapterRow, col(AdapterRow.id) == AliasRow.adapter_id).where(versions.has_name(name))
    aliases = dict(session.exec(points_at).all())
    aliases |= {draft.branch: draft.revision for draft in own_drafts if aliases.get(draft.branch, "") == draft.parent}
    numbers = select(VersionRow.number, VersionRow.digest).join(AdapterRow, col(AdapterRow.id) == VersionRow.adapter_id)
    numbers = numbers.where(versions.has_name(name), col(VersionRow.deleted_at).is_(None))
    return aliases, dict(session.exec(numbers).all())


def list_commits(
    session: Session, actor: Actor, name: AdapterName, revision: str, *, limit: int, cursor: str
) -> tuple[list[Json], str]:
    """Return this revision and the versions before it as commits, newest first, and the cursor of the next page."""
    newest = find(session, actor, name, revision)
    commits: list[Json] = []
    row: VersionRow | DraftRow | None = newest.row
    if isinstance(row, DraftRow):
        commits = [newest.to_commit()] if not cursor else []
        row = versions.find(session, actor, name, Digest(row.parent)) if row.parent else None
    if row is None:
        return commits, ""
    page = version_groups.list_versions(session, actor, name, cursor=cursor or str(row.number + 1), limit=limit)
    commits += [shapes.commit(v.digest, v.number, v.message, v.created_at, v.created_by) for v in page.items]
    return commits, page.next_cursor


def locate_bytes(engine: Engine, actor: Actor, blobs: BlobStore, revision: Revision, file: Descriptor) -> str:
    """Return the key of a file's bytes. `Corrupt` if they are lost.

    A draft's file that was not sent, but taken over from a version, is read as long as such a version may be:
    `NotFound` (BLOB_UNKNOWN).
    """
    if revision.draft is None:
        return files.locate_bytes(blobs, file)
    with db.session(engine, write=False) as session:
        blob = drafts.locate(session, [revision.draft.push_id], [file.digest]).get(Digest(file.digest))
        taken_over = blob is not None and blob.is_taken_over
        if taken_over and not version_push.find_readable(session, actor, revision.name, {file.digest: file.size_bytes}):
            raise NotFound("BLOB_UNKNOWN", f"{file.path} of the draft is from a version that was withdrawn")
    if blob is None:
        raise Corrupt("DIGEST_MISMATCH", f"{file.path}: the draft no longer has these bytes")
    return key_of(file.digest)
