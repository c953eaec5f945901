"""Which weights each base has, and how the weights of bases are related.

- Other weights under the name of a base are refused. Only norms may be added to an identity, by reading the same
  weights again.
- Similarities are computed when an identity is stored. If two servers store identities at the same moment they miss
  that pair; it is computed on request.
"""

from collections.abc import Iterable
from typing import Any, cast

from sqlalchemy import bindparam
from sqlalchemy.orm import defer
from sqlmodel import Session, col, select

from registry import names
from registry.bases import BaseMatch, Similarity
from registry.bases import identity as identities
from registry.bases.identity import Identity
from registry.digest import Digest
from registry.errors import Conflict, Denied
from registry.events import EventType
from registry.roles import Scope
from registry.server import audit
from registry.server.actors import Actor
from registry.server.catalog import base_rows
from registry.server.database import db
from registry.server.database.expressions import any_of
from registry.server.database.models import BaseIdentityRow, BaseRow, BaseSimilarityRow

# Built once: every push executes it. The identity itself is large and rarely needed.
_SELECT_IDENTITY = (
    select(BaseIdentityRow)
    .options(defer(cast(Any, BaseIdentityRow.identity)))
    .where(col(BaseIdentityRow.base_id) == bindparam("id"))
)


def store_identity(session: Session, actor: Actor, base: BaseRow, identity: Identity, *, new: bool = False) -> bool:
    """Store which weights a base has; returns False if it was known. `Conflict` (BASE_EXISTS) for others; `Denied`.

    `new`: this request adds the base.
    """
    base_id = base.id or 0
    # All namespaces share the bases, and what is stored here stays.
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
        similarity = identities.compare(identity, _parse_identity(row)).model_dump(mode="json", exclude={"other"})
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
    if identity.has_norms and not _parse_identity(row).has_norms:
        row.identity = identity.model_dump_json()
        base.recorded_at = None
        session.add_all((row, base))


def require_same_weights(session: Session, base: BaseRow, exact: Digest, identity: Identity | None = None) -> None:
    """`Conflict` (BASE_EXISTS) if the base is known to have other weights."""
    row = session.get(BaseIdentityRow, base.id)
    if row is None or row.exact == exact:
        return
    similarity = identities.compare(_parse_identity(row), identity) if identity is not None else None
    relation = f"; the given base {similarity.message}" if similarity is not None else ""
    raise Conflict(
        "BASE_EXISTS",
        f"base '{base.name}' exists with other weights: its exact fingerprint is {row.exact}, not {exact}{relation}",
        next_step="add these weights under another name: a base never changes under its adapters",
    )


def compare_weights(session: Session, name: str, identity: Identity) -> Similarity:
    """How these weights are related to the base's; `unknown` while the base has no identity. Nothing is stored."""
    row = session.get(BaseIdentityRow, base_rows.find(session, names.base_name(name)).id)
    if row is None:
        return Similarity(match=BaseMatch.UNKNOWN)
    return identities.compare(_parse_identity(row), identity)


def exact_fingerprints(session: Session, rows: Iterable[BaseRow]) -> dict[int, Digest]:
    """Base id → exact fingerprint, for those bases that have one."""
    ids = [base.id for base in rows]
    statement = select(BaseIdentityRow.base_id, BaseIdentityRow.exact).where(any_of(col(BaseIdentityRow.base_id), ids))
    return {base_id: Digest(exact) for base_id, exact in session.exec(statement)}


def find_relatives(session: Session, base: BaseRow) -> list[Similarity]:
    """How other bases are related to this one, by name: its aliases, and those with an identity if this one has one."""
    aliases = [Similarity(other=alias, match=BaseMatch.EXACT) for alias in base.aliases or ()]
    own = session.exec(_SELECT_IDENTITY, params={"id": base.id}).first()
    if own is None:
        return aliases
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
            other = session.get_one(BaseIdentityRow, other_id)
            similarity = identities.compare(_parse_identity(own), _parse_identity(other))
        relatives.append(similarity.model_copy(update={"other": name}))
    return [*aliases, *relatives]


def _parse_identity(row: BaseIdentityRow) -> Identity:
    return Identity.model_validate_json(row.identity)
