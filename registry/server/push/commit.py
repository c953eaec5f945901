"""Receive and commit what plans requested. A commit is the only way to create a version.

- Pushes are committed in groups, with a few statements for all; one push is a group of one. An error of one push does
  not concern the others, except in an atomic commit.
- Bytes first, then one transaction, then the response: a version is visible completely or not at all.
- A commit holds no transaction while it reads and hashes bytes. Afterwards it checks that its push is still
  open, and looks for an equal version under a lock.
- Malformed files are rejected and nothing is stored. Incompatible ones are stored with a failing verdict `compat`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

from sqlalchemy import Engine, bindparam, case, func, or_, update
from sqlalchemy.orm import defer
from sqlmodel import Session, col, select

from registry.api.transfer import BULK_BODY_BYTES, CommitItem, PushResult
from registry.bases import BaseSpec, Similarity
from registry.digest import Digest
from registry.errors import Conflict, Invalid, NotFound, RegistryError, TooLarge, Unavailable
from registry.server import failpoints
from registry.server.access import namespaces
from registry.server.actors import Actor
from registry.server.catalog import base_rows, base_weights
from registry.server.database import db
from registry.server.database.expressions import any_of
from registry.server.database.models import AdapterRow, BaseRow, BlobRow, VersionRow
from registry.server.database.models.pushes import PushBlobRow, PushRow
from registry.server.outcomes import collect_outcomes, fail_incomplete, has_error, results_of
from registry.server.push import background, commit_decisions, inspect, plan, readable_blobs, receive, rows
from registry.server.push.commit_decisions import Commit, CommitFacts, CommitsFailed, InspectedCommit
from registry.server.storage import reclaim, references
from registry.server.storage.blobs import BlobStore, key_of, write_blob
from registry.server.storage.states import BlobState, PushState, find_damaged

if TYPE_CHECKING:
    from registry.engines import EngineProfile

COMMIT_SECONDS = 3600
"""How long a push stays open, at least, once its commit has begun."""
MANIFESTS_LIMIT = BULK_BODY_BYTES
"""Characters of the manifests of one commit, whose response repeats them."""
REFUSAL_LIMIT = 2**16
"""Characters of the error that a refused push keeps; of a longer one, its first finding."""
INSPECTED_AT_ONCE = 4
Item = TypeVar("Item")
Result = TypeVar("Result")


def find_upload(session: Session, token_id: str, push_id: str, digest: Digest) -> bool:
    """Whether the bytes of this blob are needed; not if its version exists by now: then they may be discarded.

    `NotFound` for another token's push and for a blob that was not requested.
    """
    row = session.exec(_UPLOAD, params={"id": push_id[:80], "digest": digest}).first()
    push, blob = row if row is not None else (None, None)
    push = commit_decisions.require_open(push, token_id, push_id)
    if blob is None or not blob.is_requested:
        raise NotFound("BLOB_UNKNOWN", f"push {push.id} did not request blob {digest}")
    return push.state == PushState.OPEN


# Built once: building a statement takes longer than running it.
_IS_COMMITTED = col(PushRow.state) == PushState.COMMITTED
_OF_NAME = (col(AdapterRow.namespace) == col(PushRow.namespace)) & (col(AdapterRow.name) == col(PushRow.name))
_MANIFEST = func.coalesce(func.nullif(PushRow.manifest, ""), VersionRow.manifest, "")
"""A committed push has none any more: its version has it."""
_PUSHES = (
    select(PushRow, func.length(_MANIFEST), case((bindparam("share") >= func.length(_MANIFEST), _MANIFEST)))
    .options(defer(cast(Any, PushRow.manifest)))
    .outerjoin(AdapterRow, _IS_COMMITTED & _OF_NAME)
    .outerjoin(
        VersionRow,
        (col(VersionRow.adapter_id) == col(AdapterRow.id)) & (col(VersionRow.digest) == col(PushRow.manifest_digest)),
    )
    .where(any_of(col(PushRow.id), parameter="ids"), col(PushRow.token_id) == bindparam("token"))
)
_MANIFESTS = _PUSHES.with_only_columns(col(PushRow.id), _MANIFEST)
_UPLOAD = (
    select(PushRow, PushBlobRow)
    .outerjoin(
        PushBlobRow, (col(PushBlobRow.push_id) == col(PushRow.id)) & (col(PushBlobRow.digest) == bindparam("digest"))
    )
    .options(defer(cast(Any, PushRow.manifest)))
    .where(col(PushRow.id) == bindparam("id"))
)
_UNUSED = (
    select(PushBlobRow)
    .join(PushRow, col(PushRow.id) == col(PushBlobRow.push_id))
    .where(any_of(col(PushBlobRow.push_id), parameter="ids"), col(PushBlobRow.is_requested))
    .where(or_(col(PushRow.state) == PushState.EXPIRED, col(PushBlobRow.is_stored).is_(False)))
    .where(col(PushRow.state) != PushState.OPEN)
)
_SET_REFUSAL = update(PushRow).where(col(PushRow.id) == bindparam("of_push")).values(refusal=bindparam("problem"))
_REPAIRING = (
    select(PushBlobRow.push_id)
    .join(BlobRow, col(PushBlobRow.digest) == col(BlobRow.digest))
    .where(any_of(col(PushBlobRow.push_id), parameter="ids"), col(PushBlobRow.is_requested))
    .where(col(BlobRow.state) == BlobState.CORRUPT)
    .distinct()
)


def _find_pushes(session: Session, token_id: str, push_ids: Collection[str]) -> dict[str, tuple[PushRow, str]]:
    """The pushes of this token with their manifests, which are empty if the version is gone.

    `TooLarge` for manifests over `MANIFESTS_LIMIT`. Large ones are read after the lengths of all.
    """
    params = {"ids": sorted(push_ids), "token": token_id, "share": MANIFESTS_LIMIT // len(push_ids)}
    rows = session.exec(_PUSHES, params=params).all()
    if (length := sum(length for _, length, _ in rows)) > MANIFESTS_LIMIT:
        message = f"items: their manifests have {length} characters, over the limit of {MANIFESTS_LIMIT}"
        raise TooLarge("SIZE_INVALID", message, next_step="commit fewer at once")
    large = {"ids": [row.id for row, _, manifest in rows if manifest is None], "token": token_id}
    manifests: dict[str, str] = dict(session.connection().execute(_MANIFESTS, large).all()) if large["ids"] else {}
    return {row.id: (row, manifests.get(row.id, "") if manifest is None else manifest) for row, _, manifest in rows}


def commit_pushes(
    session: Session, actor: Actor, items: Sequence[CommitItem], *,
    atomic: bool = False, blobs: BlobStore, engines: Sequence[EngineProfile] = (),
) -> list[PushResult | RegistryError]:  # fmt: skip
    """The version of each push, new or existing, with its verdicts, or why there is none, in the same order.

    `atomic`: an error of one, or a refused alias, lets all fail, and none of these versions is created. `session` must
    have begun by reading; it writes from the last check on. `Invalid` (REQUEST_INVALID) for a push that is named twice,
    `TooLarge` for manifests over `MANIFESTS_LIMIT`, as one plan cannot have.
    """
    push_ids = {item.push_id for item in items}
    if len(push_ids) < len(items):
        raise Invalid("REQUEST_INVALID", "items: a push is named twice")
    pushes = _find_pushes(session, actor.token_id, push_ids)
    requested = collect_outcomes(
        items, lambda item: commit_decisions.read(actor, item, *pushes.get(item.push_id, (None, "")))
    )
    if atomic and has_error(requested):
        return [*fail_incomplete(requested)]
    facts = _load_facts(session, actor, results_of(requested))
    inspected = dict(zip(facts, _inspect(session, [*facts.values()], blobs), strict=True))
    _end_refused(session, inspected)
    pending: list[InspectedCommit | RegistryError] = [
        commit if isinstance(commit, RegistryError) else inspected.get(commit.push.id) or InspectedCommit(commit)
        for commit in requested
    ]
    while results_of(pending) and not (atomic and has_error(pending)):
        db.begin_writing(session)
        try:
            versions = rows.write(session, actor, results_of(pending), engines=engines, atomic=atomic)
            return [each if isinstance(each, RegistryError) else versions[each.push_id] for each in pending]
        except CommitsFailed as failed:  # the others again, in another transaction
            session.rollback()
            errors = failed.errors
            _end_refused(session, errors)
            pending = [
                commit if isinstance(commit, RegistryError) else errors.get(commit.push_id) or commit
                for commit in pending
            ]
    return [*fail_incomplete(pending)]


# ------------------------------------------------------------------ facts
def _load_facts(session: Session, actor: Actor, commits: Sequence[Commit]) -> dict[str, CommitFacts]:
    """Push → the facts, of those pushes whose bytes count. What was sent for an ended push is never read."""
    existing = rows.find_existing(session, [(commit.name, commit.manifest) for commit in commits])
    repeated = [c.push.id for c in commits if c.push.state == PushState.OPEN and c.key in existing]
    repairing = set(session.exec(_REPAIRING, params={"ids": sorted(repeated)})) if repeated else set()
    commits = [
        commit
        for commit in commits
        if commit.push.state == PushState.OPEN and (commit.key not in existing or commit.push.id in repairing)
    ]
    if not commits:
        return {}
    blobs_of = plan.find_push_blobs(session, [commit.push.id for commit in commits])
    bases = base_rows.find_all(session, {commit.manifest.base.name for commit in commits})
    unmatched = {commit.name.namespace for commit in commits if commit.manifest.base.name not in bases}
    storing = namespaces.find_with_rule(session, "unregistered_bases", unmatched) if unmatched else set()
    taken_over = {Digest(blob.digest) for of_push in blobs_of.values() for blob in of_push if blob.is_taken_over}
    readable = {Digest(digest) for digest, _ in readable_blobs.find(session, actor, taken_over)}
    return {
        commit.push.id: CommitFacts(
            commit, {Digest(blob.digest): blob for blob in blobs_of[commit.push.id]}, bases,
            commit.name.namespace in storing, readable,
        )
        for commit in commits
    }  # fmt: skip


@dataclass(frozen=True)
class _Accepted:
    """A push whose bytes may be inspected, and what they are compared with."""

    commit: Commit
    blobs: Mapping[Digest, PushBlobRow]
    base: BaseRow
    spec: BaseSpec
    relatives: Sequence[Similarity]


def _keep_open(session: Session, commits: Sequence[_Accepted | RegistryError]) -> list[_Accepted | RegistryError]:
    """Keep the pushes, and with them their blobs, open for as long as a commit takes.

    Nothing is written if they stay open longer anyway. A push that `gc` has ended gets `NotFound` (PUSH_UNKNOWN).
    """
    until = db.now() + timedelta(seconds=COMMIT_SECONDS)
    short = {c.commit.push.id: c.commit for c in results_of(commits) if c.commit.push.expires_at <= until}
    if not short:
        return [*commits]
    db.begin_writing(session)
    states = references.extend_pushes(session, short, until=until)
    still_open = [commit for push_id, commit in short.items() if states.get(push_id) is PushState.OPEN]
    reserved = references.reserve_group(session, {d: n for commit in still_open for d, n in commit.sizes.items()})

    def require_open(accepted: _Accepted) -> _Accepted:
        push_id = accepted.commit.push.id
        state = states.get(push_id, PushState.EXPIRED)
        if push_id in short and state is PushState.EXPIRED:
            raise references.unknown_push(push_id)
        if push_id in short and state is PushState.OPEN:
            references.check_not_deleting(reserved, accepted.commit.sizes)
        return accepted

    return collect_outcomes(commits, require_open)


# ------------------------------------------------------------------ bytes
def _inspect(session: Session, facts: Sequence[CommitFacts], blobs: BlobStore) -> list[InspectedCommit | RegistryError]:
    """Inspect what pushes have sent, without a transaction."""
    if not facts:
        return []
    subjects: dict[str, tuple[BaseSpec, list[Similarity]]] = {}

    def accept(of_push: CommitFacts) -> _Accepted:
        base = commit_decisions.accept(of_push)
        if base.name not in subjects:
            subjects[base.name] = base_rows.load_spec(base), base_weights.find_relatives(session, base)
        return _Accepted(of_push.commit, of_push.blobs, base, *subjects[base.name])

    accepted = _keep_open(session, collect_outcomes(facts, accept))
    damaged = find_damaged(session, {digest for each in results_of(accepted) for digest in each.commit.sizes})
    db.commit_early(session)
    shared = inspect.GroupReads()
    arrived = _collect_arrived(session, accepted, blobs)
    return _collect_at_once(arrived, lambda each: _inspect_one(each, damaged, blobs, shared), blobs)


def _collect_arrived(
    session: Session, commits: Sequence[_Accepted | RegistryError], blobs: BlobStore
) -> list[_Accepted | RegistryError]:
    """Make final what clients have written to the store for these pushes."""
    collected: list[PushBlobRow] = []

    def collect(accepted: _Accepted) -> _Accepted:
        collected.extend(receive.collect(blobs, [blob for blob in accepted.blobs.values() if blob.is_awaited]))
        return accepted

    outcomes = _collect_at_once(commits, collect, blobs)
    receive.record_stored(session, collected)
    receive.discard_sent(blobs, collected)
    return outcomes


def _collect_at_once(
    items: Sequence[Item | RegistryError], act: Callable[[Item], Result], blobs: BlobStore
) -> list[Result | RegistryError]:
    """`collect_outcomes`, some at a time if each waits for another machine: here it only uses the processor."""
    if len(items) < 2 or not blobs.is_remote:
        return collect_outcomes(items, act)
    with ThreadPoolExecutor(INSPECTED_AT_ONCE, thread_name_prefix="inspect") as pool:
        return [
            outcome for outcomes in pool.map(lambda item: collect_outcomes([item], act), items) for outcome in outcomes
        ]


def _inspect_one(
    accepted: _Accepted, damaged: Set[Digest], blobs: BlobStore, shared: inspect.GroupReads
) -> InspectedCommit:
    """Inspect the bytes of a push; also says which damaged blobs it has replaced.

    If bytes are missing, a racing commit of the same push may have finished: then its version counts, if there is one.
    """
    commit = accepted.commit
    stored = {digest for digest, blob in accepted.blobs.items() if blob.is_stored}
    taken_over = {digest for digest, blob in accepted.blobs.items() if blob.is_taken_over}
    try:
        inspect.check_blobs(blobs, commit.manifest, stored, taken_over, damaged, shared)
        failpoints.reach("push.hashed")
        inspection = inspect.inspect_files(blobs, commit.manifest, accepted.spec, accepted.relatives, shared=shared)
    except (Conflict, NotFound) as error:
        if error.code not in ("UPLOAD_INCOMPLETE", "BLOB_UNKNOWN"):
            raise
        return InspectedCommit(commit, accepted.base, error_without_version=error)
    of_version, manifest = commit.manifest.digest, commit.manifest.to_bytes()
    write_blob(blobs, key_of(of_version), [manifest], limit_bytes=len(manifest))
    return InspectedCommit(commit, accepted.base, inspection, damaged & {*stored, of_version})


# ------------------------------------------------------------------ refused and committed pushes
def _end_refused(session: Session, outcomes: Mapping[str, object]) -> None:
    """End the pushes of files that are refused: else their bytes would count until they expire. See `clean_up`.

    The row keeps the error, for a client whose response was lost.
    """
    refused = {
        push_id: outcome
        for push_id, outcome in outcomes.items()
        if isinstance(outcome, RegistryError) and commit_decisions.ends_push(outcome)
    }
    if not refused:
        return
    db.begin_writing(session)
    ended = references.end_pushes(session, refused, state=PushState.EXPIRED)
    refusals = [{"of_push": push_id, "problem": _to_refusal(refused[push_id])} for push_id in sorted(ended)]
    if refusals:
        session.connection().execute(_SET_REFUSAL, refusals)
    db.commit_early(session)


def _to_refusal(error: RegistryError) -> str:
    problem = error.to_problem()
    text = json.dumps(problem)
    return text if len(text) <= REFUSAL_LIMIT else json.dumps({**problem, "findings": problem["findings"][:1]})


def clean_up(engine: Engine, push_ids: Collection[str], *, blobs: BlobStore, refused: Collection[str] = ()) -> None:
    """Delete what ended pushes have sent in vain, and run the background work. Optional: `gc` would do it later.

    Of a committed push that is only what clients may still send to a store on another machine.
    """
    ended = {*refused, *(push_ids if blobs.is_remote else ())}
    with contextlib.suppress(Unavailable):
        if ended:
            _delete_unused(engine, ended, blobs)
        background.run_pending(engine, blobs)


def _delete_unused(engine: Engine, push_ids: Collection[str], blobs: BlobStore) -> None:
    with db.session(engine, write=False) as session:
        unused = session.exec(_UNUSED, params={"ids": sorted(push_ids)}).all()
        of_pushes = select(PushRow.manifest_digest).where(any_of(col(PushRow.id), sorted(push_ids)))
        manifests = {Digest(digest) for digest in session.exec(of_pushes) if digest}
    receive.discard_sent(blobs, [blob for blob in unused if blob.is_awaited])
    reclaim.delete_unneeded(engine, blobs, manifests | {Digest(blob.digest) for blob in unused if blob.is_stored})
