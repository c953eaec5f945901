"""Routes of retention: the rule of an adapter or a namespace, and what it does to each version."""

from typing import Annotated

from fastapi import Query

from registry.api.maintenance import RetentionPlan, RetentionSet, RetentionView
from registry.api.operations import maintenance as operations
from registry.durations import SECONDS_LIMIT
from registry.server.http import dependencies as deps
from registry.server.http.documents import JsonBody
from registry.server.http.operation_router import OperationRouter
from registry.server.promotion.owner_rules import Owner
from registry.server.promotion.retention import plan, rules
from registry.versions.retention import NEWEST_LIMIT, RetentionRule

router = OperationRouter()

for _kind, _owner in deps.OWNERS:
    # The owner is a default, because annotations cannot see the variables of this loop.

    @router.serves(operations.SHOW_RETENTION.of(_kind))
    def show_retention(session: deps.SessionDep, actor: deps.ActorDep, owner: Owner = _owner) -> RetentionView:
        """Show the retention rule in force."""
        return rules.show_rule(session, actor, owner)

    @router.serves(operations.SET_RETENTION.of(_kind))
    def set_retention(
        session: deps.SessionDep, actor: deps.ActorDep, request: JsonBody[RetentionSet], owner: Owner = _owner
    ) -> RetentionView:
        """Set which versions garbage collection keeps. A version that something needs always stays."""
        return rules.set_rule(session, actor, owner, request.rule, request.reason)

    @router.serves(operations.DELETE_RETENTION.of(_kind))
    def delete_retention(
        session: deps.SessionDep, actor: deps.ActorDep, reason: deps.ReasonDep = "", owner: Owner = _owner
    ) -> RetentionView:
        """Delete the rule set here. The response is the rule then in force."""
        return rules.set_rule(session, actor, owner, None, reason)


@router.serves(operations.PLAN_RETENTION)
def plan_retention(
    target: deps.AdapterDep,
    cursor: deps.CursorDep,
    keep_newest: Annotated[int | None, Query(ge=1, le=NEWEST_LIMIT)] = None,
    keep_seconds: Annotated[int | None, Query(ge=1, le=SECONDS_LIMIT)] = None,
    limit: deps.LimitDep = deps.PAGE,
) -> RetentionPlan:
    """Show what the next garbage collection does to each version, and why, under this rule or the one in force."""
    rule = RetentionRule(keep_newest=keep_newest, keep_seconds=keep_seconds) if keep_newest or keep_seconds else None
    return plan.list_decisions(*target, rule, cursor=cursor, limit=limit)
