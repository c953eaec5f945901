"""The REST contract of the fleet: what boxes report that they hold and serve, and what anybody may see of it.

    PUT /fleet/boxes/{box}/{engine}    a box's whole report; the lease begins anew with each
    GET /fleet/boxes                   boxes with their slots, and how far each adapter has come

Invariants
- A report is the whole state of one engine on one box: what it no longer names is gone from there.
- A box is live until its lease ends. Only what a live box loads, serves or holds keeps bytes from garbage collection.

Example
    >>> BoxReport(base="smollm2", alias="prod", slots=[]).lease_seconds
    60
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from pydantic import Field

from registry.api import Answer, Request
from registry.digest import Digest

LEASE_SECONDS = 60
SLOTS_LIMIT = 2000
REASON_LIMIT = 600


class SlotState(StrEnum):
    """`held`: on the box, not in its engine. `leaving`: requests may end on it, new ones go elsewhere."""

    LOADING = "loading"
    SERVING = "serving"
    HELD = "held"
    LEAVING = "leaving"
    REFUSED = "refused"
    FAILED = "failed"
    ABSENT = "absent"
    """Said by the registry alone: the box should serve it and has not spoken of it."""


KEEPING = (SlotState.LOADING, SlotState.SERVING, SlotState.HELD, SlotState.LEAVING)
"""What the box has the bytes of: a lease keeps them in the registry, too."""


class SlotReport(Request):
    """One version on one engine. `proved`: its answers were compared with the fingerprint after it was loaded."""

    adapter: str = Field(max_length=200)
    digest: Digest
    served_name: str = Field(min_length=1, max_length=300)
    state: SlotState
    reason: str = Field(default="", max_length=REASON_LIMIT)
    proved: bool = False


class BoxReport(Request):
    """`on_demand`: this box loads what it is asked for, so nothing is missing there. `cursor`: of its roster."""

    base: str = Field(max_length=300)
    alias: str = Field(max_length=128)
    profile: str = Field(default="", max_length=1000)
    on_demand: bool = False
    cursor: str = Field(default="", max_length=100)
    lease_seconds: int = Field(default=LEASE_SECONDS, ge=5, le=3600)
    slots: list[SlotReport] = Field(max_length=SLOTS_LIMIT)


class Leased(Answer):
    """`unknown`: served names whose version is none that this token's own rights reach; they hold no bytes."""

    expires_at: datetime
    unknown: list[str] = []


class SlotView(Answer):
    """`wanted_*`: what the box's alias points at now; empty where it points at nothing that may be served."""

    adapter: str
    served_name: str
    number: int | None
    digest: Digest | None
    state: SlotState
    reason: str
    proved: bool
    since: datetime
    wanted_number: int | None = None
    wanted_digest: Digest | None = None


class BoxView(Answer):
    box: str
    engine: str
    base: str
    alias: str
    profile: str
    on_demand: bool
    reporter: str
    live: bool
    heard_at: datetime
    expires_at: datetime
    slots: list[SlotView]


class Convergence(Answer):
    """How many of the live boxes that should serve what an alias points at do so."""

    adapter: str
    alias: str
    base: str
    number: int
    digest: Digest
    serving: int
    boxes: int


class FleetBoxes(Answer):
    """`convergence` is of the whole fleet, and on the first page only."""

    items: list[BoxView]
    convergence: list[Convergence] = []
    next_cursor: str = ""
