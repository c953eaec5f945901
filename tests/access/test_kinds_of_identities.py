"""A person, a machine's token and the registry itself are three identities, whatever their names are."""

from __future__ import annotations

import pytest
from sqlalchemy import update
from sqlmodel import select

from registry.api.access import TokenCreate
from registry.client.audit import Audit
from registry.client.registry import Registry
from registry.errors import Invalid, Unauthenticated
from registry.evaluation.gates import Gate
from registry.server.database.models import RoleRow, TokenRow, VersionRow
from registry.server.database.models.owner_rules import ApprovalRow
from tests.access.tenants import of_subject
from tests.harness import Harness

pytestmark = pytest.mark.security
ALICE = "alice@acme"


@pytest.fixture
def machine(harness: Harness) -> Registry:
    """The token of a machine that has the name of a person; she gets a role only later."""
    harness.add_base()
    harness.admin.create_namespace("acme", owner="owner@acme")
    machine = harness.actor("push", "promote", namespaces=["acme"], name=ALICE)
    harness.push("acme/support", by=machine)
    return machine


def person(harness: Harness) -> Registry:
    harness.admin.grant_role("acme", ALICE, "promoter")
    return harness.client(of_subject(harness, ALICE))


def test_a_person_approves_what_a_machine_of_her_name_has_pushed(harness: Harness, machine: Registry) -> None:
    harness.admin.set_gate("acme", "prod", Gate(approvals=1, approvers=(ALICE,), two_person=True))
    assert not machine.approve("acme/support@1", "prod").counts, "it pushed the version, and is not the approver"
    assert machine.check_gate("acme/support@1", "prod").missing
    alice = person(harness)
    assert alice.approve("acme/support@1", "prod").counts
    assert [(a.identity, a.counts) for a in alice.approvals("acme/support@1").items] == [
        (f"token:{ALICE}", False), (ALICE, True)
    ]  # fmt: skip
    assert alice.check_gate("acme/support@1", "prod").missing, "she would move it on her own approval"
    assert machine.promote("acme/support", "prod", "1", generation=0).moved_by == f"token:{ALICE}"


def test_neither_of_one_name_approves_what_a_release_without_kinds_has_recorded(
    harness: Harness, machine: Registry
) -> None:
    """A server that is replaced later than others, or a record of the metadata backup."""
    harness.admin.set_gate("acme", "prod", Gate(approvals=1))
    alice = person(harness)
    with harness.session(write=True) as session:
        session.connection().execute(update(VersionRow).values(created_by=ALICE, pushed_by=ALICE))
    assert [actor.approve("acme/support@1", "prod").counts for actor in (machine, alice)] == [False, False]
    assert machine.check_gate("acme/support@1", "prod").missing


def test_what_a_release_without_kinds_has_approved_counts_as_the_token(harness: Harness, machine: Registry) -> None:
    """A server that is replaced later than others records the bare name: one token was two people to a gate."""
    harness.push("acme/support")
    harness.admin.set_gate("acme", "prod", Gate(approvals=2))
    machine.approve("acme/support@2", "prod")
    with harness.session(write=True) as session:
        approval = session.exec(select(ApprovalRow)).one()
        former = approval.model_dump(exclude={"id"}) | {"identity": ALICE}
        session.add(ApprovalRow(**former))
    own = [(f"token:{ALICE}", True)] * 2
    assert [(a.identity, a.counts) for a in machine.approvals("acme/support@2").items] == own
    (missing,) = machine.check_gate("acme/support@2", "prod").missing
    assert missing.message.startswith("1 of 2 approvals")
    harness.admin.grant_role("acme", "bob@acme", "promoter")
    assert harness.client(of_subject(harness, "bob@acme")).approve("acme/support@2", "prod").counts
    assert not machine.check_gate("acme/support@2", "prod").missing
    harness.admin.set_gate("acme", "prod", Gate(approvals=2, two_person=True))
    (missing,) = machine.check_gate("acme/support@2", "prod").missing
    assert missing.message.startswith("1 of 2 approvals"), "neither of its approvals counts if it moves the alias"


def test_the_log_tells_a_machine_from_a_person_of_its_name(harness: Harness, machine: Registry) -> None:
    alice = person(harness)
    machine.promote("acme/support", "canary", "1", generation=0)
    alice.promote("acme/support", "next", "1", generation=0)
    assert machine.version("acme/support@1").created_by == f"token:{ALICE}"
    assert (machine.whoami().actor, alice.whoami().actor) == (f"token:{ALICE}", ALICE)
    for actor, objects in ((ALICE, ["acme/support:next"]), (f"token:{ALICE}", ["acme/support:canary"])):
        events = [event for event in Audit(harness.admin).events(action=["alias.move"]) if event.actor == actor]
        assert [event.object for event in events if not event.object.endswith(":main")] == objects


@pytest.mark.parametrize("name", ["token:ci", "Token:ci", "publisher:repo", "registry", "owner", "exchange", "*"])
def test_no_subject_has_a_name_that_is_recorded_for_another_kind(harness: Harness, name: str) -> None:
    harness.admin.create_namespace("acme", owner="owner@acme")
    with pytest.raises(Invalid):
        harness.admin.grant_role("acme", name, "promoter")
    with pytest.raises(Invalid):
        harness.admin.create_namespace("globex", owner=name)
    with pytest.raises(Invalid):
        harness.admin.create_token(TokenCreate(name="x", scopes=["pull"], subject=name))
    _, secret = harness.issue("pull", namespaces=["acme"])
    with harness.session(write=True) as session:  # as a release could that did not refuse it
        token = session.get_one(TokenRow, harness.client(secret).whoami().token_id)
        session.add(token.sqlmodel_update({"subject": name}))
        session.add(RoleRow(namespace="acme", subject=name, role="owner", granted_at=token.created_at, granted_by="x"))
    with pytest.raises(Unauthenticated):
        harness.client(secret).whoami()


def test_a_token_belongs_to_a_person_and_not_to_a_group(harness: Harness) -> None:
    with pytest.raises(Invalid):
        harness.admin.create_token(TokenCreate(name="x", scopes=["pull"], subject="group:ml-platform"))
