"""Tokens: issue, rotate, revoke, list.

- A secret is shown once, when it is created; the database holds only its SHA-256.
- No token can give a right that its creator does not hold, nor for longer than its creator holds it. A token that a
  subject creates belongs to that subject and loses its rights with the subject's role.
- Every replica sees a revocation or a rotation at the next request. Only look-ups that another server repeats from
  memory (`resolve_cache`, PostgreSQL) see it up to a second later, usually within a tenth.
"""

import contextlib
import itertools
import secrets
from dataclasses import replace
from datetime import timedelta

from sqlalchemy import ColumnElement, Engine, String, cast, or_, true, update
from sqlmodel import Session, col, select

from registry import names
from registry.api.access import TokenCreate, TokenPage, TokenView
from registry.errors import Conflict, Denied, Invalid, NotFound, invalid_cursor
from registry.events import EventType
from registry.names import AdapterName
from registry.roles import Scope
from registry.server import audit
from registry.server.access import epoch, namespaces
from registry.server.actors import EVERY_NAMESPACE, GROUP, TRUSTED, Actor, is_subject
from registry.server.database import db
from registry.server.database.models import TokenRow
from registry.token_secret import new_secret, sha256_of

SCAN_ROWS = 500
EXPIRING_LIMIT = 100
RECORD_USE_EVERY = timedelta(minutes=10)
FIRST_TOKEN = "first-admin"  # noqa: S105 - a name, not a secret


def issue(
    session: Session, actor: Actor, request: TokenCreate, *, token_id: str = "", secret_sha256: str = ""
) -> tuple[TokenView, str]:
    """Create a token; return it and its secret, empty if its hash is given. `Denied` for rights the actor lacks."""
    unknown = sorted(set(request.scopes) - set(Scope))
    if unknown or not request.scopes:
        raise Invalid("REQUEST_INVALID", f"scopes: got {unknown or 'none'}; use one or more of {', '.join(Scope)}")
    if not request.namespaces:
        raise Invalid("REQUEST_INVALID", "namespaces: name at least one; '*' means all")
    aliases = sorted(namespaces.read_aliases(request.aliases))
    if aliases and (Scope.PROMOTE not in request.scopes or Scope.ADMIN in request.scopes):
        raise Invalid("REQUEST_INVALID", "aliases: they limit the scope 'promote', which 'admin' gives for all")
    for namespace in request.namespaces:
        if namespace != EVERY_NAMESPACE:
            names.namespace(namespace)
        for scope, alias in itertools.product(request.scopes, aliases or [""]):
            if not actor.holds(Scope(scope), namespace, alias=alias):
                raise Denied("DENIED", f"token {actor.name!r} cannot give the scope '{scope}' in '{namespace}'")
    for adapter in request.adapters:
        if not {AdapterName.parse(adapter).namespace, EVERY_NAMESPACE} & set(request.namespaces):
            raise Invalid("REQUEST_INVALID", f"adapters: '{adapter}' is in none of the token's namespaces")
    subject = _subject_of_new(actor, request.subject)
    row, secret = build_row(request, actor, subject=subject, token_id=token_id)
    if secret_sha256:
        row.secret_sha256, secret = secret_sha256, ""
    if not db.insert_new(session, TokenRow, row.model_dump()):
        raise Conflict("TOKEN_EXISTS", f"there is a token {row.id!r} already")
    return _record_issue(session, actor, row), secret


def issue_own(
    session: Session, person: Actor, request: TokenCreate, *, secret_sha256: str = ""
) -> tuple[TokenView, str]:
    """Create a token with which a person acts elsewhere, such as at a command line, as in the browser.

    It has the person's groups and may outlast their session, so the person must just have been asked again who they
    are. With `secret_sha256` its holder has made the secret and nobody else ever knows it: the second result is empty.
    """
    row, secret = build_row(request, replace(person, expires_at=None), subject=person.subject)
    row.groups = sorted(person.groups)
    if secret_sha256:
        row.secret_sha256, secret = secret_sha256, ""
    if not db.insert_new(session, TokenRow, row.model_dump()):
        raise Conflict(
            "TOKEN_EXISTS", "there is a token with this secret already", next_step="run `adapter login` again"
        )
    return _record_issue(session, person, row), secret


def _record_issue(session: Session, actor: Actor, row: TokenRow) -> TokenView:
    detail = {"name": row.name, "scopes": row.scopes, "namespaces": row.namespaces, "subject": row.subject}
    detail |= {"aliases": row.aliases} if row.aliases else {}
    audit.append(session, actor, EventType.TOKEN_ISSUE, row.id, detail)
    return db.to_view(row, TokenView)


def build_row(request: TokenCreate, by: Actor, *, subject: str, token_id: str = "") -> tuple[TokenRow, str]:
    """Build the row of a new token and its secret, without checking whether `by` may give these rights."""
    secret, now = new_secret(), db.now()
    expiries = [now + timedelta(seconds=request.expires_in_seconds)] if request.expires_in_seconds else []
    expiries += [by.expires_at] if by.expires_at else []
    row = TokenRow(
        id=token_id or "tok_" + secrets.token_hex(8), name=request.name, secret_sha256=sha256_of(secret),
        scopes=sorted(set(request.scopes)), namespaces=sorted(set(request.namespaces)),
        adapters=sorted(set(request.adapters)), aliases=sorted(set(request.aliases)), subject=subject,
        created_at=now, created_by=by.identity, expires_at=min(expiries, default=None),
    )  # fmt: skip
    return row, secret


def _subject_of_new(actor: Actor, requested: str) -> str:
    """Return the subject of a new token: the actor's own, or any that an administrator requests."""
    if requested and (not is_subject(requested) or requested.startswith(GROUP)):
        message = f"subject: {requested!r} cannot have a token: it stands for others, or for the registry itself"
        raise Invalid("REQUEST_INVALID", message)
    if requested and requested != actor.subject:
        actor.require_everywhere(Scope.ADMIN)
        return requested
    return actor.subject


def has_tokens(engine: Engine) -> bool:
    """Whether the registry ever had a token."""
    with db.session(engine, write=False) as session:
        return session.exec(select(TokenRow.id).limit(1)).first() is not None


def create_first_token(engine: Engine, secret_sha256: str) -> bool:
    """Create a token that may do everything, unless there are tokens. Its id is fixed, so two that start create one."""
    with db.session(engine) as session:
        if session.exec(select(TokenRow.id).limit(1)).first():
            return False
        request = TokenCreate(name="admin", scopes=[Scope.ADMIN])
        with contextlib.suppress(Conflict):
            issue(session, TRUSTED, request, token_id=FIRST_TOKEN, secret_sha256=secret_sha256)
            return True
        return False


def should_record_use(row: TokenRow) -> bool:
    """Whether the last recorded use of this token is long ago."""
    return row.last_used_at is None or db.now() - row.last_used_at > RECORD_USE_EVERY


def record_use(session: Session, token_id: str) -> None:
    """Record that a token is used now."""
    statement = update(TokenRow).where(col(TokenRow.id) == token_id).values(last_used_at=db.now())
    session.connection().execute(statement)


def rotate(session: Session, actor: Actor, token_id: str, *, keep_seconds: int = 0) -> tuple[TokenView, str]:
    """Give a token a new secret. The old one stays valid for `keep_seconds`."""
    row = _find(session, actor, token_id)
    if row.id != actor.token_id:
        _require_all_rights(actor, row)
    if row.revoked_at is not None:
        raise Conflict("TOKEN_REVOKED", f"token {row.id!r} is revoked: create a new one")
    secret = new_secret()
    row.previous_sha256 = row.secret_sha256 if keep_seconds else None
    row.previous_until = db.now() + timedelta(seconds=keep_seconds) if keep_seconds else None
    row.secret_sha256 = sha256_of(secret)
    session.add(row)
    epoch.advance(session)
    audit.append(session, actor, EventType.TOKEN_ROTATE, row.id, {"name": row.name, "keep_seconds": keep_seconds})
    return db.to_view(row, TokenView), secret


def _require_all_rights(actor: Actor, row: TokenRow) -> None:
    """Raise `Denied` unless the actor has all rights of this token for as long: it would receive the token.

    Roles of a subject bind all its tokens alike, roles of groups only those that came with the groups. A token without
    a subject keeps its rights when a role ends, so an actor with a subject could keep them, too.
    """
    if actor.subject and not row.subject:
        raise Denied(
            "DENIED",
            f"token {actor.name!r} belongs to a subject, so it may revoke the token {row.id!r} but not rotate it",
            next_step="rotate it with its own secret, or revoke it and create a new one",
        )
    if row.subject == actor.subject:
        has_rights = actor.covers(row.scopes, row.namespaces) and actor.groups.issuperset(row.groups)
    else:
        has_rights = actor.may_everywhere(Scope.ADMIN)
    longer = actor.expires_at is not None and (row.expires_at is None or row.expires_at > actor.expires_at)
    if longer or not has_rights:
        raise Denied(
            "DENIED",
            f"token {actor.name!r} may revoke the token {row.id!r} but not rotate it",
            next_step="rotate it with its own secret, or with a token that has all its rights and lasts as long",
        )


def revoke(session: Session, actor: Actor, token_id: str) -> TokenView:
    """End a token now. Revoking it again changes nothing."""
    row = _find(session, actor, token_id)
    if row.revoked_at is None:
        row.revoked_at = db.now()
        session.add(row)
        epoch.advance(session)
        audit.append(session, actor, EventType.TOKEN_REVOKE, row.id, {"name": row.name})
    return db.to_view(row, TokenView)


def revoke_secret(session: Session, secret_sha256: str) -> None:
    """End the token whose secret has this hash, as its holder does."""
    row = session.exec(select(TokenRow).where(TokenRow.secret_sha256 == secret_sha256).with_for_update()).first()
    if row is not None:
        revoke(session, Actor(row.name, row.id, frozenset(), frozenset(), subject=row.subject), row.id)


def _find(session: Session, actor: Actor, token_id: str) -> TokenRow:
    row = session.get(TokenRow, token_id[:80], with_for_update=True)
    if row is None or not _may_revoke(actor, row):  # the same error, so that it does not tell whether the token exists
        raise NotFound("TOKEN_UNKNOWN", f"there is no token {token_id[:80]!r}, or you may not change it")
    return row


def _may_revoke(actor: Actor, row: TokenRow) -> bool:
    """A token may revoke itself, a subject its tokens, and an administrator the tokens of its namespaces."""
    is_own = actor.subject and row.subject == actor.subject and not (actor.adapters or actor.aliases)
    if row.id == actor.token_id or is_own:
        return True
    return all(actor.may(Scope.ADMIN, namespace) for namespace in row.namespaces)


def list_tokens(session: Session, actor: Actor, *, cursor: str = "", limit: int) -> TokenPage:
    """Return the tokens that the actor may revoke, newest first, from the one that follows `cursor`."""
    statement = select(TokenRow).where(_may_be_revocable(actor))
    if cursor:
        last = session.get(TokenRow, cursor)
        if last is None or not _may_revoke(actor, last):
            raise invalid_cursor()
        same_moment = (col(TokenRow.created_at) == last.created_at) & (col(TokenRow.id) > last.id)
        statement = statement.where(or_(col(TokenRow.created_at) < last.created_at, same_moment))
    ordered = statement.order_by(col(TokenRow.created_at).desc(), col(TokenRow.id))
    db.begin_transaction(session)
    rows = session.exec(ordered.execution_options(yield_per=SCAN_ROWS))
    revocable = itertools.islice((row for row in rows if _may_revoke(actor, row)), limit + 1)
    items = [db.to_view(row, TokenView) for row in revocable]
    return TokenPage(items=items[:limit], next_cursor=items[limit - 1].id if len(items) > limit else "")


def count_expiring(session: Session, actor: Actor, within: timedelta) -> int:
    """How many tokens that the actor may revoke end within this time: `EXPIRING_LIMIT` are looked at."""
    soon = (col(TokenRow.expires_at) > db.now()) & (col(TokenRow.expires_at) < db.now() + within)
    is_lasting = (col(TokenRow.revoked_at).is_(None)) & (col(TokenRow.name) != col(TokenRow.subject))
    statement = select(TokenRow).where(_may_be_revocable(actor), soon, is_lasting).limit(EXPIRING_LIMIT)
    return sum(_may_revoke(actor, row) for row in session.exec(statement))


def _may_be_revocable(actor: Actor) -> ColumnElement[bool]:
    """A condition that selects all tokens that the actor may revoke, and few others."""
    if actor.may_everywhere(Scope.ADMIN):
        return true()
    own = [col(TokenRow.id) == actor.token_id]
    if actor.subject:
        own.append(col(TokenRow.subject) == actor.subject)
    namespaces = cast(col(TokenRow.namespaces), String)
    administered = actor.namespaces_with(Scope.ADMIN) or ()
    return or_(*own, *(namespaces.contains(f'"{namespace}"', autoescape=True) for namespace in administered))
