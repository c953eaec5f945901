"""Names that end or change hands, as the refs in the bucket tell of them: nothing comes back, nothing is lost."""

from __future__ import annotations

import pytest

from registry.api.maintenance import ReindexRequest
from registry.names import AdapterName
from registry.server.actors import TRUSTED
from registry.server.catalog import refs
from registry.server.maintenance.reindex import rebuild_index
from registry.server.promotion import removal
from tests.access.tenants import Tenants
from tests.harness import Harness


@pytest.fixture
def tenants(harness: Harness) -> Tenants:
    """What its pushes still do after their responses has ended: refs are counted here."""
    tenants = Tenants(harness)
    harness.transport.settle()
    return tenants


def test_reindexing_does_not_restore_a_deleted_adapter(tenants: Tenants) -> None:
    harness = tenants.harness
    refs.write_missing(harness.engine, harness.blobs, limit=10)
    harness.admin.delete_adapter("acme/support")
    harness.transport.settle()
    assert rebuild_index(harness.engine, harness.blobs, harness.settings, TRUSTED, ReindexRequest()).findings == []
    assert [item.name for item in harness.admin.adapters().items] == ["globex/secret"]


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
