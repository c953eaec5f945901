"""REST schemas of serving: the desired state of the nodes of a base, and what nodes report.

- A report is the complete state of one engine on one node. A version that it no longer names is gone there.
- A node is live until its lease ends. Garbage collection keeps the bytes of versions on live nodes.
"""

from datetime import datetime
from enum import StrEnum

from pydantic import Field

from registry.api.catalog import FileLink
from registry.api.models import EscapedText, ItemPage, PrintableText, Request, Response
from registry.digest import Digest
from registry.evaluation.engine_settings import EngineSettings
from registry.evaluation.verdicts import Outcome
from registry.findings import Finding

LEASE_SECONDS = 60
SLOTS_LIMIT = 2000
REASON_LIMIT = 600


class SlotState(StrEnum):
    """`downloaded`: on the node, not in its engine. `draining`: running requests finish, new ones go elsewhere."""

    LOADING = "loading"
    SERVING = "serving"
    DOWNLOADED = "downloaded"
    DRAINING = "draining"
    REFUSED = "refused"
    FAILED = "failed"
    ABSENT = "absent"
    """Only the registry says so: the node should serve it and has not reported it."""


STATES_WITH_BYTES = (SlotState.LOADING, SlotState.SERVING, SlotState.DOWNLOADED, SlotState.DRAINING)
"""States in which the node has the bytes. Its lease keeps them in the registry, too."""


class SlotReport(Request):
    """One version on one engine."""

    adapter: str = Field(max_length=200)
    digest: Digest
    served_name: PrintableText = Field(min_length=1, max_length=300)
    state: SlotState
    reason: EscapedText = Field(default="", max_length=REASON_LIMIT)
    verified: bool = False


class NodeReport(Request):
    """The complete state of one engine on one node."""

    base: str = Field(max_length=300)
    alias: str = Field(max_length=128)
    profile: PrintableText = Field(default="", max_length=1000)
    on_demand: bool = False
    cursor: str = Field(default="", max_length=100)
    lease_seconds: int = Field(default=LEASE_SECONDS, ge=5, le=3600)
    slots: list[SlotReport] = Field(max_length=SLOTS_LIMIT)


class ReportAccepted(Response):
    """A report that was stored, and how long it holds."""

    expires_at: datetime
    unknown: list[str] = []


class SlotView(Response):
    """A version on a node, and what the node should have in its place."""

    adapter: str
    served_name: str
    number: int | None
    digest: Digest | None
    state: SlotState
    reason: str
    verified: bool
    since: datetime
    desired_number: int | None = None
    desired_digest: Digest | None = None


class NodeView(Response):
    """One engine on one node, as last reported."""

    node: str
    engine: str
    base: str
    alias: str
    profile: str
    on_demand: bool
    reporter: str
    live: bool
    reported_at: datetime
    expires_at: datetime
    slots: list[SlotView]


class Convergence(Response):
    """How many of the live nodes that should serve a version do serve it."""

    adapter: str
    alias: str
    base: str
    number: int
    digest: Digest
    serving: int
    nodes: int


class FleetNodes(ItemPage[NodeView]):
    """A page of nodes, and how far each version has come."""

    convergence: list[Convergence] = []


class DesiredAdapter(Response):
    """One adapter of a desired state: the version that the alias points at.

    `served_name` is unique on a page of the desired state. It belongs to the version, not to the adapter: an engine
    never gets other weights under a name that it knows.
    """

    name: str
    served_name: str
    number: int
    digest: Digest
    generation: int
    method: str
    rank: int | None
    size_bytes: int
    files: list[FileLink]
    verdicts: dict[str, str]
    engine_outcome: Outcome | None = None
    findings: list[Finding] = []


class DesiredState(Response):
    """The versions that an alias of each adapter of a base points at, without yanked ones; or a page of them.

    `cursor` is of the whole state, and on its first page only. `ranks` and `settings` are of the listed adapters.
    """

    base: str
    base_fingerprint: str
    alias: str
    cursor: str
    adapters: list[DesiredAdapter]
    ranks: dict[str, int]
    settings: EngineSettings | None = None
    next_after: str = ""
