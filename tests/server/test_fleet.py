"""The fleet: reports, leases that keep bytes, who is told of what still runs, and who sees which node."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from registry.api.access import NamespaceSet
from registry.api.serving import FleetNodes, NodeReport, SlotReport, SlotState
from registry.client.audit import Audit
from registry.digest import Digest
from registry.errors import Invalid, TooLarge
from registry.server.database import db
from registry.server.database.models.serving import FleetBlobRow, FleetNodeRow, FleetSlotRow
from registry.server.promotion import deletion
from registry.server.serving import reports
from tests.harness import Harness, rows
from tests.maintenance import collect


class Nodes:
    """Nodes of one token that report over the API."""

    def __init__(self, harness: Harness, namespaces: tuple[str, ...] = ("*",)) -> None:
        self.harness, self.fleet = harness, harness.client(harness.issue("pull", namespaces=namespaces)[1])

    def slot(self, ref: str, state: str = "serving", **how: Any) -> SlotReport:
        version = self.harness.admin.version(ref)
        served = f"{version.name.replace('/', '-')}-v{version.number}"
        return SlotReport(adapter=version.name, digest=version.digest, served_name=served, state=state, **how)

    def says(self, node: str, *slots: SlotReport, **how: Any) -> list[str]:
        report = NodeReport(base="tiny-llama", alias="canary", slots=list(slots), **how)
        return self.fleet.report_node(node, "vllm-8000", report).unknown


@pytest.fixture
def nodes(harness: Harness) -> Nodes:
    harness.add_base()
    harness.push("acme/support")
    harness.admin.promote("acme/support", "canary", "1", generation=0)
    return Nodes(harness)


def fleet_nodes(harness: Harness, secret: str = "", **filters: str) -> FleetNodes:
    return harness.client(secret or harness.secret).all_nodes(**filters)


def fleet_events(harness: Harness) -> list[str]:
    return [f"{e.action} {e.object} {e.detail['node']}" for e in Audit(harness.admin).events() if "node" in e.detail]


def expire_leases(harness: Harness, by: timedelta = timedelta(0)) -> None:
    """All leases end, as time would end them."""
    with harness.session(write=True) as session:
        for row in rows(session, FleetNodeRow):
            row.expires_at = db.now() - by
            session.add(row)


def test_a_report_is_shown_with_the_version_that_the_alias_points_at(harness: Harness, nodes: Nodes) -> None:
    assert nodes.says("gpu-1", nodes.slot("acme/support@1", verified=True), profile="vllm==0.33.0") == []
    assert nodes.says("gpu-2") == []
    harness.push("acme/support")
    harness.admin.promote("acme/support", "canary", "2", generation=1)
    nodes.says("gpu-3", nodes.slot("acme/support@1", "draining"), nodes.slot("acme/support@2"))
    fleet = fleet_nodes(harness)
    by_node = {(view.node, slot.number): slot for view in fleet.items for slot in view.slots}
    assert {key: (slot.state, slot.desired_number) for key, slot in by_node.items()} == {
        ("gpu-1", 1): ("serving", 2), ("gpu-2", None): ("absent", 2),
        ("gpu-3", 1): ("draining", 2), ("gpu-3", 2): ("serving", 2),
    }  # fmt: skip
    assert [(c.adapter, c.number, c.serving, c.nodes) for c in fleet.convergence] == [("acme/support", 2, 1, 3)]
    assert by_node["gpu-1", 1].verified
    assert all(view.live for view in fleet.items)
    assert [view.node for view in fleet_nodes(harness, adapter="acme/none").items] == ["gpu-1", "gpu-2", "gpu-3"], (
        "my own nodes"
    )
    assert [view.node for view in fleet_nodes(harness, node="gpu-2").items] == ["gpu-2"]
    expire_leases(harness)
    assert (fleet_nodes(harness).convergence, {view.live for view in fleet_nodes(harness).items}) == ([], {False})


def test_an_unchanged_report_writes_one_row_and_no_event(harness: Harness, nodes: Nodes) -> None:
    slot = nodes.slot("acme/support@1")
    nodes.says("gpu-1", slot)
    before = fleet_nodes(harness).items[0]
    with harness.statements() as sent:
        nodes.says("gpu-1", slot)
    assert [s.split()[0] for s in sent if "fleet" in s] == ["SELECT", "UPDATE"]
    after = fleet_nodes(harness).items[0]
    assert after.reported_at > before.reported_at
    assert after.slots == before.slots
    assert fleet_events(harness) == ["version.serve acme/support@1 gpu-1"]


def test_starting_and_stopping_to_serve_a_version_are_events(harness: Harness, nodes: Nodes) -> None:
    harness.push("acme/support")
    first, two = nodes.slot("acme/support@1"), nodes.slot("acme/support@2")
    nodes.says("gpu-1", first, two.model_copy(update={"state": SlotState.LOADING}))
    nodes.says("gpu-1", first.model_copy(update={"state": SlotState.DRAINING}), two)
    nodes.says("gpu-1", two)
    assert fleet_events(harness) == [
        "version.serve acme/support@1 gpu-1", "version.unserve acme/support@1 gpu-1",
        "version.serve acme/support@2 gpu-1",
    ]  # fmt: skip


def test_a_lease_keeps_the_bytes_of_a_deleted_adapter_until_it_ends(stored_harness: Harness) -> None:
    stored_harness.push("acme/support")
    nodes = Nodes(stored_harness)
    slot, failed = nodes.slot("acme/support@1"), nodes.slot("acme/support@1", "failed")
    nodes.says("gpu-1", slot)
    gone = stored_harness.admin.delete_adapter("acme/support", "gone", force=True)
    deletion.purge_expired(stored_harness.engine, timedelta(0))
    assert [(on.node, on.number, on.state) for on in gone.served_on] == [("gpu-1", 1, "serving")]
    assert collect(stored_harness).blobs_deleted == 1, "the manifest, which no engine reads"
    assert nodes.says("gpu-1", slot) == []
    assert nodes.says("gpu-1", slot, lease_seconds=90) == [], "it goes on serving what is not here any more"
    shown = fleet_nodes(stored_harness).items[0].slots
    assert [(s.adapter, s.number, s.desired_number) for s in shown] == [("acme/support", 1, None)]
    assert collect(stored_harness).blobs_deleted == 0
    expire_leases(stored_harness)
    assert collect(stored_harness).blobs_deleted > 0
    assert nodes.says("gpu-1", failed) == []
    expire_leases(stored_harness, by=timedelta(days=2))
    collect(stored_harness)
    with stored_harness.session() as session:
        assert [rows(session, table) for table in (FleetNodeRow, FleetSlotRow, FleetBlobRow)] == [[], [], []]
    assert nodes.says("gpu-1", slot) == [], "its number is known for ever"


def test_withdrawing_a_version_lists_the_nodes_that_serve_it(harness: Harness, nodes: Nodes) -> None:
    nodes.says("gpu-1", nodes.slot("acme/support@1"))
    nodes.says("gpu-2", nodes.slot("acme/support@1", "refused"))
    assert [on.node for on in harness.admin.quarantine("acme/support@1", "an alarm").served_on] == ["gpu-1"]
    assert [slot.desired_number for slot in fleet_nodes(harness, node="gpu-1").items[0].slots] == [None]
    harness.admin.unquarantine("acme/support@1", "a false one")
    expire_leases(harness)
    assert harness.admin.yank("acme/support@1", "bad data").served_on == []
    nodes.says("gpu-1", nodes.slot("acme/support@1"), lease_seconds=61)
    assert [on.engine for on in harness.admin.yank("acme/support@1", "bad data").served_on] == ["vllm-8000"]


def test_tokens_see_and_report_only_within_their_rights(harness: Harness, nodes: Nodes) -> None:
    harness.push("bolt/sales")
    harness.admin.promote("bolt/sales", "canary", "1", generation=0)
    nodes.says("gpu-1", nodes.slot("acme/support@1"), nodes.slot("bolt/sales@1"))
    nodes.says("gpu-2", nodes.slot("bolt/sales@1"))
    nodes.says("gpu-3")
    _, acme = harness.issue("pull", namespaces=["acme"])
    fleet = fleet_nodes(harness, acme)
    shown = [(view.node, slot.adapter, slot.state) for view in fleet.items for slot in view.slots]
    assert shown == [(f"gpu-{n}", "acme/support", state) for n, state in ((1, "serving"), (2, "absent"), (3, "absent"))]
    assert [(c.adapter, c.serving, c.nodes) for c in fleet.convergence] == [("acme/support", 1, 3)]
    _, other = harness.issue("pull", namespaces=["other"])
    assert fleet_nodes(harness, other) == FleetNodes(items=[])
    narrow = Nodes(harness, ("bolt",))
    assert narrow.says("gpu-1", nodes.slot("acme/support@1"), nodes.slot("bolt/sales@1")) == ["acme-support-v1"]
    assert len(fleet_nodes(harness, node="gpu-1").items) == 2, "another token's node of the same name is another node"
    assert [c.nodes for c in fleet_nodes(harness).convergence] == [3, 4]


def test_a_public_namespace_gives_no_lease_in_it(harness: Harness, nodes: Nodes) -> None:
    harness.admin.create_namespace("open", owner="user:ann")
    harness.admin.change_namespace("open", NamespaceSet(public=True))
    harness.push("open/art")
    outsider = Nodes(harness, ("elsewhere",))
    assert outsider.says("mine", nodes.slot("open/art@1")) == ["open-art-v1"]
    assert harness.admin.quarantine("open/art@1", "an alarm").served_on == []


def test_nodes_that_load_on_demand_are_shown_and_not_counted(harness: Harness, nodes: Nodes) -> None:
    nodes.says("plugin", nodes.slot("acme/support@1"), on_demand=True)
    nodes.says("idle", on_demand=True)
    fleet = fleet_nodes(harness)
    assert [(view.node, len(view.slots)) for view in fleet.items] == [("plugin", 1), ("idle", 0)]
    assert fleet.convergence == []


def test_invalid_reports_are_rejected_with_a_reason(
    harness: Harness, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Invalid, match="node or engine"):
        nodes.says("../etc")
    slot = nodes.slot("acme/support@1")
    with pytest.raises(Invalid, match="is not 'namespace/name'"):
        nodes.says("gpu-1", slot.model_copy(update={"adapter": "../../etc"}))
    zero = Digest("sha256:" + "0" * 64)
    assert nodes.says("gpu-1", slot.model_copy(update={"digest": zero}), slot) == [slot.served_name]
    monkeypatch.setattr(reports, "NODES_LIMIT", 1)
    with pytest.raises(TooLarge, match="has 1 nodes already"):
        nodes.says("gpu-2")
    with pytest.raises(Invalid, match="cursor"):
        harness.admin.nodes(cursor="x")


def test_pages_hold_at_most_limit_nodes_and_all_of_them_together(harness: Harness, nodes: Nodes) -> None:
    for number in range(7):
        nodes.says(f"gpu-{number}", nodes.slot("acme/support@1"))
    first = harness.admin.connection.send("GET", "/fleet/nodes", query={"limit": 3}).json()
    assert [len(first["items"]), bool(first["next_cursor"]), first["convergence"][0]["nodes"]] == [3, True, 7]
    second = harness.admin.connection.send("GET", "/fleet/nodes", query={"limit": 3, "cursor": first["next_cursor"]})
    assert (len(second.json()["items"]), second.json()["convergence"]) == (3, [])
