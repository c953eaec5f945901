"""Shows, sets and clears the retention rule of an adapter or a namespace. An adapter's own rule counts alone."""

from sqlmodel import Session

from registry.api.maintenance import RetentionView
from registry.events import EventType
from registry.names import AdapterName
from registry.roles import Scope
from registry.server import audit
from registry.server.actors import Actor
from registry.server.catalog import versions
from registry.server.database.models import AdapterRow
from registry.server.database.models.owner_rules import AdapterRetentionRow, NamespaceRetentionRow
from registry.server.promotion import owner_rules
from registry.server.promotion.owner_rules import Owner
from registry.versions.retention import RetentionRule

_Row = AdapterRetentionRow | NamespaceRetentionRow


def show_rule(session: Session, actor: Actor, owner: Owner) -> RetentionView:
    """The rule in force for an adapter or a namespace, no matter who has set it."""
    if isinstance(owner, AdapterName):
        return find_rule(session, versions.find_adapter(session, actor, owner))
    actor.require_in(Scope.PULL, owner)
    return _view(session.get(NamespaceRetentionRow, owner, populate_existing=True), owner)


def find_rule(session: Session, adapter: AdapterRow) -> RetentionView:
    """The rule in force for an adapter."""
    own = session.get(AdapterRetentionRow, adapter.id, populate_existing=True)
    if own is not None:
        return _view(own, f"{adapter.namespace}/{adapter.name}")
    inherited = session.get(NamespaceRetentionRow, adapter.namespace, populate_existing=True)
    return _view(inherited, adapter.namespace)


def set_rule(session: Session, actor: Actor, owner: Owner, rule: RetentionRule | None) -> RetentionView:
    """Set the rule, or clear it (None); returns the rule in force then. `Denied`, `NotFound`."""
    key = owner_rules.lock_owner(session, actor, owner)
    table = AdapterRetentionRow if isinstance(owner, AdapterName) else NamespaceRetentionRow
    after = rule.model_dump(mode="json") if rule is not None else None
    before = owner_rules.replace_rule(session, actor, table, key, ("rule", after))
    if before != after:
        event_type = EventType.RETENTION_DELETE if rule is None else EventType.RETENTION_SET
        detail = {"rule": rule.text if rule is not None else "", "before": before, "after": after}
        audit.append(session, actor, event_type, str(owner), detail, namespace=owner_rules.namespace_of(owner))
    return show_rule(session, actor, owner)


def _view(row: _Row | None, set_on: str) -> RetentionView:
    if row is None:
        return RetentionView()
    return RetentionView(
        rule=RetentionRule.model_validate(row.rule), set_on=set_on, set_at=row.set_at, set_by=row.set_by
    )
