"""`SingleThreadRoute`: runs a whole request in one thread, from sign-in to commit. And the threads of the blob store.

- The session of a request never waits for another thread, or all threads could wait for what such a request holds.
- The dependencies of such a route are `async def` and await nothing. A test verifies that.
- The response is complete before the transaction commits, so a response that is stored is committed with its effect.
- A route that is `async def` itself runs on the event loop and opens its own sessions in threads.
- Large responses are made a few at a time, and counted for their reader until they are sent.
"""

import contextlib
import difflib
import functools
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Set
from traceback import clear_frames
from typing import Any, TypeVar, get_type_hints
from weakref import WeakValueDictionary

from anyio import CapacityLimiter, WouldBlock, to_thread
from anyio.lowlevel import RunVar
from fastapi import Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from sqlmodel import Session
from starlette import types as asgi
from starlette.concurrency import run_in_threadpool

from registry.api.models import ItemPage
from registry.api.models import Request as RequestSchema
from registry.api.operations.operation import ANY_TOKEN, NO_TOKEN, Operation
from registry.digest import Digest
from registry.errors import Invalid, RegistryError, Unavailable, printable
from registry.roles import Scope
from registry.server.actors import Actor
from registry.server.http import idempotency, request_body
from registry.server.http.request_actor import look_up_actor, read_network, require_secret
from registry.server.http.request_body import (
    BODY_LIMIT_BYTES,
    VALUES_LIMIT,
    BodyBudget,
    Endpoint,
    Owner,
    check_values,
    read_body,
)

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


async def require_nothing() -> None:
    """Declare that a route needs no token."""


async def allow_any_query() -> None:
    """Declare that a route checks its whole query by itself."""


async def refuse_unknown_parameters(request: Request) -> None:
    """Refuse a change with a query parameter that its route has not: `?dryrun=true` would delete. `Invalid`."""
    route = request.scope["route"]
    if request.method in idempotency.SAFE_METHODS or route.checks_own_query:
        return
    names: Set[str] = route.query_names
    for name in request.query_params:
        if name not in names:
            nearest = difflib.get_close_matches(name, sorted(names), n=1, cutoff=0.5)
            listed = f"it takes {', '.join(sorted(names))}" if names else "it takes none"
            next_step = f"the nearest one is {nearest[0]!r}" if nearest else listed
            message = f"query: this route has no parameter {printable(name, 60)!r}"
            raise Invalid("REQUEST_INVALID", message, next_step=next_step)


class DeclaresScope:
    """A dependency that signs in and requires a scope; None requires only a valid token."""

    scope: Scope | None
    is_of_operation = False
    """Whether the scope is the one of the route's operation instead."""


def dependencies_of(dependant: Dependant) -> Iterator[Any]:
    """Yield every dependency that a route asks for."""
    return (inner.call for inner in _all_of(dependant) if inner is not dependant)


def _all_of(dependant: Dependant) -> Iterator[Dependant]:
    yield dependant
    for inner in dependant.dependencies:
        yield from _all_of(inner)


class SingleThreadRoute(APIRoute):
    """The class of all routes. `operation`: the row of a route of the REST API."""

    operation: Operation[Any, Any] | None = None

    def __init__(self, path: str, endpoint: Callable[..., Any], **kwargs: Any) -> None:
        self.is_async = inspect.iscoroutinefunction(endpoint)
        types = get_type_hints(endpoint, include_extras=True)
        hints = types.values()
        for hint in hints:
            if isinstance(hint, type) and issubclass(hint, RequestSchema):
                hint.model_config["defer_build"] = False  # built with the first request, pydantic warns of its alias
                hint.model_rebuild()
        self._uses_store = any(UsesStore in getattr(hint, "__metadata__", ()) for hint in hints)
        declarations = {item.dependency for item in kwargs.get("dependencies") or ()}
        self.needs_no_token, self.checks_own_query = require_nothing in declarations, allow_any_query in declarations
        self.body_limit_bytes: int | None = getattr(endpoint, "body_limit_bytes", BODY_LIMIT_BYTES)
        self.values_limit: int = getattr(endpoint, "values_limit", VALUES_LIMIT)
        returns = types.get("return")
        self.responds_at_length: bool = getattr(endpoint, "responds_at_length", False) or (
            isinstance(returns, type) and issubclass(returns, ItemPage)
        )
        super().__init__(path, endpoint if self.is_async else as_coroutine(endpoint), **kwargs)

    @functools.cached_property
    def query_names(self) -> Set[str]:
        """The names of all query parameters that the route and its dependencies declare."""
        return {field.alias for dependant in _all_of(self.dependant) for field in dependant.query_params}

    @functools.cached_property
    def scope(self) -> str | None:
        """The scope that the route declares; None for one that declares none."""
        for call in dependencies_of(self.dependant):
            if isinstance(call, DeclaresScope):
                return self.operation.scope if call.is_of_operation and self.operation else call.scope or ANY_TOKEN
            if call is require_nothing:
                return NO_TOKEN
        return None

    def _read_body(self, request: Request) -> contextlib.AbstractAsyncContextManager[Request]:
        if self.body_limit_bytes is None:
            return contextlib.nullcontext(request)
        scope = Scope(self.scope) if self.scope and not self.needs_no_token else None
        return read_body(request, self.body_limit_bytes, needs_no_token=self.needs_no_token, scope=scope)

    def get_route_handler(self) -> Handler:
        """Return the handler, which runs a plain function in one thread."""
        handle = super().get_route_handler()

        async def handle_and_count(request: Request) -> Response:
            try:
                response = await self._handle(handle, request)
            except Exception as error:
                clear_frames(error.__traceback__)  # a parsed body would stay there until the collector runs
                if not isinstance(error, idempotency.RepeatedRequest):
                    raise
                response = error.response()
            return _counted(request, response)

        return handle_and_count

    async def _handle(self, handle: Handler, request: Request) -> Response:
        if self.is_async:
            return await handle(request)
        if request.method in idempotency.SAFE_METHODS:
            return await self._respond(handle, request)
        async with self._read_body(request) as complete:
            return await self._respond(handle, complete)

    async def _respond(self, handle: Handler, request: Request) -> Response:
        """Handle a request, whose body is held meanwhile."""
        if request.method in idempotency.SAFE_METHODS:
            return await self._run_in_thread(handle, request)
        with request.app.state.freshness.during_write():  # after its response no one gets what was before it
            return await self._run_in_thread(handle, request)

    async def _run_in_thread(self, handle: Handler, request: Request) -> Response:
        run = run_in_store_thread if self._uses_store else run_in_threadpool
        has_large_body = request_body.is_large(_body_of(request))
        is_large = has_large_body or self.responds_at_length
        has_many_values = has_large_body and request_body.has_many_values(_body_of(request))
        async with contextlib.AsyncExitStack() as stack:
            if self._uses_store or has_large_body:
                owner = await self._shares_of(request)
            elif is_large:
                owner = self._reader_of(request)
            if has_many_values:
                stack.enter_context(_hold_only_share(owner[0]))
            if self._uses_store:
                await stack.enter_async_context(_hold_store_shares(owner))
            if is_large:  # last: who waits for a thread takes no turn from others
                kind = "large bodies" if has_large_body else "large responses"
                await stack.enter_async_context(_share(f"{kind} of {owner[0]}", LARGE_BODIES_PER_PERSON))
                if has_many_values:
                    await stack.enter_async_context(_share(f"bodies of many values in {owner[1] or owner[0]}", 1))
                    await stack.enter_async_context(_share("bodies of many values", 1))
                limiter = _LARGE_LIMITER if has_large_body else _LARGE_RESPONSES_LIMITER
                await stack.enter_async_context(_limiter(limiter, LARGE_BODIES))
            return await run(_run_request, handle, request, self.values_limit)

    async def _shares_of(self, request: Request) -> Owner:
        """Whom the thread of a request counts for: its actor, or its network where no token is needed."""
        secret = None if self.needs_no_token else require_secret(request)
        if secret is None:
            return f"network {read_network(request)}", ""
        actor = request.app.state.actor_cache.get(secret) or await run_in_threadpool(look_up_actor, request)
        shares: Owner = actor.shares
        return shares

    def _reader_of(self, request: Request) -> Owner:
        """As `_shares_of`, without a look at the database: a token that was not used lately counts for itself."""
        secret = None if self.needs_no_token else require_secret(request)
        if secret is None:
            return f"network {read_network(request)}", ""
        actor: Actor | None = request.app.state.actor_cache.get(secret)
        return actor.shares if actor is not None else (f"secret {Digest.of(secret.encode())}", "")

    def error_headers(self, _request: Request, _error: RegistryError) -> dict[str, str]:
        """Return headers for the response to an error. The Hub API has some."""
        return {}

    def error_response(self, _request: Request, _error: RegistryError, _status: int) -> Response | None:
        """Return the response to an error in place of a problem document. Web pages have one."""
        return None


class _CountedResponse(Response):
    """A large response, whose bytes count for its reader until they are sent. `Unavailable` (TRY_LATER) before that."""

    def __init__(self, response: Response, budget: BodyBudget, owner: Owner) -> None:
        super().__init__(response.body, response.status_code)
        self.raw_headers, self._task = response.raw_headers, response.background
        self._budget, self._owner = budget, owner

    async def __call__(self, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        async def send_in_parts(message: asgi.Message) -> None:
            body: bytes = message.get("body", b"")
            start = 0
            while len(body) - start > PART_BYTES:  # each waits until the one before has left the server's buffer
                await send({**message, "body": body[start : start + PART_BYTES], "more_body": True})
                start += PART_BYTES
            await send({**message, "body": body[start:]} if body else message)

        try:
            with self._hold_space():
                await super().__call__(scope, receive, send_in_parts)
        finally:  # also of a change whose response is refused
            if self._task is not None:
                await self._task()

    @contextlib.contextmanager
    def _hold_space(self) -> Iterator[None]:
        size_bytes = len(self.body)
        if not self._budget.has_space(self._owner, size_bytes):
            detail = "response: others that are not read yet use all space for responses"
            raise Unavailable("TRY_LATER", detail, retry_after_seconds=1)
        self._budget.change(self._owner, size_bytes)
        try:
            yield
        finally:
            self._budget.change(self._owner, -size_bytes)


def _counted(request: Request, response: Response) -> Response:
    if len(getattr(response, "body", b"")) <= PART_BYTES:
        return response
    actor: Actor | None = getattr(request.state, "actor", None)
    owner = actor.shares if actor is not None else (f"network {read_network(request)}", "")
    return _CountedResponse(response, request.app.state.response_budget, owner)


def responds_at_length(endpoint: Endpoint) -> Endpoint:
    """Declare that a route makes responses of megabytes, as all that return pages do, so that few run at once."""
    endpoint.responds_at_length = True  # type: ignore[attr-defined]
    return endpoint


def _run_request(handle: Handler, request: Request, values_limit: int) -> Response:
    """Run everything but the sending of the response in this thread."""
    with contextlib.ExitStack() as stack:
        request.state.exit_stack = stack
        check_values(_body_of(request), values_limit)
        response = _run_without_loop(handle(request))
        idempotency.store_response(request, response)
    return response


def _body_of(request: Request) -> bytes:
    body: bytes = getattr(request.state, "body", b"")
    return body


def enter_session(request: Request, session: contextlib.AbstractContextManager[Session]) -> Session:
    """Open a session that ends with this request, before its response is sent."""
    stack: contextlib.ExitStack = request.state.exit_stack
    return stack.enter_context(session)


def _run_without_loop(coroutine: Coroutine[Any, Any, Response]) -> Response:
    """Return the result of a coroutine that awaits nothing and so needs no event loop."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        response: Response = done.value
        return response
    coroutine.close()
    raise RuntimeError("a dependency of a synchronous route has awaited something")


class _Coroutine:
    """An object and no function: FastAPI would read the source of a route with its first request, which takes 4 ms."""

    def __init__(self, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)
        self._function = function

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)


def as_coroutine(function: Callable[..., Any]) -> Callable[..., Coroutine[Any, Any, Any]]:
    """Wrap a route or a dependency to run in the request's thread; FastAPI would call it in another one."""
    return _Coroutine(function)


Result = TypeVar("Result")
STORE_THREADS = 32
STORE_THREADS_PER_PERSON = 16
STORE_THREADS_PER_GROUP = 24
"""For one subject, with all its tokens, or one token without a subject; and for the tokens of one namespace."""
LARGE_BODIES = 4
LARGE_BODIES_PER_PERSON = 2
"""How many requests with large bodies (`request_body.is_large`) run at once: parsing them takes time and memory.
As many run on routes that make large responses."""
RESPONSE_BYTES = 256 * 2**20
SUBJECT_RESPONSE_BYTES = 64 * 2**20
NAMESPACE_RESPONSE_BYTES = 128 * 2**20
"""Of large responses that are not sent yet: of all, of one subject, and of the tokens of one namespace."""
PART_BYTES = 64 * 2**10
"""Larger responses are counted, and sent in parts of this size."""
_STORE_LIMITER: RunVar[CapacityLimiter] = RunVar("store_threads")
_LARGE_LIMITER: RunVar[CapacityLimiter] = RunVar("large_bodies")
_LARGE_RESPONSES_LIMITER: RunVar[CapacityLimiter] = RunVar("large_responses")
_SHARE_LIMITERS: RunVar[WeakValueDictionary[str, CapacityLimiter]] = RunVar("shares")


class UsesStore:
    """Annotates a parameter of a route that calls the store."""


@contextlib.asynccontextmanager
async def _hold_store_shares(owner: Owner) -> AsyncIterator[None]:
    """Wait until this person and this group have few store threads, so that no one has all of them."""
    group = _share(f"store threads of the group {owner[1]}", STORE_THREADS_PER_GROUP) if owner[1] else None
    async with _share(f"store threads of {owner[0]}", STORE_THREADS_PER_PERSON), group or contextlib.nullcontext():
        yield


@contextlib.contextmanager
def _hold_only_share(person: str) -> Iterator[None]:
    """Let a person have one body of many values that waits or is parsed, so that it is soon the next one's turn.

    `Unavailable` (TRY_LATER) for another one.
    """
    share = _share(f"bodies of many values of {person}", 1)
    try:
        share.acquire_nowait()
    except WouldBlock:
        detail = "body: another one of yours with as many values is being read"
        raise Unavailable("TRY_LATER", detail, retry_after_seconds=2) from None
    try:
        yield
    finally:
        share.release()


def _share(key: str, tokens: int) -> CapacityLimiter:
    """The limiter of one person or group. It lasts while a request of theirs does."""
    try:
        limiters = _SHARE_LIMITERS.get()
    except LookupError:
        limiters = WeakValueDictionary()
        _SHARE_LIMITERS.set(limiters)
    limiter: CapacityLimiter = limiters.setdefault(key, CapacityLimiter(tokens))
    return limiter


async def run_in_store_thread(function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
    """Call a function in a thread that may wait for the store."""
    limiter = _limiter(_STORE_LIMITER, STORE_THREADS)
    return await to_thread.run_sync(functools.partial(function, *args, **kwargs), limiter=limiter)


async def run_for(actor: Actor, function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
    """As `run_in_store_thread`, within the shares of an actor."""
    async with _hold_store_shares(actor.shares):
        return await run_in_store_thread(function, *args, **kwargs)


async def stream_in_threads(chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Yield chunks whose reading may wait for the store."""
    try:
        while (chunk := await run_in_store_thread(next, chunks, None)) is not None:
            yield chunk
    finally:
        close = getattr(chunks, "close", None)
        if close is not None:
            close()


def _limiter(variable: RunVar[CapacityLimiter], tokens: int) -> CapacityLimiter:
    """Return the limiter of this event loop."""
    try:
        return variable.get()
    except LookupError:
        limiter = CapacityLimiter(tokens)
        variable.set(limiter)
        return limiter
