"""Identities of bases: which weights each base has, and how registered bases are related.

- The first identity of a base stays. Other weights under its name are refused. Only norms may still be added by reading
  the same weights again, because an earlier release did not record them.
- Similarities are computed when an identity is stored and read from their rows. Two servers that store identities at
  the same moment miss that pair; it is computed on request.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from sqlalchemy import bindparam
from sqlalchemy.orm import defer
from sqlmodel import Session, col, select

from registry.bases import BaseMatch, Similarity
from registry.bases import identity as identities
from registry.bases.identity import Identity
from registry.digest import Digest
from registry.errors import Conflict, Denied
from registry.events import EventType
from registry.roles import Scope
from registry.server import audit
from registry.server.actors import Actor
from registry.server.database import db
from registry.server.database.models import BaseIdentityRow, BaseRow, BaseSimilarityRow


def store_identity(session: Session, actor: Actor, base: BaseRow, identity: Identity, *, new: bool = False) -> bool:
    """Store which weights a base has; returns False if it was known. `Conflict` (BASE_EXISTS) for others; `Denied`.

    `new`: this request adds the base.
    """
    base_id = base.id or 0
    # Everybody shares the bases: one namespace must not decide for all others, irrevocably, which weights one has.
    may_identify = new or actor.may_everywhere(Scope.WORK)
    if not may_identify and session.get(BaseIdentityRow, base_id) is None:
        raise Denied(
            "DENIED",
            f"to identify the weights of '{base.name}' later needs the scope 'work' in all namespaces",
            next_step="ask an administrator to run `adapter base identify`",
        )
    # The lock makes a concurrent backup see the change: without it, setting an empty `recorded_at` to empty again
    # would write nothing.
    session.refresh(base, with_for_update={"key_share": True})
    values = {
        "base_id": base_id, "exact": str(identity.exact), "identity": identity.model_dump_json(),
        "made_at": db.now(), "made_by": actor.identity,
    }  # fmt: skip
    if not db.insert_new(session, BaseIdentityRow, values):
        require_same_weights(session, base, identity.exact, identity)
        if may_identify:
            _add_norms(session, base, identity)
        return False
    for row in session.exec(select(BaseIdentityRow).where(col(BaseIdentityRow.base_id) != base_id)):
        similarity = identities.compare(identity, _parse(row)).model_dump(mode="json", exclude={"other"})
        for own_id, other_id in ((base_id, row.base_id), (row.base_id, base_id)):
            values = {"base_id": own_id, "other_id": other_id, "similarity": similarity}
            db.insert_new(session, BaseSimilarityRow, values)
    base.recorded_at = None  # its record is written again
    session.add(base)
    audit.append(session, actor, EventType.BASE_IDENTIFY, base.name, {"exact": str(identity.exact)})
    return True


def _add_norms(session: Session, base: BaseRow, identity: Identity) -> None:
    """Add norms to an identity that was stored without them."""
    row = session.get_one(BaseIdentityRow, base.id)
    if identity.has_norms and not _parse(row).has_norms:
        row.identity = identity.model_dump_json()
        base.recorded_at = None
        session.add_all((row, base))


def require_same_weights(session: Session, base: BaseRow, exact: Digest, identity: Identity | None = None) -> None:
    """`Conflict` (BASE_EXISTS) if the base is known to have other weights."""
    row = session.get(BaseIdentityRow, base.id)
    if row is None or row.exact == exact:
        return
    relation = f"; the given base {identities.compare(_parse(row), identity).message}" if identity is not None else ""
    raise Conflict(
        "BASE_EXISTS",
        f"base '{base.name}' exists with other weights: its exact fingerprint is {row.exact}, not {exact}{relation}",
        next_step="add these weights under another name: a base never changes under its adapters",
    )


def compare(session: Session, base: BaseRow, identity: Identity) -> Similarity:
    """How these weights are related to the base's; `unknown` while the base has no identity."""
    row = session.get(BaseIdentityRow, base.id)
    if row is None:
        return Similarity(match=BaseMatch.UNKNOWN)
    return identities.compare(_parse(row), identity)


def exact_fingerprints(session: Session, bases: Iterable[BaseRow]) -> dict[int, Digest]:
    """Base id → exact fingerprint, for those bases that have one."""
    ids = [base.id for base in bases]
    statement = select(BaseIdentityRow.base_id, BaseIdentityRow.exact).where(col(BaseIdentityRow.base_id).in_(ids))
    return {base_id: Digest(exact) for base_id, exact in session.exec(statement)}


# Without the identity itself, which is large and rarely needed. Built once, for every push.
_LIGHT = (
    select(BaseIdentityRow)
    .options(defer(cast(Any, BaseIdentityRow.identity)))
    .where(col(BaseIdentityRow.base_id) == bindparam("id"))
)


def find_relatives(session: Session, base: BaseRow) -> list[Similarity]:
    """How every other base with an identity is related to this one, by name; empty if this one has no identity."""
    own = session.exec(_LIGHT, params={"id": base.id}).first()
    if own is None:
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
    relatives = []
    for name, other_id, stored in session.exec(statement).all():
        if stored:
            similarity = Similarity.model_validate(stored)
        else:
            similarity = identities.compare(_parse(own), _parse(session.get_one(BaseIdentityRow, other_id)))
        relatives.append(similarity.model_copy(update={"other": name}))
    return relatives


def _parse(row: BaseIdentityRow) -> Identity:
    return Identity.model_validate_json(row.identity)
