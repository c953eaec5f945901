"""`Connection`: requests to one registry, with its token, its errors as our error classes, and retries.

Invariants
- The token goes to the registry's own origin and to nobody else, whatever a link or a redirect says.
- An error answer raises the class that the server raised: the code travels, the class is rebuilt.
- A registry that cannot be reached is `Unavailable` (SERVER_UNREACHABLE), never an exception of the HTTP library.
- Every mutation has an Idempotency-Key of its own, so that each request may be sent again: twice means once. It is
  after a broken connection and an `Unavailable`, a few times, with growing and jittered pauses.
"""

from __future__ import annotations

import io
import json as texts
import random
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx

from registry import __version__
from registry.api import CHECKPOINT_HEADER, PREFIX
from registry.client.responses import error_of, store_error_of, unreachable
from registry.client.sockets import READ_SECONDS, Advance, Sockets, Take
from registry.client.throughput import Flow
from registry.client.transport import Carrier
from registry.errors import Invalid, Unavailable

ATTEMPTS_LIMIT = 4
RESTART_ATTEMPTS = 7
"""Where bytes move and a registry that has answered is suddenly not there: some 20 seconds, in which one starts."""
PAUSE_SECONDS = 0.2
PAUSE_LIMIT_SECONDS = 10.0
REDIRECTS_LIMIT = 3
_CARRIES = re.compile(rf"{PREFIX}/(resolve/|pushes/[^/]+/commit\Z|adapters/[^/]+/[^/]+/versions/[^/]+/pull\Z)")
"""Paths whose answers carry the newest checkpoint of the audit log."""

Body = Callable[[], Iterable[bytes]]
"""A request body that can be read again from the start, so that the request can be sent again."""


class Connection:
    """Keeps connections to one registry open, and to the stores that it links to. Thread-safe.

    `transport` carries requests to the registry, `abroad` those to other origins, `wait` makes a pause.
    """

    def __init__(
        self,
        url: str,
        token: str = "",
        *,
        transport: httpx.BaseTransport | None = None,
        abroad: httpx.BaseTransport | None = None,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url = _checked(url)
        self._token = token
        self._wait = wait
        self._answered = False
        self.on_checkpoint: Callable[[str], None] | None = None
        """Told of each checkpoint that an answer of the registry carries, before the answer is given on; of an empty
        one where it carries none and should."""
        program = f"adapter-registry/{__version__}"
        self._sockets = Sockets(program)
        self._home = Carrier(self._sockets, program, transport)
        self._abroad = Carrier(self._sockets, program, abroad)

    def close(self) -> None:
        self._home.close()
        self._abroad.close()
        self._sockets.close()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def send(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        seconds: float | None = None,
        patient: bool = False,
    ) -> httpx.Response:
        """One request to a route below the API's prefix, its answer read whole. `seconds`: how long it may think;
        `patient`: it belongs to a push, which gets over a restart of the registry."""
        params = {key: value for key, value in (query or {}).items() if value not in (None, "")}
        sent = self._own(headers)
        if method not in ("GET", "HEAD"):
            sent["Idempotency-Key"] = secrets.token_hex(16)
        content = None
        if json is not None:
            content = texts.dumps(json, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
            sent["Content-Type"] = "application/json"
        target = str(httpx.URL(self.url + PREFIX + path, params=params or None))
        return self._repeat(
            lambda: self._home.ask(method, target, content, sent, seconds=seconds or READ_SECONDS), patient
        )

    def upload(self, method: str, url: str, body: Body, *, headers: Mapping[str, str] | None = None) -> httpx.Response:
        """Send bytes to a link of the registry (relative, or of its origin) or of its store (absolute)."""
        carrier, target, sent = self._route(url, headers)
        return self._repeat(lambda: carrier.put(method, target, sent, body()))

    @contextmanager
    def stream(self, url: str, *, headers: Mapping[str, str] | None = None) -> Iterator[httpx.Response]:
        """The answer to a GET of a link, its body still to be read. Follows redirects, leaving the token at home."""
        opened = self._repeat(lambda: self._open(url, headers))
        try:
            with _as_unavailable(self.url):
                yield opened
        finally:
            opened.close()

    def send_file(
        self,
        url: str,
        file: io.FileIO,
        start: int,
        length: int,
        *,
        headers: Mapping[str, str] | None = None,
        advance: Advance = lambda _count: None,
    ) -> httpx.Response:
        """PUT a range of a file to a link. `advance` is told of each step, and goes back when all is sent again.

        A link that is bound to a key without bytes refuses a second time: the first one arrived and its answer did not.
        """
        carrier, target, sent = self._route(url, headers)
        moved = 0

        def once() -> httpx.Response:
            nonlocal moved
            advance(-moved)
            moved, flow = 0, Flow(target)

            def step(count: int) -> None:
                nonlocal moved
                moved += count
                advance(count)
                flow.moved(count)

            answer = carrier.put_file(target, sent, file, start, length, step)
            there_already = answer.status_code == 412 and "If-None-Match" in sent
            return httpx.Response(200, request=answer.request) if there_already else answer

        return self._repeat(once, patient=True)

    def receive(self, url: str, take: Take, *, headers: Mapping[str, str] | None = None) -> httpx.Response:
        """GET a link and give its bytes to `take` as they come. Sent again only while nothing was received."""
        received = 0

        def once() -> httpx.Response:
            flow = Flow(_joined(self.url + "/", url))

            def count(piece: memoryview) -> None:
                nonlocal received
                received += len(piece)
                take(piece)
                flow.moved(len(piece))

            try:
                return self._receive(url, count, headers)
            except httpx.HTTPError as e:
                if received:
                    raise unreachable(self.url, e) from e
                raise

        return self._repeat(once, patient=True)

    # ---------------------------------------------------------------- inside
    def _open(self, url: str, headers: Mapping[str, str] | None) -> httpx.Response:
        for _ in range(REDIRECTS_LIMIT + 1):
            carrier, target, sent = self._route(url, {"Accept-Encoding": "identity"} | dict(headers or {}))
            answer = carrier.open(target, sent)
            if not answer.has_redirect_location:
                if answer.is_error:
                    answer.read()
                return answer
            url = _joined(target, answer.headers["location"])
            answer.close()
        raise Unavailable("STORE_UNAVAILABLE", f"{self.url} redirects more than {REDIRECTS_LIMIT} times")

    def _receive(self, url: str, take: Take, headers: Mapping[str, str] | None) -> httpx.Response:
        for _ in range(REDIRECTS_LIMIT + 1):
            carrier, target, sent = self._route(url, headers)
            answer = carrier.get(target, sent, take)
            if not answer.has_redirect_location:
                return answer
            url = _joined(target, answer.headers["location"])
        raise Unavailable("STORE_UNAVAILABLE", f"{self.url} redirects more than {REDIRECTS_LIMIT} times")

    def _route(self, url: str, headers: Mapping[str, str] | None) -> tuple[Carrier, str, dict[str, str]]:
        """Who carries a link, the whole URL, and its headers: with the token only at home."""
        target = _joined(self.url + "/", url)
        if _origin(target) == _origin(self.url):
            return self._home, target, self._own(headers)
        return self._abroad, target, dict(headers or {})

    def _own(self, headers: Mapping[str, str] | None) -> dict[str, str]:
        own = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        return own | dict(headers or {})

    def _repeat(self, once: Callable[[], httpx.Response], patient: bool = False) -> httpx.Response:
        attempt = 0
        while True:
            attempt += 1
            last = attempt >= ATTEMPTS_LIMIT
            try:
                answer = once()
            except httpx.HTTPError as e:
                starting = patient and self._answered and isinstance(e, httpx.ConnectError | httpx.ReadError)
                if attempt >= RESTART_ATTEMPTS if starting else last:
                    raise unreachable(self.url, e) from e
                self._wait(_pause(attempt, None))
                continue
            self._answered = True
            if not answer.is_error:
                self._tell(answer)
                return answer
            at_home = _origin(str(answer.url)) == _origin(self.url)
            error = error_of(answer, self.url) if at_home else store_error_of(answer)
            if last or not isinstance(error, Unavailable):
                raise error
            self._wait(_pause(attempt, error.retry_after_seconds))

    def _tell(self, answer: httpx.Response) -> None:
        checkpoint = answer.headers.get(CHECKPOINT_HEADER, "")
        due = checkpoint or _CARRIES.search(answer.url.path)
        if due and self.on_checkpoint is not None and _origin(str(answer.url)) == _origin(self.url):
            self.on_checkpoint(checkpoint)


@contextmanager
def _as_unavailable(url: str) -> Iterator[None]:
    try:
        yield
    except httpx.HTTPError as e:
        raise unreachable(url, e) from e


def _pause(attempt: int, retry_after_seconds: int | None) -> float:
    """Seconds to wait: what the server asks for, else growing by two; at most the limit; with jitter."""
    seconds = float(retry_after_seconds or PAUSE_SECONDS * 2**attempt)
    return min(seconds, PAUSE_LIMIT_SECONDS) * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, guards nothing


def _checked(url: str) -> str:
    """The registry's URL without a trailing slash. `Invalid` (SETTING_INVALID) if it is none."""
    try:
        parsed, _ = httpx.URL(url), urlsplit(url).port
    except (httpx.InvalidURL, TypeError, ValueError) as e:
        raise Invalid("SETTING_INVALID", f"registry URL {url[:200]!r} is not a URL: {e}") from e
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise Invalid(
            "SETTING_INVALID",
            f"registry URL {url[:200]!r} does not begin with http:// or https://",
            next_step="set ADAPTER_REGISTRY to a URL such as https://registry.example.org",
        )
    if parsed.userinfo:
        raise Invalid("SETTING_INVALID", "registry URL holds a password; put the token into ADAPTER_TOKEN")
    return url.rstrip("/")


def _joined(base: str, url: str) -> str:
    """The whole URL of a link. `Unavailable` for one that is none: the next one may be."""
    try:
        target = urljoin(base, url)
        _ = httpx.URL(target), urlsplit(target).port  # what would raise later, and differently
        return target
    except (ValueError, httpx.InvalidURL) as e:
        raise Unavailable("STORE_UNAVAILABLE", f"{url[:200]!r} is no link: {e}") from e


def _origin(url: str) -> tuple[str, str, int | None]:
    parsed = httpx.URL(url)
    return parsed.scheme, parsed.host, parsed.port
