"""Plan pushes: which blobs they still have to send, and where to.

- A plan requests every blob that is in no version which the actor may read, even if another tenant has it. So neither
  a plan nor its timing nor an error reveals what is in other namespaces.
- Every blob of an open push has a row and a reference before its bytes are sent, so `gc` never deletes it too early.
- Pushes are planned in groups, with a few statements for all; one push is a group of one.
- A damaged blob is requested even from those who have it: that repairs it.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial

from sqlalchemy import bindparam
from sqlmodel import Session, col, select

from registry.adapters.peft.config import BaseClaim
from registry.api.transfer import BulkPushRequest, ExcerptKey, PushItem, PushPlan, Upload, UploadPart
from registry.bases import UNREGISTERED, BaseSpec, Similarity
from registry.digest import Digest
from registry.errors import Invalid, Refused, RegistryError
from registry.findings import Finding
from registry.names import AdapterName
from registry.roles import Scope
from registry.server import failpoints
from registry.server.access import namespaces, quotas
from registry.server.actors import Actor
from registry.server.catalog import base_rows, base_weights, versions
from registry.server.database import db, models
from registry.server.database.expressions import any_of
from registry.server.database.models.pushes import PushBlobRow, PushRow
from registry.server.promotion.group import Member, run_readable, without_error
from registry.server.push import inspect, rows
from registry.server.push.inspect import Excerpts
from registry.server.settings import Settings
from registry.server.storage import references
from registry.server.storage.blobs import BlobStore, key_of, staging_key_of
from registry.server.storage.states import BlobState, PushState, find_damaged
from registry.versions.manifest import BaseRef, Manifest, ManifestDraft, check_size

LOOKED_UP_AT_ONCE = 16


class _Push(Member):
    """A push that is being planned."""

    def __init__(self, name: AdapterName, item: PushItem, excerpts: Excerpts) -> None:
        self.name, self.draft, self.message, self.excerpts = name, item.manifest, item.message, excerpts
        self.base_name = item.manifest.base.name if item.manifest.base is not None else item.base
        self.contents: inspect.Contents | None = None
        """What configuration and header say, if the plan has both."""
        self.base: models.BaseRow
        self.manifest: Manifest
        self.sizes = blob_sizes(item.manifest)
        self.row: PushRow | None = None
        self.blobs: list[PushBlobRow] = []
        self.arrived: set[str] = set()
        """Digests of blobs whose bytes are there already."""
        self.plan: PushPlan | None = None


def plan_pushes(
    session: Session, actor: Actor, request: BulkPushRequest, *, blobs: BlobStore, settings: Settings
) -> list[PushPlan | RegistryError]:
    """What is missing for each of these versions and where to send it, or why it cannot be pushed, in the same order.

    Checks everything that can be checked without the bytes. An open push of the same token and manifest is resumed, so
    that nothing is sent twice. `session` must have begun by reading; it commits.
    """
    evaluated: dict[frozenset[ExcerptKey], RegistryError | inspect.Contents | None] = {}
    run = partial(_plan_group, session, actor, request, blobs=blobs, settings=settings)
    return run_readable(request.items, lambda item: _begin(actor, item, request.excerpts, evaluated), run, atomic=False)


def _plan_group(
    session: Session, actor: Actor, request: BulkPushRequest, pushes: Sequence[_Push], *,
    blobs: BlobStore, settings: Settings,
) -> list[PushPlan | RegistryError]:  # fmt: skip
    _choose_bases(session, pushes)
    _evaluate(session, without_error(pushes))
    unique: dict[tuple[str, str], _Push] = {}
    for push in without_error(pushes):
        unique.setdefault((str(push.name), push.manifest.digest), push)
    planned = [*unique.values()]
    if not request.dry_run:
        open_pushes = _find_open_pushes(session, actor, planned, settings)
        readable = find_readable_blobs(session, actor, {digest for push in planned for digest in push.sizes})
        for push in planned:
            push.row = open_pushes.get((str(push.name), push.manifest.digest))
        resumed = [push for push in planned if push.row is not None]
        _resume(session, resumed, readable)
        _create(session, actor, [push for push in planned if push.row is None], readable, settings)
        db.commit_early(session)
        _find_arrived(without_error(resumed), blobs)
    for push in without_error(planned):
        with push.collect_error():
            push.plan = _plan(push, actor, blobs, settings)
    return [_outcome(push, unique) for push in pushes]


def _begin(
    actor: Actor, item: PushItem, data: Sequence[bytes],
    evaluated: dict[frozenset[ExcerptKey], RegistryError | inspect.Contents | None],
) -> _Push:  # fmt: skip
    """The push of this item, with what its excerpts say of themselves. `evaluated`: of the items before."""
    name = AdapterName.parse(item.name)
    actor.require(Scope.PUSH, name)
    push = _Push(name, item, Excerpts.of(item, data))
    key = item.excerpt_keys
    if key not in evaluated:
        evaluated[key] = _evaluate_alone(item, push.excerpts)
    outcome = evaluated[key]
    if isinstance(outcome, RegistryError):
        raise outcome
    push.contents = outcome
    return push


def _evaluate_alone(item: PushItem, excerpts: Excerpts) -> RegistryError | inspect.Contents | None:
    """What the excerpts of an item say, whatever its base; the error if a file is malformed or unsafe."""
    try:
        inspect.check_beside(excerpts.whole, excerpts.read)
        return inspect.read_excerpts(item.manifest, excerpts)
    except RegistryError as e:
        return e


def _outcome(push: _Push, unique: Mapping[tuple[str, str], _Push]) -> PushPlan | RegistryError:
    first = push if push.error is not None else unique[str(push.name), push.manifest.digest]
    outcome = first.error or first.plan
    if outcome is None:
        raise RuntimeError(f"the push of {push.name} has no outcome")
    return outcome


def _choose_bases(session: Session, pushes: Sequence[_Push]) -> None:
    """Set the base of each push: the one of its manifest, else the named one, else the configured one."""
    unnamed = [push for push in pushes if not push.base_name]
    aliases = base_rows.read_aliases(session) if unnamed else {}
    claims = {push: push.contents.adapter.claim if push.contents is not None else BaseClaim() for push in unnamed}
    unmatched = [push for push, claim in claims.items() if claim.names_unregistered(aliases)]
    storing = _find_storing(session, unmatched)
    for push, claim in claims.items():
        with push.collect_error():
            is_stored = push in unmatched and push.name.namespace in storing
            push.base_name = claim.name if is_stored else claim.choose(aliases)
    bases = base_rows.find_all(session, {push.base_name for push in without_error(pushes)})
    storing |= _find_storing(session, [push for push in without_error(pushes) if push.base_name not in bases])
    for push in without_error(pushes):
        with push.collect_error():
            push.base = find_base(bases, push.base_name, push.draft.base, unregistered=push.name.namespace in storing)
            push.manifest = push.draft.with_base(base_rows.reference(push.base))
            check_size(push.manifest)  # a group may have more bytes than one manifest


def _find_storing(session: Session, pushes: Sequence[_Push]) -> set[str]:
    """The namespaces of these pushes that store adapters whose base is not registered."""
    return namespaces.find_storing_unregistered(session, {push.name.namespace for push in pushes}) if pushes else set()


def _evaluate(session: Session, pushes: Sequence[_Push]) -> None:
    """Refuse pushes that do not fit their base, in strict namespaces. A version that exists may be pushed again."""
    strict = namespaces.find_strict(session, {push.name.namespace for push in pushes})
    subjects: dict[str, tuple[BaseSpec, list[Similarity]]] = {}
    incompatible: list[tuple[_Push, Refused]] = []
    for push in pushes:
        if push.contents is None or push.name.namespace not in strict:
            continue
        if push.base.name not in subjects:
            subjects[push.base.name] = base_rows.load_spec(push.base), base_weights.find_relatives(session, push.base)
        findings = inspect.evaluate_excerpts(push.manifest, push.contents, push.excerpts, *subjects[push.base.name])
        refusal = inspect.refusal_of(push.name, push.base.name, findings)
        if refusal is not None:
            incompatible.append((push, refusal))
    existing = rows.find_existing(session, [(push.name, push.manifest) for push, _ in incompatible])
    for push, refusal in incompatible:
        if (str(push.name), push.manifest.digest) not in existing:
            push.error = refusal


def find_base(
    bases: Mapping[str, models.BaseRow], name: str, reference: BaseRef | None, *, unregistered: bool
) -> models.BaseRow:
    """The base of this name. `NotFound` (BASE_UNKNOWN), `Invalid` if a manifest has an alias or another fingerprint.

    A version keeps its manifest, and an alias may end: so a manifest names a base by its own name. `unregistered`: a
    base that does not exist is a row which is not stored. A manifest with only its name fits the base once it exists.
    """
    base = bases.get(name)
    is_only_name = reference is not None and reference.fingerprint == UNREGISTERED
    if base is None and unregistered and (reference is None or is_only_name):
        return base_rows.build_unregistered(name)
    if base is None:
        raise base_rows.unknown_base(name)
    if is_only_name:
        return base
    if reference is not None and base.name != name:
        message = f"is an alias of the base '{base.name}'"
        raise Invalid(
            "BASE_INVALID",
            f"'{name}' {message}",
            findings=[Finding("base.is_alias", name, message)],
            next_step=f"name the base '{base.name}' in the manifest",
        )
    if reference is not None and base.fingerprint != reference.fingerprint:
        message = f"has the fingerprint {base.fingerprint} here, and the manifest says {reference.fingerprint}"
        raise Invalid(
            "BASE_INVALID",
            f"base '{base.name}' {message}",
            findings=[Finding("base.fingerprint_differs", base.name, message)],
            next_step="the adapter was trained on another model of this name: register that model under its own name",
        )
    return base


def blob_sizes(manifest: ManifestDraft) -> dict[Digest, int]:
    """The size of each blob of a manifest. `Invalid` if the manifest gives one digest two sizes."""
    sizes: dict[Digest, int] = {}
    for file in manifest.files:
        if sizes.setdefault(file.digest, file.size_bytes) != file.size_bytes:
            message = f"has the digest of another file and {file.size_bytes} bytes instead of {sizes[file.digest]}"
            findings = [Finding("manifest.sizes_differ", file.path, message)]
            raise Invalid("MANIFEST_INVALID", f"{file.path} {message}", findings=findings)
    return sizes


def find_readable_blobs(session: Session, actor: Actor, digests: Set[Digest]) -> set[tuple[str, int]]:
    """Digest and size of those blobs that versions visible to the actor have, undamaged.

    Versions in quarantine do not count: pushing their bytes under another name would circumvent it.
    """
    statement = (
        select(models.VersionFileRow.digest, models.VersionFileRow.size_bytes)
        .join(models.VersionRow, col(models.VersionRow.id) == col(models.VersionFileRow.version_id))
        .join(models.AdapterRow, col(models.AdapterRow.id) == col(models.VersionRow.adapter_id))
        .join(models.BlobRow, col(models.BlobRow.digest) == col(models.VersionFileRow.digest))
        .where(any_of(col(models.VersionFileRow.digest), sorted(digests)), versions.visible(actor))
        .where(col(models.BlobRow.state) == BlobState.LIVE, col(models.VersionRow.quarantined_at).is_(None))
        .distinct()
    )
    return set(session.exec(statement).all()) if digests else set()


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
    session: Session, actor: Actor, pushes: Sequence[_Push], settings: Settings
) -> dict[tuple[str, str], PushRow]:
    """Name and digest → the oldest open push of the same token, if at least half of its time is left."""
    soonest = db.now() + timedelta(seconds=settings.push_hold_seconds / 2)
    params = {"token_id": actor.token_id, "digests": sorted({push.manifest.digest for push in pushes})}
    rows = session.exec(_OPEN_PUSHES, params={**params, "soonest": soonest}) if pushes else ()
    return {(f"{row.namespace}/{row.name}", row.manifest_digest): row for row in rows}


def _resume(session: Session, pushes: Sequence[_Push], readable: Set[tuple[str, int]]) -> None:
    """Load the blobs of open pushes. A blob that was damaged since it was planned or sent is requested (again)."""
    by_push = find_push_blobs(session, [push.row.id for push in pushes if push.row is not None])
    for push in pushes:
        push.blobs = by_push[push.row.id] if push.row is not None else []
    blobs = [blob for push in pushes for blob in push.blobs]
    sent = {Digest(blob.digest) for blob in blobs if blob.is_stored}
    sent_damaged = find_damaged(session, sent) if sent else set()
    damaged = [b for b in blobs if not b.staging_key and (b.digest, b.size_bytes) not in readable]
    damaged += [b for b in blobs if b.is_stored and b.digest in sent_damaged]
    if damaged:
        db.begin_writing(session)
        for blob in damaged:
            blob.staging_key, blob.is_stored = staging_key_of(blob.push_id, Digest(blob.digest)), False
        session.add_all(damaged)
        session.flush()


def _create(
    session: Session, actor: Actor, pushes: Sequence[_Push], readable: Set[tuple[str, int]], settings: Settings
) -> None:
    """Create the rows of new pushes, those of their blobs first."""
    if not pushes:
        return
    for push in pushes:
        push.row = row = new_row(actor, push.name, push.manifest, push.message, settings)
        push.blobs = [
            db.new_row(
                PushBlobRow,
                push_id=row.id, digest=digest, size_bytes=size,
                staging_key="" if (digest, size) in readable else staging_key_of(row.id, digest),
            )
            for digest, size in push.sizes.items()
        ]  # fmt: skip
    failpoints.reach("push.plan.before_rows")
    db.begin_writing(session)
    staged_bytes = [sum(blob.size_bytes for blob in push.blobs if blob.staging_key) for push in pushes]
    checked = [quotas.NewPush(p.name, p.manifest, size) for p, size in zip(pushes, staged_bytes, strict=True)]
    for position, error in quotas.check_before_upload(session, actor, checked).items():
        pushes[position].error = error
    states = references.reserve_group(session, {d: n for push in without_error(pushes) for d, n in push.sizes.items()})
    for push in without_error(pushes):
        with push.collect_error():
            references.check_not_deleting(states, push.sizes)
    created = without_error(pushes)
    db.bulk_insert(session, [push.row for push in created if push.row is not None])
    db.bulk_insert(session, [blob for push in created for blob in push.blobs])
    failpoints.reach("push.plan.after_rows")


def find_push_blobs(session: Session, push_ids: Iterable[str]) -> dict[str, list[PushBlobRow]]:
    """Push → its blobs. Every id is a key."""
    blobs: dict[str, list[PushBlobRow]] = {push_id: [] for push_id in push_ids}
    for blob in session.exec(_BLOBS, params={"ids": sorted(blobs)}) if blobs else ():
        blobs[blob.push_id].append(blob)
    return blobs


def key_of_sent(blob: PushBlobRow) -> str:
    """Where the bytes are that a push has sent; empty if it need not send them."""
    return key_of(Digest(blob.digest)) if blob.is_stored else blob.staging_key


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


def _find_arrived(pushes: Sequence[_Push], blobs: BlobStore) -> None:
    """Find out which blobs of resumed pushes have arrived. A store on another machine is asked about some at a time."""
    requested = [(push, blob) for push in pushes for blob in push.blobs if blob.staging_key]

    def look_up(push: _Push, blob: PushBlobRow) -> None:
        if push.error is None:
            with push.collect_error():
                if blobs.stat(key_of_sent(blob)) is not None:
                    push.arrived.add(blob.digest)

    if len(requested) < 2 or blobs.local_path(key_of_sent(requested[0][1])) is not None:
        for push, blob in requested:
            look_up(push, blob)
        return
    with ThreadPoolExecutor(LOOKED_UP_AT_ONCE, thread_name_prefix="plan") as pool:
        for _ in pool.map(look_up, *zip(*requested, strict=True)):
            pass


def _plan(push: _Push, actor: Actor, blobs: BlobStore, settings: Settings) -> PushPlan:
    """The response, without the blobs whose bytes are there already."""
    missing = [blob for blob in push.blobs if blob.staging_key and blob.digest not in push.arrived]
    uploads = [upload for blob in missing if (upload := _upload(blob, actor, blobs, settings)) is not None]
    push_id, expires_at = (push.row.id, push.row.expires_at) if push.row is not None else ("", db.now())  # a dry run
    manifest = push.manifest
    return PushPlan(push_id=push_id, base=manifest.base, digest=manifest.digest, uploads=uploads, expires_at=expires_at)


def _upload(blob: PushBlobRow, actor: Actor, blobs: BlobStore, settings: Settings) -> Upload | None:
    """Upload by links: to the store, in parts or whole, if it has safe ones, else to this server. None: all arrived."""
    digest, size, seconds = Digest(blob.digest), blob.size_bytes, settings.link_seconds
    parts = blobs.presign_parts(blob.staging_key, size, seconds=seconds)
    if parts is not None:
        links = [UploadPart(number=p.number, start=p.start, size_bytes=p.size_bytes, url=p.url) for p in parts]
        return Upload(digest=digest, size_bytes=size, parts=links) if links else None
    link = blobs.presign_upload(blob.staging_key, size, seconds=seconds)
    link = link or blobs.sign_upload(blob.staging_key, size, seconds=seconds, owner=actor.link_owner())
    return Upload(digest=digest, size_bytes=size, url=link.url, headers=link.headers)
