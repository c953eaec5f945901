"""Shows, sets and clears the retention rule of an adapter or a namespace. An adapter's own rule counts alone."""

from typing import Any

from sqlmodel import Session, select

from registry import names
from registry.api.maintenance import RetentionView
from registry.events import EventType
from registry.names import AdapterName
from registry.roles import Scope
from registry.server import audit
from registry.server.actors import Actor
from registry.server.catalog import versions
from registry.server.database import db
from registry.server.database.models import AdapterRetentionRow, AdapterRow, NamespaceRetentionRow
from registry.versions.retention import RetentionRule

_Row = AdapterRetentionRow | NamespaceRetentionRow


def show_rule(session: Session, actor: Actor, where: AdapterName | str) -> RetentionView:
    """The rule in force for an adapter or a namespace, no matter who has set it."""
    if isinstance(where, AdapterName):
        return find_rule(session, versions.find_adapter(session, actor, where))
    actor.require_in(Scope.PULL, where)
    return _view(session.get(NamespaceRetentionRow, where, populate_existing=True), where)


def find_rule(session: Session, adapter: AdapterRow) -> RetentionView:
    """The rule in force for an adapter."""
    own = session.get(AdapterRetentionRow, adapter.id, populate_existing=True)
    if own is not None:
        return _view(own, f"{adapter.namespace}/{adapter.name}")
    inherited = session.get(NamespaceRetentionRow, adapter.namespace, populate_existing=True)
    return _view(inherited, adapter.namespace)


def set_rule(session: Session, actor: Actor, where: AdapterName | str, rule: RetentionRule | None) -> RetentionView:
    """Set the rule, or clear it (None); returns the rule in force then. `Denied`, `NotFound`."""
    if isinstance(where, AdapterName):
        actor.require(Scope.ADMIN, where)
        table: type[_Row] = AdapterRetentionRow
        key: dict[str, Any] = {"adapter_id": versions.find_adapter(session, actor, where, lock=True).id}
    else:
        actor.require_in(Scope.ADMIN, names.namespace(where))
        table, key = NamespaceRetentionRow, {"namespace": where}
    row = _lock(session, table, key)
    before = row.rule if row is not None else None
    after = rule.model_dump(mode="json") if rule is not None else None
    if before == after:
        return show_rule(session, actor, where)
    if after is not None:
        values = {"rule": after, "set_at": db.now(), "set_by": actor.identity}
        while row is None and not db.insert_new(session, table, key | values):  # lost a race for a namespace's rule
            row = _lock(session, table, key)
        if row is not None:
            session.add(row.sqlmodel_update(values))
    elif row is not None:
        session.delete(row)
    session.flush()
    namespace = where.namespace if isinstance(where, AdapterName) else where
    event_type = EventType.RETENTION_CLEAR if rule is None else EventType.RETENTION_SET
    detail = {"rule": rule.text if rule is not None else "", "before": before, "after": after}
    audit.append(session, actor, event_type, str(where), detail, namespace=namespace)
    session.flush()
    return show_rule(session, actor, where)


def _lock(session: Session, table: type[_Row], key: dict[str, Any]) -> _Row | None:
    row: _Row | None = session.exec(select(table).filter_by(**key).with_for_update()).first()  # type: ignore[assignment]
    return row


def _view(row: _Row | None, set_on: str) -> RetentionView:
    if row is None:
        return RetentionView()
    return RetentionView(
        rule=RetentionRule.model_validate(row.rule), set_on=set_on, set_at=row.set_at, set_by=row.set_by
    )
