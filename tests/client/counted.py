"""A client of a World that counts its requests and may bend the files that come down."""

from __future__ import annotations

from pathlib import Path

import httpx

from registry.client.api import Registry
from registry.names import AdapterName, Ref
from tests.world import URL, World

NAME = AdapterName("acme", "support")
REF = Ref.parse("acme/support")


class Counted:
    """A transport that counts requests and may bend the bodies of answers."""

    def __init__(self, world: World) -> None:
        self.requests: list[tuple[str, str]] = []
        self.sent_bytes = 0
        self.bend = lambda body: body
        self._inner = world.transport
        outer = self

        class Transport(httpx.BaseTransport):
            def handle_request(self, request: httpx.Request) -> httpx.Response:
                outer.requests.append((request.method, request.url.path))
                answer = outer._inner.handle_request(request)
                if "/files/" not in request.url.path:
                    return answer
                answer.read()
                headers = [(k, v) for k, v in answer.headers.raw if k.lower() != b"content-length"]
                return httpx.Response(answer.status_code, headers=headers, content=outer.bend(answer.content))

        self.registry = Registry(URL, world.secret, Transport())

    def methods(self, method: str) -> int:
        return sum(m == method for m, _ in self.requests)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != ".adapter.json"}
