"""The flow of a push: two requests plus the bytes, one transaction, and every crash in it leaves nothing half."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import event
from sqlmodel import Session

from registry.client.transfer import pull, push
from registry.digest import Digest
from registry.errors import RegistryError
from registry.names import AdapterName, Ref
from registry.server.database.models import AliasRow, EventRow, VersionRow
from registry.server.database.models.jobs import JobRow
from registry.server.storage.blobs import BlobStore
from registry.server.storage.local import LocalBlobs
from tests import samples
from tests.harness import Harness, rows

NAME = AdapterName("acme", "support")


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return LocalBlobs(tmp_path / "blobs")


@pytest.fixture
def harness(database_url: str, store: BlobStore) -> Iterator[Harness]:
    with Harness(database_url, blobs=store) as harness:
        harness.add_base()
        yield harness


@pytest.fixture
def folder(harness: Harness, tmp_path: Path) -> Path:
    return samples.write(harness.files(), tmp_path / "adapter")


def test_a_push_is_a_plan_the_bytes_and_a_commit(harness: Harness, folder: Path, tmp_path: Path) -> None:
    pushed = push.push_folder(harness.admin, folder, NAME, base="tiny-llama")
    assert (pushed.version.number, pushed.created) == (1, True)
    with harness.session() as session:
        assert [v.digest for v in rows(session, VersionRow)] == [pushed.version.digest]
        assert [(a.alias, a.generation) for a in rows(session, AliasRow)] == [("main", 1)]
        assert [j.state for j in rows(session, JobRow)] == ["queued"]
        actions = [e.action for e in rows(session, EventRow)]
        assert actions[-4:] == ["adapter.create", "version.push", "alias.move", "job.enqueue"]
    pull.pull(harness.admin, Ref(NAME), tmp_path / "out", cache=None)
    for path in folder.iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


def test_a_commit_reads_no_blob_between_its_first_row_and_its_end(harness: Harness, folder: Path) -> None:
    store, calls = harness.blobs, []

    class Told:
        def __getattr__(self, verb: str) -> object:
            calls.append(f"blobs.{verb}")
            return getattr(store, verb)

    def note(_c: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith(("INSERT", "UPDATE", "DELETE")):
            calls.append("row")

    def end(_c: object) -> None:
        calls.append("commit")

    harness.app.state.blobs = Told()
    event.listen(harness.engine, "before_cursor_execute", note)
    event.listen(harness.engine, "commit", end)
    try:
        push.push_folder(harness.admin, folder, NAME, base="tiny-llama")
    finally:
        event.remove(harness.engine, "before_cursor_execute", note)
        event.remove(harness.engine, "commit", end)
        harness.app.state.blobs = store
    last_read = len(calls) - 1 - calls[::-1].index("blobs.read")
    after = calls[last_read + 1 :]
    first = after.index("row")
    rows_of_the_version = after[first : after.index("commit", first)]
    assert len(rows_of_the_version) > 5
    assert set(rows_of_the_version) == {"row"}


class PowerFailure(Exception):
    """The server's power fails."""


@pytest.mark.parametrize("point", ["open_writer", "finish", "read", "commit", "rows"])
def test_a_crash_at_any_point_leaves_no_version_and_the_next_push_succeeds(
    harness: Harness, folder: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    def crash(*_: object, **__: object) -> None:
        raise PowerFailure

    with monkeypatch.context() as patch:
        if point == "commit":
            patch.setattr(Session, "commit", crash_after_evaluation(harness, crash))
        elif point == "rows":
            patch.setattr("registry.server.push.version_rows.add_contents", crash)
        elif point == "finish":
            patch.setattr("registry.server.storage.local.FileWriter.finish", crash)
        else:
            patch.setattr(LocalBlobs, point, crash)
        with pytest.raises(RegistryError):
            push.push_folder(harness.admin, folder, NAME, base="tiny-llama")
    with harness.session() as session:
        assert rows(session, VersionRow) == []
        assert rows(session, JobRow) == []
    assert isinstance(harness.blobs, LocalBlobs)
    assert not list((harness.blobs.root / "tmp").glob("*"))
    pushed = push.push_folder(harness.admin, folder, NAME, base="tiny-llama")
    assert (pushed.created, pushed.version.number) == (True, 1)
    weights = Digest.of((folder / samples.WEIGHTS).read_bytes())
    assert weights in {f.digest for f in pushed.version.files}


def crash_after_evaluation(harness: Harness, crash: Callable[..., None]) -> Callable[[Session], None]:
    """A commit that fails once a version's row is in the transaction."""
    whole, written = Session.commit, []

    def note(_c: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith("INSERT INTO version "):
            written.append(statement)

    def commit(session: Session) -> None:
        if written:
            event.remove(harness.engine, "before_cursor_execute", note)
            written.clear()
            crash()
        whole(session)

    event.listen(harness.engine, "before_cursor_execute", note)
    return commit
