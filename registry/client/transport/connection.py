"""`Connection`: requests to one registry and the stores that it links to, with retries.

- The token is sent to the registry's own origin only, whatever a link or a redirect says.
- Every mutation has its own Idempotency-Key, so any request may be sent again after a broken connection.
- An error answer raises the class that the server raised; nothing raises an exception of the HTTP library.
"""

from __future__ import annotations

import io
import json as texts
import math
import os
import random
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx

from registry import __version__
from registry.api import CHECKPOINT_HEADER, PREFIX
from registry.client.transport import links
from registry.client.transport.links import origin
from registry.client.transport.responses import error_of, store_error_of, unreachable, wrong_answer
from registry.client.transport.sockets import ANSWER_LIMIT_BYTES, READ_SECONDS, Advance, Sockets, Take, ThroughputGuard
from registry.client.transport.transport import Transport, read_whole
from registry.errors import Invalid, Unavailable

ATTEMPTS_LIMIT = 4
PATIENT_ATTEMPTS_LIMIT = 16
"""While a proxy or the registry answers 502, 503 or 504, or a patient request meets a restart: until time is up."""
TIMEOUT_SETTING = "ADAPTER_TIMEOUT"
SILENT_SECONDS = 5.0
"""An answer that takes longer is reported."""
SAY_AGAIN_SECONDS = 5.0
PAUSE_SECONDS = 0.2
PAUSE_LIMIT_SECONDS = 10.0
REDIRECTS_LIMIT = 3
_HAS_CHECKPOINT = re.compile(rf"{PREFIX}/(resolve/|pushes/[^/]+/commit\Z|adapters/[^/]+/[^/]+/versions/[^/]+/pull\Z)")
"""Paths whose answers carry the newest checkpoint of the audit log."""

Body = Callable[[], Iterable[bytes]]
"""A request body that can be read again from the start, so that the request can be sent again."""


class Connection:
    """Keeps connections open. Thread-safe.

    `transport`: httpx transport for the registry; `other_transport`: for other origins; `wait`: sleeps some seconds.
    `insecure`: send the token over plain http, too (also by ADAPTER_INSECURE=1).
    """

    def __init__(
        self, url: str, token: str = "", *, transport: httpx.BaseTransport | None = None,
        other_transport: httpx.BaseTransport | None = None, wait: Callable[[float], None] = time.sleep,
        insecure: bool = False,
    ) -> None:  # fmt: skip
        self.url = _parsed_url(url)
        self._in_process = transport is not None
        if token and not self._in_process and not insecure and os.environ.get("ADAPTER_INSECURE", "") in ("", "0"):
            links.check_token_target(self.url)
        self._token = token
        self._wait = wait
        self._answered = False
        self.on_checkpoint: Callable[[str], None] | None = None
        """Called with the checkpoint of an answer before the answer is returned; with "" if it lacks a due one."""
        self.on_wait: Callable[[str], None] | None = None
        """Called with a line for people while an answer takes long, or is requested again."""
        self.timeout_seconds = _timeout()
        """How long an answer may take, and how long a request is repeated while the registry is unavailable."""
        self._said_at = -math.inf
        program = f"adapter-registry/{__version__}"
        self._sockets = Sockets(program, "" if self._in_process else self.url)
        self._own_transport = Transport(self._sockets, program, transport)
        self._other_transport = Transport(self._sockets, program, other_transport)

    def close(self) -> None:
        self._own_transport.close()
        self._other_transport.close()
        self._sockets.close()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def send(
        self, method: str, path: str, *, json: Any = None, query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None, seconds: float | None = None, limit_bytes: int = ANSWER_LIMIT_BYTES,
        patient: bool = False,
    ) -> httpx.Response:  # fmt: skip
        """One request to a route below the API's prefix, its answer read whole.

        `seconds`: read timeout, for a request that takes long. `patient`: keep trying while the registry restarts.
        `Corrupt` (ANSWER_INVALID) for an answer over `limit_bytes`.
        """
        params = {key: value for key, value in (query or {}).items() if value not in (None, "")}
        sent = self._own_headers(headers)
        if method not in ("GET", "HEAD"):
            sent["Idempotency-Key"] = secrets.token_hex(16)
        content = None
        if json is not None:
            content = texts.dumps(json, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
            sent["Content-Type"] = "application/json"
        target = str(httpx.URL(self.url + PREFIX + path, params=params or None))
        timeout = seconds or self.timeout_seconds

        def once() -> httpx.Response:
            with self._watch(seconds is None and not params.get("wait")):
                return self._own_transport.ask(method, target, content, sent, seconds=timeout, limit_bytes=limit_bytes)

        answer = self._repeat(once, patient, moves_files=False)
        if answer.has_redirect_location:
            location = answer.headers["location"].partition("?")[0][:200]
            raise wrong_answer(f"the registry redirects {path} to {location!r}", next_step="use that URL")
        return answer

    def upload(self, method: str, url: str, body: Body, *, headers: Mapping[str, str] | None = None) -> httpx.Response:
        """Send bytes to a link, which is relative or absolute."""
        transport, target, sent = self._route(url, headers)
        return self._repeat(lambda: transport.put(method, target, sent, body()))

    @contextmanager
    def stream(self, url: str, *, headers: Mapping[str, str] | None = None) -> Iterator[httpx.Response]:
        """The answer to a GET of a link, its body still to be read. Follows redirects."""
        opened = self._repeat(lambda: self._open(url, headers))
        try:
            with _as_unavailable(self.url):
                yield opened
        finally:
            opened.close()

    def send_file(
        self, url: str, file: io.FileIO, start: int, length: int, *, headers: Mapping[str, str] | None = None,
        advance: Advance = lambda _count: None,
    ) -> httpx.Response:  # fmt: skip
        """PUT a range of a file to a link. `advance` is called with each step, negative when it starts again.

        412 with If-None-Match means that an earlier attempt arrived and its answer was lost.
        """
        transport, target, sent = self._route(url, headers)
        moved = 0

        def once() -> httpx.Response:
            nonlocal moved
            advance(-moved)
            moved, guard = 0, ThroughputGuard(target)

            def step(count: int) -> None:
                nonlocal moved
                moved += count
                advance(count)
                guard.moved(count)

            answer = transport.put_file(target, sent, file, start, length, step)
            there_already = answer.status_code == 412 and "If-None-Match" in sent
            return httpx.Response(200, request=answer.request) if there_already else answer

        return self._repeat(once, patient=True)

    def receive(self, url: str, take: Take, *, headers: Mapping[str, str] | None = None) -> httpx.Response:
        """GET a link and give its bytes to `take` as they arrive. Sent again only while nothing was received."""
        received = 0

        def once() -> httpx.Response:
            guard = ThroughputGuard(self._followed(self.url + "/", url))

            def count(piece: memoryview) -> None:
                nonlocal received
                received += len(piece)
                take(piece)
                guard.moved(len(piece))

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
            transport, target, sent = self._route(url, {"Accept-Encoding": "identity"} | dict(headers or {}))
            answer = transport.open(target, sent)
            if not answer.has_redirect_location:
                return read_whole(answer) if answer.is_error else answer
            url = self._followed(target, answer.headers["location"])
            answer.close()
        raise Unavailable("STORE_UNAVAILABLE", f"{self.url} redirects more than {REDIRECTS_LIMIT} times")

    def _receive(self, url: str, take: Take, headers: Mapping[str, str] | None) -> httpx.Response:
        for _ in range(REDIRECTS_LIMIT + 1):
            transport, target, sent = self._route(url, headers)
            answer = transport.get(target, sent, take)
            if not answer.has_redirect_location:
                return answer
            url = self._followed(target, answer.headers["location"])
        raise Unavailable("STORE_UNAVAILABLE", f"{self.url} redirects more than {REDIRECTS_LIMIT} times")

    def _route(self, url: str, headers: Mapping[str, str] | None) -> tuple[Transport, str, dict[str, str]]:
        """The transport, absolute URL and headers of a link; the token only for the registry's own origin."""
        target = self._followed(self.url + "/", url)
        if origin(target) == origin(self.url):
            return self._own_transport, target, self._own_headers(headers)
        return self._other_transport, target, dict(headers or {})

    def _followed(self, base: str, link: str) -> str:
        return links.followed(base, link, self.url, in_process=self._in_process)

    def _own_headers(self, headers: Mapping[str, str] | None) -> dict[str, str]:
        own = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        return own | dict(headers or {})

    def _repeat(
        self, once: Callable[[], httpx.Response], patient: bool = False, *, moves_files: bool = True
    ) -> httpx.Response:
        """`moves_files`: an attempt may take hours, so a few attempts are made however long they take."""
        attempt, began, paused = 0, time.monotonic(), 0.0
        while True:
            attempt += 1
            cause: httpx.HTTPError | None = None
            try:
                answer = once()
            except httpx.HTTPError as e:
                error, cause = unreachable(self.url, e), e
                is_restart = patient and self._answered and isinstance(e, httpx.ConnectError | httpx.ReadError)
                limit = PATIENT_ATTEMPTS_LIMIT if is_restart else ATTEMPTS_LIMIT
            else:
                self._answered = True
                if not answer.is_error:
                    self._check_checkpoint(answer)
                    return answer
                is_own = origin(str(answer.url)) == origin(self.url)
                answered_error = error_of(answer, self.url) if is_own else store_error_of(answer)
                if not isinstance(answered_error, Unavailable) or answered_error.code == "LINK_INVALID":
                    raise answered_error
                error = answered_error
                limit = PATIENT_ATTEMPTS_LIMIT if answer.status_code in (502, 503, 504) else ATTEMPTS_LIMIT
            pause = _pause(attempt, error.retry_after_seconds)
            if moves_files and attempt == 1:
                began = time.monotonic()
            remaining = self.timeout_seconds - max(time.monotonic() - began, paused)
            is_few = moves_files and attempt < ATTEMPTS_LIMIT and pause <= self.timeout_seconds
            if attempt >= limit or (pause > remaining and not is_few):
                raise error from cause
            if attempt > 2:
                self._say(f"{error.detail}; trying again for {max(remaining, pause):.0f} seconds")
            self._wait(pause)
            paused += pause

    @contextmanager
    def _watch(self, active: bool) -> Iterator[None]:
        """Report an answer that takes longer than `SILENT_SECONDS`."""
        if self.on_wait is None or not active:
            yield
            return
        line = f"no answer from {self.url} yet; waiting for {self.timeout_seconds:.0f} seconds ({TIMEOUT_SETTING})"
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
            self.on_wait(line)

    def _check_checkpoint(self, answer: httpx.Response) -> None:
        checkpoint = answer.headers.get(CHECKPOINT_HEADER, "")
        due = checkpoint or _HAS_CHECKPOINT.search(answer.url.path)
        if due and self.on_checkpoint is not None and origin(str(answer.url)) == origin(self.url):
            self.on_checkpoint(checkpoint)


@contextmanager
def _as_unavailable(url: str) -> Iterator[None]:
    try:
        yield
    except httpx.HTTPError as e:
        raise unreachable(url, e) from e


def _pause(attempt: int, retry_after_seconds: int | None) -> float:
    """Seconds to wait, with jitter: at least what the server asks for, else growing by two up to a limit."""
    if retry_after_seconds:
        return retry_after_seconds * random.uniform(1.0, 1.2)  # noqa: S311 - spreads load, guards nothing
    seconds: float = min(PAUSE_SECONDS * 2**attempt, PAUSE_LIMIT_SECONDS)
    return seconds * random.uniform(0.5, 1.0)  # noqa: S311


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
