"""`Fleet`: the routes of the fleet: report what a box serves, and see what boxes serve.

Invariants
- As in api.py: it sends wire requests and answers wire answers, nothing else.

Example
    >>> Fleet(registry).boxes(base="smollm2").convergence[0].serving
    19
"""

from __future__ import annotations

from urllib.parse import quote

from registry import names
from registry.api.fleet import BoxReport, FleetBoxes, Leased
from registry.client.core import Versions
from registry.client.responses import parsed


class Fleet:
    def __init__(self, registry: Versions) -> None:
        self._connection = registry.connection

    def report(self, box: str, engine: str, report: BoxReport) -> Leased:
        """Everything that this engine on this box holds and serves; begins the lease anew."""
        path = f"/fleet/boxes/{quote(names.box_name(box), safe='')}/{quote(names.box_name(engine), safe='')}"
        return parsed(self._connection.send("PUT", path, json=report.model_dump(mode="json")), Leased)

    def boxes(
        self, *, base: str = "", alias: str = "", box: str = "", adapter: str = "", cursor: str = ""
    ) -> FleetBoxes:
        """One page of boxes; the first has the convergence of all."""
        asked = {"base": base, "alias": alias, "box": box, "adapter": adapter, "cursor": cursor}
        return parsed(self._connection.send("GET", "/fleet/boxes", query=asked), FleetBoxes)

    def every(self, *, base: str = "", alias: str = "", box: str = "", adapter: str = "") -> FleetBoxes:
        """All pages as one."""
        first = page = self.boxes(base=base, alias=alias, box=box, adapter=adapter)
        items = [*first.items]
        while page.next_cursor:
            page = self.boxes(base=base, alias=alias, box=box, adapter=adapter, cursor=page.next_cursor)
            items += page.items
        return FleetBoxes(items=items, convergence=first.convergence)
