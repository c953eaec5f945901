"""`EventBatch`: denials and reads of private bytes, which become events in batches, outside the request's transaction.

Equal ones become one event with a count, and a batch has a bounded size, so that a flood of requests becomes few rows.
A batch that cannot be written is kept.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine

from registry.events import EventType
from registry.server import audit
from registry.server.actors import Actor
from registry.server.database import db
from registry.server.secret import mask_secrets

ENTRIES_LIMIT = 1000
PATHS_LIMIT = 50
"""How many paths of denied requests a batch records per token. Beyond that it records their routes."""
DENIAL_ACTIONS = {
    "Unauthenticated": EventType.ACCESS_UNKNOWN,
    "Denied": EventType.ACCESS_DENIED,
    "NotFound": EventType.ACCESS_NOT_FOUND,
}
"""Class of an error → the action of its event."""

ANONYMOUS = Actor("anonymous", "", frozenset(), frozenset())
"""The actor of requests without a valid token."""


@dataclass
class _Entry:
    actor: Actor
    request_id: str
    count: int = 0


class EventBatch:
    """The events of this process that are not written yet. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[tuple[str, str, EventType, str], _Entry] = {}
        self._overflow = 0
        self._paths: dict[str, set[str]] = {}
        """Token id → the paths that were recorded for it."""

    @property
    def is_pending(self) -> bool:
        """Whether anything was added that is not written yet."""
        return bool(self._entries or self._overflow)

    def add(self, actor: Actor, event_type: EventType, object: str, *, request_id: str = "") -> None:
        """Count an event."""
        key = (actor.token_id, actor.identity, event_type, object[:300])
        with self._lock:
            if key not in self._entries and len(self._entries) >= ENTRIES_LIMIT:
                self._overflow += 1
                return
            self._entries.setdefault(key, _Entry(actor, request_id)).count += 1

    def add_denial(self, scope: Mapping[str, Any], error_class: str, about: str = "") -> None:
        """Count a denied request, given its ASGI scope, the class of the error, and which of its items was denied.

        For a request without a token only the route is recorded, so that guessed paths do not fill the log.
        """
        state, route = scope.get("state", {}), scope.get("route")
        actor: Actor | None = state.get("actor")
        if actor is None and error_class == "NotFound":
            return
        route_path = str(getattr(route, "path", "an unknown route"))
        path = mask_secrets(f"{scope['path']} {about}".strip() if actor is not None else route_path)
        actor = actor or ANONYMOUS
        object = f"{scope['method']} {path}"
        with self._lock:
            paths = self._paths.setdefault(actor.token_id, set())
            if object not in paths and len(paths) >= PATHS_LIMIT:
                object = f"{scope['method']} {route_path}"
            paths.add(object)
        self.add(actor, DENIAL_ACTIONS[error_class], object, request_id=str(state.get("request_id", "")))

    def flush(self, engine: Engine) -> int:
        """Write the batch and return the number of events."""
        with self._lock:
            entries, overflow = self._entries, self._overflow
            self._entries, self._overflow, self._paths = {}, 0, {}
        if not entries and not overflow:
            return 0
        try:
            with db.session(engine) as session:
                for (_, _, event_type, object), entry in entries.items():
                    detail = {"count": entry.count}
                    audit.append(session, entry.actor, event_type, object, detail, entry.request_id, namespace="")
                if overflow:
                    audit.append(session, ANONYMOUS, EventType.AUDIT_OVERFLOW, "", {"count": overflow})
        except BaseException:
            with self._lock:
                for key, entry in entries.items():
                    self._entries.setdefault(key, _Entry(entry.actor, entry.request_id)).count += entry.count
                self._overflow += overflow
            raise
        return len(entries) + bool(overflow)
