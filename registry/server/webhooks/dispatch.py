"""Dispatch: numbered events become deliveries, and deliveries are sent, again and again, until delivered or dead.

Invariants
- A webhook's cursor and its new deliveries are one transaction: an event becomes one delivery, whatever is restarted.
- Sent at least once: a receiver tells repeats by `webhook-id`, which is the same in every attempt.
- One process at a time sends (server/turn). No transaction is held while bytes move.
- A receiver has `ANSWER_SECONDS` and `ANSWER_LIMIT_BYTES`; anything but 2xx is a failure, a redirect too.

Signed as Standard Webhooks has it: base64 of HMAC-SHA256 over `id.timestamp.body`.

Example
    >>> dispatch.step(engine, settings, keys)
    2
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import http.client
import json
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Engine
from sqlmodel import Session, col, select

from registry import __version__
from registry.api.audit import EventView, moment
from registry.errors import Invalid, Unavailable
from registry.server import audit, webhooks
from registry.server.actors import EVERY_NAMESPACE
from registry.server.audit import tree
from registry.server.audit.keys import Keys
from registry.server.database import db, locks
from registry.server.database.models import DeliveryRow, EventRow, WebhookRow
from registry.server.settings import Settings
from registry.server.webhooks import target
from registry.server.webhooks.target import Target

PAUSES_SECONDS = (5, 30, 120, 600, 3600, 6 * 3600, 24 * 3600)
"""How long to wait after each failure; after the last one the delivery is dead."""
ANSWER_SECONDS = 5.0
ANSWER_LIMIT_BYTES = 64 * 2**10
BATCH = 500
AT_ONCE = 8
STEP_SECONDS = 1.0
_LOG = logging.getLogger("registry.server.webhooks")


def follow(
    engine: Engine,
    settings: Settings,
    keys: Callable[[], Keys],
    closing: threading.Event,
    stamp: Callable[[], object | None] = lambda: None,
) -> None:
    """Call `step` every second until `closing` is set, in a thread of its own; a failure is logged.

    `stamp`: equal while nothing is committed, None where that is not known (`Freshness.stamp`). Where there is no
    webhook, nothing is looked at until something was.
    """
    without = None
    while not closing.wait(STEP_SECONDS):
        try:
            now = stamp()
            if now is not None and now == without:
                continue
            without = None if _ids(engine) else now
            while step(engine, settings, keys) and not closing.is_set():
                pass
        except Exception as e:  # a thread that ends would stop all webhooks without anybody seeing it
            _LOG.error("webhooks do not go on: %s", e)


def step(engine: Engine, settings: Settings, keys: Callable[[], Keys]) -> int:
    """Make deliveries of what is new and send those that are due; how many were sent. Another process may be at it."""
    ids = _ids(engine)
    if not ids:
        return 0
    with contextlib.suppress(Unavailable), locks.acquire(engine, "webhooks") as mine:
        for webhook_id in ids:
            while _enqueue(engine, webhook_id):
                mine.check()
        with db.session(engine, write=False) as session:
            waiting = [(row, hook, _event(session, row)) for row, hook in webhooks.due(session, AT_ONCE)]
        if not waiting:
            return 0
        held = keys()
        with ThreadPoolExecutor(AT_ONCE) as pool:
            sent = [pool.submit(_send, hook, event, settings, held) for _, hook, event in waiting]
            for (row, _, _), result in zip(waiting, sent, strict=True):
                _note(engine, row, *result.result())
        return len(waiting)
    return 0


def _ids(engine: Engine) -> Sequence[str]:
    with db.session(engine, write=False) as session:
        return session.exec(select(WebhookRow.id)).all()


def _enqueue(engine: Engine, webhook_id: str) -> bool:
    """Deliveries for the next events of one webhook; whether there may be more."""
    with db.session(engine) as session:
        row = session.get(WebhookRow, webhook_id)
        if row is None:
            return False
        until = min(tree.size(session), row.after + BATCH)
        if until <= row.after:
            return False
        wanted = select(EventRow.position).where(
            col(EventRow.position) > row.after, col(EventRow.position) <= until, col(EventRow.action).in_(row.actions)
        )
        if row.namespace != EVERY_NAMESPACE:
            wanted = wanted.where(EventRow.namespace == row.namespace)
        moment_now = db.now()
        for position in session.exec(wanted.order_by(col(EventRow.position))):
            values: dict[str, Any] = {
                "webhook_id": row.id,
                "position": position,
                "state": webhooks.WAITING,
                "attempt": 0,
            }
            values |= {"next_at": moment_now, "created_at": moment_now, "error": ""}
            db.insert_new(session, DeliveryRow, values)
        row.after = until
        session.add(row)
        return until < tree.size(session)


def _event(session: Session, row: DeliveryRow) -> EventView:
    return audit.view(session.exec(select(EventRow).where(EventRow.position == row.position)).one())


def _note(engine: Engine, sent: DeliveryRow, status: int | None, error: str) -> None:
    with db.session(engine) as session:
        row = session.get(DeliveryRow, sent.id)
        if row is None:  # its webhook ended meanwhile
            return
        row.attempt, row.status, row.error = row.attempt + 1, status, error[:500]
        if not error:
            row.state, row.ended_at = webhooks.DELIVERED, db.now()
        elif row.attempt > len(PAUSES_SECONDS):
            row.state, row.ended_at = webhooks.DEAD, db.now()
        else:
            row.next_at = db.now() + timedelta(seconds=PAUSES_SECONDS[row.attempt - 1])
        session.add(row)


# ------------------------------------------------------------------ one request
def _send(hook: WebhookRow, event: EventView, settings: Settings, keys: Keys) -> tuple[int | None, str]:
    """(status, what went wrong; empty when it was delivered)."""
    try:
        where = target.find(hook.url, settings.webhook_private)
    except Invalid as e:
        return None, e.detail
    body = json.dumps({"type": event.action, "timestamp": moment(event.at), "data": event.model_dump(mode="json")})
    message = f"{hook.id}.{event.seq}"
    headers = signed(message, body.encode(), webhooks.secret_of(hook.id, keys), db.now())
    try:
        status = _post(where, body.encode(), headers)
    except (OSError, http.client.HTTPException, ValueError) as e:
        return None, f"{type(e).__name__}: {str(e)[:200]}"
    if 200 <= status < 300:
        return status, ""
    return status, "it redirects, which is not followed" if 300 <= status < 400 else f"it answered {status}"


def signed(message: str, body: bytes, secret: str, at: datetime) -> dict[str, str]:
    """The headers of a message: its id, its time, and the signature over both and the body."""
    stamp = str(int(at.timestamp()))
    key = base64.b64decode(secret.removeprefix("whsec_"))
    told = hmac.new(key, f"{message}.{stamp}.".encode() + body, hashlib.sha256).digest()
    return {
        "webhook-id": message,
        "webhook-timestamp": stamp,
        "webhook-signature": f"v1,{base64.b64encode(told).decode()}",
        "Content-Type": "application/json",
        "User-Agent": f"adapter-registry/{__version__}",
    }


def _post(where: Target, body: bytes, headers: dict[str, str]) -> int:
    """POST to the address that was allowed; the status. Reads no more of the answer than it must."""
    until = time.monotonic() + ANSWER_SECONDS
    connection = http.client.HTTPConnection(where.host, where.port, timeout=ANSWER_SECONDS)
    connection.sock = socket.create_connection((where.address, where.port), timeout=ANSWER_SECONDS)
    try:
        if where.scheme == "https":
            context = ssl.create_default_context()
            connection.sock = context.wrap_socket(connection.sock, server_hostname=where.host)
        if where.port != target.PORTS[where.scheme]:
            headers = {**headers, "Host": f"{where.host}:{where.port}"}
        else:
            headers = {**headers, "Host": where.host}
        guard = threading.Timer(max(0.1, until - time.monotonic()), _cut, (connection.sock,))
        guard.start()
        try:
            connection.request("POST", where.path, body, headers)
            answer = connection.getresponse()
            answer.read(ANSWER_LIMIT_BYTES)
            return answer.status
        finally:
            guard.cancel()
    finally:
        connection.close()


def _cut(sock: socket.socket) -> None:
    """The time is over: a receiver that answers byte by byte is let go."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
