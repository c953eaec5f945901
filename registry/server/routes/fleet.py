"""Routes of the fleet: a box reports what it holds and serves; who may see it looks.

Invariants
- Reporting takes the right to pull, which every serving box has; what it may report is bounded in fleet/.

Example
    PUT /api/v1/fleet/boxes/gpu-7/vllm-8000 {"base": "smollm2", "alias": "prod", "slots": []}
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Query

from registry.api.fleet import BoxReport, FleetBoxes, Leased
from registry.server.routes import idempotent
from registry.server.routes.deps import PAGE, CursorDep, LimitDep, Puller, SessionDep
from registry.server.serving import reports, status

router = idempotent.router("serving")
Word = Annotated[str, Query(max_length=300)]


@router.put("/fleet/boxes/{box}/{engine}")
def report_box(session: SessionDep, actor: Puller, box: str, engine: str, report: BoxReport) -> Leased:
    return reports.report(session, actor, box, engine, report)


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
    asked = status.Asked(base=base, alias=alias, box=box, adapter=adapter)
    return status.boxes(session, actor, asked, cursor=cursor, limit=limit)
