"""A client of a Harness that counts its requests and may bend the files that come down."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path

import httpx

from registry.client.registry import Registry
from registry.names import AdapterName, Ref
from tests.harness import URL, Harness
from tests.httpx_transports import HttpxTransport

NAME = AdapterName("acme", "support")
REF = Ref.parse("acme/support")


class CountingClient:
    """A transport that counts requests and may bend the bodies of responses."""

    def __init__(self, harness: Harness) -> None:
        self.requests: list[tuple[str, str]] = []
        self.contents: list[int] = []
        self.bend: Callable[[bytes], bytes] = lambda body: body
        self._inner = harness.transport
        outer = self

        class Transport(HttpxTransport):
            def handle_request(self, request: httpx.Request) -> httpx.Response:
                outer.requests.append((request.method, request.url.path))
                outer.contents.append(content_bytes(request))  # by several threads
                response = outer._inner.handle_request(request)
                if "/files/" not in request.url.path:
                    return response
                response.read()
                headers = [(k, v) for k, v in response.headers.raw if k.lower() != b"content-length"]
                return httpx.Response(response.status_code, headers=headers, content=outer.bend(response.content))

        self.registry = Registry(URL, harness.secret, Transport())

    def methods(self, method: str) -> int:
        return sum(m == method for m, _ in self.requests)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != ".adapter.json"}


def content_bytes(request: httpx.Request) -> int:
    """How much of what files hold this request brings: the body of an upload, or what a commit brings along."""
    if request.method == "PUT":
        return len(request.read())
    if not request.url.path.endswith("/commit"):
        return 0
    return sum(len(base64.b64decode(item["data"])) for item in json.loads(request.read() or b"{}").get("small", ()))
