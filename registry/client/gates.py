"""`Gates`: one method for each route of gates, approvals and quarantine.

Invariants
- As in api.py: it sends wire requests and answers wire answers, nothing else.
- A place with a slash is an adapter, one without is a namespace.
"""

from __future__ import annotations

from urllib.parse import quote

from registry import names
from registry.api import Request
from registry.api.aliases import WithdrawRequest
from registry.api.catalog import VersionView
from registry.api.gates import ApprovalList, ApprovalView, ApproveRequest, GateCheck, GateList, GateSet, GateView
from registry.client.core import Versions
from registry.client.responses import Shape, parsed
from registry.evaluation.gates import Gate
from registry.names import AdapterName, Ref


class Gates:
    def __init__(self, registry: Versions) -> None:
        self._connection = registry.connection

    def every(self, scope: str) -> GateList:
        return self._send("GET", _gates(scope), GateList)

    def show(self, scope: str, alias: str) -> GateView:
        return self._send("GET", f"{_gates(scope)}/{names.alias(alias)}", GateView)

    def put(self, scope: str, alias: str, gate: Gate) -> GateView:
        return self._send("PUT", f"{_gates(scope)}/{names.alias(alias)}", GateView, GateSet(gate=gate))

    def remove(self, scope: str, alias: str) -> GateView:
        return self._send("DELETE", f"{_gates(scope)}/{names.alias(alias)}", GateView)

    def check(self, ref: Ref | str, alias: str) -> GateCheck:
        """What would stand between a version and a channel now."""
        return self._send("GET", f"{_version(ref)}/gates/{names.alias(alias)}", GateCheck)

    def approve(self, ref: Ref | str, alias: str, comment: str = "") -> ApprovalView:
        request = ApproveRequest(alias=alias, comment=comment)
        return self._send("POST", f"{_version(ref)}/approvals", ApprovalView, request)

    def approvals(self, ref: Ref | str) -> ApprovalList:
        return self._send("GET", f"{_version(ref)}/approvals", ApprovalList)

    def quarantine(self, ref: Ref | str, reason: str) -> VersionView:
        return self._send("POST", f"{_version(ref)}/quarantine", VersionView, WithdrawRequest(reason=reason))

    def unquarantine(self, ref: Ref | str, reason: str) -> VersionView:
        return self._send("POST", f"{_version(ref)}/unquarantine", VersionView, WithdrawRequest(reason=reason))

    def _send(self, method: str, path: str, shape: type[Shape], request: Request | None = None) -> Shape:
        body = request.model_dump(mode="json") if request is not None else None
        return parsed(self._connection.send(method, path, json=body), shape)


def _gates(scope: str) -> str:
    if "/" in scope:
        return f"/adapters/{AdapterName.parse(scope)}/gates"
    return f"/namespaces/{quote(names.namespace(scope), safe='')}/gates"


def _version(ref: Ref | str) -> str:
    parsed_ref = ref if isinstance(ref, Ref) else Ref.parse(ref)
    return f"/adapters/{parsed_ref.name}/versions/{parsed_ref.selector}"
