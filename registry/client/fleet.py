"""`Fleet`: the routes of the fleet: report what a node serves, and see what nodes serve.

Invariants
- As in api.py: it sends wire requests and answers wire answers, nothing else.
"""

from __future__ import annotations

from urllib.parse import quote

from registry import names
from registry.api.fleet import FleetNodes, NodeReport, ReportAccepted
from registry.client.core import Versions
from registry.client.responses import parsed


class Fleet:
    def __init__(self, registry: Versions) -> None:
        self._connection = registry.connection

    def report(self, node: str, engine: str, report: NodeReport) -> ReportAccepted:
        """Everything that this engine on this node holds and serves; begins the lease anew."""
        path = f"/fleet/nodes/{quote(names.node_name(node), safe='')}/{quote(names.node_name(engine), safe='')}"
        return parsed(self._connection.send("PUT", path, json=report.model_dump(mode="json")), ReportAccepted)

    def nodes(
        self, *, base: str = "", alias: str = "", node: str = "", adapter: str = "", cursor: str = ""
    ) -> FleetNodes:
        """One page of nodes; the first has the convergence of all."""
        params = {"base": base, "alias": alias, "node": node, "adapter": adapter, "cursor": cursor}
        return parsed(self._connection.send("GET", "/fleet/nodes", query=params), FleetNodes)

    def every(self, *, base: str = "", alias: str = "", node: str = "", adapter: str = "") -> FleetNodes:
        """All pages as one."""
        first = page = self.nodes(base=base, alias=alias, node=node, adapter=adapter)
        items = [*first.items]
        while page.next_cursor:
            page = self.nodes(base=base, alias=alias, node=node, adapter=adapter, cursor=page.next_cursor)
            items += page.items
        return FleetNodes(items=items, convergence=first.convergence)
