"""Pages within requests: rendered by their own routes, with the session, rights and limits of this moment."""

from collections.abc import Callable
from typing import Any

from fastapi import Request, Response
from starlette.types import Message, Receive, Scope, Send

_OF_BODIES = {b"accept-encoding", b"content-length", b"content-type", b"idempotency-key"}


async def request_page(request: Request, path: str, query: str) -> Response:
    """Return the response to a GET of a page, requested as the browser would that has sent this request."""
    headers = [(name, value) for name, value in request.scope["headers"] if name not in _OF_BODIES]
    scope: dict[str, Any] = {
        "type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "query_string": query.encode(),
        **{key: request.scope[key] for key in ("asgi", "http_version", "scheme", "server", "client")},
        "headers": headers, "root_path": "",
    }  # fmt: skip
    start: Message = {}
    body = bytearray()

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        start.update(message) if message["type"] == "http.response.start" else body.extend(message.get("body", b""))

    await request.app(scope, receive, send)
    response = Response(bytes(body), start["status"])
    response.raw_headers = list(start["headers"])
    return response


class PageInstead(Response):
    """A page in place of that of an error, with its status. If the page cannot be shown, that of the error.

    No thread waits for it: the page is requested while this response is sent.
    """

    def __init__(self, request: Request, error_page: Response, page: str, change: Callable[[str], str]) -> None:
        super().__init__(error_page.body, error_page.status_code, dict(error_page.headers))
        self._request, self._page, self._change = request, page, change

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the page."""
        path, _, query = self._page.partition("?")
        page = await request_page(self._request, path, query)
        if page.status_code == 200 and page.headers.get("content-type", "").startswith("text/html"):
            self.body = self._change(bytes(page.body).decode()).encode()
            self.headers["content-length"] = str(len(self.body))
            self.headers["content-security-policy"] = page.headers["content-security-policy"]
        await super().__call__(scope, receive, send)
