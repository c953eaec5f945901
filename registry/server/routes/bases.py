"""Routes of bases: add, list, show.

Invariants
- Whoever may push may add a base; nobody may change one.

Example
    GET /api/v1/bases/meta-llama/Llama-3.1-8B
"""

from __future__ import annotations

from fastapi import APIRouter, Response

from registry.server import bases
from registry.server.routes.deps import Puller, Pusher, SessionDep
from registry.server.routes.once import OnceRoute
from registry.wire import BaseAdd, BaseList, BaseView

router = APIRouter(tags=["bases"], route_class=OnceRoute)


@router.post("/bases", status_code=201)
def add_base(session: SessionDep, actor: Pusher, request: BaseAdd, response: Response) -> BaseView:
    """201 for a new base, 200 for one that is there with the same facts."""
    view, created = bases.add(session, actor, request)
    response.status_code = 201 if created else 200
    return view


@router.get("/bases")
def list_bases(session: SessionDep, actor: Puller) -> BaseList:
    return bases.every(session, actor)


@router.get("/bases/{base:path}")
def show_base(session: SessionDep, actor: Puller, base: str) -> BaseView:
    return bases.show(session, actor, base)
