"""Dispatch: create deliveries for numbered events, and send them until they are delivered or dead.

- A webhook's cursor and its new deliveries are written in one transaction, so an event becomes exactly one delivery.
- A delivery is sent at least once. A receiver recognizes repeats by `webhook-id`, which is the same in each attempt.
- One process at a time sends. No transaction is open during a request. Webhooks do not wait for each other, and those
  of a namespace hold no more requests than their share.
- A receiver has `RESPONSE_SECONDS` and `RESPONSE_LIMIT_BYTES`. Any status but 2xx is a failure, including redirects.

Messages are signed as Standard Webhooks requires: base64 of HMAC-SHA256 over `id.timestamp.body`.
"""

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
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import datetime, timedelta
from operator import itemgetter
from typing import Any

from sqlalchemy import Engine, func
from sqlmodel import col, select

from registry import __version__
from registry.api.audit import EventView, moment
from registry.errors import Invalid, Unavailable, printable
from registry.events import DeliveryState
from registry.server import webhooks
from registry.server.access import outgoing
from registry.server.actors import EVERY_NAMESPACE
from registry.server.audit import tree
from registry.server.audit.keys import Keys
from registry.server.database import db, locks
from registry.server.database.models import EventRow
from registry.server.database.models.owner_rules import DeliveryRow, WebhookRow
from registry.server.settings import Settings
from registry.server.webhooks.target import WebhookAddress, resolve_target

RETRY_SECONDS = (5, 30, 120, 600, 3600, 6 * 3600, 24 * 3600)
"""How long to wait after each failure. After the last attempt the delivery is dead."""
RESPONSE_SECONDS = 5.0
RESPONSE_LIMIT_BYTES = 64 * 2**10
EVENTS_PER_BATCH = 500
DELIVERIES_PER_READ = 32
"""How many deliveries of each webhook are read at a time."""
PARALLEL = 16
PER_WEBHOOK = 2
FAILING_PARALLEL = 8
"""Webhooks whose last attempt failed share so many requests, so that the others do not wait for them."""
PER_NAMESPACE = 12
"""The webhooks of one namespace share so many: receivers that are slow and never fail do not hold all of them."""
STEP_SECONDS = 1.0
_LOG = logging.getLogger("registry.server.webhooks")


def run(
    engine: Engine,
    settings: Settings,
    keys: Callable[[], Keys],
    closing: threading.Event,
    stamp: Callable[[], object | None] = lambda: None,
) -> None:
    """Send due deliveries every second until `closing` is set. Failures are logged, repeated ones once.

    `stamp` returns equal values while nothing is committed, or None if that is unknown (`Freshness.stamp`). While there
    are no webhooks and it stays equal, the database is not queried.
    """
    stamp_without_webhooks = None
    failure = ""
    while not closing.wait(STEP_SECONDS):
        try:
            new_stamp = stamp()
            if new_stamp is not None and new_stamp == stamp_without_webhooks:
                continue
            stamp_without_webhooks = None if _webhook_ids(engine) else new_stamp
            send_due(engine, settings, keys, closing)
            failure = ""
        except Exception as e:  # the thread must not end: all webhooks would stop without notice
            if str(e) != failure:
                _LOG.error("webhooks are not sent: %s", e)
            failure = str(e)


def send_due(
    engine: Engine, settings: Settings, keys: Callable[[], Keys], closing: threading.Event | None = None
) -> int:
    """Create and send the deliveries that are due; return how many were sent, 0 if another process is sending."""
    ids = _webhook_ids(engine)
    if not ids or not _has_work(engine):
        return 0
    with contextlib.suppress(Unavailable), locks.acquire(engine, "webhooks") as lock:
        return _Sender(engine, settings, keys, lock, closing or threading.Event()).send_all(ids)
    return 0


class _Sender:
    """Sends due deliveries in parallel. Each webhook has few requests at a time, so that none waits for a slow one."""

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        keys: Callable[[], Keys],
        lock: locks.ProcessLock,
        closing: threading.Event,
    ) -> None:
        self._engine, self._settings, self._keys = engine, settings, keys
        self._lock, self._closing = lock, closing
        self._waiting: dict[str, deque[webhooks.DueDelivery]] = {}
        self._in_flight: dict[Future[tuple[int | None, str]], webhooks.DueDelivery] = {}
        self._failing: set[str] = set()

    def send_all(self, webhook_ids: Sequence[str]) -> int:
        count, read_at = 0, float("-inf")
        with ThreadPoolExecutor(PARALLEL) as pool:
            while True:
                self._lock.check()
                if not any(self._waiting.values()) or time.monotonic() - read_at >= STEP_SECONDS:
                    self._read_due(webhook_ids)
                    read_at = time.monotonic()
                if not self._closing.is_set():
                    self._submit(pool)
                if not self._in_flight:
                    break
                done, _ = wait(self._in_flight, STEP_SECONDS, FIRST_COMPLETED)
                for future in done:
                    self._record(self._in_flight.pop(future).delivery, *future.result())
                count += len(done)
        return count

    def _read_due(self, webhook_ids: Sequence[str]) -> None:
        for webhook_id in webhook_ids:
            while _enqueue_deliveries(self._engine, webhook_id, self._lock):
                self._lock.check()
        self._waiting = {}
        in_flight = {due.delivery.id for due in self._in_flight.values()}
        with db.session(self._engine, write=False) as session:
            for due in webhooks.read_due_deliveries(session, DELIVERIES_PER_READ):
                if due.delivery.id not in in_flight:
                    self._waiting.setdefault(due.webhook.id, deque()).append(due)
            self._failing |= webhooks.read_failing(session)

    def _submit(self, pool: ThreadPoolExecutor) -> None:
        """Start as many requests as the limits allow."""
        while len(self._in_flight) < PARALLEL and (due := self._take_next()) is not None:
            future = pool.submit(_send, due.webhook, due.event, self._settings, self._keys())
            self._in_flight[future] = due

    def _take_next(self) -> webhooks.DueDelivery | None:
        """The oldest delivery of the namespace with the fewest requests, of those that the limits allow."""
        busy = Counter(due.webhook.id for due in self._in_flight.values())
        shares = Counter(due.webhook.namespace for due in self._in_flight.values())
        failing_wait = sum(busy[webhook_id] for webhook_id in self._failing) >= FAILING_PARALLEL
        allowed = [
            (shares[waiting[0].webhook.namespace], waiting)
            for webhook_id, waiting in self._waiting.items()
            if waiting and busy[webhook_id] < PER_WEBHOOK and not (failing_wait and webhook_id in self._failing)
        ]
        if not allowed:
            return None
        share, waiting = min(allowed, key=itemgetter(0))
        return waiting.popleft() if share < PER_NAMESPACE else None

    def _record(self, delivery: DeliveryRow, status: int | None, error: str) -> None:
        (self._failing.add if error else self._failing.discard)(delivery.webhook_id)
        _record_attempt(self._engine, delivery, status, error)


def _webhook_ids(engine: Engine) -> Sequence[str]:
    with db.session(engine, write=False) as session:
        return session.exec(select(WebhookRow.id)).all()


def _has_work(engine: Engine) -> bool:
    """Whether something is to be queued or sent. Taking the lock is a write, after which caches read again."""
    with db.session(engine, write=False) as session:
        oldest = session.exec(select(func.min(WebhookRow.after))).one()
        if oldest is not None and oldest < tree.read_size(session):
            return True
        return bool(webhooks.read_due_deliveries(session, 1))


def _enqueue_deliveries(engine: Engine, webhook_id: str, lock: locks.ProcessLock) -> bool:
    """Create deliveries for the next events of a webhook, and return whether there may be more."""
    with db.session(engine) as session:
        lock.guard(session)
        hook = session.get(WebhookRow, webhook_id)
        if hook is None:
            return False
        size = tree.read_size(session)
        until = min(size, hook.after + EVENTS_PER_BATCH)
        if until <= hook.after:
            return False
        matching = select(EventRow.position).where(
            col(EventRow.position) > hook.after,
            col(EventRow.position) <= until,
            col(EventRow.action).in_(hook.actions),
        )
        if hook.namespace != EVERY_NAMESPACE:
            matching = matching.where(EventRow.namespace == hook.namespace)
        now = db.now()
        values: dict[str, Any] = {"webhook_id": hook.id, "state": DeliveryState.WAITING, "attempt": 0, "error": ""}
        values |= {"next_at": now, "created_at": now}
        for position in session.exec(matching.order_by(col(EventRow.position))):
            db.insert_new(session, DeliveryRow, values | {"position": position})
        hook.after = until
        session.add(hook)
        return until < size


def _record_attempt(engine: Engine, delivery: DeliveryRow, status: int | None, error: str) -> None:
    with db.session(engine) as session:
        row = session.get(DeliveryRow, delivery.id)
        if row is None or row.attempt != delivery.attempt:  # its webhook was deleted, or another process sent it
            return
        row.attempt, row.status, row.error = row.attempt + 1, status, error[:500]
        if not error:
            row.state, row.ended_at = DeliveryState.DELIVERED, db.now()
        elif row.attempt > len(RETRY_SECONDS):
            row.state, row.ended_at = DeliveryState.DEAD, db.now()
        else:
            row.next_at = db.now() + timedelta(seconds=RETRY_SECONDS[row.attempt - 1])
        session.add(row)


def _send(hook: WebhookRow, event: EventView, settings: Settings, keys: Keys) -> tuple[int | None, str]:
    """Send an event. Returns the status and what went wrong, which is empty if it was delivered."""
    try:
        target = resolve_target(hook.url, settings.webhook_private)
        secret = webhooks.secret_of(hook, keys)
    except Invalid as e:
        return None, e.detail
    message = {"type": event.action, "timestamp": moment(event.at), "data": event.model_dump(mode="json")}
    body = json.dumps(message).encode()
    headers = sign_headers(f"{hook.id}.{event.seq}", body, secret, db.now())
    try:
        status = _post(target, body, headers)
    except (OSError, http.client.HTTPException, ValueError) as e:
        return None, printable(f"{type(e).__name__}: {e}", 200)
    if 200 <= status < 300:
        return status, ""
    return status, "it redirects, which is not followed" if 300 <= status < 400 else f"it responded with {status}"


def sign_headers(message_id: str, body: bytes, secret: str, at: datetime) -> dict[str, str]:
    """Return the headers of a message: its id, its time, and the signature over both and the body."""
    timestamp = str(int(at.timestamp()))
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signature = hmac.new(key, f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return {
        "webhook-id": message_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": f"v1,{base64.b64encode(signature).decode()}",
        "Content-Type": "application/json",
        "User-Agent": f"adapter-registry/{__version__}",
    }


def _post(target: WebhookAddress, body: bytes, headers: dict[str, str]) -> int:
    """POST to the checked address and return the status. Reads at most `RESPONSE_LIMIT_BYTES` of the response."""
    connection = http.client.HTTPConnection(target.host, target.port, timeout=RESPONSE_SECONDS)
    with outgoing.shut_down_after(RESPONSE_SECONDS) as watch, contextlib.closing(connection):
        connection.sock = socket.create_connection((target.address, target.port), timeout=RESPONSE_SECONDS)
        watch(connection.sock)
        if target.scheme == "https":
            context = ssl.create_default_context()
            connection.sock = context.wrap_socket(connection.sock, server_hostname=target.host)
        connection.request("POST", target.path, body, headers | {"Host": target.host_header})
        response = connection.getresponse()
        response.read(RESPONSE_LIMIT_BYTES)
        return response.status
