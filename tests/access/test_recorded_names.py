"""Names that end or change hands, as the records beside the blobs tell of them: nothing comes back, nothing is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from sqlalchemy import update

from registry.api.maintenance import ReindexRequest
from registry.names import AdapterName
from registry.server.actors import TRUSTED
from registry.server.catalog import metadata_backup
from registry.server.database.models import AdapterRow, VersionRow
from registry.server.maintenance.reindex import rebuild_index
from registry.server.promotion import removal
from tests.access.tenants import Tenants
from tests.memory_blobs import MemoryBlobs
from tests.world import World, rows


@pytest.fixture
def tenants(world: World) -> Tenants:
    """What its pushes still do after their answers has ended: records are counted here."""
    made = Tenants(world)
    world.transport.settle()
    return made


def test_reindexing_does_not_restore_a_deleted_adapter(tenants: Tenants) -> None:
    world, gone = tenants.world, AdapterName("acme", "support")
    metadata_backup.write_missing(world.engine, world.blobs, limit=10)
    folder = metadata_backup.adapter_prefix(gone.namespace, gone.name)
    kept = {stat.key: world.blobs.read(stat.key, 0, stat.size_bytes) for stat in world.blobs.list(folder)}
    assert len(kept) == 1
    tenants.world.admin.delete_adapter("acme/support")
    world.transport.settle()
    removal.delete_records(world.engine, world.blobs, gone)
    assert list(world.blobs.list(folder)) == []
    for key, data in kept.items():  # as if the server had died before it could forget
        world.blobs.put(key, [data], limit_bytes=len(data))
    assert rebuild_index(world.engine, world.blobs, TRUSTED, ReindexRequest()).findings == []
    with world.session() as session:
        assert [row.name for row in rows(session, AdapterRow)] == ["secret"]


def test_a_transferred_adapter_is_recorded_and_indexed_again_under_its_new_name(tenants: Tenants) -> None:
    world = tenants.world
    tenants.world.admin.rename("globex/secret", "globex/renamed")
    world.transport.settle()
    removal.delete_records(world.engine, world.blobs, AdapterName("globex", "secret"))
    metadata_backup.write_missing(world.engine, world.blobs, limit=10)
    found = {
        stat.key.split("/")[3]
        for stat in world.blobs.list(metadata_backup.adapter_prefix("globex", "x").removesuffix("x/"))
    }
    assert found == {"renamed"}
    assert rebuild_index(world.engine, world.blobs, TRUSTED, ReindexRequest()).findings == []
    assert world.admin.adapter("globex/renamed").versions == 1


class Meanwhile(MemoryBlobs):
    """Does something once, before the record of a version is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.act: Callable[[], object] | None = None

    def put(self, key: str, chunks: Iterable[bytes], **how: Any) -> Any:
        if key.startswith(metadata_backup.VERSIONS) and self.act is not None:
            act, self.act = self.act, None
            act()
        return super().put(key, chunks, **how)


@pytest.mark.parametrize("ends", [False, True])
def test_a_record_written_during_a_rename_is_written_again(database_url: str, ends: bool) -> None:
    blobs = Meanwhile()
    with World(database_url, blobs=blobs) as world:
        tenants = Tenants(world)
        world.transport.settle()
        with world.session(write=True) as session:
            session.connection().execute(update(VersionRow).values(recorded_at=None))
        for stat in list(blobs.list(metadata_backup.VERSIONS)):
            blobs.delete(stat.key)

        def change() -> None:
            if ends:
                tenants.world.admin.delete_adapter("globex/secret")
            else:
                tenants.world.admin.rename("globex/secret", "globex/renamed")
            world.transport.settle()

        blobs.act = change
        while metadata_backup.write_missing(world.engine, blobs, limit=10):
            pass
        found = {"/".join(stat.key.split("/")[2:4]) for stat in blobs.list(metadata_backup.VERSIONS)}
        assert found == {"acme/support"} | (set() if ends else {"globex/renamed"})
