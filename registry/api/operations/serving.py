"""Operations of serving nodes."""

from registry.api.operations.operation import LIST_VALUES_LIMIT, NO_BODY, PULL, BodyLimit, Tag
from registry.api.serving import DesiredState, FleetNodes, NodeReport, ReportAccepted

# fmt: off
serving = Tag("serving", "Serving nodes: what they should serve, and what they report.")
SHOW_DESIRED_STATE = serving.add(
    "show_desired_state", "GET /bases/{base:path}/adapters", PULL, NO_BODY, DesiredState, echo={"alias": "alias"},
)
REPORT_NODE = serving.add(
    "report_node", "PUT /fleet/nodes/{node}/{engine}", PULL, NodeReport, ReportAccepted,
    example={"base": "llama-3.1-8b", "alias": "prod", "slots": []},
    body_limit=BodyLimit(4 * 2**20, LIST_VALUES_LIMIT),
)
LIST_NODES = serving.add("list_nodes", "GET /fleet/nodes", PULL, NO_BODY, FleetNodes, echo={"items.node": "node"})
