"""Which weights each base has, and how the weights of bases are related.

- Other weights under the name of a base are refused. Only norms may be added to an identity, by reading the same
  weights again.
- Similarities are computed when an identity is stored, of `COMPARED_LIMIT` pairs: anyone who may push somewhere adds
  bases, and an identity may have a megabyte. Pairs that are missing are computed on request, `COMPUTED_LIMIT` of them.
"""

from collections.abc import Iterable
from typing import Any, cast

from sqlalchemy import bindparam, case, false, func
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

COMPARED_LIMIT = 100
"""With how many bases a new identity is compared: equal ones first, then those of its architecture, since others are
hardly ever related; of these those of its organization first, then the oldest."""
COMPUTED_LIMIT = 10
"""How many missing pairs one request computes, of bases of the same architecture first. The others are `unknown`."""
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
    # The lock lets whoever writes the base to the bucket now see the change: without it, setting an empty
    # `recorded_at` to empty again would write nothing.
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
    for other_id in session.exec(_select_compared(base, identity)).all():
        other = _read_identity(session, other_id)  # one at a time
        similarity = identities.compare(identity, other).model_dump(mode="json", exclude={"other"})
        for pair in ((base_id, other_id), (other_id, base_id)):
            values = {"base_id": pair[0], "other_id": pair[1], "similarity": similarity}
            db.insert_new(session, BaseSimilarityRow, values)
    base.recorded_at = None  # it is written again
    session.add(base)
    audit.append(session, actor, EventType.BASE_IDENTIFY, base.name, {"exact": str(identity.exact)})
    return True


def _select_compared(base: BaseRow, identity: Identity) -> Any:
    organization = f"{base.name.partition('/')[0].lower()}/" if "/" in base.name else ""
    is_near = func.lower(BaseRow.name).startswith(organization, autoescape=True) if organization else false()
    nearest = (col(BaseIdentityRow.exact) == identity.exact, col(BaseRow.fingerprint) == base.fingerprint, is_near)
    return (
        select(BaseIdentityRow.base_id)
        .join(BaseRow, col(BaseRow.id) == col(BaseIdentityRow.base_id))
        .where(col(BaseIdentityRow.base_id) != base.id)
        .order_by(*(case((condition, 0), else_=1) for condition in nearest), col(BaseRow.id))
        .limit(COMPARED_LIMIT)
    )


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
        select(BaseRow.name, BaseIdentityRow.base_id, BaseRow.fingerprint, BaseSimilarityRow.similarity)
        .join(BaseIdentityRow, col(BaseIdentityRow.base_id) == col(BaseRow.id))
        .outerjoin(
            BaseSimilarityRow,
            (col(BaseSimilarityRow.other_id) == col(BaseRow.id)) & (col(BaseSimilarityRow.base_id) == base.id),
        )
        .where(col(BaseRow.id) != base.id)
        .order_by(col(BaseRow.name))
    )
    relatives, rows = [], session.exec(statement).all()
    missing = sorted(
        (fingerprint != base.fingerprint, other_id) for _, other_id, fingerprint, stored in rows if not stored
    )
    computed = {other_id for _, other_id in missing[:COMPUTED_LIMIT]}
    for name, other_id, _, stored in rows:
        if stored:
            similarity = Similarity.model_validate(stored)
        elif other_id in computed:
            similarity = identities.compare(_parse_identity(own), _read_identity(session, other_id))
        else:
            similarity = Similarity(match=BaseMatch.UNKNOWN)
        relatives.append(similarity.model_copy(update={"other": name}))
    return [*aliases, *relatives]


def are_unrelated(session: Session, base: BaseRow, other: BaseRow) -> bool:
    """Whether two bases are known to have weights that are not related."""
    stored = session.get(BaseSimilarityRow, (base.id, other.id))
    if stored is not None:
        return Similarity.model_validate(stored.similarity).match is BaseMatch.UNRELATED
    own, of_other = (session.get(BaseIdentityRow, row.id) for row in (base, other))
    if own is None or of_other is None:
        return False
    return identities.compare(_parse_identity(own), _parse_identity(of_other)).match is BaseMatch.UNRELATED


def _read_identity(session: Session, base_id: int) -> Identity:
    """The identity alone: a row would stay in the session's memory."""
    statement = select(BaseIdentityRow.identity).where(BaseIdentityRow.base_id == base_id)
    return Identity.model_validate_json(session.exec(statement).one())


def _parse_identity(row: BaseIdentityRow) -> Identity:
    return Identity.model_validate_json(row.identity)
