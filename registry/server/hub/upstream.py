"""`Upstream`: relays requests to another Hub. Off unless `REGISTRY_HUB_UPSTREAM` is set.

- Only the configured origin is called. Up to three redirects within it are followed; others are returned to the client.
- Of the client's headers only Range and Content-Type are sent: no token, no cookie. A request marked by `Via` is not
  relayed again, so that relays form no loop.
- Fields and headers that lead clients to Xet (`xetHash`, `X-Xet-…`) are removed: its token route is not relayed.
"""

from __future__ import annotations

import contextlib
import json
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

from registry import __version__
from registry.errors import Invalid, Unavailable
from registry.server.outgoing import deadlines
from registry.server.settings import hide_secrets

HOPS_LIMIT = 3
SECONDS = 10
RESPONSE_SECONDS = 30
"""Limits of one step (connect, read) and of a whole response that is read here."""
AT_ONCE = 8
VIA = "1.1 adapter-registry"
RESPONSE_LIMIT_BYTES = 32 * 2**20
REDIRECTS = (301, 302, 303, 307, 308)
KEPT_OVER_HOPS = ("X-Repo-Commit", "X-Linked-ETag", "X-Linked-Size")
SIZES = frozenset({"Content-Length", "X-Linked-Size"})
PASSED = (
    *("ETag", "Content-Length", "Content-Range", "Content-Type", "Accept-Ranges"),
    *("X-Error-Code", "X-Error-Message", *KEPT_OVER_HOPS),
)


@dataclass(slots=True)
class UpstreamResponse:
    """A response of the upstream. `chunks` must be read to its end or closed."""

    status: int
    headers: dict[str, str]
    location: str
    stream: httpx.Response

    def chunks(self) -> Iterator[bytes]:
        """Yield the body as it was sent, and close the connection after it."""
        with contextlib.closing(self.stream):
            yield from self.stream.iter_raw()

    def json(self) -> Any:
        """The whole body, which is JSON, without what leads to Xet."""
        data, ends = bytearray(), time.monotonic() + RESPONSE_SECONDS
        try:
            for piece in self.stream.iter_raw():
                data += piece
                if len(data) > RESPONSE_LIMIT_BYTES:
                    raise Unavailable(
                        "SERVER_UNREACHABLE", f"the upstream Hub's response is over {RESPONSE_LIMIT_BYTES} bytes"
                    )
                if time.monotonic() > ends:
                    raise Unavailable(
                        "SERVER_UNREACHABLE", f"the upstream Hub takes over {RESPONSE_SECONDS} s to respond"
                    )
            return _plain(json.loads(data))
        except (ValueError, RecursionError, httpx.HTTPError) as e:
            raise Unavailable("SERVER_UNREACHABLE", "the upstream Hub's response is not valid JSON") from e
        finally:
            self.stream.close()


class Upstream:
    """One other Hub, by the URL of its root."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.username:
            masked_url = hide_secrets(url)[:120]
            raise Invalid("SETTING_INVALID", f"REGISTRY_HUB_UPSTREAM: {masked_url!r} is not the root of a host")
        self.url = f"{parts.scheme}://{parts.netloc}"
        # A transport and no client: it follows no redirect, keeps no cookie, reads no proxy and adds no header.
        self._transport = httpx.HTTPTransport(
            verify=ssl.create_default_context(), trust_env=False, limits=httpx.Limits(max_keepalive_connections=0)
        )
        self._waiting = threading.BoundedSemaphore(AT_ONCE)

    @contextlib.contextmanager
    def turn(self) -> Iterator[Upstream]:
        """One of the few places in which to wait for it. `Unavailable` when all are taken."""
        if not self._waiting.acquire(timeout=1):
            raise Unavailable(
                "SERVER_UNREACHABLE", f"{AT_ONCE} requests wait for the upstream Hub", retry_after_seconds=5
            )
        try:
            yield self
        finally:
            self._waiting.release()

    def ask(
        self, method: str, target: str, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> UpstreamResponse:
        """The response to this path and query. `Unavailable` when the upstream cannot be reached."""
        from_hops: dict[str, str] = {}
        for _ in range(HOPS_LIMIT + 1):
            response = self._once(method, target, headers or {}, body)
            from_hops = {
                name: response.headers[name] for name in KEPT_OVER_HOPS if name in response.headers
            } | from_hops
            response.headers |= from_hops
            inside = self._inside(response.location) if response.status in REDIRECTS else ""
            if not inside:
                return response
            response.stream.close()
            target = inside
        raise Unavailable("SERVER_UNREACHABLE", "the upstream Hub redirects in a circle")

    def _once(self, method: str, target: str, headers: Mapping[str, str], body: bytes | None) -> UpstreamResponse:
        ours = {"User-Agent": f"adapter-registry/{__version__}", "Accept-Encoding": "identity", "Via": VIA}
        timeout = httpx.Timeout(SECONDS).as_dict()
        try:
            url = httpx.URL(self.url).copy_with(raw_path=target.encode("ascii"))  # no target can change the host
            with deadlines.shut_down_after(RESPONSE_SECONDS) as watch:  # until the headers have arrived
                extensions = {"timeout": timeout, **deadlines.trace(watch)}
                request = httpx.Request(method, url, headers={**headers, **ours}, content=body, extensions=extensions)
                response = self._transport.handle_request(request)
        except (ValueError, httpx.HTTPError, httpx.InvalidURL) as e:
            raise Unavailable("SERVER_UNREACHABLE", f"the upstream Hub does not respond: {type(e).__name__}") from e
        passed = {name: response.headers[name] for name in PASSED if name in response.headers}
        passed = {name: value for name, value in passed.items() if name not in SIZES or value.isdecimal()}
        return UpstreamResponse(response.status_code, passed, response.headers.get("Location", ""), response)

    def _inside(self, location: str) -> str:
        """The path of a redirect that stays at the upstream; empty for one that leads elsewhere."""
        if location.startswith("/") and not location.startswith("//"):
            return location
        return location.removeprefix(self.url) if location.startswith(f"{self.url}/") else ""


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        fields = {key: _plain(item) for key, item in value.items() if key != "xetHash"}
        return fields | ({"xetEnabled": False} if "xetEnabled" in fields else {})
    return [_plain(item) for item in value] if isinstance(value, list) else value
