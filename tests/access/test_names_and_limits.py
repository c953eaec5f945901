"""Reserved names, tombstones, quotas and rate limits."""

from __future__ import annotations

import itertools
from contextlib import ExitStack
from datetime import timedelta

import pytest
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient

from registry import names
from registry.api.access import NamespaceSet, RoleView, TokenCreate
from registry.api.transfer import PushRequest
from registry.client.audit import Audit
from registry.client.registry import Registry
from registry.digest import Digest
from registry.errors import Conflict, Invalid, NotFound, Refused, TooLarge, Unavailable
from registry.evaluation.gates import Gate
from registry.names import AdapterName
from registry.server import app
from registry.server.access import namespaces, quotas, rate_limits, reserved_names
from registry.server.actors import TRUSTED
from registry.server.database import db
from registry.server.database.models import AdapterRow, EventRow
from registry.server.database.models.namespaces import NamespaceRow, TakenNameRow
from registry.server.database.models.pushes import PushRow
from registry.server.promotion import deletion, gates, moves
from registry.server.storage.blobs import staging_key_of
from tests import samples
from tests.access.tenants import Tenants, send
from tests.bulk import PUSHES, commit_push, plan_push, push_body, response_about
from tests.harness import Harness, rows, upload


@pytest.fixture
def tenants(harness: Harness) -> Tenants:
    return Tenants(harness)


@pytest.mark.parametrize(
    ("name", "other", "alike"),
    [
        ("support", "supp0rt", True),
        ("my-lora", "my_1ora", True),
        ("a.b-c", "abc", True),
        ("ill", "1l1", True),
        ("shop-1-23", "shop-12-3", False),
        ("shop-1-23", "shop_1.23", True),
        ("v1", "v2", False),
        ("rn", "m", False),
    ],
)
def test_names_that_look_alike_have_one_skeleton(name: str, other: str, alike: bool) -> None:
    assert (names.skeleton(name) == names.skeleton(other)) is alike


def test_a_similar_name_is_refused_at_the_plan_and_the_other_name_is_shown(tenants: Tenants) -> None:
    with pytest.raises(Conflict) as caught:
        tenants.harness.push("acme/supp0rt", by=tenants.client("pusher"))
    assert caught.value.code == "NAME_TAKEN"
    assert "'support'" in caught.value.detail
    assert [reason.code for reason in caught.value.findings] == ["name.too_similar"]
    tenants.harness.push("globex/supp0rt")
    with tenants.harness.session() as session:
        assert [row.name for row in rows(session, AdapterRow)] == ["support", "secret", "supp0rt"]


def test_a_refusal_does_not_show_a_name_that_the_actor_may_not_see(tenants: Tenants) -> None:
    bound = TokenCreate(name="ci", scopes=["push"], namespaces=["acme"], adapters=["acme/supp0rt"])
    with pytest.raises(Conflict) as caught:
        tenants.harness.push(
            "acme/supp0rt", by=tenants.harness.client(tenants.harness.admin.create_token(bound).secret)
        )
    assert "'support'" not in caught.value.detail
    elsewhere = tenants.harness.actor("push", namespaces=["g1obex"])
    with pytest.raises(Conflict) as caught:
        tenants.harness.push("g1obex/x", by=elsewhere)
    assert "'globex'" not in caught.value.detail


def test_of_two_similar_names_whose_plans_both_passed_one_is_created(tenants: Tenants) -> None:
    """The plan only checks; the primary key of the row decides."""
    with tenants.harness.session(write=True) as session:
        reserved_names.reserve_adapter(session, TRUSTED, AdapterName("acme", "helper"))
    with pytest.raises(Conflict), tenants.harness.session(write=True) as session:
        reserved_names.reserve_adapter(session, TRUSTED, AdapterName("acme", "he1per"))


def test_the_first_push_creates_the_namespace_and_reserves_its_name(tenants: Tenants) -> None:
    tenants.harness.push("initech/x")
    assert tenants.harness.admin.namespace("initech").used_versions == 1
    with pytest.raises(Conflict):
        tenants.harness.admin.create_namespace("1nitech")
    with pytest.raises(Conflict):
        tenants.harness.admin.create_namespace("initech")


# ------------------------------------------------------------------ what is gone
def test_deleting_an_adapter_reserves_its_name_forever(tenants: Tenants) -> None:
    harness = tenants.harness
    harness.push("acme/support")
    harness.validate("acme/support@1")
    harness.admin.promote("acme/support", "canary", "1", generation=0)
    assert tenants.client("owner").delete_adapter("acme/support", "typo", force=True).versions == 2
    with pytest.raises(NotFound):
        harness.admin.resolve("acme/support")
    for name in ("acme/support", "acme/supp0rt"):
        with pytest.raises(Conflict) as caught:
            harness.push(name)
        assert caught.value.code == "NAME_TOMBSTONED"
    with harness.session() as session:
        assert [e.action for e in rows(session, EventRow)].count("adapter.delete") == 1


def test_a_push_whose_adapter_is_deleted_before_the_commit_stores_nothing(tenants: Tenants) -> None:
    harness = tenants.harness
    files = harness.files()
    client: Registry = tenants.client("pusher")
    plan = plan_push(client, "acme/support", PushRequest(manifest=harness.manifest(files)))
    tenants.harness.admin.delete_adapter("acme/support")
    with pytest.raises(NotFound):
        commit_push(client, plan.push_id)
    assert [item.name for item in harness.admin.adapters().items] == ["globex/secret"]
    assert [v.number for v in harness.admin.versions("acme/support", include_deleted=True).items] == [1]


def test_a_transfer_keeps_versions_and_history_and_reserves_the_old_name(tenants: Tenants) -> None:
    harness = tenants.harness
    harness.admin.promote("acme/support", "canary", "1", generation=0)
    before = harness.admin.resolve("acme/support@1").digest
    moved = tenants.harness.admin.rename("acme/support", "globex/helpdesk")
    assert (moved.name, moved.digest, moved.aliases) == ("globex/helpdesk", before, {"main": 1, "canary": 1})
    assert len(harness.admin.history("globex/helpdesk").moves) == 2
    assert [job.subject for job in harness.admin.jobs(ref="globex/helpdesk").items] == ["globex/helpdesk@1"]
    with pytest.raises(NotFound):
        tenants.client("owner").resolve("globex/helpdesk")
    with pytest.raises(Conflict):
        harness.push("acme/support")
    with pytest.raises(Conflict):
        tenants.harness.admin.rename("globex/helpdesk", "globex/secret")


def test_a_transfer_needs_rights_in_both_namespaces(tenants: Tenants) -> None:
    with pytest.raises(NotFound):
        tenants.client("owner").rename("acme/support", "globex/taken")
    assert tenants.client("owner").resolve("acme/support").number == 1


def test_only_an_empty_namespace_can_be_deleted_and_its_roles_end_with_it(tenants: Tenants) -> None:
    with pytest.raises(Conflict) as caught:
        tenants.client("owner").delete_namespace("acme")
    assert caught.value.code == "NAMESPACE_IN_USE"
    tenants.harness.admin.delete_adapter("acme/support")
    deletion.purge_expired(tenants.harness.engine, timedelta(0))
    tenants.client("owner").delete_namespace("acme")
    assert tenants.client("owner").whoami().roles == {}
    with pytest.raises(Conflict) as caught:
        tenants.harness.push("acme/x")
    assert caught.value.code == "NAME_TOMBSTONED", "a push does not restore it by the way"


def test_a_deleted_namespace_is_created_again_within_the_grace_time_without_its_roles(harness: Harness) -> None:
    harness.admin.create_namespace("acme", owner="ann@example.org")
    harness.admin.set_gate("acme", "prod", Gate(approvals=2))
    harness.admin.delete_namespace("acme")
    assert harness.admin.create_namespace("acme", owner="bob@example.org").roles == {
        "bob@example.org": [RoleView(role="owner")]
    }
    assert harness.admin.gate("acme", "prod").gate.approvals == 2
    harness.admin.delete_namespace("acme")
    with harness.session(write=True) as session:
        row = session.get_one(TakenNameRow, (reserved_names.NAMESPACES, "acme"))
        session.add(row.sqlmodel_update({"ended_at": db.now() - timedelta(days=31)}))
    with pytest.raises(Conflict, match="was deleted or renamed"):
        harness.admin.create_namespace("acme")


def test_a_rehearsal_namespace_frees_the_names_of_what_is_deleted(harness: Harness) -> None:
    harness.add_base()
    assert harness.admin.create_namespace("trial", rehearsal=True).rehearsal
    harness.push("trial/support")
    harness.admin.delete_adapter("trial/support")
    assert harness.push("trial/support").version.number == 2, "a number never means other bytes"
    with pytest.raises(Conflict, match="a rehearsal, which cannot be public"):
        harness.admin.change_namespace("trial", NamespaceSet(public=True))


# ------------------------------------------------------------------ limits
def test_a_quota_of_versions_is_checked_at_the_plan_and_again_at_the_commit(tenants: Tenants) -> None:
    harness = tenants.harness
    tenants.harness.admin.change_namespace("acme", NamespaceSet(quota_versions=2))
    files = harness.files()
    plan = plan_push(harness.admin, "acme/support", PushRequest(manifest=harness.manifest(files)))
    harness.push("acme/support")
    with pytest.raises(TooLarge) as caught:
        harness.push("acme/support")
    assert caught.value.code == "QUOTA_EXCEEDED"
    upload(harness.admin, plan, files)
    with pytest.raises(TooLarge):
        commit_push(harness.admin, plan.push_id)
    assert tenants.harness.admin.namespace("acme").used_versions == 2
    harness.push("acme/support", tenants.files)  # what is there already is no new version
    tenants.harness.admin.change_namespace("acme", NamespaceSet(quota_versions=0))
    commit_push(harness.admin, plan.push_id)
    assert tenants.harness.admin.namespace("acme").used_versions == 3


def test_a_quota_of_bytes_counts_shared_bytes_in_full(tenants: Tenants) -> None:
    harness = tenants.harness
    used = tenants.harness.admin.namespace("acme").used_bytes
    harness.push("globex/same", tenants.files)
    assert tenants.harness.admin.namespace("acme").used_bytes == used
    tenants.harness.admin.create_namespace("initech")
    tenants.harness.admin.change_namespace("initech", NamespaceSet(quota_bytes=used - 1))
    with pytest.raises(TooLarge):
        harness.push("initech/same", tenants.files)
    tenants.harness.admin.change_namespace("initech", NamespaceSet(quota_bytes=used))
    harness.push("initech/same", tenants.files)
    assert tenants.harness.admin.namespace("initech").used_bytes == used


@pytest.mark.security
def test_bytes_that_open_pushes_stage_count_against_the_quota(tenants: Tenants) -> None:
    harness, admin = tenants.harness, tenants.harness.admin
    plans = [PushRequest(manifest=harness.manifest(harness.files(seed=seed))) for seed in (11, 12, 13)]
    first = plan_push(admin, "acme/one", plans[0])
    second = plan_push(admin, "acme/two", plans[1])
    staged = sum(upload.size_bytes for upload in (*first.uploads, *second.uploads))
    used = admin.namespace("acme").used_bytes
    admin.change_namespace("acme", NamespaceSet(quota_bytes=used + staged + plans[2].manifest.size_bytes - 1))
    with pytest.raises(TooLarge, match="open pushes hold") as caught:
        plan_push(admin, "acme/three", plans[2])
    assert caught.value.code == "QUOTA_EXCEEDED"
    assert plan_push(admin, "acme/one", plans[0]).push_id == first.push_id, "the same push again is resumed"
    with harness.session(write=True) as session:
        row = session.get_one(PushRow, first.push_id)
        row.expires_at = db.now()
        session.add(row)
    assert plan_push(admin, "acme/three", plans[2]).uploads


@pytest.mark.security
@pytest.mark.parametrize("limit", ["PUSHES_OF_TOKEN_LIMIT", "PUSHES_OF_NAMESPACE_LIMIT"])
def test_open_pushes_are_limited(tenants: Tenants, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    monkeypatch.setattr(quotas, limit, 2)
    harness, admin = tenants.harness, tenants.harness.admin
    requests = [PushRequest(manifest=harness.manifest(harness.files(seed=seed))) for seed in (11, 12, 13)]
    for request in requests[:2]:
        plan_push(admin, "acme/support", request)
    body = push_body("acme/support", requests[2].manifest.model_dump(mode="json"))
    response = response_about(send(harness, "POST", PUSHES, harness.secret, json=body))
    assert (response.status_code, response.json()["code"]) == (429, "RATE_LIMITED")
    assert "open pushes" in response.json()["detail"]
    assert plan_push(admin, "acme/support", requests[0]).uploads


@pytest.mark.security
@pytest.mark.parametrize("limiter", ["upload_limiter", "blob_limiter"])
def test_uploads_in_progress_are_limited_for_a_token_and_for_a_blob(tenants: Tenants, limiter: str) -> None:
    harness = tenants.harness
    files = harness.files(seed=11)
    plan = plan_push(harness.admin, "acme/support", PushRequest(manifest=harness.manifest(files)))
    target, data = plan.uploads[0], {Digest.of(data): data for data in files.values()}[plan.uploads[0].digest]
    token_id = harness.admin.whoami().token_id
    with ExitStack() as uploads:
        key = token_id if limiter == "upload_limiter" else staging_key_of(plan.push_id, target.digest)
        count = rate_limits.UPLOADS_PER_TOKEN if limiter == "upload_limiter" else rate_limits.UPLOADS_PER_BLOB
        for _ in range(count):
            uploads.enter_context(getattr(harness.app.state, limiter).hold(key))
        assert send(harness, "PUT", target.url, harness.secret, content=data).status_code == 429
    assert send(harness, "PUT", target.url, harness.secret, content=data).status_code == 204


def test_a_transfer_must_fit_into_the_quota_of_the_new_namespace(tenants: Tenants) -> None:
    """Otherwise a second namespace would get around the quota."""
    used = tenants.harness.admin.namespace("globex").used_bytes
    tenants.harness.push("acme/support")
    for limit in (NamespaceSet(quota_versions=2), NamespaceSet(quota_versions=0, quota_bytes=used + 1)):
        tenants.harness.admin.change_namespace("globex", limit)
        with pytest.raises(TooLarge) as caught:
            tenants.harness.admin.rename("acme/support", "globex/support")
        assert caught.value.code == "QUOTA_EXCEEDED"
        assert tenants.harness.admin.adapter("acme/support").newest == 2, "it stays where it was"
    tenants.harness.admin.change_namespace("acme", NamespaceSet(quota_versions=1))
    tenants.harness.admin.rename("acme/support", "acme/helper")
    tenants.harness.admin.change_namespace("globex", NamespaceSet(quota_bytes=0, quota_versions=3))
    tenants.harness.admin.rename("acme/helper", "globex/support")
    assert tenants.harness.admin.namespace("globex").used_versions == 3


def test_an_adapter_that_does_not_fit_its_base_is_not_renamed_into_a_strict_namespace(tenants: Tenants) -> None:
    admin = tenants.harness.admin
    wide = samples.lora(samples.llama(hidden=128))
    tenants.harness.push("acme/support", wide)
    admin.change_namespace("globex", NamespaceSet(strict=True))
    for name in ("acme/support", "acme/helper"):
        with pytest.raises(Refused, match=r"'acme/\w+@2' does not fit its base: .*takes") as caught:
            admin.rename(name, "globex/support")
        assert (caught.value.code, caught.value.findings[0].code) == ("INCOMPATIBLE", "compat.shape")
        if name == "acme/support":
            admin.rename(name, "acme/helper")
    admin.delete_version("acme/helper@2")
    with pytest.raises(Refused):
        admin.rename("acme/helper", "globex/support")  # the deletion may be undone
    admin.change_namespace("globex", NamespaceSet(strict=False))
    assert admin.rename("acme/helper", "globex/support").newest == 1


def test_pushes_per_hour_are_limited_and_the_response_says_when_to_retry(tenants: Tenants) -> None:
    tenants.harness.admin.change_namespace("acme", NamespaceSet(pushes_per_hour=1))
    manifest = tenants.harness.manifest(tenants.harness.files()).model_dump(mode="json")
    body = push_body("acme/x", manifest)
    response = response_about(send(tenants.harness, "POST", PUSHES, tenants.secret("pusher"), json=body))
    assert (response.status_code, response.json()["code"]) == (429, "RATE_LIMITED")
    assert 0 < int(response.headers["retry-after"]) <= 3601


def test_only_administrators_of_all_namespaces_set_limits(tenants: Tenants) -> None:
    response = send(
        tenants.harness, "PATCH", "/api/v1/namespaces/acme", tenants.secret("owner"), json={"quota_bytes": 0}
    )
    assert response.status_code == 403
    with tenants.harness.session() as session:
        assert session.get(NamespaceRow, "acme").quota_bytes is None


def test_requests_are_rate_limited_per_token(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limits, "MINUTE_SECONDS", 3600.0)
    with Harness(database_url, requests_per_minute=5) as harness:
        _, secret = harness.issue("pull")
        responses = [send(harness, "GET", "/api/v1/whoami", secret) for _ in range(7)]
        assert [a.status_code for a in responses].count(429) >= 1
        assert responses[-1].headers["retry-after"].isdigit()
        assert harness.client(harness.issue("pull")[1]).whoami().actor == "token:somebody"


def test_wrong_tokens_from_one_address_are_rate_limited_and_a_valid_one_never(harness: Harness) -> None:
    wrong = [send(harness, "GET", "/api/v1/whoami", f"lra_{n:08}{0:030}").status_code for n in range(12)]
    assert wrong[:10] == [401] * 10
    assert wrong[10:] == [429, 429]
    assert harness.admin.whoami().actor == "token:admin"
    harness.app.state.audit_log.step()
    denied = [event for event in Audit(harness.admin).events() if event.action == "access.unknown"]
    assert sum(event.detail["count"] for event in denied) == 12, "rate-limited sign-ins are counted as refused"


@pytest.mark.security
def test_wrong_tokens_count_by_the_network_that_a_host_has(harness: Harness) -> None:
    """A host with IPv6 has 2^64 addresses. A socket that takes both shows IPv4 as addresses of one network."""
    numbers = itertools.count()

    def statuses(*addresses: str) -> list[int]:
        responses = []
        for address in addresses:
            headers = {"Authorization": f"Bearer lra_{next(numbers):08}{0:030}"}
            client = TestClient(harness.app, client=(address, 50_000))
            responses.append(client.get("/api/v1/whoami", headers=headers).status_code)
        return responses

    assert statuses(*(f"2001:db8:0:7::{n:x}" for n in range(12))) == [401] * 10 + [429] * 2
    assert statuses("2001:db8:0:8::1", *(f"::ffff:192.0.2.{n}" for n in range(12))) == [401] * 13
    assert statuses(*["::ffff:192.0.2.77"] * 6, *["192.0.2.77"] * 6) == [401] * 10 + [429] * 2
    assert statuses("not:an:address", "") == [401] * 2, "what a proxy forwards may be any text"


def test_wrong_tokens_with_one_prefix_are_rate_limited_from_any_address(harness: Harness) -> None:
    """An attacker may know the beginning of a token and guess the rest from many addresses."""
    failures, prefix = harness.app.state.failure_limiter, harness.secret[:12]
    for n in range(10):
        failures.record_failure(f"10.0.0.{n}", f"{prefix}{n:030}")
    with pytest.raises(Unavailable, match="wrong tokens that begin like this one: over the limit of 10") as caught:
        failures.record_failure("10.0.1.1", f"{prefix}{99:030}")
    assert (caught.value.code, 0 < (caught.value.retry_after_seconds or 0) <= 61) == ("RATE_LIMITED", True)
    for n in range(30):  # other prefixes and other texts are not limited
        failures.record_failure(f"10.0.2.{n}", f"lra_{n:08}{0:030}")
        failures.record_failure(f"10.0.3.{n}", "lra_")
    assert send(harness, "GET", "/api/v1/whoami", f"{prefix}{7:030}").status_code == 429
    assert harness.admin.whoami().actor == "token:admin", "it has this prefix and is valid"
    for n in range(failures.ENTRIES_LIMIT + 10):
        failures.record_failure(f"host {n}")
    assert len(failures._failures) == failures.ENTRIES_LIMIT


@pytest.mark.security
def test_words_with_another_meaning_are_no_namespaces(tenants: Tenants) -> None:
    files = ("robots.txt", "security.txt", "sitemap.xml", "apple-touch-icon.png")
    for name in (*files, "v1", "v2", "login", "tree", "blob", "settings", "models", "null", "latest", "spaces"):
        with pytest.raises(Invalid, match=f"'{name}' is reserved"):
            tenants.harness.admin.create_namespace(name)
        with pytest.raises(Invalid, match=f"'{name}' is reserved"):
            tenants.harness.push(f"{name}/support")


@pytest.mark.security
def test_no_namespace_has_the_name_of_a_path_beside_it() -> None:
    """Adapters of a namespace `jobs` had the addresses of the pages of jobs; a new page must not add such a name."""
    routes = [route for router in app.ROUTERS for route in router.routes if isinstance(route, APIRoute)]
    paths = {tuple(route.path.strip("/").split("/")) for route in routes}
    literals = {
        other[index]
        for path in paths
        for index in range(len(path))
        if path[index] == "{namespace}"
        for other in paths
        if len(other) > index and all(a == b or "{" in a + b for a, b in zip(path[:index], other, strict=False))
        if other[index] and "{" not in other[index]
    }
    assert {"api", "jobs", "sign-in"} <= literals
    assert literals - names.RESERVED == {"info"}, "`info` is below an adapter"


@pytest.mark.security
def test_the_aliases_and_gates_of_an_adapter_are_limited(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every reader of a list gets them: one promoter could make the lists of all readers large."""
    harness.add_base()
    harness.push("acme/support")
    monkeypatch.setattr(moves, "ALIASES_LIMIT", 3)
    monkeypatch.setattr(gates, "GATES_LIMIT", 1)
    for alias in ("a", "b"):
        harness.admin.promote("acme/support", alias, "1", generation=0)
    with pytest.raises(TooLarge, match="at most 3 aliases"):
        harness.admin.promote("acme/support", "c", "1", generation=0)
    harness.push("acme/support")
    assert harness.admin.promote("acme/support", "a", "2", generation=1).number == 2
    for owner in ("acme", "acme/support"):
        harness.admin.set_gate(owner, "a", Gate(approvals=1))
        with pytest.raises(TooLarge, match="gates of 1 aliases"):
            harness.admin.set_gate(owner, "b", Gate(approvals=1))
        harness.admin.set_gate(owner, "a", Gate(approvals=2))


@pytest.mark.security
def test_the_roles_of_a_namespace_are_limited(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Administrators list those of all namespaces: one owner could make that list as large as it liked."""
    harness.admin.create_namespace("acme", owner="owner@acme")
    monkeypatch.setattr(namespaces, "ROLES_LIMIT", 2)
    harness.admin.grant_role("acme", "alice@acme", "reader")
    with pytest.raises(TooLarge, match="has 2 roles of subjects"):
        harness.admin.grant_role("acme", "bob@acme", "reader")
    with pytest.raises(TooLarge):
        harness.admin.grant_role("acme", "alice@acme", "pusher")
    harness.admin.revoke_role("acme", "alice@acme", "reader")
    changed = harness.admin.grant_role("acme", "alice@acme", "pusher")
    assert ([*map(str, changed.before)], [*map(str, changed.roles)]) == ([], ["pusher"])
