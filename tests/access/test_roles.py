"""What a subject's role gives, what it never gives, and that what is taken is taken at once."""

from __future__ import annotations

import base64
import json

import pytest

from registry.api.access import TokenCreate, TokenCreated
from registry.api.namespaces import NamespaceSet
from registry.client.audit import Audit
from registry.client.namespaces import Namespaces
from registry.errors import Denied, Invalid, NotFound, Unauthenticated
from registry.server.access import tokens
from registry.server.database.models.content import EventRow, RoleRow, TokenRow
from tests.access.people import House, of_subject, send
from tests.world import World, rows


@pytest.fixture
def house(world: World) -> House:
    return House(world)


def test_a_reader_pulls_and_does_not_push(house: House) -> None:
    assert house.client("reader").resolve("acme/support").number == 1
    with pytest.raises(Denied):
        house.world.push("acme/support", by=house.client("reader"))


def test_a_pusher_pushes_and_does_not_move_an_alias_not_even_latest(house: House) -> None:
    house.world.push("acme/support", by=house.client("pusher"))
    for alias in ("prod", "latest"):
        with pytest.raises(Denied):
            house.client("pusher").promote("acme/support", alias, "1", generation=0)


def test_a_promoter_moves_an_alias_and_does_not_push(house: House) -> None:
    assert house.client("promoter").promote("acme/support", "canary", "1", generation=0).number == 1
    with pytest.raises(Denied):
        house.world.push("acme/support", by=house.client("promoter"))


def test_an_owner_gives_and_takes_roles_and_a_member_invites_nobody(house: House) -> None:
    house.as_("owner").grant("acme", "carol@acme", "pusher")
    house.world.push("acme/support", by=house.client("carol"))
    for who in ("reader", "pusher", "promoter"):
        with pytest.raises(Denied):
            house.as_(who).grant("acme", f"{who}@acme", "owner")
    with house.world.session() as session:
        assert session.get(RoleRow, ("acme", "pusher@acme")).role == "pusher"


def test_a_role_that_is_taken_counts_no_more_with_tokens_of_before_and_tokens_that_they_made(house: House) -> None:
    owner = house.client("owner")
    child = owner.create_token(TokenCreate(name="deputy", scopes=["push"], namespaces=["acme"]))
    assert child.token.subject == "owner@acme"
    house.world.push("acme/support", by=house.world.client(child.secret))
    house.namespaces.revoke("acme", "owner@acme")
    for client in (owner, house.world.client(child.secret)):
        with pytest.raises(NotFound):
            client.resolve("acme/support")
    with pytest.raises(Denied):
        house.as_("owner").grant("acme", "owner@acme", "owner")


def test_everybody_is_no_owner(house: House) -> None:
    for make in (
        lambda: house.namespaces.create("open", owner="*"),
        lambda: house.as_("owner").grant("acme", "*", "owner"),
    ):
        with pytest.raises(Invalid):
            make()


def test_a_token_narrows_what_the_role_gives(house: House) -> None:
    narrow = house.world.client(of_subject(house.world, "owner@acme", ["pull"], ["acme"]))
    assert narrow.resolve("acme/support").number == 1
    with pytest.raises(Denied):
        house.world.push("acme/support", by=narrow)
    elsewhere = house.world.client(of_subject(house.world, "owner@acme", ["pull"], ["other"]))
    with pytest.raises(NotFound):
        elsewhere.resolve("acme/support")


def test_only_an_administrator_of_all_makes_a_token_for_somebody_else(house: House) -> None:
    request = TokenCreate(name="x", scopes=["push"], namespaces=["acme"], subject="pusher@acme")
    with pytest.raises(Denied):
        house.client("owner").create_token(request)
    plain = house.world.actor("admin", namespaces=["acme"])
    with pytest.raises(Denied):
        plain.create_token(request)


def test_a_role_in_the_namespace_star_counts_everywhere_and_only_administrators_give_it(house: House) -> None:
    with pytest.raises(Denied):
        house.as_("owner").grant("*", "owner@acme", "owner")
    house.namespaces.grant("*", "auditor", "reader")
    auditor = house.world.client(of_subject(house.world, "auditor"))
    assert [a.name for a in auditor.adapters().items] == ["acme/support", "globex/secret"]
    with pytest.raises(Denied):
        house.world.push("globex/secret", by=auditor)


def test_a_namespace_is_private_until_its_owner_makes_it_public_and_then_for_pulling_only(house: House) -> None:
    stranger = house.client("stranger@elsewhere")
    with pytest.raises(NotFound):
        stranger.resolve("acme/support")
    assert stranger.adapters().items == []
    house.as_("owner").change("acme", NamespaceSet(public=True))
    assert stranger.resolve("acme/support").number == 1
    assert [a.name for a in stranger.adapters().items] == ["acme/support"]
    with pytest.raises(Denied):
        house.world.push("acme/support", by=stranger)
    assert Namespaces(stranger).show("acme").roles is None
    house.as_("owner").change("acme", NamespaceSet(public=False))
    with pytest.raises(NotFound):
        stranger.resolve("acme/support")


def test_a_public_namespace_gives_a_worker_no_job(house: House) -> None:
    house.as_("owner").change("acme", NamespaceSet(public=True))
    _, secret = house.world.issue("work", namespaces=["globex"])
    claimed = send(house.world, "POST", "/api/v1/jobs/claim", secret, json={"worker": "w"})
    assert claimed.json()["job"]["subject"].startswith("globex/")
    assert send(house.world, "POST", "/api/v1/jobs/claim", secret, json={"worker": "w"}).status_code == 204
    house.world.give_back([claimed.json()["job"]["id"]])


def test_a_token_that_is_bound_to_an_adapter_sees_and_pushes_nothing_else(house: House) -> None:
    house.world.push("acme/other")
    request = TokenCreate(name="ci", scopes=["push"], namespaces=["acme"], adapters=["acme/support"])
    bound = house.world.client(house.world.admin.create_token(request).secret)
    house.world.push("acme/support", by=bound)
    assert [a.name for a in bound.adapters().items] == ["acme/support"]
    assert {job.subject.partition("@")[0] for job in bound.jobs().items} == {"acme/support"}
    with pytest.raises(NotFound):
        house.world.push("acme/other", by=bound)
    with pytest.raises(Denied):
        Namespaces(bound).grant("acme", "x", "owner")
    with pytest.raises(Denied):
        bound.create_token(TokenCreate(name="wider", scopes=["push"], namespaces=["acme"]))


# ------------------------------------------------------------------ tokens
def test_a_rotated_token_keeps_its_rights_and_the_old_secret_ends_at_once_or_later(house: House) -> None:
    token_id, old = house.world.issue("push", namespaces=["acme"])
    made = Namespaces(house.world.client(old)).rotate(token_id)
    assert house.world.client(made.secret).whoami().scopes == ["push"]
    with pytest.raises(Unauthenticated):
        house.world.client(old).whoami()
    newer = Namespaces(house.world.client(made.secret)).rotate(token_id, keep_seconds=60)
    assert house.world.client(made.secret).whoami().token_id == house.world.client(newer.secret).whoami().token_id
    with house.world.session(write=True) as session:
        row = session.get_one(TokenRow, token_id)
        row.previous_until = row.created_at
        session.add(row)
    with pytest.raises(Unauthenticated):
        house.world.client(made.secret).resolve("acme/support")


def test_a_token_takes_the_place_of_no_token_that_gives_more_or_lasts_longer(house: House) -> None:
    """Of its own subject, too: a secret that was made to pull for a day must not become all that its owner has."""
    admin = house.world.admin

    def of_owner(scope: str, *, namespaces: list[str], seconds: int | None) -> TokenCreated:
        how = {"scopes": [scope], "namespaces": namespaces, "expires_in_seconds": seconds}
        return admin.create_token(TokenCreate(name=scope, subject="owner@acme", **how))

    wide = of_owner("admin", namespaces=["*"], seconds=None)
    for scope, namespaces, seconds in (("pull", ["*"], None), ("admin", ["acme"], None), ("admin", ["*"], 3600)):
        narrow = of_owner(scope, namespaces=namespaces, seconds=seconds)
        with pytest.raises(Denied):
            Namespaces(house.world.client(narrow.secret)).rotate(wide.token.id)
        assert Namespaces(house.world.client(wide.secret)).rotate(narrow.token.id).token.id == narrow.token.id
    _, soon_over = house.world.issue("admin", namespaces=["acme"], seconds=60)
    for_ever, _ = house.world.issue("pull", namespaces=["acme"])
    with pytest.raises(Denied):
        Namespaces(house.world.client(soon_over)).rotate(for_ever)


def test_the_record_names_who_stands_behind_a_token_whatever_the_token_is_called(house: House) -> None:
    request = TokenCreate(name="promoter@acme", scopes=["admin"], namespaces=["acme"])
    disguised = house.world.client(house.client("owner").create_token(request).secret)
    house.world.push("acme/support", by=disguised)
    disguised.promote("acme/support", "canary", "2", generation=0)
    assert disguised.version("acme/support@2").created_by == "owner@acme"
    [move] = disguised.history("acme/support", alias="canary").moves
    assert move.actor == "owner@acme"
    told = [event.actor for event in Audit(disguised).events(object="acme/support", action=["alias.move"])]
    assert told[-2:] == ["owner@acme", "owner@acme"]
    pushed = Audit(disguised).attestations("acme/support@2").items[0]
    assert json.loads(base64.b64decode(json.loads(pushed.bundle)["payload"]))["predicate"]["actor"] == "owner@acme"


def test_a_token_without_a_subject_has_no_name_of_somebody_who_has_a_role_where_it_counts(house: House) -> None:
    here = house.world.actor("admin", namespaces=["acme"])
    with pytest.raises(Invalid):
        here.create_token(TokenCreate(name="promoter@acme", scopes=["promote"], namespaces=["acme"]))
    with pytest.raises(Invalid):
        house.world.admin.create_token(TokenCreate(name="owner@globex", scopes=["pull"]))
    assert here.create_token(TokenCreate(name="owner@globex", scopes=["pull"], namespaces=["acme"])).secret
    Namespaces(house.world.admin).grant("*", "everywhere@corp", "promoter")
    with pytest.raises(Invalid):
        here.create_token(TokenCreate(name="everywhere@corp", scopes=["promote"], namespaces=["acme"]))
    mine = TokenCreate(name="promoter@acme", scopes=["promote"], subject="promoter@acme")
    assert house.world.admin.create_token(mine).secret


def test_a_token_of_somebody_else_answers_like_one_that_never_was(house: House) -> None:
    foreign, _ = house.world.issue("pull", namespaces=["globex"])
    for method, path in (("DELETE", "/api/v1/tokens/{}"), ("POST", "/api/v1/tokens/{}/rotate")):
        answers = [
            send(house.world, method, path.format(token_id), house.secret("owner"), json={})
            for token_id in (foreign, "tok_0000000000000000")
        ]
        assert {a.status_code for a in answers} == {404}
        assert (
            len({a.json()["detail"].replace(foreign, "ID").replace("tok_0000000000000000", "ID") for a in answers}) == 1
        )
    listed = house.client("owner").tokens().items
    assert foreign not in [token.id for token in listed]
    assert {token.subject for token in listed} == {"owner@acme"}


def test_a_token_lasts_no_longer_than_the_one_that_made_it(house: House) -> None:
    _, short = house.world.issue("admin", namespaces=["acme"], seconds=60)
    made = house.world.client(short).create_token(TokenCreate(name="x", scopes=["pull"], namespaces=["acme"]))
    assert made.token.expires_at == house.world.client(short).whoami().expires_at


def test_changes_of_roles_and_secrets_are_events_without_the_secret(house: House) -> None:
    made = house.world.admin.create_token(TokenCreate(name="x", scopes=["pull"]))
    secret = Namespaces(house.world.admin).rotate(made.token.id).secret
    house.namespaces.revoke("acme", "pusher@acme")
    house.namespaces.revoke("acme", "pusher@acme")
    with house.world.session() as session:
        told = rows(session, EventRow)
    assert [e.action for e in told][-3:] == ["token.issue", "token.rotate", "namespace.revoke"]
    assert all(secret not in e.model_dump_json() and tokens.sha256_of(secret) not in e.model_dump_json() for e in told)
