"""Attestations of versions: the registry's own about pushes and verdicts, and signatures that somebody brings.

Invariants
- The registry attests what the log holds: each of its statements is made from one numbered event, after it is durable,
  and the same event always makes the same bytes. So it may be done again after a crash, and trails the log by a moment.
- A signature is verified before it is kept, against the files of the version's own manifest.
- The row that holds the blob comes first, then the bytes; it is shown when its blob is live.

Example
    >>> attestations.identities(session, version)
    frozenset({'key:5f0c…'})
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, exists
from sqlmodel import Session, col, select

from registry import attestations as envelopes
from registry.api.audit import AttestationList, AttestationView, SignRequest, moment
from registry.attestations import models
from registry.attestations.certificates import Trust
from registry.attestations.keys import PrivateKey, PublicKey
from registry.digest import Digest
from registry.errors import Invalid, NotFound
from registry.evaluation.verdicts import Outcome
from registry.manifest import Manifest
from registry.names import AdapterName, Ref, Selector
from registry.server import audit, failpoints
from registry.server.actors import TRUSTED, Actor
from registry.server.audit.keys import Keys
from registry.server.catalog import availability, versions
from registry.server.database import db, locks
from registry.server.database.db import Engine
from registry.server.database.models.content import AdapterRow, AttestationRow, BlobRow, EventRow, VersionRow
from registry.server.storage import blobs, references
from registry.server.storage.blobs import BlobStore
from registry.server.storage.references import BlobState

ATTESTED = ("version.push", "verdict.add")
SIGNATURE, UNVERIFIED, OWN_PUSH, OWN_VERDICT = "signature", "unverified", "push", "verdict"
BATCH = 32
_TO_BE_MADE = (BlobState.PENDING, BlobState.CORRUPT)
SHOWN_LIMIT = 200
_RESULTS = {Outcome.PASS: "PASSED", Outcome.WARN: "WARNED", Outcome.FAIL: "FAILED"}


# ------------------------------------------------------------------ looking
def identities(session: Session, version: VersionRow) -> frozenset[str]:
    """Whose signatures this version has: `key:…`, `pki:…`, `sigstore:…`, each verified when it was brought."""
    statement = _live().where(AttestationRow.version_id == version.id, AttestationRow.kind == SIGNATURE)
    return frozenset(row.identity for row in session.exec(statement))


def of(session: Session, actor: Actor, name: AdapterName, selector: Selector, store: BlobStore) -> AttestationList:
    """All attestations of a version, oldest first, each with its bundle."""
    version = versions.find(session, actor, name, selector, yanked_too=isinstance(selector, int | Digest))
    statement = _live().where(AttestationRow.version_id == version.id).order_by(col(AttestationRow.id))
    rows = session.exec(statement.limit(SHOWN_LIMIT)).all()
    return AttestationList(items=[_view(row, store) for row in rows])


def _live() -> Any:
    return (
        select(AttestationRow)
        .join(BlobRow, col(BlobRow.digest) == col(AttestationRow.digest))
        .where(col(BlobRow.state) == BlobState.LIVE)
    )


def _view(row: AttestationRow, store: BlobStore) -> AttestationView:
    text = store.read(blobs.key_of(Digest(row.digest)), 0, row.size_bytes).decode(errors="replace")
    return AttestationView(
        kind=row.kind,
        identity=row.identity,
        digest=Digest(row.digest),
        size_bytes=row.size_bytes,
        public_key=row.public_key,
        seq=row.position,
        made_at=row.made_at,
        made_by=row.made_by,
        bundle=text,
    )


# ------------------------------------------------------------------ signatures that are brought
def sign(
    session: Session,
    actor: Actor,
    name: AdapterName,
    selector: Selector,
    request: SignRequest,
    store: BlobStore,
    *,
    trusted_roots: str = "",
) -> tuple[AttestationView, bool]:
    """Keep a signature for a version, and whether it is new. `Invalid` (SIGNATURE_INVALID) unless it verifies.

    One of a certificate for which nobody in `trusted_roots` (a file or folder) vouches is kept as `unverified`.

    `session` must have begun by reading; it writes from the last check on, and holds no transaction while bytes move.
    """
    actor.demand("push", name)
    version = versions.find(session, actor, name, selector, yanked_too=isinstance(selector, int | Digest))
    if version.quarantined_at is not None:
        raise availability.quarantined(name, version)
    kind, identity, public_key = _signer(request, Manifest.parse(version.manifest.encode()), trusted_roots)
    data = request.bundle.encode()
    digest = Digest.of(data)
    db.begin_writing(session)
    mine = select(AttestationRow).where(AttestationRow.version_id == version.id, AttestationRow.digest == digest)
    row = session.exec(mine).first()
    states = references.reserve(session, {digest: len(data)})
    if row is not None and states[digest] == BlobState.LIVE:
        return _view(row, store), False
    if row is None:
        row = _row(version, kind, identity, digest, len(data), made_by=actor.identity, public_key=public_key)
        session.add(row)
    db.settle(session)
    failpoints.reach("attestation.held")
    store.put(blobs.key_of(digest), [data], expect=digest, limit_bytes=len(data))
    db.begin_writing(session)
    references.keep(session, {digest: len(data)}, written={digest})
    told = {"identity": identity, "kind": kind, "signature": digest, "digest": version.digest}
    audit.append(session, actor, "version.sign", f"{name}@{version.number}", told)
    session.flush()
    return _view(row, store), True


def _signer(request: SignRequest, manifest: Manifest, trusted_roots: str) -> tuple[str, str, str]:
    """Kind and identity of a signature, and the public key that was given with it."""
    if request.public_key:
        key = PublicKey.parse(request.public_key.encode())
        return SIGNATURE, models.covered(request.bundle, key, manifest), key.pem
    trust = Trust.parse(files_in(trusted_roots))
    found = models.certified(request.bundle, manifest, trust, db.now())
    return (SIGNATURE, found.identity, "") if found.identity else (UNVERIFIED, found.problem, "")


def files_in(place: str) -> list[bytes]:
    """The bytes of a file, or of the files of a folder; none for an empty setting."""
    path = Path(place)
    try:
        found = sorted(path.iterdir()) if path.is_dir() else [path]
        return [file.read_bytes() for file in found if file.is_file()] if place else []
    except OSError as e:
        raise Invalid("SETTING_INVALID", f"REGISTRY_TRUSTED_ROOTS: {place!r} cannot be read: {e.strerror}") from e


def _row(
    version: VersionRow, kind: str, identity: str, digest: Digest, size_bytes: int, *, made_by: str, **more: Any
) -> AttestationRow:
    return AttestationRow(
        version_id=version.id or 0,
        kind=kind,
        identity=identity,
        digest=digest,
        size_bytes=size_bytes,
        made_at=db.now(),
        made_by=made_by,
        **more,
    )


# ------------------------------------------------------------------ the registry's own
def attest(engine: Engine, store: BlobStore, keys: Keys, *, after: int, until: int) -> int:
    """Attest what the events from `after` (not included) to `until` tell; the position up to which that is done.

    `Unavailable` (TRY_LATER) while another process is at it.
    """
    with locks.take(engine, "attest") as mine:
        while after < until:
            with db.session(engine, write=False) as session:
                wanted = select(EventRow).where(
                    col(EventRow.position) > after,
                    col(EventRow.position) <= until,
                    col(EventRow.action).in_(ATTESTED),
                )
                events = session.exec(wanted.order_by(col(EventRow.position)).limit(BATCH)).all()
            _attest(engine, store, keys, events, mine)
            after = (events[-1].position or until) if len(events) == BATCH else until
    return after


def attested(session: Session) -> int:
    """The position up to which the registry has surely attested, as far as rows tell. What lost its bytes is not."""
    done = select(AttestationRow.position).where(col(AttestationRow.position).is_not(None))
    newest = session.exec(done.order_by(col(AttestationRow.position).desc()).limit(1)).first()
    pending = (
        select(AttestationRow.position)
        .join(BlobRow, col(BlobRow.digest) == col(AttestationRow.digest))
        .where(
            col(AttestationRow.position).is_not(None), col(BlobRow.state).in_([BlobState.PENDING, BlobState.CORRUPT])
        )
    )
    first = session.exec(pending.order_by(col(AttestationRow.position)).limit(1)).first()
    return first - 1 if first is not None else newest or 0


def _attest(engine: Engine, store: BlobStore, keys: Keys, events: Sequence[EventRow], mine: locks.Turn) -> None:
    """Rows that hold the envelopes' blobs, then the bytes, then the blobs are live: two transactions for all."""
    with db.session(engine) as session:
        sealed = _sealed(session, keys, events)
        sizes = {digest: len(data) for digest, data in sealed.items()}
        states = references.reserve(session, sizes)
    missing = {digest: data for digest, data in sealed.items() if states[digest] is not BlobState.LIVE}
    failpoints.reach("attestation.held")
    for digest, data in missing.items():
        mine.check()
        store.put(blobs.key_of(digest), [data], expect=digest, limit_bytes=len(data))
    with db.session(engine) as session:
        references.keep(session, {digest: sizes[digest] for digest in missing}, written=set(missing))


def _sealed(session: Session, keys: Keys, events: Sequence[EventRow]) -> dict[Digest, bytes]:
    """The envelope of each event that tells of a version which is still there, with a row for it."""
    key = PrivateKey.of_seed(keys.signer.seed)
    public = {"public_key": key.public.pem}
    positions = [event.position for event in events]
    there = {
        row.position: row.digest
        for row in session.exec(select(AttestationRow).where(col(AttestationRow.position).in_(positions)))
    }
    sealed: dict[Digest, bytes] = {}
    for event in events:
        version = _version_of(session, event)
        if version is None:  # deleted
            continue
        kind, payload = _statement(keys.signer.name, event, version)
        data = envelopes.seal(payload, key)
        digest = Digest.of(data)
        if there.get(event.position, digest) != digest:  # attested with an older key
            continue
        sealed[digest] = data
        if event.position not in there:
            row = _row(version, kind, key.public.identity, digest, len(data), made_by=keys.signer.name)
            session.add(row.sqlmodel_update({"position": event.position, **public}))
    return sealed


def _version_of(session: Session, event: EventRow) -> VersionRow | None:
    ref = Ref.parse(event.object)
    name: AdapterName | None = ref.name
    while name is not None:
        try:
            found = versions.find(session, TRUSTED, name, ref.selector, yanked_too=True)
        except NotFound:
            name = _name_after(session, name)
        else:
            return found if event.detail.get("digest") in (None, found.digest) else None
    return None


def _name_after(session: Session, name: AdapterName) -> AdapterName | None:
    """What a transfer made of this name."""
    moved = select(EventRow).where(col(EventRow.object) == str(name), col(EventRow.action) == "adapter.transfer")
    event = session.exec(moved).first()
    return AdapterName.parse(event.detail["to"]) if event is not None else None


def tells_of_what_is_seen(actor: Actor) -> ColumnElement[bool]:
    """The condition on `event` that a version which the actor may see is attested by it, under whatever name then."""
    return exists().where(
        col(AttestationRow.position) == col(EventRow.position),
        col(VersionRow.id) == col(AttestationRow.version_id),
        col(AdapterRow.id) == col(VersionRow.adapter_id),
        versions.visible(actor),
    )


def _statement(origin: str, event: EventRow, version: VersionRow) -> tuple[str, bytes]:
    """The statement that an event makes: who pushed which bytes when, or what a check found of them."""
    manifest = Manifest.parse(version.manifest.encode())
    by: dict[str, Any] = {
        "actor": event.actor,
        "at": moment(event.at),
        "log": {"origin": origin, "seq": event.position},
        "requestId": event.request_id,
        "token": event.token_id,
    }
    subjects = {event.object: Digest(version.digest).hex}
    if event.action == "version.push":
        subjects |= {file.path: file.digest.hex for file in manifest.files}
        base = {"name": manifest.base.name, "fingerprint": manifest.base.fingerprint}
        compat = str(event.detail.get("compat", event.detail.get("fits", "")))  # `fits` before schema 0015
        told = {**by, "version": event.object, "base": base, "compat": compat}
        if manifest.provenance is not None:
            told["declared"] = manifest.provenance.model_dump(mode="json")
        return OWN_PUSH, envelopes.statement(envelopes.PUSH, subjects, told)
    outcome, report = str(event.detail.get("outcome", "")), str(event.detail.get("report") or "")
    settings = [{"name": "report", "digest": {"sha256": report[7:]}}] if report else []
    result = _RESULTS.get(Outcome(outcome), "FAILED") if outcome in set(Outcome) else "FAILED"
    check = str(event.detail.get("check", ""))
    told = {**by, "result": result, "outcome": outcome, "check": check, "configuration": settings}
    return OWN_VERDICT, envelopes.statement(envelopes.VERDICT, subjects, told)
