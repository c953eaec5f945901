"""The REST contract of gates: what a channel asks for, what a version still lacks, approvals, quarantine.

Invariants
- As in the rest of `wire`: requests refuse unknown fields, answers may gain some.
"""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from registry.api import MESSAGE_LIMIT, Answer, Request, Said
from registry.evaluation.gates import Gate
from registry.evaluation.verdicts import Finding


class GateSet(Request):
    gate: Gate


class GateView(Answer):
    """A gate. `set_on`: the adapter or the namespace that it was set for, empty for a gate that nobody has set."""

    alias: str
    gate: Gate
    set_on: str = ""
    set_at: datetime | None = None
    set_by: str = ""


class GateList(Answer):
    items: list[GateView]


class GateCheck(Answer):
    """What would stand between a version and a channel now; `open` when nothing does."""

    alias: str
    number: int
    gate: GateView
    open: bool
    missing: list[Finding]


class ApproveRequest(Request):
    alias: str = Field(max_length=128)
    comment: Said = Field(default="", max_length=MESSAGE_LIMIT)


class ApprovalView(Answer):
    """`counts` is false for one by whoever pushed the version, or by somebody whom the gate does not ask."""

    number: int
    alias: str
    identity: str
    comment: str = ""
    at: datetime
    counts: bool = True


class ApprovalList(Answer):
    items: list[ApprovalView]


class QuarantineRequest(Request):
    reason: Said = Field(min_length=1, max_length=MESSAGE_LIMIT)
