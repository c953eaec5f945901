"""Shows, sets and clears the retention rule of an adapter or a namespace. An adapter's own rule counts alone."""

from typing import Any

from sqlalchemy import or_
from sqlmodel import Session, col, select

from registry.api.maintenance import RetentionView
from registry.events import EventType
from registry.names import AdapterName
from registry.roles import Scope
from registry.server import audit
from registry.server.actors import Actor
from registry.server.catalog import versions
from registry.server.database.models import AdapterRow
from registry.server.database.models.owner_rules import RuleKind, RuleRow
from registry.server.promotion import owner_rules
from registry.server.promotion.owner_rules import Owner
from registry.versions.retention import RetentionRule


def show_rule(session: Session, actor: Actor, owner: Owner) -> RetentionView:
    """The rule in force for an adapter or a namespace, no matter who has set it."""
    if isinstance(owner, AdapterName):
        return find_rule(session, versions.find_adapter(session, actor, owner))
    actor.require_in(Scope.PULL, owner)
    return _view(_find(session, RuleRow.namespace == owner), owner)


def find_rule(session: Session, adapter: AdapterRow) -> RetentionView:
    """The rule in force for an adapter."""
    row = _find(session, or_(col(RuleRow.adapter_id) == adapter.id, col(RuleRow.namespace) == adapter.namespace))
    is_own = row is not None and row.adapter_id is not None
    return _view(row, f"{adapter.namespace}/{adapter.name}" if is_own else adapter.namespace)


def _find(session: Session, where: Any) -> RuleRow | None:
    """The rule of an adapter, else of its namespace, among those that fulfill a condition."""
    statement = select(RuleRow).where(RuleRow.kind == RuleKind.RETENTION, where)
    own_first = statement.order_by(col(RuleRow.adapter_id).is_(None)).execution_options(populate_existing=True)
    return session.exec(own_first).first()


def set_rule(
    session: Session, actor: Actor, owner: Owner, rule: RetentionRule | None, reason: str = ""
) -> RetentionView:
    """Set the rule, or clear it (None); returns the rule in force then. `Denied`, `NotFound`."""
    key = owner_rules.lock_owner(session, actor, owner) | {"kind": RuleKind.RETENTION, "alias": ""}
    after = rule.model_dump(mode="json") if rule is not None else None
    before = owner_rules.replace_rule(session, actor, key, after)
    if before != after:
        event_type = EventType.RETENTION_DELETE if rule is None else EventType.RETENTION_SET
        text = rule.text if rule is not None else ""
        detail = {"rule": text, "before": before, "after": after, "reason": reason}
        audit.append(session, actor, event_type, str(owner), detail, namespace=owner_rules.namespace_of(owner))
    return show_rule(session, actor, owner)


def _view(row: RuleRow | None, set_on: str) -> RetentionView:
    if row is None:
        return RetentionView()
    return RetentionView(
        rule=RetentionRule.model_validate(row.rule), set_on=set_on, set_at=row.set_at, set_by=row.set_by
    )
