"""The drill: back the database up into the blob store, lose it, restore it, and import what was pushed since."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry.errors import Conflict, Invalid, NotFound
from registry.evaluation.gates import Gate
from registry.server.database.engine import open_database
from registry.server.maintenance import backup
from registry.server.settings import Settings
from registry.server.storage.local import LocalBlobs
from tests import samples, services
from tests.audit import logs
from tests.base_specs import spec_of
from tests.flows.test_restore import reindex
from tests.harness import Harness
from tests.maintenance import collect, findings


@pytest.fixture
def empty_url(database_kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    if database_kind == "sqlite":
        yield f"sqlite:///{tmp_path}/restored.db"
        return
    with services.fresh_database(request.getfixturevalue("postgres_server")) as url:
        yield url


@pytest.fixture
def _postgres_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """`pg_dump` of the server that the tests run, before any other."""
    if programs := services.postgres_programs():
        monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.usefixtures("_postgres_programs")
def test_a_restored_registry_has_aliases_tokens_and_a_log_that_verifies(
    database_url: str, empty_url: str, tmp_path: Path
) -> None:
    blobs, data = LocalBlobs(tmp_path / "blobs"), str(tmp_path / "data")
    (tmp_path / "data").mkdir()
    with Harness(database_url, blobs=blobs, data=data) as harness:
        harness.add_base()
        harness.push("acme/support")
        harness.push("acme/support")
        harness.push("acme/gone")
        harness.admin.promote("acme/support", "stable", "1", generation=0, reason="good")
        harness.admin.set_gate("acme", "canary", Gate(approvals=1))
        harness.admin.delete_adapter("acme/gone")
        token = harness.issue("pull", namespaces=["acme"])[1]
        collect(harness, grace=3600)
        harness.app.state.audit_log.step()
        made = backup.create(harness.engine, blobs, keep=2)
        later = harness.push("acme/support", message="after the backup").version
        harness.transport.settle()
        secret = harness.secret
    engine = open_database(Settings(database_url=empty_url))
    assert backup.restore(engine, blobs).key == made.key
    with pytest.raises(Conflict, match="not empty"):
        backup.restore(engine, blobs)
    engine.dispose()
    with Harness(empty_url, blobs=blobs, data=data) as harness:
        harness.admin = harness.client(secret)
        harness.bases["tiny-llama"] = spec_of(samples.llama())
        served = harness.client(token).resolve("acme/support:stable")
        assert (served.number, harness.admin.version("acme/support").number) == (1, 2)
        assert [move.reason for move in harness.admin.history("acme/support", alias="stable").moves] == ["good"]
        assert harness.admin.gate("acme", "canary").gate.approvals == 1
        with pytest.raises(Conflict, match="never used again"):
            harness.push("acme/gone")
        assert logs.replayed(harness).problems == []
        assert "ref.version_unknown refs/" in findings(harness)
        assert (reindex(harness).versions, reindex(harness).versions) == (1, 0)
        version = harness.admin.version("acme/support")
        assert (version.number, version.digest, version.message) == (3, later.digest, "after the backup")
        assert version.created_at == later.created_at
        assert findings(harness) == []
        assert logs.replayed(harness).problems == []


@pytest.mark.usefixtures("_postgres_programs")
def test_old_backups_are_deleted_and_damaged_ones_are_not_restored(
    harness: Harness, empty_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = LocalBlobs(tmp_path / "blobs")
    for number in range(3):
        monkeypatch.setattr(backup, "TIME_FORMAT", f"2026010{number + 1}T000000Z")
        backup.create(harness.engine, blobs, keep=2)
    names = [backup.name_of(stat) for stat in backup.find_all(blobs)]
    assert names == ["20260103T000000Z", "20260102T000000Z"]
    engine = open_database(Settings(database_url=empty_url))
    with pytest.raises(NotFound):
        backup.restore(engine, blobs, "20260101T000000Z")
    file = blobs.local_path(backup.find_all(blobs)[0].key)
    assert file is not None
    file.chmod(0o600)
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(Invalid, match="hash to"):
        backup.restore(engine, blobs, names[0])
    assert backup.name_of(backup.restore(engine, blobs, names[1])) == names[1]
    engine.dispose()
