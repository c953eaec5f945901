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

NODE_LEASE_SECONDS = 60
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
    """Adapter, as `namespace/name`."""
    digest: Digest
    """Digest of the version that the engine has."""
    served_name: PrintableText = Field(min_length=1, max_length=300)
    """Model name under which clients of the engine request it. It belongs to this version."""
    state: SlotState
    """What the engine does with it. `downloaded`: on the node, not in the engine."""
    reason: EscapedText = Field(default="", max_length=REASON_LIMIT)
    """Why it was refused or failed. Control characters are escaped."""
    verified: bool = False
    """Whether its answers matched the reference log-probabilities after loading."""


class NodeReport(Request):
    """The complete state of one engine on one node."""

    base: str = Field(max_length=300)
    """Name of the base model, such as `llama-3.1-8b`."""
    alias: str = Field(max_length=128)
    """Alias that the node follows, such as `prod`."""
    profile: PrintableText = Field(default="", max_length=1000)
    """Engine with version and settings: `vllm==0.33.0,max_lora_rank=32`. Empty if there is none."""
    on_demand: bool = False
    """Whether the node loads adapters on request, so that nothing is missing there."""
    cursor: str = Field(default="", max_length=100)
    """Cursor of the desired state that the node works on."""
    lease_seconds: int = Field(default=NODE_LEASE_SECONDS, ge=5, le=3600)
    """How long the report is valid. Report again after a third of it."""
    slots: list[SlotReport] = Field(max_length=SLOTS_LIMIT)
    """Every version on the engine. What is absent here is gone there."""


class ReportAccepted(Response):
    """A report that was stored, and how long it holds."""

    expires_at: datetime
    """When it ends."""
    unknown: list[str] = []
    """Served names of versions that the token may not see. The registry does not keep their bytes for the node."""


class SlotView(Response):
    """A version on a node, and what the node should have in its place."""

    adapter: str
    """Adapter, as `namespace/name`."""
    served_name: str
    """Model name under which clients of the engine request it. It belongs to this version."""
    number: int | None
    """Number of the version on the node; null if the registry does not know it."""
    digest: Digest | None
    """Digest of the version on the node; null if it should serve one and has not reported it."""
    state: SlotState
    """What the engine does with it. `absent`: the node should serve it and has not reported it."""
    reason: str
    """Why it was refused or failed."""
    verified: bool
    """Whether its answers matched the reference log-probabilities after loading."""
    since: datetime
    """When it entered this state."""
    desired_number: int | None = None
    """Number that the node's alias points at now; null if that may not be served."""
    desired_digest: Digest | None = None
    """Digest that the node's alias points at now; null if that may not be served."""


class NodeView(Response):
    """One engine on one node, as last reported."""

    node: str
    """Name of the serving node, such as `gpu-7`."""
    engine: str
    """Name of the engine on its node, such as `vllm-8000`."""
    base: str
    """Name of the base model, such as `llama-3.1-8b`."""
    alias: str
    """Alias that the node follows, such as `prod`."""
    profile: str
    """Engine with version and settings: `vllm==0.33.0,max_lora_rank=32`. Empty if there is none."""
    on_demand: bool
    """Whether the node loads adapters on request."""
    reporter: str
    """Identity whose token reports for the node."""
    live: bool
    """Whether the last report is still valid."""
    reported_at: datetime
    """When the node last reported."""
    expires_at: datetime
    """When it ends."""
    slots: list[SlotView]
    """Every version on the engine, and those that it should serve."""


class Convergence(Response):
    """How many of the live nodes that should serve a version do serve it."""

    adapter: str
    """Adapter, as `namespace/name`."""
    alias: str
    """Alias that the nodes follow."""
    base: str
    """Name of the base model, such as `llama-3.1-8b`."""
    number: int
    """Number of the version in its adapter, from 1."""
    digest: Digest
    """Digest of the version's manifest, which names the version."""
    serving: int
    """Number of live nodes that serve the version."""
    nodes: int
    """Number of live nodes that should serve it."""


class FleetNodes(ItemPage[NodeView]):
    """A page of nodes, and how far each version has come."""

    items: list[NodeView]
    """Engines on nodes, in the order of their first report."""

    convergence: list[Convergence] = []
    """How far each version has come on the whole fleet: up to 1,000, those first that are behind. On the first page
    only."""


class DesiredAdapter(Response):
    """One adapter of a desired state: the version that the alias points at.

    `served_name` is unique on a page of the desired state. It belongs to the version, not to the adapter: an engine
    never gets other weights under a name that it knows.
    """

    name: str
    """Adapter, as `namespace/name`."""
    served_name: str
    """Model name under which clients of the engine request it. It belongs to this version."""
    number: int
    """Number of the version in its adapter, from 1."""
    digest: Digest
    """Digest of the version's manifest, which names the version."""
    generation: int
    """How often the alias has moved. Send it as `If-Match` to move the alias."""
    method: str
    """PEFT method, such as `lora` or `ia3`."""
    rank: int | None
    """Largest rank of a module; null for methods without one."""
    size_bytes: int
    """Bytes of all files together."""
    files: list[FileLink]
    """Every file and where its bytes are."""
    verdicts: dict[str, str]
    """Check → outcome; for engines, `engine:PROFILE` → outcome."""
    engine_outcome: Outcome | None = None
    """What the engine of the request does with it; null if none is named."""
    findings: list[Finding] = []
    """Why, if the outcome is not `pass`."""


class DesiredState(Response):
    """The versions that an alias of each adapter of a base points at, without yanked ones; or a page of them.

    `cursor` is of the whole state, and on its first page only. `ranks` and `settings` are of the listed adapters.
    """

    base: str
    """Name of the base model, such as `llama-3.1-8b`."""
    base_fingerprint: str
    """Digest of the architecture of the base: tensor names, shapes, and what changes the computation."""
    alias: str
    """Alias that decides which version of each adapter is served."""
    cursor: str
    """Changes whenever the state does: send it as `since`. Empty on the pages after the first one."""
    adapters: list[DesiredAdapter]
    """The version of each adapter that the alias points at, without withdrawn ones."""
    ranks: dict[str, int]
    """Rank → number of adapters."""
    settings: EngineSettings | None = None
    """What to set on the engine of the request; null if none is named."""
    next_after: str = ""
    """Send it as `after` to continue. Empty on the last page."""
