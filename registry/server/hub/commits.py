"""Commit of a Hub client: apply its operations to a branch; the result is a version, or a draft.

    head → operations → files → bytes complete → whole adapter? version : draft

- A whole adapter becomes a version by the push of the registry, with the version at the branch as its parent.
- Files that are no adapter yet become a draft. A commit that is refused leaves nothing but the draft before it; after a
  conflict its uploads stay, for the client that commits again.
- A commit that changes nothing returns the head, and so does one that is repeated on its parent.
- No transaction is open while bytes are read. The branch is still there at the end, else the commit is refused.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from sqlalchemy import Engine, func
from sqlmodel import Session, select

from registry import hub
from registry.adapters.peft.config import BaseClaim
from registry.adapters.read import read_any
from registry.api import check_message
from registry.api.transfer import PushResult
from registry.digest import Digest
from registry.errors import Conflict, Invalid, NotFound, Refused, RegistryError, Unavailable
from registry.evaluation.verdicts import Outcome
from registry.findings import Finding
from registry.hub.operations import AddFile, AddLarge, CommitRequest, Delete
from registry.hub.shapes import File
from registry.names import NEWEST, AdapterName, is_alias
from registry.roles import Scope
from registry.server import failpoints
from registry.server.actors import Actor
from registry.server.catalog import versions
from registry.server.database import db
from registry.server.database.models import AdapterRow, AliasMoveRow, VersionRow
from registry.server.database.models.hub import DraftRow
from registry.server.database.models.pushes import PushBlobRow
from registry.server.evaluation import engine_profiles
from registry.server.hub import drafts, refusals, repositories, revisions, version_push
from registry.server.hub.drafts import DraftCommit
from registry.server.hub.version_push import VersionPush, choose_base
from registry.server.push import readable_blobs, receive
from registry.server.settings import Settings
from registry.server.storage import reclaim, references
from registry.server.storage.blobs import BlobStore, key_of
from registry.versions.files import CARD, WEIGHTS_ENDINGS
from registry.versions.manifest import FILES_LIMIT, Descriptor, Edge, Manifest, Relation, check_files

_INCOMPLETE = frozenset({"adapter.weights_missing", "adapter.config_missing"})
"""Findings of files that may become an adapter with another commit."""


@dataclass(frozen=True, slots=True)
class Head:
    """Where a branch is for the actor: its version, the draft on it, the files, and how often the alias has moved."""

    version: VersionRow | None
    draft: DraftRow | None
    files: Mapping[str, File]
    generation: int

    @property
    def commit(self) -> str:
        """The commit id; empty for a branch without a commit."""
        if self.draft is not None:
            return self.draft.revision
        return hub.commit_id(self.version.digest) if self.version is not None else ""


@dataclass(frozen=True, slots=True)
class CommitOutcome:
    """What a commit has made. `pushed` is None for a draft, and for a commit that changed nothing.

    After the response, `push_id` (a push) is cleaned up.
    """

    commit: str
    pushed: PushResult | None = None
    push_id: str = ""
    missing: str = ""
    """What keeps a draft from being a version."""


@dataclass(frozen=True)
class Committer:
    """One commit: who commits where, and what the server works with."""

    engine: Engine
    blobs: BlobStore
    settings: Settings
    actor: Actor
    name: AdapterName
    branch: str
    request: CommitRequest
    _sources: dict[str, AddFile] = field(default_factory=dict)
    _planned: list[str] = field(default_factory=list)

    def run(self) -> CommitOutcome:
        """Commit. `Invalid`, `NotFound`, `Conflict` (PARENT_MOVED, UPLOAD_INCOMPLETE), and the errors of a push."""
        _check_message(self.request.message)
        head = find_head(self.engine, self.actor, self.name, self.branch)
        if self.request.parent and not (head.commit and head.commit.startswith(self.request.parent)):
            if self._has_made(head):
                return CommitOutcome(head.commit)
            raise drafts.moved(self.name, self.branch)
        with db.session(self.engine, write=False) as session:
            tree = self._apply(session, head)
        if head.commit and _descriptors(tree) == _descriptors(head.files):
            return CommitOutcome(head.commit, missing=str(self._read_adapter(tree)) if head.draft is not None else "")
        check_files(tuple(tree[path].descriptor for path in sorted(tree)), needs_weights=False)
        self._stage(tree)
        failpoints.reach("hub.commit.staged")
        try:
            staged = self._complete(tree)
            contents = self._read_adapter(tree)
            if isinstance(contents, str):
                return self._write_draft(head, tree, staged, missing=contents)
            return self._push(head, tree, staged, contents)
        except RegistryError as error:
            # Repeating a refused commit does not help. After a conflict, what was uploaded is not sent again.
            self._clean_up({} if isinstance(error, Conflict | Unavailable) else tree)
            raise

    def _clean_up(self, refused: Mapping[str, File]) -> None:
        """End what was planned, and delete the bytes of refused files that no draft has. Optional: they expire, too."""
        released: set[Digest] = set()
        with contextlib.suppress(Unavailable):
            with db.session(self.engine) as session:
                references.end_pushes(session, self._planned)
                upload = drafts.find_upload(session, self.actor, self.name)
                if refused and upload is not None:
                    digests = {file.descriptor.digest for file in refused.values()}
                    released = drafts.release_unused(session, [upload.id], digests)
            reclaim.delete_unneeded(self.engine, self.blobs, released)

    def _has_made(self, head: Head) -> bool:
        """Whether the head is the version that this commit has made: clients repeat one whose response was lost."""
        edges = Manifest.model_validate_json(head.version.manifest).parents if head.version and not head.draft else ()
        with db.session(self.engine, write=False) as session, contextlib.suppress(NotFound, Conflict):
            for edge in edges:
                if hub.commit_id(edge.digest).startswith(self.request.parent):
                    parent = versions.find(session, self.actor, self.name, edge.digest)
                    tree = self._apply(session, Head(parent, None, _files_of(parent), 0))
                    return _descriptors(tree) == _descriptors(head.files)
        return False

    # ---------------------------------------------------------------- files
    def _apply(self, session: Session, head: Head) -> dict[str, File]:
        """The files after the operations. A large file needs its size: the client's, or that of a file to copy."""
        tree = dict(head.files)
        for operation in self.request.operations:
            path = operation.path
            if isinstance(operation, Delete):
                below = [key for key in tree if key == path or key.startswith(f"{path}/")]
                if not below:
                    raise NotFound(
                        "BLOB_UNKNOWN", f"branch '{self.branch}' of '{self.name}' has no file {path[:200]!r}"
                    )
                for key in below:
                    del tree[key]
                continue
            refusals.refuse_model_file(path)
            if isinstance(operation, AddFile):
                digest, git_id = operation.content.ids
                file = drafts.describe(path, digest, operation.content.size_bytes)
                tree[path] = File(file, "" if hub.is_large(file) else git_id)
                self._sources[path] = operation
            else:
                size_bytes = self._size_of(session, operation) if operation.size_bytes is None else operation.size_bytes
                tree[path] = File(drafts.describe(path, operation.digest, size_bytes))
                self._sources.pop(path, None)
            if len(tree) > FILES_LIMIT:
                raise Invalid(
                    "MANIFEST_INVALID", f"the commit has over {FILES_LIMIT} files, and no adapter has so many"
                )
        return tree

    def _size_of(self, session: Session, operation: AddLarge) -> int:
        """The size of a file that is copied by its digest alone, from a version of this adapter or an upload."""
        sizes = repositories.find_sizes(session, self.actor, self.name, operation.digest)
        upload = drafts.find_upload(session, self.actor, self.name)
        sizes += (
            [b.size_bytes for b in drafts.locate(session, [upload.id], [operation.digest]).values()] if upload else []
        )
        if not sizes:
            raise version_push.not_uploaded([drafts.describe(operation.path, operation.digest, 0)])
        return sizes[0]

    # ---------------------------------------------------------------- bytes
    def _stage(self, tree: Mapping[str, File]) -> None:
        """Write the bytes that the commit carries, under the rules of an upload."""
        contents = {
            tree[path].descriptor.digest: source.content for path, source in self._sources.items() if path in tree
        }
        sizes = {digest: content.size_bytes for digest, content in contents.items()}
        if not sizes:
            return
        with db.session(self.engine, write=False) as session:
            readable = version_push.find_readable(session, self.actor, self.name, sizes)
            sizes = {digest: size for digest, size in sizes.items() if digest not in readable}
            if not sizes:
                return
            db.begin_writing(session)
            upload = drafts.open_upload(session, self.actor, self.name, sizes, self.settings)
            drafts.hold_blobs(session, upload, sizes)
            upload_id = upload.id
        for digest, size_bytes in sizes.items():
            receive.receive(self.engine, self.blobs, upload_id, digest, contents[digest].chunks(), size_bytes)

    def _complete(self, tree: Mapping[str, File]) -> dict[Digest, PushBlobRow]:
        """The blobs of these files that an upload has sent. `Conflict` (UPLOAD_INCOMPLETE) unless all have arrived."""
        files = {file.descriptor.digest: file.descriptor for file in tree.values()}
        with db.session(self.engine, write=False) as session:
            readable = version_push.find_readable(
                session, self.actor, self.name, {d: f.size_bytes for d, f in files.items()}
            )
            upload = drafts.find_upload(session, self.actor, self.name)
            missing = files.keys() - readable
            located = drafts.locate(session, [upload.id], missing) if upload is not None else {}
        staged = {digest: blob for digest, blob in located.items() if blob.is_stored}
        absent = [file for digest, file in files.items() if digest in missing and digest not in staged]
        if absent:
            raise version_push.not_uploaded(absent)
        for digest, blob in staged.items():
            if blob.size_bytes != files[digest].size_bytes:
                raise _mismatch(files[digest], f"has {blob.size_bytes} bytes in its upload")
        return staged

    def _read(self, tree: Mapping[str, File], path: str, at: int, n: int) -> bytes:
        return self.blobs.read(key_of(tree[path].descriptor.digest), at, n)

    def _read_adapter(self, tree: Mapping[str, File]) -> BaseClaim | str:
        """What the configuration says of the base; a text if the files are not an adapter yet: what is missing."""
        if not any(path.endswith(WEIGHTS_ENDINGS) for path in tree):
            return "it has no weights, such as adapter_model.safetensors"
        files = [tree[path].descriptor for path in sorted(tree)]
        try:
            return read_any(files, lambda path, at, n: self._read(tree, path, at, n)).claim
        except Invalid as error:
            if error.findings and {finding.code for finding in error.findings} <= _INCOMPLETE:
                return f"it has no {' and no '.join(finding.location for finding in error.findings)}"
            raise

    # ---------------------------------------------------------------- draft
    def _write_draft(
        self, head: Head, tree: Mapping[str, File], staged: Mapping[Digest, PushBlobRow], *, missing: str
    ) -> CommitOutcome:
        described = self._with_git_ids(tree)
        sizes = {f.descriptor.digest: f.descriptor.size_bytes for f in described.values()}
        parent = head.version.digest if head.version is not None else ""
        draft = DraftCommit(self.branch, described, parent, self.request.message)
        with db.session(self.engine) as session:
            seconds = self.settings.draft_seconds
            upload = drafts.open_upload(session, self.actor, self.name, {}, self.settings, seconds=seconds)
            lost = staged.keys() - drafts.locate(session, [upload.id], staged).keys()
            if lost:  # another branch was deleted meanwhile, which alone had these bytes
                raise version_push.not_uploaded([f.descriptor for f in tree.values() if f.descriptor.digest in lost])
            taken_over = {digest: size for digest, size in sizes.items() if digest not in staged}
            drafts.hold_blobs(session, upload, taken_over, is_requested=False)
            readable_blobs.record_copies(session, self.actor, {self.name: self._find_copied(head, tree, staged)})
            row = drafts.write(session, self.actor, self.name, upload, draft, head.draft.revision if head.draft else "")
        return CommitOutcome(row.revision, missing=missing)

    def _with_git_ids(self, tree: Mapping[str, File]) -> dict[str, File]:
        """The files with the ids that the Hub API shows of them."""
        described: dict[str, File] = {}
        for path, file in tree.items():
            descriptor = file.descriptor
            if hub.is_large(descriptor):
                file = File(descriptor, hub.git_id(hub.pointer(descriptor)))
            elif not file.git_id:
                file = File(descriptor, hub.git_id(self._read(tree, path, 0, descriptor.size_bytes)))
            described[path] = file
        return described

    # ---------------------------------------------------------------- version
    def _push(
        self, head: Head, tree: Mapping[str, File], staged: Mapping[Digest, PushBlobRow], claim: BaseClaim
    ) -> CommitOutcome:
        """Push the files as a version, and end the draft of the branch in the same transaction."""
        card = tree.get(CARD)
        text = self._read(tree, CARD, 0, card.descriptor.size_bytes) if card is not None else b""
        alias = "" if self.branch == NEWEST else self.branch
        engines = engine_profiles.parse_setting(self.settings.engines)
        with db.session(self.engine, write=False) as session:
            base = choose_base(session, self.name.namespace, claim, text, head.version)
            files = [file.descriptor for file in tree.values()]
            manifest = Manifest.build(base, files, self._parents(head))
            push = VersionPush(manifest, staged, self._find_copied(head, tree, staged), self.request.message)
            push_id = version_push.plan_version(session, self.actor, self.name, push, self.settings)
            self._planned.append(push_id)
            result = version_push.commit_version(session, self.actor, push_id, alias, blobs=self.blobs, engines=engines)
            if result.alias_refused:
                raise _closed_branch(self.branch, result)
            moved = find_generation(session, self.name, self.branch) - head.generation
            expected = int(self.branch in result.version.aliases)  # `main` passes over what fails a check
            if result.created and moved != expected:  # its files are not those read at the start
                raise drafts.moved(self.name, self.branch)
            self._end_draft(session, head, manifest)
            failpoints.reach("hub.version.before_commit")
        return CommitOutcome(hub.commit_id(manifest.digest), result, push_id)

    def _find_copied(self, head: Head, tree: Mapping[str, File], staged: Mapping[Digest, PushBlobRow]) -> set[Digest]:
        """What was neither sent nor is in this commit, nor was on the branch before."""
        here = {*staged, *(file.descriptor.digest for file in head.files.values())}
        here |= {tree[path].descriptor.digest for path in self._sources if path in tree}
        return {file.descriptor.digest for file in tree.values()} - here

    def _parents(self, head: Head) -> list[Edge]:
        if head.version is None:
            return []
        name = f"{self.name}@{head.version.number}"
        return [Edge(relation=Relation.CONTINUED, digest=Digest(head.version.digest), name=name)]

    def _end_draft(self, session: Session, head: Head, manifest: Manifest) -> None:
        if head.draft is not None:
            drafts.end(session, [head.draft])
        upload = drafts.find_upload(session, self.actor, self.name)
        if upload is not None:
            drafts.release(session, upload.id, [f.digest for f in manifest.files])


def _check_message(message: str) -> None:
    """Raise `Invalid` (REQUEST_INVALID) for a message that no push may have."""
    try:
        check_message(message)
    except ValueError as e:
        raise Invalid("REQUEST_INVALID", f"message: {e}") from e


def _descriptors(tree: Mapping[str, File]) -> dict[str, Descriptor]:
    return {path: file.descriptor for path, file in tree.items()}


def _closed_branch(branch: str, result: PushResult) -> Refused:
    """The error for a branch whose gate the new version does not pass: a client takes a response of 200 for a move."""
    step = f"commit to main, then move the branch: adapter promote NAME@VERSION {branch}"
    if any(verdict.outcome is Outcome.FAIL for verdict in result.version.verdicts):
        step = "correct the adapter and commit again: what has failed a check passes no gate later"
    message = f"nothing was stored, because branch '{branch}' cannot move: {result.alias_refused}"
    return Refused("GATE_CLOSED", message, next_step=step)


def _mismatch(file: Descriptor, message: str) -> Invalid:
    text = f"{message}; the commit says {file.size_bytes} bytes and {file.digest}"
    return Invalid.from_finding("BLOB_MISMATCH", Finding("blob.size_mismatch", file.path, text))


# ------------------------------------------------------------------ head
def require_target(engine: Engine, actor: Actor, name: AdapterName) -> None:
    """Raise an error unless the actor may push to this repository, and it exists."""
    actor.require(Scope.PUSH, name)
    with db.session(engine, write=False) as session:
        revisions.require_repository(session, actor, name)


def find_head(engine: Engine, actor: Actor, name: AdapterName, branch: str) -> Head:
    """Where the branch is. `NotFound` if it does not exist, `Denied` for a branch that the actor may not move.

    `Conflict` (PARENT_MOVED) ends a draft that began from a version that is no longer the one at the branch.
    """
    actor.require(Scope.PUSH, name)
    branch = parse_branch(name, branch)
    if branch != NEWEST:
        actor.require(Scope.PROMOTE, name)
    with db.session(engine, write=False) as session:
        generation = find_generation(session, name, branch)  # first: whatever moves from now on is noticed
        parent = revisions.find_parent(session, name, branch)
        draft = next((d for d in drafts.list_drafts(session, actor, name) if d.branch == branch), None)
        files = drafts.read_files(session, draft) if draft is not None else {}
        if draft is None and not parent:
            _require_empty_branch(session, actor, name, branch)
        version = versions.find(session, actor, name, Digest(parent)) if parent else None
    if draft is not None and draft.parent != parent:
        with db.session(engine) as session:
            drafts.end(session, [draft])
        if files:
            raise drafts.moved(name, branch)
        draft = None
    return Head(version, draft, files if draft is not None else _files_of(version), generation)


def parse_branch(name: AdapterName, branch: str) -> str:
    """The alias that a branch is. `Invalid` for anything else."""
    selector = hub.revision(branch)
    if selector is None or not is_alias(selector):
        refusals.refuse_branch(name, branch)
    return str(selector)


def _require_empty_branch(session: Session, actor: Actor, name: AdapterName, branch: str) -> None:
    """Allow `main` of an adapter that has lost all its versions; refuse other branches and other names."""
    revisions.require_repository(session, actor, name)
    if branch != NEWEST or not repositories.has_adapter(session, name):
        raise NotFound("VERSION_UNKNOWN", f"'{name}' has no branch {branch!r}")


def _files_of(version: VersionRow | None) -> dict[str, File]:
    if version is None:
        return {}
    return {file.path: File(file) for file in Manifest.model_validate_json(version.manifest).files}


def find_generation(session: Session, name: AdapterName, alias: str) -> int:
    """How often an alias has moved, also before it was deleted; 0 if it never has."""
    newest = select(func.max(AliasMoveRow.generation)).join(AdapterRow).where(versions.has_name(name))
    return session.exec(newest.where(AliasMoveRow.alias == alias)).one() or 0
