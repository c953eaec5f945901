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
from registry.server.database.models import EXPIRES, NEVER, AdapterRow, VersionMetadataRow, VersionRow
from registry.server.database.models.owner_rules import RuleKind, RuleRow
from registry.server.jobs import queue
from registry.server.promotion import deletion
from registry.server.promotion.retention import needs, rules
from registry.versions.retention import RetentionRule

BATCH = 100
"""Versions of which one transaction decides, and deletes those that are due."""
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
    decisions, following = _decide(session, adapter, in_force, before=before, limit=limit)
    return RetentionPlan(rule=in_force, items=[d for _, d in decisions], next_cursor=str(following or ""))


def apply_rules(
    engine: Engine, after: int, *, is_over: Callable[[], bool], dry_run: bool
) -> tuple[list[str], int | None]:  # fmt: skip
    """Delete what rules and expiries say, of adapters after this id; which versions, and the id to continue from."""
    retired: list[str] = []
    while not is_over():
        with db.session(engine, write=False) as session:
            ids = session.exec(_select_affected(after)).all()
        for adapter_id in ids:
            if is_over():
                return retired, after
            before: int | None = None
            while before != 0:
                versions_deleted, before = _delete_due(engine, adapter_id, before, dry_run=dry_run)
                retired += versions_deleted
                if before and is_over():
                    return retired, after
            after = adapter_id or 0
        if len(ids) < ADAPTERS:
            return retired, None
    return retired, after


def _select_affected(after: int) -> Any:
    """The ids of adapters that have a rule or a version with an expiry."""
    expires = exists().where(
        col(VersionRow.adapter_id) == col(AdapterRow.id), col(VersionRow.deleted_at).is_(None),
        col(VersionMetadataRow.version_id) == col(VersionRow.id), col(VersionMetadataRow.kind) == EXPIRES,
        col(VersionMetadataRow.value) <= expiry_text(db.now()),
    )  # fmt: skip
    of_retention = col(RuleRow.kind) == RuleKind.RETENTION
    own = exists().where(col(RuleRow.adapter_id) == col(AdapterRow.id), of_retention)
    inherited = exists().where(col(RuleRow.namespace) == col(AdapterRow.namespace), of_retention)
    affected = select(AdapterRow.id).where(col(AdapterRow.id) > after, or_(own, inherited, expires))
    return affected.order_by(col(AdapterRow.id)).limit(ADAPTERS)


def _decide(
    session: Session, adapter: AdapterRow, rule: RetentionRule | None, *, before: int | None, limit: int
) -> tuple[_Decisions, int]:
    """The decisions on versions before a number that are not deleted, newest first, and where the next ones begin.

    That is the number of the last one, or 0. However many versions there are, `limit` of them are read.
    """
    expiry = and_(col(VersionMetadataRow.version_id) == col(VersionRow.id), col(VersionMetadataRow.kind) == EXPIRES)
    value = func.coalesce(VersionMetadataRow.value, "")
    of = VersionRow
    columns: Any = [of.id, of.number, of.digest, of.size_bytes, of.created_at, value]
    live = (col(VersionRow.adapter_id) == adapter.id, col(VersionRow.deleted_at).is_(None))
    own, newer = plain_select(*columns).where(*live), 0
    if before:
        own = own.where(col(VersionRow.number) < before)
        is_newer = select(func.count(col(VersionRow.id))).where(*live, col(VersionRow.number) >= before)
        newer = session.exec(is_newer).one()
    own = own.outerjoin(VersionMetadataRow, expiry).order_by(col(VersionRow.number).desc()).limit(limit + 1)
    rows = session.connection().execute(own).all()
    following = rows[limit - 1].number if len(rows) > limit else 0
    needed = needs.find_needs(session, adapter, [row.id for row in rows[:limit]])
    now, decisions = db.now(), _Decisions()
    name = str(AdapterName(adapter.namespace, adapter.name))
    for position, (version_id, number, digest, size_bytes, created_at, expires) in enumerate(rows[:limit], newer):
        if expires and expires != NEVER:
            deletes = expires <= expiry_text(now)
            reason = f"expired at {expires}" if deletes else f"expires at {expires}"
        else:
            deletes, reason = _apply_rule(rule, position, now - created_at)
        if deletes and version_id in needed:
            deletes, reason = False, needed[version_id]
        decision = RetentionDecision(
            name=name, number=number, digest=digest, size_bytes=size_bytes, deletes=deletes, reason=reason
        )
        decisions.append((version_id, decision))
    return decisions, following


def _apply_rule(rule: RetentionRule | None, position: int, age: timedelta) -> tuple[bool, str]:
    """Whether a rule deletes the version at this position from the newest (0), and why."""
    if rule is None:
        return False, "no rule is set"
    if rule.keep_newest is not None and position < rule.keep_newest:
        return False, f"is among the newest {rule.keep_newest}"
    if rule.keep_age is not None and rule.keep_seconds is not None and age < rule.keep_age:
        return False, f"is younger than {duration(rule.keep_seconds)}"
    return True, f"retention rule: {rule.text}"


def _decide_due(session: Session, adapter: AdapterRow, before: int | None) -> tuple[_Decisions, int]:
    rule = rules.find_rule(session, adapter).rule
    decisions, following = _decide(session, adapter, rule, before=before, limit=BATCH)
    return [(version_id, decision) for version_id, decision in decisions if decision.deletes], following


def _delete_due(engine: Engine, adapter_id: int | None, before: int | None, *, dry_run: bool) -> tuple[list[str], int]:
    """Delete what is due of the next `BATCH` versions in one transaction: which, and where the next ones begin.

    What is due is decided again under the locks of the versions: approvals, signatures and jobs wait only for these.
    """
    with db.session(engine, write=not dry_run) as session:
        statement = select(AdapterRow).where(AdapterRow.id == adapter_id)
        adapter = session.exec(statement if dry_run else statement.with_for_update()).first()  # first, as all others do
        if adapter is None:
            return [], 0
        due, following = _decide_due(session, adapter, before)
        if dry_run or not due:
            return [f"{decision.name}@{decision.number}" for _, decision in due], following
        rows = select(VersionRow).where(col(VersionRow.id).in_(version_id for version_id, _ in due))
        rows = rows.where(col(VersionRow.deleted_at).is_(None)).order_by(col(VersionRow.id)).with_for_update()
        locked = session.exec(rows.execution_options(populate_existing=True)).all()
        name = AdapterName(adapter.namespace, adapter.name)
        reasons = {version_id: decision.reason for version_id, decision in _decide_due(session, adapter, before)[0]}
        still_due = [version for version in locked if version.id in reasons]
        for version in still_due:
            deletion.withhold(session, SYSTEM, name, version, reasons[version.id or 0])
        queue.supersede(session, {v.id or 0: "the version was deleted by its retention" for v in still_due})
        failpoints.reach("retention.deleted")
        return [f"{name}@{version.number}" for version in still_due], following
