"""`RequestLog`: one log line for each request, which is counted for the metrics too.

A line names the template of the route and never the path or the query, so it holds no name and no secret; only the line
of a fault of the server says more. The actor is the token's subject or name.
"""

import logging
import time
from dataclasses import dataclass
from typing import Protocol

from starlette.types import ASGIApp, Message, Receive, Scope, Send

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""Methods that are named. Clients may send any word, and the number of labels of the metrics must stay small."""
NO_ROUTE, OTHER_METHOD = "none", "other"
SHARED_FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""Environment variable of Prometheus' client: the folder where processes of one server keep what they count."""
_EXPECTED = frozenset({"TRY_LATER", "HUB_UNSUPPORTED"})
"""Problems with a status of faults that are none: what is meant to be refused must not fill the log of errors."""
_LOG = logging.getLogger("registry.server.requests")


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """A completed request. `method`: one of `METHODS`, or another; `route`: the template of its path."""

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


class Meter(Protocol):
    """What counts requests."""

    def count(self, request: RequestRecord) -> None:
        """Count a completed request."""

    def count_store_error(self) -> None:
        """Count a failure of the blob store."""


@dataclass
class RequestLog:
    """The requests that were completed. Threads of links record theirs."""

    meter: Meter | None = None
    """None in the embedded registry, which nobody scrapes."""
    writes_lines: bool = True
    """False in the embedded registry, whose command reports its errors."""

    def record(self, request: RequestRecord) -> None:
        """Count a request and write its line: an error for a fault of the server or its parts, with what it says."""
        if self.meter is not None:
            self.meter.count(request)
        level = logging.ERROR if request.status >= 500 and request.problem not in _EXPECTED else logging.INFO
        if self.writes_lines and _LOG.isEnabledFor(level):
            fields = {
                "id": request.id, "actor": request.actor or "-", "method": request.method, "route": request.route,
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
                method = scope["method"] if scope["method"] in METHODS else OTHER_METHOD
                route = state.get("route") or getattr(scope.get("route"), "path", NO_ROUTE)
                self._log.record(
                    RequestRecord(
                        request_id, actor, method, route, status, seconds, received, sent,
                        state.get("problem", ""), state.get("problem_detail", ""),
                    )
                )  # fmt: skip
