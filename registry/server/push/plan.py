"""Plan pushes: which blobs they still have to send, and where to.

- A plan requests every blob that is in no version which the actor may read, even if another tenant has it. So neither
  a plan nor its timing nor an error reveals what is in other namespaces.
- Every blob of an open push has a row and a reference before its bytes are sent, so `gc` never deletes it too early.
- Small files came whole with the excerpts: they are stored here, and the client sends only large ones.
- Pushes are planned in groups, with a few statements for all; one push is a group of one.
- A damaged blob is requested even from those who have it: that repairs it.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta

from sqlalchemy import bindparam
from sqlmodel import Session, col, select

from registry.adapters.peft.config import BaseClaim
from registry.api.transfer import BulkPushRequest, ExcerptKey, PushItem, PushPlan, Upload, UploadPart
from registry.bases import BaseSpec, Similarity
from registry.digest import Digest
from registry.errors import Invalid, RegistryError
from registry.findings import Finding
from registry.names import AdapterName
from registry.roles import Scope
from registry.server import failpoints
from registry.server.access import namespaces, quotas
from registry.server.actors import Actor
from registry.server.catalog import base_rows, base_weights
from registry.server.database import db, models
from registry.server.database.expressions import any_of
from registry.server.database.models.pushes import PushBlobRow, PushRow
from registry.server.outcomes import collect_outcomes, only, results_of
from registry.server.push import base_choice, inspect, readable_blobs, receive, rows
from registry.server.push.inspect import Excerpts
from registry.server.settings import Settings
from registry.server.storage import references
from registry.server.storage.blobs import BlobStore, Link, staging_key_of
from registry.server.storage.states import PushState, find_damaged
from registry.versions.manifest import Manifest, ManifestDraft, check_size

LOOKED_UP_AT_ONCE = 16


@dataclass(frozen=True)
class _Requested:
    """An item of the request, and what its excerpts say of themselves."""

    name: AdapterName
    item: PushItem
    excerpts: Excerpts
    contents: inspect.Contents | None
    """What configuration and header say, if the plan has both."""
    sizes: Mapping[Digest, int]

    @property
    def base_name(self) -> str:
        """The base that is named: in the manifest, else beside it; empty for none."""
        reference = self.item.manifest.base
        return reference.name if reference is not None else self.item.base

    @property
    def claim(self) -> BaseClaim:
        """The base that the configuration names."""
        return self.contents.adapter.claim if self.contents is not None else BaseClaim()


@dataclass(frozen=True)
class _Draft:
    """A push that can be planned."""

    requested: _Requested
    base: models.BaseRow
    manifest: Manifest

    @property
    def name(self) -> AdapterName:
        """The adapter."""
        return self.requested.name

    @property
    def key(self) -> tuple[str, str]:
        """The version that it would be."""
        return str(self.name), self.manifest.digest


@dataclass(frozen=True)
class _OpenPush:
    """A push that is open now, with the digests of those blobs that a client has written to the store already."""

    draft: _Draft
    row: PushRow
    blobs: Sequence[PushBlobRow]
    arrived: Set[str] = frozenset()


_Evaluated = dict[frozenset[ExcerptKey], RegistryError | inspect.Contents | None]


def plan_pushes(
    session: Session, actor: Actor, request: BulkPushRequest, *, blobs: BlobStore, settings: Settings
) -> list[PushPlan | RegistryError]:
    """What is missing for each of these versions and where to send it, or why it cannot be pushed, in the same order.

    Checks everything that can be checked without the bytes. An open push of the same token and manifest is resumed, so
    that nothing is sent twice. `session` must have begun by reading; it commits.
    """
    evaluated: _Evaluated = {}
    requested = collect_outcomes(request.items, lambda item: _read(actor, item, request.excerpts, evaluated))
    drafts = _choose_bases(session, requested)
    misfits = _find_misfits(session, results_of(drafts), everywhere=request.dry_run)
    drafts = _refuse_incompatible(session, drafts, misfits)
    unique: dict[tuple[str, str], _Draft] = {}
    for draft in results_of(drafts):
        unique.setdefault(draft.key, draft)
    if request.dry_run:
        return collect_outcomes(drafts, lambda draft: _plan_nothing(draft, misfits.get(draft.key, ())))
    opened = _open(session, actor, [*unique.values()], blobs, settings)
    plans = collect_outcomes(opened, lambda push: _plan(push, actor, blobs, settings))
    plan_of = dict(zip(unique, plans, strict=True))
    return [draft if isinstance(draft, RegistryError) else plan_of[draft.key] for draft in drafts]


def _open(
    session: Session, actor: Actor, drafts: Sequence[_Draft], blobs: BlobStore, settings: Settings
) -> list[_OpenPush | RegistryError]:
    """Resume open pushes of these versions, and create the others."""
    open_pushes = _find_open_pushes(session, actor, drafts, settings)
    readable = readable_blobs.find(session, actor, {digest for draft in drafts for digest in draft.requested.sizes})
    resumed = _resume(session, [draft for draft in drafts if draft.key in open_pushes], open_pushes, readable)
    resumed_keys = {push.draft.key for push in resumed}
    new = [draft for draft in drafts if draft.key not in resumed_keys]
    created = _create(session, actor, new, readable, settings)
    db.commit_early(session)
    _store_small(session, [*resumed, *results_of(created)], blobs)
    outcome_of = dict(zip([push.draft.key for push in resumed], _find_arrived(resumed, blobs), strict=True))
    outcome_of |= dict(zip([draft.key for draft in new], created, strict=True))
    return [outcome_of[draft.key] for draft in drafts]


# ------------------------------------------------------------------ what can be checked without the bytes
def _read(actor: Actor, item: PushItem, data: Sequence[bytes], evaluated: _Evaluated) -> _Requested:
    """The push of this item, with what its excerpts say of themselves. `evaluated`: of the items before."""
    name = AdapterName.parse(item.name)
    actor.require(Scope.PUSH, name)
    sizes, excerpts = blob_sizes(item.manifest), Excerpts.of(item, data)
    key = item.excerpt_keys
    if key not in evaluated:
        [evaluated[key]] = collect_outcomes([item], lambda item: _evaluate_alone(item, excerpts))
    return _Requested(name, item, excerpts, only([evaluated[key]]), sizes)


def _evaluate_alone(item: PushItem, excerpts: Excerpts) -> inspect.Contents | None:
    """What the excerpts of an item say, whatever its base. Raises if a file is malformed or unsafe."""
    inspect.check_beside(excerpts.whole, excerpts.read)
    return inspect.read_excerpts(item.manifest, excerpts)


def _choose_bases(session: Session, requested: Sequence[_Requested | RegistryError]) -> list[_Draft | RegistryError]:
    """The base of each push: the one of its manifest, else the named one, else the configured one."""
    unnamed = [push for push in results_of(requested) if not push.base_name]
    aliases = base_rows.read_aliases(session) if unnamed else {}
    storing = _find_storing(session, [push for push in unnamed if push.claim.names_unregistered(aliases)])

    def name_base(push: _Requested) -> tuple[_Requested, str]:
        if push.base_name:
            return push, push.base_name
        is_stored = push.name.namespace in storing and push.claim.names_unregistered(aliases)
        return push, push.claim.name if is_stored else push.claim.choose(aliases)

    pairs = collect_outcomes(requested, name_base)
    bases = base_rows.find_all(session, {name for _, name in results_of(pairs)})
    storing |= _find_storing(session, [push for push, name in results_of(pairs) if name not in bases])

    def find_base(pair: tuple[_Requested, str]) -> _Draft:
        push, name = pair
        draft = push.item.manifest
        base = base_choice.find_base(bases, name, draft.base, unregistered=push.name.namespace in storing)
        manifest = draft.with_base(base_rows.reference(base))
        check_size(manifest)  # a group may have more bytes than one manifest
        return _Draft(push, base, manifest)

    return collect_outcomes(pairs, find_base)


def _find_storing(session: Session, pushes: Sequence[_Requested]) -> set[str]:
    """The namespaces of these pushes that store adapters whose base is not registered."""
    names = {push.name.namespace for push in pushes}
    return namespaces.find_with_rule(session, "unregistered_bases", names) if names else set()


def _find_misfits(
    session: Session, drafts: Sequence[_Draft], *, everywhere: bool
) -> dict[tuple[str, str], list[Finding]]:  # fmt: skip
    """The errors of those that do not fit their base, in strict namespaces or everywhere."""
    of = {draft.name.namespace for draft in drafts}
    evaluated = of if everywhere else namespaces.find_with_rule(session, "strict", of)
    subjects: dict[str, tuple[BaseSpec, list[Similarity]]] = {}
    misfits: dict[tuple[str, str], list[Finding]] = {}
    for draft in drafts:
        contents = draft.requested.contents
        if contents is None or draft.name.namespace not in evaluated:
            continue
        base = draft.base
        if base.name not in subjects:
            subjects[base.name] = base_rows.load_spec(base), base_weights.find_relatives(session, base)
        findings = inspect.evaluate_excerpts(draft.manifest, contents, draft.requested.excerpts, *subjects[base.name])
        if errors := [finding for finding in findings if finding.severity == "error"]:
            misfits[draft.key] = errors
    return misfits


def _refuse_incompatible(
    session: Session, drafts: Sequence[_Draft | RegistryError], misfits: Mapping[tuple[str, str], list[Finding]]
) -> list[_Draft | RegistryError]:
    """Refuse pushes that do not fit their base, in strict namespaces. A version that exists may be pushed again."""
    unfit = [draft for draft in results_of(drafts) if draft.key in misfits]
    strict = namespaces.find_with_rule(session, "strict", {draft.name.namespace for draft in unfit}) if unfit else set()
    refusals = {
        draft.key: inspect.refusal_of(draft.name, draft.base.name, misfits[draft.key])
        for draft in unfit
        if draft.name.namespace in strict
    }
    refused = [(draft.name, draft.manifest) for draft in results_of(drafts) if draft.key in refusals]
    existing = rows.find_existing(session, refused)

    def require_fit(draft: _Draft) -> _Draft:
        refusal = refusals.get(draft.key)
        if refusal is not None and draft.key not in existing:
            raise refusal
        return draft

    return collect_outcomes(drafts, require_fit)


def blob_sizes(manifest: ManifestDraft) -> dict[Digest, int]:
    """The size of each blob of a manifest. `Invalid` if the manifest gives one digest two sizes."""
    sizes: dict[Digest, int] = {}
    for file in manifest.files:
        if sizes.setdefault(file.digest, file.size_bytes) != file.size_bytes:
            message = f"has the digest of another file and {file.size_bytes} bytes instead of {sizes[file.digest]}"
            findings = [Finding("manifest.sizes_differ", file.path, message)]
            raise Invalid("MANIFEST_INVALID", f"{file.path} {message}", findings=findings)
    return sizes


def stored_sizes(manifest: Manifest) -> dict[Digest, int]:
    """The size of each blob of a version: of its files, and of the manifest itself, which the commit writes."""
    return {**blob_sizes(manifest), manifest.digest: len(manifest.to_bytes())}


# Built once, because every push executes them.
_OPEN_PUSHES = (
    select(PushRow)
    .where(
        col(PushRow.token_id) == bindparam("token_id"),
        any_of(col(PushRow.manifest_digest), parameter="digests"),
        col(PushRow.state) == PushState.OPEN,
        col(PushRow.expires_at) > bindparam("soonest"),
    )
    .order_by(col(PushRow.created_at).desc())
)
_BLOBS = select(PushBlobRow).where(any_of(col(PushBlobRow.push_id), parameter="ids"))


def _find_open_pushes(
    session: Session, actor: Actor, drafts: Sequence[_Draft], settings: Settings
) -> dict[tuple[str, str], PushRow]:
    """Name and digest → the oldest open push of the same token, if at least half of its time is left."""
    soonest = db.now() + timedelta(seconds=settings.push_hold_seconds / 2)
    params = {"token_id": actor.token_id, "digests": sorted({draft.manifest.digest for draft in drafts})}
    rows = session.exec(_OPEN_PUSHES, params={**params, "soonest": soonest}) if drafts else ()
    return {(f"{row.namespace}/{row.name}", row.manifest_digest): row for row in rows}


def _resume(
    session: Session, drafts: Sequence[_Draft], open_pushes: Mapping[tuple[str, str], PushRow],
    readable: Mapping[tuple[str, int], int],
) -> list[_OpenPush]:  # fmt: skip
    """Load the blobs of open pushes and return those pushes that go on.

    One whose blobs were damaged or are not readable any more since it was planned begins anew: the links of the
    old one may have written already.
    """
    by_push = find_push_blobs(session, [open_pushes[draft.key].id for draft in drafts])
    pushes = [_OpenPush(d, open_pushes[d.key], by_push[open_pushes[d.key].id]) for d in drafts]
    stored = {Digest(blob.digest) for push in pushes for blob in push.blobs if blob.is_stored}
    damaged = find_damaged(session, stored) if stored else set()

    def is_lost(blob: PushBlobRow) -> bool:
        return blob.digest in damaged or (blob.is_taken_over and (blob.digest, blob.size_bytes) not in readable)

    return [push for push in pushes if not any(map(is_lost, push.blobs))]


def _create(
    session: Session,
    actor: Actor,
    drafts: Sequence[_Draft],
    readable: Mapping[tuple[str, int], int],
    settings: Settings,
) -> list[_OpenPush | RegistryError]:
    """Create the rows of new pushes, those of their blobs first."""
    if not drafts:
        return []
    pushes = [_build_push(actor, draft, readable, settings) for draft in drafts]
    failpoints.reach("push.plan.before_rows")
    db.begin_writing(session)
    staged_bytes = [sum(blob.size_bytes for blob in push.blobs if blob.is_requested) for push in pushes]
    checked = [quotas.NewPush(d.name, d.manifest, size) for d, size in zip(drafts, staged_bytes, strict=True)]
    errors = quotas.check_before_upload(session, actor, checked)
    allowed = [errors.get(position) or push for position, push in enumerate(pushes)]
    needed = {push.row.id: stored_sizes(push.draft.manifest) for push in results_of(allowed)}
    states = references.reserve_group(session, {d: n for sizes in needed.values() for d, n in sizes.items()})

    def require_kept(push: _OpenPush) -> _OpenPush:
        references.check_not_deleting(states, needed[push.row.id])
        return push

    created = collect_outcomes(allowed, require_kept)
    db.bulk_insert(session, [push.row for push in results_of(created)])
    db.bulk_insert(session, [blob for push in results_of(created) for blob in push.blobs])
    readable_blobs.record_copies(session, actor, _find_copied(results_of(created)))
    failpoints.reach("push.plan.after_rows")
    return created


def _build_push(actor: Actor, draft: _Draft, readable: Mapping[tuple[str, int], int], settings: Settings) -> _OpenPush:
    row = new_row(actor, draft.name, draft.manifest, draft.requested.item.message, settings)
    blobs = [
        db.new_row(
            PushBlobRow,
            push_id=row.id, digest=digest, size_bytes=size,
            is_requested=(digest, size) not in readable,
        )
        for digest, size in draft.requested.sizes.items()
    ]  # fmt: skip
    return _OpenPush(draft, row, blobs)


def _find_copied(pushes: Sequence[_OpenPush]) -> dict[AdapterName, set[Digest]]:
    """Adapter → the blobs that a version has and whose bytes the client has not shown to have, too."""
    copied: dict[AdapterName, set[Digest]] = {}
    for push in pushes:
        whole = push.draft.requested.excerpts.find_whole(push.draft.manifest)
        taken_over = {Digest(blob.digest) for blob in push.blobs if blob.is_taken_over}
        unshown = {digest for digest in taken_over if digest not in whole or Digest.of(whole[digest]) != digest}
        copied.setdefault(push.draft.name, set()).update(unshown)
    return copied


def find_push_blobs(session: Session, push_ids: Iterable[str]) -> dict[str, list[PushBlobRow]]:
    """Push → its blobs. Every id is a key."""
    blobs: dict[str, list[PushBlobRow]] = {push_id: [] for push_id in push_ids}
    for blob in session.exec(_BLOBS, params={"ids": sorted(blobs)}) if blobs else ():
        blobs[blob.push_id].append(blob)
    return blobs


def new_row(actor: Actor, name: AdapterName, manifest: Manifest, message: str, settings: Settings) -> PushRow:
    """The row of a push that begins now."""
    created_at = db.now()
    return db.new_row(
        PushRow,
        id="psh_" + secrets.token_hex(12), namespace=name.namespace, name=name.name, state=PushState.OPEN,
        manifest=manifest.to_bytes().decode(), manifest_digest=manifest.digest,
        message=message, created_at=created_at, created_by=actor.identity, token_id=actor.token_id,
        expires_at=created_at + timedelta(seconds=settings.push_hold_seconds),
    )  # fmt: skip


def _store_small(session: Session, pushes: Sequence[_OpenPush], blobs: BlobStore) -> None:
    """Store the files that came whole with the plan, each once. One that is not what its digest says is requested."""
    whole: dict[Digest, bytes] = {}
    for push in pushes:
        whole |= push.draft.requested.excerpts.find_whole(push.draft.manifest)
    awaited = [blob for push in pushes for blob in push.blobs if blob.is_awaited and blob.digest in whole]
    right = {d: whole[d] for d in {Digest(blob.digest) for blob in awaited} if Digest.of(whole[d]) == d}
    receive.write_all(blobs, right)
    receive.record_stored(session, [blob for blob in awaited if blob.digest in right])


def _find_arrived(pushes: Sequence[_OpenPush], blobs: BlobStore) -> list[_OpenPush | RegistryError]:
    """Find out which blobs of resumed pushes clients have written to a store on another machine, some at a time."""
    awaited = [blob for push in pushes for blob in push.blobs if blob.is_awaited]
    if not awaited or not blobs.is_remote:
        return [*pushes]

    def look_up(blob: PushBlobRow) -> bool | RegistryError:
        key = staging_key_of(blob.push_id, Digest(blob.digest))
        return collect_outcomes([key], lambda key: blobs.stat(key) is not None)[0]

    with ThreadPoolExecutor(LOOKED_UP_AT_ONCE, thread_name_prefix="plan") as pool:
        outcomes = [*pool.map(look_up, awaited)]
    has_arrived = {(b.push_id, b.digest): outcome for b, outcome in zip(awaited, outcomes, strict=True)}

    def add_arrived(push: _OpenPush) -> _OpenPush:
        keys = [(blob.push_id, blob.digest) for blob in push.blobs if blob.is_awaited]
        return replace(push, arrived={digest for push_id, digest in keys if only([has_arrived[push_id, digest]])})

    return collect_outcomes(pushes, add_arrived)


def _plan(push: _OpenPush, actor: Actor, blobs: BlobStore, settings: Settings) -> PushPlan:
    """The response, without the blobs whose bytes are there already."""
    missing = [blob for blob in push.blobs if blob.is_awaited and blob.digest not in push.arrived]
    uploads = [upload for blob in missing if (upload := _upload(blob, actor, blobs, settings)) is not None]
    manifest, expires_at = push.draft.manifest, push.row.expires_at
    return PushPlan(
        push_id=push.row.id, base=manifest.base, digest=manifest.digest, uploads=uploads, expires_at=expires_at
    )


def _plan_nothing(draft: _Draft, findings: Sequence[Finding]) -> PushPlan:
    """The response to a dry run."""
    manifest, now = draft.manifest, db.now()
    return PushPlan(
        push_id="", base=manifest.base, digest=manifest.digest, uploads=[], expires_at=now, findings=[*findings]
    )


def _upload(blob: PushBlobRow, actor: Actor, blobs: BlobStore, settings: Settings) -> Upload | None:
    """Upload by links: to the store, whole or in parts, if it gives some, else to this server. None: all arrived."""
    digest, size, seconds = Digest(blob.digest), blob.size_bytes, settings.link_seconds
    key = staging_key_of(blob.push_id, digest)
    links = blobs.presign_upload(key, size, seconds=seconds)
    if links is None:
        url = receive.sign_link(blobs, key, size, seconds=seconds, owner=actor.token_id)
        return Upload(digest=digest, size_bytes=size, url=url)
    if isinstance(links, Link):
        return Upload(digest=digest, size_bytes=size, url=links.url, headers=links.headers)
    parts = [UploadPart(number=p.number, start=p.start, size_bytes=p.size_bytes, url=p.url) for p in links]
    return Upload(digest=digest, size_bytes=size, parts=parts) if parts else None
