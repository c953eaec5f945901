"""Routes of gates, approvals and quarantine.

Invariants
- A gate is set for a namespace or for one adapter; `GET …/versions/{selector}/gates/{alias}` moves nothing.
"""

from __future__ import annotations

from fastapi import Depends

from registry.api.aliases import WithdrawRequest
from registry.api.catalog import VersionView
from registry.api.gates import ApprovalList, ApprovalView, ApproveRequest, GateCheck, GateList, GateSet, GateView
from registry.names import AdapterName
from registry.roles import Scope
from registry.server.catalog import versions
from registry.server.http import routing
from registry.server.http.dependencies import (
    Admin,
    NameDep,
    Promoter,
    Puller,
    SelectorDep,
    SessionDep,
    adapter_name,
    inline,
    namespace_name,
)
from registry.server.promotion import gates, withdraw
from registry.server.routes.adapters import ADAPTER, VERSION
from registry.server.routes.namespaces import NAMESPACE

router = routing.create_router("gates")
GATE = "/gates/{alias}"
Place = AdapterName | str


# ------------------------------------------------------------------ of a namespace, and of an adapter
for _kind, _path, _place in (
    ("namespace", NAMESPACE, Depends(inline(namespace_name))),
    ("adapter", ADAPTER, Depends(inline(adapter_name))),
):
    # The places come as defaults: an annotation is read where it cannot see what this loop has in its hands.

    @router.get(_path + "/gates", operation_id=f"list_{_kind}_gates")
    def list_gates(session: SessionDep, actor: Puller, where: Place = _place) -> GateList:
        """List the gates set here."""
        return gates.list_gates(session, actor, where)

    @router.get(_path + GATE, operation_id=f"show_{_kind}_gate")
    def show_gate(session: SessionDep, actor: Puller, alias: str, where: Place = _place) -> GateView:
        """Show the gate in force for an alias."""
        return gates.show_gate(session, actor, where, alias)

    @router.put(_path + GATE, operation_id=f"set_{_kind}_gate")
    def set_gate(session: SessionDep, actor: Admin, alias: str, request: GateSet, where: Place = _place) -> GateView:
        """Set the gate of an alias."""
        return gates.set_gate(session, actor, where, alias, request.gate)

    @router.delete(_path + GATE, operation_id=f"remove_{_kind}_gate")
    def remove_gate(session: SessionDep, actor: Admin, alias: str, where: Place = _place) -> GateView:
        """Remove the gate set here. The answer is the gate then in force."""
        return gates.set_gate(session, actor, where, alias, None)


# ------------------------------------------------------------------ one version
@router.get(VERSION + GATE)
def check_gate(session: SessionDep, actor: Puller, name: NameDep, selector: SelectorDep, alias: str) -> GateCheck:
    """Check what stands between a version and an alias."""
    return gates.check_gate(session, actor, name, selector, alias)


@router.get(VERSION + "/approvals")
def list_approvals(session: SessionDep, actor: Puller, name: NameDep, selector: SelectorDep) -> ApprovalList:
    """List the approvals of a version."""
    return gates.list_approvals(session, actor, name, selector)


@router.post(VERSION + "/approvals")
def approve_version(
    session: SessionDep, actor: Promoter, name: NameDep, selector: SelectorDep, request: ApproveRequest
) -> ApprovalView:
    """Approve a version for an alias."""
    return gates.approve(session, actor, name, selector, request.alias, request.comment)


@router.post(VERSION + "/quarantine")
def quarantine_version(
    session: SessionDep, actor: Promoter, name: NameDep, selector: SelectorDep, request: WithdrawRequest
) -> VersionView:
    """Quarantine a version: nobody can read its files."""
    actor.require(Scope.PROMOTE, name)
    version = versions.find(session, actor, name, selector)
    return withdraw.quarantine(session, actor, name, version, reason=request.reason)


@router.post(VERSION + "/unquarantine")
def unquarantine_version(
    session: SessionDep, actor: Admin, name: NameDep, selector: SelectorDep, request: WithdrawRequest
) -> VersionView:
    """End a quarantine."""
    actor.require(Scope.ADMIN, name)
    version = versions.find(session, actor, name, selector)
    return withdraw.unquarantine(session, actor, name, version, reason=request.reason)
