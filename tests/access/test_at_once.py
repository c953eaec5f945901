"""A lost right takes effect with the next request on every server, and concurrent changes do not fail."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from sqlalchemy import event, text
from sqlmodel import col, select

from registry.api.access import PublisherAdd
from registry.api.audit.webhooks import WebhookCreate
from registry.api.catalog import DeleteResult
from registry.api.jobs import CampaignRequest
from registry.client.audit import Audit
from registry.client.registry import Registry
from registry.errors import NotFound, Refused, RegistryError, Unauthenticated
from registry.names import AdapterName
from registry.server import app, webhooks
from registry.server.access import namespaces, token_exchange
from registry.server.actors import TRUSTED
from registry.server.database import db
from registry.server.database.engine import open_database
from registry.server.database.models import VersionRow
from registry.server.database.models.owner_rules import ApprovalRow
from registry.server.jobs import campaigns
from registry.server.promotion import approvals, deletion, moves, removal
from tests.access.tenants import Tenants, of_subject
from tests.harness import URL, Harness
from tests.httpx_transports import HttpxInProcess

pytestmark = pytest.mark.security


class Replica:
    """A second server on the same database and store, with its own caches."""

    def __init__(self, harness: Harness) -> None:
        self.engine = open_database(harness.settings)
        self.transport = HttpxInProcess(app.create_app(harness.settings, engine=self.engine, blobs=harness.blobs))

    def client(self, secret: str) -> Registry:
        return Registry(URL, secret, self.transport)

    def close(self) -> None:
        self.transport.close()
        self.engine.dispose()


@pytest.fixture
def tenants(harness: Harness) -> Tenants:
    return Tenants(harness)


def test_a_revocation_a_rotation_and_a_lost_role_take_effect_at_once_on_another_server(tenants: Tenants) -> None:
    harness, replica = tenants.harness, Replica(tenants.harness)
    try:
        token_id, revoked = harness.issue("pull")
        other_id, rotated = harness.issue("pull")
        subject = of_subject(harness, "reader@acme")
        clients = [replica.client(secret) for secret in (revoked, rotated, subject)]
        for client in clients:
            for _ in range(2):
                assert client.resolve("acme/support").number == 1
        harness.admin.revoke_token(token_id)
        harness.admin.rotate_token(other_id)
        harness.admin.revoke_role("acme", "reader@acme")
        for client, error in zip(clients, (Unauthenticated, Unauthenticated, NotFound), strict=True):
            with pytest.raises(error):
                client.resolve("acme/support")
            with pytest.raises(error):
                client.adapter("acme/support")
        harness.admin.grant_role("acme", "reader@acme", "reader")
        assert clients[2].resolve("acme/support").number == 1
    finally:
        replica.close()


def test_a_quarantine_and_a_yank_take_effect_at_once_on_another_server(tenants: Tenants) -> None:
    """Cached responses are not used again. By digest, actors that may promote can still read a quarantined version."""
    harness, replica = tenants.harness, Replica(tenants.harness)
    try:
        reader, admin = (replica.client(secret) for secret in (tenants.secret("reader"), harness.secret))
        digest = harness.push("acme/alone").version.digest
        by_digest = f"acme/alone@{digest}"
        for client in (reader, admin):
            for _ in range(2):
                assert client.resolve("acme/alone").digest == client.resolve(by_digest).digest == digest
        harness.admin.quarantine(by_digest, "an alarm")
        for client, ref in ((reader, "acme/alone"), (reader, by_digest), (admin, "acme/alone")):
            with pytest.raises(Refused) as refusal:
                client.resolve(ref)
            assert refusal.value.code == "QUARANTINED"
        assert admin.resolve(by_digest).digest == digest
        harness.admin.unquarantine(by_digest, "a false alarm")
        assert reader.resolve("acme/alone").digest == digest
        harness.admin.yank(by_digest, "wrong data")
        with pytest.raises(Refused) as refusal:
            reader.resolve("acme/alone")
        assert refusal.value.code == "YANKED"
        assert reader.resolve(by_digest).yanked
        harness.admin.yank(by_digest, "it was the other run", undo=True)
        assert reader.resolve("acme/alone").digest == digest
        assert not harness.admin.version("acme/alone").yank_reason
    finally:
        replica.close()


def test_resolving_takes_at_most_one_statement_and_signing_in_takes_one(tenants: Tenants) -> None:
    secret = tenants.secret("reader")
    headers = {"Authorization": f"Bearer {secret}"}
    with httpx.Client(transport=tenants.harness.transport, base_url=URL, headers=headers) as http:
        http.get("/api/v1/resolve/acme/support/main")
        with tenants.harness.statements() as sent:
            assert http.get("/api/v1/resolve/acme/support/main").status_code == 200
        assert len(sent) <= 1
        with tenants.harness.statements() as sent:
            assert http.get("/api/v1/whoami").status_code == 200
        assert len(sent) == 1


# ------------------------------------------------------------------ two at once: on SQLite writers take turns
def is_waiting(harness: Harness) -> bool:
    """Whether a connection waits for a lock of the database."""
    statement = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with harness.session() as session:
        return bool(session.connection().execute(text(statement)).scalar_one())


def waiting(harness: Harness) -> None:
    """Return once a connection waits for a lock of the database."""
    for _ in range(3000):
        if is_waiting(harness):
            return
        time.sleep(0.02)  # no event tells of another's wait
    raise AssertionError("no connection waits for a lock")


@pytest.mark.parametrize("database_kind", ["postgres"], indirect=True)
def test_a_deletion_waits_for_an_approval_that_is_being_written(tenants: Tenants) -> None:
    """A row that refers to the version and is written after the check must not break the deletion."""
    harness, done = tenants.harness, list[DeleteResult]()
    with harness.session(write=True) as session:
        first = session.exec(select(VersionRow.id).order_by(col(VersionRow.id))).first() or 0
        row = ApprovalRow(version_id=first, alias="prod", identity="bob", at=db.now(), token_id="", comment="")
        session.add(row)
        session.flush()
        deletion = threading.Thread(target=lambda: done.append(tenants.harness.admin.delete_adapter("acme/support")))
        deletion.start()
        waiting(harness)
    deletion.join()
    assert [removed.versions for removed in done] == [1]


@pytest.mark.parametrize("database_kind", ["postgres"], indirect=True)
@pytest.mark.parametrize("how", ["approve", "promote", "push"])
def test_an_act_in_the_former_namespace_does_not_come_after_a_move_to_another(tenants: Tenants, how: str) -> None:
    """Its actor may have no rights in the new namespace, whose gates are others."""
    harness, codes = tenants.harness, list[str]()
    acts: dict[str, Callable[[], object]] = {
        "approve": lambda: harness.admin.approve("acme/support@1", "prod"),
        "promote": lambda: harness.admin.promote("acme/support", "canary", "1", generation=0),
        "push": lambda: harness.push("acme/support", tenants.files, alias="canary"),  # of a version that exists
    }

    def act() -> None:
        with pytest.raises(NotFound) as refusal:
            acts[how]()
        codes.append(refusal.value.code)

    with harness.session(write=True) as session:
        removal.rename(session, TRUSTED, AdapterName("acme", "support"), AdapterName("globex", "support"))
        acting = threading.Thread(target=act)
        acting.start()
        waiting(harness)
    acting.join()
    assert codes == ["VERSION_UNKNOWN" if how == "push" else "ADAPTER_UNKNOWN"]
    assert harness.admin.approvals("globex/support@1").items == []
    assert [alias.alias for alias in harness.admin.aliases("globex/support").items] == ["main"]


@pytest.mark.parametrize("database_kind", ["postgres"], indirect=True)
@pytest.mark.parametrize("how", ["unquarantine", "quarantine", "promote"])
def test_a_version_that_was_just_deleted_stays_withheld_and_gets_no_alias(tenants: Tenants, how: str) -> None:
    harness, refused = tenants.harness, list[str]()
    harness.push("acme/support")
    acts: dict[str, Callable[[], object]] = {
        "unquarantine": lambda: harness.admin.unquarantine("acme/support@1", "a false alarm"),
        "quarantine": lambda: harness.admin.quarantine("acme/support@1", "an alarm"),
        "promote": lambda: harness.admin.promote("acme/support", "canary", "1", generation=0),
    }
    if how == "unquarantine":
        harness.admin.quarantine("acme/support@1", "an alarm")

    def act() -> None:
        with pytest.raises(NotFound) as refusal:
            acts[how]()
        refused.append(refusal.value.code)

    name = AdapterName("acme", "support")
    with harness.session(write=True) as session:
        deletion.delete_version(session, TRUSTED, name, 1, reason="leaked", force=True)
        session.flush()
        writing = threading.Thread(target=act)
        writing.start()
        waiting(harness)
    writing.join()
    assert refused == ["VERSION_DELETED"]
    deleted = harness.admin.versions("acme/support", include_deleted=True).items[-1]
    assert (deleted.number, deleted.quarantined_at is not None, deleted.aliases) == (1, True, [])


def start_between(harness: Harness, statement_part: str, act: Callable[[], object]) -> threading.Thread:
    """A thread that acts once a statement of another begins with this, which waits until the act ended or waits."""
    thread = threading.Thread(target=act)

    def begin(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith(statement_part) and thread.ident is None:
            thread.start()
            while thread.is_alive() and not is_waiting(harness):
                thread.join(0.02)

    event.listen(harness.engine, "before_cursor_execute", begin)
    return thread


@pytest.mark.parametrize("database_kind", ["postgres"], indirect=True)
@pytest.mark.parametrize("table", ["alias", "approval", "campaign", "namespace_role", "webhook", "publisher"])
def test_two_at_once_do_not_pass_a_limit(tenants: Tenants, monkeypatch: pytest.MonkeyPatch, table: str) -> None:
    """Each counted before the other had committed."""
    harness, errors = tenants.harness, list[str]()
    monkeypatch.setattr(moves, "ALIASES_LIMIT", 2)  # one is `main`
    monkeypatch.setattr(approvals, "APPROVALS_LIMIT", 1)
    monkeypatch.setattr(campaigns, "DAILY_LIMIT", 1)
    monkeypatch.setattr(namespaces, "ROLES_LIMIT", 6)  # an owner and four others have one
    monkeypatch.setattr(webhooks, "WEBHOOKS_LIMIT", 1)
    monkeypatch.setattr(token_exchange, "RULES_LIMIT", 1)
    clients = [harness.client(harness.secret), tenants.client("owner")]
    acts: dict[str, Callable[[int], object]] = {
        "alias": lambda number: clients[number].promote("acme/support", f"new-{number}", "1", generation=0),
        "approval": lambda number: clients[number].approve("acme/support@1", "prod"),
        "campaign": lambda _: clients[0].start_campaign(CampaignRequest(base="tiny-llama")),
        "namespace_role": lambda number: clients[number].grant_role("acme", f"new-{number}@acme", "reader"),
        "webhook": lambda number: Audit(clients[number]).create_webhook(
            WebhookCreate(url="https://hooks.example/x", namespace="acme")
        ),
        "publisher": lambda number: clients[number].add_publisher(
            "acme/support", PublisherAdd(issuer="https://issuer.example", claims={"repository": f"acme/{number}"})
        ),
    }
    for client in clients:
        client.connection._wait = lambda _seconds: None

    def act(number: int) -> None:
        try:
            acts[table](number)
        except RegistryError as error:
            errors.append(error.code)

    other = start_between(harness, f"INSERT INTO {table} ", lambda: act(1))
    act(0)
    other.join()
    assert errors in (["QUOTA_EXCEEDED"], ["RATE_LIMITED"], ["REQUEST_INVALID"], ["SIZE_INVALID"])
