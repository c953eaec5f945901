"""Routes of the fleet: a node reports what it holds and serves; who may see it looks.

Invariants
- Reporting takes the right to pull, which every serving node has; what it may report is bounded in fleet/.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Query

from registry.api.fleet import FleetNodes, NodeReport, ReportAccepted
from registry.server.http import routing
from registry.server.http.dependencies import PAGE, CursorDep, LimitDep, Puller, SessionDep
from registry.server.serving import reports, status

router = routing.create_router("serving")
Word = Annotated[str, Query(max_length=300)]


@router.put("/fleet/nodes/{node}/{engine}")
def report_node(session: SessionDep, actor: Puller, node: str, engine: str, report: NodeReport) -> ReportAccepted:
    """Report what an engine on a node has loaded, and renew its lease."""
    return reports.accept_report(session, actor, node, engine, report)


@router.get("/fleet/nodes")
def list_nodes(
    session: SessionDep,
    actor: Puller,
    base: Word = "",
    alias: Word = "",
    node: Word = "",
    adapter: Word = "",
    cursor: CursorDep = "",
    limit: LimitDep = PAGE,
) -> FleetNodes:
    """List nodes and what they serve."""
    node_filter = status.NodeFilter(base=base, alias=alias, node=node, adapter=adapter)
    return status.nodes(session, actor, node_filter, cursor=cursor, limit=limit)
