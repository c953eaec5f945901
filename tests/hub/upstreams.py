"""`Upstream`: a Hub that lets anybody read, in front of a real server of ours; and what a bad one may do.

    with Upstream(live.server) as upstream:
        ...                        # REGISTRY_HUB_UPSTREAM = upstream.url
        upstream.requests           # every request that came: method, target, headers
        upstream.responses["/api/models/acme/big"] = Response(200, b"…")      # instead of the server's own

Invariants
- It alone knows the server's token: what the relay sends is passed on with it, as the public Hub needs none.
"""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.faults.servers import Server


@dataclass
class ReceivedRequest:
    method: str
    target: str
    headers: dict[str, str]


@dataclass
class Response:
    """One to give instead of the server's. `body` may be pieces, which are sent as they come."""

    status: int
    body: bytes | Iterable[bytes] = b""
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None


class Upstream:
    def __init__(self, server: Server | None = None) -> None:
        self.server, self.requests, self.responses = server, list[ReceivedRequest](), dict[str, Response]()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> Upstream:
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        upstream = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                upstream.requests.append(ReceivedRequest(self.command, self.path, dict(self.headers)))
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self._send(upstream.responses.get(self.path.split("?")[0]) or upstream.pass_on(self, body))

            do_HEAD = do_POST = do_GET

            def _send(self, response: Response) -> None:
                self.send_response(response.status)
                for name, value in response.headers.items():
                    self.send_header(name, value)
                if isinstance(response.body, bytes) and "content-length" not in map(str.lower, response.headers):
                    self.send_header("Content-Length", str(response.length or len(response.body)))
                self.end_headers()
                try:
                    for piece in [response.body] if isinstance(response.body, bytes) else response.body:
                        if self.command != "HEAD":
                            self.wfile.write(piece)
                except OSError:
                    pass  # whoever asked has heard enough

        return Handler

    def pass_on(self, request: BaseHTTPRequestHandler, body: bytes) -> Response:
        """What the real server responds to somebody who may read."""
        assert self.server is not None
        headers = {"Authorization": f"Bearer {self.server.token}"}
        headers |= {name: request.headers[name] for name in ("Range", "Content-Type") if name in request.headers}
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
        connection.request(request.command, request.path, body or None, headers)
        response = connection.getresponse()
        data = response.read()
        connection.close()
        hidden = {"connection", "transfer-encoding", "date", "server"}
        return Response(response.status, data, {k: v for k, v in response.getheaders() if k.lower() not in hidden})
