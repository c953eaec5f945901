"""Reading events: who sees which ones, in order and without gaps; and no secret is in any of them."""

from __future__ import annotations

import logging
import threading
from typing import Any

import httpx
import pytest

from registry.api.access import NamespaceSet, TokenCreate
from registry.api.audit.webhooks import WebhookCreate
from registry.client.audit import Audit
from registry.errors import Denied, NotFound, Unauthenticated
from registry.events import ADMIN_TYPES, EventType, ObjectKind, describe
from registry.server import audit
from registry.server.actors import TRUSTED
from registry.server.audit import audit_log
from registry.server.audit.audit_log import DENIAL_ACTIONS, ENTRIES_LIMIT, PATHS_LIMIT, EventBatch
from registry.server.database.models import EventRow
from tests.access.tenants import send
from tests.audit import logs
from tests.harness import URL, Harness, rows


@pytest.fixture(params=["sqlite", "postgres"])
def database_kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_an_actor_sees_the_events_of_what_it_may_see(harness: Harness) -> None:
    harness.add_base()
    harness.push("acme/support")
    harness.push("globex/support")
    objects = {
        name: {event.object for event in Audit(reader).events()}
        for name, reader in (
            ("admin", harness.admin),
            ("acme", harness.actor("pull", namespaces=["acme"])),
            ("all", harness.actor("pull")),
        )
    }
    assert not any("globex" in object for object in objects["acme"])
    assert {"acme/support@1", "acme/support:main", "tiny-llama"} <= objects["acme"]
    assert {"acme/support@1", "globex/support@1"} <= objects["all"]
    assert not any(object.startswith(("tok_", "first-admin")) for object in objects["acme"] | objects["all"])
    assert any(object.startswith("tok_") for object in objects["admin"])
    jobs = {event.object for event in Audit(harness.actor("pull", namespaces=["acme"])).events(action=["job.enqueue"])}
    assert len(jobs) == 1


@pytest.mark.parametrize("field", ["first_at", "last_at"])
@pytest.mark.parametrize("time", ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "9999-12-31T23:59:59-23:59"])
def test_a_time_that_no_clock_shows_is_refused(harness: Harness, field: str, time: str) -> None:
    response = send(harness, "GET", "/api/v1/events", harness.issue("pull")[1], params={field: time})
    assert (response.status_code, response.json()["code"]) == (400, "REQUEST_INVALID")
    assert field in response.json()["detail"]


def test_a_proof_is_only_for_actors_that_may_see_the_event(harness: Harness) -> None:
    harness.add_base()
    harness.push("acme/support")
    outsider = Audit(harness.actor("pull", namespaces=["globex"]))
    seq = next(event.seq for event in Audit(harness.admin).events(action=["version.push"]))
    assert Audit(harness.actor("pull", namespaces=["acme"])).proof(seq).seq == seq
    with pytest.raises(NotFound) as hidden:
        outsider.proof(seq)
    with pytest.raises(NotFound) as absent:
        outsider.proof(seq + 10_000)
    assert hidden.value.detail.replace(str(seq), "N") == absent.value.detail.replace(str(seq + 10_000), "N")
    with pytest.raises(Denied):
        outsider.entries(0, 1)
    assert outsider.tile(0, 0, 1) == Audit(harness.admin).tile(0, 0, 1)


def test_pages_continue_where_the_last_one_ended(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "SCAN_LIMIT", 7)
    with harness.session(write=True) as session:
        for number in range(40):
            audit.append(
                session, TRUSTED, EventType.ALIAS_MOVE, f"{'acme' if number % 9 else 'globex'}/a:prod", {"to": number}
            )
    reader = Audit(harness.actor("pull", namespaces=["globex"]))
    numbers, after = [], 0
    while page := reader.page(after, limit=2):
        numbers += [event.detail["to"] for event in page.items]
        after = page.last
        if not page.next_cursor:
            break
    assert numbers == [0, 9, 18, 27, 36]
    assert [event.detail["to"] for event in Audit(harness.admin).events(object="globex/a")] == numbers


def test_events_of_a_namespace_and_of_names_that_are_alike_are_found_together(harness: Harness) -> None:
    with harness.session(write=True) as session:
        for object in ("acme/a:prod", "acme/a:canary", "acme/a_b:prod", "acme/axb:prod", "acmes/a:prod"):
            audit.append(session, TRUSTED, EventType.ALIAS_MOVE, object, {"from": 1, "to": 2})
    cases: tuple[tuple[dict[str, Any], list[str]], ...] = (
        ({"namespace": "acme"}, ["acme/a:prod", "acme/a:canary", "acme/a_b:prod", "acme/axb:prod"]),
        ({"namespace": "acme", "object": "*:canary"}, ["acme/a:canary"]),
        ({"object": "acme*/a:prod"}, ["acme/a:prod", "acmes/a:prod"]),
        ({"object": "acme/a_*"}, ["acme/a_b:prod"]),
        ({"object": "acme/a"}, ["acme/a:prod", "acme/a:canary"]),
    )
    for filters, expected in cases:
        events = list(Audit(harness.admin).events(0, action=["alias.move"], **filters))
        assert [event.object for event in events] == expected, filters
    text = describe(events[0].action, events[0].object, events[0].detail)
    assert text.message == "pointed acme/a:prod at version 2, instead of 1"


def test_a_waiting_reader_gets_the_next_visible_event(harness: Harness) -> None:
    logs.append(harness, 3)
    reader = Audit(harness.actor("pull", namespaces=["acme"]))
    last = reader.page(0, limit=200).last
    responses = []
    waiting = threading.Thread(target=lambda: responses.append(reader.page(last, wait=30)))
    waiting.start()
    with harness.session(write=True) as session:
        audit.append(session, TRUSTED, EventType.ALIAS_MOVE, "globex/a:prod")
        audit.append(session, TRUSTED, EventType.ALIAS_MOVE, "acme/a:prod", {"to": 99})
    waiting.join()
    assert [event.detail for event in responses[0].items] == [{"to": 99}]
    assert reader.page(responses[0].last, wait=1).items == []


def test_a_revoked_token_gets_no_event_even_while_it_waits(harness: Harness) -> None:
    token_id, secret = harness.issue("pull", namespaces=["acme"])
    reader = Audit(harness.client(secret))
    last = reader.page(0, limit=200).last
    failures: list[BaseException] = []

    def wait() -> None:
        try:
            reader.page(last, wait=30)
        except Unauthenticated as e:
            failures.append(e)

    waiting = threading.Thread(target=wait)
    waiting.start()
    harness.admin.revoke_token(token_id)
    logs.append(harness, 1)
    waiting.join()
    assert len(failures) == 1


def test_denials_and_reads_of_bytes_are_recorded_with_counts(harness: Harness) -> None:
    harness.add_base()
    harness.push("acme/support")
    reader = harness.actor("pull", namespaces=["acme"], name="reader")
    link = next(file for file in reader.resolve("acme/support").files if file.path == "adapter_config.json")
    for _ in range(3):
        with reader.read(link) as chunks:
            list(chunks)
    with pytest.raises(Denied):
        reader.yank("acme/support@1", "no")
    with pytest.raises(NotFound):
        reader.version("globex/secret@1")
    with pytest.raises(Unauthenticated):
        harness.client("lra_wrong").whoami()
    denials = {
        (event.actor, event.action, event.object): event.detail["count"]
        for event in Audit(harness.admin).events(action=[*DENIAL_ACTIONS.values(), "bytes.read"])
    }
    digest = reader.resolve("acme/support").digest
    assert denials == {
        ("token:reader", "bytes.read", f"acme/support@{digest}"): 3,
        ("token:reader", "access.denied", "POST /api/v1/adapters/acme/support/versions/1/yank"): 1,
        ("token:reader", "access.not_found", "GET /api/v1/adapters/globex/secret/versions/1"): 1,
        ("anonymous", "access.unknown", "GET /api/v1/whoami"): 1,
    }
    assert all("lra_wrong" not in str(key) for key in denials)
    assert not any(event.action.startswith(("bytes", "access")) for event in Audit(reader).events())


def test_a_token_that_guesses_does_not_fill_the_log(harness: Harness) -> None:
    guesser, batch = harness.actor("pull", namespaces=["acme"], name="guesser"), harness.app.state.audit_log.batch
    for number in range(PATHS_LIMIT + 30):
        with pytest.raises(NotFound):
            guesser.version(f"globex/guess{number}@1")
    assert len(batch._entries) == PATHS_LIMIT + 1
    events = list(Audit(harness.admin).events(action=["access.not_found"]))
    assert sum(event.detail["count"] for event in events) == PATHS_LIMIT + 30
    assert events[-1].object == "GET /api/v1/adapters/{namespace}/{name}/versions/{selector}"
    with pytest.raises(NotFound):
        guesser.version("globex/later@1")
    [later] = list(Audit(harness.admin).events(events[-1].seq, action=["access.not_found"]))
    assert later.object.endswith("/globex/later/versions/1")


def test_a_batch_is_bounded_and_survives_an_unavailable_database(harness: Harness) -> None:
    batch = EventBatch()
    for number in range(ENTRIES_LIMIT + 5):
        batch.add(TRUSTED, EventType.ACCESS_DENIED, f"GET /{number}")
    absent: Any = None
    with pytest.raises(AttributeError):
        batch.flush(absent)
    assert batch.flush(harness.engine) == ENTRIES_LIMIT + 1
    assert batch.flush(harness.engine) == 0
    over = next(event for event in Audit(harness.admin).events(action=["audit.overflow"]))
    assert over.detail == {"count": 5}


def test_a_reader_of_events_waits_for_no_attestation(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    harness.add_base()
    log = harness.app.state.audit_log
    attesting, read = threading.Event(), threading.Event()
    was_read: list[bool] = []

    def attest(_: int) -> None:
        attesting.set()
        was_read.append(read.wait(30))

    monkeypatch.setattr(log, "after_step", [attest])
    monkeypatch.setattr(log, "is_running", True)
    monkeypatch.setattr(audit_log, "CATCH_UP_SECONDS", 60)
    thread = threading.Thread(target=log.step)
    thread.start()
    assert attesting.wait(30)
    assert list(Audit(harness.admin).events())
    read.set()
    thread.join()
    assert was_read == [True]


@pytest.mark.security
def test_a_flood_hides_no_read(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Denied requests take no space from reads, and what cannot be recorded is not read."""
    monkeypatch.setattr(audit_log, "ENTRIES_LIMIT", 3)
    monkeypatch.setattr(audit_log, "READS_LIMIT", 2)
    harness.add_base()
    for number in range(3):
        harness.push(f"acme/a{number}")
    (_, secret), guesser = harness.issue("pull", name="reader"), harness.actor("pull", name="guesser")
    log = harness.app.state.audit_log
    log.step()
    monkeypatch.setattr(log, "is_running", True)
    for number in range(5):
        with pytest.raises(NotFound):
            guesser.version(f"globex/guess{number}@1")

    def read(number: int) -> int:
        path = f"/api/v1/adapters/acme/a{number}/versions/1/files/adapter_config.json"
        return send(harness, "GET", path, secret).status_code

    assert [read(number) for number in (0, 1, 2, 1)] == [200, 200, 503, 200]
    log.step()
    assert read(2) == 200
    log.step()
    events = list(Audit(harness.admin).events(action=["bytes.read"]))
    assert [(event.object, event.detail["count"]) for event in events] == [
        ("acme/a0@1", 1), ("acme/a1@1", 2), ("acme/a2@1", 1),
    ]  # fmt: skip


def test_no_secret_is_in_events_tiles_errors_responses_or_logs(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    harness.add_base()
    created = harness.admin.create_token(TokenCreate(name="ci", scopes=["push", "pull"]))
    hook = Audit(harness.admin).create_webhook(WebhookCreate(url="https://93.184.216.34/in?key=canary-in-a-query"))
    client = harness.client(created.secret)
    harness.push("acme/support", by=client)
    with pytest.raises(NotFound):
        client.version("acme/absent@1")
    responses = []
    with httpx.Client(transport=harness.transport, base_url=URL) as raw:
        for header in (f"Bearer {created.secret}x", f"Basic {created.secret}", created.secret):
            responses.append(raw.get("/api/v1/whoami", headers={"Authorization": header}).text)
    with Harness(str(harness.engine.url.render_as_string(hide_password=False)), blobs=harness.blobs) as again:
        admin = Audit(again.client(harness.secret))
        events = [event.model_dump_json() for event in admin.events()]
        bundle = admin.entries(0, len(events)).decode(errors="replace")
    seed = harness.app.state.audit_log.keys.signer.text
    with harness.session() as session:
        stored = str([row.model_dump() for row in rows(session, EventRow)])
    everything = "\n".join([*events, bundle, stored, *responses, caplog.text])
    for canary in (harness.secret, created.secret, hook.secret, "canary-in-a-query", seed, seed.split("+", 4)[4]):
        assert canary not in everything


@pytest.mark.security
def test_events_about_people_webhooks_and_nodes_are_for_administrators_of_the_namespace(harness: Harness) -> None:
    harness.add_base()
    harness.push("acme/support")
    harness.admin.change_namespace("acme", NamespaceSet(public=True))
    with harness.session(write=True) as session:
        for event_type in ADMIN_TYPES:
            namespace = "acme" if event_type.about is ObjectKind.WEBHOOK else None
            audit.append(session, TRUSTED, event_type, "acme/support@1", {"subject": "ann"}, namespace=namespace)
    readers = {
        "other tenant": harness.actor("pull", namespaces=["globex"]),
        "pusher": harness.actor("push", namespaces=["acme"]),
        "reader of all": harness.actor("pull"),
    }
    private = {event.seq for event in Audit(harness.admin).events(action=[str(kind) for kind in ADMIN_TYPES])}
    assert len(private) == len(ADMIN_TYPES) + 1  # the grant that made the namespace public
    for name, reader in readers.items():
        shown = Audit(reader).events()
        assert "version.push" in {event.action for event in shown}, name
        assert not private & {event.seq for event in shown}, name
        for seq in private:
            with pytest.raises(NotFound):
                Audit(reader).proof(seq)
    owner = Audit(harness.actor("admin", namespaces=["acme"]))
    assert private <= {event.seq for event in owner.events()}
    assert owner.proof(min(private)).seq == min(private)
