"""`call`: one raw ASGI request to an application, which counts how much of the body the application reads."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any
from urllib.parse import unquote

import anyio
from starlette.types import ASGIApp

Headers = Sequence[tuple[str, str]]
ADDRESS = "192.0.2.1"


@dataclass
class RawResponse:
    status: int
    headers: dict[str, str]
    body: bytes
    bytes_read: int
    largest_part: int = 0

    def json(self) -> Any:
        return json.loads(self.body)


def call(
    app: ASGIApp, method: str, path: str, headers: Headers = (), chunks: Iterable[bytes] = (), address: str = ADDRESS
) -> RawResponse:
    """Send a request whose headers may repeat, in chunks."""
    return anyio.run(call_in_loop, app, method, path, headers, chunks, address)


async def call_in_loop(
    app: ASGIApp, method: str, path: str, headers: Headers = (), chunks: Iterable[bytes] = (), address: str = ADDRESS,
    wait_to_read: Callable[[], Awaitable[None]] | None = None,
) -> RawResponse:  # fmt: skip
    """Send such a request in the event loop that runs. `wait_to_read` is awaited after each part but the last."""
    response = RawResponse(0, {}, b"", 0)
    pending = chain(chunks, [b""])

    async def receive() -> Any:
        chunk = next(pending, None)
        if chunk is None:
            return {"type": "http.disconnect"}
        response.bytes_read += len(chunk)
        return {"type": "http.request", "body": chunk, "more_body": chunk != b""}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            response.status = message["status"]
            response.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            part = message.get("body", b"")
            response.body, response.largest_part = response.body + part, max(response.largest_part, len(part))
            if wait_to_read is not None and message.get("more_body"):
                await wait_to_read()

    path, _, query = path.partition("?")
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
        "path": unquote(path), "raw_path": path.encode(), "root_path": "", "query_string": query.encode(),
        "headers": [(b"host", b"registry.test"), *((name.lower().encode(), value.encode()) for name, value in headers)],
        "client": (address, 1), "server": ("registry.test", 80),
    }  # fmt: skip
    await app(scope, receive, send)
    return response
