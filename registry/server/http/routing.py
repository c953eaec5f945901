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
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Set
from traceback import clear_frames
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from anyio import CapacityLimiter, to_thread
from anyio.lowlevel import RunVar
from fastapi import Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from pydantic import BaseModel
from sqlmodel import Session
from starlette.concurrency import run_in_threadpool

from registry.api.models import ItemPage
from registry.api.models import Request as RequestSchema
from registry.api.operations.operation import ANY_TOKEN, NO_TOKEN, VALUES_LIMIT, Operation
from registry.errors import Invalid, RegistryError, printable
from registry.roles import Scope
from registry.server.http import idempotency, request_body
from registry.server.http.held_responses import count_response
from registry.server.http.request_actor import find_tenant
from registry.server.http.request_body import (
    BODY_LIMIT_BYTES,
    Endpoint,
    check_values,
    read_body,
)
from registry.server.http.services import services_of

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


async def require_nothing() -> None:
    """Declare that a route needs no token."""


async def allow_any_query() -> None:
    """Declare that a route checks its whole query by itself."""


async def refuse_unknown_parameters(request: Request) -> None:
    """Refuse a query parameter that the route has not: `?dryrun=true` would delete, `?tga=x` list all. `Invalid`."""
    route = request.scope["route"]
    if route.checks_own_query:
        return
    types: Mapping[str, Any] = route.query_types
    for name in request.query_params:
        if name not in types:
            nearest = difflib.get_close_matches(name, sorted(types), n=1, cutoff=0.5)
            listed = f"it takes {', '.join(sorted(types))}" if types else "it takes none"
            next_step = f"the nearest one is {nearest[0]!r}" if nearest else listed
            message = f"query: this route has no parameter {printable(name, 60)!r}"
            raise Invalid("REQUEST_INVALID", message, next_step=next_step)
    if route.operation is not None:  # forms and Hub clients write `on` and `True`
        _require_plain_values(request, types)


_SPELLINGS = {
    bool: (re.compile("true|false"), "must be true or false"),
    int: (re.compile("-?[0-9]+"), "must be a whole number"),
}
"""How a value of this type is written: pydantic takes `on` and `1_0` too."""


def _require_plain_values(request: Request, types: Mapping[str, Any]) -> None:
    for name, value in request.query_params.multi_items():
        plain = _plain_types(types[name])
        if list not in plain and len(request.query_params.getlist(name)) > 1:
            raise Invalid("REQUEST_INVALID", f"query.{name}: is written twice, and takes one value")
        for kind in plain & _SPELLINGS.keys():
            spelling, text = _SPELLINGS[kind]
            if not spelling.fullmatch(value):
                raise Invalid("REQUEST_INVALID", f"query.{name}: {text}, not {printable(value, 60)!r}")


def _plain_types(annotation: Any) -> Set[Any]:
    """The types that a parameter may have, without their rules; `list` for one that may be repeated."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _plain_types(inner[0])
    if origin in (Union, UnionType):
        return {kind for part in inner for kind in _plain_types(part)}
    return {origin or annotation}


class DeclaresScope:
    """A dependency that signs in and requires a scope; None requires only a valid token."""

    scope: Scope | None
    is_of_operation = False
    """Whether the scope is the one of the route's operation instead."""


def _types_in(alias: str, annotation: Any) -> Mapping[str, Any]:
    """The query parameters of a declared one, and their types: of a model, those of its fields."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return {name: field.annotation for name, field in annotation.model_fields.items()}
    return {alias: annotation}


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
        self.values_limit = VALUES_LIMIT
        returns = types.get("return")
        self.responds_at_length: bool = getattr(endpoint, "responds_at_length", False) or (
            isinstance(returns, type) and issubclass(returns, ItemPage)
        )
        super().__init__(path, endpoint if self.is_async else as_coroutine(endpoint), **kwargs)

    @functools.cached_property
    def query_types(self) -> Mapping[str, Any]:
        """The types of all query parameters that the route and its dependencies declare."""
        fields = [field for dependant in _all_of(self.dependant) for field in dependant.query_params]
        return dict(pair for field in fields for pair in _types_in(field.alias, field.field_info.annotation).items())

    @functools.cached_property
    def scope(self) -> str | None:
        """The scope that the route declares; None for one that declares none."""
        for call in dependencies_of(self.dependant):
            if isinstance(call, DeclaresScope):
                return self.operation.scope if call.is_of_operation and self.operation else call.scope or ANY_TOKEN
            if call is require_nothing:
                return NO_TOKEN
        return None

    def read_body_of(self, request: Request) -> contextlib.AbstractAsyncContextManager[Request]:
        """The request with its body, read under the rules of the route."""
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
            return count_response(request, response, is_change=request.method not in idempotency.SAFE_METHODS)

        return handle_and_count

    async def _handle(self, handle: Handler, request: Request) -> Response:
        if self.is_async:
            return await handle(request)
        if request.method in idempotency.SAFE_METHODS:
            return await self._respond(handle, request)
        async with self.read_body_of(request) as complete:
            return await self._respond(handle, complete)

    async def _respond(self, handle: Handler, request: Request) -> Response:
        """Handle a request, whose body is held meanwhile."""
        if request.method in idempotency.SAFE_METHODS:
            return await self._run_in_thread(handle, request)
        with services_of(request).freshness.during_write():  # after its response no one gets what was before it
            return await self._run_in_thread(handle, request)

    async def _run_in_thread(self, handle: Handler, request: Request) -> Response:
        run = run_in_store_thread if self._uses_store else run_in_threadpool
        tenant = await find_tenant(request, needs_no_token=self.needs_no_token)
        is_large = request_body.is_large(_body_of(request))
        async with services_of(request).admission.turn(tenant, is_large=is_large, is_list=self.responds_at_length):
            return await run(_run_request, handle, request, self.values_limit)

    def error_headers(self, _request: Request, _error: RegistryError) -> dict[str, str]:
        """Return headers for the response to an error. The Hub API has some."""
        return {}

    def error_response(self, _request: Request, _error: RegistryError, _status: int) -> Response | None:
        """Return the response to an error in place of a problem document. Web pages have one."""
        return None


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
_STORE_LIMITER: RunVar[CapacityLimiter] = RunVar("store_threads")


class UsesStore:
    """Annotates a parameter of a route that calls the store."""


async def run_in_store_thread(function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
    """Call a function in a thread that may wait for the store, so not in those that handle all requests."""
    try:
        limiter = _STORE_LIMITER.get()
    except LookupError:
        limiter = CapacityLimiter(STORE_THREADS)
        _STORE_LIMITER.set(limiter)
    return await to_thread.run_sync(functools.partial(function, *args, **kwargs), limiter=limiter)


async def run_in_turn(request: Request, function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
    """Call `run_in_store_thread` for a route that is `async def`, once it is the turn of its tenant."""
    async with services_of(request).admission.turn(await find_tenant(request)):
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
