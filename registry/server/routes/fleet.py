"""Routes of the fleet: a box reports what it holds and serves; who may see it looks.

Invariants
- Reporting takes the right to pull, which every serving box has; what it may report is bounded in fleet/.

Example
    PUT /api/v1/fleet/boxes/gpu-7/vllm-8000 {"base": "smollm2", "alias": "prod", "slots": []}
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Query

from registry.server import fleet
from registry.server.fleet import view
from registry.server.routes import once
from registry.server.routes.deps import PAGE, CursorDep, LimitDep, Puller, SessionDep
from registry.wire.fleet import BoxReport, FleetBoxes, Leased

router = once.router("serving")
Word = Annotated[str, Query(max_length=300)]


@router.put("/fleet/boxes/{box}/{engine}")
def report_box(session: SessionDep, actor: Puller, box: str, engine: str, report: BoxReport) -> Leased:
    return fleet.report(session, actor, box, engine, report)


@router.get("/fleet/boxes")
def list_boxes(
    session: SessionDep,
    actor: Puller,
    base: Word = "",
    alias: Word = "",
    box: Word = "",
    adapter: Word = "",
    cursor: CursorDep = "",
    limit: LimitDep = PAGE,
) -> FleetBoxes:
    asked = view.Asked(base=base, alias=alias, box=box, adapter=adapter)
    return view.boxes(session, actor, asked, cursor=cursor, limit=limit)
