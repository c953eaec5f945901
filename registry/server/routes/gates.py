"""Routes of gates, approvals and quarantine.

Invariants
- A gate is set for a namespace or for one adapter; `GET …/versions/{selector}/gates/{alias}` moves nothing.

Example
    PUT /api/v1/namespaces/acme/gates/prod {"gate": {"requires": ["fits", "acts"], "approvals": 2}}
"""

from __future__ import annotations

from fastapi import APIRouter

from registry.server import catalog, gates, withdrawal
from registry.server.routes.adapters import ADAPTER, VERSION
from registry.server.routes.deps import Admin, NameDep, Promoter, Puller, SelectorDep, SessionDep
from registry.server.routes.namespaces import NAMESPACE
from registry.server.routes.once import OnceRoute
from registry.wire import VersionView
from registry.wire.gates import (
    ApprovalList,
    ApprovalView,
    ApproveRequest,
    GateCheck,
    GateList,
    GateSet,
    GateView,
    QuarantineRequest,
)

router = APIRouter(tags=["gates"], route_class=OnceRoute)
GATE = "/gates/{alias}"


@router.get(NAMESPACE + "/gates")
def list_namespace_gates(session: SessionDep, actor: Puller, namespace: str) -> GateList:
    return gates.every(session, actor, namespace)


@router.get(NAMESPACE + GATE)
def show_namespace_gate(session: SessionDep, actor: Puller, namespace: str, alias: str) -> GateView:
    return gates.show(session, actor, namespace, alias)


@router.put(NAMESPACE + GATE)
def set_namespace_gate(session: SessionDep, actor: Admin, namespace: str, alias: str, request: GateSet) -> GateView:
    return gates.put(session, actor, namespace, alias, request.gate)


@router.delete(NAMESPACE + GATE)
def remove_namespace_gate(session: SessionDep, actor: Admin, namespace: str, alias: str) -> GateView:
    return gates.put(session, actor, namespace, alias, None)


@router.get(ADAPTER + "/gates")
def list_gates(session: SessionDep, actor: Puller, name: NameDep) -> GateList:
    return gates.every(session, actor, name)


@router.get(ADAPTER + GATE)
def show_gate(session: SessionDep, actor: Puller, name: NameDep, alias: str) -> GateView:
    return gates.show(session, actor, name, alias)


@router.put(ADAPTER + GATE)
def set_gate(session: SessionDep, actor: Admin, name: NameDep, alias: str, request: GateSet) -> GateView:
    return gates.put(session, actor, name, alias, request.gate)


@router.delete(ADAPTER + GATE)
def remove_gate(session: SessionDep, actor: Admin, name: NameDep, alias: str) -> GateView:
    return gates.put(session, actor, name, alias, None)


@router.get(VERSION + GATE)
def check_gate(session: SessionDep, actor: Puller, name: NameDep, selector: SelectorDep, alias: str) -> GateCheck:
    return gates.check(session, actor, name, selector, alias)


# ------------------------------------------------------------------ one version
@router.get(VERSION + "/approvals")
def list_approvals(session: SessionDep, actor: Puller, name: NameDep, selector: SelectorDep) -> ApprovalList:
    return gates.approvals(session, actor, name, selector)


@router.post(VERSION + "/approvals")
def approve(
    session: SessionDep, actor: Promoter, name: NameDep, selector: SelectorDep, request: ApproveRequest
) -> ApprovalView:
    return gates.approve(session, actor, name, selector, request.alias, request.comment)


@router.post(VERSION + "/quarantine")
def quarantine(
    session: SessionDep, actor: Promoter, name: NameDep, selector: SelectorDep, request: QuarantineRequest
) -> VersionView:
    actor.demand("promote", name)
    version = catalog.find(session, actor, name, selector)
    return withdrawal.quarantine(session, actor, name, version, reason=request.reason)


@router.post(VERSION + "/release")
def release(
    session: SessionDep, actor: Admin, name: NameDep, selector: SelectorDep, request: QuarantineRequest
) -> VersionView:
    actor.demand("admin", name)
    version = catalog.find(session, actor, name, selector)
    return withdrawal.release(session, actor, name, version, reason=request.reason)
