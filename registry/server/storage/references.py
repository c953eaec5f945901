"""Who still needs a blob: the states of its row, and what keeps it from garbage collection.

    pending ──commit──▶ live ──nobody needs it──▶ dead ──gc's claim──▶ deleting ──▶ (no row, no bytes)
       ▲                 │ ▲                       │
       └─────────────────│─│──── a new push ───────┘      live ──bytes are wrong──▶ corrupt ──good bytes──▶ live

Invariants
- The row is there before the bytes are: there is never a final key without a row. `pending` promises nothing.
- A blob is needed while a version, a verdict or an attestation refers to it, while an open push names it, and while a
  running job is about to leave it. Whoever begins to need one locks its row first; `gc` asks again under the same
  lock.
- What a live node of the fleet has reported is held until its lease ends, also when the version's rows have gone.
- No other clock protects a blob. `deleting` cannot be stopped: who wants the blob then waits for a moment (TRY_LATER).
- Beginning to need a blob is the same one statement whether or not somebody has it: nobody learns that from its time.

Example
    >>> holds.reserve(session, {digest: 4096})
    {Digest('sha256:…'): <BlobState.PENDING: 'pending'>}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from datetime import datetime
from enum import StrEnum

from sqlalchemy import ColumnElement, and_, bindparam, case, exists, literal, not_, or_, update
from sqlmodel import Session, col, select

from registry.api.fleet import KEEPING
from registry.digest import Digest
from registry.errors import NotFound, Unavailable
from registry.jobs import State
from registry.server.database import db
from registry.server.database.models.content import (
    AttestationRow,
    BlobRow,
    FleetBlobRow,
    FleetNodeRow,
    FleetSlotRow,
    JobRow,
    PushBlobRow,
    PushRow,
    UtcTime,
    VerdictRow,
    VersionFileRow,
)

OPEN, COMMITTED, EXPIRED = "open", "committed", "expired"
"""The states of a push. Only an open one holds blobs; the other two are for ever."""

RETRY_AFTER_SECONDS = 1


class BlobState(StrEnum):
    PENDING = "pending"
    LIVE = "live"
    DEAD = "dead"
    DELETING = "deleting"
    CORRUPT = "corrupt"


def referenced() -> ColumnElement[bool]:
    """The condition on `blob` that a version, a verdict or an attestation refers to it."""
    by_version = exists().where(col(VersionFileRow.digest) == col(BlobRow.digest))
    by_verdict = exists().where(col(VerdictRow.report) == col(BlobRow.digest))
    by_attestation = exists().where(col(AttestationRow.digest) == col(BlobRow.digest))
    return or_(by_version, by_verdict, by_attestation)


def held(*, expired_too: bool = True) -> ColumnElement[bool]:
    """The condition on `blob` that something under way names it. Without `expired_too`: once the expired are ended."""
    open_push = [col(PushRow.id) == col(PushBlobRow.push_id), col(PushRow.state) == OPEN]
    if not expired_too:
        open_push.append(col(PushRow.expires_at) > db.now())
    by_push = exists().where(col(PushBlobRow.digest) == col(BlobRow.digest), *open_push)
    by_job = exists().where(col(JobRow.report) == col(BlobRow.digest), col(JobRow.state) == State.RUNNING)
    on_node = [col(FleetSlotRow.digest) == col(FleetBlobRow.version), col(FleetSlotRow.state).in_(KEEPING)]
    leased = [col(FleetNodeRow.id) == col(FleetSlotRow.node_id), col(FleetNodeRow.expires_at) > db.now()]
    by_node = exists().where(col(FleetBlobRow.digest) == col(BlobRow.digest), *on_node, *leased)
    return or_(by_push, by_job, by_node)


def unneeded(*, expired_too: bool = True) -> ColumnElement[bool]:
    return not_(or_(referenced(), held(expired_too=expired_too)))


_WAS_DEAD = col(BlobRow.state) == BlobState.DEAD
_AWAKE = (
    ("state", case((_WAS_DEAD, BlobState.PENDING), else_=col(BlobRow.state))),
    ("marked_at", case((_WAS_DEAD, None), else_=col(BlobRow.marked_at))),
)
_TOLD = (col(BlobRow.digest), col(BlobRow.state))


def reserve(session: Session, sizes: Mapping[Digest, int]) -> dict[Digest, BlobState]:
    """A row for each blob that is about to be needed, locked until this transaction ends; their states.

    Insert what holds them (push, job) in the same transaction. `Unavailable` (TRY_LATER) for one that is being deleted.
    """
    if not sizes:
        return {}
    moment = db.now()
    new = [
        {"digest": digest, "size_bytes": size, "state": BlobState.PENDING, "created_at": moment}
        for digest, size in sorted(sizes.items())
    ]
    told = db.claim(session, BlobRow, new, otherwise=_AWAKE, tell=_TOLD)
    states = {Digest(digest): BlobState(state) for digest, state in told}
    going = next((digest for digest, state in states.items() if state is BlobState.DELETING), None)
    if going is not None:
        raise Unavailable(
            "TRY_LATER",
            f"blob {going} is being deleted just now",
            next_step="try again in a moment",
            retry_after_seconds=RETRY_AFTER_SECONDS,
        )
    return states


_CORRUPT = select(BlobRow.digest).where(
    col(BlobRow.digest).in_(bindparam("digests", expanding=True)), col(BlobRow.state) == BlobState.CORRUPT
)


def damaged(session: Session, digests: Iterable[Digest]) -> set[Digest]:
    """Which of these blobs, that somebody holds, have wrong bytes or none."""
    return {Digest(digest) for digest in session.exec(_CORRUPT, params={"digests": list(digests)})}


_MENDED = col(BlobRow.digest).in_(bindparam("written", expanding=True))
_GOOD = or_(
    col(BlobRow.state).in_([BlobState.PENDING, BlobState.LIVE]), and_(col(BlobRow.state) == BlobState.CORRUPT, _MENDED)
)
_LOCKED = (
    select(BlobRow.digest)
    .where(col(BlobRow.digest).in_(bindparam("digests", expanding=True)), _GOOD)
    .order_by(col(BlobRow.digest))  # as by `reserve`: two pushes that share blobs never wait for each other in a ring
    .with_for_update()
)
_ALIVE = (
    update(BlobRow)
    .where(col(BlobRow.digest).in_(_LOCKED))
    .values(
        state=BlobState.LIVE,
        marked_at=None,
        checked_at=case((_MENDED, bindparam("moment", type_=UtcTime())), else_=col(BlobRow.checked_at)),
    )
    .returning(col(BlobRow.digest), col(BlobRow.size_bytes))
)
"""Put together once: every push asks this."""


def keep(session: Session, sizes: Mapping[Digest, int], *, written: Set[Digest] = frozenset()) -> None:
    """Their bytes are in the store and true: `live` from now on. `written` are those that were written just now.

    `Unavailable` (TRY_LATER) when a blob was found corrupt meanwhile: the same call again will write it again.
    """
    told = {"digests": sorted(sizes), "written": sorted(written), "moment": db.now()}
    alive = session.connection().execute(_ALIVE, told).all() if sizes else []
    kept = {Digest(digest): size for digest, size in alive}
    for digest in (digest for digest, size in kept.items() if size != sizes[digest]):  # another push had said otherwise
        true_size = update(BlobRow).where(col(BlobRow.digest) == digest).values(size_bytes=sizes[digest])
        session.connection().execute(true_size)
    lost = sorted(sizes.keys() - kept)
    if lost:
        raise Unavailable(
            "TRY_LATER",
            f"blob {lost[0]} was found damaged or was taken away meanwhile",
            next_step="push again: only what is missing will be sent",
            retry_after_seconds=RETRY_AFTER_SECONDS,
        )


# ------------------------------------------------------------------ pushes
def extend(session: Session, push_id: str, *, until: datetime) -> bool:
    """Keep an open push open until then at least. False when it is committed; `NotFound` (PUSH_UNKNOWN) otherwise."""
    later = case((col(PushRow.expires_at) > until, col(PushRow.expires_at)), else_=literal(until, UtcTime()))
    still = update(PushRow).where(col(PushRow.id) == push_id, col(PushRow.state) == OPEN).values(expires_at=later)
    if session.connection().execute(still).rowcount:
        return True
    if session.exec(select(PushRow.state).where(PushRow.id == push_id)).first() != COMMITTED:
        raise unknown_push(push_id)
    return False


def end(session: Session, push_id: str) -> bool:
    """An open push is committed and holds nothing any more. Whether it was open."""
    ended = update(PushRow).where(col(PushRow.id) == push_id, col(PushRow.state) == OPEN).values(state=COMMITTED)
    return bool(session.connection().execute(ended).rowcount)


def unknown_push(push_id: str) -> NotFound:
    """The one answer for a push that is somebody else's, that has expired, or that never was."""
    return NotFound(
        "PUSH_UNKNOWN",
        f"there is no open push {push_id[:80]!r} of yours",
        next_step="push again: only what is missing will be sent",
    )
