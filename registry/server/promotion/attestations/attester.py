"""`Attester` makes the registry's own attestations: of pushes and of its verdicts, not of those of owners.

A statement is made from one event after that event is durable, and the same event always makes the same bytes, so
attesting may be repeated after a crash. The row that refers to a blob is written before its bytes.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Engine
from sqlmodel import Session, col, select

from registry import attestations as envelopes
from registry.api.audit import moment
from registry.attestations.keys import PrivateKey
from registry.digest import Digest
from registry.errors import NotFound, RegistryError
from registry.evaluation.verdicts import Outcome
from registry.events import EventType
from registry.names import AdapterName, Ref
from registry.server import failpoints
from registry.server.actors import TRUSTED
from registry.server.audit.keys import Keys
from registry.server.catalog import version_groups, versions
from registry.server.database import db, locks
from registry.server.database.expressions import any_of
from registry.server.database.models import BlobRow, EventRow, VersionRow
from registry.server.database.models.owner_rules import AttestationRow
from registry.server.promotion.attestations import attestation_row
from registry.server.storage import blobs, references
from registry.server.storage.blobs import BlobStore
from registry.server.storage.states import BlobState
from registry.versions.manifest import Manifest

ATTESTED_ACTIONS = (EventType.VERSION_PUSH, EventType.VERDICT_ADD)
PUSH_KIND, VERDICT_KIND = "push", "verdict"
EVENTS_PER_BATCH = 32
SECONDS = 1.0
"""How long one call attests: meanwhile its thread numbers no events."""
_AT_POSITIONS = select(AttestationRow).where(any_of(col(AttestationRow.position), parameter="positions"))
_RESULTS = {Outcome.PASS: "PASSED", Outcome.WARN: "WARNED", Outcome.FAIL: "FAILED"}


class Attester:
    """Signs what the log says about versions, from where the last run stopped. One for an application."""

    def __init__(self, engine: Engine, store: BlobStore, keys: Callable[[], Keys]) -> None:
        self._engine, self._store, self._keys = engine, store, keys
        self._position = -1
        """Events up to here are attested; -1 until that was read from the database."""

    def attest_until(self, position: int) -> None:
        """Attest events up to this position, for about `SECONDS`: the next step goes on with a backlog.

        `Unavailable` (TRY_LATER) while another process does.
        """
        stop_at = time.monotonic() + SECONDS
        if self._position < 0:
            with db.session(self._engine, write=False) as session:
                self._position = attested_until(session)
        if self._position < position:
            with locks.acquire(self._engine, "attest") as lock:
                while self._position < position and time.monotonic() < stop_at:
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
            blobs.write_blob(self._store, blobs.key_of(digest), [data], limit_bytes=len(data))
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
        if version is None or event.detail.get("by_owner"):  # its adapter was deleted, or not the registry's verdict
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
    matches = version_groups.find_all(session, TRUSTED, refs.values())
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
    moved = select(EventRow).where(col(EventRow.object) == str(name), col(EventRow.action) == EventType.ADAPTER_RENAME)
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
