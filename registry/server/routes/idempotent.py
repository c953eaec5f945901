"""`OnceRoute`: a request is one piece of work in one thread; and what a keyed mutation needs around its route.

Invariants
- A route that is a plain function is done in one thread, from signing in to the commit: its session waits for no other
  thread, while all of them may be waiting for what it holds, a connection or SQLite's write lock.
- What such a route asks for (deps.py) waits for nothing: it is `async def` and awaits nothing. A test holds it to that.
- The answer is complete before the transaction commits, so it is kept together with the effect.
- Only routes whose session is a `SessionDep` or a `KeyedSessionDep` take a key; elsewhere the header means nothing:
  planning a push and sending bytes change nothing when they are repeated, and links must not be answered twice.
- An answer that is given again has its first status, body and ETag, and says `Idempotency-Replayed: true`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager, ExitStack
from typing import Any, get_type_hints

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from sqlalchemy import Connection
from sqlmodel import Session
from starlette.concurrency import run_in_threadpool

from registry.api import PREFIX
from registry.server.actors import Actor
from registry.server.database import db
from registry.server.http import idempotency
from registry.server.http.idempotency import Answer, Asked
from registry.server.routes import threads

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
    """Ask when the route begins to work: until then nothing holds a connection."""
    found = asked(request, actor)
    if found is not None:
        request.state.keyed_session, request.state.begun = session, ask is idempotency.begin
        db.before_first_statement(session, lambda connection: _unless(ask(connection, found)))


def opened(request: Request, session: AbstractContextManager[Session]) -> Session:
    """The session, which ends with the work on this request, before its answer is sent."""
    work: ExitStack = request.state.work
    return work.enter_context(session)


class OnceRoute(APIRoute):
    """Every route of ours. One that is `async def` waits for others, and stays in the event loop (deps.NeedsApart)."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **how: Any) -> None:
        self.waits = inspect.iscoroutinefunction(endpoint)
        hints = get_type_hints(endpoint, include_extras=True).values()
        asks_store = any(threads.Waits in getattr(hint, "__metadata__", ()) for hint in hints)
        self._in_thread = threads.ask_store if asks_store else run_in_threadpool
        super().__init__(path, endpoint if self.waits else _here(endpoint), **how)

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()
        if self.waits:
            return handle

        async def in_thread(request: Request) -> Response:
            return await self._in_thread(_work, handle, request)

        return in_thread


def _work(handle: Handler, request: Request) -> Response:
    """All of a request but its sending, in this thread."""
    with ExitStack() as work:
        request.state.work = work
        response = _at_once(handle(request))
        session: Session | None = getattr(request.state, "keyed_session", None)
        if session is not None:
            _keep(session, request, response)
    return response


def _at_once(handling: Coroutine[Any, Any, Response]) -> Response:
    """The result of a coroutine that waits for nothing, and so needs no event loop."""
    try:
        handling.send(None)
    except StopIteration as done:
        response: Response = done.value
        return response
    handling.close()
    raise RuntimeError("something that a plain route asks for has waited")


def _here(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """For FastAPI, which would look for a thread for a plain function."""

    @functools.wraps(endpoint)
    async def run(*words: Any, **given: Any) -> Any:
        return endpoint(*words, **given)

    return run


def operation_id(route: APIRoute) -> str:
    """The name of the function: a verb, then what it is about. Generated clients name their functions after it."""
    return route.name


def router(tag: str) -> APIRouter:
    """The router of one room of our API."""
    return APIRouter(prefix=PREFIX, tags=[tag], route_class=OnceRoute, generate_unique_id_function=operation_id)


def replay(_request: Request, error: Exception) -> Response:
    """The handler of `Answered`."""
    if not isinstance(error, Answered):
        raise error
    headers = {"Idempotency-Replayed": "true"} | ({"ETag": error.etag} if error.etag else {})
    return Response(error.body, error.status, headers, media_type="application/json")


def _unless(answer: Answer | None) -> None:
    if answer is not None:
        raise Answered(answer.status, answer.etag, idempotency.given_again(answer))


def _keep(session: Session, request: Request, response: Response) -> None:
    asked, begun = request.state.asked, request.state.begun
    _unless(idempotency.keep(session.connection(), asked, _answer(response), begun=begun))


def _answer(response: Response) -> Answer:
    secret = "no-store" in response.headers.get("cache-control", "")
    body = None if secret else bytes(response.body).decode()
    return Answer(response.status_code, response.headers.get("etag", ""), body)
