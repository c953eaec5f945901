"""`RequestLog`: one log line for each request, and what the metrics tell about requests of this process.

A line names the template of the route and never the path or the query, so it holds no name and no secret; only the line
of a fault of the server says more. The actor is the token's subject or name.
"""

import logging
import threading
import time
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Message, Receive, Scope, Send

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""Methods that are counted by name. Clients may send any word, and the number of labels must stay small."""
BUCKETS_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
NO_ROUTE = "none"
_EXPECTED = frozenset({"TRY_LATER", "HUB_UNSUPPORTED"})
"""Problems with a status of faults that are none: what is meant to be refused must not fill the log of errors."""
_LOG = logging.getLogger("registry.server.requests")


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """A completed request. `route`: the template of its path."""

    id: str
    actor: str
    method: str
    route: str
    status: int
    seconds: float
    received_bytes: int
    sent_bytes: int
    problem: str = ""
    """The code of the error in the response."""
    detail: str = ""
    """What the error says, of a fault of the server or its parts."""


@dataclass(slots=True)
class Durations:
    """How long the requests of one method and route took. `counts`: of each bucket, then of those over the last."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS_SECONDS) + 1))
    total_seconds: float = 0.0

    def add(self, seconds: float) -> None:
        """Count one request."""
        self.counts[bisect_left(BUCKETS_SECONDS, seconds)] += 1
        self.total_seconds += seconds


@dataclass
class RequestLog:
    """The requests that were completed. `counts`: (method, status) → how many; `seconds`: (method, route) → how long.

    Threads of links record theirs.
    """

    counts: Counter[tuple[str, int]] = field(default_factory=Counter)
    seconds: dict[tuple[str, str], Durations] = field(default_factory=dict)
    failed_sign_ins: int = 0
    store_errors: int = 0
    writes_lines: bool = True
    """False in the embedded registry, whose command reports its errors."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def record(self, request: RequestRecord) -> None:
        """Count a request and write its line: an error for a fault of the server or its parts, with what it says."""
        method = request.method if request.method in METHODS else "other"
        with self._lock:
            self.counts[method, request.status] += 1
            self.failed_sign_ins += request.status == 401
            self.store_errors += request.problem == "STORE_UNAVAILABLE"
            self.seconds.setdefault((method, request.route), Durations()).add(request.seconds)
        level = logging.ERROR if request.status >= 500 and request.problem not in _EXPECTED else logging.INFO
        if self.writes_lines and _LOG.isEnabledFor(level):
            fields = {
                "id": request.id, "actor": request.actor or "-", "method": method, "route": request.route,
                "status": request.status, "ms": round(request.seconds * 1000, 1),
                "in": request.received_bytes, "out": request.sent_bytes,
                **({"problem": request.problem} if request.problem else {}),
                **({"detail": request.detail} if request.detail else {}),
            }  # fmt: skip
            _LOG.log(level, "request", extra={"fields": fields})


class LogMiddleware:
    """The outermost ASGI layer: measures each request and records it once its response is sent."""

    def __init__(self, app: ASGIApp, log: RequestLog) -> None:
        self.app, self._log = app, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started_at = time.perf_counter()
        status = received = sent = 0
        request_id = ""
        state = scope.setdefault("state", {})

        async def count_received() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            return message

        async def count_sent(message: Message) -> None:
            nonlocal status, sent, request_id
            if message["type"] == "http.response.start":
                status = message["status"]
                ids = (value for name, value in message.get("headers", ()) if name == b"x-request-id")
                request_id = next(ids, b"").decode("latin-1")
            sent += len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, count_received, count_sent)
        except Exception:
            if not status:  # a bug, which `problems` handles outside of this layer
                status, request_id, state["problem"] = 500, state.get("request_id", ""), "INTERNAL"
            raise
        finally:
            if status:
                seconds = time.perf_counter() - started_at
                actor = state.get("log_actor") or getattr(state.get("actor"), "identity", "")
                route = state.get("route") or getattr(scope.get("route"), "path", NO_ROUTE)
                self._log.record(
                    RequestRecord(
                        request_id, actor, scope["method"], route, status, seconds, received, sent,
                        state.get("problem", ""), state.get("problem_detail", ""),
                    )
                )  # fmt: skip
