"""Token exchange: an identity token of a CI job or of an identity provider for a short-lived token of the registry.

- An identity token is accepted once: its `jti` is stored under a unique key until the identity token has expired. The
  new token lasts `LIFETIME_SECONDS` at most, and no longer than the identity token.
- An issuer with a `login_claim` signs people in: the token belongs to the subject in that claim and is bound by the
  roles of the subject and of the groups in the `groups_claim`. Every other issuer is for CI jobs, which name one
  adapter and may push it if one of its trusted publishers matches, and nothing else. No owner's rule can change what a
  person, or the job of another adapter, gets.
- Every rejection has the same text, so no one learns which adapters trust whom.
"""

import secrets
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

from sqlalchemy import delete, func
from sqlmodel import Session, col, select

from registry.api import access
from registry.errors import Invalid, NotFound, TooLarge
from registry.events import EventType
from registry.names import AdapterName
from registry.roles import Scope
from registry.server import audit
from registry.server.access import namespaces, reserved_names, tokens
from registry.server.access.issuers import LEEWAY_SECONDS, IdentityToken, Issuers, rejection
from registry.server.actors import EVERY_NAMESPACE, EXCHANGE, GROUP, TRUSTED, Actor, is_subject
from registry.server.database import db
from registry.server.database.models import TokenRow
from registry.server.database.models.sign_in import PublisherRow, UsedAssertionRow

# All claims of a rule must match; `*` stands for any text. The owner decides how much a rule matches and should include
# `sub` or another claim that only the issuer sets. A rule ends with its adapter: after a transfer no right remains.
WILDCARD = "*"
WILDCARDS_LIMIT = 4
RULES_LIMIT = 500
"""Rules of one namespace."""


def add(
    session: Session, actor: Actor, name: AdapterName, request: access.PublisherAdd, issuers: Issuers
) -> access.PublisherView:
    """Add a rule for an adapter, which need not exist yet. `Conflict` for a name that can never be used."""
    actor.require(Scope.ADMIN, name)
    if request.issuer in issuers.login_issuers:
        raise Invalid("REQUEST_INVALID", f"issuer: {request.issuer!r} is for sign-in and cannot have publishers")
    db.lock_names(session, f"publishers of {name.namespace}")
    count = select(func.count(col(PublisherRow.id))).where(PublisherRow.namespace == name.namespace)
    if session.exec(count).one() >= RULES_LIMIT:
        raise TooLarge("SIZE_INVALID", f"namespace '{name.namespace}' has {RULES_LIMIT} trusted publishers, the limit")
    for claim, pattern in request.claims.items():
        length_is_valid = 0 < len(claim) <= 100 and 0 < len(pattern) <= access.CLAIM_LIMIT
        if not length_is_valid or pattern.count(WILDCARD) > WILDCARDS_LIMIT:
            rule = f"needs a pattern of 1 to {access.CLAIM_LIMIT} characters with at most {WILDCARDS_LIMIT} '*'"
            raise Invalid("REQUEST_INVALID", f"claims: {claim[:80]!r} {rule}")
    if all(pattern.strip(WILDCARD) == "" for pattern in request.claims.values()):
        raise Invalid("REQUEST_INVALID", "claims: at least one pattern must be more than '*', or everyone could push")
    aliases = sorted(namespaces.read_aliases(request.aliases))
    reserved_names.check_available(session, actor, name)
    row = PublisherRow(
        id="pub_" + secrets.token_hex(8), namespace=name.namespace, name=name.name,
        issuer=request.issuer, claims=dict(request.claims), aliases=aliases,
        created_at=db.now(), created_by=actor.identity,
    )  # fmt: skip
    session.add(row)
    detail = {"id": row.id, "issuer": row.issuer, "claims": row.claims, "aliases": aliases}
    audit.append(session, actor, EventType.PUBLISHER_ADD, str(name), detail)
    session.flush()
    return _view(row, issuers)


def list_publishers(session: Session, actor: Actor, name: AdapterName, issuers: Issuers) -> access.PublisherList:
    """Return the rules of an adapter, oldest first."""
    actor.require(Scope.ADMIN, name)
    return access.PublisherList(items=[_view(row, issuers) for row in _rows(session, name)])


def delete_publisher(
    session: Session, actor: Actor, name: AdapterName, publisher_id: str, issuers: Issuers
) -> access.PublisherView:
    """Delete a rule. Tokens that it has given expire within minutes."""
    actor.require(Scope.ADMIN, name)
    row = session.get(PublisherRow, publisher_id[:80])
    if row is None or (row.namespace, row.name) != (name.namespace, name.name):
        raise NotFound("PUBLISHER_UNKNOWN", f"adapter '{name}' has no trusted publisher {publisher_id[:80]!r}")
    session.delete(row)
    audit.append(session, actor, EventType.PUBLISHER_DELETE, str(name), {"id": row.id, "issuer": row.issuer})
    return _view(row, issuers)


def find_trusted(
    session: Session, issuer: str, claims: Mapping[str, Any], name: AdapterName
) -> list[PublisherRow]:  # fmt: skip
    """The rules of an adapter that an identity token with these claims matches: it may push if there is one."""
    return [
        row
        for row in _rows(session, name)
        if row.issuer == issuer and all(c in claims and matches_pattern(p, claims[c]) for c, p in row.claims.items())
    ]


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


def _view(row: PublisherRow, issuers: Issuers) -> access.PublisherView:
    name, is_configured = f"{row.namespace}/{row.name}", row.issuer in issuers
    return db.to_view(row, access.PublisherView, adapter=name, issuer_is_configured=is_configured)


LIFETIME_SECONDS = 15 * 60
# A `jti` must not be forgotten while its token is still valid.
MARGIN = timedelta(seconds=LEEWAY_SECONDS + 5)
PERSONAL_SCOPES = sorted({Scope.ADMIN, Scope.AUDIT, Scope.PROMOTE, Scope.PULL, Scope.PUSH})


def exchange_token(session: Session, issuers: Issuers, request: access.ExchangeRequest) -> tuple[access.TokenView, str]:
    """Return a new token and its secret; `session` is unused so far. `Unauthenticated` if invalid or not trusted."""
    identity = issuers.verify(request.assertion)
    adapter = AdapterName.parse(request.adapter) if request.adapter else None
    db.begin_writing(session)
    token_request = _token_request(session, identity, adapter)
    _store_jti(session, identity)
    return _issue(session, identity, token_request, _issuing_actor(identity))


def issue_for_browser(session: Session, identity: IdentityToken, seconds: int) -> str:
    """Create a person's token for one session of a browser and return its secret. `Unauthenticated`.

    It may outlast the identity token, which says who signed in and not for how long.
    """
    request = _personal_request(identity, seconds)
    return _issue(session, identity, request, Actor(EXCHANGE, "", TRUSTED.scopes, TRUSTED.namespaces))[1]


def _issue(
    session: Session, identity: IdentityToken, request: access.TokenCreate, by: Actor
) -> tuple[access.TokenView, str]:
    row, secret = tokens.build_row(request, by, subject=request.subject)
    row.groups = list(identity.groups)
    db.insert_new(session, TokenRow, row.model_dump())
    scopes, namespaces = frozenset(row.scopes), frozenset(row.namespaces)
    actor = Actor(request.name, row.id, scopes, namespaces, subject=row.subject, is_publisher=not row.subject)
    detail = {"issuer": identity.issuer, "sub": str(identity.claims["sub"])[:500], "adapters": row.adapters}
    detail |= {"aliases": row.aliases} if row.aliases else {}
    audit.append(session, actor, EventType.TOKEN_EXCHANGE, row.id, detail)
    return db.to_view(row, access.TokenView), secret


def _token_request(session: Session, identity: IdentityToken, adapter: AdapterName | None) -> access.TokenCreate:
    """Return the token that these claims allow: a person's, or a trusted publisher's."""
    if identity.signs_in:
        if adapter is not None:
            raise rejection(f"{identity.issuer} is for people, and the request names the adapter {adapter}")
        return _personal_request(identity, LIFETIME_SECONDS)
    if adapter is None:
        message = "adapter: an identity token of this issuer is exchanged for one adapter"
        raise Invalid("REQUEST_INVALID", message, next_step="name the adapter to push, with `--adapter NAME`")
    rules = find_trusted(session, identity.issuer, identity.claims, adapter)
    if not rules:
        claims = ", ".join(f"{name} {value!r}" for name, value in sorted(identity.claims.items()))
        raise rejection(f"{adapter} has no trusted publisher with these claims: {claims}")
    aliases = sorted({alias for rule in rules for alias in rule.aliases})
    return access.TokenCreate(
        name="".join(filter(str.isprintable, str(identity.claims["sub"])))[:100] or identity.issuer[:100],
        scopes=[Scope.PUSH, Scope.PROMOTE] if aliases else [Scope.PUSH],
        namespaces=[adapter.namespace],
        adapters=[str(adapter)],
        aliases=aliases,
        expires_in_seconds=LIFETIME_SECONDS,
    )


def _personal_request(identity: IdentityToken, seconds: int) -> access.TokenCreate:
    if not is_subject(identity.login) or identity.login.startswith(GROUP):
        raise rejection(f"{identity.issuer}: its login {identity.login!r} names no person")
    return access.TokenCreate(
        name=identity.login[:100],
        scopes=PERSONAL_SCOPES,
        namespaces=[EVERY_NAMESPACE],
        subject=identity.login,
        expires_in_seconds=seconds,
    )


def _store_jti(session: Session, identity: IdentityToken) -> None:
    session.connection().execute(delete(UsedAssertionRow).where(col(UsedAssertionRow.expires_at) < db.now()))
    values = {"issuer": identity.issuer, "jti": identity.jti, "expires_at": identity.expires_at + MARGIN}
    if not db.insert_new(session, UsedAssertionRow, values):
        raise rejection(f"{identity.issuer}: it was used before")


def _issuing_actor(identity: IdentityToken) -> Actor:
    """Return the actor that issues the token; the token cannot outlast it."""
    expires_at = max(identity.expires_at, db.now() + timedelta(seconds=1))
    return Actor(EXCHANGE, "", TRUSTED.scopes, TRUSTED.namespaces, expires_at)
