"""The states of a blob's row, and the references that protect a blob from garbage collection.

    pending ──commit──▶ live ──unreferenced──▶ dead ──claimed by GC──▶ deleting ──▶ (no row, no bytes)
       ▲                 │ ▲                    │
       └─────────────────│─│──── new push ──────┘      live ──bytes are wrong──▶ corrupt ──good bytes──▶ live

- A blob's row is created before its bytes, so a final key always has a row. `pending` says nothing about the bytes.
- References are: a version, a verdict or an attestation; an open push; a running job that is about to write the blob; a
  version that a serving node has reported, until the node's lease ends, even if the version's rows are gone.
- A new reference locks the blob's row first. GC checks the references again under the same lock, so correctness does
  not depend on clocks. `deleting` cannot be stopped: whatever needs the blob has to retry (TRY_LATER).
- Reserving is the same single statement whether or not the blob exists, so its duration does not reveal that.
"""

from collections.abc import Iterable, Mapping, Set
from datetime import datetime

from sqlalchemy import and_, bindparam, case, literal, literal_column, or_, update
from sqlmodel import Session, col, select

from registry.digest import Digest
from registry.errors import NotFound, Unavailable
from registry.server.database import db
from registry.server.database.expressions import any_of
from registry.server.database.models import BlobRow, UtcTime
from registry.server.database.models.pushes import PushRow
from registry.server.storage.states import BlobState, PushState

RETRY_AFTER_SECONDS = 1


# ------------------------------------------------------------------ blobs
_WAS_DEAD = col(BlobRow.state) == BlobState.DEAD
_IS_AWAITED = or_(_WAS_DEAD, col(BlobRow.state) == BlobState.PENDING)
_REVIVE = (
    # So that `gc` does not take for abandoned what a client begins to send now.
    ("created_at", case((_IS_AWAITED, literal_column("excluded.created_at")), else_=col(BlobRow.created_at))),
    ("state", case((_WAS_DEAD, BlobState.PENDING), else_=col(BlobRow.state))),
    ("marked_at", case((_WAS_DEAD, None), else_=col(BlobRow.marked_at))),
)
_DIGEST_AND_STATE = (col(BlobRow.digest), col(BlobRow.state))


def reserve(session: Session, sizes: Mapping[Digest, int]) -> dict[Digest, BlobState]:
    """Create or lock the rows of blobs that are about to be referenced; return their states.

    Insert the reference (push, job) in the same transaction. `Unavailable` (TRY_LATER) if GC is deleting one of them.
    """
    states = reserve_group(session, sizes)
    check_not_deleting(states)
    return states


def reserve_group(session: Session, sizes: Mapping[Digest, int]) -> dict[Digest, BlobState]:
    """Reserve blobs for several owners: the caller calls `check_not_deleting` for each of them."""
    if not sizes:
        return {}
    now = db.now()
    values = [
        {"digest": digest, "size_bytes": size, "state": BlobState.PENDING, "created_at": now}
        for digest, size in sorted(sizes.items())
    ]
    rows = db.upsert(session, BlobRow, values, on_conflict=_REVIVE, returning=_DIGEST_AND_STATE)
    return {Digest(digest): BlobState(state) for digest, state in rows}


def check_not_deleting(states: Mapping[Digest, BlobState], digests: Iterable[Digest] | None = None) -> None:
    """`Unavailable` (TRY_LATER) if GC is deleting one of these blobs, of all by default."""
    deleting = next((d for d in digests or states if states[d] is BlobState.DELETING), None)
    if deleting is not None:
        raise _try_later(f"blob {deleting} is being deleted right now", "try again in a moment")


_WRITTEN = any_of(col(BlobRow.digest), parameter="written_now")
_BECOMES_LIVE = or_(
    col(BlobRow.state).in_([BlobState.PENDING, BlobState.LIVE]), and_(col(BlobRow.state) == BlobState.CORRUPT, _WRITTEN)
)
_LOCK_ROWS = (
    select(BlobRow.digest)
    .where(any_of(col(BlobRow.digest), parameter="digests"), _BECOMES_LIVE)
    .order_by(col(BlobRow.digest))  # the order of `reserve`, so that pushes that share blobs cannot deadlock
    .with_for_update()
)
_SET_LIVE = (
    update(BlobRow)
    .where(col(BlobRow.digest).in_(_LOCK_ROWS))
    .values(
        state=BlobState.LIVE,
        marked_at=None,
        checked_at=case((_WRITTEN, bindparam("now", type_=UtcTime())), else_=col(BlobRow.checked_at)),
    )
    .returning(col(BlobRow.digest), col(BlobRow.size_bytes))
)
"""Built once, because every push executes it."""


def mark_live(session: Session, sizes: Mapping[Digest, int], *, written_now: Set[Digest] = frozenset()) -> None:
    """Mark blobs `live`: their bytes are stored and verified. `written_now` are those that were written just now.

    `Unavailable` (TRY_LATER) if one was found corrupt or deleted meanwhile: pushing again writes it again.
    """
    check_not_lost(mark_group_live(session, sizes, written_now=written_now), sizes)


def mark_group_live(
    session: Session, sizes: Mapping[Digest, int], *, written_now: Set[Digest] = frozenset()
) -> Set[Digest]:
    """Mark blobs of several owners as live. Return the lost ones, for `check_not_lost`."""
    params = {"digests": sorted(sizes), "written_now": sorted(written_now), "now": db.now()}
    rows = session.connection().execute(_SET_LIVE, params).all() if sizes else []
    stored_sizes = {Digest(digest): size for digest, size in rows}
    for digest, size in stored_sizes.items():
        if size != sizes[digest]:  # another push had declared another size
            correct = update(BlobRow).where(col(BlobRow.digest) == digest).values(size_bytes=sizes[digest])
            session.connection().execute(correct)
    return sizes.keys() - stored_sizes


def check_not_lost(lost: Set[Digest], digests: Iterable[Digest]) -> None:
    """`Unavailable` (TRY_LATER) if one of these blobs is lost."""
    first = min((digest for digest in digests if digest in lost), default=None)
    if first is not None:
        detail = f"blob {first} was found damaged or was deleted meanwhile"
        raise _try_later(detail, "push again: only missing files are sent")


def _try_later(detail: str, next_step: str) -> Unavailable:
    return Unavailable("TRY_LATER", detail, next_step=next_step, retry_after_seconds=RETRY_AFTER_SECONDS)


# ------------------------------------------------------------------ pushes
_OPEN_PUSHES = (
    select(PushRow.id)
    .where(any_of(col(PushRow.id), parameter="ids"), col(PushRow.state) == PushState.OPEN)
    .order_by(col(PushRow.id))  # so that two groups of the same pushes cannot deadlock
    .with_for_update()
)
_STATES = select(PushRow.id, PushRow.state).where(any_of(col(PushRow.id), parameter="ids"))
_END_OPEN = (
    update(PushRow)
    .where(col(PushRow.id).in_(_OPEN_PUSHES))
    .values(state=bindparam("final_state"), manifest="")  # no quota counts it, and it may have a megabyte
    .returning(col(PushRow.id))
)


def extend_pushes(session: Session, push_ids: Iterable[str], *, until: datetime) -> dict[str, PushState]:
    """Keep open pushes open until then at least. Returns the states of all, without those that are deleted."""
    ids = {"ids": sorted(push_ids)}
    later = case((col(PushRow.expires_at) > until, col(PushRow.expires_at)), else_=literal(until, UtcTime()))
    session.connection().execute(update(PushRow).where(col(PushRow.id).in_(_OPEN_PUSHES)).values(expires_at=later), ids)
    return {push_id: PushState(state) for push_id, state in session.exec(_STATES, params=ids)}


def end_pushes(session: Session, push_ids: Iterable[str], *, state: PushState = PushState.COMMITTED) -> set[str]:
    """End open pushes, and with them their references; return the ids of those that were open."""
    rows = session.connection().execute(_END_OPEN, {"ids": sorted(push_ids), "final_state": state})
    return set(rows.scalars())


def unknown_push(push_id: str) -> NotFound:
    """The error for a push that belongs to another token, has expired or never existed: the same for all three."""
    return NotFound(
        "PUSH_UNKNOWN", f"you have no open push {push_id[:80]!r}", next_step="push again: only missing files are sent"
    )
