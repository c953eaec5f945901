"""What routes ask for: the session, the actor with the scope that the route needs, the store, parsed names.

Invariants
- The session commits *before* the answer is sent (once.py): a failed commit is never a 2xx.
- Every route declares its scope by asking for one of the actors below, or is `OPEN`; `app.create_app` refuses others.
- A mutation that comes with an Idempotency-Key claims it in its own transaction (see once.py).
- A request without Authorization is refused, unless the application was made with a `trusted` actor (embedded).

Example
    @router.get("/bases")
    def bases(session: SessionDep, actor: Puller) -> BaseList: ...
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, nullcontext
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Query, Request
from pydantic import AfterValidator
from sqlalchemy import Engine
from sqlmodel import Session

from registry import names
from registry.api import PAGE_DEFAULT, PAGE_LIMIT
from registry.errors import Denied, Invalid, RegistryError, Unauthenticated, Unavailable
from registry.names import AdapterName, Selector
from registry.roles import Scope
from registry.server import failpoints
from registry.server.access import sign_in, tokens
from registry.server.access.issuers import Issuers
from registry.server.actors import Actor
from registry.server.catalog.versions import Pointer
from registry.server.database import db
from registry.server.routes import idempotent, threads
from registry.server.settings import Settings
from registry.server.storage.blobs import BlobStore

Found = TypeVar("Found")
HUB_TOKEN_PREFIX = "hf_"  # noqa: S105


def inline(ask: Callable[..., Found]) -> Callable[..., Coroutine[Any, Any, Found]]:
    """The dependency `ask`, called in the thread of the request (once.py) and not, as FastAPI would, in another."""

    @functools.wraps(ask)
    async def asked(*words: Any, **given: Any) -> Found:
        return ask(*words, **given)

    return asked


def engine(request: Request) -> Engine:
    found: Engine = request.app.state.engine
    return found


def store(request: Request) -> BlobStore:
    found: BlobStore = request.app.state.blobs
    return found


def settings(request: Request) -> Settings:
    found: Settings = request.app.state.settings
    return found


def issuers(request: Request) -> Issuers:
    found: Issuers = request.app.state.issuers
    return found


def memory(request: Request) -> sign_in.ActorCache:
    found: sign_in.ActorCache = request.app.state.actor_cache
    return found


async def session(request: Request) -> Session:
    """One transaction for the request; it may write unless the request is a GET or HEAD."""
    return idempotent.opened(
        request, _session(request, write=request.method not in idempotent.READING, first=idempotent.begin)
    )


async def read_session(request: Request) -> Session:
    """One transaction that starts by reading, for a route that judges long before `db.begin_writing`.

    It has begun when the route does: who asks is read in it. A route that first lets others write settles it.
    """
    return idempotent.opened(request, _session(request, write=False))


async def keyed_session(request: Request) -> Session:
    """A `read_session` whose route takes an Idempotency-Key."""
    return idempotent.opened(request, _session(request, write=False, first=idempotent.look))


@contextmanager
def _session(
    request: Request, *, write: bool, first: Callable[[Request, Session, Actor], None] | None = None
) -> Iterator[Session]:
    actor = keyed_actor(request) if first is not None else None
    with db.session(engine(request), write=write) as opened:
        opened.info["request_id"] = request.state.request_id
        if first is not None and actor is not None:
            first(request, opened, actor)
        elif not write:
            request.state.reading = opened
        yield opened
    if first is not None and request.method not in idempotent.READING:
        failpoints.reach("request.committed")


def keyed_actor(request: Request) -> Actor | None:
    """Who asks, if a key must be looked for before the route runs."""
    return (
        _signed_in(request)
        if idempotent.HEADER in request.headers and request.method not in idempotent.READING
        else None
    )


class Needs:
    """The dependency that says who asks, and that they hold `scope` somewhere (None: any valid token)."""

    def __init__(self, scope: Scope | None = None) -> None:
        self.scope = scope

    async def __call__(self, request: Request) -> Actor:
        return self.who(request)

    def who(self, request: Request) -> Actor:
        actor = self._who(request)
        if self.scope is not None and not actor.has_scope(self.scope):
            raise Denied("DENIED", f"token {actor.name!r} lacks the scope '{self.scope}'")
        return actor

    def _who(self, request: Request) -> Actor:
        return _signed_in(request)


class NeedsNow(Needs):
    """For the hot look-up: who asks may be remembered, and the route asks through `as_of_now`."""

    def _who(self, request: Request) -> Actor:
        secret = _secret(request)
        actor = memory(request).get(secret) if secret else None
        if actor is None:
            return _signed_in(request)
        request.app.state.request_limiter.take(actor.token_id)
        return actor


class NeedsApart(Needs):
    """For a route that waits in the event loop: FastAPI calls this in a thread, where signing in may wait."""

    def __call__(self, request: Request) -> Actor:  # type: ignore[override]
        return self.who(request)


def as_of_now(
    request: Request, session: Session, actor: Actor, ask: Callable[[Actor], tuple[Found, Pointer]]
) -> tuple[Found, Pointer]:
    """What `ask` finds for an actor, and for who it is now if access has changed since it was remembered.

    `ask` answers with the pointer that its own statement has read.
    """
    try:
        found, pointer = ask(actor)
        if actor.epoch in (None, pointer.access):
            return found, pointer
    except RegistryError:
        if actor.epoch is None:
            raise
        fresh = _verified(request, session)
        if fresh == actor:
            raise
        return ask(fresh)
    return ask(_verified(request, session))


def _verified(request: Request, session: Session) -> Actor:
    return sign_in.authenticate(session, _secret(request) or "", memory(request))


def _secret(request: Request) -> str | None:
    """The secret of the Authorization header; None without one.

    Hub clients in JavaScript send only what begins with `hf_`: that may stand before any token of ours.
    """
    header = request.headers.get("authorization")
    if header is None:
        return None
    scheme, _, secret = header.partition(" ")
    if scheme.lower() != "bearer":
        raise Unauthenticated("UNAUTHORIZED", "the Authorization header is not 'Bearer' and a token")
    return secret.strip().removeprefix(HUB_TOKEN_PREFIX)


def _signed_in(request: Request) -> Actor:
    """Who asks, read anew, once for each request."""
    found: Actor | None = getattr(request.state, "actor", None)
    if found is None:
        found = request.state.actor = _sign_in(request)
    return found


def _sign_in(request: Request) -> Actor:
    secret = _secret(request)
    if secret is None:
        trusted: Actor | None = request.app.state.trusted
        if trusted is not None:
            return trusted
        raise Unauthenticated(
            "UNAUTHORIZED", "this request has no token", next_step="run `adapter login URL`, or set ADAPTER_TOKEN"
        )
    try:
        actor = _whose(request, secret)
    except Unauthenticated:
        note_failure(request, secret)
        raise
    request.app.state.request_limiter.take(actor.token_id)
    return actor


def _whose(request: Request, secret: str) -> Actor:
    """Whose the secret is: read in the transaction in which this request reads, else in one of its own."""
    reading: Session | None = getattr(request.state, "reading", None)
    with nullcontext(reading) if reading is not None else db.session(engine(request), write=False) as session:
        actor = sign_in.authenticate(session, secret, memory(request))
        to_note = tokens.should_record_use(session.info["token"])
        if to_note:
            db.commit_early(session)  # on SQLite nobody can write while it reads, where the journal is in its safe mode
    if to_note:
        with db.session(engine(request)) as writing:
            tokens.record_use(writing, actor.token_id)
    return actor


def note_failure(request: Request, secret: str = "") -> None:
    """Somebody did not sign in. `Unavailable` (RATE_LIMITED) where that happens too often; the log hears of both."""
    try:
        request.app.state.failure_limiter.record_failure(request.client.host if request.client else "", secret)
    except Unavailable:
        request.app.state.audit_log.batch.add_denial(request.scope, Unauthenticated.__name__)
        raise


async def open_to_all() -> None:
    """The declaration of a route that needs no token."""


def adapter_name(namespace: str, name: str) -> AdapterName:
    return AdapterName(namespace, name)


def namespace_name(namespace: str) -> str:
    return namespace


def version_selector(selector: str) -> Selector:
    return names.selector(selector)


def keyset_cursor(cursor: str = "") -> str:
    if len(cursor) > 200:
        raise Invalid("REQUEST_INVALID", "cursor: over 200 characters; use `next_cursor` as it was given")
    return cursor


EngineDep = Annotated[Engine, Depends(inline(engine))]
BlobsDep = Annotated[BlobStore, Depends(inline(store)), threads.Waits]
KnownBlobsDep = Annotated[BlobStore, Depends(inline(store))]
"""The store for a route that asks it nothing, or only when it is told to."""
IssuersDep = Annotated[Issuers, Depends(inline(issuers))]
SettingsDep = Annotated[Settings, Depends(inline(settings))]
SessionDep = Annotated[Session, Depends(session)]
ReadSessionDep = Annotated[Session, Depends(read_session)]
KeyedSessionDep = Annotated[Session, Depends(keyed_session)]
NameDep = Annotated[AdapterName, Depends(inline(adapter_name))]
SelectorDep = Annotated[Selector, Depends(inline(version_selector))]
CursorDep = Annotated[str, Depends(inline(keyset_cursor))]
LimitDep = Annotated[int, Query(ge=1), AfterValidator(lambda wanted: min(wanted, PAGE_LIMIT))]
"""How many items of a list one answer holds; whoever asks for more than there may be gets that many, and a cursor."""
PAGE = PAGE_DEFAULT

OPEN = Depends(open_to_all)
Anyone = Annotated[Actor, Depends(Needs())]
Puller = Annotated[Actor, Depends(Needs(Scope.PULL))]
PullerApart = Annotated[Actor, Depends(NeedsApart(Scope.PULL))]
PullerNow = Annotated[Actor, Depends(NeedsNow(Scope.PULL))]
Pusher = Annotated[Actor, Depends(Needs(Scope.PUSH))]
Promoter = Annotated[Actor, Depends(Needs(Scope.PROMOTE))]
Worker = Annotated[Actor, Depends(Needs(Scope.WORK))]
Admin = Annotated[Actor, Depends(Needs(Scope.ADMIN))]
