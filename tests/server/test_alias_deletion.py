"""Deleting an alias: under compare-and-swap, not below nodes that follow it, with a history that goes on."""

from __future__ import annotations

import httpx
import pytest

from registry.api.serving import NodeReport, SlotReport, SlotState
from registry.client.audit import Audit
from registry.errors import Conflict, Denied, NotFound, Refused
from registry.evaluation.gates import Gate
from registry.names import AdapterName
from registry.server.serving import reports
from tests.harness import URL, Harness
from tests.maintenance import findings

NAME = "acme/support"


@pytest.fixture
def filled_harness(harness: Harness) -> Harness:
    """Two versions; `canary` pointed at the first, then at the second."""
    harness.add_base()
    for number in (1, 2):
        harness.push(NAME)
        harness.admin.promote(NAME, "canary", str(number), generation=number - 1)
    return harness


def test_a_deleted_alias_is_gone_and_its_history_stays(filled_harness: Harness) -> None:
    assert [filled_harness.admin.resolve(f"{NAME}:canary").number for _ in range(2)] == [2, 2], "from memory, too"
    move = filled_harness.admin.delete_alias(NAME, "canary", generation=2, reason="not used")
    assert (move.alias, move.generation, move.from_number, move.number) == ("canary", 3, 2, None)
    with pytest.raises(NotFound) as missing:
        filled_harness.admin.resolve(f"{NAME}:canary")
    assert missing.value.code == "ALIAS_UNKNOWN"
    assert [view.alias for view in filled_harness.admin.aliases(NAME).items] == ["main"]
    assert filled_harness.admin.version(f"{NAME}@2").aliases == ["main"]
    assert filled_harness.admin.desired_state("tiny-llama", "canary").adapters == []
    history = filled_harness.admin.history(NAME, alias="canary").moves
    assert [(entry.generation, entry.number) for entry in history] == [(3, None), (2, 2), (1, 1)]
    [before] = filled_harness.admin.history(NAME, alias="canary", at=history[1].at).moves
    [after] = filled_harness.admin.history(NAME, alias="canary", at=history[0].at).moves
    assert (before.number, after.number) == (2, None)
    [deletion] = Audit(filled_harness.admin).events(object=f"{NAME}:canary", action=["alias.delete"])
    assert deletion.detail == {"from": 2, "generation": 3, "reason": "not used"}
    assert findings(filled_harness) == []


def test_an_alias_that_is_made_again_goes_on_with_the_next_generation(filled_harness: Harness) -> None:
    admin = filled_harness.admin
    admin.delete_alias(NAME, "canary", generation=2)
    for stale in (1, 2):
        with pytest.raises(Conflict, match="at generation 3, not"):
            admin.promote(NAME, "canary", "1", generation=stale)
    assert admin.promote(NAME, "canary", "1", generation=0).generation == 4
    with pytest.raises(NotFound, match="no earlier version"):
        admin.rollback(NAME, "canary")
    assert admin.promote(NAME, "canary", "2", generation=4).generation == 5
    assert admin.rollback(NAME, "canary").number == 1
    admin.delete_alias(NAME, "canary", generation=6)
    assert admin.promote(NAME, "canary", "1", generation=7).generation == 8, "by who has read the history"
    assert findings(filled_harness) == []


def test_an_alias_is_deleted_by_who_may_promote_and_has_seen_it(filled_harness: Harness) -> None:
    admin = filled_harness.admin
    path = f"/api/v1/adapters/{NAME}/aliases/canary"
    client = httpx.Client(transport=filled_harness.transport, base_url=URL)
    signed_in = {"Authorization": f"Bearer {filled_harness.secret}"}
    assert client.delete(path, headers=signed_in).json()["code"] == "PRECONDITION_REQUIRED"
    with pytest.raises(Conflict) as stale:
        admin.delete_alias(NAME, "canary", generation=1)
    assert stale.value.code == "ALIAS_MOVED"
    with pytest.raises(NotFound) as missing:
        admin.delete_alias(NAME, "beta", generation=1)
    assert missing.value.code == "ALIAS_UNKNOWN"
    with pytest.raises(Refused):
        admin.delete_alias(NAME, "main", generation=2)
    with pytest.raises(Denied):
        filled_harness.actor("push", namespaces=["acme"]).delete_alias(NAME, "canary", generation=2)
    filled_harness.actor("promote", namespaces=["acme"]).delete_alias(NAME, "canary", generation=2)
    assert [view.alias for view in admin.aliases(NAME).items] == ["main"]


def test_an_alias_that_nodes_follow_is_deleted_only_by_force(filled_harness: Harness) -> None:
    admin = filled_harness.admin
    digest = admin.version(f"{NAME}@2").digest
    slot = SlotReport(served_name="support", adapter="acme/support", digest=digest, state=SlotState.SERVING)
    for node, alias in (("gpu-1", "canary"), ("gpu-2", "main")):
        admin.report_node(node, "vllm", NodeReport(base="tiny-llama", alias=alias, slots=[slot]))
    with pytest.raises(Conflict, match="1 node serves acme/support by its alias 'canary'") as used:
        admin.delete_alias(NAME, "canary", generation=2)
    assert (used.value.code, [finding.location for finding in used.value.findings]) == ("ALIAS_IN_USE", ["gpu-1"])
    assert admin.alias(NAME, "canary").generation == 2
    assert admin.delete_alias(NAME, "canary", generation=2, reason="moved", force=True).number is None
    with filled_harness.session() as session:
        assert len(reports.find_serving_nodes(session, AdapterName("acme", "support"))) == 2, "they report what they do"


def test_the_gate_and_its_soak_know_of_the_deletion(filled_harness: Harness) -> None:
    admin = filled_harness.admin
    admin.set_gate(NAME, "prod", Gate(soak_in="canary", soak_seconds=3600))
    admin.set_gate(NAME, "canary", Gate(approvals=1))
    admin.delete_alias(NAME, "canary", generation=2)
    assert admin.gate(NAME, "canary").gate.approvals == 1
    with pytest.raises(Refused) as closed:
        admin.promote(NAME, "canary", "1", generation=0)
    assert closed.value.code == "GATE_CLOSED"
    assert admin.check_gate(f"{NAME}@2", "prod").open is False
