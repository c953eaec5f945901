"""Tokens: issue, rotate, revoke, list. Whose a secret is, `access.signin` says.

Invariants
- A secret is shown once, when it is made; the database has its SHA-256 only (access/secret.py).
- Nobody gives a right that they do not hold, nor for longer than they hold it.
- A token that a subject makes is that subject's: it ends to mean anything when the subject's role does.
- A revocation and a rotation are seen by the next request, on every replica.
- Whoever may not end a token is told what they would be told of one that never was.

Example
    >>> view, secret = tokens.issue(session, actor, TokenCreate(name="ci", scopes=["push"], namespaces=["acme"]))
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import Engine, update
from sqlmodel import Session, col, select

from registry import names
from registry.api.access import TokenCreate, TokenView
from registry.errors import Conflict, Denied, Invalid, NotFound
from registry.names import AdapterName
from registry.server import audit
from registry.server.access import epoch
from registry.server.actors import EVERYBODY, EVERYWHERE, SCOPES, TRUSTED
from registry.server.actors import Actor as Actor
from registry.server.database import db
from registry.server.database.models.content import RoleRow, TokenRow
from registry.server.secret import new_secret as new_secret
from registry.server.secret import sha256_of as sha256_of
from registry.server.secret import well_formed as well_formed

USE_NOTED_EVERY = timedelta(minutes=10)
FIRST_TOKEN = "first-admin"  # noqa: S105 - a name, not a secret


def issue(session: Session, actor: Actor, request: TokenCreate, *, token_id: str = "") -> tuple[TokenView, str]:
    """A new token and its secret. `Denied` for rights that the actor does not hold itself."""
    unknown = sorted(set(request.scopes) - set(SCOPES))
    if unknown or not request.scopes:
        raise Invalid("REQUEST_INVALID", f"scopes: {unknown or 'none'} given; a token has some of {', '.join(SCOPES)}")
    if not request.namespaces:
        raise Invalid("REQUEST_INVALID", "namespaces: none given; '*' means all")
    for namespace in request.namespaces:
        if namespace != EVERYWHERE:
            names.namespace(namespace)
        for scope in request.scopes:
            if not actor.may(scope, namespace):
                raise Denied("DENIED", f"token {actor.name!r} cannot give the scope '{scope}' in '{namespace}'")
    for adapter in request.adapters:
        if not {AdapterName.parse(adapter).namespace, EVERYWHERE} & set(request.namespaces):
            raise Invalid("REQUEST_INVALID", f"adapters: '{adapter}' is in none of the token's namespaces")
    subject = _subject(actor, request.subject)
    if not subject:
        _refuse_disguise(session, request)
    row, secret = make(request, actor, subject=subject, token_id=token_id)
    if not db.insert_new(session, TokenRow, row.model_dump()):
        raise Conflict("TOKEN_EXISTS", f"there is a token {row.id!r} already")
    _tell(session, actor, row)
    return view(row), secret


def make(request: TokenCreate, by: Actor, *, subject: str, token_id: str = "") -> tuple[TokenRow, str]:
    """The row of a new token and its secret; whether it may be given has been judged."""
    secret, made_at = new_secret(), db.now()
    lasts = request.expires_in_seconds
    ends = [made_at + timedelta(seconds=lasts)] if lasts else []
    ends += [by.expires_at] if by.expires_at else []
    row = TokenRow(
        id=token_id or "tok_" + secrets.token_hex(8),
        name=request.name,
        secret_sha256=sha256_of(secret),
        scopes=sorted(set(request.scopes)),
        namespaces=sorted(set(request.namespaces)),
        created_at=made_at,
        created_by=by.identity,
        expires_at=min(ends, default=None),
        subject=subject,
        adapters=sorted(set(request.adapters)),
    )
    return row, secret


def _tell(session: Session, actor: Actor, row: TokenRow) -> None:
    told = {"name": row.name, "scopes": row.scopes, "namespaces": row.namespaces, "subject": row.subject}
    audit.append(session, actor, "token.issue", row.id, told)


def _subject(actor: Actor, wanted: str) -> str:
    """Whose the new token is. What a subject makes is its own; only an administrator makes one for somebody else."""
    if wanted == EVERYBODY:
        raise Invalid("REQUEST_INVALID", "subject: '*' is everybody, and a token is somebody's")
    if wanted and wanted != actor.subject:
        actor.demand_everywhere("admin")
        return wanted
    return actor.subject


def _refuse_disguise(session: Session, request: TokenCreate) -> None:
    """A token that stands for itself is known by its name: not by that of somebody who has a role where it counts."""
    roles = select(RoleRow.subject).where(col(RoleRow.subject) == request.name)
    if EVERYWHERE not in request.namespaces:
        roles = roles.where(col(RoleRow.namespace).in_([*request.namespaces, EVERYWHERE]))
    if session.exec(roles.limit(1)).first() is not None:
        raise Invalid(
            "REQUEST_INVALID",
            f"name: {request.name!r} is a subject here, and what this token does would be told of them",
            next_step="make it their token with `--subject`, or give it another name",
        )


def bootstrap(engine: Engine) -> str | None:
    """On the first start of a registry, the secret of its first token, which may do everything; else None.

    Two processes that start at once make one token: its id is fixed.
    """
    with db.session(engine) as session:
        if session.exec(select(TokenRow.id).limit(1)).first():
            return None
        request = TokenCreate(name="admin", scopes=["admin"])
        with contextlib.suppress(Conflict):
            return issue(session, TRUSTED, request, token_id=FIRST_TOKEN)[1]
        return None


def is_use_to_note(row: TokenRow) -> bool:
    """Whether it is so long since a use of this token was noted that this one should be."""
    return row.last_used_at is None or db.now() - row.last_used_at > USE_NOTED_EVERY


def note_use(session: Session, token_id: str) -> None:
    """Keep that a token is used now."""
    used = update(TokenRow).where(col(TokenRow.id) == token_id).values(last_used_at=db.now())
    session.connection().execute(used)


def rotate(session: Session, actor: Actor, token_id: str, *, keep_seconds: int = 0) -> tuple[TokenView, str]:
    """A new secret for the same token. The old one still counts for `keep_seconds`, then no more."""
    row = _row(session, actor, token_id)
    if row.id != actor.token_id:
        _demand_all(actor, row)
    if row.revoked_at is not None:
        raise Conflict("TOKEN_REVOKED", f"token {row.id!r} is revoked: make a new one")
    secret = new_secret()
    row.previous_sha256 = row.secret_sha256 if keep_seconds else None
    row.previous_until = db.now() + timedelta(seconds=keep_seconds) if keep_seconds else None
    row.secret_sha256 = sha256_of(secret)
    session.add(row)
    epoch.changed(session)
    audit.append(session, actor, "token.rotate", row.id, {"name": row.name, "keep_seconds": keep_seconds})
    return view(row), secret


def _demand_all(actor: Actor, row: TokenRow) -> None:
    """`Denied` unless the actor holds all that this token gives, and for as long: its new secret is that token."""
    own = row.subject in ("", actor.subject) or actor.may_everywhere("admin")
    longer = actor.expires_at is not None and (row.expires_at is None or row.expires_at > actor.expires_at)
    if not own or longer or not actor.spans(row.scopes, row.namespaces):
        raise Denied(
            "DENIED",
            f"token {actor.name!r} may end the token {row.id!r} but not take its place",
            next_step="rotate it with its own secret, or with a token that has all its rights and lasts as long",
        )


def revoke(session: Session, actor: Actor, token_id: str) -> TokenView:
    """Ends a token now. Twice is the same as once."""
    row = _row(session, actor, token_id)
    if row.revoked_at is None:
        row.revoked_at = db.now()
        session.add(row)
        epoch.changed(session)
        audit.append(session, actor, "token.revoke", row.id, {"name": row.name})
    return view(row)


def _row(session: Session, actor: Actor, token_id: str) -> TokenRow:
    row = session.exec(select(TokenRow).where(col(TokenRow.id) == token_id[:80]).with_for_update()).first()
    if row is None or not _answers_for(actor, row):
        raise NotFound("TOKEN_UNKNOWN", f"there is no token {token_id[:80]!r}, or it is not yours to end")
    return row


def _answers_for(actor: Actor, row: TokenRow) -> bool:
    """A token answers for itself, a subject for its tokens, an administrator for those in its namespaces."""
    if row.id == actor.token_id or (actor.subject and row.subject == actor.subject and not actor.adapters):
        return True
    return all(actor.may("admin", namespace) for namespace in row.namespaces)


def every(session: Session, actor: Actor) -> Sequence[TokenView]:
    """The tokens that the actor may end, newest first, without their secrets."""
    rows = session.exec(select(TokenRow).order_by(col(TokenRow.created_at).desc(), col(TokenRow.id))).all()
    return [view(row) for row in rows if _answers_for(actor, row)]


def view(row: TokenRow) -> TokenView:
    return TokenView(
        id=row.id,
        name=row.name,
        scopes=row.scopes,
        namespaces=row.namespaces,
        subject=row.subject,
        adapters=row.adapters,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        last_used_at=row.last_used_at,
    )
