"""REST schemas of retention: the rule of an adapter or namespace, and what it does to each version."""

from __future__ import annotations

from datetime import datetime

from registry.api.models import Answer, ItemPage, Request
from registry.digest import Digest
from registry.retention import RetentionRule


class RetentionSet(Request):
    """The new rule of an adapter or namespace."""

    rule: RetentionRule


class RetentionView(Answer):
    """The rule in force, null for none, and where it was set."""

    rule: RetentionRule | None = None
    set_on: str = ""
    set_at: datetime | None = None
    set_by: str = ""


class RetentionDecision(Answer):
    """What the next garbage collection does to one version, and why."""

    number: int
    digest: Digest
    deletes: bool
    reason: str


class RetentionPlan(ItemPage[RetentionDecision]):
    """The versions of one adapter that are not deleted, newest first, under this rule."""

    rule: RetentionRule | None = None
