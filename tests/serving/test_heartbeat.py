"""What a node reports: to the registry, with a lease, and to Prometheus; and what vLLM's plugin reports."""

from __future__ import annotations

import asyncio
import re
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from registry.client.registry import Registry
from registry.errors import Invalid, Unavailable
from registry.serving import vllm
from registry.serving.agent import heartbeat, metrics
from registry.serving.agent.metrics import COUNTERS, GAUGES, PREFIX
from tests.harness import URL, Harness
from tests.serving.node import FaultyTransport, Node
from tests.serving.vllm_frontend import LoRARequest


def test_a_report_tells_each_state_of_a_rollout(node: Node) -> None:
    node.push("acme/support")
    node.push("acme/large", node.harness.files(rank=32))
    node.states()
    assert node.reported() == {"acme-support-v1": "serving", "acme-large-v1": "refused"}
    node.push("acme/support")
    node.engine.deaf = True
    node.states()
    assert node.reported() == {"acme-support-v1": "serving", "acme-support-v2": "failed", "acme-large-v1": "refused"}
    node.engine.deaf = False
    node.clock.now += 31
    node.states()
    assert node.reported() == {"acme-support-v1": "draining", "acme-support-v2": "serving", "acme-large-v1": "refused"}
    node.clock.now += 11
    node.states()
    assert node.reported() == {"acme-support-v2": "serving", "acme-large-v1": "refused"}
    view = node.harness.admin.all_nodes(node="gpu-1")
    assert [slot.verified for slot in view.items[0].slots if slot.state == "serving"] == [True]
    assert {(c.adapter, c.serving, c.nodes) for c in view.convergence} == {("acme/large", 0, 1), ("acme/support", 1, 1)}


def test_loading_is_reported_while_it_lasts(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.push("acme/support")
    node.agent.fetch()
    reports = []
    load = node.engine.load

    def slowly(name: str, root: str) -> str:
        reports.append(dict(node.reported()))
        return load(name, root)

    monkeypatch.setattr(node.engine, "load", slowly)
    node.agent.step()
    assert reports == [{"acme-support-v1": "loading"}]


def test_the_reporter_speaks_at_a_change_and_to_renew_and_ends_when_told(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "DEBOUNCE_SECONDS", 0.0)
    heard = threading.Semaphore(0)
    telling = node.agent._heartbeat
    assert telling is not None
    report = telling.send

    def reported() -> Any:
        result = report()
        heard.release()
        return result

    monkeypatch.setattr(telling, "send", reported)
    stop = threading.Event()
    running = threading.Thread(target=telling.run, args=(stop,))
    running.start()
    try:
        assert heard.acquire(timeout=60), "it begins with a report"
        node.push("acme/support")
        node.states()
        assert heard.acquire(timeout=60), "a change is told at once"
        monkeypatch.setattr(heartbeat, "RENEW_SECONDS", 0.0)
        node.reconciler.slots.changed.set()
        assert heard.acquire(timeout=60)
        assert heard.acquire(timeout=60), "and a lease is renewed without one"
    finally:
        stop.set()
        node.reconciler.slots.changed.set()
        running.join(60)
    assert not running.is_alive()
    assert node.harness.admin.all_nodes(node="gpu-1").items[0].live


def test_metrics_are_prometheus_text_on_a_port_of_their_own(node: Node) -> None:
    node.push("acme/support")
    node.push("acme/large", node.harness.files(rank=32))
    node.states()
    with metrics.serve({"vllm-8000": node.metrics}, "0") as address:
        text = urllib.request.urlopen(address, timeout=60).read().decode()
        with pytest.raises(urllib.error.HTTPError, match="405"):
            urllib.request.urlopen(address, data=b"", timeout=60)
        port = address.split(":")[2].partition("/")[0]
        with pytest.raises(Unavailable, match="cannot be served"), metrics.serve({}, port):
            pass
    series = re.findall(rf'^{PREFIX}(\w+){{engine="vllm-8000"}} (\S+)$', text, re.MULTILINE)
    values_by_name = {name: float(value) for name, value in series}
    assert values_by_name.keys() == {f"{name}_total" for name in COUNTERS} | set(GAUGES)
    counted = {
        name: values_by_name[name]
        for name in ("passes_total", "pulls_total", "loads_total", "load_checks_total", "desired")
    }
    assert counted == {"passes_total": 1, "pulls_total": 1, "loads_total": 1, "load_checks_total": 1, "desired": 2}
    assert (
        values_by_name["serving"],
        values_by_name["refused"],
        values_by_name["converged"],
        values_by_name["loaded"],
    ) == (1, 1, 0, 1)
    assert int(values_by_name["pulled_bytes_total"]) == node.harness.admin.version("acme/support").size_bytes
    assert len(re.findall(r"^# TYPE", text, re.MULTILINE)) == len(COUNTERS) + len(GAUGES)
    for wrong in ("", "x", "70000", "localhost"):
        with pytest.raises(Invalid, match="HOST"), metrics.serve({}, wrong):
            pass


def test_the_plugin_of_vllm_reports_what_it_gave_away_and_is_not_counted(
    harness: Harness, transport: FaultyTransport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm, "LoRARequest", LoRARequest)
    monkeypatch.setattr(heartbeat.Heartbeat, "run", lambda _self, _stop: None)
    environment = {
        "ADAPTER_REGISTRY": URL, "ADAPTER_TOKEN": harness.issue("pull")[1], "ADAPTER_PLUGIN_DIR": str(tmp_path),
        "ADAPTER_PLUGIN_ENGINE": "vllm==0.33.0,max_lora_rank=16", "ADAPTER_PLUGIN_NODE": "gpu-9",
    }  # fmt: skip
    harness.push("acme/support")
    arguments = ["serve", "tiny-llama", "--port", "8123"]
    resolver = vllm.RegistryResolver(
        environment, arguments, open_registry=lambda url, token: Registry(url, token, transport)
    )
    assert asyncio.run(resolver.resolve_lora("tiny-llama", "acme/support@1")) is not None
    assert asyncio.run(resolver.resolve_lora("tiny-llama", "acme/none")) is None
    telling = resolver.heartbeat("tiny-llama")
    assert telling is not None
    assert telling.send()
    view = harness.admin.all_nodes(node="gpu-9")
    assert [(on.engine, on.on_demand, [s.served_name for s in on.slots]) for on in view.items] == [
        ("vllm-plugin-8123", True, ["acme/support@1"])
    ]
    assert view.convergence == []
    off = vllm.RegistryResolver({**environment, "ADAPTER_PLUGIN_NODE": "off"}, [])
    assert off.heartbeat("tiny-llama") is None
