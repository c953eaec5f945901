"""`Connection`: requests to one registry and the stores that it links to, with retries.

- The token is sent to the registry's own origin only, whatever a link or a redirect says.
- Every mutation has its own Idempotency-Key, so any request may be sent again after a broken connection.
- An error response raises the class that the server raised; nothing raises an exception of the HTTP library.
- A registry may be hostile: links.py says where its links may lead. The address is checked again when the connection is
  made, because a name may have another one by then. A proxy connects by its own rules.
"""

from __future__ import annotations

import io
import json as texts
import math
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from registry import __version__
from registry.api import CHECKPOINT_HEADER, PREFIX
from registry.client.transport import (
    READ_SECONDS,
    RESPONSE_LIMIT_BYTES,
    Advance,
    FileRange,
    HttpResponse,
    ResponseStream,
    Take,
    ThroughputGuard,
    Transport,
    TransportError,
    invalid_response,
)
from registry.client.transport.http_transport import HttpTransport
from registry.client.transport.links import (
    VISIBLE_ASCII,
    accepts_plain_http,
    is_loopback,
    is_this_machine,
    may_follow,
    origin,
    resolve_link,
    shown,
)
from registry.client.transport.logged_transport import LoggedTransport
from registry.client.transport.responses import error_of, store_error_of, unreachable
from registry.client.transport.retries import ATTEMPTS_LIMIT, PATIENT_ATTEMPTS_LIMIT, Retries
from registry.errors import Invalid, Unavailable, printable

TIMEOUT_SETTING = "ADAPTER_TIMEOUT"
SILENT_SECONDS = 5.0
"""A response that takes longer is reported."""
SAY_AGAIN_SECONDS = 5.0
LINE_LIMIT = 1000
REDIRECTS_LIMIT = 3
_HAS_CHECKPOINT = re.compile(rf"{PREFIX}/(resolve/|pushes/commit\Z|pulls\Z)")
"""Paths whose responses carry the newest checkpoint of the audit log."""

_PATH_CHARACTERS = "/%:@!$&'()*+,;=~"


class Connection:
    """Keeps connections open. Thread-safe.

    `transport`: for the registry, if it is in this process; `other_transport`: for other origins; `wait`: sleeps.
    `insecure`: send the token over plain http, too (also by ADAPTER_INSECURE=1).
    """

    def __init__(
        self, url: str, token: str = "", *, transport: Transport | None = None,
        other_transport: Transport | None = None, wait: Callable[[float], None] = time.sleep,
        insecure: bool = False,
    ) -> None:  # fmt: skip
        self.url = _parsed_url(url)
        self._in_process = transport is not None
        token = _parsed_token(token)
        is_accepted = insecure or accepts_plain_http()
        self._stays_here = bool(token) and not self._in_process and not is_accepted and origin(self.url)[0] == "http"
        """Whether the token is sent to this machine only."""
        if self._stays_here and not is_this_machine(origin(self.url)[1]):
            raise _unencrypted(self.url)
        self._token = token
        self._wait = wait
        self.has_responded = False
        """Whether this registry is known to exist: it has responded, to this connection or to an earlier one."""
        self.has_own_disk = False
        """Whether the registry is in this process and keeps its bytes in a folder."""
        self.on_checkpoint: Callable[[str], None] | None = None
        """Called with the checkpoint of a response before the response is returned; with "" if it lacks a due one."""
        self.on_wait: Callable[[str], None] | None = None
        """Called with a line for people while a response takes long, or the request is repeated."""
        self.repeats = True
        """Whether a request that fails is sent again."""
        self.patient = False
        """Whether every request waits for a registry that restarts (`send`)."""
        self.timeout_seconds = _timeout()
        """How long a response may take, and how long a request is repeated while the registry is unavailable."""
        self._said_at = -math.inf
        http = HttpTransport(f"adapter-registry/{__version__}", self._check_peer)
        self._own_transport: Transport = transport or http
        self._other_transport: Transport = other_transport or http

    def log_requests(self, say: Callable[[str], None]) -> None:
        """Call `say` with a line about each request from now on."""
        self._own_transport = LoggedTransport(self._own_transport, say)
        self._other_transport = LoggedTransport(self._other_transport, say)

    def close(self) -> None:
        """Close idle connections."""
        self._own_transport.close()
        self._other_transport.close()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def send(
        self, method: str, path: str, *, json: Any = None, query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None, seconds: float | None = None, limit_bytes: int = RESPONSE_LIMIT_BYTES,
        patient: bool = False, follows_links: bool = False,
    ) -> HttpResponse:  # fmt: skip
        """One request to a route below the API's prefix, its response read whole.

        `seconds`: read timeout, for a request that takes long. `patient`: keep trying while the registry restarts.
        Without it, and where nothing ever responded, that fails after a few attempts: most often the URL is wrong.
        `follows_links`: a GET whose response may be a redirect to the store.
        `Corrupt` (RESPONSE_INVALID) for a response over `limit_bytes`.
        """
        params = [(key, value) for key, value in (query or {}).items() if value not in (None, "")]
        sent = self._own_headers(headers)
        if method not in ("GET", "HEAD"):
            sent["Idempotency-Key"] = secrets.token_hex(16)
        content = b""
        if json is not None:
            content = texts.dumps(json, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
            sent["Content-Type"] = "application/json"
        target = self.url + PREFIX + quote(path, safe=_PATH_CHARACTERS) + _query(params)
        wait_seconds = dict(params).get("wait", 0)  # for which the registry may be silent
        timeout = (seconds or self.timeout_seconds) + wait_seconds

        def once() -> HttpResponse:
            with self._watch(seconds is None and not wait_seconds):
                if follows_links:
                    stream = self._get(target, headers)
                else:
                    stream = self._own_transport.open(method, target, sent, content, seconds=timeout)
                return stream.read(limit_bytes)

        response = self._repeat(once, patient, moves_files=False)
        if response.location:
            location = response.location.partition("?")[0][:200]
            raise invalid_response(f"the registry redirects {path} to {location!r}", next_step="use that URL")
        return response

    @contextmanager
    def stream(self, url: str, *, headers: Mapping[str, str] | None = None) -> Iterator[Iterator[bytes]]:
        """The body of the response to a GET of a link. Follows redirects."""
        streams: list[ResponseStream] = []

        def once() -> HttpResponse:
            stream = self._get(url, headers)
            if stream.head.is_error:
                return stream.read()
            streams.append(stream)
            return stream.head

        self._repeat(once)
        try:
            yield self._chunks(streams[-1])
        finally:
            streams[-1].close()

    def send_file(
        self, url: str, file: io.FileIO, start: int, length: int, *, headers: Mapping[str, str] | None = None,
        advance: Advance = lambda _count: None,
    ) -> HttpResponse:  # fmt: skip
        """PUT a range of a file to a link. `advance` is called with each step, negative when it starts again.

        412 with If-None-Match means that an earlier attempt arrived and its response was lost.
        """
        transport, target, sent = self._route(url, headers)
        sent["Content-Length"] = str(length)
        moved = 0

        def once() -> HttpResponse:
            nonlocal moved
            advance(-moved)
            moved, guard = 0, ThroughputGuard(target)

            def step(count: int) -> None:
                nonlocal moved
                moved += count
                advance(count)
                guard.moved(count)

            stream = transport.open("PUT", target, sent, FileRange(file, start, length, step), seconds=READ_SECONDS)
            response = stream.read()
            there_already = response.status == 412 and "If-None-Match" in sent
            return HttpResponse(response.url, 200, response.headers) if there_already else response

        return self._repeat(once, patient=True)

    def receive(self, url: str, take: Take, *, headers: Mapping[str, str] | None = None) -> HttpResponse:
        """GET a link and give its bytes to `take` as they arrive. Sent again only while nothing was received."""
        received = 0

        def once() -> HttpResponse:
            nonlocal received
            stream = self._get(url, headers)
            if stream.head.status not in (200, 206):
                return stream.read()
            guard = ThroughputGuard(stream.head.url)
            try:
                if (stream.head.status == 206) != ("Range" in (headers or {})):
                    raise TransportError("the response is not the requested range", stream.head.url)
                stream.set_deadline(math.inf)
                for chunk in stream.chunks():
                    received += len(chunk)
                    take(memoryview(chunk))
                    guard.moved(len(chunk))
            except TransportError as e:
                if received:
                    raise unreachable(self.url, e) from e
                raise
            finally:
                stream.close()
            return stream.head

        return self._repeat(once, patient=True)

    def _chunks(self, stream: ResponseStream) -> Iterator[bytes]:
        stream.set_deadline(math.inf)
        try:
            for chunk in stream.chunks():
                yield bytes(chunk)
        except TransportError as e:
            raise unreachable(self.url, e) from e

    def _get(self, url: str, headers: Mapping[str, str] | None) -> ResponseStream:
        for _ in range(REDIRECTS_LIMIT + 1):
            transport, target, sent = self._route(url, headers)
            stream = transport.open("GET", target, sent, b"", seconds=READ_SECONDS)
            if not stream.head.location:
                return stream
            stream.close()
            url = resolve_link(target, stream.head.location, self.url, in_process=self._in_process)
        raise Unavailable("STORE_UNAVAILABLE", f"{self.url} redirects more than {REDIRECTS_LIMIT} times")

    def _route(self, url: str, headers: Mapping[str, str] | None) -> tuple[Transport, str, dict[str, str]]:
        """The transport, absolute URL and headers of a link; the token only for the registry's own origin."""
        target = resolve_link(self.url + "/", url, self.url, in_process=self._in_process)
        if origin(target) == origin(self.url):
            return self._own_transport, target, self._own_headers(headers)
        return self._other_transport, target, dict(headers or {})

    def _check_peer(self, url: str, address: str) -> None:
        """`Corrupt` (RESPONSE_INVALID) if a link leads to this machine, unless the registry itself is there.

        `Invalid` (SETTING_INVALID) before a token goes unencrypted to another machine: a name can resolve to both.
        """
        is_own = origin(url) == origin(self.url)
        if is_own and self._stays_here and not is_loopback(address):
            raise _unencrypted(self.url)
        if not (self._in_process or is_own or may_follow(address, origin(self.url)[1])):
            raise invalid_response(f"the registry links to {shown(url)}, which is {address} now")

    def _own_headers(self, headers: Mapping[str, str] | None) -> dict[str, str]:
        own = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        return own | dict(headers or {})

    def _repeat(
        self, once: Callable[[], HttpResponse], patient: bool = False, *, moves_files: bool = True
    ) -> HttpResponse:
        retries = Retries(self, moves_files=moves_files)
        while True:
            cause: TransportError | None = None
            try:
                response = once()
            except TransportError as e:
                error, cause = unreachable(self.url, e), e
                is_restart = (patient or self.patient) and e.broke and self.has_responded
                limit = PATIENT_ATTEMPTS_LIMIT if is_restart else ATTEMPTS_LIMIT
            else:
                self.has_responded = True
                if not response.is_error:
                    self._check_checkpoint(response)
                    return response
                is_own = origin(response.url) == origin(self.url)
                received = error_of(response, self.url) if is_own else store_error_of(response)
                if not isinstance(received, Unavailable) or received.code == "LINK_INVALID":
                    raise received
                error = received
                limit = PATIENT_ATTEMPTS_LIMIT if response.status in (502, 503, 504) else ATTEMPTS_LIMIT
            if not retries.wait(error, limit):
                raise error from cause

    def wait(self, seconds: float, line: str = "") -> None:
        """Sleep, and report why if there is a line."""
        if line:
            self._say(line)
        self._wait(seconds)

    @contextmanager
    def _watch(self, active: bool) -> Iterator[None]:
        """Report a response that takes longer than `SILENT_SECONDS`."""
        if self.on_wait is None or not active:
            yield
            return
        peer = "the registry in this process" if self._in_process else self.url
        line = f"no response from {peer} yet; waiting for {self.timeout_seconds:.0f} seconds ({TIMEOUT_SETTING})"
        timer = threading.Timer(SILENT_SECONDS, self._say, [line])
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _say(self, line: str) -> None:
        now = time.monotonic()
        if self.on_wait is not None and now - self._said_at >= SAY_AGAIN_SECONDS:
            self._said_at = now
            self.on_wait(printable(line, LINE_LIMIT))

    def _check_checkpoint(self, response: HttpResponse) -> None:
        checkpoint = response.headers.get(CHECKPOINT_HEADER, "")
        due = checkpoint or _HAS_CHECKPOINT.search(urlsplit(response.url).path)
        if due and self.on_checkpoint is not None and origin(response.url) == origin(self.url):
            self.on_checkpoint(checkpoint)


def _query(params: list[tuple[str, Any]]) -> str:
    """Return the query of a URL, with its `?` if there is one. A list is a parameter for each item."""
    pairs = [(key, item) for key, value in params for item in (value if isinstance(value, list | tuple) else [value])]
    texts_of = [(key, str(item).lower() if isinstance(item, bool) else str(item)) for key, item in pairs]
    return f"?{urlencode(texts_of, quote_via=quote)}" if pairs else ""


def _timeout() -> float:
    """`ADAPTER_TIMEOUT`, else the default. `Invalid` (SETTING_INVALID)."""
    text = os.environ.get(TIMEOUT_SETTING, "").strip()
    try:
        seconds = float(text or READ_SECONDS)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= 86_400:
        raise Invalid("SETTING_INVALID", f"{TIMEOUT_SETTING}: {text[:40]!r} is not a number of seconds")
    return float(seconds)


def _parsed_url(url: str) -> str:
    """The registry's URL without a trailing slash. `Invalid` (SETTING_INVALID)."""
    try:
        parts, _ = urlsplit(url), urlsplit(url).port
    except (AttributeError, TypeError, ValueError) as e:
        raise Invalid("SETTING_INVALID", f"registry URL {url[:200]!r} is not a URL: {e}") from e
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Invalid(
            "SETTING_INVALID",
            f"registry URL {url[:200]!r} does not begin with http:// or https://",
            next_step="set ADAPTER_REGISTRY to a URL such as https://registry.example.org",
        )
    if not VISIBLE_ASCII.fullmatch(url):
        message = f"registry URL {url[:200]!r} is not a URL: it holds a space or a character outside ASCII"
        raise Invalid("SETTING_INVALID", message)
    if parts.username is not None:
        raise Invalid("SETTING_INVALID", "registry URL holds a password; put the token into ADAPTER_TOKEN")
    return url.rstrip("/")


def _parsed_token(token: str) -> str:
    """A token without the space around it. `Invalid` (SETTING_INVALID), without the token, if no header can hold it."""
    token = token.strip()
    if token and not VISIBLE_ASCII.fullmatch(token):
        raise Invalid(
            "SETTING_INVALID",
            "the token holds a space, a line break or a character outside ASCII",
            next_step="set ADAPTER_TOKEN to the one line of `adapter token create`, or run `adapter login URL`",
        )
    return token


def _unencrypted(url: str) -> Invalid:
    return Invalid(
        "SETTING_INVALID",
        f"a token is not sent over plain http to {origin(url)[1]}: anyone on the network path could read it",
        next_step="use https, or accept the risk with `adapter login --insecure` or ADAPTER_INSECURE=1",
    )
