"""The pages for operators: the events of the audit log with filters and as a file, and the state of the server."""

import time
from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends, Query, Request, Response
from fastapi.responses import StreamingResponse

from registry import __version__
from registry.api.audit import EventView
from registry.api.maintenance import Health
from registry.digest import Digest
from registry.errors import RegistryError
from registry.events import EventText, EventType, describe
from registry.server import audit
from registry.server.catalog import versions
from registry.server.database import db, schema
from registry.server.http.dependencies import AuditLogDep, BlobsDep, CursorDep, EngineDep, SessionDep, Text
from registry.server.jobs import requests
from registry.server.pages.operations.live import hold_stream
from registry.server.pages.rendering import PRIVATE, SECURITY_HEADERS, create_router, render
from registry.server.promotion import attestations
from registry.server.sessions import visitors
from registry.server.sessions.visitors import SignedInDep
from registry.server.storage.blobs import BlobStore, key_of
from registry.structs import pattern

router = create_router()
PAGE_EVENTS = 60
EXPORT_PAGE_EVENTS = 1000
CURSOR_DIGITS = 15
Number = Annotated[str, Query(max_length=CURSOR_DIGITS, pattern=pattern("^[0-9]*$", "must be digits only"))]


@router.get("/audit")
def show_events(
    request: Request,
    session: SessionDep,
    visitor: SignedInDep,
    cursor: CursorDep,
    before: Number = "",
    action: Text = "",
    object: Text = "",
) -> Response:
    """Show the newest events first; with a filter from the oldest one on, as they are read."""
    filters = {"action": action, "object": object.strip()}
    newest = audit.newest_position(session)
    if any(filters.values()):
        page = audit.read_page(
            session, visitor.actor, after=versions.parse_cursor(cursor, digits=CURSOR_DIGITS), limit=PAGE_EVENTS,
            search=audit.EventSearch((action,) if action else (), filters["object"]),
        )  # fmt: skip
        items, following, earlier = page.items, page.next_cursor, 0
    else:
        end = min(int(before) - 1, newest) if before else newest
        start = max(0, end - PAGE_EVENTS)
        page = audit.read_page(session, visitor.actor, after=start, limit=PAGE_EVENTS, until=end)
        items, following, earlier = page.items[::-1], "", start + 1 if start else 0
    texts: list[tuple[EventView, EventText]] = [
        (item, describe(item.action, item.object, item.detail)) for item in items
    ]
    return render(
        request, "audit.html", title="Audit log", events=texts, filters=filters, actions=sorted(EventType),
        following=following, earlier=earlier, before=before, cursor=cursor, size=newest,
    )  # fmt: skip


@router.get("/audit/export")
async def export_events(
    request: Request, _slot: Annotated[None, Depends(hold_stream)], action: Text = "", object: Text = ""
) -> StreamingResponse:
    """Stream the events of a filter, oldest first: one a line, each as `GET /api/v1/events` shows it."""
    search = audit.EventSearch((action,) if action else (), object.strip())
    headers = SECURITY_HEADERS | PRIVATE | {"Content-Disposition": 'attachment; filename="events.jsonl"'}
    return StreamingResponse(_read_lines(request, search), headers=headers, media_type="application/jsonl")


def _read_lines(request: Request, search: audit.EventSearch) -> Iterator[str]:
    """Yield the events that there are now, with the visitor's rights of each moment.

    A download whose session ends meanwhile is cut off, so that no one takes a part for the whole.
    """
    after, end, more = 0, None, True
    while more:
        with db.session(request.app.state.engine, write=False) as session:
            visitor = visitors.require(visitors.find_visitor(request, session))
            end = audit.newest_position(session) if end is None else end
            page = audit.read_page(
                session, visitor.actor, after=after, limit=EXPORT_PAGE_EVENTS, search=search, until=end
            )
        yield "".join(f"{event.model_dump_json()}\n" for event in page.items)
        after, more = page.last, bool(page.next_cursor)


@router.get("/audit/{seq}")
def show_proof(request: Request, session: SessionDep, visitor: SignedInDep, log: AuditLogDep, seq: str) -> Response:
    """Show an entry of the log, and the proof that the log holds it."""
    is_number = seq.isascii() and seq.isdigit() and len(seq) <= CURSOR_DIGITS
    proved = attestations.prove_event(session, visitor.actor, int(seq) if is_number else 0)
    keys = log.describe_keys()
    return render(request, "proof.html", title=f"Entry {proved.seq} of the audit log", proved=proved, log=keys)


@router.get("/status")
def show_status(
    request: Request, session: SessionDep, visitor: SignedInDep, engine: EngineDep, blobs: BlobsDep, log: AuditLogDep
) -> Response:
    """Show what `/api/v1/health` describes, the workers, and how far the audit log is signed."""
    health = Health(
        status="ok", version=__version__, database=engine.dialect.name, blobs=blobs.kind,
        schema_revision=schema.revision_of(engine), capabilities=blobs.describe(),
    )  # fmt: skip
    workers, jobs = requests.list_workers(session, visitor.actor), requests.count_open(session, visitor.actor)
    db.commit_early(session)  # no connection is held while the store responds
    return render(
        request, "status.html", title="Status", health=health, log_size=log.latest.size, log=log.describe_keys(),
        probe=_probe(blobs), workers=workers, jobs=jobs,
    )  # fmt: skip


def _probe(blobs: BlobStore) -> tuple[str, float]:
    """Ask the store for one blob: why it does not respond, or nothing, and how many milliseconds it took."""
    started, problem = time.perf_counter(), ""
    try:
        blobs.stat(key_of(Digest.of(b"")))
    except RegistryError as e:
        problem = e.detail
    return problem, 1000 * (time.perf_counter() - started)
