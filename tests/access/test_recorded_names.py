"""Names that end or change hands, as the refs in the bucket tell of them: nothing comes back, nothing is lost."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import update

from registry.api.maintenance import ReindexRequest
from registry.names import AdapterName
from registry.server.actors import TRUSTED
from registry.server.catalog import refs
from registry.server.database.models import AdapterRow, VersionRow
from registry.server.maintenance.reindex import rebuild_index
from registry.server.promotion import removal
from registry.server.storage.blobs import BlobWriter, write_blob
from tests.access.tenants import Tenants
from tests.harness import Harness, rows
from tests.memory_blobs import MemoryBlobs


@pytest.fixture
def tenants(harness: Harness) -> Tenants:
    """What its pushes still do after their responses has ended: refs are counted here."""
    tenants = Tenants(harness)
    harness.transport.settle()
    return tenants


def test_reindexing_does_not_restore_a_deleted_adapter(tenants: Tenants) -> None:
    harness, gone = tenants.harness, AdapterName("acme", "support")
    refs.write_missing(harness.engine, harness.blobs, limit=10)
    folder = refs.adapter_prefix(gone)
    stored = {stat.key: harness.blobs.read(stat.key, 0, stat.size_bytes) for stat in harness.blobs.list(folder)}
    assert len(stored) == 1
    tenants.harness.admin.delete_adapter("acme/support")
    harness.transport.settle()
    removal.delete_refs(harness.engine, harness.blobs, gone)
    assert list(harness.blobs.list(folder)) == []
    for key, data in stored.items():  # as if the server had died before it could forget
        write_blob(harness.blobs, key, [data], limit_bytes=len(data))
    assert rebuild_index(harness.engine, harness.blobs, harness.settings, TRUSTED, ReindexRequest()).findings == []
    with harness.session() as session:
        assert [row.name for row in rows(session, AdapterRow)] == ["secret"]


def test_a_transferred_adapter_is_recorded_and_indexed_again_under_its_new_name(tenants: Tenants) -> None:
    harness = tenants.harness
    tenants.harness.admin.rename("globex/secret", "globex/renamed")
    harness.transport.settle()
    removal.delete_refs(harness.engine, harness.blobs, AdapterName("globex", "secret"))
    refs.write_missing(harness.engine, harness.blobs, limit=10)
    names = {stat.key.split("/")[2] for stat in harness.blobs.list("refs/globex/")}
    assert names == {"renamed"}
    assert rebuild_index(harness.engine, harness.blobs, harness.settings, TRUSTED, ReindexRequest()).findings == []
    assert harness.admin.adapter("globex/renamed").versions == 1


class ActBeforeRef(MemoryBlobs):
    """Does something once, before the ref of a version is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.act: Callable[[], object] | None = None

    def open_writer(self, key: str, *, limit_bytes: int) -> BlobWriter:
        if key.startswith(refs.REFS) and self.act is not None:
            act, self.act = self.act, None
            act()
        return super().open_writer(key, limit_bytes=limit_bytes)


@pytest.mark.parametrize("ends", [False, True])
def test_a_ref_written_during_a_rename_is_written_again(database_url: str, ends: bool) -> None:
    blobs = ActBeforeRef()
    with Harness(database_url, blobs=blobs) as harness:
        tenants = Tenants(harness)
        harness.transport.settle()
        with harness.session(write=True) as session:
            session.connection().execute(update(VersionRow).values(recorded_at=None))
        for stat in list(blobs.list(refs.REFS)):
            blobs.delete(stat.key)

        def change() -> None:
            if ends:
                tenants.harness.admin.delete_adapter("globex/secret")
            else:
                tenants.harness.admin.rename("globex/secret", "globex/renamed")
            harness.transport.settle()

        blobs.act = change
        while refs.write_missing(harness.engine, blobs, limit=10):
            pass
        recorded = {"/".join(stat.key.split("/")[1:3]) for stat in blobs.list(refs.REFS)}
        assert recorded == {"acme/support"} | (set() if ends else {"globex/renamed"})
