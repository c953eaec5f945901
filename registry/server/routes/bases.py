"""Routes of bases: add, list, show; which weights they have, and how they are related.

Invariants
- Whoever may push may add a base; nobody may change one, but for the thresholds that its adapters are judged by.
- Which weights a base has, a worker may tell too, once.

Example
    GET /api/v1/bases/meta-llama/Llama-3.1-8B
"""

from __future__ import annotations

from fastapi import Response

from registry.api import BaseList, BaseView
from registry.api.bases import BaseAdd, IdentityGiven, ThresholdsGiven
from registry.bases.similarity import Likeness
from registry.server.catalog import bases
from registry.server.routes import idempotent
from registry.server.routes.deps import Admin, Puller, Pusher, SessionDep, Worker

router = idempotent.router("bases")


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


@router.put("/bases/{base:path}/identity")
def identify_base(session: SessionDep, actor: Worker, base: str, request: IdentityGiven) -> BaseView:
    """Keep the identity of a base that has none; the same one again changes nothing, another one is refused."""
    return bases.identify(session, actor, base, request.identity)


@router.put("/bases/{base:path}/thresholds")
def set_thresholds(session: SessionDep, actor: Admin, base: str, request: ThresholdsGiven) -> BaseView:
    """What smoke tests on this base take instead of the defaults, for administrators of all namespaces."""
    actor.require_everywhere("admin")
    return bases.judge_by(session, actor, base, request.thresholds)


@router.post("/bases/{base:path}/likeness")
def compare_base(session: SessionDep, _actor: Puller, base: str, request: IdentityGiven) -> Likeness:
    """How weights that somebody has are related to those of the base. Nothing is kept."""
    return bases.likeness(session, base, request.identity)
