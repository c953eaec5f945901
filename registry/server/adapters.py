"""The list of adapters, each with its newest version in short: one page, one adapter, and the search in it.

Invariants
- A page holds what the actor may see, ordered by name; `next_cursor` is the last name.
- Three statements a page, however many adapters it holds.

Example
    >>> adapters.page(session, actor, Search(namespace="acme"), limit=50).items[0].newest
    3
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import and_, exists, func, tuple_
from sqlmodel import Session, col, select

from registry import names
from registry.digest import Digest
from registry.names import AdapterName
from registry.server import catalog
from registry.server.actors import Actor, unknown_adapter
from registry.server.tables import AdapterRow, AliasRow, BaseRow, VersionRow
from registry.wire import AdapterPage, AdapterView


@dataclass(frozen=True, slots=True)
class Search:
    """What a list asks for; empty fields ask for nothing. `text` is any part of `namespace/name`."""

    namespace: str = ""
    base: str = ""
    method: str = ""
    text: str = ""
    alias: str = ""


_Shelved = tuple[AdapterRow, VersionRow, str]


def page(session: Session, actor: Actor, search: Search, *, cursor: str = "", limit: int) -> AdapterPage:
    """Adapters by name, from the one that follows `cursor`."""
    statement = _newest().where(catalog.visible(actor))
    if search.namespace:
        statement = statement.where(col(AdapterRow.namespace) == names.namespace(search.namespace))
    if search.base:
        statement = statement.where(col(BaseRow.name) == names.base_name(search.base))
    if search.method:
        statement = statement.where(func.lower(VersionRow.method) == search.method.lower())
    if search.text:
        full_name = col(AdapterRow.namespace) + "/" + col(AdapterRow.name)
        statement = statement.where(full_name.contains(search.text.lower(), autoescape=True))
    if search.alias:
        pointing = and_(col(AliasRow.adapter_id) == col(AdapterRow.id), col(AliasRow.alias) == search.alias)
        statement = statement.where(exists().where(pointing))
    if cursor:
        last = AdapterName.parse(cursor)
        keys = tuple_(col(AdapterRow.namespace), col(AdapterRow.name))
        statement = statement.where(keys > tuple_(last.namespace, last.name))
    ordered = statement.order_by(col(AdapterRow.namespace), col(AdapterRow.name)).limit(limit + 1)
    rows = session.exec(ordered).all()
    items = _views(session, rows[:limit])
    return AdapterPage(items=items, next_cursor=items[-1].name if len(rows) > limit else "")


def one(session: Session, actor: Actor, name: AdapterName) -> AdapterView:
    rows = session.exec(_newest().where(catalog.named(name), catalog.visible(actor))).all()
    if not rows:
        raise unknown_adapter(name)
    return _views(session, rows)[0]


def _newest() -> Any:
    """The select of an adapter, its newest version and that one's base."""
    newest = and_(
        col(VersionRow.adapter_id) == col(AdapterRow.id), col(VersionRow.number) == col(AdapterRow.newest_number)
    )
    return (
        select(AdapterRow, VersionRow, BaseRow.name)
        .join(VersionRow, newest)
        .join(BaseRow, col(BaseRow.id) == col(VersionRow.base_id))
    )


def _views(session: Session, rows: Sequence[_Shelved]) -> list[AdapterView]:
    aliases: dict[int, dict[str, int]] = defaultdict(dict)
    pointers = (
        select(AliasRow.adapter_id, AliasRow.alias, VersionRow.number)
        .join(VersionRow, col(VersionRow.id) == col(AliasRow.version_id))
        .where(col(AliasRow.adapter_id).in_([adapter.id for adapter, _, _ in rows]))
        .order_by(col(AliasRow.alias))
    )
    for adapter_id, alias, number in session.exec(pointers):
        aliases[adapter_id][alias] = number
    judged = catalog.verdicts_of(session, [version for _, version, _ in rows])
    return [
        AdapterView(
            name=f"{adapter.namespace}/{adapter.name}",
            versions=adapter.newest_number,
            newest=version.number,
            digest=Digest(version.digest),
            base=base,
            method=version.method,
            rank=version.rank,
            size_bytes=version.size_bytes,
            aliases=aliases[adapter.id or 0],
            verdicts={catalog.label(v.check, v.profile): v.outcome for v in judged[version.id or 0]},
            updated_at=adapter.updated_at,
        )
        for adapter, version, base in rows
    ]
