"""Small files come with the plan instead of a request of their own, under the rules of uploads."""

from __future__ import annotations

from pathlib import Path

import pytest

from registry.api.transfer import PushItem, PushPlan
from registry.client.transfer.push import push_all
from registry.digest import Digest
from registry.errors import Conflict, RegistryError
from registry.server.database.models import BlobRow
from registry.server.storage import references
from registry.server.storage.blobs import BlobWriter, digest_of
from tests import samples
from tests.bulk import commit_push
from tests.harness import Harness, rows, upload


def excerpts_of(files: samples.Files) -> dict[str, bytes]:
    return {path: data for path, data in files.items() if path != samples.WEIGHTS}


def plan_with(harness: Harness, files: samples.Files, excerpts: dict[str, bytes], *, dry_run: bool = False) -> PushPlan:
    """The plan of a push whose excerpts say what these files are."""
    positions = {path: number for number, path in enumerate(excerpts)}
    item = PushItem(name="acme/support", manifest=harness.manifest(files), excerpts=positions)
    [outcome] = harness.admin.plan_pushes([item], excerpts=tuple(excerpts.values()), dry_run=dry_run)
    if isinstance(outcome, RegistryError):
        raise outcome
    return outcome


def test_files_that_came_whole_with_the_plan_are_not_requested(filled_harness: Harness) -> None:
    files = filled_harness.files()
    planned = plan_with(filled_harness, files, excerpts_of(files))
    assert [item.digest for item in planned.uploads] == [Digest.of(files[samples.WEIGHTS])]
    upload(filled_harness.admin, planned, files)
    assert commit_push(filled_harness.admin, planned.push_id).created
    assert not commit_push(filled_harness.admin, planned.push_id).created


def test_a_dry_run_stores_nothing(filled_harness: Harness) -> None:
    files = filled_harness.files()
    assert plan_with(filled_harness, files, excerpts_of(files), dry_run=True).uploads == []
    assert list(filled_harness.blobs.list("blobs/")) == []


@pytest.mark.security
def test_what_is_not_the_file_that_it_is_said_to_be_is_not_stored(filled_harness: Harness) -> None:
    files = filled_harness.files()
    lie = {**excerpts_of(files), "README.md": b"x" * len(files["README.md"])}
    planned = plan_with(filled_harness, files, lie)
    requested = {Digest.of(files[path]) for path in ("README.md", samples.WEIGHTS)}
    assert {item.digest for item in planned.uploads} == requested
    stored = {digest_of(stat.key) for stat in filled_harness.blobs.list("blobs/")}
    assert stored.isdisjoint({Digest.of(lie["README.md"]), *requested})
    with pytest.raises(Conflict):
        commit_push(filled_harness.admin, planned.push_id)
    upload(filled_harness.admin, planned, files)
    assert commit_push(filled_harness.admin, planned.push_id).created


def test_the_size_of_a_blob_is_what_its_commit_measured(filled_harness: Harness) -> None:
    files = filled_harness.files()
    sizes = {Digest.of(data): len(data) for data in files.values()}
    with filled_harness.session(write=True) as session:
        references.reserve(session, dict.fromkeys(sizes, 1))
    filled_harness.push("acme/support", files)
    with filled_harness.session() as session:
        stored_sizes = {row.digest: row.size_bytes for row in rows(session, BlobRow)}
    assert sizes.items() <= stored_sizes.items()


def test_equal_small_blobs_of_a_group_are_written_once(
    filled_harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adapters of one training script have the same configuration."""
    files = [filled_harness.files(rank=16) for _ in range(3)]
    written: list[str] = []
    open_writer = filled_harness.blobs.open_writer

    def note(key: str, *, limit_bytes: int) -> BlobWriter:
        written.append(str(digest_of(key)))
        return open_writer(key, limit_bytes=limit_bytes)

    monkeypatch.setattr(filled_harness.blobs, "open_writer", note)
    folders = [
        (samples.write({**each, "README.md": f"# {number}".encode()}, tmp_path / f"a{number}"), f"acme/a{number}")
        for number, each in enumerate(files)
    ]
    results = push_all(filled_harness.admin, folders)
    filled_harness.transport.settle()
    versions = [result.value.version for result in results if result.value is not None]
    assert len(versions) == 3
    configs = {file.digest for version in versions for file in version.files if file.path == samples.CONFIG}
    cards = {file.digest for version in versions for file in version.files if file.path == "README.md"}
    assert (len(configs), len(cards)) == (1, 3)
    assert [written.count(digest) for digest in (*configs, *cards)] == [1, 1, 1, 1]
    assert {*configs, *cards} <= {digest_of(stat.key) for stat in filled_harness.blobs.list("blobs/")}
