"""Every change has exactly one event: each operation that is no read makes some, or is listed as changing nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry.api.operations.table import OPERATIONS
from registry.events import EventType
from tests.access.identity import Provider
from tests.every_call import record
from tests.harness import Harness

NOT_CHANGES = {
    "plan_pushes": "a plan holds bytes and changes nothing that anybody sees",
    "plan_pulls": "it only reads",
    "upload_by_link": "staged bytes are nobody's yet",
    "claim_job": "a lease is a moment's; what comes of it is an event",
    "renew_job": "the same",
    "compare_base": "it only reads",
    "check_adapter": "it only reads",
}


@pytest.fixture
def provider(tmp_path: Path) -> Provider:
    return Provider(tmp_path)


@pytest.fixture
def harness(database_url: str, provider: Provider) -> Iterator[Harness]:
    with Harness(database_url, issuers=provider.settings, engines="vllm==0.33.0") as harness:
        yield harness


def test_each_change_is_told_exactly_once(harness: Harness, provider: Provider) -> None:
    by_operation: dict[str, set[str]] = defaultdict(set)
    for call in record(harness, provider):
        assert len(call.events) == len(set(call.events)), f"{call.name}: one change tells something twice"
        assert not (call.is_repeated and call.events), f"{call.name}: it changes nothing the second time"
        for exchange in call.exchanges:
            by_operation[exchange.row.id].update(call.events)
    changing = {row.id for row in OPERATIONS.values() if row.method not in ("GET", "HEAD")} - set(NOT_CHANGES)
    assert {name for name, events in by_operation.items() if events} == changing
    actions = {event.split()[0] for events in by_operation.values() for event in events}
    assert actions <= set(EventType)
    assert by_operation["report_node"] == {"version.serve acme/support@1"}
    assert {event.split()[0] for event in by_operation["check_store"]} == {"blob.damage", "blob.repair"}
