"""Roles: what each one gives, what it never gives, and that a revocation takes effect at once."""

from __future__ import annotations

import base64
import json

import pytest

from registry.api.access import NamespaceSet, TokenCreate, TokenCreated
from registry.api.aliases import MoveItem
from registry.client.aliases import Groups
from registry.client.audit import Audit
from registry.errors import Denied, Invalid, NotFound, Unauthenticated
from registry.evaluation.gates import Gate
from registry.names import AdapterName
from registry.roles import GrantedRole, Role, Scope
from registry.server.actors import Actor
from registry.server.database.models import EventRow, RoleRow, TokenRow
from registry.token_secret import sha256_of
from tests.access.tenants import Tenants, of_subject, send
from tests.harness import Harness, rows

pytestmark = pytest.mark.security


@pytest.fixture
def tenants(harness: Harness) -> Tenants:
    return Tenants(harness)


def test_a_reader_pulls_and_does_not_push(tenants: Tenants) -> None:
    assert tenants.client("reader").resolve("acme/support").number == 1
    with pytest.raises(Denied):
        tenants.harness.push("acme/support", by=tenants.client("reader"))


def test_a_pusher_pushes_and_does_not_move_an_alias_not_even_latest(tenants: Tenants) -> None:
    tenants.harness.push("acme/support", by=tenants.client("pusher"))
    for alias in ("prod", "latest"):
        with pytest.raises(Denied):
            tenants.client("pusher").promote("acme/support", alias, "1", generation=0)


def test_a_promoter_moves_an_alias_and_does_not_push(tenants: Tenants) -> None:
    assert tenants.client("promoter").promote("acme/support", "canary", "1", generation=0).number == 1
    with pytest.raises(Denied, match="'promoter@acme' has no role that allows 'push'"):
        tenants.harness.push("acme/support", by=tenants.client("promoter"))


def test_only_an_owner_gives_and_revokes_roles(tenants: Tenants) -> None:
    tenants.client("owner").grant_role("acme", "carol@acme", "pusher")
    tenants.harness.push("acme/support", by=tenants.client("carol"))
    for who in ("reader", "pusher", "promoter"):
        with pytest.raises(Denied):
            tenants.client(who).grant_role("acme", f"{who}@acme", "owner")
    with tenants.harness.session() as session:
        roles = [row.role for row in rows(session, RoleRow) if row.subject == "pusher@acme"]
    assert roles == ["pusher"]


def test_a_revoked_role_ends_the_rights_of_existing_tokens_and_of_tokens_they_created(tenants: Tenants) -> None:
    owner = tenants.client("owner")
    child = owner.create_token(TokenCreate(name="deputy", scopes=["push"], namespaces=["acme"]))
    assert child.token.subject == "owner@acme"
    tenants.harness.push("acme/support", by=tenants.harness.client(child.secret))
    tenants.harness.admin.revoke_role("acme", "owner@acme")
    for client in (owner, tenants.harness.client(child.secret)):
        with pytest.raises(NotFound):
            client.resolve("acme/support")
    with pytest.raises(Denied):
        tenants.client("owner").grant_role("acme", "owner@acme", "owner")


def test_everybody_cannot_be_an_owner(tenants: Tenants) -> None:
    with pytest.raises(Invalid):
        tenants.harness.admin.create_namespace("open", owner="*")
    with pytest.raises(Invalid):
        tenants.client("owner").grant_role("acme", "*", "owner")


def test_a_token_narrows_what_the_role_gives(tenants: Tenants) -> None:
    narrow = tenants.harness.client(of_subject(tenants.harness, "owner@acme", ["pull"], ["acme"]))
    assert narrow.resolve("acme/support").number == 1
    with pytest.raises(Denied, match="lacks the scope 'push'"):
        tenants.harness.push("acme/support", by=narrow)
    elsewhere = tenants.harness.client(of_subject(tenants.harness, "owner@acme", ["pull"], ["other"]))
    with pytest.raises(NotFound):
        elsewhere.resolve("acme/support")


def test_a_token_for_one_adapter_is_refused_at_others_for_itself_and_not_for_the_role() -> None:
    bound = Actor(
        "ci", "tok_1", frozenset({"push"}), frozenset({"acme"}), subject="owner@acme",
        roles={"acme": (GrantedRole(Role.OWNER),)}, adapters=frozenset({"acme/support"}), public=frozenset({"acme"}),
    )  # fmt: skip
    bound.require(Scope.PUSH, AdapterName.parse("acme/support"))
    with pytest.raises(Denied, match="token 'ci' lacks the scope 'push' in namespace 'acme'"):
        bound.require(Scope.PUSH, AdapterName.parse("acme/other"))


def test_only_an_administrator_of_all_namespaces_creates_tokens_for_other_subjects(tenants: Tenants) -> None:
    request = TokenCreate(name="x", scopes=["push"], namespaces=["acme"], subject="pusher@acme")
    with pytest.raises(Denied):
        tenants.client("owner").create_token(request)
    plain = tenants.harness.actor("admin", namespaces=["acme"])
    with pytest.raises(Denied):
        plain.create_token(request)


def test_a_role_in_the_namespace_star_applies_everywhere_and_only_administrators_give_it(tenants: Tenants) -> None:
    with pytest.raises(Denied):
        tenants.client("owner").grant_role("*", "owner@acme", "owner")
    tenants.harness.admin.grant_role("*", "auditor", "reader")
    auditor = tenants.harness.client(of_subject(tenants.harness, "auditor"))
    assert [a.name for a in auditor.adapters().items] == ["acme/support", "globex/secret"]
    with pytest.raises(Denied):
        tenants.harness.push("globex/secret", by=auditor)


def test_a_namespace_is_private_until_its_owner_makes_it_public_for_pulling(tenants: Tenants) -> None:
    outsider = tenants.client("outsider@elsewhere")
    with pytest.raises(NotFound):
        outsider.resolve("acme/support")
    assert outsider.adapters().items == []
    tenants.client("owner").change_namespace("acme", NamespaceSet(public=True))
    assert outsider.resolve("acme/support").number == 1
    assert [a.name for a in outsider.adapters().items] == ["acme/support"]
    with pytest.raises(Denied):
        tenants.harness.push("acme/support", by=outsider)
    assert outsider.namespace("acme").roles is None
    tenants.client("owner").change_namespace("acme", NamespaceSet(public=False))
    with pytest.raises(NotFound):
        outsider.resolve("acme/support")


def test_a_public_namespace_gives_a_worker_no_job(tenants: Tenants) -> None:
    tenants.client("owner").change_namespace("acme", NamespaceSet(public=True))
    _, secret = tenants.harness.issue("work", namespaces=["globex"])
    claimed = send(tenants.harness, "POST", "/api/v1/jobs/claim", secret, json={"worker": "w"})
    assert claimed.json()["job"]["subject"].startswith("globex/")
    assert send(tenants.harness, "POST", "/api/v1/jobs/claim", secret, json={"worker": "w"}).status_code == 204
    tenants.harness.give_back([claimed.json()["job"]["id"]])


def test_roles_add_up_and_a_change_says_what_was_before(tenants: Tenants) -> None:
    owner = tenants.client("owner")
    owner.grant_role("acme", "carol@acme", "pusher")
    changed = owner.grant_role("acme", "carol@acme", "promoter")
    assert ([*map(str, changed.before)], [*map(str, changed.roles)]) == (["pusher"], ["promoter", "pusher"])
    tenants.harness.push("acme/support", by=tenants.client("carol"))
    tenants.client("carol").promote("acme/support", "canary", "1", generation=0)
    owner.revoke_role("acme", "carol@acme", "pusher")
    tenants.client("carol").yank("acme/support@2", "wrong")
    with pytest.raises(Denied):
        tenants.harness.push("acme/support", by=tenants.client("carol"))


def test_a_right_for_single_aliases_moves_and_approves_these_and_gives_nothing_else(tenants: Tenants) -> None:
    """Of a pusher, a promoter, and a token without a subject."""
    harness, owner = tenants.harness, tenants.client("owner")
    owner.grant_role("acme", "carol@acme", "promoter", aliases=["canary"])
    request = TokenCreate(name="ci", scopes=["push", "promote"], namespaces=["acme"], aliases=["canary"])
    token = harness.client(harness.admin.create_token(request).secret)
    for number, client in enumerate((tenants.client("mover"), tenants.client("carol"), token)):
        client.promote("acme/support", "canary", "1", generation=2 * number)
        client.approve("acme/support@1", "canary")
        client.delete_alias("acme/support", "canary", generation=2 * number + 1)
        with pytest.raises(Denied):
            client.promote("acme/support", "prod", "1", generation=0)
        with pytest.raises(Denied):
            client.approve("acme/support@1", "prod")
        with pytest.raises(Denied):
            client.yank("acme/support@1", "r")
        with pytest.raises(Denied):
            client.set_gate("acme/support", "canary", Gate(approvals=0))
    with pytest.raises(Denied, match="no role that allows 'promote' of alias 'prod' in namespace 'acme'"):
        tenants.client("mover").promote("acme/support", "prod", "1", generation=0)
    for wrong in ({"scopes": ["push"]}, {"scopes": ["promote", "admin"]}, {"aliases": ["main"]}):
        with pytest.raises(Invalid):
            harness.admin.create_token(request.model_copy(update=wrong))
    for role, aliases in (("owner", ["canary"]), ("pusher", ["main"])):
        with pytest.raises(Invalid):
            owner.grant_role("acme", "carol@acme", role, aliases=aliases)


def test_a_group_of_changes_is_of_one_identity_and_seen_where_its_adapters_are(tenants: Tenants) -> None:
    owner, other = Groups(tenants.client("owner")), Groups(tenants.client("owner@globex"))
    owner.move_aliases([MoveItem(name="acme/support", alias="canary", version="1")])
    assert [move.name for move in owner.moves(group_id=owner.group_id).items] == ["acme/support"]
    assert other.moves(group_id=owner.group_id).items == []
    other.group_id = owner.group_id
    with pytest.raises(Invalid, match="a group of changes of somebody else"):
        other.move_aliases([MoveItem(name="globex/secret", alias="canary", version="1")])


def test_a_push_with_an_alias_that_is_not_its_own_is_stored_and_says_so(tenants: Tenants) -> None:
    mover = tenants.client("mover")
    pushed = tenants.harness.push("acme/support", by=mover, alias="prod")
    assert (pushed.version.number, pushed.version.aliases) == (2, ["main"])
    assert "has no role that allows 'promote' of alias 'prod'" in pushed.alias_refused
    assert "canary" in tenants.harness.push("acme/support", by=mover, alias="canary").version.aliases


def test_a_token_that_is_bound_to_an_adapter_sees_and_pushes_nothing_else(tenants: Tenants) -> None:
    tenants.harness.push("acme/other")
    request = TokenCreate(name="ci", scopes=["push"], namespaces=["acme"], adapters=["acme/support"])
    bound = tenants.harness.client(tenants.harness.admin.create_token(request).secret)
    tenants.harness.push("acme/support", by=bound)
    assert [a.name for a in bound.adapters().items] == ["acme/support"]
    assert {job.subject.partition("@")[0] for job in bound.jobs().items} == {"acme/support"}
    with pytest.raises(NotFound):
        tenants.harness.push("acme/other", by=bound)
    with pytest.raises(Denied):
        bound.grant_role("acme", "x", "owner")
    with pytest.raises(Denied):
        bound.create_token(TokenCreate(name="wider", scopes=["push"], namespaces=["acme"]))


# ------------------------------------------------------------------ tokens
def test_a_rotated_token_keeps_its_rights_and_the_old_secret_ends_as_requested(tenants: Tenants) -> None:
    token_id, old = tenants.harness.issue("push", namespaces=["acme"])
    rotated = tenants.harness.client(old).rotate_token(token_id)
    assert tenants.harness.client(rotated.secret).whoami().scopes == ["push"]
    with pytest.raises(Unauthenticated):
        tenants.harness.client(old).whoami()
    newer = tenants.harness.client(rotated.secret).rotate_token(token_id, keep_seconds=60)
    assert (
        tenants.harness.client(rotated.secret).whoami().token_id
        == tenants.harness.client(newer.secret).whoami().token_id
    )
    with tenants.harness.session(write=True) as session:
        row = session.get_one(TokenRow, token_id)
        row.previous_until = row.created_at
        session.add(row)
    with pytest.raises(Unauthenticated):
        tenants.harness.client(rotated.secret).resolve("acme/support")


def test_a_token_cannot_rotate_one_that_has_more_rights_or_lasts_longer(tenants: Tenants) -> None:
    """Of its own subject, too: a secret that was made to pull for a day must not become all that its owner has."""
    admin = tenants.harness.admin

    def of_owner(scope: str, *, namespaces: list[str], seconds: int | None) -> TokenCreated:
        how = {"scopes": [scope], "namespaces": namespaces, "expires_in_seconds": seconds}
        return admin.create_token(TokenCreate(name=scope, subject="owner@acme", **how))

    wide = of_owner("admin", namespaces=["*"], seconds=None)
    for scope, namespaces, seconds in (("pull", ["*"], None), ("admin", ["acme"], None), ("admin", ["*"], 3600)):
        narrow = of_owner(scope, namespaces=namespaces, seconds=seconds)
        with pytest.raises(Denied):
            tenants.harness.client(narrow.secret).rotate_token(wide.token.id)
        assert tenants.harness.client(wide.secret).rotate_token(narrow.token.id).token.id == narrow.token.id
    _, soon_over = tenants.harness.issue("admin", namespaces=["acme"], seconds=60)
    for_ever, _ = tenants.harness.issue("pull", namespaces=["acme"])
    with pytest.raises(Denied):
        tenants.harness.client(soon_over).rotate_token(for_ever)


def test_records_show_the_subject_of_a_token_whatever_its_name_is(tenants: Tenants) -> None:
    request = TokenCreate(name="promoter@acme", scopes=["admin"], namespaces=["acme"])
    disguised = tenants.harness.client(tenants.client("owner").create_token(request).secret)
    tenants.harness.push("acme/support", by=disguised)
    disguised.promote("acme/support", "canary", "2", generation=0)
    assert disguised.version("acme/support@2").created_by == "owner@acme"
    [move] = disguised.history("acme/support", alias="canary").moves
    assert move.actor == "owner@acme"
    actors = [event.actor for event in Audit(disguised).events(object="acme/support", action=["alias.move"])]
    assert actors[-2:] == ["owner@acme", "owner@acme"]
    pushed = Audit(disguised).attestations("acme/support@2").items[0]
    assert json.loads(base64.b64decode(json.loads(pushed.bundle)["payload"]))["predicate"]["actor"] == "owner@acme"


def test_a_token_of_another_subject_looks_like_an_absent_one(tenants: Tenants) -> None:
    foreign, _ = tenants.harness.issue("pull", namespaces=["globex"])
    for method, path in (("DELETE", "/api/v1/tokens/{}"), ("POST", "/api/v1/tokens/{}/rotate")):
        responses = [
            send(tenants.harness, method, path.format(token_id), tenants.secret("owner"), json={})
            for token_id in (foreign, "tok_0000000000000000")
        ]
        assert {a.status_code for a in responses} == {404}
        assert (
            len({a.json()["detail"].replace(foreign, "ID").replace("tok_0000000000000000", "ID") for a in responses})
            == 1
        )
    listed = tenants.client("owner").tokens().items
    assert foreign not in [token.id for token in listed]
    assert {token.subject for token in listed} == {"owner@acme"}


def test_a_token_lasts_no_longer_than_the_one_that_made_it(tenants: Tenants) -> None:
    _, short = tenants.harness.issue("admin", namespaces=["acme"], seconds=60)
    created = tenants.harness.client(short).create_token(TokenCreate(name="x", scopes=["pull"], namespaces=["acme"]))
    assert created.token.expires_at == tenants.harness.client(short).whoami().expires_at


def test_changes_of_roles_and_secrets_are_events_without_the_secret(tenants: Tenants) -> None:
    created = tenants.harness.admin.create_token(TokenCreate(name="x", scopes=["pull"]))
    secret = tenants.harness.admin.rotate_token(created.token.id).secret
    tenants.harness.admin.revoke_role("acme", "pusher@acme")
    tenants.harness.admin.revoke_role("acme", "pusher@acme")
    with tenants.harness.session() as session:
        events = rows(session, EventRow)
    assert [e.action for e in events][-3:] == ["token.issue", "token.rotate", "namespace.revoke"]
    assert all(secret not in e.model_dump_json() and sha256_of(secret) not in e.model_dump_json() for e in events)
