"""The audit log: append an event in the caller's transaction, and read numbered events back in order.

- An event is written in the transaction of the change it describes: both are stored or neither.
- Events are only appended. `detail` is canonical JSON without floats, of at most `DETAIL_LIMIT_BYTES`. It never holds a
  secret or file contents.
- Only numbered events are shown (see sequencer.py), so a reader that continues from a number misses nothing.
- `namespace` decides who sees an event: actors that may pull there, for `ADMIN_TYPES` those with the scope `audit`. If
  it is empty, only those with it everywhere see the event; events about bases are visible to everyone.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, cast

from sqlalchemy import ColumnElement, and_, func, or_, true
from sqlmodel import Session, col, select

from registry.api.audit import EventPage, EventView
from registry.digest import canonical_json
from registry.events import ADMIN_TYPES, EventType, ObjectKind
from registry.names import AdapterName
from registry.roles import Scope
from registry.server.actors import Actor, public_namespaces
from registry.server.database import db
from registry.server.database.models import EventRow

DETAIL_LIMIT_BYTES = 16 * 2**10
_FOR_EVERYBODY = [event_type.value for event_type in EventType if event_type.about is ObjectKind.BASE]
SCAN_LIMIT = 5000
"""How many events a page reads at most to find those that its reader may see."""
INDEXED_SCAN_LIMIT = 100_000
"""The same for a page about a namespace or an object, for which there are indexes."""
ANY_TEXT = "*"
GROUP_ID = "group_id"
"""What a session knows the group of its changes by, and the detail of its events."""
REASON = "reason"
"""The same for why its changes are made."""

CLOCK_SLACK = timedelta(hours=1)
"""How much later than its time an event may be numbered: a transaction numbers its events at its end."""


@dataclass(frozen=True, slots=True)
class EventSearch:
    """Filters of events; empty fields do not filter.

    `object` matches that name and names that continue it with `@` or `:`, or is a pattern, in which `*` stands for any
    text. `actor`: who acted, exactly. `broke_glass`: only moves through a closed gate.
    """

    actions: tuple[str, ...] = ()
    object: str = ""
    actor: str = ""
    since: datetime | None = None
    until: datetime | None = None
    namespace: str = ""
    group_id: str = ""
    broke_glass: bool = False

    @property
    def scan_limit(self) -> int:
        """How many events a page reads at most: more where an index finds those that match."""
        begins_with_a_name = self.object and not self.object.startswith(ANY_TEXT)
        return INDEXED_SCAN_LIMIT if self.namespace or begins_with_a_name else SCAN_LIMIT

    def conditions(self) -> Iterator[ColumnElement[bool]]:
        """The conditions on `event`."""
        if self.actions:
            yield col(EventRow.action).in_(self.actions)
        if self.namespace:
            yield col(EventRow.namespace) == self.namespace
        if ANY_TEXT in self.object:
            parts = [re.sub(r"([\\%_])", r"\\\1", part) for part in self.object.split(ANY_TEXT)]
            yield col(EventRow.object).like("%".join(parts), escape="\\")
        elif self.object:
            yield _is_about(self.object)
        if self.group_id:
            yield cast(Any, EventRow.detail)[GROUP_ID].as_string() == self.group_id
        if self.broke_glass:
            yield cast(Any, EventRow.detail)["break_glass"].as_string().is_not(None)
        if self.actor:
            yield col(EventRow.actor) == self.actor
        if self.since is not None:
            yield col(EventRow.at) >= self.since
        if self.until is not None:
            yield col(EventRow.at) <= self.until


EVERY_EVENT = EventSearch()


def append(
    session: Session,
    actor: Actor,
    event_type: EventType,
    object: str,
    detail: Mapping[str, Any] | None = None,
    request_id: str = "",
    *,
    namespace: str | None = None,
) -> None:
    """Add an event. `object` names what `event_type.about` says, such as `acme/support:prod`.

    `request_id` defaults to that of the session's request, `namespace` to that of the object.
    """
    db.bulk_insert(session, [build(session, actor, event_type, object, detail, request_id, namespace=namespace)])


def build(
    session: Session,
    actor: Actor,
    event_type: EventType,
    object: str,
    detail: Mapping[str, Any] | None = None,
    request_id: str = "",
    *,
    namespace: str | None = None,
) -> EventRow:
    """The row that `append` inserts, for a caller that inserts many at once (`db.bulk_insert`)."""
    values = dict(detail or {})
    size_bytes = len(canonical_json(values))
    if size_bytes > DETAIL_LIMIT_BYTES:
        values = {"cut": f"{size_bytes} bytes of detail are over {DETAIL_LIMIT_BYTES}"}
    if reason := session.info.get(REASON):
        values.setdefault(REASON, reason)
    if group_id := session.info.get(GROUP_ID):
        values[GROUP_ID] = group_id
    if namespace is None:
        namespace = object.partition("/")[0] if event_type.about.in_namespace else ""
    return db.new_row(
        EventRow,
        at=db.now(),
        actor=actor.identity,
        token_id=actor.token_id,
        action=event_type.value,
        object=object,
        namespace=namespace,
        detail=values,
        request_id=request_id or str(session.info.get("request_id", "")),
    )


def read_former_names(session: Session, name: AdapterName) -> list[str]:
    """Return the earlier names of an adapter, oldest first. No other adapter has or had one of them."""
    event = _find_last(session, name, EventType.ADAPTER_RENAME_FROM)
    return [str(former) for former in event.detail.get("names", [])] if event is not None else []


def read_new_name(session: Session, name: AdapterName) -> AdapterName | None:
    """Return the present name of an adapter that was renamed, also several times; None for another name."""
    new, seq = None, 0
    while (event := _find_last(session, new or name, EventType.ADAPTER_RENAME)) and (event.seq or 0) > seq:
        new, seq = AdapterName.parse(str(event.detail["to"])), event.seq or 0  # later ones only: it may be renamed back
    return new


def _find_last(session: Session, name: AdapterName, event_type: EventType) -> EventRow | None:
    about = select(EventRow).where(col(EventRow.object) == str(name), col(EventRow.action) == event_type)
    return session.exec(about.order_by(col(EventRow.seq).desc()).limit(1)).first()


def find_other_use(session: Session, actor: Actor, name: AdapterName) -> EventRow | None:
    """The last event in which bytes of an adapter went to anybody but this actor, and the workers that test it."""
    uses = (EventType.BYTES_READ, EventType.BYTES_COPY, EventType.PAGE_READ, EventType.VERSION_SERVE)
    workers = select(EventRow.actor).where(
        col(EventRow.namespace) == name.namespace, col(EventRow.action) == EventType.JOB_FINISH
    )
    others = select(EventRow).where(
        _is_about(str(name)), col(EventRow.action).in_(uses), col(EventRow.actor) != actor.identity,
        col(EventRow.actor).not_in(workers),
    )  # fmt: skip
    return session.exec(others.order_by(col(EventRow.seq).desc()).limit(1)).first()


def read_page(
    session: Session,
    actor: Actor,
    *,
    after: int = 0,
    limit: int,
    search: EventSearch = EVERY_EVENT,
    until: int | None = None,
    newest_first: bool = False,
) -> EventPage:
    """Return the numbered events after the number `after` that the actor may see, in order.

    A page reads at most `SCAN_LIMIT` events: its `last` says how far it came, and `next_cursor` continues there. With
    `newest_first` it begins at `until`, and the next page is that until the event before `last`.
    """
    conditions = [visible_to(actor), *search.conditions()]
    newest = newest_position(session)
    end = newest if until is None else min(newest, until)
    if search.since is not None:
        after = max(after, _position_near(session, search.since - CLOCK_SLACK, newest, last=False) - 1)
    if search.until is not None:
        end = min(end, _position_near(session, search.until + CLOCK_SLACK, newest, last=True))
    conditions += [col(EventRow.position) > after, col(EventRow.position) <= end]
    position, scan_limit = col(EventRow.position), max(search.scan_limit, limit)
    scan_start, scan_end = max(after, end - scan_limit), min(end, after + scan_limit)
    in_scan, order = (position > scan_start, position.desc()) if newest_first else (position <= scan_end, position)
    rows = session.exec(select(EventRow).where(*conditions, in_scan).order_by(order).limit(limit + 1)).all()
    items = [to_view(row) for row in rows[:limit]]
    more = len(rows) > limit
    if newest_first:
        last = items[-1].seq if more else scan_start + 1
        return EventPage(items=items, next_cursor=str(last) if more or scan_start > after else "", last=last)
    last = items[-1].seq if more else max(scan_end, after)
    return EventPage(items=items, next_cursor=str(last) if more or last < end else "", last=last)


def _position_near(session: Session, at: datetime, newest: int, *, last: bool) -> int:
    """The number of the first event from a time on, or of the last one until it; from the index on times."""
    time = col(EventRow.at)
    statement = select(EventRow.position).where(time <= at if last else time >= at, col(EventRow.position).is_not(None))
    statement = statement.order_by(time.desc() if last else time).limit(1)
    return session.exec(statement).first() or (0 if last else newest + 1)


def newest_position(session: Session) -> int:
    """Return the number of the newest numbered event, 0 without one."""
    return session.exec(select(func.max(EventRow.position))).one() or 0


def _is_about(name: str) -> ColumnElement[bool]:
    """The condition that an event's object is this name, or continues it with `@` or `:`."""
    continued = (col(EventRow.object).startswith(name + mark, autoescape=True) for mark in "@:")
    return or_(col(EventRow.object) == name, *continued)


def visible_to(actor: Actor) -> ColumnElement[bool]:
    """Return the condition on `event` that selects what the actor may see."""
    if actor.may_everywhere(Scope.AUDIT):
        return true()
    about_bases = and_(col(EventRow.namespace) == "", col(EventRow.action).in_(_FOR_EVERYBODY))
    readable = actor.namespaces_with(Scope.PULL)
    if actor.adapters:
        about_adapters = [_is_about(name) for name in sorted(actor.adapters)]
        visible = or_(public_namespaces.is_one_of(col(EventRow.namespace), frozenset(), actor), *about_adapters)
    elif readable is None:
        visible = col(EventRow.namespace) != ""
    else:
        visible = public_namespaces.is_one_of(col(EventRow.namespace), readable, actor)
    administered = frozenset() if actor.adapters else actor.namespaces_with(Scope.AUDIT) or frozenset()
    for_actor = or_(col(EventRow.action).not_in(ADMIN_TYPES), col(EventRow.namespace).in_(sorted(administered)))
    return or_(about_bases, and_(visible, for_actor))


def to_view(row: EventRow) -> EventView:
    """Return a numbered event as the API shows it. Its `entry()` is what the log hashes."""
    return EventView(seq=row.position or 0, **row.model_dump(exclude={"seq", "position"}))
