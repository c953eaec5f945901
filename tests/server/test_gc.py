"""Garbage collection: what is deleted, what stays whatever the grace period, and how a killed run is finished."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from registry.api.audit.webhooks import WebhookCreate
from registry.api.maintenance import FsckRequest, GcRequest
from registry.api.transfer import PushRequest
from registry.client.audit import Audit
from registry.digest import Digest
from registry.errors import Denied, NotFound, Unavailable
from registry.server.database import db, locks
from registry.server.database.models import BlobRow, IdempotencyRow, TokenRow
from registry.server.database.models.owner_rules import DeliveryRow
from registry.server.database.models.pushes import PushRow
from registry.server.database.models.sign_in import UsedAssertionRow
from registry.server.maintenance import gc
from registry.server.storage.blobs import digest_of, key_of, staging_key_of, write_blob
from tests import samples
from tests.bulk import commit_push, plan_push
from tests.harness import Harness, rows
from tests.maintenance import collect, expire, findings, orphan, plan, send, states


def test_blobs_of_versions_and_verdicts_stay_without_a_grace_period(stored_harness: Harness) -> None:
    stored_harness.push("acme/support")
    stored_harness.validate("acme/support@1")
    before = states(stored_harness)
    report = collect(stored_harness)
    assert (report.blobs_marked, report.blobs_deleted, report.orphans_deleted) == (0, 0, 0)
    assert states(stored_harness) == before
    assert set(before.values()) == {"live"}
    assert findings(stored_harness) == []


def test_blobs_of_an_open_push_stay_and_the_push_succeeds(stored_harness: Harness) -> None:
    files = stored_harness.files()
    planned = plan(stored_harness, files)
    collect(stored_harness)
    send(stored_harness, planned, files)
    report = collect(stored_harness)
    assert (report.blobs_deleted, report.staged_deleted) == (0, 0)
    assert set(states(stored_harness).values()) == {"pending"}
    assert commit_push(stored_harness.admin, planned.push_id).created
    collect(stored_harness)
    assert findings(stored_harness) == []


def test_an_expired_push_references_nothing_and_leaves_nothing(stored_harness: Harness) -> None:
    files = stored_harness.files()
    planned = plan(stored_harness, files)
    send(stored_harness, planned, files)
    expire(stored_harness, planned)
    report = collect(stored_harness)
    assert report.pushes_expired == 1
    assert report.blobs_deleted == len(files) + 1, "the manifest is a blob, too"
    assert states(stored_harness) == {}
    assert list(stored_harness.blobs.list("blobs/")) == []
    with pytest.raises(NotFound, match="no open push"):
        commit_push(stored_harness.admin, planned.push_id)
    assert stored_harness.push("acme/support", files).created
    assert findings(stored_harness) == []


def test_an_unreferenced_blob_is_deleted_after_the_grace_period(stored_harness: Harness) -> None:
    digest = orphan(stored_harness)
    first = collect(stored_harness, grace=3600)
    assert (first.blobs_marked, first.blobs_deleted) == (1, 0)
    assert states(stored_harness) == {digest: "dead"}
    assert stored_harness.blobs.stat(key_of(digest)) is not None
    second = collect(stored_harness, grace=0)
    assert (second.blobs_marked, second.blobs_deleted, second.bytes_deleted) == (0, 1, len(b"unreferenced"))
    assert states(stored_harness) == {}
    assert stored_harness.blobs.stat(key_of(digest)) is None


def test_a_new_push_revives_a_dead_blob(stored_harness: Harness) -> None:
    files = stored_harness.files()
    weights = orphan(stored_harness, files[samples.WEIGHTS])
    collect(stored_harness, grace=3600)
    assert states(stored_harness)[weights] == "dead"
    planned = plan(stored_harness, files)
    assert weights in {upload.digest for upload in planned.uploads}, "no version that the caller can read has it"
    assert states(stored_harness)[weights] == "pending"
    collect(stored_harness)
    send(stored_harness, planned, files)
    commit_push(stored_harness.admin, planned.push_id)
    assert states(stored_harness)[weights] == "live"


def test_a_push_of_a_blob_that_is_being_deleted_must_retry(stored_harness: Harness) -> None:
    files = stored_harness.files()
    weights = orphan(stored_harness, files[samples.WEIGHTS])
    with stored_harness.session(write=True) as session:
        row = session.get_one(BlobRow, weights)
        row.state = "deleting"
        session.add(row)
    client = stored_harness.client(stored_harness.secret)
    client.connection._wait = lambda _seconds: None
    with pytest.raises(Unavailable) as refusal:
        plan_push(client, "acme/support", PushRequest(manifest=stored_harness.manifest(files)))
    assert (refusal.value.code, refusal.value.retry_after_seconds) == ("TRY_LATER", 1)
    collect(stored_harness)
    assert stored_harness.push("acme/support", files).created


@pytest.mark.parametrize("step", ["before the bytes", "after the bytes"])
def test_a_run_that_died_is_finished_by_the_next_one(stored_harness: Harness, step: str) -> None:
    digest = orphan(stored_harness)
    with stored_harness.session(write=True) as session:
        row = session.get_one(BlobRow, digest)
        row.state = "deleting"
        session.add(row)
    if step == "after the bytes":
        stored_harness.blobs.delete(key_of(digest))
    assert collect(stored_harness).blobs_deleted == 1
    assert states(stored_harness) == {}
    assert stored_harness.blobs.stat(key_of(digest)) is None


def test_a_final_key_without_a_row_is_a_finding_and_is_deleted_after_the_grace_period(stored_harness: Harness) -> None:
    data = b"left by a server that went on too long"
    key = key_of(Digest.of(data))
    write_blob(stored_harness.blobs, key, [data], limit_bytes=len(data))
    assert findings(stored_harness) == [f"blob.orphan {Digest.of(data)}"]
    assert collect(stored_harness, grace=3600).orphans_kept == 1
    assert collect(stored_harness).orphans_deleted == 1
    assert stored_harness.blobs.stat(key) is None


def test_stray_blobs_stay_while_the_bucket_has_versions_that_the_database_lacks(stored_harness: Harness) -> None:
    stored_harness.push("acme/support")
    collect(stored_harness)
    ref = next(iter(stored_harness.blobs.list("refs/"))).key
    data = stored_harness.blobs.read(ref, 0, 2**20)
    other = f"refs/acme/support/2/{digest_of(ref).hex}"
    write_blob(stored_harness.blobs, other, [data], limit_bytes=len(data))
    stray = b"of version 2"
    write_blob(stored_harness.blobs, key_of(Digest.of(stray)), [stray], limit_bytes=100)
    report = collect(stored_harness)
    assert (report.orphans_kept, report.orphans_deleted) == (1, 0)
    stored_harness.blobs.delete(other)
    assert collect(stored_harness).orphans_deleted == 1


@pytest.mark.parametrize("window", [5000, 1])
def test_a_dry_run_counts_the_same_and_changes_nothing(
    stored_harness: Harness, monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    monkeypatch.setattr(gc, "WINDOW", window)
    orphan(stored_harness)
    files = stored_harness.files()
    planned = plan(stored_harness, files)
    send(stored_harness, planned, files)
    expire(stored_harness, planned)
    before, stored = states(stored_harness), list(stored_harness.blobs.list("blobs/"))
    expected = collect(stored_harness, dry_run=True)
    assert (states(stored_harness), list(stored_harness.blobs.list("blobs/"))) == (before, stored)
    assert expected.dry_run
    done = collect(stored_harness)
    for count in ("pushes_expired", "blobs_marked", "blobs_deleted", "bytes_deleted"):
        assert getattr(expected, count) == getattr(done, count), count


def test_ended_pushes_and_old_responses_are_deleted(stored_harness: Harness) -> None:
    stored_harness.push("acme/support")
    long_ago = db.now() - timedelta(days=40)
    with stored_harness.session(write=True) as session:
        for row in rows(session, PushRow):
            row.expires_at = long_ago
            session.add(row)
        response = {"request_sha256": "", "status": 200, "response": "{}"}
        session.add(IdempotencyRow.model_validate({"token_id": "t", "key": "old", "created_at": long_ago} | response))
    report = collect(stored_harness)
    assert (report.pushes_deleted, report.responses_deleted) == (1, 1)
    with stored_harness.session() as session:
        assert rows(session, PushRow) == []
    assert findings(stored_harness) == []


def test_rows_that_ended_long_ago_are_deleted_in_batches(
    stored_harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exchanged tokens, used identity tokens, deliveries. Tokens that people made stay: the first one is made once."""
    monkeypatch.setattr(gc, "BATCH", 2)
    long_ago, now = db.now() - timedelta(days=40), db.now()
    hook = Audit(stored_harness.admin).create_webhook(WebhookCreate(url="https://hooks.example/x"))
    with stored_harness.session(write=True) as session:
        for n in range(5):
            token: dict[str, Any] = {
                "scopes": ["push"],
                "namespaces": ["acme"],
                "created_at": long_ago,
                "created_by": "exchange",
            }
            session.add(TokenRow(id=f"tok_{n}", name="ci", secret_sha256=str(n), expires_at=long_ago, **token))
            session.add(UsedAssertionRow(issuer="ci", jti=str(n), expires_at=now - timedelta(seconds=1)))
            delivery: dict[str, Any] = {
                "webhook_id": hook.webhook.id,
                "next_at": long_ago,
                "created_at": long_ago,
                "ended_at": long_ago,
            }
            session.add(DeliveryRow(position=n + 1, state=["delivered", "dead"][n % 2], **delivery))
        session.add(TokenRow(id="tok_new", name="ci", secret_sha256="new", expires_at=now, **token))
        session.add(
            TokenRow(
                id="tok_made", name="ci", secret_sha256="made", expires_at=long_ago, **token | {"created_by": "ann"}
            )
        )
        session.add(UsedAssertionRow(issuer="ci", jti="new", expires_at=now + timedelta(minutes=5)))
        session.add(DeliveryRow(position=6, state="waiting", **delivery | {"ended_at": None}))
    expected = collect(stored_harness, dry_run=True)
    with stored_harness.statements() as sent:
        report = collect(stored_harness)
    for counts in (expected, report):
        assert (counts.tokens_deleted, counts.assertions_deleted, counts.deliveries_deleted) == (5, 5, 5)
    assert len([statement for statement in sent if "DELETE FROM token " in statement]) == 3
    with stored_harness.session() as session:
        assert {"tok_new", "tok_made"} < {row.id for row in rows(session, TokenRow)}
        assert [row.jti for row in rows(session, UsedAssertionRow)] == ["new"]
        assert [row.position for row in rows(session, DeliveryRow)] == [6]


def test_one_process_collects_at_a_time(stored_harness: Harness) -> None:
    with (
        locks.acquire(stored_harness.engine, "gc"),
        pytest.raises(Unavailable) as refusal,
        locks.acquire(stored_harness.engine, "gc"),
    ):
        pass
    assert refusal.value.code == "TRY_LATER"
    with locks.acquire(stored_harness.engine, "gc") as lock:
        lock.check()


def test_only_an_administrator_of_everything_collects(stored_harness: Harness) -> None:
    for actor in (stored_harness.actor("push"), stored_harness.actor("admin", namespaces=["acme"])):
        for call in (partial(actor.collect, GcRequest()), partial(actor.fsck, FsckRequest())):
            with pytest.raises(Denied):
                call()


def test_a_staging_key_without_a_push_is_deleted(stored_harness: Harness) -> None:
    data = b"sent after the end"
    write_blob(stored_harness.blobs, staging_key_of("psh_gone", Digest.of(data)), [data], limit_bytes=100)
    assert collect(stored_harness).staged_deleted == 1
