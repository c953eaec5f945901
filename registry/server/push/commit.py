"""Receive and commit what plans requested. A commit is the only way to create a version.

- Pushes are committed in groups, with a few statements for all; one push is a group of one. An error of one push does
  not concern the others, except in an atomic commit.
- Bytes first, then one transaction, then the response: a version is visible completely or not at all.
- A commit holds no transaction while it reads, hashes and promotes bytes. Afterwards it checks that its push is still
  open, and looks for an equal version under a lock.
- Malformed files are rejected and nothing is stored. Incompatible ones are stored with a failing verdict `compat`.
"""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

from sqlalchemy import Engine, bindparam, case, func, update
from sqlalchemy.orm import defer
from sqlmodel import Session, col, select

from registry import names
from registry.api.transfer import BULK_BODY_BYTES, CommitItem, PushResult
from registry.bases import BaseSpec, Similarity
from registry.digest import Digest
from registry.errors import Conflict, Invalid, NotFound, Refused, RegistryError, TooLarge, Unavailable, from_problem
from registry.findings import Finding
from registry.names import AdapterName
from registry.roles import Scope
from registry.server import failpoints
from registry.server.access import namespaces
from registry.server.actors import Actor
from registry.server.catalog import base_rows, base_weights
from registry.server.database import db
from registry.server.database.expressions import any_of
from registry.server.database.models import AdapterRow, BlobRow, VersionRow
from registry.server.database.models.pushes import PushBlobRow, PushRow
from registry.server.promotion.group import results_of, run_readable, without_error
from registry.server.push import background, inspect, plan, rows
from registry.server.push.commit_member import Commit, MemberFailed
from registry.server.push.received import RECEIVED
from registry.server.storage import references
from registry.server.storage.blobs import (
    BlobStore,
    BlobWriter,
    DigestVerifier,
    Stat,
    digest_of,
    key_of,
    staging_key_of,
)
from registry.server.storage.states import BlobState, PushState, find_damaged
from registry.versions.manifest import Manifest

if TYPE_CHECKING:
    from registry.engines import EngineProfile

COMMIT_SECONDS = 3600
"""How long a push stays open, at least, once its commit has begun."""
MANIFESTS_LIMIT = BULK_BODY_BYTES
"""Characters of the manifests of one commit, whose response repeats them."""
REFUSAL_LIMIT = 2**16
"""Characters of the error that a refused push keeps; of a longer one, its first finding."""
INSPECTED_AT_ONCE = 4
_ANY_KEY = key_of(Digest.of(b""))
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class ExpectedBlob:
    """A blob that a push requested. `needed` is False once the version exists: its bytes may be discarded."""

    key: str
    size_bytes: int
    needed: bool


def find_upload(session: Session, token_id: str, push_id: str, digest: Digest) -> ExpectedBlob:
    """The key for the bytes of this blob. `NotFound` for another token's push and for a blob that was not requested."""
    row = session.exec(_UPLOAD, params={"id": push_id[:80], "digest": digest}).first()
    push, blob = row if row is not None else (None, None)
    return _expected_blob(_check_push(push, token_id, push_id), digest, blob)


def open_upload(engine: Engine, blobs: BlobStore, key: str, *, limit_bytes: int) -> BlobWriter:
    """Begin to write a blob that a push sends through this server. `key` is its staging key."""
    upload_key = blobs.upload_key_of(key)
    writer = blobs.open_writer(upload_key, limit_bytes=limit_bytes)
    if upload_key == key:  # a file of this machine: reading it again costs less than keeping its bytes
        return writer
    return RECEIVED.keeping(key, limit_bytes, _StoredBlobWriter(engine, writer, key))


def copy_upload(engine: Engine, blobs: BlobStore, source: str, key: str, size_bytes: int) -> None:
    """Store a blob that a push sends as a copy of `source`, where `put` has stored it. `key` is its staging key."""
    upload_key = blobs.upload_key_of(key)
    blobs.copy(source, upload_key, size_bytes)
    if upload_key != key:
        _record_stored(engine, key)


class _StoredBlobWriter:
    """Writes a blob under its final key and records that its push has sent it. Nothing is asked about other pushes."""

    def __init__(self, engine: Engine, writer: BlobWriter, staging_key: str) -> None:
        self._engine, self._staging_key = engine, staging_key
        self._writer = writer
        self.write, self.abort = writer.write, writer.abort

    def finish(self) -> Stat:
        stat = self._writer.finish()
        _record_stored(self._engine, self._staging_key)
        return stat


def _record_stored(engine: Engine, staging_key: str) -> None:
    """Record that a push has sent the blob of this staging key, whose bytes are under the final key."""
    failpoints.reach("upload.stored")
    with db.session(engine) as session:
        params = {"of_push": staging_key.split("/")[1], "of_digest": digest_of(staging_key)}
        session.connection().execute(_SET_STORED, params)


def _expected_blob(row: PushRow, digest: Digest, blob: PushBlobRow | None) -> ExpectedBlob:
    if blob is None or not blob.staging_key:
        raise NotFound("BLOB_UNKNOWN", f"push {row.id} did not request blob {digest}")
    return ExpectedBlob(blob.staging_key, blob.size_bytes, row.state == PushState.OPEN)


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
_SET_STORED = (
    update(PushBlobRow)
    .where(col(PushBlobRow.push_id) == bindparam("of_push"), col(PushBlobRow.digest) == bindparam("of_digest"))
    .values(is_stored=True)
)
_SET_REFUSAL = update(PushRow).where(col(PushRow.id) == bindparam("of_push")).values(refusal=bindparam("problem"))
_REPAIRING = (
    select(PushBlobRow.push_id)
    .join(BlobRow, col(PushBlobRow.digest) == col(BlobRow.digest))
    .where(any_of(col(PushBlobRow.push_id), parameter="ids"), col(PushBlobRow.staging_key) != "")
    .where(col(BlobRow.state) == BlobState.CORRUPT)
    .distinct()
)
_STAGED = select(PushBlobRow.push_id, PushBlobRow.staging_key, PushBlobRow.size_bytes).where(
    any_of(col(PushBlobRow.push_id), parameter="ids"), col(PushBlobRow.staging_key) != ""
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


def _check_push(row: PushRow | None, token_id: str, push_id: str) -> PushRow:
    late = row is not None and row.state == PushState.OPEN and row.expires_at <= db.now()
    if row is None or row.token_id != token_id or row.state == PushState.EXPIRED or late:
        raise references.unknown_push(push_id)
    return row


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
    run = partial(_commit, session, actor, atomic=atomic, blobs=blobs, engines=engines)
    return run_readable(
        items, lambda item: _begin(actor, item, *pushes.get(item.push_id, (None, ""))), run, atomic=atomic
    )


def _commit(
    session: Session, actor: Actor, commits: Sequence[Commit], *,
    atomic: bool, blobs: BlobStore, engines: Sequence[EngineProfile],
) -> list[PushResult | RegistryError]:  # fmt: skip
    _inspect(session, actor, _find_unfinished(session, commits), blobs)
    _end_refused(session, commits, blobs)
    while without_error(commits) and not (atomic and any(commit.error for commit in commits)):
        db.begin_writing(session)
        try:
            rows.write(session, actor, without_error(commits), engines=engines, atomic=atomic)
            break
        except MemberFailed:  # the others again, in another transaction
            session.rollback()
            _end_refused(session, commits, blobs)
    return results_of(commits, atomic=atomic)


def _end_refused(session: Session, commits: Sequence[Commit], blobs: BlobStore) -> None:
    """End the pushes of files that are refused, and delete what they staged: else both would count until they expire.

    The row keeps the error, for a client whose response was lost. A push stays open whose bytes can be sent again or
    whose request was wrong: repeating its commit may help.
    """
    refused = [commit for commit in commits if _is_refused(commit)]
    if not refused:
        return
    db.begin_writing(session)
    ended = references.end_pushes(session, [commit.push.id for commit in refused], state=PushState.EXPIRED)
    refusals = [{"of_push": c.push.id, "problem": _to_refusal(c.error)} for c in refused if c.push.id in ended]
    if refusals:
        session.connection().execute(_SET_REFUSAL, refusals)
    keys = [
        blob.staging_key
        for commit in refused
        for digest, blob in commit.requested.items()
        if commit.push.id in ended
        and blob.staging_key == staging_key_of(commit.push.id, digest)  # else an upload of a Hub client has it
    ]
    db.commit_early(session)
    with contextlib.suppress(Unavailable):  # `gc` deletes it, too
        _run(blobs.end_staging, keys, blobs)


def _to_refusal(error: RegistryError | None) -> str:
    problem = error.to_problem() if error is not None else {}
    text = json.dumps(problem)
    return text if len(text) <= REFUSAL_LIMIT else json.dumps({**problem, "findings": problem["findings"][:1]})


def _is_refused(commit: Commit) -> bool:
    error = commit.error
    is_invalid = isinstance(error, Invalid) and error.code not in ("REQUEST_INVALID", "BLOB_MISMATCH")
    is_too_large = isinstance(error, TooLarge) and error.code == "SIZE_INVALID" and commit.inspection is None
    return is_invalid or is_too_large or (isinstance(error, Refused) and error.code == "INCOMPATIBLE")


def _begin(actor: Actor, item: CommitItem, row: PushRow | None, manifest: str) -> Commit:
    if row is not None and row.token_id == actor.token_id and row.refusal:
        raise from_problem(json.loads(row.refusal))
    push = _check_push(row, actor.token_id, item.push_id)
    name = AdapterName(push.namespace, push.name)
    actor.require(Scope.PUSH, name)
    alias = str(names.alias(item.alias)) if item.alias else ""
    if alias:
        actor.require(Scope.PROMOTE, name)
    if not manifest:
        no_version = push.manifest_digest and rows.unknown_version(name, push.manifest_digest)
        raise no_version or references.unknown_push(push.id)
    return Commit(item, push, name, alias, Manifest.parse(manifest.encode()))


def _find_unfinished(session: Session, commits: Sequence[Commit]) -> list[Commit]:
    """Those commits whose bytes count. What an ended push has staged is never read."""
    existing = rows.find_existing(session, [(commit.name, commit.manifest) for commit in commits])
    repeated = [c.push.id for c in commits if c.push.state == PushState.OPEN and c.key in existing]
    repairing = set(session.exec(_REPAIRING, params={"ids": sorted(repeated)})) if repeated else set()
    return [
        commit
        for commit in commits
        if commit.push.state == PushState.OPEN and (commit.key not in existing or commit.push.id in repairing)
    ]


def _inspect(session: Session, actor: Actor, commits: Sequence[Commit], blobs: BlobStore) -> None:
    """Inspect the bytes of these pushes and move them to their final keys. Holds no transaction meanwhile."""
    if not commits:
        return
    by_push = plan.find_push_blobs(session, [commit.push.id for commit in commits])
    bases = base_rows.find_all(session, {commit.manifest.base.name for commit in commits})
    unmatched = {commit.name.namespace for commit in commits if commit.manifest.base.name not in bases}
    storing = namespaces.find_storing_unregistered(session, unmatched) if unmatched else set()
    subjects: dict[str, tuple[BaseSpec, list[Similarity]]] = {}
    for commit in commits:
        with commit.collect_error():
            commit.requested = {Digest(blob.digest): blob for blob in by_push[commit.push.id]}
            reference = commit.manifest.base
            commit.base = base = plan.find_base(
                bases, reference.name, reference, unregistered=commit.name.namespace in storing
            )
            if base.name not in subjects:
                subjects[base.name] = base_rows.load_spec(base), base_weights.find_relatives(session, base)
    _check_taken_over(session, actor, without_error(commits))
    commits = without_error(commits)
    damaged = _secure_blobs(session, commits)
    db.commit_early(session)

    shared = inspect.GroupReads()

    def inspect_one(commit: Commit) -> None:
        with commit.collect_error():
            small = _decode_small(commit)
            _inspect_and_promote(commit, small, *subjects[commit.base_row.name], damaged, blobs, shared)

    _run(inspect_one, commits, blobs)
    _store_small(without_error(commits), damaged, blobs)
    blobs.sync({digest for commit in without_error(commits) for digest in commit.promoted})


def _check_taken_over(session: Session, actor: Actor, commits: Sequence[Commit]) -> None:
    """Refuse pushes of bytes that were readable at the plan and are not any more: they have to be sent."""
    taken_over = {
        commit.push.id: {digest for digest, blob in commit.requested.items() if blob.is_taken_over}
        for commit in commits
    }
    digests = {digest for blobs in taken_over.values() for digest in blobs}
    readable = {digest for digest, _ in plan.find_readable_blobs(session, actor, digests)}
    for commit in commits:
        with commit.collect_error():
            inspect.check_none_missing(commit.manifest, taken_over[commit.push.id] - readable)


def _run(work: Callable[[Item], None], items: Sequence[Item], blobs: BlobStore) -> None:
    """Some at a time if each waits for another machine; bytes of this machine only use the processor."""
    if len(items) < 2 or blobs.local_path(_ANY_KEY) is not None:
        for item in items:
            work(item)
        return
    with ThreadPoolExecutor(INSPECTED_AT_ONCE, thread_name_prefix="inspect") as pool:
        for _ in pool.map(work, items):
            pass


def _decode_small(commit: Commit) -> dict[Digest, bytes]:
    """The bytes that the commit itself carries, verified under the rules of an upload."""
    data_of: dict[Digest, bytes] = {}
    for item in commit.small:
        expected = _expected_blob(commit.push, item.digest, commit.requested.get(item.digest))
        try:
            data = base64.b64decode(item.data, validate=True)
        except ValueError:
            raise Invalid("REQUEST_INVALID", f"small: the bytes of {item.digest} are not base64") from None
        if len(data) != expected.size_bytes:
            message = f"has {len(data)} bytes in the commit, and the plan requested {expected.size_bytes}"
            findings = [Finding("blob.size_mismatch", item.digest, message)]
            raise Invalid("BLOB_MISMATCH", f"blob {item.digest} {message}", findings=findings)
        verifier = DigestVerifier(expected.key, len(data))
        verifier.update(data)
        verifier.verify()
        if expected.needed:
            data_of[item.digest] = data
    return data_of


def _store_small(commits: Sequence[Commit], damaged: Set[Digest], blobs: BlobStore) -> None:
    """Write what these commits carry, each blob once: adapters of one training script have the same configuration."""
    commits_of: dict[Digest, list[Commit]] = {}
    for commit in commits:
        for digest in commit.carried:
            commits_of.setdefault(digest, []).append(commit)

    def store(digest: Digest) -> None:
        first, *others = commits_of[digest]
        with first.collect_error():
            key = blobs.upload_key_of(first.requested[digest].staging_key)
            blobs.put(key, [first.carried[digest]], expect=digest, limit_bytes=len(first.carried[digest]))
            blobs.promote(key, digest, replace=digest in damaged)
            failpoints.reach("push.after_promote")
        for other in others:
            other.error = other.error or first.error

    _run(store, [*commits_of], blobs)


def _inspect_and_promote(
    commit: Commit, small: Mapping[Digest, bytes], spec: BaseSpec, relatives: Sequence[Similarity],
    damaged: Set[Digest], blobs: BlobStore, shared: inspect.GroupReads,
) -> None:  # fmt: skip
    """Inspect the bytes and move them to their final keys; also sets which damaged blobs they replaced.

    If the bytes are gone, a racing commit of the same push may have finished: then its version counts, if there is one.
    """
    staged = [digest for digest, blob in commit.requested.items() if blob.staging_key]
    keys = {digest: plan.key_of_sent(blob) or key_of(digest) for digest, blob in commit.requested.items()}
    stored = {digest for digest in staged if keys[digest] == key_of(digest)} - damaged | small.keys()
    try:
        replaced = damaged & set(staged)
        with inspect.verified_blobs(blobs, keys, stored, commit.manifest, replaced, shared) as verified:
            failpoints.reach("push.hashed")
            keys = {digest: stat.key for digest, stat in verified.items()}
            data_of = {**_take_received(commit), **small}
            files = blobs, keys, commit.manifest
            inspection = inspect.inspect_files(*files, spec, relatives, small=data_of, shared=shared)
            failpoints.reach("push.before_promote")
            for digest in staged:
                if digest not in small:
                    blobs.promote(keys[digest], digest, replace=digest in damaged)
                    failpoints.reach("push.after_promote")
    except inspect.BlobMismatch as error:
        if error.key.startswith("staging/"):
            blobs.delete(error.key)  # otherwise nothing else could ever be uploaded there
        raise
    except (Conflict, NotFound) as error:
        if error.code not in ("UPLOAD_INCOMPLETE", "BLOB_UNKNOWN"):
            raise
        commit.error_without_version = error
    else:
        commit.inspection, commit.promoted, commit.carried = inspection, staged, small
        commit.repaired = replaced


def _take_received(commit: Commit) -> dict[Digest, bytes]:
    """The bytes that this push has sent to this process, as far as they are kept."""
    blobs = {digest: RECEIVED.take(blob.staging_key) for digest, blob in commit.requested.items() if blob.staging_key}
    return {digest: data for digest, data in blobs.items() if data is not None}


def _secure_blobs(session: Session, commits: Sequence[Commit]) -> set[Digest]:
    """Keep the pushes, and with them their blobs, open for as long as a commit takes; returns the damaged blobs.

    Nothing is written if they stay open longer anyway. A push that `gc` has ended gets `NotFound` (PUSH_UNKNOWN).
    """
    until = db.now() + timedelta(seconds=COMMIT_SECONDS)
    short = [commit for commit in commits if commit.push.expires_at <= until]
    if short:
        db.begin_writing(session)
        states = references.extend_pushes(session, [commit.push.id for commit in short], until=until)
        for commit in short:
            if commit.push.id not in states or states[commit.push.id] is PushState.EXPIRED:
                commit.error = references.unknown_push(commit.push.id)
        still_open = [commit for commit in short if states.get(commit.push.id) is PushState.OPEN]
        reserved = references.reserve_group(session, {d: n for commit in still_open for d, n in commit.sizes.items()})
        for commit in still_open:
            with commit.collect_error():
                references.check_not_deleting(reserved, commit.sizes)
    return find_damaged(session, {digest for commit in without_error(commits) for digest in commit.sizes})


def clean_up(engine: Engine, push_ids: Collection[str], *, blobs: BlobStore, any_size: bool = True) -> None:
    """Delete what committed pushes staged and run the background work. Optional: `gc` would do the same later.

    `any_size`: clients may have staged blobs of any size, as those of the Hub do.
    """
    with contextlib.suppress(Unavailable):
        requested: Sequence[tuple[str, str, int]] = ()
        only_large = not any_size and not blobs.is_staged(0)
        if blobs.has_conditional_links or only_large:
            with db.session(engine, write=False) as session:
                requested = session.exec(_STAGED, params={"ids": sorted(push_ids)}).all()
        if only_large:
            requested = [blob for blob in requested if blobs.is_staged(blob[2])]
            push_ids = {push_id for push_id, _, _ in requested}
        keys = {stat.key for push_id in push_ids for stat in blobs.list(f"staging/{push_id}/")}
        if blobs.has_conditional_links:
            keys.update(key for _, key, _ in requested)
        for key in sorted(keys):
            blobs.end_staging(key)
        background.run_pending(engine, blobs)
