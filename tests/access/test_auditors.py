"""The scopes `audit` and `metrics`: what an auditor and a scraper may do, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from registry.client.audit import Audit, export_log
from registry.errors import Denied, NotFound
from tests.access.tenants import Tenants
from tests.harness import Harness

pytestmark = pytest.mark.security


@pytest.fixture
def tenants(harness: Harness) -> Tenants:
    return Tenants(harness)


def test_an_auditor_reads_every_event_and_exports_the_log_but_changes_nothing(tenants: Tenants, tmp_path: Path) -> None:
    admin = tenants.harness.admin
    auditor = tenants.harness.actor("audit")
    every = [event.seq for event in Audit(admin).events()]
    assert [event.seq for event in Audit(auditor).events()] == every
    assert export_log(Audit(auditor), tmp_path / "log").size >= len(every)
    with pytest.raises(Denied):
        auditor.create_namespace("more")
    with pytest.raises((Denied, NotFound)):
        auditor.grant_role("acme", "owner@acme", "owner")


def test_an_auditor_of_one_namespace_reads_its_events_alone(tenants: Tenants, tmp_path: Path) -> None:
    admin = tenants.harness.admin
    auditor = tenants.harness.actor("audit", namespaces=["acme"])
    about_bases = {event.seq for event in Audit(admin).events() if event.action.startswith("base.")}
    own = {event.seq for event in Audit(admin).events() if event.namespace == "acme"}
    assert {event.seq for event in Audit(auditor).events()} == own | about_bases
    with pytest.raises(Denied, match="'audit' in all namespaces"):
        export_log(Audit(auditor), tmp_path / "log")


def test_the_role_auditor_gives_the_events_of_its_namespace(tenants: Tenants) -> None:
    admin = tenants.harness.admin
    admin.grant_role("acme", "ann@audit", "auditor")
    actions = {event.action for event in Audit(tenants.client("ann@audit")).events() if event.namespace == "acme"}
    assert "namespace.grant" in actions


def test_a_scraper_reads_metrics_and_nothing_else(tenants: Tenants) -> None:
    scraper = tenants.harness.actor("metrics")
    assert b"registry_requests_total" in scraper.connection.send("GET", "/metrics").content
    requests: tuple[Callable[[], object], ...] = (
        scraper.adapters,
        lambda: scraper.resolve("acme/support"),
        lambda: list(Audit(scraper).events()),
        lambda: scraper.bases(),
    )
    for request in requests:
        with pytest.raises(Denied):
            request()
    assert [token.name for token in scraper.tokens().items] == ["somebody"], "its own, which it may revoke"
    for scope in ("pull", "audit", "push"):
        with pytest.raises(Denied):
            tenants.harness.actor(scope).connection.send("GET", "/metrics")
