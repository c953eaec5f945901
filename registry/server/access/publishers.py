"""Trusted publishers: whose identity tokens may be exchanged for a token that pushes one adapter.

A rule names one issuer and at least one claim. All of its claims must match; `*` stands for any text. The owner decides
how much a rule matches and should include `sub` or another claim that only the issuer sets. An issuer by which people
sign in has no rules. A rule ends with its adapter: after a transfer or a deletion no right remains.
"""

from __future__ import annotations

import secrets
from collections.abc import Container, Iterable, Mapping
from typing import Any

from sqlalchemy import func
from sqlmodel import Session, col, select

from registry.api.access import CLAIM_LIMIT, PublisherAdd, PublisherList, PublisherView
from registry.errors import Invalid, NotFound, TooLarge
from registry.events import EventType
from registry.names import AdapterName
from registry.roles import Scope
from registry.server import audit
from registry.server.access import reserved_names
from registry.server.actors import Actor
from registry.server.database import db
from registry.server.database.models import PublisherRow

WILDCARD = "*"
WILDCARDS_LIMIT = 4
RULES_LIMIT = 500
"""Rules of one namespace."""


def add(
    session: Session, actor: Actor, name: AdapterName, request: PublisherAdd, *, login_issuers: Container[str] = ()
) -> PublisherView:
    """Add a rule for an adapter, which need not exist yet. `Conflict` for a name that can never be used."""
    actor.require(Scope.ADMIN, name)
    if request.issuer in login_issuers:
        raise Invalid("REQUEST_INVALID", f"issuer: {request.issuer!r} is for sign-in and cannot have publishers")
    count = select(func.count(col(PublisherRow.id))).where(PublisherRow.namespace == name.namespace)
    if session.exec(count).one() >= RULES_LIMIT:
        raise TooLarge("SIZE_INVALID", f"namespace '{name.namespace}' has {RULES_LIMIT} trusted publishers, the limit")
    for claim, pattern in request.claims.items():
        length_is_valid = 0 < len(claim) <= 100 and 0 < len(pattern) <= CLAIM_LIMIT
        if not length_is_valid or pattern.count(WILDCARD) > WILDCARDS_LIMIT:
            rule = f"needs a pattern of 1 to {CLAIM_LIMIT} characters with at most {WILDCARDS_LIMIT} '*'"
            raise Invalid("REQUEST_INVALID", f"claims: {claim[:80]!r} {rule}")
    if all(pattern.strip(WILDCARD) == "" for pattern in request.claims.values()):
        raise Invalid("REQUEST_INVALID", "claims: at least one pattern must be more than '*', or everyone could push")
    reserved_names.check_available(session, actor, name)
    row = PublisherRow(
        id="pub_" + secrets.token_hex(8), namespace=name.namespace, name=name.name,
        issuer=request.issuer, claims=dict(request.claims), created_at=db.now(), created_by=actor.identity,
    )  # fmt: skip
    session.add(row)
    detail = {"id": row.id, "issuer": row.issuer, "claims": row.claims}
    audit.append(session, actor, EventType.PUBLISHER_ADD, str(name), detail)
    session.flush()
    return _view(row)


def list_publishers(session: Session, actor: Actor, name: AdapterName) -> PublisherList:
    """Return the rules of an adapter, oldest first."""
    actor.require(Scope.ADMIN, name)
    return PublisherList(items=[_view(row) for row in _rows(session, name)])


def remove(session: Session, actor: Actor, name: AdapterName, publisher_id: str) -> PublisherView:
    """Remove a rule. Tokens that it has given expire within minutes."""
    actor.require(Scope.ADMIN, name)
    row = session.get(PublisherRow, publisher_id[:80])
    if row is None or (row.namespace, row.name) != (name.namespace, name.name):
        raise NotFound("PUBLISHER_UNKNOWN", f"adapter '{name}' has no trusted publisher {publisher_id[:80]!r}")
    session.delete(row)
    audit.append(session, actor, EventType.PUBLISHER_REMOVE, str(name), {"id": row.id, "issuer": row.issuer})
    return _view(row)


def is_trusted(session: Session, issuer: str, claims: Mapping[str, Any], name: AdapterName) -> bool:
    """Whether an identity token with these claims may push an adapter."""
    return any(row.issuer == issuer and _matches(row.claims, claims) for row in _rows(session, name))


def _matches(patterns: Mapping[str, str], claims: Mapping[str, Any]) -> bool:
    return all(claim in claims and matches_pattern(pattern, claims[claim]) for claim, pattern in patterns.items())


def matches_pattern(pattern: str, value: Any) -> bool:
    """Whether a claim's value matches a pattern. Only texts, integers and booleans can.

    Takes linear time per wildcard: the parts are searched from left to right without backtracking.

    >>> matches_pattern("repo:acme/*:ref:refs/heads/main", "repo:acme/train:ref:refs/heads/main")
    True
    """
    if not isinstance(value, str | int):
        return False
    text = str(value).lower() if isinstance(value, bool) else str(value)
    first, *rest = pattern.split(WILDCARD)
    if not rest:
        return text == pattern
    last = rest.pop()
    if len(text) < len(first) + len(last) or not (text.startswith(first) and text.endswith(last)):
        return False
    return _contains_in_order(text[len(first) : len(text) - len(last)], rest)


def _contains_in_order(text: str, parts: Iterable[str]) -> bool:
    start = 0
    for part in parts:
        index = text.find(part, start)
        if index < 0:
            return False
        start = index + len(part)
    return True


def _rows(session: Session, name: AdapterName) -> list[PublisherRow]:
    statement = select(PublisherRow).where(PublisherRow.namespace == name.namespace, PublisherRow.name == name.name)
    return list(session.exec(statement.order_by(col(PublisherRow.created_at))).all())


def _view(row: PublisherRow) -> PublisherView:
    return db.to_answer(row, PublisherView, adapter=f"{row.namespace}/{row.name}")
