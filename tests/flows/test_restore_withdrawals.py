"""A restored database is older than the bucket: versions that were withdrawn since stay withdrawn."""

from __future__ import annotations

import pytest
from sqlalchemy import update
from sqlmodel import col

from registry.api.maintenance import ReindexPage, ReindexRequest
from registry.errors import Refused
from registry.server.database.models import VersionRow
from tests.harness import Harness, rows
from tests.maintenance import collect, findings
from tests.snapshot import snapshot


def reindex(harness: Harness, *, dry_run: bool = False) -> ReindexPage:
    return harness.admin.reindex(ReindexRequest(dry_run=dry_run))


def test_withdrawals_and_releases_after_the_backup_are_restored(harness: Harness) -> None:
    harness.add_base()
    for _ in range(5):
        harness.push("acme/support")
    harness.admin.yank("acme/support@2", "a mistake")
    harness.admin.quarantine("acme/support@3", "reported as poisoned")
    harness.admin.promote("acme/support", "canary", "1", generation=0)
    harness.transport.settle()
    collect(harness)
    with harness.session() as session:
        backup = [row.model_dump() for row in rows(session, VersionRow)]
    harness.admin.quarantine("acme/support@1", "reported as poisoned")
    harness.admin.yank("acme/support@2", "it was the other run", undo=True)
    harness.admin.unquarantine("acme/support@3", "a false alarm")
    harness.admin.yank("acme/support@4", "diverged")
    harness.transport.settle()
    collect(harness)
    before = snapshot(harness)
    with harness.session(write=True) as session:
        for row in backup:
            session.connection().execute(update(VersionRow).where(col(VersionRow.id) == row.pop("id")).values(row))
    assert harness.admin.resolve("acme/support:canary").number == 1
    expected = [f"record.withdrawal_unknown acme/support@{number}" for number in (1, 2, 3, 4)]
    assert sorted(findings(harness)) == expected
    assert reindex(harness, dry_run=True).withdrawals == 4
    assert harness.admin.resolve("acme/support:canary").number == 1
    page = reindex(harness)
    assert (page.withdrawals, page.findings) == (4, [])
    with pytest.raises(Refused) as refusal:
        harness.admin.resolve("acme/support:canary")
    assert refusal.value.code == "QUARANTINED"
    assert harness.admin.version("acme/support@4").yank_reason == "diverged"
    assert reindex(harness).withdrawals == 0
    collect(harness)
    assert findings(harness) == []
    assert snapshot(harness)["version"] == before["version"]
