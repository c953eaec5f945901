"""Answers about bases. Every token that may pull sees all bases, but counts only the adapters that it may see.

A parent that the actor may not see keeps its digest, without a name.
"""

from __future__ import annotations

from collections.abc import Sequence, Set

from sqlalchemy import func
from sqlmodel import Session, col, select

from registry import names
from registry.api.catalog import BasePage, BaseView
from registry.errors import NotFound
from registry.manifest import Edge
from registry.server.actors import Actor
from registry.server.catalog import base_rows, base_weights, versions
from registry.server.database import db
from registry.server.database.any_of import any_of
from registry.server.database.models import AdapterRow, BaseRow, BaseThresholdsRow, VersionRow


def show(session: Session, actor: Actor, name: str) -> BaseView:
    """One base with its relatives and thresholds, which `list_bases` leaves out."""
    return view(session, actor, base_rows.find(session, names.base_name(name)))


def list_bases(session: Session, actor: Actor, *, cursor: str = "", limit: int) -> BasePage:
    """Bases by name, from the one that follows `cursor`."""
    statement = select(BaseRow).where(col(BaseRow.name) > cursor).order_by(col(BaseRow.name))
    rows = session.exec(statement.limit(limit + 1)).all()
    items = _views(session, actor, rows[:limit])
    return BasePage(items=items, next_cursor=items[-1].name if len(rows) > limit else "")


def view(session: Session, actor: Actor, base: BaseRow) -> BaseView:
    """One base as an answer, with its relatives and thresholds."""
    view = _views(session, actor, [base])[0]
    row = session.get(BaseThresholdsRow, base.id)
    thresholds = dict(row.thresholds) if row is not None else {}
    relatives = [
        relative for relative in base_weights.find_relatives(session, base) if relative.other not in view.aliases
    ]
    return view.model_copy(update={"relatives": relatives, "thresholds": thresholds})


def _views(session: Session, actor: Actor, rows: Sequence[BaseRow]) -> list[BaseView]:
    counting = (
        select(VersionRow.base_id, func.count(func.distinct(VersionRow.adapter_id)))
        .join(AdapterRow, col(AdapterRow.id) == col(VersionRow.adapter_id))
        .where(any_of(col(VersionRow.base_id), [row.id for row in rows]), versions.visible(actor))
        .where(col(VersionRow.deleted_at).is_(None))
        .group_by(col(VersionRow.base_id))
    )
    adapters = dict(session.exec(counting).all())
    exacts = base_weights.exact_fingerprints(session, rows)
    parents = _parents_by_name(session, actor, rows)
    return [
        db.to_answer(
            row,
            BaseView,
            spec=base_rows.with_exact_fingerprint(base_rows.load_spec(row), exacts.get(row.id or 0)),
            parents=parents[row.name],
            adapters=adapters.get(row.id or 0, 0),
            aliases=row.aliases or [],
        )
        for row in rows
    ]


def _parents_by_name(session: Session, actor: Actor, bases: Sequence[BaseRow]) -> dict[str, list[Edge]]:
    """Base's name → what was fused into it. A parent that the actor may not see keeps its digest, without a name."""
    parents = {base.name: [Edge.model_validate(edge) for edge in base.parents or ()] for base in bases}
    visible = _visible_digests(session, actor, {edge.digest for edges in parents.values() for edge in edges})
    return {
        name: [edge if edge.digest in visible else edge.model_copy(update={"name": ""}) for edge in edges]
        for name, edges in parents.items()
    }


def require_visible(session: Session, actor: Actor, digests: Set[str]) -> None:
    """`NotFound` (VERSION_UNKNOWN) for a parent that does not exist or that the actor may not see."""
    for digest in sorted(digests - _visible_digests(session, actor, digests)):
        raise NotFound("VERSION_UNKNOWN", f"parents: there is no version {digest}, or you may not see it")


def _visible_digests(session: Session, actor: Actor, digests: Set[str]) -> set[str]:
    if not digests:
        return set()
    statement = select(VersionRow.digest).join(AdapterRow, col(AdapterRow.id) == col(VersionRow.adapter_id))
    return set(session.exec(statement.where(col(VersionRow.digest).in_(digests), versions.visible(actor))).all())
