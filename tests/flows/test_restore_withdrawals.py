"""A restored database is older than the bucket: versions that were withdrawn since stay withdrawn."""

from __future__ import annotations

import pytest
from sqlalchemy import update
from sqlmodel import col

from registry.api.maintenance import ReindexPage, ReindexRequest
from registry.errors import Refused
from registry.server.database.models import VersionRow
from tests.maintenance import collect, findings
from tests.snapshot import snapshot
from tests.world import World, rows


def reindex(world: World, *, dry_run: bool = False) -> ReindexPage:
    return world.admin.reindex(ReindexRequest(dry_run=dry_run))


def test_withdrawals_and_releases_after_the_backup_are_restored(world: World) -> None:
    world.add_base()
    for _ in range(5):
        world.push("acme/support")
    world.admin.yank("acme/support@2", "a mistake")
    world.admin.quarantine("acme/support@3", "reported as poisoned")
    world.admin.promote("acme/support", "canary", "1", generation=0)
    world.transport.settle()
    collect(world)
    with world.session() as session:
        backup = [row.model_dump() for row in rows(session, VersionRow)]
    world.admin.quarantine("acme/support@1", "reported as poisoned")
    world.admin.yank("acme/support@2", "it was the other run", undo=True)
    world.admin.unquarantine("acme/support@3", "a false alarm")
    world.admin.yank("acme/support@4", "diverged")
    world.transport.settle()
    collect(world)
    before = snapshot(world)
    with world.session(write=True) as session:
        for row in backup:
            session.connection().execute(update(VersionRow).where(col(VersionRow.id) == row.pop("id")).values(row))
    assert world.admin.resolve("acme/support:canary").number == 1
    expected = [f"record.withdrawal_unknown acme/support@{number}" for number in (1, 2, 3, 4)]
    assert sorted(findings(world)) == expected
    assert reindex(world, dry_run=True).withdrawals == 4
    assert world.admin.resolve("acme/support:canary").number == 1
    page = reindex(world)
    assert (page.withdrawals, page.findings) == (4, [])
    with pytest.raises(Refused) as refusal:
        world.admin.resolve("acme/support:canary")
    assert refusal.value.code == "QUARANTINED"
    assert world.admin.version("acme/support@4").yank_reason == "diverged"
    assert reindex(world).withdrawals == 0
    collect(world)
    assert findings(world) == []
    assert snapshot(world)["version"] == before["version"]
