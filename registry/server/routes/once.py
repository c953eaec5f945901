"""`OnceRoute`: what a keyed mutation needs around its route, so that routes and doors know nothing of keys.

Invariants
- The answer is complete before the transaction commits, so it is kept together with the effect.
- Only routes whose session is a `SessionDep` or a `KeyedSessionDep` take a key; elsewhere the header means nothing:
  planning a push and sending bytes change nothing when they are repeated, and links must not be answered twice.
- An answer that is given again has its first status, body and ETag, and says `Idempotency-Replayed: true`.

Example
    router = once.router("jobs")
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from sqlalchemy import Connection
from sqlmodel import Session
from starlette.concurrency import run_in_threadpool

from registry.server import db, idempotency
from registry.server.actors import Actor
from registry.server.idempotency import Answer, Asked
from registry.wire import PREFIX

HEADER = "Idempotency-Key"
READING = frozenset({"GET", "HEAD"})
Ask = Callable[[Connection, Asked], Answer | None]
Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class Answered(Exception):
    """This request was done before, with this answer."""

    def __init__(self, status: int, etag: str, body: str) -> None:
        super().__init__("answered before")
        self.status, self.etag, self.body = status, etag, body


def asked(request: Request, actor: Actor) -> Asked | None:
    """The key of this mutation, or None. Its body has been read by then."""
    key = request.headers.get(HEADER)
    if key is None or request.method in READING:
        return None
    seen = [request.method, request.url.path, request.url.query, request.headers.get("if-match", "-")]
    found = Asked.of(actor.token_id, key, [*(part.encode() for part in seen), request.state.body])
    request.state.asked = found
    return found


def begin(request: Request, session: Session, actor: Actor) -> None:
    """Claim the key before anything else is written. `Answered` if the request was done before."""
    _at_first(request, session, actor, idempotency.begin)


def look(request: Request, session: Session, actor: Actor) -> None:
    """For a route that reads for long before it writes: only look; the key is claimed with the answer."""
    _at_first(request, session, actor, idempotency.find)


def _at_first(request: Request, session: Session, actor: Actor, ask: Ask) -> None:
    """Ask when the route begins to work, in its thread. Here, it would hold a connection and wait for a thread, while
    all threads may be waiting for connections."""
    found = asked(request, actor)
    if found is not None:
        request.state.keyed_session = session
        db.at_first(session, lambda connection: _unless(ask(connection, found)))


class OnceRoute(APIRoute):
    """Every route of ours. Once its session has begun it waits for no further thread of the pool until it has ended:
    all threads may be waiting for what this session holds, a connection or SQLite's write lock."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **how: Any) -> None:
        super().__init__(path, endpoint if inspect.iscoroutinefunction(endpoint) else _in_thread(endpoint), **how)

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()

        async def once(request: Request) -> Response:
            response = await handle(request)
            session: Session | None = getattr(request.state, "keyed_session", None)
            if session is not None:
                await asyncio.to_thread(_keep, session, request.state.asked, response)
            return response

        return once


def router(tag: str) -> APIRouter:
    """The router of one room of our API."""
    return APIRouter(prefix=PREFIX, tags=[tag], route_class=OnceRoute)


def replay(request: Request, error: Exception) -> Response:
    """The handler of `Answered`."""
    if not isinstance(error, Answered):
        raise error
    headers = {"Idempotency-Replayed": "true"} | ({"ETag": error.etag} if error.etag else {})
    return Response(error.body, error.status, headers, media_type="application/json")


def _in_thread(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """As FastAPI would run it, but what it answers is made into bytes without asking for a thread again."""

    @functools.wraps(endpoint)
    async def run(*words: Any, **given: Any) -> Any:
        return await run_in_threadpool(endpoint, *words, **given)

    return run


def _unless(answer: Answer | None) -> None:
    if answer is not None:
        raise Answered(answer.status, answer.etag, idempotency.given_again(answer))


def _keep(session: Session, request: Asked, response: Response) -> None:
    _unless(idempotency.keep(session.connection(), request, _answer(response)))


def _answer(response: Response) -> Answer:
    secret = "no-store" in response.headers.get("cache-control", "")
    body = None if secret else bytes(response.body).decode()
    return Answer(response.status_code, response.headers.get("etag", ""), body)
