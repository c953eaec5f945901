"""`Namespaces`: one method for each route of namespaces, roles, trusted publishers, exchange, transfer and removal.

Invariants
- As in api.py: it sends wire requests and answers wire answers, nothing else.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from registry.api import Request
from registry.api.access import TokenCreated, TokenRotate
from registry.api.catalog import AdapterView
from registry.api.namespaces import (
    DeleteResult,
    ExchangeRequest,
    NamespaceCreate,
    NamespacePage,
    NamespaceSet,
    NamespaceView,
    PublisherAdd,
    PublisherList,
    PublisherView,
    RenameRequest,
    RoleGrant,
)
from registry.client.core import Name, Versions
from registry.client.responses import Shape, parsed
from registry.names import AdapterName


class Namespaces:
    """Who may do what, at the registry that `registry` talks to."""

    def __init__(self, registry: Versions) -> None:
        self._connection = registry.connection

    def page(self, *, cursor: str = "", limit: int | None = None) -> NamespacePage:
        return self._send("GET", "/namespaces", NamespacePage, None, {"cursor": cursor, "limit": limit})

    def create(self, name: str, *, owner: str = "") -> NamespaceView:
        return self._send("POST", "/namespaces", NamespaceView, NamespaceCreate(name=name, owner=owner))

    def show(self, name: str) -> NamespaceView:
        return self._send("GET", _namespace(name), NamespaceView)

    def change(self, name: str, request: NamespaceSet) -> NamespaceView:
        return self._send("PATCH", _namespace(name), NamespaceView, request)

    def delete(self, name: str) -> DeleteResult:
        return self._send("DELETE", _namespace(name), DeleteResult)

    def grant(self, name: str, subject: str, role: str) -> NamespaceView:
        return self._send("PUT", _role(name, subject), NamespaceView, RoleGrant(role=role))

    def revoke(self, name: str, subject: str) -> NamespaceView:
        return self._send("DELETE", _role(name, subject), NamespaceView)

    # ------------------------------------------------------------ adapters
    def delete_adapter(self, name: Name) -> DeleteResult:
        return self._send("DELETE", _adapter(name), DeleteResult)

    def rename(self, name: Name, to: Name) -> AdapterView:
        return self._send("POST", _adapter(name) + "/rename", AdapterView, RenameRequest(to=str(to)))

    def publishers(self, name: Name) -> PublisherList:
        return self._send("GET", _adapter(name) + "/publishers", PublisherList)

    def add_publisher(self, name: Name, request: PublisherAdd) -> PublisherView:
        return self._send("POST", _adapter(name) + "/publishers", PublisherView, request)

    def remove_publisher(self, name: Name, publisher_id: str) -> PublisherView:
        return self._send("DELETE", f"{_adapter(name)}/publishers/{quote(publisher_id, safe='')}", PublisherView)

    # ------------------------------------------------------------ tokens
    def rotate(self, token_id: str, *, keep_seconds: int = 0) -> TokenCreated:
        request = TokenRotate(keep_seconds=keep_seconds)
        return self._send("POST", f"/tokens/{quote(token_id, safe='')}/rotate", TokenCreated, request)

    def exchange(self, assertion: str, *, adapter: str = "") -> TokenCreated:
        """A short token for an identity token. The registry needs no token for that."""
        request = ExchangeRequest(assertion=assertion, adapter=adapter)
        return self._send("POST", "/tokens/exchange", TokenCreated, request)

    def _send(
        self, method: str, path: str, shape: type[Shape], request: Request | None = None, query: Any = None
    ) -> Shape:
        body = request.model_dump(mode="json", exclude_none=True) if request is not None else None
        return parsed(self._connection.send(method, path, json=body, query=query), shape)


def _namespace(name: str) -> str:
    return f"/namespaces/{quote(name, safe='*')}"


def _role(name: str, subject: str) -> str:
    return f"{_namespace(name)}/roles/{quote(subject, safe='')}"


def _adapter(name: Name) -> str:
    return f"/adapters/{name if isinstance(name, AdapterName) else AdapterName.parse(name)}"
