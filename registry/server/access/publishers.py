"""Trusted publishers: whose identity tokens may be exchanged for a short one that pushes one adapter.

Invariants
- A rule names its issuer exactly and at least one claim; all of its claims must match, `*` stands for any text.
- `sub` or a claim that only the issuer sets should be among them; the rule that matches too much is the owner's.
- A rule goes with its adapter: a transfer or a removal ends it, so no right survives in new hands.

Example
    >>> publishers.add(session, actor, name, PublisherAdd(issuer=GITHUB, claims={"repository": "acme/train"}))
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from typing import Any

from sqlmodel import Session, col, select

from registry.api.namespaces import CLAIM_LIMIT, PublisherAdd, PublisherList, PublisherView
from registry.errors import Invalid, NotFound
from registry.names import AdapterName
from registry.server import audit
from registry.server.access import reserved_names
from registry.server.actors import Actor
from registry.server.database import db
from registry.server.database.models.content import PublisherRow

ANY = "*"
STARS_LIMIT = 4


def add(session: Session, actor: Actor, name: AdapterName, request: PublisherAdd) -> PublisherView:
    """A rule for an adapter, which may be still to come. `Conflict` for a name that can never be given."""
    actor.demand("admin", name)
    for claim, pattern in request.claims.items():
        if not claim or len(claim) > 100 or not 0 < len(pattern) <= CLAIM_LIMIT or pattern.count(ANY) > STARS_LIMIT:
            rule = f"needs a pattern of 1 to {CLAIM_LIMIT} characters with at most {STARS_LIMIT} '*'"
            raise Invalid("REQUEST_INVALID", f"claims: {claim[:80]!r} {rule}")
    if all(pattern.strip(ANY) == "" for pattern in request.claims.values()):
        raise Invalid("REQUEST_INVALID", "claims: at least one must say more than '*', or everybody may push")
    reserved_names.foresee(session, actor, name)
    row = PublisherRow(
        id="pub_" + secrets.token_hex(8),
        namespace=name.namespace,
        name=name.name,
        issuer=request.issuer,
        claims=dict(request.claims),
        created_at=db.now(),
        created_by=actor.identity,
    )
    session.add(row)
    audit.append(session, actor, "publisher.add", str(name), {"id": row.id, "issuer": row.issuer, "claims": row.claims})
    session.flush()
    return _view(row)


def every(session: Session, actor: Actor, name: AdapterName) -> PublisherList:
    actor.demand("admin", name)
    return PublisherList(items=[_view(row) for row in _rows(session, name)])


def remove(session: Session, actor: Actor, name: AdapterName, publisher_id: str) -> PublisherView:
    """End a rule. Tokens that it gave last for minutes at most."""
    actor.demand("admin", name)
    row = session.get(PublisherRow, publisher_id[:80])
    if row is None or (row.namespace, row.name) != (name.namespace, name.name):
        raise NotFound("PUBLISHER_UNKNOWN", f"adapter '{name}' has no trusted publisher {publisher_id[:80]!r}")
    session.delete(row)
    audit.append(session, actor, "publisher.remove", str(name), {"id": row.id, "issuer": row.issuer})
    return _view(row)


def end_all(session: Session, name: AdapterName) -> None:
    """For an adapter that goes away or changes hands."""
    for row in _rows(session, name):
        session.delete(row)


def trusted(session: Session, issuer: str, claims: Mapping[str, Any]) -> list[AdapterName]:
    """The adapters that somebody with these claims may push, by name."""
    rows = session.exec(select(PublisherRow).where(col(PublisherRow.issuer) == issuer)).all()
    found = {AdapterName(row.namespace, row.name) for row in rows if _matches(row.claims, claims)}
    return sorted(found)


def _matches(wanted: Mapping[str, str], claims: Mapping[str, Any]) -> bool:
    return all(claim in claims and fits(pattern, claims[claim]) for claim, pattern in wanted.items())


def fits(pattern: str, value: Any) -> bool:
    """Whether a claim's value is what the pattern says. Only texts, whole numbers and truth values ever are.

    Linear in the value for each star: pieces are searched from left to right, so nothing is tried twice.
    """
    if not isinstance(value, str | int):
        return False
    text = str(value).lower() if isinstance(value, bool) else str(value)
    first, *rest = pattern.split(ANY)
    if not rest:
        return text == pattern
    last = rest.pop()
    if len(text) < len(first) + len(last) or not (text.startswith(first) and text.endswith(last)):
        return False
    return _in_order(rest, text[len(first) : len(text) - len(last)])


def _in_order(pieces: Iterable[str], text: str) -> bool:
    at = 0
    for piece in pieces:
        found = text.find(piece, at)
        if found < 0:
            return False
        at = found + len(piece)
    return True


def _rows(session: Session, name: AdapterName) -> list[PublisherRow]:
    mine = (col(PublisherRow.namespace) == name.namespace, col(PublisherRow.name) == name.name)
    return list(session.exec(select(PublisherRow).where(*mine).order_by(col(PublisherRow.created_at))).all())


def _view(row: PublisherRow) -> PublisherView:
    return PublisherView(
        id=row.id,
        adapter=f"{row.namespace}/{row.name}",
        issuer=row.issuer,
        claims=row.claims,
        created_at=row.created_at,
        created_by=row.created_by,
    )
