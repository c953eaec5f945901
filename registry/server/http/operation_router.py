"""`OperationRouter`: the routes of the REST API, each made from its row of the table of operations.

    @router.serves(operations.SHOW_VERSION)
    def show_version(target: deps.VersionDep) -> VersionView: ...

A handler that takes another body than its row says or reads it in another way (`JsonBody`), or that signs in for
another scope, is an error at start.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar, get_type_hints

from fastapi import APIRouter, Depends, Response

from registry.api import PREFIX
from registry.api.operations.operation import NO_BODY, NO_TOKEN, Operation
from registry.server.http import dependencies as deps
from registry.server.http import documents
from registry.server.http.idempotency import SAFE_METHODS
from registry.server.http.routing import SingleThreadRoute, refuse_unknown_parameters

Received = TypeVar("Received")
Handler = Callable[
    ..., Received | Response | Awaitable[Received] | Awaitable[Response] | Awaitable[Received | Response]
]
RAW: tuple[Any, ...] = (bytes, str, NO_BODY)


class OperationRouter(APIRouter):
    """The routes of one subject. They refuse parameters that they do not have.

    The Hub API and pages have routers of their own: its clients and browsers send what this server does not know.
    """

    def __init__(self) -> None:
        dependencies = [Depends(refuse_unknown_parameters)]
        super().__init__(prefix=PREFIX, route_class=SingleThreadRoute, dependencies=dependencies)

    def serves(
        self, operation: Operation[Any, Received], *, dependencies: Sequence[Any] = (), **options: Any
    ) -> Callable[[Handler[Received]], Handler[Received]]:
        """Let a function handle an operation. `options`: what FastAPI documents beyond the row."""

        is_raw = operation.response in RAW
        if operation.scope == NO_TOKEN:
            dependencies = [deps.NO_TOKEN, *dependencies]
        dependencies = [*(deps.CHANGE_OPTIONS[name] for name in operation.takes), *dependencies]
        if operation.has_secret:
            dependencies = [deps.NO_STORE, *dependencies]
        if is_raw and operation.response is not NO_BODY:
            options["response_class"] = Response
        if operation.request not in RAW:
            options["openapi_extra"] = documents.body_of(operation.request)

        def add(handler: Handler[Received]) -> Handler[Received]:
            self.add_api_route(
                operation.path, handler, methods=[operation.method], operation_id=operation.id, tags=[operation.tag],
                status_code=operation.status, response_model=None if is_raw else operation.response,
                dependencies=dependencies, **options,
            )  # fmt: skip
            route = self.routes[-1]
            if not isinstance(route, SingleThreadRoute):
                raise TypeError(f"{route} is no route of this application")
            route.operation = operation
            route.body_limit_bytes, route.values_limit = operation.body_limit.size_bytes, operation.body_limit.values
            _require_fit(route, operation, handler)
            return handler

        return add


def _require_fit(route: SingleThreadRoute, operation: Operation[Any, Any], handler: Callable[..., Any]) -> None:
    """Raise `RuntimeError` for a route whose function says something else than its row."""
    takes_key = operation.method not in SAFE_METHODS and deps.takes_key(route.dependant)
    takes_body = operation.request in (*RAW, *get_type_hints(handler).values()) and route.body_field is None
    if (route.scope, takes_key, takes_body) != (operation.scope, operation.takes_key, True):
        raise RuntimeError(f"the function of {operation.id} does not fit its row: scope, Idempotency-Key or body")
