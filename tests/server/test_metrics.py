"""Metrics of the server: Prometheus text for an administrator, from few statements, without a name in it."""

from __future__ import annotations

import re

import httpx

from registry.api.serving import NodeReport, SlotReport, SlotState
from tests.harness import URL, Harness


def scrape(harness: Harness, secret: str = "") -> httpx.Response:
    headers = {"Authorization": f"Bearer {secret or harness.secret}"}
    harness.transport.settle()  # a request is counted once what follows its response has ended
    return httpx.Client(transport=harness.transport, base_url=URL, headers=headers).get("/api/v1/metrics")


def values(response: httpx.Response) -> dict[str, float]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {name: float(value) for name, value in re.findall(r"^(registry_\S+) (\S+)$", response.text, re.MULTILINE)}


def test_metrics_count_stored_waiting_and_served_objects(harness: Harness) -> None:
    harness.add_base()
    before = values(scrape(harness))
    assert (before["registry_adapters"], before['registry_jobs{state="queued"}']) == (0, 0)
    version = harness.push("acme/support").version
    harness.push("acme/support")
    slot = SlotReport(adapter="acme/support", digest=version.digest, served_name="s", state=SlotState.SERVING)
    harness.admin.report_node("gpu-1", "vllm", NodeReport(base="tiny-llama", alias="prod", slots=[slot]))
    response = scrape(harness)
    after = values(response)
    states = ("jobs", "queued", 2), ("fleet_nodes", "live", 1), ("fleet_slots", "serving", 1)
    assert [after[f'registry_{name}{{state="{state}"}}'] for name, state, _ in states] == [n for *_, n in states]
    assert (after["registry_adapters"], after["registry_versions"]) == (1, 2)
    assert after['registry_fleet_nodes{state="lost"}'] == after["registry_pushes_open"] == 0
    assert after["registry_audit_log_size"] + after["registry_audit_events_waiting"] > 0
    assert after['registry_requests_total{method="GET",status="200"}'] > 0
    labels = 'method="POST",route="/api/v1/pushes/commit"'
    assert after[f"registry_request_seconds_count{{{labels}}}"] == 2
    assert after[f'registry_request_seconds_bucket{{le="+Inf",{labels}}}'] == 2
    assert any(name.startswith('registry_build_info{python="3.') for name in after)
    assert before["registry_job_queue_age_seconds"] == 0 < after["registry_job_queue_age_seconds"]
    scrape(harness, "reg_unknown")
    assert values(scrape(harness))["registry_failed_sign_ins_total"] == 1
    assert "acme" not in response.text
    assert "gpu-1" not in response.text
    typed = re.findall(r"^# TYPE (\S+)", response.text, re.MULTILINE)
    assert len(typed) == len(set(typed)) == len(re.findall(r"^# HELP", response.text, re.MULTILINE))


def test_jobs_that_no_worker_may_get_do_not_age_the_queue(harness: Harness) -> None:
    harness.add_base()
    for number in (1, 2):
        harness.push("acme/support")
        assert values(scrape(harness))["registry_job_queue_age_seconds"] > 0
        withdraw = harness.admin.quarantine if number == 1 else harness.admin.delete_version
        withdraw(f"acme/support@{number}", reason="leaks addresses")
        assert values(scrape(harness))["registry_job_queue_age_seconds"] == 0


def test_metrics_are_for_administrators_and_unknown_methods_share_a_series(harness: Harness) -> None:
    assert scrape(harness, harness.issue("pull")[1]).status_code == 403
    assert scrape(harness, harness.issue("admin", namespaces=["acme"])[1]).status_code == 403
    client = httpx.Client(transport=harness.transport, base_url=URL)
    for word in ("BREW", "GRIND"):
        assert client.request(word, "/api/v1/health").status_code == 405
    assert values(scrape(harness))['registry_requests_total{method="other",status="405"}'] == 2
