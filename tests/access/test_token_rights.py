"""What a token may give to others: no right that its holder has only because a namespace is public now."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from registry.api import PREFIX
from registry.api.access import NamespaceSet, PublisherAdd, TokenCreate
from registry.errors import Denied, NotFound
from registry.roles import SCOPES_OF_ROLE, Scope
from tests.access.tenants import Tenants, of_subject, send
from tests.harness import Harness

pytestmark = pytest.mark.security
PULL_ACME = TokenCreate(name="left-over", scopes=["pull"], namespaces=["acme"])


@pytest.fixture
def tenants(database_url: str) -> Iterator[Tenants]:
    with Harness(database_url) as harness:
        yield Tenants(harness)


def test_no_token_is_issued_for_a_namespace_that_is_only_public(tenants: Tenants) -> None:
    tenants.harness.admin.change_namespace("acme", NamespaceSet(public=True))
    outsider = tenants.harness.actor("admin", namespaces=["globex"])
    assert outsider.resolve("acme/support").number == 1
    with pytest.raises(Denied):
        outsider.create_token(PULL_ACME)
    with pytest.raises(Denied):
        tenants.client("owner@globex").create_token(PULL_ACME)
    assert tenants.client("owner").create_token(PULL_ACME).token.namespaces == ["acme"]


def test_a_token_bound_to_an_adapter_lists_nothing_after_its_subject_lost_the_role(tenants: Tenants) -> None:
    rights = {"scopes": ["pull"], "namespaces": ["acme"], "adapters": ["acme/support"]}
    request = TokenCreate(name="bound", subject="reader@acme", **rights)
    bound = tenants.harness.client(tenants.harness.admin.create_token(request).secret)
    assert [item.name for item in bound.adapters().items] == ["acme/support"]
    tenants.harness.admin.revoke_role("acme", "reader@acme")
    assert bound.adapters().items == []
    with pytest.raises(NotFound):
        bound.resolve("acme/support")


def test_a_rotated_secret_reads_and_pushes_but_changes_no_access(tenants: Tenants) -> None:
    harness = tenants.harness
    old_secret = of_subject(harness, "owner@acme")
    old = harness.client(old_secret)
    token_id = old.whoami().token_id
    new = harness.client(old.rotate_token(token_id, keep_seconds=3600).secret)
    assert old.resolve("acme/support").number == 1
    assert harness.push("acme/another", by=old).created
    rule = PublisherAdd(issuer="https://ci.example.org", claims={"sub": "x"})
    attempts = (
        lambda: old.rotate_token(token_id),
        lambda: old.create_token(TokenCreate(name="mine", scopes=["admin"], namespaces=["acme"])),
        lambda: old.revoke_token(token_id),
        lambda: old.grant_role("acme", "thief@example.org", "owner"),
        lambda: old.revoke_role("acme", "reader@acme"),
        lambda: old.change_namespace("acme", NamespaceSet(public=True)),
        lambda: old.add_publisher("acme/support", rule),
    )
    for attempt in attempts:
        with pytest.raises(Denied, match="was rotated"):
            attempt()
    assert new.whoami().token_id == token_id
    assert new.rotate_token(token_id).token.id == token_id


def test_a_rotated_secret_does_nothing_but_pull_and_push(tenants: Tenants) -> None:
    harness = tenants.harness
    token_id, old = harness.issue(*Scope)
    new = harness.client(harness.client(old).rotate_token(token_id, keep_seconds=3600).secret)
    hook = {"url": "https://93.184.216.34/in", "namespace": "acme"}
    support = "/adapters/acme/support"
    promotion = {"selector": "1", "expected_generation": 0}
    requests: tuple[tuple[str, str, Any], ...] = (
        ("POST", f"{support}/rename", {"to": "globex/mine"}),
        ("DELETE", support, None),
        ("DELETE", "/namespaces/acme", None),
        ("DELETE", "/bases/tiny-llama", None),
        ("PUT", "/bases/tiny-llama/aliases", {"aliases": ["meta-llama/mine"]}),
        ("PUT", "/namespaces/acme/gates/prod", {"checks": []}),
        ("POST", "/webhooks", hook),
        ("GET", "/webhooks", None),
        ("PUT", f"{support}/aliases/prod", promotion),
        ("POST", f"{support}/versions/1/quarantine", {"reason": "x"}),
        ("POST", "/jobs/claim", {"worker": "w"}),
        ("POST", "/gc", {}),
        ("GET", "/metrics", None),
    )
    for method, path, body in requests:
        response = send(harness, method, PREFIX + path, old, json=body)
        assert (response.status_code, response.json()["code"]) == (403, "DENIED"), (path, response.text)
        assert "was rotated" in response.json()["detail"], (path, response.text)
    before = harness.client(old)
    pushed = harness.push("acme/support", by=before, alias="canary")
    assert (pushed.created, "lacks the scope 'promote' of alias 'canary'" in pushed.alias_refused) == (True, True)
    assert before.resolve("acme/support").number == 2
    assert before.whoami().scopes == ["pull", "push"]
    assert new.promote("acme/support", "canary", "2", generation=0)


@pytest.mark.parametrize("everywhere", [False, True])
def test_a_token_of_a_subject_does_not_rotate_one_without_a_subject(tenants: Tenants, everywhere: bool) -> None:
    admin = tenants.harness.admin
    if everywhere:
        admin.grant_role("*", "owner@acme", "owner")
    owner = tenants.client("owner")
    for scope in ("work", "pull", "admin"):
        token_id, secret = tenants.harness.issue(scope, namespaces=["acme"])
        with pytest.raises(Denied, match="belongs to a subject"):
            owner.rotate_token(token_id)
        assert tenants.harness.client(secret).whoami().token_id == token_id
        assert owner.revoke_token(token_id).revoked_at is not None
    token_id, _ = tenants.harness.issue("pull", namespaces=["acme"])
    assert tenants.harness.actor("admin", namespaces=["acme"]).rotate_token(token_id).token.id == token_id


def test_no_role_in_a_namespace_gives_the_scope_work(tenants: Tenants) -> None:
    assert not any(Scope.WORK in scopes for scopes in SCOPES_OF_ROLE.values())
    owner = tenants.client("owner")
    with pytest.raises(Denied):
        owner.create_token(TokenCreate(name="worker", scopes=["work"], namespaces=["acme"]))
    tenants.harness.admin.grant_role("*", "administrator@corp", "owner")
    worker = TokenCreate(name="worker", scopes=["work"], namespaces=["*"])
    assert tenants.client("administrator@corp").create_token(worker).token.scopes == ["work"]


def test_a_push_beyond_the_token_says_where_it_may_push_and_not_what_exists(tenants: Tenants) -> None:
    trainer = tenants.harness.actor("push", namespaces=["acme", "initech"], name="trainer")
    refusals = []
    for namespace in ("globex", "nowhere"):
        with pytest.raises(NotFound) as refused:
            tenants.harness.push(f"{namespace}/secret", by=trainer)
        assert refused.value.next_step == "token 'trainer' may push only in: acme, initech"
        refusals.append(refused.value.detail.replace(namespace, ""))
    assert refusals[0] == refusals[1]
