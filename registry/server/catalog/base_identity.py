"""Identities of bases: which weights each has, kept once, and how registered bases are related.

Invariants
- The first identity of a base stays; another one under its name is refused, with how the two are related. Only norms
  may still come to it, by reading the same weights again: an earlier release did not take them.
- Grades are worked out when an identity comes in and read from their rows; what two servers made at the same moment,
  and so without a row, is worked out when it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from sqlalchemy import bindparam
from sqlalchemy.orm import defer
from sqlmodel import Session, col, select

from registry.bases import identity as base_identity
from registry.bases.identity import Identity
from registry.bases.similarity import BaseMatch, Similarity
from registry.digest import Digest
from registry.errors import Conflict, Denied
from registry.events import EventType
from registry.roles import Scope
from registry.server import audit
from registry.server.actors import Actor
from registry.server.database import db
from registry.server.database.models import BaseIdentityRow, BaseRow, BaseSimilarityRow


def store_identity(session: Session, actor: Actor, base: BaseRow, given: Identity, *, new: bool = False) -> bool:
    """Whether this call kept it. `Conflict` (BASE_EXISTS) when the base has other weights than these; `Denied`.

    `new`: the base is being added by this very request.
    """
    base_id = base.id or 0
    # A base is everybody's: one namespace's people must not tell all others, once and for ever, which weights it has.
    may_tell = new or actor.may_everywhere(Scope.WORK)
    if not may_tell and session.get(BaseIdentityRow, base_id) is None:
        raise Denied(
            "DENIED",
            f"which weights '{base.name}' has tells whoever adds it, or later the scope 'work' in all namespaces",
            next_step="ask an administrator to run `adapter base identify`",
        )
    # Whoever records the base as it was sees that it changed: an empty `recorded_at` that is emptied is not written.
    session.refresh(base, with_for_update={"key_share": True})
    values = {
        "base_id": base_id, "exact": str(given.exact), "identity": given.model_dump_json(),
        "made_at": db.now(), "made_by": actor.identity,
    }  # fmt: skip
    if not db.insert_new(session, BaseIdentityRow, values):
        require_same_weights(session, base, given.exact, given)
        if may_tell:
            _add_norms(session, base, given)
        return False
    for row in session.exec(select(BaseIdentityRow).where(col(BaseIdentityRow.base_id) != base_id)):
        found = base_identity.compare(given, _value(row)).model_dump(mode="json", exclude={"other"})
        for one, other in ((base_id, row.base_id), (row.base_id, base_id)):
            db.insert_new(session, BaseSimilarityRow, {"base_id": one, "other_id": other, "similarity": found})
    base.recorded_at = None  # its record is written anew
    session.add(base)
    audit.append(session, actor, EventType.BASE_IDENTIFY, base.name, {"exact": str(given.exact)})
    return True


def _add_norms(session: Session, base: BaseRow, given: Identity) -> None:
    """The same weights, read again: norms come to an identity that was made before norms were taken."""
    row = session.get_one(BaseIdentityRow, base.id)
    if given.has_norms and not _value(row).has_norms:
        row.identity = given.model_dump_json()
        base.recorded_at = None
        session.add_all((row, base))


def require_same_weights(session: Session, base: BaseRow, exact: Digest, given: Identity | None = None) -> None:
    """`Conflict` (BASE_EXISTS) when the base is known to have other weights."""
    row = session.get(BaseIdentityRow, base.id)
    if row is None or row.exact == exact:
        return
    how = f"; what was given {base_identity.compare(_value(row), given).message}" if given is not None else ""
    raise Conflict(
        "BASE_EXISTS",
        f"base '{base.name}' exists with other weights: its exact fingerprint is {row.exact}, not {exact}{how}",
        next_step="add these weights under another name: a base never changes under its adapters",
    )


def compare(session: Session, base: BaseRow, given: Identity) -> Similarity:
    """How these weights are related to the base's; `unknown` while the base has no identity."""
    row = session.get(BaseIdentityRow, base.id)
    if row is None:
        return Similarity(match=BaseMatch.UNKNOWN)
    return base_identity.compare(_value(row), given)


def exact_fingerprints(session: Session, bases: Iterable[BaseRow]) -> dict[int, Digest]:
    """Base id → exact fingerprint, of those that have one."""
    wanted = [base.id for base in bases]
    statement = select(BaseIdentityRow.base_id, BaseIdentityRow.exact).where(col(BaseIdentityRow.base_id).in_(wanted))
    return {base_id: Digest(exact) for base_id, exact in session.exec(statement)}


_LIGHT = (
    select(BaseIdentityRow)
    .options(defer(cast(Any, BaseIdentityRow.identity)))
    .where(col(BaseIdentityRow.base_id) == bindparam("id"))
)
"""Without the identity itself, which is large and read where it is compared. Put together once, for every push."""


def find_relatives(session: Session, base: BaseRow) -> list[Similarity]:
    """Every other base with an identity and how it is related to this one, by name; empty without an identity."""
    mine = session.exec(_LIGHT, params={"id": base.id}).first()
    if mine is None:
        return []
    statement = (
        select(BaseRow.name, BaseIdentityRow.base_id, BaseSimilarityRow.similarity)
        .join(BaseIdentityRow, col(BaseIdentityRow.base_id) == col(BaseRow.id))
        .outerjoin(
            BaseSimilarityRow,
            (col(BaseSimilarityRow.other_id) == col(BaseRow.id)) & (col(BaseSimilarityRow.base_id) == base.id),
        )
        .where(col(BaseRow.id) != base.id)
        .order_by(col(BaseRow.name))
    )
    found = []
    for name, other_id, stored in session.exec(statement).all():
        if stored:
            similarity = Similarity.model_validate(stored)
        else:
            similarity = base_identity.compare(_value(mine), _value(session.get_one(BaseIdentityRow, other_id)))
        found.append(similarity.model_copy(update={"other": name}))
    return found


def _value(row: BaseIdentityRow) -> Identity:
    return Identity.model_validate_json(row.identity)
