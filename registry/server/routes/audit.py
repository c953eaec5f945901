"""Routes of the audit log: events (page, long poll, stream), checkpoint, keys, tiles and proofs.

- Everyone with a token may read hashes and checkpoints, which reveal only the length of the log. Bundles of entries
  need the scope `audit`.
- A waiting request holds no thread and no connection. Its rights are checked again before each response.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated

from fastapi import Depends, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import AfterValidator
from sqlalchemy import Engine
from starlette.concurrency import run_in_threadpool

from registry.api.audit import Consistency, EventPage, EventProof, LogKeys
from registry.api.operations import audit as operations
from registry.errors import Invalid, NotFound, RegistryError
from registry.events import require_type
from registry.roles import Scope
from registry.server import audit
from registry.server.audit import EventSearch, sequencer, tree
from registry.server.audit.audit_log import AuditLog
from registry.server.database import db
from registry.server.http import dependencies as deps
from registry.server.http.conditional import IMMUTABLE
from registry.server.http.operation_router import OperationRouter
from registry.server.http.services import services_of
from registry.server.promotion import attestations
from registry.server.routes.openapi import declarations
from registry.tlog import tiles
from registry.validation import pattern

router = OperationRouter()
WAIT_LIMIT_SECONDS = 30
STREAM_SECONDS = 900
"""How long a stream lasts. The client reconnects with the last id."""
QUIET_SECONDS = 15
LOOK_SECONDS = 0.1


After = Annotated[int, Query(ge=0, le=2**53)]
Action = Annotated[str, Query(max_length=100), AfterValidator(require_type)]


async def hold_stream(request: Request, actor: deps.ActorInThreadDep) -> AsyncIterator[None]:
    """Count a stream of the actor's token until the whole response is sent."""
    with services_of(request).stream_limiter.hold(actor.token_id):
        yield


HeldStream = Annotated[None, Depends(hold_stream)]


class _EventReader:
    """Reads pages of events for one request, and waits for newer ones."""

    def __init__(self, request: Request, engine: Engine, log: AuditLog, search: EventSearch) -> None:
        self._request, self._engine, self._log, self._search = request, engine, log, search

    async def read_page(self, after: int, limit: int, *, fresh: bool) -> EventPage:
        if fresh or not self._log.is_running:
            await self._log.catch_up()
        return await run_in_threadpool(self._read_page, after, limit)

    def _read_page(self, after: int, limit: int) -> EventPage:
        actor = deps.RequireScope(Scope.PULL).check_again(self._request)
        with db.session(self._engine, write=False) as session:
            return audit.read_page(session, actor, after=after, limit=limit, search=self._search)

    async def wait_for_newer(self, last: int, seconds: float) -> bool:
        """Wait until the log is longer than `last`, or may be. False after these seconds or if the server stops."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self._log.closing.is_set():
            if self._log.latest.size > last:
                return True
            await asyncio.sleep(LOOK_SECONDS)
            if not self._log.is_running:
                await asyncio.sleep(min(LOOK_SECONDS, seconds))
                return True
        return False


def _in_utc(field: str, at: datetime | None) -> datetime | None:
    """The time in UTC, which it is without an offset. `Invalid` (REQUEST_INVALID) for one that no clock shows."""
    if at is None:
        return None
    if not 1970 <= at.year <= 9000:
        raise Invalid("REQUEST_INVALID", f"{field}: the year {at.year} is not between 1970 and 9000")
    return at.astimezone(UTC) if at.tzinfo is not None else at.replace(tzinfo=UTC)


@router.serves(operations.LIST_EVENTS)
async def list_events(
    request: Request,
    actor: deps.ActorInThreadDep,
    engine: deps.EngineDep,
    log: deps.AuditLogDep,
    after: After = 0,
    limit: deps.LimitDep = deps.PAGE,
    wait: Annotated[int, Query(ge=0, le=WAIT_LIMIT_SECONDS)] = 0,
    action: Annotated[list[Action], Query(max_length=32)] = [],  # noqa: B006
    object: deps.Text = "",
    by: deps.Text = "",
    namespace: deps.Text = "",
    group_id: deps.Text = "",
    first_at: datetime | None = None,
    last_at: datetime | None = None,
) -> EventPage:
    """List events. With `wait`, returns when there is one or the time is over."""
    times = _in_utc("first_at", first_at), _in_utc("last_at", last_at)
    search = EventSearch(tuple(action), object, by, *times, namespace, group_id)
    reader = _EventReader(request, engine, log, search)
    until = time.monotonic() + wait
    page = await reader.read_page(after, limit, fresh=True)
    if page.items or page.next_cursor or not wait:
        return page
    with services_of(request).stream_limiter.hold(actor.token_id):
        while await reader.wait_for_newer(page.last, until - time.monotonic()):
            page = await reader.read_page(page.last, limit, fresh=False)
            if page.items or page.next_cursor:
                break
    return page


@router.serves(operations.STREAM_EVENTS, responses={200: declarations.raw("Events", "text/event-stream")})
async def stream_events(
    request: Request,
    _stream_slot: HeldStream,
    _actor: deps.ActorInThreadDep,
    engine: deps.EngineDep,
    log: deps.AuditLogDep,
    after: After = 0,
    action: Annotated[list[Action], Query(max_length=32)] = [],  # noqa: B006
    object: deps.Text = "",
    last_event_id: Annotated[str, Header(max_length=15, pattern=pattern("^[0-9]*$", "must be digits only"))] = "",
) -> StreamingResponse:
    """Stream events as they happen (server-sent events). `Last-Event-ID` resumes a broken stream."""
    reader = _EventReader(request, engine, log, EventSearch(tuple(action), object))
    start = int(last_event_id or after)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(_stream(reader, start), headers=headers, media_type="text/event-stream")


async def _stream(reader: _EventReader, cursor: int) -> AsyncIterator[str]:
    until, fresh = time.monotonic() + STREAM_SECONDS, True
    yield ": the audit log\n\n"
    while time.monotonic() < until:
        try:
            page = await reader.read_page(cursor, deps.PAGE, fresh=fresh)
        except RegistryError as e:  # such as an expired token: the client reconnects and gets the status
            yield f": {e.code}\n\n"
            return
        for event in page.items:
            yield f"id: {event.seq}\nevent: {event.action}\ndata: {event.model_dump_json()}\n\n"
        cursor, fresh = page.last, False
        if page.next_cursor or page.items:
            continue
        quiet = time.monotonic() + QUIET_SECONDS
        if not await reader.wait_for_newer(cursor, QUIET_SECONDS):
            if time.monotonic() < quiet:  # the server ends
                return
            yield ": nothing new\n\n"


@router.serves(operations.READ_CHECKPOINT, responses={200: declarations.raw("A signed note", "text/plain")})
async def read_checkpoint(_actor: deps.ActorInThreadDep, log: deps.AuditLogDep) -> Response:
    """Read the newest checkpoint of the log: a signed note (C2SP tlog-checkpoint)."""
    await log.catch_up()
    latest = log.latest  # empty in a process whose first step goes on
    note = latest.note if latest.size else await run_in_threadpool(log.stored_note)
    if not note:
        raise NotFound("EVENT_UNKNOWN", "the audit log is empty")
    return Response(note, media_type="text/plain; charset=utf-8", headers={"Cache-Control": "no-store"})


@router.serves(operations.LIST_LOG_KEYS)
def list_log_keys(_actor: deps.ActorDep, log: deps.AuditLogDep) -> LogKeys:
    """Show the name of the log and its verifier keys (C2SP signed-note)."""
    return log.describe_keys()


@router.serves(operations.PROVE_CONSISTENCY)
def prove_consistency(
    session: deps.SessionDep, _actor: deps.ActorDep, old: Annotated[int, Query(ge=0)], new: Annotated[int, Query(ge=0)]
) -> Consistency:
    """Prove that the log of size `old` is a prefix of the log of size `new` (RFC 6962)."""
    return tree.prove_consistency(session, old, new)


@router.serves(operations.READ_LOG_ENTRIES, responses={200: declarations.raw("The bundle")})
def read_log_entries(session: deps.SessionDep, actor: deps.ActorDep, blobs: deps.BlobsDep, path: str) -> Response:
    """Read a bundle of entries (C2SP tlog-tiles). Needs `audit` in all namespaces."""
    actor.require_everywhere(Scope.AUDIT)
    tile = tiles.parse_path(f"entries/{path}")
    newest = sequencer.latest_checkpoint(session)
    if tile is None or newest is None or tiles.width_at(0, tile[1], newest.size) < tile[2]:
        raise _no_tile(f"entries/{path}")
    expected = tiles.bundle(sequencer.read_entries(session, tile[1], tile[2]))
    db.commit_early(session)
    return _tile(tree.read_stored_entries(blobs, tile[1], tile[2], expected=expected))


@router.serves(operations.READ_LOG_TILE, responses={200: declarations.raw("The tile")})
def read_log_tile(
    session: deps.SessionDep, _actor: deps.ActorDep, blobs: deps.BlobsDep, path: str, stored: bool = False
) -> Response:
    """Read a tile of the log (C2SP tlog-tiles)."""
    tile = tiles.parse_path(path)
    data = tree.read_tile(session, tile[0], tile[1], tile[2]) if tile is not None and tile[0] is not None else None
    if data is None:
        raise _no_tile(path)
    if stored and tile is not None and tile[0] is not None:
        db.commit_early(session)
        data = tree.read_stored_tile(blobs, tile[0], tile[1], tile[2], expected=data)
    return _tile(data)


@router.serves(operations.PROVE_EVENT)
def prove_event(session: deps.SessionDep, actor: deps.ActorDep, seq: int) -> EventProof:
    """Read an event as an entry of the log, with the proof of its inclusion (C2SP tlog-proof)."""
    return attestations.prove_event(session, actor, seq)


def _tile(data: bytes) -> Response:
    return Response(data, media_type="application/octet-stream", headers={"Cache-Control": IMMUTABLE})


def _no_tile(path: str) -> NotFound:
    return NotFound("EVENT_UNKNOWN", f"the audit log has no tile {path[:100]!r}")
