"""Decides for each version of an adapter whether it goes, and why; lists the decisions, and carries them out for `gc`.

A version's own expiry counts instead of the rule. Deletion is that of `adapter delete`: the version can be restored
until its grace time is over, and is exempt from rules then.
"""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from sqlalchemy import Engine, and_, exists, func, or_
from sqlalchemy import select as plain_select
from sqlmodel import Session, col, select

from registry.api.maintenance import RetentionDecision, RetentionPlan
from registry.durations import duration
from registry.names import AdapterName
from registry.roles import Scope
from registry.server import failpoints
from registry.server.actors import SYSTEM, Actor
from registry.server.catalog import versions
from registry.server.catalog.metadata import expiry_text
from registry.server.database import db
from registry.server.database.models import (
    EXPIRES,
    NEVER,
    AdapterRetentionRow,
    AdapterRow,
    NamespaceRetentionRow,
    VersionMetadataRow,
    VersionRow,
)
from registry.server.jobs import queue
from registry.server.promotion import deletion
from registry.server.retention import needs, rules
from registry.versions.retention import RetentionRule

BATCH = 100
"""Versions that one transaction deletes."""
ADAPTERS = 200
"""Adapters that one statement lists."""


_Decisions = list[tuple[int, RetentionDecision]]
"""The id of each version, and what happens to it."""


def list_decisions(
    session: Session, actor: Actor, name: AdapterName, rule: RetentionRule | None, *, cursor: str, limit: int
) -> RetentionPlan:
    """What the next garbage collection does to each version, newest first: under `rule`, or the one in force."""
    actor.require(Scope.ADMIN, name)
    adapter = versions.find_adapter(session, actor, name)
    before = versions.parse_cursor(cursor)
    in_force = rule or rules.find_rule(session, adapter).rule
    decisions = [d for _, d in _decide(session, adapter, in_force) if not before or d.number < before]
    items = decisions[:limit]
    next_cursor = str(items[-1].number) if len(decisions) > limit else ""
    return RetentionPlan(rule=in_force, items=items, next_cursor=next_cursor)


def apply_rules(engine: Engine, after: int, *, is_over: Callable[[], bool], dry_run: bool) -> tuple[int, int | None]:
    """Delete what rules and expiries say, of adapters after this id; how many, and the id to continue from."""
    count = 0
    while not is_over():
        with db.session(engine, write=False) as session:
            ids = session.exec(_select_affected(after)).all()
        for adapter_id in ids:
            if is_over():
                return count, after
            if dry_run:
                with db.session(engine, write=False) as session:
                    count += len(_find_due(session, adapter_id, lock=False)[1])
            else:
                while deleted := _delete_due(engine, adapter_id):
                    count += deleted
                    if is_over():
                        return count, after
            after = adapter_id or 0
        if len(ids) < ADAPTERS:
            return count, None
    return count, after


def _select_affected(after: int) -> Any:
    """The ids of adapters that have a rule or a version with an expiry."""
    expires = exists().where(
        col(VersionRow.adapter_id) == col(AdapterRow.id), col(VersionRow.deleted_at).is_(None),
        col(VersionMetadataRow.version_id) == col(VersionRow.id), col(VersionMetadataRow.kind) == EXPIRES,
        col(VersionMetadataRow.value) <= expiry_text(db.now()),
    )  # fmt: skip
    own = exists().where(col(AdapterRetentionRow.adapter_id) == col(AdapterRow.id))
    inherited = exists().where(col(NamespaceRetentionRow.namespace) == col(AdapterRow.namespace))
    affected = select(AdapterRow.id).where(col(AdapterRow.id) > after, or_(own, inherited, expires))
    return affected.order_by(col(AdapterRow.id)).limit(ADAPTERS)


# ------------------------------------------------------------------ one adapter
def _decide(session: Session, adapter: AdapterRow, rule: RetentionRule | None) -> _Decisions:
    """The decision on each version that is not deleted, newest first."""
    expiry = and_(col(VersionMetadataRow.version_id) == col(VersionRow.id), col(VersionMetadataRow.kind) == EXPIRES)
    value = func.coalesce(VersionMetadataRow.value, "")
    columns: Any = [VersionRow.id, VersionRow.number, VersionRow.digest, VersionRow.created_at, value]
    own = plain_select(*columns).where(col(VersionRow.adapter_id) == adapter.id, col(VersionRow.deleted_at).is_(None))
    rows = session.connection().execute(
        own.outerjoin(VersionMetadataRow, expiry).order_by(col(VersionRow.number).desc())
    )
    needed = needs.find_needs(session, adapter)
    now, decisions = db.now(), _Decisions()
    for position, (version_id, number, digest, created_at, expires) in enumerate(rows):
        if expires and expires != NEVER:
            deletes = expires <= expiry_text(now)
            reason = f"expired at {expires}" if deletes else f"expires at {expires}"
        else:
            deletes, reason = _judge(rule, position, now - created_at)
        if deletes and version_id in needed:
            deletes, reason = False, needed[version_id]
        decision = RetentionDecision(number=number, digest=digest, deletes=deletes, reason=reason)
        decisions.append((version_id, decision))
    return decisions


def _judge(rule: RetentionRule | None, position: int, age: timedelta) -> tuple[bool, str]:
    """Whether a rule deletes the version at this position from the newest (0), and why."""
    if rule is None:
        return False, "no rule is set"
    if rule.keep_newest is not None and position < rule.keep_newest:
        return False, f"is among the newest {rule.keep_newest}"
    if rule.keep_age is not None and rule.keep_seconds is not None and age < rule.keep_age:
        return False, f"is younger than {duration(rule.keep_seconds)}"
    return True, f"retention rule: {rule.text}"


def _find_due(session: Session, adapter_id: int | None, *, lock: bool) -> tuple[AdapterRow | None, _Decisions]:
    statement = select(AdapterRow).where(AdapterRow.id == adapter_id)
    adapter = session.exec(statement.with_for_update() if lock else statement).first()  # first, as all others do
    return adapter, _decide_due(session, adapter) if adapter is not None else []


def _decide_due(session: Session, adapter: AdapterRow) -> _Decisions:
    decisions = _decide(session, adapter, rules.find_rule(session, adapter).rule)
    return [(version_id, decision) for version_id, decision in decisions if decision.deletes]


def _delete_due(engine: Engine, adapter_id: int | None) -> int:
    """Delete up to `BATCH` versions of an adapter in one transaction; how many.

    What is due is decided again under the locks of the versions: approvals, signatures and jobs wait only for these.
    """
    with db.session(engine) as session:
        adapter, due = _find_due(session, adapter_id, lock=True)
        if adapter is None or not due:
            return 0
        rows = select(VersionRow).where(col(VersionRow.id).in_(version_id for version_id, _ in due[:BATCH]))
        rows = rows.where(col(VersionRow.deleted_at).is_(None)).order_by(col(VersionRow.id)).with_for_update()
        locked = session.exec(rows.execution_options(populate_existing=True)).all()
        name = AdapterName(adapter.namespace, adapter.name)
        reasons = {version_id: decision.reason for version_id, decision in _decide_due(session, adapter)}
        still_due = [version for version in locked if version.id in reasons]
        for version in still_due:
            deletion.withhold(session, SYSTEM, name, version, reasons[version.id or 0])
        queue.supersede(session, {v.id or 0: "the version was deleted by its retention" for v in still_due})
        failpoints.reach("retention.deleted")
        return len(still_due)
