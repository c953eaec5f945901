"""Attestations of versions: list them, store signatures that users add, and make the registry's own (`Attester`).

- A signature is verified against the version's own manifest before it is stored. The row that refers to its blob is
  written before the bytes; it is shown once its blob is live.
- The registry attests pushes and its own verdicts, not those of owners. A statement is made from one event after that
  event is durable, and the same event always makes the same bytes, so attesting may be repeated after a crash.
"""

import contextlib
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, Engine, exists, or_
from sqlmodel import Session, col, select

from registry import attestations as envelopes
from registry.api.audit import AttestationList, AttestationView, EventProof, SignRequest, moment
from registry.attestations import models
from registry.attestations.certificates import Trust
from registry.attestations.keys import PrivateKey, PublicKey
from registry.digest import Digest
from registry.errors import Invalid, NotFound, RegistryError
from registry.evaluation.verdicts import Outcome
from registry.events import EventType, with_former_types
from registry.names import AdapterName, Ref, Selector, is_alias
from registry.roles import Scope
from registry.server import audit, failpoints
from registry.server.actors import TRUSTED, Actor
from registry.server.audit import audit_log
from registry.server.audit.keys import Keys
from registry.server.catalog import availability, versions
from registry.server.database import db, locks
from registry.server.database.expressions import any_of
from registry.server.database.models import AdapterRow, AttestationRow, BlobRow, EventRow, VersionRow
from registry.server.storage import blobs, references
from registry.server.storage.blobs import BlobStore
from registry.server.storage.references import BlobState
from registry.versions.manifest import Manifest

SIGNATURE, UNVERIFIED = "signature", "unverified"
SHOWN_LIMIT = 200
ATTESTED_ACTIONS = (EventType.VERSION_PUSH, EventType.VERDICT_ADD)
PUSH_KIND, VERDICT_KIND = "push", "verdict"
EVENTS_PER_BATCH = 32
_AT_POSITIONS = select(AttestationRow).where(any_of(col(AttestationRow.position), parameter="positions"))
_RESULTS = {Outcome.PASS: "PASSED", Outcome.WARN: "WARNED", Outcome.FAIL: "FAILED"}


# ------------------------------------------------------------------ read
def signers_by_version(session: Session, version_ids: Collection[int]) -> dict[int, frozenset[str]]:
    """Version → the identities that signed it: `key:…`, `pki:…`, `sigstore:…`, each verified when it was stored."""
    if not version_ids:
        return {}
    statement = _live().where(any_of(col(AttestationRow.version_id), version_ids), AttestationRow.kind == SIGNATURE)
    signers: dict[int, frozenset[str]] = {}
    for row in session.exec(statement):
        signers[row.version_id] = signers.get(row.version_id, frozenset()) | {row.identity}
    return signers


def list_attestations(
    session: Session, actor: Actor, name: AdapterName, selector: Selector, store: BlobStore | None
) -> AttestationList:
    """All attestations of a version, oldest first, each with its bundle; without a store, without bundles."""
    version = versions.find(session, actor, name, selector, include_withdrawn=not is_alias(selector))
    statement = _live().where(AttestationRow.version_id == version.id).order_by(col(AttestationRow.id))
    rows = session.exec(statement.limit(SHOWN_LIMIT)).all()
    db.commit_early(session)
    if store is None:
        return AttestationList(items=[db.to_answer(row, AttestationView, seq=row.position) for row in rows])
    return AttestationList(items=[_view(row, store) for row in rows])


def visible_events(actor: Actor) -> ColumnElement[bool]:
    """The condition on `event` that it attests a version which the actor may see, also under a former name."""
    return exists().where(
        col(AttestationRow.position) == col(EventRow.position),
        col(VersionRow.id) == col(AttestationRow.version_id),
        col(AdapterRow.id) == col(VersionRow.adapter_id),
        versions.visible(actor),
    )


def prove_event(session: Session, actor: Actor, seq: int) -> EventProof:
    """The event as an entry of the log, and the proof that the log holds it. `NotFound` (EVENT_UNKNOWN)."""
    visible = or_(audit.visible_to(actor), visible_events(actor))
    statement = select(EventRow).where(col(EventRow.position) == seq, visible)
    row = session.exec(statement).first() if 0 < seq < 2**53 else None
    if row is None:
        raise NotFound("EVENT_UNKNOWN", f"there is no event {seq}, or you may not see it")
    return audit_log.prove_event(session, row)


def _live() -> Any:
    return (
        select(AttestationRow)
        .join(BlobRow, col(BlobRow.digest) == col(AttestationRow.digest))
        .where(col(BlobRow.state) == BlobState.LIVE)
    )


def _view(row: AttestationRow, store: BlobStore) -> AttestationView:
    text = store.read(blobs.key_of(Digest(row.digest)), 0, row.size_bytes).decode(errors="replace")
    return db.to_answer(row, AttestationView, seq=row.position, bundle=text)


# ------------------------------------------------------------------ write
def add_signature(
    session: Session, actor: Actor, name: AdapterName, selector: Selector, request: SignRequest, store: BlobStore, *,
    trusted_roots: str = "",
) -> tuple[AttestationView, bool]:  # fmt: skip
    """Store a signature of a version; also says whether it is new. `Invalid` (SIGNATURE_INVALID) unless it verifies.

    A certificate that leads to no root in `trusted_roots` (a file or a folder) makes the signature `unverified`.
    `session` must have begun by reading: it writes from the last check on, and no transaction is open while bytes move.
    """
    actor.require(Scope.PUSH, name)
    version = versions.find(session, actor, name, selector, include_withdrawn=not is_alias(selector))
    if version.quarantined_at is not None:
        raise availability.quarantined_error(name, version)
    kind, identity, public_key = _verify(request, Manifest.parse(version.manifest.encode()), trusted_roots)
    data = request.bundle.encode()
    digest = Digest.of(data)
    db.begin_writing(session)
    same = select(AttestationRow).where(AttestationRow.version_id == version.id, AttestationRow.digest == digest)
    row = session.exec(same).first()
    states = references.reserve(session, {digest: len(data)})
    if row is not None and states[digest] == BlobState.LIVE:
        return _view(row, store), False
    if row is None:
        row = attestation_row(version, kind, identity, digest, len(data), made_by=actor.identity, public_key=public_key)
        session.add(row)
    db.commit_early(session)
    failpoints.reach("attestation.held")
    store.put(blobs.key_of(digest), [data], expect=digest, limit_bytes=len(data))
    db.begin_writing(session)
    references.mark_live(session, {digest: len(data)}, written_now={digest})
    detail = {"identity": identity, "kind": kind, "signature": digest, "digest": version.digest}
    audit.append(session, actor, EventType.VERSION_SIGN, f"{name}@{version.number}", detail)
    session.flush()
    return _view(row, store), True


def _verify(request: SignRequest, manifest: Manifest, trusted_roots: str) -> tuple[str, str, str]:
    """The kind of a signature, who signed, and the public key that came with it."""
    if request.public_key:
        key = PublicKey.parse(request.public_key.encode())
        return SIGNATURE, models.verify_with_key(request.bundle, key, manifest), key.pem
    trust = Trust.parse(_read_roots(trusted_roots))
    signer = models.verify_with_certificate(request.bundle, manifest, trust, db.now())
    return (SIGNATURE, signer.identity, "") if signer.identity else (UNVERIFIED, signer.problem, "")


def _read_roots(location: str) -> list[bytes]:
    """The bytes of a file, or of each file in a folder; nothing for an empty setting."""
    if not location:
        return []
    path = Path(location)
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        return [file.read_bytes() for file in files if file.is_file()]
    except OSError as e:
        raise Invalid("SETTING_INVALID", f"REGISTRY_TRUSTED_ROOTS: {location!r} cannot be read: {e.strerror}") from e


def attestation_row(
    version: VersionRow, kind: str, identity: str, digest: Digest, size_bytes: int, *, made_by: str, **columns: Any
) -> AttestationRow:
    """The row of an attestation that is made now."""
    return AttestationRow(
        version_id=version.id or 0, kind=kind, identity=identity, digest=digest, size_bytes=size_bytes,
        made_at=db.now(), made_by=made_by, **columns,
    )  # fmt: skip


# ------------------------------------------------------------------ the registry's own
class Attester:
    """Signs what the log says about versions, from where the last run stopped. One for an application."""

    def __init__(self, engine: Engine, store: BlobStore, keys: Callable[[], Keys]) -> None:
        self._engine, self._store, self._keys = engine, store, keys
        self._position = -1
        """Events up to here are attested; -1 until that was read from the database."""

    def attest_until(self, position: int) -> None:
        """Attest the events up to this position. `Unavailable` (TRY_LATER) while another process does."""
        if self._position < 0:
            with db.session(self._engine, write=False) as session:
                self._position = attested_until(session)
        if self._position < position:
            with locks.acquire(self._engine, "attest") as lock:
                while self._position < position:
                    self._position = self._attest_batch(position, lock)

    def _attest_batch(self, until: int, lock: locks.ProcessLock) -> int:
        with db.session(self._engine, write=False) as session:
            pending = (
                col(EventRow.position).between(self._position + 1, until),
                col(EventRow.action).in_(ATTESTED_ACTIONS),
            )
            ordered = select(EventRow).where(*pending).order_by(col(EventRow.position))
            events = session.exec(ordered.limit(EVENTS_PER_BATCH)).all()
        self._attest(events, lock)
        return (events[-1].position or until) if len(events) == EVENTS_PER_BATCH else until

    def _attest(self, events: Sequence[EventRow], lock: locks.ProcessLock) -> None:
        """Write the rows that refer to the envelopes, then the bytes, then mark them live: two transactions for all."""
        with db.session(self._engine) as session:
            lock.guard(session)
            sealed = _seal(session, self._keys(), events)
            sizes = {digest: len(data) for digest, data in sealed.items()}
            states = references.reserve(session, sizes)
        missing = {digest: data for digest, data in sealed.items() if states[digest] is not BlobState.LIVE}
        failpoints.reach("attestation.held")
        for digest, data in missing.items():
            lock.check()
            self._store.put(blobs.key_of(digest), [data], expect=digest, limit_bytes=len(data))
        with db.session(self._engine) as session:
            lock.guard(session)
            references.mark_live(session, {digest: sizes[digest] for digest in missing}, written_now=set(missing))


def attested_until(session: Session) -> int:
    """The position up to which every event has an attestation whose bytes are stored."""
    positions = select(AttestationRow.position).where(col(AttestationRow.position).is_not(None))
    incomplete = positions.join(BlobRow, col(BlobRow.digest) == col(AttestationRow.digest)).where(
        col(BlobRow.state).in_([BlobState.PENDING, BlobState.CORRUPT])
    )
    newest = session.exec(positions.order_by(col(AttestationRow.position).desc()).limit(1)).first()
    first = session.exec(incomplete.order_by(col(AttestationRow.position)).limit(1)).first()
    return first - 1 if first is not None else newest or 0


def _seal(session: Session, keys: Keys, events: Sequence[EventRow]) -> dict[Digest, bytes]:
    """The envelope of each event whose version still exists. Adds the attestation's row where there is none."""
    key = PrivateKey.of_seed(keys.signer.seed)
    columns = {"made_by": keys.signer.name, "public_key": key.public.pem}
    identity = key.public.identity
    positions = [event.position for event in events]
    existing = {row.position: row.digest for row in session.exec(_AT_POSITIONS, params={"positions": positions})}
    versions_of = _versions_of(session, events)
    sealed: dict[Digest, bytes] = {}
    added: list[AttestationRow] = []
    for event in events:
        version = versions_of[event.position]
        if version is None or event.detail.get("by_owner"):  # its adapter was deleted, or not the registry's judgment
            continue
        kind, payload = _statement(keys.signer.name, event, version)
        data = envelopes.sign_statement(payload, key)
        digest = Digest.of(data)
        if existing.get(event.position, digest) != digest:  # attested with an older key
            continue
        sealed[digest] = data
        if event.position not in existing:
            row = attestation_row(version, kind, identity, digest, len(data), position=event.position, **columns)
            added.append(row)
    db.bulk_insert(session, added)
    return sealed


def _versions_of(session: Session, events: Sequence[EventRow]) -> dict[int | None, VersionRow | None]:
    """Position → the version that an event is about, also after its adapter was renamed; None once it was deleted.

    A deleted version counts: the deletion may be undone, and no event is attested later than its time.
    """
    refs = {event.position: Ref.parse(event.object) for event in events}
    matches = versions.find_all(session, TRUSTED, refs.values())
    versions_of: dict[int | None, VersionRow | None] = {}
    for event in events:
        match = matches[refs[event.position]]
        version = _renamed(session, refs[event.position]) if isinstance(match, RegistryError) else match
        is_same = version is not None and event.detail.get("digest") in (None, version.digest)
        versions_of[event.position] = version if is_same else None
    return versions_of


def _renamed(session: Session, ref: Ref) -> VersionRow | None:
    """The version under the names that its adapter got later."""
    name = _next_name(session, ref.name)
    while name is not None:
        with contextlib.suppress(NotFound):
            return versions.find(session, TRUSTED, name, ref.selector, include_deleted=True)
        name = _next_name(session, name)
    return None


def _next_name(session: Session, name: AdapterName) -> AdapterName | None:
    """The name that an adapter of this name was given by a rename."""
    renames = with_former_types([EventType.ADAPTER_RENAME])
    moved = select(EventRow).where(col(EventRow.object) == str(name), col(EventRow.action).in_(renames))
    event = session.exec(moved).first()
    return AdapterName.parse(event.detail["to"]) if event is not None else None


def _statement(origin: str, event: EventRow, version: VersionRow) -> tuple[str, bytes]:
    """The kind and the statement of an event: who pushed which bytes and when, or what a check found in them."""
    manifest = Manifest.parse(version.manifest.encode())
    predicate: dict[str, Any] = {
        "actor": event.actor,
        "at": moment(event.at),
        "log": {"origin": origin, "seq": event.position},
        "requestId": event.request_id,
        "token": event.token_id,
    }
    subjects = {event.object: Digest(version.digest).hex}
    if event.action == EventType.VERSION_PUSH:
        subjects |= {file.path: file.digest.hex for file in manifest.files}
        base = {"name": manifest.base.name, "fingerprint": manifest.base.fingerprint}
        compat = str(event.detail.get("compat", event.detail.get("fits", "")))  # `fits` before schema 0015
        predicate |= {"version": event.object, "base": base, "compat": compat}
        if manifest.provenance is not None:
            predicate["declared"] = manifest.provenance.model_dump(mode="json")
        return PUSH_KIND, envelopes.statement(envelopes.PUSH, subjects, predicate)
    outcome, report = str(event.detail.get("outcome", "")), str(event.detail.get("report") or "")
    settings = [{"name": "report", "digest": {"sha256": report[7:]}}] if report else []
    result = _RESULTS.get(Outcome(outcome), "FAILED") if outcome in set(Outcome) else "FAILED"
    check = str(event.detail.get("check", ""))
    predicate |= {"result": result, "outcome": outcome, "check": check, "configuration": settings}
    return VERDICT_KIND, envelopes.statement(envelopes.VERDICT, subjects, predicate)
