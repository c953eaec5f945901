"""Drafts: who sees them, what ends them, and what is left afterwards."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlmodel import Session, col, update

from registry.api.access import NamespaceSet, TokenCreate
from registry.digest import Digest
from registry.server.database import db
from registry.server.database.models import BlobRow
from registry.server.database.models.pushes import PushRow
from registry.server.hub import drafts
from tests import samples
from tests.harness import Harness, rows
from tests.hub.commits import CARD, Pusher, add, add_large, delete, drafts_of, staged, warning
from tests.hub.xet import XetClient
from tests.maintenance import collect

OTHER = "/api/models/acme/support/branch/other"


def test_files_become_a_version_one_at_a_time(harness: Harness, pusher: Pusher) -> None:
    pusher.create()
    files = harness.files()
    states = []
    for path in (CARD, samples.CONFIG, samples.WEIGHTS):
        response = pusher.commit(add(path, files[path]))
        states.append((response.json()["commitOid"] == pusher.info().json()["sha"], pusher.files()))
    assert states == [(True, [CARD]), (True, [CARD, samples.CONFIG]), (True, [CARD, samples.CONFIG, samples.WEIGHTS])]
    harness.transport.settle()
    assert harness.admin.adapter("acme/support").versions == 1
    assert (drafts_of(harness), staged(harness)) == ((0, 0), [])


@pytest.mark.security
@pytest.mark.parametrize("how", ["delete", "quarantine"])
def test_a_draft_does_not_give_the_bytes_of_a_version_that_was_withdrawn(harness: Harness, how: str) -> None:
    pusher = Pusher(harness, harness.issue("push", "pull", namespaces=["acme"])[1])
    files = harness.files()
    harness.push("acme/support")
    harness.push("acme/support", files)
    draft = pusher.commit(delete(samples.CONFIG), add(CARD, b"# Mine\n")).json()["commitOid"]

    def read(path: str) -> int:
        return pusher.send("GET", f"/acme/support/resolve/{draft}/{path}").status_code

    assert (read(samples.WEIGHTS), read(CARD)) == (200, 200)
    withdraw = {"delete": harness.admin.delete_version, "quarantine": harness.admin.quarantine}[how]
    withdraw("acme/support@2", "private data")
    assert (read(samples.WEIGHTS), read(CARD)) == (404, 200)


@pytest.mark.security
def test_only_its_pusher_sees_a_draft(harness: Harness, pusher: Pusher) -> None:
    pusher.create()
    commit = pusher.commit(add(CARD, b"# Secret\n")).json()["commitOid"]
    token_id = harness.client(pusher.secret).whoami().token_id
    harness.admin.create_namespace("acme", owner=token_id)
    request = TokenCreate(name="a person", scopes=["push"], namespaces=["acme"], subject=token_id)
    named_as_its_token = harness.admin.create_token(request).secret
    others = [
        Pusher(harness, harness.issue("push", namespaces=["acme"])[1]), Pusher(harness, harness.secret),
        Pusher(harness, harness.issue("pull", namespaces=["acme"])[1]), Pusher(harness, named_as_its_token),
    ]  # fmt: skip
    for other in others:
        for revision in ("main", commit):
            assert other.info(revision).headers["x-error-code"] == "RepoNotFound"
            read = other.send("GET", f"/acme/support/resolve/{revision}/{CARD}")
            assert (read.status_code, read.headers["x-error-code"]) == (404, "RepoNotFound")
        assert other.send("GET", "/api/models").json() == []
    assert pusher.send("GET", f"/acme/support/resolve/main/{CARD}").content == b"# Secret\n"
    assert pusher.send("GET", "/api/models").json() == []
    assert pusher.send("GET", "/api/v1/resolve/acme/support/main").status_code == 404
    harness.push("acme/support")
    assert others[0].info(commit).headers["x-error-code"] == "RevisionNotFound"
    assert others[0].files() == [CARD, samples.CONFIG, samples.WEIGHTS] == pusher.files()


def test_a_draft_ends_with_its_time(harness: Harness, pusher: Pusher) -> None:
    pusher.create()
    pusher.commit(add(CARD, b"# Draft\n"))
    assert (drafts_of(harness), len(staged(harness))) == ((1, 1), 1)
    collect(harness)
    assert (drafts_of(harness), len(staged(harness))) == ((1, 1), 1)
    with harness.session(write=True) as session:
        session.execute(update(PushRow).values(expires_at=db.now()))
    assert pusher.info().headers["x-error-code"] == "RepoNotFound"
    collect(harness)
    assert (drafts_of(harness), staged(harness)) == ((0, 0), [])
    with harness.session() as session:
        assert [row.state for row in rows(session, PushRow)] == ["expired"]
    assert pusher.create().status_code == 200


@pytest.mark.parametrize("database_kind", ["sqlite", "postgres"])
def test_bytes_that_are_never_committed_end_while_their_pusher_goes_on(harness: Harness, pusher: Pusher) -> None:
    """A client that is killed between upload and commit. The commits after it renew the upload that has its bytes."""
    pusher.create()
    lost = harness.files()[samples.WEIGHTS]
    XetClient(pusher).upload(lost)
    assert pusher.push(harness.files()).status_code == 200
    pusher.commit(delete(samples.CONFIG), add(CARD, b"# Draft\n"))
    harness.transport.settle()
    before = staged(harness)
    assert (sum(str(Digest.of(lost).hex) in key for key in before), len(before)) == (1, 2)

    def make_older(session: Session, *tables: type[BlobRow | PushRow]) -> None:
        for table in tables:
            session.connection().execute(update(table).values(created_at=db.now() - timedelta(days=8)))

    for tables in ((), (BlobRow,), (PushRow,)):  # the bytes are new, or the upload is
        with harness.session(write=True) as session:
            make_older(session, *tables)
            assert drafts.release_abandoned(session, timedelta(days=7), 10) == 0
            session.rollback()
    with harness.session(write=True) as session:
        make_older(session, BlobRow, PushRow)
    assert (collect(harness, dry_run=True).staged_deleted, staged(harness)) == (1, before)
    assert collect(harness).staged_deleted == 1
    assert staged(harness) == [key for key in before if str(Digest.of(lost).hex) not in key]
    assert pusher.files() == [CARD, samples.WEIGHTS]
    XetClient(pusher).upload(lost)
    large = add_large(samples.WEIGHTS, Digest.of(lost).hex, len(lost))
    assert pusher.commit(large, add(samples.CONFIG, harness.files()[samples.CONFIG])).status_code == 200
    assert harness.admin.adapter("acme/support").versions == 2


def test_a_deleted_repository_leaves_no_draft_and_no_bytes(harness: Harness, pusher: Pusher) -> None:
    harness.admin.create_namespace("acme", owner="owner@acme")
    harness.admin.change_namespace("acme", NamespaceSet(quota_bytes=1000))
    body = {"name": "support", "organization": "acme"}
    for _ in range(2):
        assert pusher.create().status_code == 200
        assert pusher.commit(add(CARD, b"x" * 900)).status_code == 200, "the quota is free again"
        assert pusher.send("DELETE", "/api/repos/delete", json=body).status_code == 200
        harness.transport.settle()
        assert (drafts_of(harness), staged(harness)) == ((0, 0), [])


def test_a_draft_becomes_a_version_at_an_alias_that_was_deleted(harness: Harness) -> None:
    """The generation of an alias goes on after its deletion."""
    pusher, files = Pusher(harness, harness.issue("push", "promote", namespaces=["acme"])[1]), harness.files()
    pusher.create()
    pusher.send("POST", OTHER, json={})
    assert pusher.commit(add(CARD, files[CARD]), revision="other").status_code == 200
    harness.push("acme/support")
    harness.admin.promote("acme/support", "other", "1", generation=0)
    harness.admin.delete_alias("acme/support", "other", generation=1)
    rest = [add(path, files[path]) for path in (samples.CONFIG, samples.WEIGHTS)]
    response = pusher.commit(*rest, revision="other")
    assert response.status_code == 200, response.text
    assert harness.admin.alias("acme/support", "other").generation == 3


def test_a_draft_does_not_undo_a_version_that_came_meanwhile(harness: Harness, pusher: Pusher) -> None:
    harness.push("acme/support")
    pusher.commit(delete(samples.WEIGHTS))
    assert pusher.files() == [CARD, samples.CONFIG]
    assert harness.admin.adapter("acme/support").versions == 1
    harness.push("acme/support")
    assert pusher.files() == [CARD, samples.CONFIG, samples.WEIGHTS], "the branch is at the new version"
    assert [pusher.commit(add(CARD, b"# Mine\n")).status_code for _ in range(2)] == [412, 200]
    assert [file.path for file in harness.admin.version("acme/support@3").files] == [
        CARD,
        samples.CONFIG,
        samples.WEIGHTS,
    ]


@pytest.mark.security
def test_a_repository_has_a_limited_number_of_drafts(pusher: Pusher) -> None:
    pusher.create()
    paths = [f"/api/models/acme/support/branch/branch-{number}" for number in range(drafts.DRAFTS_LIMIT)]
    responses = [pusher.send("POST", path, json={}) for path in paths]
    assert [response.status_code for response in responses] == [200] * (drafts.DRAFTS_LIMIT - 1) + [413]
    assert "delete a branch" in responses[-1].headers["x-error-message"]
    assert pusher.send("DELETE", paths[0]).status_code == 200
    assert pusher.send("POST", paths[-1], json={}).status_code == 200


def test_expired_draft_rows_are_replaced(harness: Harness, pusher: Pusher) -> None:
    pusher.create()
    pusher.commit(add(CARD, b"# Old\n"))
    with harness.session(write=True) as session:
        session.execute(update(PushRow).where(col(PushRow.state) == "open").values(expires_at=db.now()))
    pusher.create()
    assert pusher.files() == []
    assert drafts_of(harness) == (1, 0)


def test_a_draft_says_what_is_missing_and_goes_with_its_branch(harness: Harness, pusher: Pusher) -> None:
    """Without the weights of a version its pusher pulls the draft; nobody else does."""
    harness.push("acme/support")
    said = warning(pusher.commit(delete(samples.WEIGHTS)))
    assert ("no weights" in said, "your own pulls" in said, "delete_branch" in said) == (True, True, True)
    assert samples.WEIGHTS not in pusher.files()
    assert pusher.send("DELETE", "/api/models/acme/support/branch/main").status_code == 200
    assert (samples.WEIGHTS in pusher.files(), drafts_of(harness)) == (True, (0, 0))
    assert pusher.send("DELETE", "/api/models/acme/support/branch/main").status_code == 501
    assert samples.CONFIG in warning(pusher.commit(delete(samples.CONFIG)))
