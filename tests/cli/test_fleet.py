"""`adapter fleet`, and the nodes that commands name when they withdraw a version."""

from __future__ import annotations

from cli.console import session
from registry.api.serving import NodeReport, SlotReport
from registry.client.registry import Registry
from tests.cli.runner import CommandRunner


def test_fleet_shows_nodes_and_convergence(cli: CommandRunner) -> None:
    cli.add_base()
    cli.push("acme/support", "--alias", "canary")
    assert "no node has reported yet" in cli("fleet").stdout
    digest = cli("show", "acme/support", "--json").json["digest"]
    with session.embedded(Registry) as registry:
        for node, state, reason in (("gpu-1", "serving", ""), ("gpu-2", "failed", "it answers like base")):
            slot = SlotReport(
                adapter="acme/support", digest=digest, served_name="acme-support-v1", state=state, reason=reason
            )
            registry.report_node(node, "vllm-8000", NodeReport(base="tiny-llama", alias="canary", slots=[slot]))
    shown = cli("fleet").stdout
    assert "serving, unverified" in shown
    assert "gpu-2: acme/support: it answers like base" in shown
    assert "1 of 2 nodes serve acme/support@1" in shown
    for words in (("--base", "other"), ("--adapter", "acme/other")):
        assert "no node matches" in cli("fleet", *words).stdout
    nodes = cli("fleet", "--node", "gpu-1", "--adapter", "acme/support", "--json").json
    assert [slot["state"] for view in nodes["items"] for slot in view["slots"]] == ["serving"]
    assert "still serving on gpu-1, engine vllm-8000" in cli("quarantine", "acme/support@1", "--reason", "x").stdout
    cli("quarantine", "--undo", "acme/support@1", "--reason", "x")
    assert "still serving on gpu-1" in cli("yank", "acme/support@1", "--reason", "x").stdout
    assert "still serving on gpu-1" in cli("delete", "acme/support", "--yes", "--force", "--reason", "gone").stdout
