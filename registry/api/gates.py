"""REST schemas of gates and approvals."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from registry.api import MESSAGE_LIMIT, Answer, PrintableText, Request
from registry.evaluation.gates import Gate
from registry.evaluation.verdicts import Finding


class GateSet(Request):
    """The new gate of an alias."""

    gate: Gate


class GateView(Answer):
    """A gate. `set_on`: the adapter or namespace that it was set for; empty if no gate is set."""

    alias: str
    gate: Gate
    set_on: str = ""
    set_at: datetime | None = None
    set_by: str = ""


class GateList(Answer):
    """The gates of an adapter or namespace."""

    items: list[GateView]


class GateCheck(Answer):
    """What a version is missing for an alias now; `open` if nothing."""

    alias: str
    number: int
    gate: GateView
    open: bool
    missing: list[Finding]


class ApproveRequest(Request):
    """An approval of a version for an alias."""

    alias: str = Field(max_length=128)
    comment: PrintableText = Field(default="", max_length=MESSAGE_LIMIT)


class ApprovalView(Answer):
    """An approval. It does not count if its author pushed the version, or if the gate does not accept the author."""

    number: int
    alias: str
    identity: str
    comment: str = ""
    at: datetime
    counts: bool = True


class ApprovalList(Answer):
    """The approvals of a version."""

    items: list[ApprovalView]
