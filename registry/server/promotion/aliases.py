"""Aliases: list and show them, and their history. `moves` changes where they point."""

from datetime import UTC, datetime

from sqlalchemy import ColumnElement, and_, exists
from sqlalchemy.orm import aliased
from sqlmodel import Session, col, select

from registry.api.aliases import AliasList, AliasMove, AliasView, History
from registry.errors import Invalid, NotFound
from registry.names import AdapterName
from registry.server.actors import Actor, unknown_adapter
from registry.server.catalog import versions
from registry.server.database import db
from registry.server.database.models import AdapterRow, AliasMoveRow, AliasRow, VersionRow


def list_aliases(session: Session, actor: Actor, name: AdapterName) -> AliasList:
    """The aliases of an adapter, by name."""
    adapter = versions.find_adapter(session, actor, name)
    statement = (
        select(AliasRow, VersionRow.number, VersionRow.digest)
        .join(VersionRow, col(VersionRow.id) == col(AliasRow.version_id))
        .where(col(AliasRow.adapter_id) == adapter.id)
        .order_by(col(AliasRow.alias))
    )
    rows = session.exec(statement).all()
    return AliasList(items=[db.to_answer(row, AliasView, number=number, digest=digest) for row, number, digest in rows])


def show(session: Session, actor: Actor, name: AdapterName, alias: str) -> AliasView:
    """One alias of an adapter."""
    adapter = versions.find_adapter(session, actor, name)
    row = session.get(AliasRow, (adapter.id, alias), populate_existing=True)
    if row is None:
        raise NotFound("ALIAS_UNKNOWN", f"adapter '{name}' has no alias '{alias}'")
    version = session.get_one(VersionRow, row.version_id)
    return db.to_answer(row, AliasView, number=version.number, digest=version.digest)


# ------------------------------------------------------------------ history
def list_history(
    session: Session, actor: Actor, name: AdapterName, *,
    alias: str = "", at: datetime | None = None, cursor: str = "", limit: int,
) -> History:  # fmt: skip
    """The moves of one alias or of all, newest first. With `at`, the one move per alias that was in effect then."""
    if not actor.sees(name):
        raise unknown_adapter(name)
    before, after = aliased(VersionRow), aliased(VersionRow)
    statement = (
        select(AliasMoveRow, before.number, after.number, after.digest)
        .outerjoin(before, col(before.id) == col(AliasMoveRow.from_version_id))
        .outerjoin(after, col(after.id) == col(AliasMoveRow.to_version_id))
        .join(AdapterRow, col(AdapterRow.id) == col(AliasMoveRow.adapter_id))
        .where(versions.named(name))
    )
    if alias:
        statement = statement.where(col(AliasMoveRow.alias) == alias)
    if at is not None:
        statement = statement.where(*_in_effect_at(at))
    offset = versions.parse_cursor(cursor)  # there are few moves, so an offset is good enough
    newest_first = (col(AliasMoveRow.at).desc(), col(AliasMoveRow.alias), col(AliasMoveRow.generation).desc())
    rows = session.exec(statement.order_by(*newest_first).offset(offset).limit(limit + 1)).all()
    if not rows:
        versions.find_adapter(session, actor, name)  # raises if there is no such adapter
    moves = [
        db.to_answer(move, AliasMove, from_number=before, number=number, digest=digest)
        for move, before, number, digest in rows[:limit]
    ]
    return History(name=str(name), moves=moves, next_cursor=str(offset + limit) if len(rows) > limit else "")


def _in_effect_at(at: datetime) -> tuple[ColumnElement[bool], ...]:
    if at.tzinfo is None:
        raise Invalid("REQUEST_INVALID", "at: a time needs its zone, as in 2026-05-03T14:05:00+00:00")
    try:
        at = at.astimezone(UTC)
    except OverflowError as e:
        raise Invalid("REQUEST_INVALID", "at: a time in UTC has a year from 1 to 9999") from e
    later = aliased(AliasMoveRow)
    superseded = exists().where(
        and_(
            col(later.adapter_id) == col(AliasMoveRow.adapter_id),
            col(later.alias) == col(AliasMoveRow.alias),
            col(later.generation) > col(AliasMoveRow.generation),
            col(later.at) <= at,
        )
    )
    return (col(AliasMoveRow.at) <= at, ~superseded)
