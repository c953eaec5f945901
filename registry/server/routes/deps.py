"""What routes ask for: the session, the actor with the scope that the route needs, the store, parsed names.

Invariants
- The session commits *before* the answer is sent (dependency scope "function"): a failed commit is never a 2xx.
- Every route declares its scope by asking for one of the actors below, or is `OPEN`; `app.create_app` refuses others.
- A mutation that comes with an Idempotency-Key claims it in its own transaction (see once.py).
- A request without Authorization is refused, unless the application was made with a `trusted` actor (embedded).

Example
    @router.get("/bases")
    def bases(session: SessionDep, actor: Puller) -> BaseList: ...
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends, Query, Request

from registry import names
from registry.errors import Denied, Invalid, Unauthenticated
from registry.names import AdapterName, Selector
from registry.server import db, failpoints, tokens
from registry.server.actors import Actor
from registry.server.blobs import BlobStore
from registry.server.db import Engine, Session
from registry.server.routes import once
from registry.server.settings import Settings
from registry.wire import PAGE_DEFAULT, PAGE_LIMIT


def engine(request: Request) -> Engine:
    found: Engine = request.app.state.engine
    return found


def store(request: Request) -> BlobStore:
    found: BlobStore = request.app.state.blobs
    return found


def settings(request: Request) -> Settings:
    found: Settings = request.app.state.settings
    return found


def remembered(request: Request) -> tokens.Remembered:
    found: tokens.Remembered = request.app.state.remembered
    return found


def session(request: Request) -> Iterator[Session]:
    """One transaction for the request; it may write unless the request is a GET or HEAD."""
    actor = keyed_actor(request)
    with db.session(engine(request), write=request.method not in once.READING) as opened:
        opened.info["request_id"] = request.state.request_id
        if actor is not None:
            once.begin(request, opened, actor)
        yield opened
    if request.method not in once.READING:
        failpoints.reach("request.committed")


def read_session(request: Request) -> Iterator[Session]:
    """One transaction that starts by reading, for a route that judges long before `db.begin_writing`."""
    with db.session(engine(request), write=False) as opened:
        opened.info["request_id"] = request.state.request_id
        yield opened


def keyed_session(request: Request) -> Iterator[Session]:
    """A `read_session` whose route takes an Idempotency-Key."""
    actor = keyed_actor(request)
    with db.session(engine(request), write=False) as opened:
        opened.info["request_id"] = request.state.request_id
        if actor is not None:
            once.look(request, opened, actor)
        yield opened
    failpoints.reach("request.committed")


def keyed_actor(request: Request) -> Actor | None:
    """Who asks, if a key must be looked for before the route runs."""
    return _signed_in(request) if once.HEADER in request.headers and request.method not in once.READING else None


class Needs:
    """The dependency that says who asks, and that they hold `scope` somewhere ("" is any valid token)."""

    def __init__(self, scope: str) -> None:
        self.scope = scope

    def __call__(self, request: Request) -> Actor:
        actor = _signed_in(request)
        if self.scope and not actor.has(self.scope):
            raise Denied("DENIED", f"token {actor.name!r} lacks the scope '{self.scope}'")
        return actor


def _signed_in(request: Request) -> Actor:
    header = request.headers.get("authorization")
    if header is None:
        trusted: Actor | None = request.app.state.trusted
        if trusted is not None:
            return trusted
        raise Unauthenticated(
            "UNAUTHORIZED", "this request has no token", next_step="run `adapter login URL`, or set ADAPTER_TOKEN"
        )
    scheme, _, secret = header.partition(" ")
    if scheme.lower() != "bearer":
        raise Unauthenticated("UNAUTHORIZED", "the Authorization header is not 'Bearer' and a token")
    recent = remembered(request)
    actor = recent.find(secret)
    if actor is None:
        with db.session(engine(request), write=False) as reading:
            actor = tokens.verify(reading, secret)
            tokens.note_use(reading, actor.token_id)
        recent.keep(secret, actor)
    return actor


def open_to_all() -> None:
    """The declaration of a route that needs no token."""


def adapter_name(namespace: str, name: str) -> AdapterName:
    return AdapterName(namespace, name)


def version_selector(selector: str) -> Selector:
    return names.selector(selector)


def keyset_cursor(cursor: str = "") -> str:
    if len(cursor) > 200:
        raise Invalid("REQUEST_INVALID", "cursor: over 200 characters; use `next_cursor` as it was given")
    return cursor


EngineDep = Annotated[Engine, Depends(engine)]
BlobsDep = Annotated[BlobStore, Depends(store)]
SettingsDep = Annotated[Settings, Depends(settings)]
RememberedDep = Annotated[tokens.Remembered, Depends(remembered)]
SessionDep = Annotated[Session, Depends(session, scope="function")]
ReadSessionDep = Annotated[Session, Depends(read_session, scope="function")]
KeyedSessionDep = Annotated[Session, Depends(keyed_session, scope="function")]
NameDep = Annotated[AdapterName, Depends(adapter_name)]
SelectorDep = Annotated[Selector, Depends(version_selector)]
CursorDep = Annotated[str, Depends(keyset_cursor)]
LimitDep = Annotated[int, Query(ge=1, le=PAGE_LIMIT)]
PAGE = PAGE_DEFAULT

OPEN = Depends(open_to_all)
Anyone = Annotated[Actor, Depends(Needs(""))]
Puller = Annotated[Actor, Depends(Needs("pull"))]
Pusher = Annotated[Actor, Depends(Needs("push"))]
Promoter = Annotated[Actor, Depends(Needs("promote"))]
Worker = Annotated[Actor, Depends(Needs("work"))]
Admin = Annotated[Actor, Depends(Needs("admin"))]
