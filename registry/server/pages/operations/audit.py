"""The pages of the audit log: its events with filters, in saved views and as a file, and one entry with its proof."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import Depends, Query, Request, Response
from fastapi.responses import StreamingResponse

from registry.api import check_field
from registry.api.audit import EventView
from registry.errors import Invalid
from registry.events import READ_TYPES, EventText, EventType, describe, require_type
from registry.server import audit
from registry.server.database import db
from registry.server.http.dependencies import AuditLogDep, SessionDep, Text
from registry.server.http.routing import refuse_unknown_parameters
from registry.server.http.services import services_of
from registry.server.pages.operations.live import hold_stream
from registry.server.pages.rendering import PRIVATE, SECURITY_HEADERS, create_router, render
from registry.server.pages.sessions import visitors
from registry.server.pages.sessions.visitors import SignedInDep
from registry.server.promotion import attestations
from registry.validation import pattern

router = create_router()
PAGE_EVENTS = 60
EXPORT_PAGE_EVENTS = 1000
CURSOR_DIGITS = 15
RIGHTS = ("namespace.grant", "namespace.revoke", "publisher.", "token.", "gate.")
"""How types of events about what someone may do begin."""
Number = Annotated[str, Query(max_length=CURSOR_DIGITS, pattern=pattern("^[0-9]*$", "must be digits only"))]


@dataclass(frozen=True, slots=True)
class View:
    """A question that the log is often asked, and the types of events that answer it; none for all."""

    label: str
    actions: tuple[str, ...] = ()
    broke_glass: bool = False


VIEWS = {
    "changes": View("Changes", tuple(item for item in EventType if item not in READ_TYPES)),
    "past-gates": View("Moves past gates", (EventType.ALIAS_MOVE,), broke_glass=True),
    "rights": View("Rights", tuple(item for item in EventType if item.startswith(RIGHTS))),
    "reads": View("Reads of bytes", (EventType.BYTES_READ, EventType.BYTES_COPY, EventType.PAGE_READ)),
    "denials": View("Denials", tuple(item for item in EventType if item.startswith("access."))),
    "all": View("All events"),
}


async def read_filters(
    action: Text = "", object: Text = "", actor: Text = "", since: Text = "", until: Text = "", view: Text = ""
) -> dict[str, str]:
    """The fields of the form, as it sends them. Without a view: the changes, or the type of event that is named."""
    filters = {"object": object, "actor": actor, "action": action, "since": since, "until": until}
    texts = {key: text.strip() for key, text in filters.items()}
    return texts | {"view": view if view in VIEWS else "all" if texts["action"] else "changes"}


FiltersDep = Annotated[dict[str, str], Depends(read_filters)]


def _search(filters: dict[str, str]) -> audit.EventSearch:
    """The filters as the log has them. `Invalid` for an event or a time that is none."""
    action = filters["action"]
    if action:
        check_field("event", require_type, action)
    view = VIEWS[filters["view"]]
    return audit.EventSearch(
        (action,) if action else view.actions, filters["object"], filters["actor"],
        _read_time("since", filters["since"]), _read_time("until", filters["until"], is_end=True),
        broke_glass=view.broke_glass,
    )  # fmt: skip


def _read_time(field: str, text: str, *, is_end: bool = False) -> datetime | None:
    """A moment, in UTC without an offset. `is_end`: the end of the day or of the second."""
    if not text:
        return None
    try:
        at = datetime.fromisoformat(text)
        at = at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)
        if is_end:
            length = timedelta(days=1) if len(text) == len("2026-05-03") else timedelta(seconds=1)
            at += length - timedelta(microseconds=1)
    except (ValueError, OverflowError) as e:
        raise Invalid("REQUEST_INVALID", f"{field}: {text!r} is not a time such as 2026-05-03T14:05") from e
    if not 1970 <= at.year <= 9000:
        raise Invalid("REQUEST_INVALID", f"{field}: the year {at.year} is not between 1970 and 9000")
    return at


def _shown_times(search: audit.EventSearch | None) -> dict[str, str]:
    """The times of a search as fields of a form show them: UTC, to the second."""
    times = {"since": search.since, "until": search.until} if search is not None else {}
    return {key: at.strftime("%Y-%m-%dT%H:%M:%S") if at is not None else "" for key, at in times.items()}


@router.get("/audit")
def show_events(
    request: Request,
    session: SessionDep,
    visitor: SignedInDep,
    filters: FiltersDep,
    before: Number = "",
) -> Response:
    """Show the newest events first, also with a filter."""
    newest = audit.newest_position(session)
    problem, search = None, None
    try:
        search = _search(filters)
    except Invalid as e:  # the form stays as it was filled in
        problem = e
    items, earlier = [], ""
    if search is not None:
        end = min(int(before) - 1, newest) if before else newest
        page = audit.read_page(session, visitor.actor, limit=PAGE_EVENTS, search=search, until=end, newest_first=True)
        items, earlier = page.items, page.next_cursor
    texts: list[tuple[EventView, EventText]] = [
        (item, describe(item.action, item.object, item.detail)) for item in items
    ]
    return render(
        request, "audit.html", 422 if problem else 200, title="Audit log", events=texts, filters=filters,
        problem=problem, used=any(filters[key] for key in filters if key != "view"), views=VIEWS,
        actions=sorted(EventType), shown=_shown_times(search),
        earlier=earlier, before=before, size=newest,
    )  # fmt: skip


@router.get("/audit/export", dependencies=[Depends(refuse_unknown_parameters)])  # else a typo exports everything
async def export_events(
    request: Request, _slot: Annotated[None, Depends(hold_stream)], filters: FiltersDep
) -> StreamingResponse:
    """Stream the events of a filter, oldest first: one a line, each as `GET /api/v1/events` shows it."""
    search = _search(filters)
    headers = SECURITY_HEADERS | PRIVATE | {"Content-Disposition": 'attachment; filename="events.jsonl"'}
    return StreamingResponse(_read_lines(request, search), headers=headers, media_type="application/jsonl")


def _read_lines(request: Request, search: audit.EventSearch) -> Iterator[str]:
    """Yield the events that there are now, with the visitor's rights of each moment.

    A download whose session ends meanwhile is cut off, so that no one takes a part for the whole.
    """
    after, end, more = 0, None, True
    while more:
        with db.session(services_of(request).engine, write=False) as session:
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
    event = EventView.model_validate_json(proved.entry)
    text = describe(event.action, event.object, event.detail)
    return render(
        request, "proof.html", title=f"Entry {proved.seq}: {text.message[:80]}", proved=proved, event=event, text=text,
        log=log.describe_keys(),
    )  # fmt: skip
