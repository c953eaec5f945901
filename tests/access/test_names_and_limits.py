"""Names that look alike or belonged to something that is gone; quotas and rates; what ends with an adapter's name."""

from __future__ import annotations

import pytest

from registry import names
from registry.api.access import TokenCreate
from registry.api.namespaces import NamespaceSet
from registry.api.push import PushRequest
from registry.client.audit import Audit
from registry.client.registry import Registry
from registry.errors import Conflict, NotFound, TooLarge, Unavailable
from registry.names import AdapterName
from registry.server.access import reserved_names
from registry.server.actors import TRUSTED
from registry.server.database.models.content import (
    AdapterRow,
    EventRow,
    JobRow,
    JobStepRow,
    NamespaceRow,
    TakenNameRow,
    VersionRow,
)
from tests.access.people import House, send
from tests.world import World, rows


@pytest.fixture
def house(world: World) -> House:
    return House(world)


@pytest.mark.parametrize(
    ("one", "other", "alike"),
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
def test_the_skeleton_of_a_name_tells_look_alikes(one: str, other: str, alike: bool) -> None:
    assert (names.skeleton(one) == names.skeleton(other)) is alike


def test_a_look_alike_is_refused_at_the_plan_with_the_name_that_it_looks_like(house: House) -> None:
    with pytest.raises(Conflict) as caught:
        house.world.push("acme/supp0rt", by=house.client("pusher"))
    assert caught.value.code == "NAME_TAKEN"
    assert "'support'" in caught.value.detail
    assert [reason.code for reason in caught.value.reasons] == ["name.too_similar"]
    house.world.push("globex/supp0rt")
    with house.world.session() as session:
        assert [row.name for row in rows(session, AdapterRow)] == ["support", "secret", "supp0rt"]


def test_a_refusal_does_not_name_what_the_asker_may_not_see(house: House) -> None:
    bound = TokenCreate(name="ci", scopes=["push"], namespaces=["acme"], adapters=["acme/supp0rt"])
    with pytest.raises(Conflict) as caught:
        house.world.push("acme/supp0rt", by=house.world.client(house.world.admin.create_token(bound).secret))
    assert "'support'" not in caught.value.detail
    elsewhere = house.world.actor("push", namespaces=["g1obex"])
    with pytest.raises(Conflict) as caught:
        house.world.push("g1obex/x", by=elsewhere)
    assert "'globex'" not in caught.value.detail


def test_of_two_look_alikes_whose_plans_both_passed_one_comes_to_be(house: House) -> None:
    """The plan is a courtesy; the row's key decides."""
    with house.world.session(write=True) as session:
        reserved_names.claim_adapter(session, TRUSTED, AdapterName("acme", "helper"))
    with pytest.raises(Conflict), house.world.session(write=True) as session:
        reserved_names.claim_adapter(session, TRUSTED, AdapterName("acme", "he1per"))


def test_a_namespace_comes_with_its_first_push_and_its_name_is_taken_then(house: House) -> None:
    house.world.push("initech/x")
    assert house.namespaces.show("initech").used_versions == 1
    with pytest.raises(Conflict):
        house.namespaces.create("1nitech")
    with pytest.raises(Conflict):
        house.namespaces.create("initech")


# ------------------------------------------------------------------ what is gone
def test_a_deleted_adapter_is_gone_with_all_that_hung_on_it_and_its_name_for_ever(house: House) -> None:
    world = house.world
    world.push("acme/support")
    world.validate("acme/support@1")
    world.admin.promote("acme/support", "canary", "1", generation=0)
    with world.session(write=True) as session:  # a row that points at one that points at a version
        job = next(row for row in rows(session, JobRow) if row.namespace == "acme")
        session.add(JobStepRow(job_id=job.id, attempt=1, at=job.created_at, says="loads the base"))
    assert house.as_("owner").delete_adapter("acme/support").versions == 2
    with pytest.raises(NotFound):
        world.admin.resolve("acme/support")
    for name in ("acme/support", "acme/supp0rt"):
        with pytest.raises(Conflict) as caught:
            world.push(name)
        assert caught.value.code == "NAME_TOMBSTONED"
    with world.session() as session:
        assert len(rows(session, VersionRow)) == 1
        assert [e.action for e in rows(session, EventRow)].count("adapter.delete") == 1
    assert [job.subject for job in world.admin.jobs().items] == ["globex/secret@1"]


def test_a_push_that_is_under_way_when_its_name_ends_leaves_nothing(house: House) -> None:
    world = house.world
    files = world.files()
    client: Registry = house.client("pusher")
    plan = client.plan_push("acme/support", PushRequest(manifest=world.manifest(files)))
    house.namespaces.delete_adapter("acme/support")
    with pytest.raises(NotFound):
        client.commit_push(plan.push_id)
    with world.session() as session:
        assert [row.name for row in rows(session, AdapterRow)] == ["secret"]


def test_a_transfer_keeps_versions_and_history_under_the_new_name_and_buries_the_old(house: House) -> None:
    world = house.world
    world.admin.promote("acme/support", "canary", "1", generation=0)
    before = world.admin.resolve("acme/support@1").digest
    moved = house.namespaces.transfer("acme/support", "globex/helpdesk")
    assert (moved.name, moved.digest, moved.aliases) == ("globex/helpdesk", before, {"main": 1, "canary": 1})
    assert len(world.admin.history("globex/helpdesk").moves) == 2
    assert [job.subject for job in world.admin.jobs(ref="globex/helpdesk").items] == ["globex/helpdesk@1"]
    with pytest.raises(NotFound):
        house.client("owner").resolve("globex/helpdesk")
    with pytest.raises(Conflict):
        world.push("acme/support")
    with pytest.raises(Conflict):
        house.namespaces.transfer("globex/helpdesk", "globex/secret")


def test_an_owner_of_one_side_transfers_nothing_to_the_other(house: House) -> None:
    with pytest.raises(NotFound):
        house.as_("owner").transfer("acme/support", "globex/taken")
    assert house.client("owner").resolve("acme/support").number == 1


def test_a_namespace_ends_only_when_it_is_empty_and_its_roles_with_it(house: House) -> None:
    with pytest.raises(Conflict) as caught:
        house.as_("owner").delete("acme")
    assert caught.value.code == "NAMESPACE_IN_USE"
    house.namespaces.delete_adapter("acme/support")
    house.as_("owner").delete("acme")
    assert house.client("owner").whoami().roles == {}
    for make in (lambda: house.namespaces.create("acme"), lambda: house.world.push("acme/x")):
        with pytest.raises(Conflict) as caught:
            make()
        assert caught.value.code == "NAME_TOMBSTONED"


# ------------------------------------------------------------------ limits
def test_a_quota_of_versions_is_refused_at_the_plan_and_again_at_the_commit(house: House) -> None:
    world = house.world
    house.namespaces.change("acme", NamespaceSet(quota_versions=2))
    files = world.files()
    plan = world.admin.plan_push("acme/support", PushRequest(manifest=world.manifest(files)))
    world.push("acme/support")
    with pytest.raises(TooLarge) as caught:
        world.push("acme/support")
    assert caught.value.code == "QUOTA_EXCEEDED"
    by_digest = {d.digest: files[d.path] for d in world.manifest(files).files}
    for upload in plan.uploads:
        world.admin.upload(upload, lambda data=by_digest[upload.digest]: iter([data]))
    with pytest.raises(TooLarge):
        world.admin.commit_push(plan.push_id)
    assert house.namespaces.show("acme").used_versions == 2
    world.push("acme/support", house.files)  # what is there already is no new version
    house.namespaces.change("acme", NamespaceSet(quota_versions=0))
    world.admin.commit_push(plan.push_id)
    assert house.namespaces.show("acme").used_versions == 3


def test_a_quota_of_bytes_counts_in_full_what_others_hold_too(house: House) -> None:
    world = house.world
    used = house.namespaces.show("acme").used_bytes
    world.push("globex/same", house.files)
    assert house.namespaces.show("acme").used_bytes == used
    house.namespaces.create("initech")
    house.namespaces.change("initech", NamespaceSet(quota_bytes=used - 1))
    with pytest.raises(TooLarge):
        world.push("initech/same", house.files)
    house.namespaces.change("initech", NamespaceSet(quota_bytes=used))
    world.push("initech/same", house.files)
    assert house.namespaces.show("initech").used_bytes == used


def test_an_adapter_that_comes_from_another_namespace_needs_room_there(house: House) -> None:
    """Else a quota would hold nobody who has a second namespace."""
    used = house.namespaces.show("globex").used_bytes
    house.world.push("acme/support")
    for limit in (NamespaceSet(quota_versions=2), NamespaceSet(quota_versions=0, quota_bytes=used + 1)):
        house.namespaces.change("globex", limit)
        with pytest.raises(TooLarge) as caught:
            house.namespaces.transfer("acme/support", "globex/support")
        assert caught.value.code == "QUOTA_EXCEEDED"
        assert house.world.admin.adapter("acme/support").newest == 2, "it stays where it was"
    house.namespaces.change("acme", NamespaceSet(quota_versions=1))
    house.namespaces.transfer("acme/support", "acme/helper")
    house.namespaces.change("globex", NamespaceSet(quota_bytes=0, quota_versions=3))
    house.namespaces.transfer("acme/helper", "globex/support")
    assert house.namespaces.show("globex").used_versions == 3


def test_pushes_of_an_hour_are_limited_and_the_answer_says_when(house: House) -> None:
    house.namespaces.change("acme", NamespaceSet(pushes_per_hour=1))
    manifest = house.world.manifest(house.world.files()).model_dump(mode="json")
    path, body = "/api/v1/adapters/acme/x/pushes", {"manifest": manifest}
    answer = send(house.world, "POST", path, house.secret("pusher"), json=body)
    assert (answer.status_code, answer.json()["code"]) == (429, "RATE_LIMITED")
    assert 0 < int(answer.headers["retry-after"]) <= 3601


def test_limits_are_set_by_administrators_of_all_only(house: House) -> None:
    answer = send(house.world, "PATCH", "/api/v1/namespaces/acme", house.secret("owner"), json={"quota_bytes": 0})
    assert answer.status_code == 403
    with house.world.session() as session:
        assert session.get(NamespaceRow, "acme").quota_bytes is None


def test_a_token_that_asks_too_often_waits_and_others_do_not(database_url: str) -> None:
    with World(database_url, requests_per_minute=5) as world:
        _, secret = world.issue("pull")
        answers = [send(world, "GET", "/api/v1/whoami", secret) for _ in range(7)]
        assert [a.status_code for a in answers].count(429) >= 1
        assert answers[-1].headers["retry-after"].isdigit()
        assert world.client(world.issue("pull")[1]).whoami().actor == "somebody"


def test_wrong_tokens_of_one_address_are_told_to_wait_and_a_right_one_never(world: World) -> None:
    wrong = [send(world, "GET", "/api/v1/whoami", f"lra_{n:08}{0:030}").status_code for n in range(12)]
    assert wrong[:10] == [401] * 10
    assert wrong[10:] == [429, 429]
    assert world.admin.whoami().actor == "admin"
    world.app.state.log.step()
    denied = [event for event in Audit(world.admin).events() if event.action == "access.unknown"]
    assert sum(event.detail["count"] for event in denied) == 12, "who is told to wait was refused, too"


def test_wrong_tokens_that_begin_alike_are_told_to_wait_wherever_they_come_from(world: World) -> None:
    """Whoever knows how a token begins, and tries the rest from many addresses."""
    failures, known = world.app.state.failures, world.secret[:12]
    for n in range(10):
        failures.note(f"10.0.0.{n}", f"{known}{n:030}")
    with pytest.raises(Unavailable, match="wrong tokens that begin like this one: over the limit of 10") as caught:
        failures.note("10.0.1.1", f"{known}{99:030}")
    assert (caught.value.code, 0 < caught.value.retry_after_seconds <= 61) == ("RATE_LIMITED", True)
    for n in range(30):  # others are not harmed, nor what is no token of ours
        failures.note(f"10.0.2.{n}", f"lra_{n:08}{0:030}")
        failures.note(f"10.0.3.{n}", "lra_")
    assert send(world, "GET", "/api/v1/whoami", f"{known}{7:030}").status_code == 429
    assert world.admin.whoami().actor == "admin", "it begins so, and is right"
    for n in range(failures.COUNTED_LIMIT + 10):
        failures.note(f"host {n}")
    assert len(failures._seen) == failures.COUNTED_LIMIT


def test_every_taken_name_is_there_once(house: House) -> None:
    house.world.push("acme/support")
    with house.world.session() as session:
        found = [(row.owner, row.name) for row in rows(session, TakenNameRow)]
    assert found == [("", "acme"), ("", "globex"), ("acme", "support"), ("globex", "secret")]
