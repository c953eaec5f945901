"""The audit log: append an event in the caller's transaction, and read events back in the log's order.

Invariants
- An event is in the transaction of the change that it tells of: both are stored or neither.
- Events are only appended. `detail` is canonical JSON (no floats) of at most `DETAIL_LIMIT_BYTES`.
- No secret and no file content is ever in an event.
- Reading shows numbered events only (see sequencer.py), so a reader that goes on from a number misses nothing.
- `namespace` says who sees an event: whoever may pull there. An empty one is for administrators; bases are for all.

Example
    >>> audit.append(session, actor, "alias.move", "acme/support:prod", {"to": 4})
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, and_, or_, true
from sqlmodel import Session, col, select

from registry.api.audit import ARRIVED, EventPage, EventView
from registry.digest import canonical_json
from registry.names import AdapterName
from registry.server.actors import Actor
from registry.server.database import db
from registry.server.database.models import EventRow

DETAIL_LIMIT_BYTES = 16 * 2**10
NAMED = frozenset({"version", "alias", "adapter", "verdict", "publisher", "namespace"})
"""Nouns whose objects are a namespace, or begin with one and a slash."""
WINDOW = 5000
"""Events that one page looks at, at most, for those that its reader may see."""


def append(
    session: Session,
    actor: Actor,
    action: str,
    object: str,
    detail: Mapping[str, Any] | None = None,
    request_id: str = "",
    *,
    namespace: str | None = None,
) -> None:
    """Add one event. `action` is `noun.verb`; `object` is the name of what changed.

    Without `request_id` the one of the request that owns the session is taken; without `namespace` the object's own.
    """
    told = dict(detail or {})
    size_bytes = len(canonical_json(told))
    if size_bytes > DETAIL_LIMIT_BYTES:
        told = {"cut": f"{size_bytes} bytes of detail are over {DETAIL_LIMIT_BYTES}"}
    if namespace is None:
        noun = action.partition(".")[0]
        namespace = object.partition("/")[0] if noun in NAMED else ""
    row = EventRow(
        at=db.now(),
        actor=actor.identity,
        token_id=actor.token_id,
        action=action,
        object=object,
        namespace=namespace,
        detail=told,
        request_id=request_id or str(session.info.get("request_id", "")),
    )
    db.bulk_insert(session, [row])


def names_before(session: Session, name: AdapterName) -> list[str]:
    """What an adapter of this name was called before, oldest first. No name is given twice."""
    arrived = select(EventRow).where(col(EventRow.object) == str(name), col(EventRow.action) == ARRIVED)
    event = session.exec(arrived).first()
    return [str(earlier) for earlier in event.detail.get("names", [])] if event is not None else []


def page(
    session: Session,
    actor: Actor,
    *,
    after: int = 0,
    limit: int,
    actions: Sequence[str] = (),
    object: str = "",
    until: int | None = None,
) -> EventPage:
    """Numbered events that the actor may see, in order, from the one that follows `after`.

    `object` means that name and all that begins with it and `@` or `:`. Looks at most `WINDOW` numbers far where it
    must sort out: then `last` says how far, and `next_cursor` goes on there.
    """
    numbered = [col(EventRow.position) > after, visible(actor)]
    if until is not None:
        numbered.append(col(EventRow.position) <= until)
    if actions:
        numbered.append(col(EventRow.action).in_(list(actions)))
    if object:
        within = [col(EventRow.object).startswith(object + mark, autoescape=True) for mark in "@:"]
        numbered.append(or_(col(EventRow.object) == object, *within))
    newest = session.exec(
        select(EventRow.position).order_by(col(EventRow.position).desc().nulls_last()).limit(1)
    ).first()
    end = min(x for x in (newest or 0, until if until is not None else newest or 0))
    window = end if object else min(end, after + max(WINDOW, limit))
    statement = select(EventRow).where(*numbered, col(EventRow.position) <= window)
    rows = session.exec(statement.order_by(col(EventRow.position)).limit(limit + 1)).all()
    items = [view(row) for row in rows[:limit]]
    more = len(rows) > limit
    last = items[-1].seq if more else max(window, after)
    return EventPage(items=items, next_cursor=str(last) if more or last < end else "", last=last)


def visible(actor: Actor) -> ColumnElement[bool]:
    """The condition on `event` that leaves what the actor may see."""
    if actor.may_everywhere("admin"):
        return true()
    everybody = and_(col(EventRow.namespace) == "", col(EventRow.action).startswith("base."))
    if actor.adapters:
        mine = [
            or_(
                col(EventRow.object) == name,
                *(col(EventRow.object).startswith(name + m, autoescape=True) for m in "@:"),
            )
            for name in sorted(actor.adapters)
        ]
        return or_(everybody, col(EventRow.namespace).in_(sorted(actor.public)), *mine)
    reach = actor.namespaces_with("pull")
    if reach is None:
        return or_(everybody, col(EventRow.namespace) != "")
    return or_(everybody, col(EventRow.namespace).in_(sorted(reach | actor.public)))


def view(row: EventRow) -> EventView:
    """A numbered event as it leaves the server; its entry is what the log has hashed."""
    return EventView(
        seq=row.position or 0,
        at=row.at,
        actor=row.actor,
        token_id=row.token_id,
        action=row.action,
        object=row.object,
        namespace=row.namespace,
        detail=row.detail,
        request_id=row.request_id,
    )
