"""`Operation`: one row of the table of operations of the REST API.

The server takes method, path, scope and shapes of a route from its row, the client those of a request and what its
response must repeat; the OpenAPI document and the tests that go through all routes are made from the rows, too.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from urllib.parse import quote

from registry.roles import Scope

Sent = TypeVar("Sent")
Received = TypeVar("Received")
PULL, PUSH, PROMOTE, WORK = Scope.PULL, Scope.PUSH, Scope.PROMOTE, Scope.WORK
AUDIT, METRICS, ADMIN = Scope.AUDIT, Scope.METRICS, Scope.ADMIN
ANY_TOKEN = ""
"""Every valid token, whatever its scopes."""
NO_TOKEN = "open"  # noqa: S105 - not a secret
NO_BODY = type(None)
VALUES_LIMIT, LIST_VALUES_LIMIT, MANY_VALUES_LIMIT = 20_000, 70_000, 1_500_000
"""Commas and opening brackets of a JSON body, which are counted before it is parsed: each takes some 200 bytes. A body
about many items may have more; the modules of a base, a push and a report have very many."""
EXAMPLE_DIGEST, EXAMPLE_FINGERPRINT = "sha256:" + 16 * "3f9a", "sha256:" + 16 * "71c0"

# Fields that a response repeats → parameters of the request. A dot leads into a field; of a list, into each item.
# Further parameters: `adapter`, `number` and `digest` of what the request is about, if it names them.
SAME_ADAPTER = {"name": "adapter"}
SAME_NUMBER = {"number": "number"}
SAME_VERSION = SAME_ADAPTER | SAME_NUMBER | {"digest": "digest"}
REASON, DRY_RUN = "reason", "dry_run"
"""Parameters of the query that a change may take beside its own: why, for its event; and to be undone at the end."""
PRESENT, ABSENT = "(present)", "(absent)"
"""In place of a parameter: the field has a value, or none."""


@dataclass(frozen=True, slots=True)
class BodyLimit:
    """The largest body of a request. None: it is no JSON, and the route reads it piece by piece."""

    size_bytes: int | None
    values: int = VALUES_LIMIT


SMALL_BODY = BodyLimit(2**20)
LIST_BODY = BodyLimit(8 * 2**20, LIST_VALUES_LIMIT)
LARGE_BODY = BodyLimit(8 * 2**20, MANY_VALUES_LIMIT)


@dataclass(frozen=True, eq=False)
class Operation(Generic[Sent, Received]):
    """One operation. Its id is the name of the server's function, and its path is below the API's prefix."""

    id: str
    tag: str
    method: str
    path: str
    scope: str
    """The scope that the token needs, or `ANY_TOKEN` or `NO_TOKEN`."""
    request: type[Sent]
    """The shape of the body; `bytes` for raw ones."""
    response: type[Received]
    """The shape of the response; `bytes` and `str` for raw ones."""
    status: int = 200
    echo: Mapping[str, str] = field(default_factory=dict)
    is_bulk: bool = False
    """Whether the request has items, each with an outcome of its own. Then `echo` is about the result of each item."""
    takes_key: bool = False
    """Whether a repeated request with the same Idempotency-Key acts once."""
    takes: tuple[str, ...] = ()
    """Which of `REASON` and `DRY_RUN` it takes."""
    has_secret: bool = False
    """Whether the response has a secret, which no cache may keep."""
    body_limit: BodyLimit = SMALL_BODY
    example: Mapping[str, Any] | None = None
    """A body as the documentation shows it, and tests send it."""

    @property
    def route(self) -> str:
        """Method and path, as the documentation writes them."""
        return f"{self.method} {self.path}"

    def fill_path(self, parameters: Mapping[str, Any]) -> str:
        """The path for these parameters, those that are not in it left out.

        Slashes stay in the name of a base or the path of a file. A subject may have two of them, which proxies merge.
        """
        path = self.path
        for name in self.path_names:
            is_path = f"{{{name}:path}}" in path and name != "subject"
            text = quote(str(parameters[name]), safe="*:/" if is_path else "*:")
            path = path.replace(f"{{{name}:path}}", text).replace(f"{{{name}}}", text)
        return path

    @property
    def path_names(self) -> list[str]:
        """The names of the parameters in the path."""
        return re.findall(r"\{(\w+)", self.path)


@dataclass(frozen=True, eq=False)
class OwnerOperations(Generic[Sent, Received]):
    """The same operation on a namespace and on an adapter, which have gates and retention rules of their own."""

    namespace: Operation[Sent, Received]
    adapter: Operation[Sent, Received]

    def of(self, kind: str) -> Operation[Sent, Received]:
        """The operation on a `namespace` or an `adapter`."""
        return self.adapter if kind == "adapter" else self.namespace


class Tag:
    """A group of operations in the documentation. Its methods make rows, and `operations` collects them."""

    def __init__(self, name: str, description: str) -> None:
        self.name, self.description = name, description
        self.operations: list[Operation[Any, Any]] = []

    def add(
        self, id: str, route: str, scope: str, request: type[Sent], response: type[Received], *,
        echo: Mapping[str, str] | None = None, status: int = 200, is_bulk: bool = False, takes_key: bool = True,
        takes: tuple[str, ...] = (), has_secret: bool = False, body_limit: BodyLimit = SMALL_BODY,
        example: Mapping[str, Any] | None = None,
    ) -> Operation[Sent, Received]:  # fmt: skip
        """Add a row. `takes_key`: of a route that may change something; False if it may be repeated anyway."""
        method, _, path = route.partition(" ")
        operation = Operation(
            id, self.name, method, path, scope, request, response, status=status, echo=echo or {}, is_bulk=is_bulk,
            takes_key=takes_key and method not in ("GET", "HEAD"), takes=takes, has_secret=has_secret,
            body_limit=body_limit, example=example,
        )  # fmt: skip
        self.operations.append(operation)
        return operation

    def add_of_owners(
        self, id: str, route: str, scope: str, request: type[Sent], response: type[Received], *,
        echo: Mapping[str, str] | None = None, takes: tuple[str, ...] = (), example: Mapping[str, Any] | None = None,
    ) -> OwnerOperations[Sent, Received]:  # fmt: skip
        """Add two rows. `{owner}` stands for the path of a namespace or an adapter, and in the id for that word."""
        of_namespace, of_adapter = (
            self.add(
                id.format(owner=word),
                route.replace("{owner}", path),
                scope,
                request,
                response,
                echo=echo,
                takes=takes,
                example=example,
            )
            for word, path in (("namespace", "namespaces/{namespace}"), ("adapter", "adapters/{namespace}/{name}"))
        )
        return OwnerOperations(of_namespace, of_adapter)
