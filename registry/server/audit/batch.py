"""`Batch`: denials and reads of private bytes, which become events some at a time, outside the request's transaction.

Invariants
- Equal ones (who, what, of which object) within one batch are one event with a count, so a flood is a few rows.
- A batch is bounded: what is over the bound is counted, not kept.
- A batch that cannot be written stays; a process that is killed loses at most what came since the last flush.

Example
    >>> batch.note(actor, "bytes.read", "acme/support@3", request_id="…")
    >>> batch.flush(engine)
    1
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine

from registry.server import audit
from registry.server.actors import Actor
from registry.server.database import db
from registry.server.secret import mask_secrets

KINDS_LIMIT = 1000
GUESSES_LIMIT = 50
"""Places of which one token was refused in one batch; of more only the routes are told, so no token fills the log."""
ACTIONS = {"Unauthenticated": "access.unknown", "Denied": "access.denied", "NotFound": "access.not_found"}
"""What a refusal is called in the log, by the class of its error."""

NOBODY = Actor("nobody", "", frozenset(), frozenset())
"""Who asks without a valid token."""


@dataclass
class _Noted:
    actor: Actor
    request_id: str
    count: int = 0


class Batch:
    """What was noted in this process and is still to be written. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._noted: dict[tuple[str, str, str, str], _Noted] = {}
        self._over = 0
        self._guesses: dict[str, set[str]] = {}

    @property
    def waits(self) -> bool:
        """Whether anything was noted that is not written yet."""
        return bool(self._noted or self._over)

    def note(self, actor: Actor, action: str, object: str, *, request_id: str = "") -> None:
        key = (actor.token_id, actor.identity, action, object[:300])
        with self._lock:
            if key not in self._noted and len(self._noted) >= KINDS_LIMIT:
                self._over += 1
                return
            self._noted.setdefault(key, _Noted(actor, request_id)).count += 1

    def denied(self, scope: Mapping[str, Any], how: str) -> None:
        """A request (its ASGI scope) that was refused: `how` is the class of the error.

        What somebody without a token asked for is told by the route's pattern, so that guesses do not fill the log.
        """
        state, route = scope.get("state", {}), scope.get("route")
        actor: Actor | None = state.get("actor")
        if actor is None and how == "NotFound":
            return
        path = str(scope["path"]) if actor is not None else str(getattr(route, "path", "an unknown route"))
        about = f"{scope['method']} {mask_secrets(path)}"
        pattern = f"{scope['method']} {getattr(route, 'path', 'an unknown route')}"
        with self._lock:
            mine = self._guesses.setdefault((actor or NOBODY).token_id, set())
            about = about if about in mine or len(mine) < GUESSES_LIMIT else pattern
            mine.add(about)
        self.note(actor or NOBODY, ACTIONS[how], about, request_id=str(state.get("request_id", "")))

    def flush(self, engine: Engine) -> int:
        """Write what was noted; how many events that were."""
        with self._lock:
            taken, over = self._noted, self._over
            self._noted, self._over, self._guesses = {}, 0, {}
        if not taken and not over:
            return 0
        try:
            with db.session(engine) as session:
                for (_, _, action, about), noted in taken.items():
                    audit.append(
                        session, noted.actor, action, about, {"count": noted.count}, noted.request_id, namespace=""
                    )
                if over:
                    audit.append(session, NOBODY, "audit.overflow", "", {"count": over})
        except BaseException:
            with self._lock:
                for key, noted in taken.items():
                    self._noted.setdefault(key, _Noted(noted.actor, noted.request_id)).count += noted.count
                self._over += over
            raise
        return len(taken) + bool(over)
